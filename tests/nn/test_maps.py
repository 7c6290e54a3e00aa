"""Maps of the head, decoded on the host: the rows that the head itself gives, for those cells alone that can be shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_head import CH, STRIDES, features, make_head, rows_of, switch
from torch import Tensor, nn

from erpose_yolo.method import maps as module
from erpose_yolo.method.boxes import with_room
from erpose_yolo.method.maps import MapsDecoder, select_persons
from erpose_yolo.nn.head import ERPoseHead


def spread_out(head: ERPoseHead) -> ERPoseHead:
    """Spreads and refinement that differ from cell to cell."""
    for conv in [*head.deployed.spread, *(head.deployed.refinement or ())]:
        nn.init.normal_(conv.weight, 0, 0.5)
    return head


def maps_of(head: ERPoseHead, x: list[Tensor]) -> tuple[list[Tensor], MapsDecoder]:
    """Outputs of an export of maps, and what decodes them."""
    head.deployed.merge()
    about = MapsDecoder(head.deployed.channels, STRIDES, with_room(head.margins), head.confidence, head.kpt_shape[1], head.nc)
    with torch.no_grad():
        return list(switch(head, layout="maps", export=True)(x)), about


def wide() -> list[Tensor]:
    """Features of an image that is not square."""
    g = torch.Generator().manual_seed(3)
    return [torch.randn(2, c, 96 // int(s), 160 // int(s), generator=g) for c, s in zip(CH, STRIDES)]


@pytest.mark.parametrize(
    ("options", "confidence"),
    [
        ({}, "expected_oks"),
        ({}, "score"),
        ({"nc": 3, "kpt_shape": (5, 2)}, "expected_oks"),
        ({"refine": False}, "expected_oks"),
        ({"boxes": True}, "expected_oks"),
        ({"boxes": True, "refine": False, "nc": 2}, "score"),
    ],
    ids=str,
)
def test_the_host_gives_the_rows_of_the_head(options: dict[str, Any], confidence: str) -> None:
    head, x = switch(spread_out(make_head(**options)), confidence=confidence), wide()
    rows = rows_of(head, x)
    outputs, decoder = maps_of(head, x)
    assert [t.shape[1:] for t in outputs[::2]] == [(head.nc, 12, 20), (head.nc, 6, 10), (head.nc, 3, 5)]
    scores = rows[..., 4].flatten().sort().values[200:400]
    gap = scores.diff().argmax()  # a threshold that no rounding crosses
    for conf in (0.0, float(scores[gap : gap + 2].mean())):
        wanted = select_persons(rows, None, conf, 300)
        found = select_persons(outputs, decoder, conf, 300)
        assert sum(map(len, wanted)) > 20
        for a, b in zip(wanted, found, strict=True):
            apart, of = torch.cdist(a, b, float("inf")).min(1)  # not by order: scores can be equal
            assert len(a) == len(b) == len(of.unique()) and apart.max() < 1e-3


def test_only_cells_that_can_pass_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty persons cost what sixty cells cost; no cell that would pass is left out."""
    head, x = make_head(), wide()
    for conv in head.deployed.spread:
        nn.init.constant_(conv.bias, -3.0)  # sure of their keypoints
        nn.init.normal_(conv.weight, 0, 0.5)
    every = rows_of(head, x)
    outputs, decoder = maps_of(head, x)
    conf, decoded, make = float(every[..., 4].quantile(0.9)), [], module.make_rows
    monkeypatch.setattr(module, "make_rows", lambda part, *a: (decoded.append(part["scores"].shape[2]), make(part, *a))[1])
    found = select_persons(outputs, decoder, conf, 300)
    assert [len(p) for p in found] == [int((e[:, 4] > conf).sum()) for e in every] and all(map(len, found))
    for image, n in enumerate(decoded):
        passing = torch.cat([s[image].flatten().sigmoid() for s in outputs[::2]]) > conf**2
        assert len(found[image]) <= n == passing.sum() < 200
    decoded.clear()
    assert [len(p) for p in select_persons(outputs, decoder, 1.0, 300)] == [0, 0] and not decoded
    monkeypatch.setattr(module, "MOST", 7)
    assert [len(p) for p in select_persons(outputs, decoder, 0.0, 5)] == [5, 5] and decoded == [7, 7]


def test_outputs_in_any_order_and_half_precision() -> None:
    """Runtimes sort outputs by names of their own, and half types are decoded in float."""
    head, x = spread_out(make_head()), features()
    outputs, decoder = maps_of(head, x)
    wanted = select_persons(outputs, decoder, 0.0, 20)
    for a, b in zip(wanted, select_persons(outputs[::-1], decoder, 0.0, 20), strict=True):
        assert torch.equal(a, b)
    half = select_persons([t.half() for t in outputs], decoder, 0.0, 20)[0]
    assert half.dtype == torch.float32 and torch.allclose(half[:, 4], wanted[0][:, 4], atol=5e-3)
    for wrong in (outputs[:-1], [t[:, :1] for t in outputs]):
        with pytest.raises(ValueError, match="not those of 3 levels"):
            decoder(wrong, 0.1, 300)
    with pytest.raises(ValueError, match="not those of 4 levels"):
        replace(decoder, strides=(*STRIDES, 64.0))(outputs, 0.1, 300)


def test_refinement_that_was_never_trained_is_left_out() -> None:
    """Heads of converted YOLO26-pose weights have zeros there: the maps need not hold them."""
    head, x = make_head(), features()
    rows = rows_of(head, x)
    outputs, decoder = maps_of(head, x)
    assert "refinement" not in decoder.channels and outputs[1].shape[1] == 4 * 17
    torch.testing.assert_close(select_persons(outputs, decoder, 0.0, 300)[0], select_persons(rows, None, 0.0, 300)[0])
    assert "refinement" in maps_of(spread_out(make_head()), x)[1].channels
