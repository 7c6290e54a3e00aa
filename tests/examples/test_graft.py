"""The method on backbones that are not YOLO's: without ultralytics, with gradients everywhere, and it learns."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erpose_yolo.data.labels import parse_labels
from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.data.synth import SynthConfig, generate
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
samples = common.read(common.Path({people!r}), "train", 4)
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


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set as examples/graft/README.md has it."""
    folder = tmp_path_factory.mktemp("graft") / "people"
    people = SynthConfig(images=16, val_images=20, size=SIZE, people=(1, 2), empty=0, plain=True, activities=("stand", "walk"))
    return generate(folder, people, workers=1)


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
    modules = ("assigner", "boxes", "decode", "losses", "oks", "refine", "rows", "settings")
    code = f"sys.path.insert(0, {str(repo)!r})\n" + "".join(f"import erpose_yolo.method.{m}\n" for m in modules)
    done = without_ultralytics(code + "print(sorted(m for m in sys.modules if m.startswith('ultralytics')))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("example", "backbone"), [("ssdlite", "SSDLite"), ("retinanet", "ResNetFPN"), ("efficientdet", "D0")])
def test_examples_train_without_ultralytics(example: str, backbone: str, repo: Path, people: Path) -> None:
    if example == "efficientdet":
        pytest.importorskip("timm")
        pytest.importorskip("effdet")
    code = TRAIN.format(repo=str(repo), graft=str(GRAFT), example=example, backbone=backbone, people=str(people))
    done = without_ultralytics(code)
    assert done.stdout.splitlines()[-1:] == ["trained"], done.stderr


@pytest.mark.parametrize("module", ["common", *EXAMPLES])
def test_of_the_package_they_import_the_method_alone(module: str) -> None:
    names = []
    for node in ast.walk(ast.parse((GRAFT / f"{module}.py").read_text())):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
    of_package = [name for name in names if name.partition(".")[0] == "erpose_yolo"]
    assert all(name.startswith("erpose_yolo.method.") for name in of_package) and bool(of_package) == (module == "common")


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_short(example: str) -> None:
    assert len((GRAFT / f"{example}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("style", ["erpose", "stock"])
def test_every_parameter_learns(style: str, common: ModuleType, people: Path) -> None:
    torch.manual_seed(0)
    model = common.Graft(Strided(nn.SiLU), style)
    images, targets = common.collate(common.read(people, "train", 4))
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


def test_only_the_stock_style_needs_nms(common: ModuleType, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = common.collate(common.read(people, "val", 2))[0]
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


def test_the_judge_can_tell_good_from_bad(common: ModuleType, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = common.read(people, "val", 6)

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
    monkeypatch.setattr(Oracle, "predict", lambda _, images: [torch.zeros(0, 6 + 3 * 17)] * len(images))
    assert common.evaluate(oracle, samples) == {"AP": 0, "AP50": 0}


def test_a_mirrored_image_swaps_left_and_right(common: ModuleType, people: Path) -> None:
    assert list(common.FLIP) == COCO_17.flip
    image, boxes, keypoints = sample = common.read(people, "train", 1)[0]
    mirrored = common.flipped(sample)
    np.testing.assert_array_equal(mirrored[0], image[:, :, ::-1])
    np.testing.assert_allclose(mirrored[2][:, 5], keypoints[:, 6] * (-1, 1, 1) + (SIZE, 0, 0))
    assert (mirrored[1][:, 2] > mirrored[1][:, 0]).all()
    for there, back in zip(sample, common.flipped(mirrored)):
        np.testing.assert_allclose(back, there, atol=1e-4)


def test_the_reader_takes_images_of_large_people(common: ModuleType, people: Path, tmp_path: Path) -> None:
    """The same persons as the package's reader gives, where all of an image are large."""
    large = {}
    for n, file in enumerate(sorted((people / "labels/train").glob("*.txt"))):
        _, boxes, keypoints = parse_labels(file, (17, 3), 1, (SIZE, SIZE))
        if len(boxes) and boxes[:, 2:].prod(1).min() >= 1 / 16:
            large[n] = boxes * SIZE, keypoints * (SIZE, SIZE, 1)
    found = common.read(people, "train", len(large))
    assert 4 <= len(found) == len(large) < 16 and {len(boxes) for _, boxes, _ in found} == {1, 2}
    for (image, corners, poses), (boxes, keypoints) in zip(found, large.values()):
        assert image.shape == (3, SIZE, SIZE) and image.dtype == np.uint8
        np.testing.assert_allclose((corners[:, :2] + corners[:, 2:]) / 2, boxes[:, :2], atol=1e-4)
        np.testing.assert_allclose(corners[:, 2:] - corners[:, :2], boxes[:, 2:], atol=1e-4)
        np.testing.assert_allclose(poses, keypoints, atol=1e-4)
    with pytest.raises(ValueError, match="17 are needed. Fix: a larger set"):
        common.read(people, "train", 17)
    wide = generate(tmp_path / "wide", SynthConfig(images=4, val_images=0, size=SIZE, aspect=2.0, plain=True, empty=0), workers=1)
    with pytest.raises(ValueError, match=r"0000\d\d.jpg is 96 x 48 px. Fix: images of 96 px"):
        common.read(wide, "train", 1)


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
def test_a_grafted_backbone_learns(common: ModuleType, people: Path) -> None:
    torch.manual_seed(0)
    samples = common.read(people, "train", 4)
    mirrored = [common.flipped(s) for s in samples]  # training sees both
    _, curve = common.train(
        Strided(nn.SiLU), "erpose", samples, samples + mirrored, images_seen=1200, points=2, log=lambda text: None
    )
    assert curve[-1]["AP50"] > 0.8, curve
