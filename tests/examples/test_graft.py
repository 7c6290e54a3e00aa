"""The method on backbones that are not YOLO's: without ultralytics, with gradients everywhere, and it learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erpose_yolo.method.losses import Targets, heatmap_targets
from erpose_yolo.method.oks import sigmas_for

pytest.importorskip("torchvision")

GRAFT = Path(__file__).resolve().parents[2] / "examples" / "graft"
EXAMPLES = ("ssdlite", "retinanet", "efficientdet")
SIZE = 96

# Put before everything: an import of ultralytics, of any part and from anywhere, raises.
BAN = """
import sys

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ultralytics":
            raise ImportError(f"{name} is banned here")

sys.meta_path.insert(0, Ban())
"""
TRAIN = """
sys.path[:0] = [{repo!r}, {graft!r}]
import torch
import common, {example}

torch.manual_seed(0)
backbone = {example}.{backbone}()
samples = common.draw("train", 4)
for style in common.STYLES:
    model, curve = common.train(backbone, style, samples, samples[:2], images_seen=8, batch=4, points=1, log=lambda text: None)
    assert curve[-1]["images_seen"] == 8 and 0 <= curve[-1]["AP50"] <= 1, curve
    maps = model.eval().backbone(torch.zeros(1, 3, common.SIZE, common.SIZE))
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [common.SIZE // m.shape[2] for m in maps] == list(backbone.strides)
print("trained")
"""


def without_ultralytics(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", BAN + code], capture_output=True, text=True)


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """examples/graft/common.py."""
    monkeypatch.syspath_prepend(str(GRAFT))
    monkeypatch.delitem(sys.modules, "common", raising=False)  # the benchmarks have one, too
    import common as module  # type: ignore[import-not-found]

    yield module
    sys.modules.pop("common", None)


class Strided(nn.Module):
    """The least of a backbone: plain convolutions to strides 8 and 16."""

    channels, strides = (32, 48), (8, 16)

    def __init__(self, block: type) -> None:
        super().__init__()

        def halve(c1: int, c2: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c1, c2, 3, 2, 1, bias=False), nn.BatchNorm2d(c2), block())

        self.fine = nn.Sequential(halve(3, 16), halve(16, 24), halve(24, 32))
        self.coarse = halve(32, 48)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def test_the_ban_bans(repo: Path) -> None:
    pytest.importorskip("ultralytics")
    done = without_ultralytics(f"sys.path.insert(0, {str(repo)!r})\nimport erpose_yolo.nn.head")
    assert done.returncode and "is banned here" in done.stderr


def test_the_method_imports_without_ultralytics(repo: Path) -> None:
    modules = ("assigner", "boxes", "decode", "losses", "oks", "refine", "settings")
    modules = (*(f"method.{module}" for module in modules), "metrics.coco", "data.skeletons", "data.synth")
    code = f"sys.path.insert(0, {str(repo)!r})\n" + "".join(f"import erpose_yolo.{m}\n" for m in modules)
    done = without_ultralytics(code + "print(sorted(m for m in sys.modules if m.startswith('ultralytics')))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("example", "backbone"), [("ssdlite", "SSDLite"), ("retinanet", "ResNetFPN"), ("efficientdet", "D0")])
def test_examples_train_without_ultralytics(example: str, backbone: str, repo: Path) -> None:
    if example == "efficientdet":
        pytest.importorskip("timm")
        pytest.importorskip("effdet")
    done = without_ultralytics(TRAIN.format(repo=str(repo), graft=str(GRAFT), example=example, backbone=backbone))
    assert done.stdout.splitlines()[-1:] == ["trained"], done.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_short(example: str) -> None:
    assert len((GRAFT / f"{example}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("style", ["erpose", "stock"])
def test_every_parameter_learns(style: str, common: ModuleType) -> None:
    torch.manual_seed(0)
    model = common.Graft(Strided(nn.SiLU), style)
    images, targets = common.collate(common.draw("train", 4))
    outputs = model(images)
    cells = sum(h * w for h, w in outputs.shapes)
    assert cells == (SIZE // 8) ** 2 + (SIZE // 16) ** 2
    assert outputs.one2many.offsets.shape == (4, 17, 2, cells)
    assert (outputs.one2many.box is not None) == (style == "stock") != (outputs.one2one_scores is not None)
    loss = model.loss(images, targets, 0.5)
    loss.backward()
    assert loss.isfinite()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    spread = {f"head.outs.spread.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")}
    assert silent == (spread if style == "stock" else set())  # 1 - exp(-e) has no spread; all else is trained


def test_only_the_stock_style_needs_nms(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    images = common.collate(common.draw("val", 2))[0]
    torch.manual_seed(0)
    stock = common.Graft(Strided(nn.SiLU), "stock").eval()
    for rows in stock.predict(images):
        assert 0 < len(rows) <= common.MAX_PERSONS and bool((rows[1:, 4] <= rows[:-1, 4]).all())
        assert len(common.nms(rows[:, :4], rows[:, 4], common.NMS_IOU)) == len(rows)

    def no_nms(*args: object) -> None:
        raise AssertionError("NMS")

    monkeypatch.setattr(common, "nms", no_nms)
    for rows in common.Graft(Strided(nn.SiLU), "erpose").eval().predict(images):
        assert rows.shape == (common.MAX_PERSONS, 6 + 3 * 17) and bool((rows[1:, 4] <= rows[:-1, 4]).all())
    with pytest.raises(AssertionError, match="NMS"):
        stock.predict(images)


def test_the_judge_can_tell_good_from_bad(common: ModuleType) -> None:
    samples = common.draw("val", 6)

    class Oracle(nn.Module):
        shift = 0.0

        def predict(self, images: Tensor) -> list[Tensor]:
            rows = []
            for _, boxes, keypoints in samples:
                keypoints = torch.tensor(keypoints, dtype=torch.float32)
                keypoints[..., 0] += self.shift
                head = torch.cat((torch.tensor(boxes), torch.ones(len(boxes), 1), torch.zeros(len(boxes), 1)), 1)
                rows.append(torch.cat((head, keypoints.flatten(1)), 1))
            return rows

    oracle = Oracle()
    assert common.evaluate(oracle, samples)["AP"] == pytest.approx(1)
    oracle.shift = SIZE
    assert common.evaluate(oracle, samples)["AP50"] == 0


def test_a_mirrored_image_swaps_left_and_right(common: ModuleType) -> None:
    image, boxes, keypoints = sample = common.draw("train", 1)[0]
    mirrored = common.flipped(sample)
    np.testing.assert_array_equal(mirrored[0], image[:, :, ::-1])
    np.testing.assert_allclose(mirrored[2][:, 5], keypoints[:, 6] * (-1, 1, 1) + (SIZE, 0, 0))
    assert (mirrored[1][:, 2] > mirrored[1][:, 0]).all()
    for there, back in zip(sample, common.flipped(mirrored)):
        np.testing.assert_allclose(back, there, atol=1e-4)


def test_drawn_images_hold_large_persons_and_are_kept(common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "TRAIN_IMAGES", 3)
    monkeypatch.setattr(common, "VAL_IMAGES", 2)
    file = tmp_path / "set.pkl"
    train, val = common.images(file)
    assert (len(train), len(val)) == (3, 2)
    assert not np.array_equal(train[0][0], val[0][0])
    assert all((b[:, 2:] - b[:, :2]).prod(1).min() >= (SIZE / 4) ** 2 and 1 <= len(b) <= 2 for _, b, _ in train + val)
    monkeypatch.setattr(common, "draw", None)
    np.testing.assert_array_equal(common.images(file)[1][1][0], val[1][0])


def test_heatmaps_of_a_channels_last_backbone() -> None:
    targets = Targets(
        image=torch.tensor([1]),
        keypoints=torch.tensor([[[20.0, 20.0, 2.0], [40.0, 44.0, 1.0]]]),
        box=torch.tensor([[10.0, 10.0, 50.0, 50.0]]),
        area=torch.tensor([800.0]),
        category=torch.tensor([0]),
        ignore_image=torch.zeros(0, dtype=torch.long),
        ignore_box=torch.zeros(0, 4),
    )
    logits = torch.zeros(2, 2, 8, 8)
    rows = [
        heatmap_targets(targets, sigmas_for(2), (8, 8), 8.0, logits.to(memory_format=layout).flatten(2))
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert rows[0].max() == 1
    assert torch.equal(*rows)


@pytest.mark.slow
def test_a_grafted_backbone_learns(common: ModuleType) -> None:
    torch.manual_seed(0)
    samples = common.draw("train", 4)
    mirrored = [common.flipped(s) for s in samples]  # training sees both
    _, curve = common.train(
        Strided(nn.SiLU), "erpose", samples, samples + mirrored, images_seen=1200, points=2, log=lambda text: None
    )
    assert curve[-1]["AP50"] > 0.8, curve
