"""Conversion of YOLO26-pose checkpoints: the same scores and keypoints to the last bit, and a model like any other afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import DEFAULT_CFG_DICT

from erpose_yolo import ERPose, ERPoseModel
from erpose_yolo.nn import yolo26
from erpose_yolo.nn.yolo26 import from_yolo26_pose
from erpose_yolo.upstream import compat

NAMES = {0: "person"}


def stock(name: str = "yolo26n-pose.yaml", nc: int = 1, kpt_shape: tuple[int, int] = (17, 3)) -> PoseModel:
    """A stock network with random weights, statistics and biases, whose two heads differ as those of a trained one do."""
    torch.manual_seed(3)
    model = PoseModel(name, nc=nc, data_kpt_shape=kpt_shape, verbose=False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.7, 1.4)
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad():
        for name, parameter in model.model[-1].named_parameters():
            if "one2one" in name:
                parameter += torch.randn_like(parameter) * 0.5 * parameter.abs().mean()
            if name.endswith(".2.weight") and "cv3" in name:
                parameter *= 20  # scores that differ, though an untrained neck sees much the same everywhere
    model.names = {i: f"class {i}" for i in range(nc)} if nc > 1 else NAMES
    model.task = "pose"
    model.args = {**DEFAULT_CFG_DICT, "task": "pose", "imgsz": 64}
    model.model[-1].end2end = True
    return model.eval()


def images(height: int = 96, width: int = 160) -> Tensor:
    coarse = torch.randn(2, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse * 9, (height, width), mode="bilinear")  # contrast reaches the coarsest level


def rows_of(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        rows: Tensor = model(x)[0]
    return rows


def dense_rows_of(model: nn.Module, x: Tensor) -> Tensor:
    """A row per cell, so that equal scores cannot swap places."""
    model = copy.deepcopy(model).float().eval()
    model.model[-1].layout = "cells"
    return rows_of(model, x)


def raw_of(model: PoseModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Score probabilities (B, C, A) and decoded keypoints (B, K * D, A) of the stock one-to-one head, before its top-k."""
    head: Any = model.model[-1]
    with torch.no_grad():
        raw = model(x)[1]["one2one"]
        return raw["scores"].sigmoid(), head.kpts_decode(raw["kpts"])


def save(model: PoseModel, file: str) -> str:
    torch.save({"epoch": -1, "model": copy.deepcopy(model).half(), "ema": None, "train_args": dict(model.args)}, file)
    return file


@pytest.mark.parametrize("name", ["yolo26n-pose.yaml", pytest.param("yolo26m-pose.yaml", marks=pytest.mark.slow)])
def test_scores_and_keypoints_are_equal_to_the_last_bit(name: str) -> None:
    source = stock(name)
    model, head = from_yolo26_pose(source), source.model[-1]
    # features of a trained network differ from cell to cell, those of this one hardly; and equal scores come in any order
    widths = [tower[0].conv.in_channels for tower in head.cv4]
    x = [torch.randn(2, c, 96 // s, 160 // s, generator=torch.Generator().manual_seed(1)) for c, s in zip(widths, (8, 16, 32))]
    theirs, ours = rows_of(head, x), rows_of(model.model[-1], x)
    assert all(len(rows[:, 4].unique()) == len(rows) == 300 for rows in theirs) and theirs.std(1)[:, 6].min() > 1
    assert torch.equal(ours[..., 4:6], theirs[..., 4:6])
    assert torch.equal(rows_of(model, images())[..., 4], rows_of(source, images())[..., 4])  # and the whole network
    points, wanted = (rows[..., 6:].unflatten(2, (17, 3)) for rows in (ours, theirs))
    assert torch.equal(points[..., :2], wanted[..., :2])
    # the logits are equal; a sigmoid may round the last bit otherwise at another place of memory
    assert torch.allclose(points[..., 2], wanted[..., 2], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("nc", "kpt_shape"), [(1, (17, 3)), (3, (17, 3)), (1, (5, 2)), (80, (4, 3)), (2, (40, 3))])
def test_every_cell_is_equal_whatever_the_keypoints_and_classes(nc: int, kpt_shape: tuple[int, int]) -> None:
    source, x = stock(nc=nc, kpt_shape=kpt_shape), images()
    scores, keypoints = raw_of(source, x)
    rows = dense_rows_of(from_yolo26_pose(source), x).transpose(1, 2)
    assert torch.equal(rows[:, 4], scores.amax(1)) and torch.equal(rows[:, 5].long(), scores.argmax(1))
    ours, theirs = (points.unflatten(1, kpt_shape) for points in (rows[:, 6:], keypoints))
    assert torch.equal(ours[:, :, :2], theirs[:, :, :2])
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)
    low, high = rows[:, :2], rows[:, 2:4]
    assert (high > low).all() and (low <= ours[:, :, :2].amax(1)).all()  # boxes of keypoints that all count, or of the visible ones


def test_the_one_to_many_head_is_taken_over_too() -> None:
    """Fine-tuning goes on from both heads of the stock network, and the source stays as it is."""
    source, x = stock(), images()
    before = copy.deepcopy(source.state_dict())
    model = from_yolo26_pose(source)
    with torch.no_grad():
        theirs, ours = source(x)[1]["one2many"], model(x)[1]
    assert torch.equal(ours.one2many_scores, theirs["scores"]) and not torch.equal(ours.one2one_scores, theirs["scores"])
    kpts = theirs["kpts"].unflatten(1, (17, 3))
    assert torch.equal(ours.one2many.offsets * 2, kpts[:, :, :2]) and torch.equal(ours.one2many.visibility, kpts[:, :, 2])
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another unit of offsets, which the rows then do not undo, keypoints lie elsewhere."""
    source, x = stock(), images()
    monkeypatch.setattr(yolo26, "OFFSET_CELLS", 2.001)
    apart = (rows_of(from_yolo26_pose(source), x) - rows_of(source, x)).abs()
    assert float(apart[..., 4].max()) == 0 and float(apart[..., 6:].max()) > 1e-3


def test_opening_saving_and_opening_again(log: list[str]) -> None:
    """``ERPose`` converts and says so in one line, ``YOLO`` does not; every kind of file holds the same model."""
    pytest.importorskip("safetensors")
    file, x = save(stock(), "yolo26n-pose.pt"), images()
    log.clear()
    assert type(YOLO(file)) is YOLO and isinstance(YOLO(file).model, PoseModel) and not log
    model = ERPose(file)
    assert [line for line in log if "converted" in line] == log and len(log) == 1 and file in log[0]
    wanted = dense_rows_of(model.model, x)
    theirs = YOLO(file)
    theirs.model.model[-1].end2end = True
    assert torch.equal(rows_of(model.model, x)[..., 4], rows_of(theirs.model.eval(), x)[..., 4])
    # checkpoints are in half precision, which rounds the smallest of the halved offset weights
    for name, apart in (("again.safetensors", 0.0), ("again.pt", 1e-3)):
        model.save(name)
        again = YOLO(name)
        assert type(again) is ERPose and again.names == NAMES and again.model.model[-1].confidence == "score"
        rows = dense_rows_of(again.model, x)
        assert torch.equal(rows[..., 4], wanted[..., 4])
        assert torch.allclose(rows[..., 6:], wanted[..., 6:], rtol=0, atol=apart)
    assert len(log) == 1


def test_a_stock_object_is_converted_and_stays_stock() -> None:
    theirs = YOLO(save(stock(), "yolo26n-pose.pt"))
    ours = ERPose(theirs)
    assert isinstance(ours.model, ERPoseModel) and type(theirs.model) is PoseModel and ours.task == "pose"
    assert len(ours.predict(torch.rand(1, 3, 64, 64), conf=0.0, verbose=False)[0]) > 0


def test_what_the_network_knows_of_its_keypoints_is_kept() -> None:
    source = stock(kpt_shape=(3, 3))
    known = {
        "kpt_names": {0: ["head", "left", "right"]},
        "kpt_oks_sigmas": [0.1, 0.2, 0.3],
        "skeleton": [[0, 1]],
        "flip_idx": [0, 2, 1],
    }
    for name, value in known.items():
        setattr(source, name, value)
    model = from_yolo26_pose(source)
    assert {name: getattr(model, name) for name in known} == known and model.names == NAMES


@pytest.mark.parametrize(
    ("name", "start"),
    [("yolov8n-pose.yaml", "erpose8-n.yaml"), ("yolo11s-pose.yaml", "erpose11-s.yaml"), ("yolo11n.yaml", "erpose11-n.yaml")],
)
def test_files_without_a_one_to_one_head_are_refused_with_what_to_do(name: str, start: str) -> None:
    file = name.replace(".yaml", ".pt")
    model = YOLO(name)
    model.save(file)
    with pytest.raises(TypeError, match=rf"{file} is a .* train: ERPose\('{start}'\)\.load\('{file}'\)$") as error:
        ERPose(file)
    assert ("no one-to-one head" in str(error.value)) is ("pose" in name)


def test_networks_that_cannot_be_converted_are_named() -> None:
    fused = stock()
    fused.fuse(verbose=False)
    with pytest.raises(ValueError, match="fused for inference"):
        from_yolo26_pose(fused)
    cut = stock()
    cut.model[-1].one2one_cv4 = None
    with pytest.raises(ValueError, match="no one-to-one head"):
        from_yolo26_pose(cut)
    odd = stock()
    odd.model[-1].cv3[1] = nn.Conv2d(8, 1, 1)
    with pytest.raises(ValueError, match="not those of YOLO26-pose"):
        from_yolo26_pose(odd)
    torch.save({"model": cut.half(), "ema": None, "train_args": {}}, "cut.pt")
    with pytest.raises(TypeError, match="cut.pt is a PoseModel, and cannot be converted: it has no one-to-one head"):
        ERPose("cut.pt")


def test_a_missing_file_is_left_to_the_stock_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which downloads it: the name arrives there as it was given."""
    seen = []

    def load(name: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(str(name))
        raise FileNotFoundError(name)

    monkeypatch.setattr("ultralytics.engine.model.load_checkpoint", load)
    with pytest.raises(FileNotFoundError):
        ERPose("yolo26s-pose.pt")
    assert seen == ["yolo26s-pose.pt"]


@pytest.mark.parametrize("maker", [YOLO, ERPose])
def test_a_missing_file_is_downloaded_by_ultralytics(maker: type[YOLO], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the address, and to the place, that ``YOLO`` has for it; offline with the error that ``YOLO`` gives."""
    asked: list[tuple[str, str]] = []

    def offline(url: str, file: Any, **_: Any) -> None:
        asked.append((url, str(file)))
        raise ConnectionError(f"Download failure for {url}. Environment is not online.")

    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", offline)
    with pytest.raises(ConnectionError, match=r"Download failure for https://.*/yolo26s-pose\.pt\. Environment is not online"):
        maker("yolo26s-pose.pt")

    def download(url: str, file: Any, **_: Any) -> None:
        asked.append((url, str(file)))
        save(stock(), str(file))

    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", download)
    assert type(maker("yolo26s-pose.pt")) is maker and Path("yolo26s-pose.pt").is_file()
    assert len(set(asked)) == 1 and asked[0][0].startswith("https://github.com/ultralytics/assets/")
    assert asked[0] == (asked[0][0], "yolo26s-pose.pt")


def test_yolo_hands_stock_files_over_while_the_erpose_command_runs() -> None:
    file = save(stock(), "yolo26n-pose.pt")
    compat.install()
    with compat.converting():
        assert type(YOLO(file)) is ERPose
    assert type(YOLO(file)) is YOLO


@pytest.mark.slow
def test_export_gives_the_rows_of_the_network() -> None:
    pytest.importorskip("onnxruntime")
    model, x = ERPose(save(stock(), "yolo26n-pose.pt")), images(64, 64)[:1]
    before = model.predict(x, conf=0.0, verbose=False, imgsz=64)[0]
    after = ERPose(model.export(format="onnx", imgsz=64)).predict(x, conf=0.0, verbose=False, imgsz=64)[0]
    assert len(before) == len(after) > 0
    assert torch.allclose(before.boxes.conf, after.boxes.conf, atol=1e-4)


def still(trainer: Any) -> None:
    """Callback: statistics of batch norms, which move without a learning rate, too, stay where they are."""
    for layer in trainer.model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0


@pytest.mark.slow
def test_nothing_is_lost_when_training_begins(tiny_dataset: Path) -> None:
    """Without a learning rate an epoch changes neither scores nor keypoints, and the checkpoint sorts as the start does."""
    source, x = stock(), images()
    source.half().float()  # what a checkpoint holds
    model = ERPose(save(source, "yolo26n-pose.pt"))
    before = dense_rows_of(model.model, x)
    model.add_callback("on_train_start", still)
    quiet = {"optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0, "plots": False, "workers": 0, "device": "cpu", "val": False}
    model.train(data=str(tiny_dataset), epochs=1, imgsz=64, batch=4, **quiet)
    after = dense_rows_of(model.trainer.model, x)
    assert torch.equal(after[..., 4:], before[..., 4:])
    kept = ERPose(str(model.trainer.last)).model
    assert kept.model[-1].confidence == "score" and kept.yaml["erpose"]["tower_channels"] == [85, 64]
    assert torch.allclose(dense_rows_of(kept, x)[..., 4:], before[..., 4:], atol=1e-2)


@pytest.mark.slow
def test_fine_tuning_on_other_keypoints_and_classes_keeps_the_towers(tiny_dataset: Path) -> None:
    """All of the pose tower is taken over: 85 channels are due to 17 keypoints, and a stock model of two would have 64."""
    about = yaml.safe_load(tiny_dataset.read_text())
    root = Path("two").absolute()
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            for file in (tiny_dataset.parent / kind / split).iterdir():
                if kind == "images":
                    (root / kind / split / file.name).write_bytes(file.read_bytes())
                elif file.suffix == ".txt":
                    rows = [" ".join(line.split()[:11]) for line in file.read_text().splitlines()]
                    (root / kind / split / file.name).write_text("\n".join(rows))
    about |= {"path": str(root), "kpt_shape": [2, 3], "flip_idx": [0, 1], "names": {0: "a", 1: "b"}}
    Path("two.yaml").write_text(yaml.safe_dump(about))
    model = ERPose(save(stock(), "yolo26n-pose.pt"))
    tower = model.model.model[-1].one2one_pose.tower[0][0].conv.weight.clone()
    model.train(
        data="two.yaml",
        epochs=1,
        imgsz=64,
        batch=4,
        optimizer="SGD",
        lr0=0.0,
        warmup_epochs=0,
        plots=False,
        workers=0,
        device="cpu",
    )
    trained = model.trainer.model.model[-1]
    assert trained.nc == 2 and trained.kpt_shape == [2, 3] and torch.equal(trained.one2one_pose.tower[0][0].conv.weight, tower)


def test_a_process_of_its_own_converts_what_it_reads(tiny_dataset: Path) -> None:
    """Processes of a distributed run read the stock file themselves and hand network and YAML to ``get_model``."""
    from erpose_yolo.engine.trainer import ERPoseTrainer

    source = stock()
    trainer = ERPoseTrainer(
        overrides={"data": str(tiny_dataset), "model": save(source, "yolo26n-pose.pt"), "imgsz": 64, "device": "cpu"}
    )
    model = trainer.get_model(cfg=source.yaml, weights=source, verbose=False)
    assert isinstance(model, ERPoseModel) and torch.equal(
        rows_of(model.eval(), images())[..., 4], rows_of(source, images())[..., 4]
    )
