"""benchmarks/accuracy/compare.py: one budget per table, and trainings that continue where they were interrupted."""

from __future__ import annotations

import argparse
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_paired
import torch
from ultralytics.utils.patches import torch_load

from benchmarks import common
from benchmarks.accuracy import budget, compare, paired, photos

FIGURES = {"AP": 0.1, "AP50": 0.2, "AP75": 0.0, "AR": 0.1, "AP_hard": 0.0, "duplicates": 0.0, "misses": 0.5}


def finished_run(model: str, seed: int, ap: float = 0.1, mode: str = "") -> dict[str, Any]:
    return {"model": model, "seed": seed, "mode": mode, "seconds": 600, "curve": [{**FIGURES, "AP": ap}] * 4}


@pytest.fixture
def call(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command without training; returns the seeds that the table holds."""
    monkeypatch.chdir(tmp_path)
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


def test_a_start_that_is_missing_is_named_first(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before hours are spent on the models whose weights are there. The file of an int8 export serves as well."""
    begun: list[str] = []

    def run(model: str, seed: int, args: Any) -> list[dict[str, Any]]:
        begun.append(compare.start_of(model, args).name)
        return [finished_run(model, seed)]

    monkeypatch.setattr(compare, "run", run)
    words = f"--track synth --start-weights {tmp_path} --out {tmp_path} --seeds 0 --models erpose-n yolo11n-pose erpose11-n".split()
    (tmp_path / "yolo26n-dq.pt").touch()
    with pytest.raises(SystemExit):
        compare.main(words)
    assert not begun and "has neither yolo11n.pt nor yolo11n-dq.pt" in capsys.readouterr().err
    (tmp_path / "yolo11n.pt").touch()
    compare.main(words)
    assert begun == ["yolo26n-dq.pt", "yolo11n.pt", "yolo11n.pt"]


def test_two_calls_share_a_queue(call, results: Path, tmp_path: Path) -> None:
    """What another process makes is left to it; what it has made meanwhile is not made again."""
    folder = tmp_path / "runs" / "compare" / "compare-synth" / "erpose-n-1"
    with common.locked(folder):
        assert call("--track synth --seeds 0 1 2") == [0, 2]
        with common.locked(folder, wait=False) as mine:
            assert not mine
    assert call("--track synth --seeds 0 1 2") == [0, 1, 2]


def test_an_estimate_trains_nothing(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Hours from images per second, for a data set that is not here."""
    monkeypatch.setattr(compare, "images_per_second", lambda model, batch, device, amp: 100.0)
    compare.main("--track coco --models erpose-n --epochs 3 --batch 8 --imgsz 64 --device 0,1 --estimate 120000".split())
    assert "| erpose-n | 200.0 | 30 | 0.5 | 1.0 |" in capsys.readouterr().out and not list(results.iterdir())
    monkeypatch.undo()
    batch = common.random_batch(64, 2, 3)
    assert 0 < compare.images_per_second("yolov8n-pose", batch, "cpu", amp=True, steps=2) < 10_000


def judged_run(model: str, seed: int, kept: paired.Kept, **who: Any) -> dict[str, Any]:
    """A finished run on photos whose predictions are kept."""
    run = {"model": model, "label": "", "mode": "", "seed": seed, **who}
    run["kept"] = f"t/{'-'.join(str(v) for v in run.values())}.npz".replace(" ", "")
    paired.write(common.RESULTS / run["kept"], {"64": kept})
    equal = {name: float(value[0]) for name, value in paired.figures(kept).items()}
    figures = {**FIGURES, "AP": equal["AP"], "equal": equal}
    return {**run, "curve": [figures] * 4, "judged": {"64": figures}, "lr": 2e-3, "seconds per 1,000": 30.0, "machine": "here"}


def test_rows_are_compared_with_their_partner(results: Path) -> None:
    """Peers with ours of the same backbone, rows with the same labels but the first; seeds that both have, photos that both saw."""
    rng = np.random.default_rng(0)
    good, poor = (test_paired.made_up(rng, spread) for spread in (1.0, 5.0))
    runs = [judged_run("erpose8-n", seed, good) for seed in (0, 1)]
    runs += [judged_run("yolov8n-pose", 0, poor, mode=" NMS"), judged_run("yolo26n-pose", 0, poor, mode=" one-to-one")]
    runs += [judged_run("erpose8-n", 0, poor, label="refine off"), judged_run("erpose8-n", 7, poor, label="RLE")]
    runs += [judged_run("erpose8-n", 0, good, label="refine off, RLE"), judged_run("erpose8-n", 0, poor, label="RLE")]
    found = paired.differences(runs)
    assert set(found) == {"yolov8n-pose NMS", "erpose8-n: refine off", "erpose8-n: refine off, RLE", "erpose8-n: RLE"}
    assert found["erpose8-n: refine off, RLE"]["64"]["AP"][0] < 0 < found["erpose8-n: RLE"]["64"]["AP"][0], "RLE alone, and nothing"
    by, low, high = found["yolov8n-pose NMS"]["64"]["AP"]
    wanted = paired.figures(good)["AP"][0] - paired.figures(poor)["AP"][0]
    assert by == pytest.approx(wanted, abs=1e-4) and low < by < high and low > 0
    lines = paired.table({"setup": {"sizes": [64]}, "runs": runs, "differences": found}).splitlines()
    assert (
        len(lines) == 8 and lines[3].startswith("| yolov8n-pose NMS | 1 |") and f"[{by * 100:+.1f}: {low * 100:.1f} to" in lines[3]
    )
    assert "[" not in lines[2], "nobody is the partner of ours"


def test_photos_are_laid_out(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No photo of the crowds that judge is trained on; a tenth of the others is held back for the choice of a learning rate."""
    monkeypatch.setattr(photos.copy_paste, "generate", lambda out, settings: {"val": {"sources": ["2", "5"]}})
    args = argparse.Namespace(out=tmp_path, name="t", cutouts=tmp_path, data=str(tiny_dataset), imgsz=64)
    photos.lay_out(args)
    names = {split: {f.stem for f in (args.photos / "images" / split).iterdir()} for split in ("train", "fit", "held", "val")}
    assert names["train"] == {*map(str, range(8))} - {"2", "5"} and args.images == 6
    assert names["held"] == {"0"} and names["fit"] == names["train"] - {"0"} and names["val"] == {*map(str, range(4))}
    assert (args.photos / "labels/fit/1.txt").read_text() == (tiny_dataset.parent / "labels/train/1.txt").read_text()
    assert args.crowds and Path(args.data).read_text() != (args.photos / "choose.yaml").read_text()


def arguments(tmp_path: Path, tiny_dataset: Path, name: str, **changes: Any) -> argparse.Namespace:
    values = {
        "out": tmp_path, "name": name, "start_weights": None, "epochs": 4, "data": str(tiny_dataset), "imgsz": 64, "batch": 4,
        "device": "cpu", "workers": 0, "augment": {"mosaic": 0.0}, "gpu_cache": False, "amp": True, "rates": [], "sizes": [],
        "crowds": None,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize("amp", [True, False])
def test_a_row_says_that_it_is_float32(
    amp: bool, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    kept = test_paired.made_up(np.random.default_rng(0), 1.0)
    monkeypatch.setattr(compare, "train", lambda folder, *args, **options: folder / "weights" / "last.pt")
    monkeypatch.setattr(compare, "judge", lambda *args: (FIGURES, kept))
    monkeypatch.setattr(compare, "seconds_of", lambda folder: (8.0, 2.0))
    args = arguments(tmp_path, tiny_dataset, "t", amp=amp, sizes=[64], images=4)
    common.complete("t", {}, [{"model": "erpose-n", "seed": 0}], partial(compare.run, args=args), lambda record: "")
    assert [run["machine"] for run in common.read("t")["runs"]] == [common.machine() + ("" if amp else ", float32")]


@pytest.mark.slow
def test_an_interrupted_training_continues(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    """From its last checkpoint, with the stages that it had, although it was killed before it kept the second one."""
    evaluated: list[int] = []

    def judge(weights: Path, data: str, size: int, nms: Any, args: Any) -> Any:
        evaluated.append(int(torch_load(weights, map_location="cpu")["epoch"]) + 1)
        return {**FIGURES, "AP": evaluated[-1] / 10}, {}

    monkeypatch.setattr(compare, "judge", judge)
    whole = compare.run("erpose-n", 0, arguments(tmp_path, tiny_dataset, "whole"))
    assert evaluated == [1, 1, 2, 0], "the last one has come to its end"

    evaluated.clear()

    def killed(last: Path, epoch: int, epochs: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        keep_stage(last, epoch, epochs)

    keep_stage = budget.keep_stage
    with monkeypatch.context() as patch:
        patch.setattr(budget, "keep_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            compare.run("erpose-n", 0, arguments(tmp_path, tiny_dataset, "cut"))
    words = f"--track synth --data {tiny_dataset} --name cut --out {tmp_path} --models erpose-n --seeds 0"
    with pytest.raises(SystemExit):  # said before hours are spent on other models
        compare.main(words.split())
    assert "holds a training of {'epochs': 4, 'imgsz': 64, 'batch': 4}" in capsys.readouterr().err
    runs = compare.run("erpose-n", 0, arguments(tmp_path, tiny_dataset, "cut"))
    assert evaluated == [1, 1, 2, 0]
    assert [{**r, "seconds": 0} for r in runs] == [{**r, "seconds": 0} for r in whole]
    lines = (tmp_path / "cut" / "erpose-n-0" / "results.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines] == [1, 2, 3, 4], "no epoch is trained twice"
    # runs of ours resume exactly; the images of each epoch are those that it would have seen
    weights = [torch_load(tmp_path / t / "erpose-n-0" / "weights" / "last.pt")["model"].state_dict() for t in ("whole", "cut")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
def test_two_processes_killed_and_continued(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Path, repo: Path
) -> None:
    """The stock launch of several devices, here two processes of a CPU: --track coco, with stages, sizes and kept photos."""
    pytest.importorskip("cloudpickle")
    for folder in ("engine", "benchmarks/accuracy"):
        monkeypatch.syspath_prepend(str(repo / "tests" / folder))  # the launched script takes over sys.path
    import two_processes

    monkeypatch.setattr(compare, "trainer_of", lambda model, label: two_processes.TwoProcesses)
    words = f"--track coco --data {tiny_dataset} --epochs 4 --imgsz 64 --batch 4 --sizes 64 96 --out {tmp_path} --seeds 0"
    folder = tmp_path / "compare-coco"
    folder.mkdir()
    (folder / two_processes.KILL).touch()
    with pytest.raises(subprocess.CalledProcessError):
        compare.main([*words.split(), "--models", "erpose-n"])
    assert budget.epochs_over(folder / "erpose-n-0", {"epochs": 4}) == 2 and not (results / "compare-coco.json").exists()
    (folder / two_processes.KILL).unlink()
    compare.main([*words.split(), "--models", "erpose-n"])
    (run,) = common.read("compare-coco")["runs"]
    assert [stage["epoch"] for stage in run["curve"]] == [1, 1, 2, 4] and list(run["judged"]) == ["64", "96"]
    assert list(paired.read(results / run["kept"])) == ["64", "96"]
    rows = (folder / "erpose-n-0" / "results.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in rows] == [1, 2, 3, 4]
    assert json.loads((folder / "erpose-n-0" / "final.json").read_text())["same weights"]
