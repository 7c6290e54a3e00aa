"""Bad input: an error that names the thing and the fix, or a run that goes on and loses nothing."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from erpose_yolo import ERPose
from erpose_yolo.nn.network import load_model_yaml
from erpose_yolo.upstream import compat

SMALL = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "verbose": False}
MakeData = Callable[..., Path]


def row(columns: int = 51, seen: float = 2) -> str:
    """A label row of one person in the middle; ``columns`` keypoint columns, in threes where that divides them."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0.3, 0.7, columns)
    if columns % 3 == 0:
        points[2::3] = seen
        if not seen:
            points[:] = 0
    return " ".join(f"{v:.5f}" for v in [0, 0.5, 0.5, 0.4, 0.4, *points])


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """Write a data set of 4 training and 2 validation images, all with these label rows (None: no label files)."""

    def make(rows: list[str] | None, kpt_shape: list[int] | None = None, **extra: Any) -> Path:
        root = tmp_path / f"data{len(list(tmp_path.glob('data*')))}"
        rng = np.random.default_rng(0)
        for split, count in (("train", 4), ("val", 2)):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
                cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
                if rows is not None:
                    (root / "labels" / split / f"{i}.txt").write_text("\n".join(rows))
        data = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "person"}}
        data |= {"kpt_shape": kpt_shape or [17, 3], **extra}
        (root / "data.yaml").write_text(yaml.safe_dump(data))
        return root / "data.yaml"

    return make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of 17 keypoints."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "mine.pt"
    model = ERPose("erpose-n.yaml").model
    torch.save({"model": model, "train_args": {}}, file)
    return file


def model_yaml(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A model YAML of a user's own: the default one, changed."""
    cfg: dict[str, Any] = {"base": "yolo26.yaml", "nc": 1, "kpt_shape": [17, 3], "head": "ERPoseHead", "erpose": {}}
    change(cfg)
    file = folder / "erpose-mine.yaml"
    file.write_text(yaml.safe_dump(cfg))
    return file


def train(data: Path, folder: Path, model: str | Path = "erpose-n.yaml", **kwargs: Any) -> list[dict[str, str]]:
    """Train for one epoch; the rows of results.csv."""
    kwargs = {"epochs": 1, "plots": False, "project": str(folder), "name": "r", **SMALL, **kwargs}
    ERPose(model).train(data=str(data), **kwargs)
    return [{k.strip(): v for k, v in r.items()} for r in csv.DictReader((folder / "r" / "results.csv").open())]


def losses(results: list[dict[str, str]]) -> dict[str, float]:
    return {k: float(v) for k, v in results[-1].items() if k.startswith(("train/", "val/"))}


# --- model YAML ---------------------------------------------------------------------------------------------------


def test_unknown_key_in_the_block(tmp_path: Path) -> None:
    """A typing error in the YAML: key, file and nearest key are named."""
    file = model_yaml(tmp_path, lambda c: c["erpose"].update(pose_gai=2.0))
    with pytest.raises(ValueError, match="'pose_gai'.*erpose-mine.yaml.*'pose_gain'"):
        ERPose(file)


def test_model_yaml_without_kpt_shape(tmp_path: Path) -> None:
    """How many keypoints? The error shows the line to add."""
    with pytest.raises(ValueError, match=r"erpose-mine.yaml: kpt_shape is missing.*kpt_shape: \[17, 3\]"):
        ERPose(model_yaml(tmp_path, lambda c: c.pop("kpt_shape")))


@pytest.mark.parametrize("shape", [[17, 4], [17], [0, 3], [17, 1], 17, "17x3"])
def test_model_yaml_with_a_wrong_kpt_shape(tmp_path: Path, shape: object) -> None:
    """kpt_shape is [keypoints, 2 or 3]; the error names the file, what was given and what to write."""
    with pytest.raises(ValueError, match=rf"erpose-mine.yaml: kpt_shape is {re.escape(repr(shape))}.*kpt_shape: \[17, 3\]"):
        ERPose(model_yaml(tmp_path, lambda c: c.update(kpt_shape=shape)))


def test_model_yaml_that_ends_in_another_head(tmp_path: Path) -> None:
    """Rows of a stock model under our name: the error says what the last row must be."""
    cfg = load_model_yaml("erpose-n.yaml")
    cfg["head"][-1][2] = "Pose"
    file = tmp_path / "erpose-mine.yaml"
    file.write_text(yaml.safe_dump(cfg))
    with pytest.raises(ValueError, match="last row of head must be .*ERPoseHead"):
        ERPose(file)


def test_missing_model_yaml() -> None:
    """A name that is not there lists what ships."""
    with pytest.raises(FileNotFoundError, match=r"erpose-\{n,s,m,l,x\}.yaml|erpose-n.yaml"):
        ERPose("erpose99-n.yaml")


# --- data YAML ----------------------------------------------------------------------------------------------------


def test_kpt_shape_of_data_and_checkpoint_differ_in_val(make_data: MakeData, checkpoint: Path) -> None:
    """Validating a 17-keypoint model on 5-keypoint data: both shapes are named."""
    data = make_data([row(15)], [5, 3])
    with pytest.raises(ValueError, match=r"\[5, 3\] of .*data.yaml differs from kpt_shape \[17, 3\] of the model"):
        ERPose(checkpoint).val(data=str(data), **SMALL)


@pytest.mark.slow
def test_kpt_shape_of_data_and_checkpoint_differ_in_train(
    make_data: MakeData, checkpoint: Path, tmp_path: Path, log: list[str]
) -> None:
    """Fine-tuning on other keypoints is what users do: it goes on, and says that the keypoints are learnt anew."""
    results = train(make_data([row(15)], [5, 3]), tmp_path, checkpoint)
    assert any("[5, 3]" in m and "[17, 3]" in m and "learnt anew" in m for m in log)
    assert all(np.isfinite(list(losses(results).values())))


@pytest.mark.slow
def test_resume_on_data_with_other_keypoints(make_data: MakeData, tmp_path: Path) -> None:
    """The data YAML was edited between a run and its resume: both shapes are named, nothing is trained."""
    data = make_data([row()])
    with pytest.raises(RuntimeError, match="power cut"):
        model = ERPose("erpose-n.yaml")

        def cut(trainer: Any) -> None:
            if trainer.epoch:
                raise RuntimeError("power cut")

        model.add_callback("on_train_epoch_start", cut)
        model.train(data=str(data), epochs=2, plots=False, val=False, project=str(tmp_path), name="cut", **SMALL)
    for file in data.parent.rglob("labels/*/*.txt"):
        file.write_text(row(15))
    data.write_text(data.read_text().replace("- 17\n", "- 5\n"))
    with pytest.raises(ValueError, match=r"\[5, 3\].*\[17, 3\]"):
        ERPose(tmp_path / "cut" / "weights" / "last.pt").train(resume=True, device="cpu")


@pytest.mark.parametrize("mode", ["train", "val"])
def test_sigmas_of_the_wrong_number(make_data: MakeData, checkpoint: Path, tmp_path: Path, mode: str) -> None:
    """kpt_oks_sigmas of another keypoint set: both numbers and the key are named."""
    data = make_data([row()], kpt_oks_sigmas=[0.1] * 16)
    with pytest.raises(ValueError, match="kpt_oks_sigmas must hold 17 .*got 16"):
        if mode == "train":
            train(data, tmp_path)
        else:
            ERPose(checkpoint).val(data=str(data), **SMALL)


@pytest.mark.parametrize("mode", ["train", "val"])
def test_data_yaml_without_kpt_shape(make_data: MakeData, checkpoint: Path, tmp_path: Path, mode: str) -> None:
    """A detection data set: the error names kpt_shape and the file, it is no bare KeyError."""
    data = make_data([row()])
    cfg = yaml.safe_load(data.read_text())
    del cfg["kpt_shape"]
    data.write_text(yaml.safe_dump(cfg))
    with pytest.raises((KeyError, ValueError), match="kpt_shape.*data.yaml|data.yaml.*kpt_shape"):
        if mode == "train":
            train(data, tmp_path)
        else:
            ERPose(checkpoint).val(data=str(data), **SMALL)


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "val"])
def test_wrong_number_of_columns(make_data: MakeData, checkpoint: Path, tmp_path: Path, mode: str) -> None:
    """Ultralytics would drop the image and go on; here file, line, both numbers and the fix are named."""
    data = make_data([row()])
    bad = data.parent / "labels" / "val" / "1.txt"
    bad.write_text("\n".join((row(), "", row(48))))
    with pytest.raises(ValueError, match="must have 56 ") as caught:
        if mode == "train":
            train(data, tmp_path)
        else:
            ERPose(checkpoint).val(data=str(data), **SMALL)
    text = str(caught.value)
    assert f"{Path('val', '1.txt')}:3: 53 columns" in text and "kpt_shape" in text and "Fix" in text


def test_wrong_columns_are_found_through_a_list_of_files(make_data: MakeData, tmp_path: Path) -> None:
    """COCO's own YAML names its images in a text file; its labels are checked like those of a folder."""
    data = make_data([row()])
    root = data.parent
    (root / "labels" / "train" / "2.txt").write_text(row(48))
    (root / "train.txt").write_text("\n".join(f"./images/train/{i}.png" for i in range(4)))
    cfg = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**cfg, "train": "train.txt"}))
    with pytest.raises(ValueError, match=r"2.txt:1: 53 columns"):
        train(data, tmp_path)


@pytest.mark.slow
def test_data_set_without_people(make_data: MakeData, tmp_path: Path, log: list[str]) -> None:
    """Backgrounds only: it trains with finite losses; also with a size that is no multiple of the stride."""
    data = make_data([])
    (data.parent / "labels" / "train" / "0.txt").unlink()  # a background may also have no file at all
    results = losses(train(data, tmp_path, imgsz=70))
    assert all(np.isfinite(list(results.values())))
    assert results["train/pose_loss"] == 0 and results["train/o2o_loss"] > 0
    assert any("multiple of max stride 32" in m for m in log)


def test_no_label_file_at_all(make_data: MakeData, tmp_path: Path) -> None:
    """Not one label file is a wrong path rather than a data set of backgrounds: it stops before anything is trained."""
    with pytest.raises(ValueError, match="No labels found in .*train"):
        train(make_data(None), tmp_path)


@pytest.mark.slow
def test_people_without_labelled_keypoints(make_data: MakeData, tmp_path: Path) -> None:
    """Nothing but people with all keypoints unlabelled: ignore regions, finite losses, nothing to pull keypoints."""
    results = losses(train(make_data([row(seen=0), row(seen=0)]), tmp_path))
    assert all(np.isfinite(list(results.values())))
    assert results["train/pose_loss"] == 0 and results["val/pose_loss"] == 0


@pytest.mark.slow
def test_data_without_visibility(make_data: MakeData, tmp_path: Path) -> None:
    """kpt_shape [K, 2] trains, validates and predicts with two columns per keypoint."""
    data = make_data([row(10)], [5, 2])
    results = losses(train(data, tmp_path))
    assert all(np.isfinite(list(results.values()))) and results["train/pose_loss"] > 0
    model = ERPose(tmp_path / "r" / "weights" / "best.pt")
    model.val(data=str(data), plots=True, conf=0.0001, project=str(tmp_path), name="v", **SMALL)
    assert cv2.imread(str(tmp_path / "v" / "val_batch0_pred.jpg")) is not None
    people = model.predict(data.parent / "images" / "val", conf=0.0001, **SMALL)
    assert all(p.keypoints.data.shape[1:] == (5, 2) for p in people)


# --- images and versions ----------------------------------------------------------------------------------------


def test_predict_at_a_size_that_is_no_multiple_of_the_stride(checkpoint: Path, log: list[str]) -> None:
    """predict rounds the size up, with a warning, and goes on."""
    people = ERPose(checkpoint).predict(np.zeros((50, 90, 3), np.uint8), imgsz=100, device="cpu", verbose=False)
    assert len(people) == 1 and people[0].orig_shape == (50, 90)
    assert any("multiple of max stride 32" in m for m in log)


@pytest.mark.parametrize("shape", [(100, 100), (64, 100), (100, 64)])
@pytest.mark.parametrize("training", [False, True])
def test_tensor_whose_size_is_no_multiple_of_the_stride(shape: tuple[int, int], training: bool) -> None:
    """A raw tensor cannot be rounded up: the error names the stride, instead of one from deep inside the neck."""
    model = ERPose("erpose-n.yaml").model.train(training)
    with pytest.raises(ValueError, match="multiple of.*32"):
        model(torch.zeros(2, 3, *shape))


def test_unsupported_ultralytics_is_one_warning_and_work_goes_on(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """Another Ultralytics: one warning that names the range, and the models still run."""
    monkeypatch.setattr("ultralytics.__version__", "8.9.1")
    monkeypatch.setattr(compat, "_warned", False)
    for _ in range(3):
        compat.install()
    warnings = [m for m in log if "erpose-yolo supports" in m]
    assert len(warnings) == 1
    assert ",".join(compat.SUPPORTED["ultralytics"]) in warnings[0] and "8.9.1" in warnings[0] and "Going on" in warnings[0]
    assert ERPose("erpose-n.yaml").predict(np.zeros((32, 32, 3), np.uint8), imgsz=32, device="cpu", verbose=False)
