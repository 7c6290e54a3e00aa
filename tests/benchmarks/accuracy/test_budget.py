"""benchmarks/accuracy/budget.py: everybody begins with the same parts of a detector, and steps in the same type."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from benchmarks.accuracy import budget
from erpose_yolo import ERPose
from erpose_yolo.nn.network import ERPoseModel


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of COCO's classes with random weights."""
    file = tmp_path_factory.mktemp("detector") / "yolov8n.pt"
    torch.manual_seed(5)
    yolo = YOLO("yolov8n.yaml")
    yolo.model.names = {i: "person" if i == 0 else str(i) for i in range(80)}
    yolo.save(file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "label", "head"),
    [
        ("erpose8-n", "", False),
        ("erpose8-n", "refine off", False),
        ("yolov8n-pose", "", False),
        ("yolov8n-pose", budget.STOCK_LOAD, True),
    ],
)
def test_a_detector_gives_everybody_the_same(
    model: str, label: str, head: bool, detector: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """At a rate of nothing, what was taken is what is there after an epoch, in bfloat16 where that is asked for."""
    seen: dict[str, Any] = {}
    yolo = (ERPose if model.startswith("erpose") else YOLO)(f"{model}.yaml")
    yolo.add_callback("on_train_start", lambda run: seen.update(model={k: v.clone() for k, v in run.model.state_dict().items()}))
    yolo.add_callback("on_train_batch_start", lambda run: seen.update(amp=run.amp, block=getattr(run.model, "settings", None)))
    yolo.train(
        trainer=budget.trainer_of(model, label), data=str(tiny_dataset), epochs=1, imgsz=64, batch=4, pretrained=str(detector),
        device="cpu", amp=True, val=False, plots=False, verbose=False, project=str(tmp_path), name="run", optimizer="AdamW",
    )  # fmt: skip
    theirs = YOLO(detector).model.float().state_dict()
    last = f"model.{len(yolo.model.model) - 1}."
    same = [k for k, v in seen["model"].items() if k in theirs and v.shape == theirs[k].shape and torch.equal(v, theirs[k])]
    layers = {k for k, v in theirs.items() if v.ndim == 4}  # normalisation starts alike in every network
    assert {k for k in layers if not k.startswith(last)} <= set(same)
    assert (sum(k.startswith(last) for k in layers & set(same)) > 10) == head
    assert seen["amp"] is True and (label != "refine off" or not seen["block"].refine)
    assert budget.stage_file(tmp_path / "run", 1).exists()
    assert budget.epochs_over(tmp_path / "run", {"epochs": 1, "imgsz": 64}) == 1


def test_labels_are_known() -> None:
    assert budget.trainer_of("erpose-n", "RLE").model_class.__name__ == "RLE"
    assert budget.trainer_of("erpose-n", "boxes on").block == {"boxes": True}
    with pytest.raises(KeyError):
        budget.trainer_of("erpose-n", "boxes off")


def test_a_folder_of_another_budget_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert budget.epochs_over(tmp_path, {"epochs": 4}) == 0
    torch.save({"epoch": 0, "train_args": {"epochs": 4, "imgsz": 64}}, tmp_path / "weights" / "last.pt")
    assert budget.epochs_over(tmp_path, {"epochs": 4, "imgsz": 64}) == 1 and budget.stage_file(tmp_path, 1).exists()
    with pytest.raises(ValueError, match="holds a training of"):
        budget.epochs_over(tmp_path, {"epochs": 8, "imgsz": 64})


def test_time_of_a_run_that_was_continued(tmp_path: Path) -> None:
    """Its clock starts anew; the last epoch, with its validation, is not the usual one."""
    with open(tmp_path / "results.csv", "w", newline="") as file:
        csv.writer(file).writerows([["epoch", "time"], [1, 10], [2, 19], [3, 11], [4, 41]])
    total, each = budget.seconds_of(tmp_path)
    assert total == 60 and each == 10


def test_scores_alone(tmp_path: Path) -> None:
    model = ERPoseModel("erpose-n.yaml", nc=1, verbose=False)
    torch.save({"ema": model, "model": None}, tmp_path / "a.pt")
    changed = torch.load(budget.without_spreads(tmp_path / "a.pt", tmp_path / "b" / "c.pt"), weights_only=False)["ema"]
    assert changed.model[-1].confidence == "score" and torch.equal(changed.model[0].conv.weight, model.model[0].conv.weight)
