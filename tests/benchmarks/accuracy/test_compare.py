"""benchmarks/accuracy/compare.py: one budget per table, and trainings that continue where they were interrupted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils.patches import torch_load

from benchmarks import common
from benchmarks.accuracy import compare

FIGURES = {"AP": 0.1, "AP50": 0.2, "AP75": 0.0, "AR": 0.1, "AP_hard": 0.0, "duplicates": 0.0, "misses": 0.5}


def finished_run(model: str, seed: int, ap: float = 0.1, mode: str = "") -> dict[str, Any]:
    return {"model": model, "seed": seed, "mode": mode, "seconds": 600, "curve": [{**FIGURES, "AP": ap}] * 4}


@pytest.fixture
def call(results: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command without training; returns the seeds that the table holds."""
    monkeypatch.setattr(compare, "run", lambda model, seed, args: [finished_run(model, seed)])

    def main(words: str) -> list[int]:
        monkeypatch.setattr("sys.argv", ["compare.py", "--models", "erpose-n", *words.split()])
        compare.main()
        return [r["seed"] for r in common.read("compare-synth")["runs"]]

    return main


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        ("", "--data elsewhere/accuracy/synth-few.yaml", "--data others/data.yaml"),
        ("--no-amp --device 0 --gpu-cache", "--no-amp --device cpu --gpu-cache", "--no-amp --device cpu"),  # other augmentation
        ("--epochs 4", "--epochs 4 --workers 2", "--epochs 8"),
    ],
)
def test_a_table_has_one_budget(call, first: str, same: str, other: str) -> None:
    assert call(f"--track synth --seeds 0 {first}") == [0]
    assert call(f"--track synth --seeds 0 1 {same}") == [0, 1]
    with pytest.raises(SystemExit):
        call(f"--track synth --seeds 2 {other}")


def test_rows_and_their_order() -> None:
    """Ours before the peers, seeds and modes in rows of their own; means and ranges in per cent."""
    runs = [
        finished_run("yolo26n-pose", 1, 0.3, " NMS"),
        finished_run("erpose-n", 1, 0.2),
        finished_run("yolov8n-pose", 0, 0.4, " NMS"),
    ]
    runs += [finished_run("yolo26n-pose", 1, 0.25, " one-to-one"), finished_run("erpose-n", 0, 0.1)]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in compare.table({"runs": compare.in_order(runs)}).splitlines()
    ]
    ap = rows[0].index("AP (range)")
    assert [(row[0], row[1], row[ap]) for row in rows[2:]] == [
        ("erpose-n", "2", "15.0 (10.0 to 20.0)"),
        ("yolov8n-pose NMS", "1", "40.0"),
        ("yolo26n-pose NMS", "1", "30.0"),
        ("yolo26n-pose one-to-one", "1", "25.0"),
    ]


def test_a_start_that_was_never_trained_is_named_first(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before hours are spent on the models whose weights are there."""
    begun: list[str] = []

    def run(model: str, seed: int, args: Any) -> list[dict[str, Any]]:
        begun.append(str(compare.start_of(model, seed, args)))
        return [finished_run(model, seed)]

    monkeypatch.setattr(compare, "run", run)
    files = [tmp_path / "compare-crowd" / f"{model}-0" / "weights" / "last.pt" for model in ("erpose-n", "yolo11n-pose")]
    words = f"compare.py --track pretrained --data mini.yaml --start compare-crowd --out {tmp_path} --seeds 0 --models"
    monkeypatch.setattr("sys.argv", [*words.split(), "erpose-n", "yolo11n-pose"])
    files[0].parent.mkdir(parents=True)
    files[0].touch()
    with pytest.raises(SystemExit):
        compare.main()
    assert not begun and "train yolo11n-pose with seed 0 for the table 'compare-crowd' first" in capsys.readouterr().err
    files[1].parent.mkdir(parents=True)
    files[1].touch()
    compare.main()
    assert begun == [str(file) for file in files]


@pytest.mark.slow
def test_an_interrupted_training_continues(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    """From its last checkpoint, with the stages that it had; the stage at which it was killed is evaluated after all."""

    def arguments(name: str, **changes: Any) -> argparse.Namespace:
        values = {
            "out": tmp_path, "name": name, "start": None, "epochs": 4, "data": str(tiny_dataset), "imgsz": 64, "batch": 4,
            "device": "cpu", "workers": 0, "augment": {"mosaic": 0.0}, "gpu_cache": True, "amp": True,
        }  # fmt: skip
        return argparse.Namespace(**{**values, **changes})

    evaluated: list[int] = []
    kill_at: list[int] = []

    def figures(weights: Path, args: Any, nms: Any) -> dict[str, float]:
        epoch = int(torch_load(weights, map_location="cpu")["epoch"]) + 1
        if epoch in kill_at:
            raise KeyboardInterrupt
        evaluated.append(epoch)
        return {**FIGURES, "AP": epoch / 10}

    monkeypatch.setattr(compare, "figures", figures)
    whole = compare.run("erpose-n", 0, arguments("whole"))
    assert evaluated == [1, 2, 4]
    assert [stage["AP"] for stage in whole[0]["curve"]] == [0.1, 0.1, 0.2, 0.4]

    evaluated.clear()
    kill_at.append(2)
    with pytest.raises(KeyboardInterrupt):
        compare.run("erpose-n", 0, arguments("cut"))
    words = f"compare.py --track pretrained --data {tiny_dataset} --name cut --out {tmp_path} --models erpose-n --seeds 0"
    monkeypatch.setattr("sys.argv", words.split())
    with pytest.raises(SystemExit):  # said before hours are spent on other models
        compare.main()
    assert "holds an interrupted training of [4, 64, 4]" in capsys.readouterr().err
    kill_at.clear()
    runs = compare.run("erpose-n", 0, arguments("cut"))
    assert evaluated == [1, 2, 4], "no stage is evaluated twice, none is left out"
    assert [{**r, "seconds": 0} for r in runs] == [{**r, "seconds": 0} for r in whole]
    lines = (tmp_path / "cut" / "erpose-n-0" / "results.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines] == [1, 2, 3, 4], "no epoch is trained twice"
    # runs of ours resume exactly; the images of each epoch are those that it would have seen
    weights = [torch_load(tmp_path / t / "erpose-n-0" / "weights" / "last.pt")["model"].state_dict() for t in ("whole", "cut")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert json.loads((tmp_path / "cut" / "erpose-n-0" / compare.NOTED).read_text())["budget"] == [4, 64, 4]
