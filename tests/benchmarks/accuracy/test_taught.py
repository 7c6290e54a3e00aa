"""benchmarks/accuracy/distillation.py: each kind of teaching is what its row says, and a finished training is not repeated."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from benchmarks.accuracy import distillation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "columns"),
    [("poses", {"dis_loss"}), ("features", {"feature_loss"}), ("features and poses", {"dis_loss", "feature_loss"})],
)
def test_rows(tiny_dataset: Path, tmp_path: Path, label: str, columns: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, start = tmp_path / "teacher.pt", tmp_path / "start.pt"
    for file, kind in ((teacher, "yolo26n-pose.yaml"), (start, "yolo26n.yaml")):
        model = YOLO(kind)
        model.model.names = {**model.names, 0: "person"}
        model.save(file)
    args = argparse.Namespace(
        data=str(tiny_dataset), start=str(start), teacher=str(teacher), epochs=1, imgsz=64, batch=4, fraction=1.0, eval_imgsz=64,
        out=tmp_path, name="rows",
    )  # fmt: skip
    (record,) = distillation.run("erpose-n", label, 0, args)
    assert 0 <= record["AP"] < 0.2
    folder = next((tmp_path / "rows").iterdir())
    with (folder / "results.csv").open() as file:
        row = next(csv.DictReader(file))
    found = {key.removeprefix("train/") for key in row if key.startswith("train/")} & {"dis_loss", "feature_loss"}
    assert found == columns and all(float(row[f"train/{key}"]) > 0 for key in found)
    model = torch.load(folder / "weights" / "last.pt", map_location="cpu", weights_only=False)["model"]
    assert hasattr(model, "projector") == ("feature_loss" in columns)
    monkeypatch.setattr(distillation.ERPose, "train", lambda *given, **more: pytest.fail("trained again"))
    assert distillation.run("erpose-n", label, 0, args)[0]["AP"] == record["AP"]


def test_table() -> None:
    figures = {"AP": 0.1, "AP50": 0.2, "AP75": 0.0, "AR": 0.1, "AP_hard": -1.0, "duplicates": 0.012, "misses": 0.5}
    runs = [{"model": "erpose-n", "label": label, "seed": 0, "seconds": 90, **figures} for label in ("", "poses")]
    rows = distillation.table({"runs": runs}).splitlines()[2:]
    assert rows[0] == "| nothing: labels alone | 0 | 10.00 | 20.00 | 0.00 | 10.00 | - | 1.20 | 50.00 |"
    assert rows[1].startswith("| poses | 0 |")
