"""Decoding: cells, keypoints, derived boxes with fitted margins, rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layouts import encode_keypoints, split_levels

from erpose_yolo.method.boxes import decode_boxes, default_margins, derive_boxes, fit_margins
from erpose_yolo.method.decode import (
    OFFSET_CELLS,
    assemble_rows,
    confidence,
    decode_keypoints,
    expected_oks,
    make_cells,
    select_rows,
)
from erpose_yolo.method.refine import INSET, refine_best, refine_keypoints, refine_picked, sample_maps

SHAPES, STRIDES = [(6, 8), (3, 4), (2, 2)], [8.0, 16.0, 32.0]


def test_cells_come_in_the_order_of_flattened_feature_maps() -> None:
    """A cell's outputs and its centre must be the same cell's: rows swapped with columns would ruin every pose."""
    like = torch.zeros(1, dtype=torch.float64)
    centres, strides = make_cells(SHAPES, STRIDES, like)
    assert centres.dtype == torch.float64 and centres.shape == (2, 48 + 12 + 4) and strides.shape == (1, 64)
    maps = []  # a feature map whose two channels say where each cell lies
    for (h, w), s in zip(SHAPES, STRIDES):
        x = [[(column + 0.5) * s for column in range(w)] for _ in range(h)]
        y = [[(row + 0.5) * s] * w for row in range(h)]
        maps.append(torch.tensor([x, y]))
    assert torch.equal(centres, torch.cat([m.flatten(1) for m in maps], 1).double())
    assert strides[0, [0, 47, 48, 59, 60, 63]].tolist() == [8, 8, 16, 16, 32, 32]


def test_expected_oks_is_the_mean_kernel_of_the_law_that_the_loss_teaches() -> None:
    """Keypoints that scatter as the smooth OKS loss assumes, with spread b, have this mean OKS kernel."""
    r = torch.linspace(0, 4000, 4_000_001, dtype=torch.float64)  # tolerances
    for b in (0.02, 0.1, 0.3, 0.7, 1.0, 2.0, 5.0, 20.0):
        density = torch.exp(1 - torch.sqrt(1 + (r / b) ** 2)) * r  # of the distance; the loss is its negative logarithm
        kernel = torch.exp(-(r**2) / 2)
        truth = (kernel * density).sum() / density.sum()
        ours = expected_oks(torch.full((1, 1, 1), b, dtype=torch.float64).log(), torch.ones(1, 1, 1, dtype=torch.float64))
        assert abs(float(ours) - float(truth)) < 0.027


def test_expected_oks_counts_visible_keypoints_only() -> None:
    """OKS counts labelled keypoints; one that is never labelled learns no spread, and must not pull every score down."""
    spread = torch.tensor([-3.0, -3.0, 4.0])[None, :, None].expand(1, 3, 5)
    seen = torch.tensor([1.0, 1.0, 0.0])[None, :, None].expand(1, 3, 5)
    two = expected_oks(spread[:, :2], seen[:, :2])
    assert two.shape == (1, 1, 5) and (two > 0.99).all()
    assert torch.allclose(expected_oks(spread, seen), two, atol=1e-3)
    assert torch.allclose(expected_oks(spread, seen * 0), expected_oks(spread, seen * 0 + 1), atol=1e-3)
    wild = torch.tensor([-1e4, 1e4, 0.0])[None, :, None]
    for dtype in (torch.float32, torch.float16):
        assert expected_oks(wild.to(dtype), torch.zeros(1, 3, 1, dtype=dtype)).isfinite().all()


def test_confidence_keeps_the_scale_of_scores() -> None:
    """Thresholds that users know must go on to mean the same: equal score and expected OKS near one stay there."""
    scores, quality = torch.rand(2, 3, 7), torch.rand(2, 1, 7)
    out = confidence(scores, quality)
    assert out.shape == (2, 3, 7) and torch.allclose(out**2, scores * quality**2, atol=1e-6)
    assert float(confidence(torch.tensor(0.81), torch.tensor(0.9))) == pytest.approx(0.81)


def test_decode_golden() -> None:
    """The unit of raw outputs is OFFSET_CELLS cells; another one would break every checkpoint that exists."""
    centres, strides = torch.tensor([[12.0, 48.0], [20.0, 80.0]]), torch.tensor([[8.0, 32.0]])
    offsets = torch.tensor([[[[0.0, 1.0], [1.0, -0.5]]]])  # (1, 1 keypoint, 2, 2 cells)
    keypoints = decode_keypoints(offsets, centres, strides)
    assert OFFSET_CELLS == 2
    assert keypoints[0, 0].tolist() == [[12.0, 48 + 64.0], [20 + 16.0, 80 - 32.0]]


def test_encode_is_the_inverse_and_both_forms_agree() -> None:
    """Loss (picked cells) and inference (all cells) must mean the same by a raw output."""
    torch.manual_seed(0)
    centres, strides = make_cells(SHAPES, STRIDES, torch.zeros(1, dtype=torch.float64))
    offsets = torch.randn(2, 5, 2, centres.shape[1], dtype=torch.float64) * 3
    dense = decode_keypoints(offsets, centres, strides)
    cell = torch.randint(0, centres.shape[1], (40,))
    image = torch.randint(0, 2, (40,))
    picked = decode_keypoints(offsets[image, :, :, cell], centres.T[cell], strides.T[cell])
    assert torch.equal(picked, dense[image, :, :, cell])
    back = encode_keypoints(picked, centres.T[cell], strides.T[cell])
    assert torch.allclose(back, offsets[image, :, :, cell], atol=1e-12)
    assert not torch.allclose(encode_keypoints(picked, centres.T[cell] + 1, strides.T[cell]), offsets[image, :, :, cell])


def test_look_up_by_hand() -> None:
    """Between cell centres the maps are bilinear, beyond the outermost centres their border goes on."""
    maps = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]], [[1.0, 1.0], [2.0, 2.0]]]])  # (1, 2 keypoints, 2, 2)
    points = torch.tensor([[[0.5, 1.0, 1.5, -9.0], [0.5, 1.0, 0.75, 9.0]], [[1.0, 0.5, 7.0, 0.5], [0.5, 1.5, 7.0, 1.25]]])
    wanted = torch.tensor([[0.0, 15.0, 15.0, 20.0], [1.0, 2.0, 2.0, 1.75]])
    for per_keypoint_sampling in (False, True):
        found = sample_maps(maps, points[None], per_keypoint_sampling)
        assert found.shape == (1, 2, 1, 4) and torch.allclose(found[0, :, 0], wanted, rtol=0, atol=30 * INSET + 1e-5)


@pytest.mark.parametrize("size", [3, 20, 40, 80, 120, 300])
def test_no_look_up_is_rounded_beyond_the_outermost_centres(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's graphs (onnx2tf) read zeros there, so keypoints at the border of the image would not be refined."""
    seen: list[torch.Tensor] = []
    look_up = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda maps, grid, **k: (seen.append(grid), look_up(maps, grid, **k))[1])
    keypoints = torch.tensor([-50.0, size * 8 + 50.0]).expand(1, 2, 2, 2)
    sample_maps(torch.zeros(1, 2, size, size), keypoints / 8)
    refine_best(keypoints, [torch.zeros(1, 6, size, size)], [8.0], torch.ones(1, 1, 2))
    assert len(seen) == 2
    for grid in seen:
        place = ((grid + 1) * size - 1) * 0.5  # in the order of onnx2tf's arithmetic
        assert place.min() >= 0 and place.max() <= size - 1 and place.max() - place.min() > size - 1.01


def test_all_look_ups_agree() -> None:
    """All cells, picked cells (rows) and pairs (loss) must be refined alike, in and outside the image."""
    torch.manual_seed(0)
    centres, strides = make_cells(SHAPES, STRIDES, torch.zeros(1, dtype=torch.float64))
    flat = torch.randn(2, 3 * 5, centres.shape[1], dtype=torch.float64)
    refinements = split_levels(flat, SHAPES)
    assert [tuple(f.shape) for f in refinements] == [(2, 15, *shape) for shape in SHAPES]
    assert torch.equal(torch.cat([f.flatten(2) for f in refinements], 2), flat)
    keypoints = centres + torch.randn(2, 5, 2, centres.shape[1], dtype=torch.float64) * 40
    moved, wider = refine_keypoints(keypoints, refinements, STRIDES)
    assert (moved - keypoints).abs().max() > 8 and wider.abs().max() > 0.5
    again = refine_keypoints(keypoints, refinements, STRIDES, per_keypoint_sampling=True)
    assert torch.allclose(again[0], moved) and torch.allclose(again[1], wider)

    levels = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(SHAPES)])
    cell = torch.randint(0, centres.shape[1], (2, 30))
    columns = cell[:, None, None].expand(-1, 5, 2, -1)
    one_of = torch.nn.functional.one_hot(levels[cell], len(SHAPES)).transpose(1, 2).double()
    picked, grown = refine_best(keypoints.gather(3, columns), refinements, STRIDES, one_of)
    assert torch.allclose(picked, moved.gather(3, columns)) and torch.allclose(grown, wider.gather(2, columns[:, :, 0]))

    image, where = torch.arange(2).repeat_interleave(30), cell.flatten()
    first = torch.tensor([0, *torch.tensor([h * w for h, w in SHAPES]).cumsum(0)[:-1]])
    table = torch.cat((first[:, None], torch.tensor(SHAPES)), 1)[levels[where]]
    pairs, more = refine_picked(keypoints[image, :, :, where], flat, image, table, strides.T[where])
    assert torch.allclose(pairs, moved[image, :, :, where]) and torch.allclose(more, wider[image, :, where])


def test_refinement_lands_on_the_keypoint_the_maps_know() -> None:
    """Maps that hold the offset from each cell centre to one place bring a keypoint there from wherever it was."""
    shape, stride, place = (6, 9), 16.0, torch.tensor([50.0, 61.0])
    centres, _ = make_cells([shape], [stride], place)
    refinement = torch.zeros(1, 3, *shape)
    refinement[0, :2] = ((place[:, None] - centres) / (stride * OFFSET_CELLS)).view(2, *shape)
    start = torch.tensor([[[[20.0, 100.0, 51.5], [30.0, 80.0, 60.0]]]])  # (1, 1, 2, 3)
    moved, _ = refine_best(start, [refinement], [stride], torch.ones(1, 1, 3))
    assert torch.allclose(moved[0, 0], place[:, None].expand(2, 3), atol=1e-4)


def test_levels_that_do_not_halve_are_refused() -> None:
    """They would overlap on the sheet, and keypoints would be moved by another level's maps."""
    for shapes in ([(8, 8), (5, 4), (4, 2)], [(8, 8), (4, 4), (2, 5)]):
        refinements = [torch.zeros(1, 3, *shape) for shape in shapes]
        with pytest.raises(ValueError, match="half as high and wide"):
            refine_best(torch.zeros(1, 1, 2, 3), refinements, [8.0, 16.0, 32.0], torch.ones(1, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_look_up_in_half_precision(dtype: torch.dtype) -> None:
    """half=True keeps its type, and places in a large map apart."""
    refinement = torch.arange(200.0).expand(1, 1, 3, 200).to(dtype)
    points = torch.tensor([[[[100.5, 101.5, 127.0]], [[1.5, 1.5, 1.5]]]]).squeeze(2)[:, None].to(dtype)
    found = sample_maps(refinement, points)
    assert found.dtype == dtype and torch.allclose(found.float().flatten(), points[0, 0, 0].float() - 0.5, atol=0.1, rtol=0)


def test_pairs_of_no_number_stay_finite() -> None:
    """One exploded step must not read outside the maps: a pose at infinity reads the border, one of no number the corner."""
    wild = torch.tensor([[[float("inf"), -float("inf")], [float("nan"), 1e30]]])
    moved, wider = refine_picked(wild, torch.ones(1, 6, 12), torch.tensor([0]), torch.tensor([[0, 3, 4]]), torch.tensor([[8.0]]))
    assert wider.tolist() == [[1.0, 1.0]] and moved[0, 1, 1].isfinite()


def box_of(keypoints: list[list[float]], weight: list[float], margins: torch.Tensor) -> list[float]:
    """Derived box of one person given as K x (x, y)."""
    xy = torch.tensor(keypoints)[None, :, :, None]
    return derive_boxes(xy, torch.tensor(weight)[None, :, None], margins)[0, :, 0].tolist()


def test_boxes_by_hand() -> None:
    """Extent of the visible keypoints plus a margin per side; a hidden keypoint far away must not blow the box up."""
    none = torch.zeros(4, 3 + 3)
    three = [[10.0, 20.0], [40.0, 60.0], [500.0, -300.0]]
    assert box_of(three, [1.0, 0.5, 0.49], none) == [10, 20, 40, 60]
    assert box_of(three, [1.0, 1.0, 1.0], none) == [10, -300, 500, 60]
    margins = none.clone()  # extent 30 x 40, so the unit (diagonal) is 50
    margins[0, 0] = 0.1  # left: constant
    margins[1, 1] = 0.5  # top: half the width
    margins[2, 2] = 0.25  # right: a quarter of the height
    margins[3, 4] = 0.2  # bottom: where keypoint 1 is visible
    assert box_of(three, [1.0, 1.0, 0.0], margins) == pytest.approx([10 - 5, 20 - 15, 40 + 10, 60 + 10])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_extent_at_any_coordinate(dtype: torch.dtype) -> None:
    """A hidden keypoint pushes nothing in a large image either: float16 holds pixels up to 65,504, float32 any."""
    torch.manual_seed(0)
    for scale in (1e2, 1e4, 3e4, 6e4, *(() if dtype is torch.float16 else (1e6, 1e9))):
        keypoints = (torch.rand(3, 9, 2, 50, dtype=torch.float64) * scale).to(dtype)
        seen = torch.rand(3, 9, 50) > 0.6
        seen[:, :, 0] = False
        seen[:, 4, 1:] = True
        boxes = derive_boxes(keypoints, seen.to(dtype), torch.zeros(4, 3 + 9))
        counts = (seen | ~seen.any(1, keepdim=True))[:, :, None]
        assert torch.equal(boxes[:, :2], keypoints.where(counts, torch.tensor(torch.inf, dtype=dtype)).amin(1))
        assert torch.equal(boxes[:, 2:], keypoints.where(counts, torch.tensor(-torch.inf, dtype=dtype)).amax(1))


def test_margins_of_large_persons_in_half_precision() -> None:
    """The diagonal, the margins' unit, does not overflow float16: 20,000 px of height give 2,000 px where a tenth is asked."""
    margins = torch.zeros(4, 3 + 2)
    margins[:, 0] = 0.1
    keypoints = torch.tensor([[10.0, 20.0], [40.0, 20020.0]], dtype=torch.float16)[None, :, :, None]
    x1, y1, x2, y2 = derive_boxes(keypoints, torch.ones(1, 2, 1, dtype=torch.float16), margins)[0, :, 0].tolist()
    assert (x1, x2) == (pytest.approx(10 - 2000, rel=0.01), pytest.approx(40 + 2000, rel=0.01))
    assert (y1, y2) == (pytest.approx(20 - 2000, rel=0.01), pytest.approx(20020 + 2000, rel=0.01))


def test_boxes_where_no_keypoint_is_visible_take_all() -> None:
    """A person all of whose keypoints are doubted still gets a box around them, not one at infinity."""
    assert box_of([[10.0, 20.0], [40.0, 60.0]], [0.1, 0.4], torch.zeros(4, 5)) == [10, 20, 40, 60]


def test_box_of_one_keypoint_and_negative_margins() -> None:
    """One keypoint gives a small finite box around it; margins never turn a box inside out."""
    x1, y1, x2, y2 = box_of([[10.0, 20.0], [99.0, 99.0]], [1.0, 0.0], default_margins(2))
    assert x1 <= 10 <= x2 and y1 <= 20 <= y2 and x2 - x1 < 5 and y2 - y1 < 5
    assert box_of([[10.0, 20.0], [40.0, 60.0]], [1.0, 1.0], torch.full((4, 5), -9.0)) == [10, 20, 40, 60]


def test_boxes_are_never_inside_out() -> None:
    """x1 <= x2 and y1 <= y2 for any outputs and any margins: trackers and metrics divide by the box's area."""
    torch.manual_seed(0)
    boxes = derive_boxes(torch.randn(4, 17, 2, 50) * 200, torch.rand(4, 17, 50), torch.randn(4, 20))
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_in_half_precision(dtype: torch.dtype) -> None:
    """half=True inference must not overflow to inf where a keypoint is hidden."""
    keypoints = torch.tensor([[10.0, 20.0], [600.0, 900.0], [300.0, 300.0]], dtype=dtype)[None, :, :, None]
    boxes = derive_boxes(keypoints, torch.tensor([1.0, 1.0, 0.0], dtype=dtype)[None, :, None], default_margins(3))
    assert boxes.dtype == dtype and boxes.isfinite().all()
    assert boxes[0, 0, 0] <= 10 and boxes[0, 2, 0] >= 600


def persons(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """(N, K, 3) random keypoints of which some are hidden."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, k, 2, generator=g) * torch.tensor([80.0, 200.0]) + torch.rand(n, 1, 2, generator=g) * 300
    seen = (torch.rand(n, k, 1, generator=g) > 0.3).float() * 2
    seen[:, :2] = 2
    return torch.cat((xy, seen), 2)


def test_fit_recovers_planted_margins() -> None:
    """Boxes made with known margins give these margins back: the fit and the use of margins are one model."""
    keypoints = persons(4000, 6)
    g = torch.Generator().manual_seed(1)
    planted = torch.rand(4, 3 + 6, generator=g) * 0.1 + 0.01
    boxes = derive_boxes(keypoints[..., :2].permute(1, 2, 0)[None], (keypoints[..., 2].T > 0).float()[None], planted)[0].T
    found = fit_margins(keypoints, boxes, ridge=1e-6)
    # keypoints 0 and 1 are always visible, so their terms and the constant are told apart only by the ridge
    seen_always = [0, 3, 4]
    rest = [i for i in range(9) if i not in seen_always]
    assert torch.allclose(found[:, rest], planted[:, rest], atol=1e-3)
    assert torch.allclose(found[:, seen_always].sum(1), planted[:, seen_always].sum(1), atol=1e-3)
    again = derive_boxes(keypoints[..., :2].permute(1, 2, 0)[None], (keypoints[..., 2].T > 0).float()[None], found)[0].T
    assert (again - boxes).abs().max() < 0.1  # pixels
    shift = torch.tensor([30000.0, 40000.0])  # persons of a scan: the fit knows no place
    moved = torch.where(keypoints[..., 2:] > 0, keypoints + torch.tensor([*shift, 0.0]), keypoints)
    assert torch.allclose(fit_margins(moved, boxes + shift.repeat(2), ridge=1e-6), found, atol=1e-2)
    default = fit_margins(keypoints, boxes)  # with the shipped ridge the boxes stay within a pixel or two
    again = derive_boxes(keypoints[..., :2].permute(1, 2, 0)[None], (keypoints[..., 2].T > 0).float()[None], default)[0].T
    assert (again - boxes).abs().mean() < 1


def test_fit_needs_persons_and_survives_bad_ones() -> None:
    """An empty or tiny data set falls back to the defaults; NaN and zero boxes cannot poison the fit."""
    assert torch.equal(fit_margins(torch.zeros(0, 17, 3), torch.zeros(0, 4)), default_margins(17))
    keypoints = persons(200, 17)
    boxes = torch.cat((keypoints[..., :2].amin(1) - 5, keypoints[..., :2].amax(1) + 5), 1)
    assert torch.equal(fit_margins(keypoints[:9], boxes[:9]), default_margins(17))
    good = fit_margins(keypoints, boxes)
    bad = torch.cat((keypoints, keypoints[:4]))
    bad[200, 0, 0], bad[201, :, 2] = float("nan"), 0
    bad_boxes = torch.cat((boxes, boxes[:4]))
    bad_boxes[202], bad_boxes[203, 0] = 0, float("inf")
    assert torch.allclose(fit_margins(bad, bad_boxes), good, atol=1e-6)


def test_learned_boxes() -> None:
    """The ablation's box branch encloses its cell centre and has distances in cells."""
    centres, strides = torch.tensor([[100.0], [50.0]]), torch.tensor([[8.0]])
    sides = torch.tensor([[[0.0], [-20.0], [3.0], [0.0]]])
    x1, y1, x2, y2 = decode_boxes(sides, centres, strides)[0, :, 0].tolist()
    half = 0.6931472 * 16
    assert (x1, y1, y2) == (pytest.approx(100 - half), pytest.approx(50, abs=1e-3), pytest.approx(50 + half))
    assert x2 == pytest.approx(100 + 3.0485873 * 16)


def test_rows_layout() -> None:
    """Stock code reads x1 y1 x2 y2, scores, then K x (x, y, v); any other order makes nonsense Results."""
    boxes, scores = torch.full((1, 4, 2), 1.0), torch.full((1, 3, 2), 2.0)
    keypoints = torch.arange(8.0).view(1, 2, 2, 2)  # K=2, xy, A=2
    visibility = torch.tensor([[[10.0, 11.0], [12.0, 13.0]]])
    rows = assemble_rows(boxes, scores, keypoints, visibility)
    assert rows[0, :, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 2, 10, 4, 6, 12]
    assert assemble_rows(boxes, scores, keypoints, None)[0, :, 1].tolist() == [1, 1, 1, 1, 2, 2, 2, 1, 3, 5, 7]


def some_rows() -> torch.Tensor:
    """(2, 5, 8) rows with scores out of order; the last column tells the rows apart."""
    rows = torch.zeros(2, 5, 8)
    rows[0, :, 4] = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.25])
    rows[0, :, 5] = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0])
    rows[..., 7] = torch.arange(5.0)
    return rows


def test_select_sorts_and_thresholds() -> None:
    """Best first, strictly above the threshold, at most max_det; an image with nothing gives an empty tensor."""
    first, second = select_rows(some_rows(), conf=0.25, max_det=10)
    assert first[:, 7].tolist() == [1, 3, 0] and second.shape == (0, 8)
    assert select_rows(some_rows(), conf=0.0, max_det=2)[0][:, 7].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("classes", "wanted"), [([0], [0, 4]), (0, [0, 4]), (2, [3]), ([1, 2], [1, 3, 2]), ((1, 2), [1, 3, 2]), ([7], []), ([], [])]
)
def test_select_filters_classes(classes: int | list[int], wanted: list[int]) -> None:
    """predict(classes=...) keeps these classes and no others; stock predictors take one index or several."""
    assert select_rows(some_rows(), 0.05, 10, classes)[0][:, 7].tolist() == wanted


def test_select_from_no_rows() -> None:
    """A batch without rows, or without images, is no error."""
    assert [len(x) for x in select_rows(torch.zeros(3, 0, 57), 0.1, 300)] == [0, 0, 0]
    assert select_rows(torch.zeros(0, 300, 57), 0.1, 300) == []
