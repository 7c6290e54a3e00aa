"""The model: every size and backbone, fuse, save, load, transfer, and that everything learns."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import DEFAULT_CFG_DICT

from erpose_yolo import ERPose, ERPoseHead, ERPoseModel
from erpose_yolo.nn.network import Criterion, load_model_yaml, to_targets
from erpose_yolo.upstream import compat


def make_model(name: str = "erpose-n.yaml", seed: int = 0, block: dict[str, Any] | None = None, **kw: Any) -> ERPoseModel:
    """A model in evaluation mode whose batch norms have seen an image, with the arguments that a trainer sets."""
    torch.manual_seed(seed)
    cfg = load_model_yaml(name)
    cfg["erpose"] = block or {}
    model = ERPoseModel(cfg, verbose=False, **kw)
    model.args = {**DEFAULT_CFG_DICT, "model": name, "epochs": 10}
    return model.eval()


def images(size: int = 64, b: int = 2) -> Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(1))


def rows_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)[0]


def dense_rows_of(model: ERPoseModel, x: Tensor) -> Tensor:
    """A row per cell, so that two nearly equal scores of an untrained model cannot swap places."""
    model.model[-1].layout = "cells"
    return rows_of(model, x)


def batch_of(boxes: list[tuple[int, float, float, float, float]], size: int = 128, k: int = 17) -> dict[str, Any]:
    """Collated Ultralytics batch: persons as (image, x1, y1, x2, y2) in pixels, all keypoints visible inside the box."""
    g = torch.Generator().manual_seed(0)
    table = torch.tensor(boxes).view(-1, 5)
    low, side = table[:, None, 1:3], (table[:, 3:] - table[:, 1:3])[:, None]
    xy = (low + side * torch.rand(len(table), k, 2, generator=g)) / size
    seen = torch.full((len(table), k, 1), 2.0)
    return {
        "img": images(size),
        "batch_idx": table[:, 0],
        "cls": torch.zeros(len(table), 1),
        "bboxes": torch.cat(((low + side / 2)[:, 0], side[:, 0]), 1) / size,
        "keypoints": torch.cat((xy, seen), 2),
    }


# of all sizes, so that every level has to learn somebody
CROWD = [(0, 4, 4, 20, 30), (0, 30, 10, 90, 110), (1, -100, -100, 230, 230), (1, 60, 60, 72, 80), (1, 10, 20, 110, 120)]


@pytest.mark.parametrize(
    "name",
    [f"erpose-{s}.yaml" for s in "nsmlx"] + [f"erpose{v}.yaml" for v in ("11-n", "8-n", "-n-p2", "-n-p6")],
)
def test_every_model_builds_and_runs(name: str) -> None:
    """Each shipped name must give rows; the larger ones more parameters."""
    model = make_model(name)
    rows = rows_of(model, images(128, 1))
    levels = {"-p2": [4, 8, 16, 32], "-p6": [8, 16, 32, 64]}.get(name[8:11], [8, 16, 32])
    assert model.stride.tolist() == levels
    assert rows.shape == (1, min(300, sum((128 // s) ** 2 for s in levels)), 57) and rows.isfinite().all()
    assert type(model.model[-1]) is ERPoseHead
    wanted = {"n": (2e6, 4.5e6), "s": (7e6, 14e6), "m": (18e6, 28e6), "l": (22e6, 32e6), "x": (45e6, 70e6)}
    low, high = wanted[name.split(".")[0].split("-")[1]]
    assert low < sum(p.numel() for p in model.fuse(verbose=False).parameters()) < high  # of what is deployed


def test_deployed_nano_is_within_budget() -> None:
    """The promise of the project's README: at most 2.72 M parameters when fused, one class, 17 keypoints."""
    model = make_model().fuse(verbose=False)
    assert sum(p.numel() for p in model.parameters()) <= 2.72e6


@pytest.mark.parametrize("name", ["erpose-n.yaml", "erpose11-n.yaml", "erpose8-n.yaml"])
def test_fuse_keeps_rows_and_drops_training(name: str) -> None:
    """The deployed model must say what the trained one said, without the parts that only training used."""
    model, x = make_model(name), images(96)
    model.train()(x)  # batch norms leave their start
    model.eval()
    before = dense_rows_of(model, x)
    fused = copy.deepcopy(model).fuse(verbose=False)
    after = dense_rows_of(fused, x)
    assert torch.allclose(after, before, atol=1e-3, rtol=1e-4)  # pixels
    assert (after[..., 4] - before[..., 4]).abs().max() < 1e-5
    names = " ".join(n for n, _ in [*fused.named_parameters(), *fused.named_modules(), *fused.named_buffers()])
    assert not any(part in names for part in ("heatmap", "one2many", "bn."))
    assert "margins" in names and fused.is_fused()


def test_save_load_deepcopy_pickle(tmp_path: Path) -> None:
    """A checkpoint, a copy (EMA) and a pickle (multi-GPU) give bit-identical rows."""
    model, x = make_model(), images()
    model.model[-1].margins.uniform_()
    before = rows_of(model, x)
    assert torch.equal(rows_of(copy.deepcopy(model), x), before)
    assert torch.equal(rows_of(pickle.loads(pickle.dumps(model)), x), before)
    file = tmp_path / "mine.pt"
    torch.save({"model": model, "train_args": {}}, file)
    loaded = ERPose(file)
    assert type(loaded.model) is ERPoseModel and torch.equal(rows_of(loaded.model.eval(), x), before)
    assert loaded.model.settings == model.settings


def test_plain_yolo_becomes_erpose(tmp_path: Path) -> None:
    """``YOLO('best.pt')`` is what every tool of the ecosystem calls; it must get our predictor, without NMS."""
    from ultralytics import YOLO

    compat.install()
    file = tmp_path / "best.pt"
    torch.save({"model": make_model(), "train_args": {}}, file)
    assert type(YOLO(file)) is ERPose and type(YOLO("erpose-n.yaml")) is ERPose


def test_stock_checkpoint_is_refused(tmp_path: Path) -> None:
    """ERPose of a stock model would decode rubbish; the error says what to do instead."""
    file = tmp_path / "stock.pt"
    torch.save({"model": PoseModel("yolo11n-pose.yaml", verbose=False), "train_args": {}}, file)
    with pytest.raises(TypeError, match=r"stock.pt is a PoseModel.*ultralytics.YOLO.*\.load\("):
        ERPose(file)


def test_other_task_is_refused() -> None:
    """There is one task; ``yolo detect train model=erpose-n.yaml`` must not train something else."""
    with pytest.raises(ValueError, match="'pose', not 'detect'"):
        ERPose("erpose-n.yaml", task="detect")


def test_unknown_scale_names_the_five() -> None:
    """erpose-q.yaml: the error lists n, s, m, l, x."""
    with pytest.raises(ValueError, match="no scale 'q'.*n, s, m, l, x"):
        ERPose("erpose-q.yaml")


def test_stock_backbone_is_transferred(log: list[str]) -> None:
    """pretrained=<stock checkpoint> takes every backbone tensor, no head tensor, and says how many."""
    torch.manual_seed(3)
    stock, model = PoseModel("yolo26n-pose.yaml", verbose=False), make_model()
    head = {k: v.clone() for k, v in model.model[-1].state_dict().items()}
    model.load(stock)
    theirs, ours = stock.state_dict(), model.state_dict()
    backbone = [k for k in ours if not k.startswith("model.23.")]
    assert len(backbone) > 300 and all(torch.equal(ours[k], theirs[k]) for k in backbone)
    assert all(torch.equal(v, head[k]) for k, v in model.model[-1].state_dict().items())
    total = len(ours)
    assert any(
        f"{len(backbone)}/{total} tensors" in m
        and f"backbone and neck {len(backbone)}/{len(backbone)}, head 0/{total - len(backbone)}" in m
        for m in log
    )


def test_detection_backbone_is_transferred_through_the_class() -> None:
    """ERPose('erpose-n.yaml').load(model) is the Python way; a checkpoint dictionary with an EMA is read, too."""
    torch.manual_seed(3)
    stock, model = PoseModel("yolo26n-pose.yaml", verbose=False), make_model()
    model.load({"model": None, "ema": stock}, verbose=False)
    assert torch.equal(model.model[0].conv.weight, stock.model[0].conv.weight)


def test_own_weights_are_transferred_whole() -> None:
    """Fine-tuning from a checkpoint of ours keeps the head."""
    first, second = make_model(seed=1), make_model(seed=2)
    second.load(first, verbose=False)
    assert torch.equal(rows_of(first, images()), rows_of(second, images()))
    other = make_model(seed=3, data_kpt_shape=(5, 3))  # other keypoints: towers are kept, keypoints are new
    other.load(first, verbose=False)
    theirs, ours = first.state_dict(), other.state_dict()
    same = [k for k in ours if ours[k].shape == theirs[k].shape]
    assert all(torch.equal(ours[k], theirs[k]) for k in same)
    assert {k.split(".")[3] for k in ours if k not in same and "pose" in k} == {"keypoints", "spread", "refinement", "heatmap"}


def test_foreign_weights_warn(log: list[str]) -> None:
    """Weights of another family take nothing over; silence would look like a transfer."""
    make_model("erpose8-n.yaml").load(nn.Sequential(nn.Linear(2, 2)))
    assert any("None of the pretrained tensors" in m for m in log)


def test_every_parameter_of_the_default_learns() -> None:
    """A parameter without a gradient is dead weight, or a branch that a refactoring cut off."""
    model = make_model().train()
    total, items = model.loss(batch_of(CROWD))
    total.sum().backward()
    assert total.isfinite().all() and set(items) == {"pose_loss", "kobj_loss", "cls_loss", "o2o_loss", "heat_loss"}
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(learning) > 300 and [n for n, p in learning.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


SWAPS: list[dict[str, Any]] = [
    {"tower": "plain"},
    {"refine": False},
    {"boxes": True},
    {"heatmap_gain": 0.0},
    {"tower": "plain", "refine": False, "boxes": True, "heatmap_gain": 0.0},
]


@pytest.mark.parametrize("block", SWAPS, ids=str)
def test_every_swap_trains_the_whole_model(block: dict[str, Any]) -> None:
    """Each setting runs, gives every parameter a gradient (distributed training needs it), validates and fuses."""
    model = make_model(block=block).train()
    total, items = model.loss(batch_of(CROWD[:2], 64))
    total.sum().backward()
    assert total.isfinite().all() and ("box_loss" in items) == block.get("boxes", False)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        out = model(images())
        value, _ = model.loss(batch_of(CROWD[:2], 64), out)  # validation loss
    assert value.isfinite().all()
    before = dense_rows_of(model, images())
    assert torch.allclose(dense_rows_of(model.fuse(verbose=False), images()), before, atol=1e-3, rtol=1e-4)


def test_no_one_is_there_and_nothing_is_labelled() -> None:
    """Batches of empty images and of people without keypoints give every parameter a gradient and no NaN."""
    unlabelled = batch_of(CROWD[:2])
    unlabelled["keypoints"][..., 2] = 0
    for batch in (batch_of([]), unlabelled):
        model = make_model().train()
        model.loss(batch)[0].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_targets_of_a_batch() -> None:
    """Normalised labels become pixels; people without a labelled keypoint become ignore regions."""
    batch = batch_of([(0, 8, 16, 40, 80), (1, 0, 0, 64, 32), (1, 10, 10, 20, 20)])
    batch["keypoints"][1, :, 2] = 0
    batch["img"] = torch.zeros(2, 3, 64, 128)  # pixels come from the image at hand: width 128, height 64
    got = to_targets(batch, torch.device("cpu"))
    assert got.image.tolist() == [0, 1] and got.ignore_image.tolist() == [1]
    assert torch.allclose(got.box[0], torch.tensor([8.0, 8.0, 40.0, 40.0]))
    assert torch.allclose(got.ignore_box[0], torch.tensor([0.0, 0.0, 64.0, 16.0]))
    assert torch.allclose(got.keypoints[0, :, :2], batch["keypoints"][0, :, :2] * torch.tensor([128.0, 64.0]))
    assert got.area[0].item() == pytest.approx(0.53 * 32 * 32)
    assert batch["keypoints"].max() <= 2  # the batch itself is left alone


def test_autocast() -> None:
    """amp=True on a CPU (bfloat16): finite loss and gradients through the whole model."""
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = model.loss(batch_of(CROWD))
    total.sum().backward()
    assert total.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


def test_criterion_takes_sigmas_and_schedule_from_the_model() -> None:
    """Custom sigmas of the data YAML reach the loss; progress runs from 0 in the first epoch to 1 in the last."""
    model = make_model(data_kpt_shape=(5, 3))
    assert Criterion(model).loss.sigmas.tolist() == pytest.approx([0.07] * 5)
    model.kpt_oks_sigmas = [0.1, 0.2, 0.3, 0.4, 0.5]
    judge = Criterion(model)
    assert judge.loss.sigmas.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    seen = []
    for _ in range(10):
        seen.append(judge.progress)
        judge.update()
    assert seen[0] == 0 and seen[-1] == 1 and seen == sorted(seen) and judge.progress == 1
    model.args["epochs"] = 1
    assert Criterion(model).progress == 0  # one epoch: no division by zero


@pytest.mark.parametrize(("shape", "columns"), [((5, 3), 21), ((21, 2), 48)])
def test_other_keypoints(shape: tuple[int, int], columns: int) -> None:
    """Faces, hands, animals: any K, with or without visibility, trains and predicts."""
    model = make_model(data_kpt_shape=shape).train()
    total, _ = model.loss(batch_of(CROWD[:2], 64, k=shape[0]))
    total.sum().backward()
    rows = rows_of(model.eval(), images())
    assert rows.shape[-1] == columns and model.kpt_shape == list(shape) and total.isfinite().all()


def test_several_classes() -> None:
    """nc > 1: each person's score is learnt in its own class."""
    model = make_model(nc=3).train()
    batch = batch_of(CROWD[:2], 64)
    batch["cls"][1] = 2
    total, _ = model.loss(batch)
    assert total.isfinite().all() and rows_of(model.eval(), images()).shape[-1] == 57
    with torch.no_grad():
        assert model(images())[1].one2one_scores.shape[1] == 3


def test_end2end_stays_on() -> None:
    """Stock validator and exporter switch end2end off on the model; rows and flag must not change."""
    model, x = make_model(), images()
    before = rows_of(model, x)
    for target in (model, model.model[-1]):
        target.end2end = False
    if hasattr(model, "set_head_attr"):
        model.set_head_attr(end2end=False)
    assert model.end2end is True and torch.equal(rows_of(model, x), before)


def test_default_head_in_the_model_has_no_box_convolution() -> None:
    """Part 1 of the method, asked of the model that users train: neither DFL nor a 4- or 64-channel output."""
    head = make_model().model[-1]
    outputs = {m.out_channels for m in head.modules() if type(m) is nn.Conv2d and m.bias is not None}
    assert outputs == {51, 17, 1} and not any("dfl" in n or "box" in n for n, _ in head.named_modules())


def test_yaml_with_rows_of_its_own(tmp_path: Path) -> None:
    """Users with a backbone of their own write all rows, the last one ours; it gives the model that ``base:`` gives."""
    import yaml

    cfg = load_model_yaml("erpose-n.yaml")
    file = tmp_path / "erpose-mine.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in cfg.items() if k not in ("scale", "yaml_file")}, sort_keys=False))
    mine, default = ERPose(file).model, make_model()
    assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in default.state_dict().items()}
