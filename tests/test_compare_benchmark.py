"""benchmarks/compare.py: one table that several processes fill."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from ultralytics.utils.patches import torch_load

BUDGET = {"track": "synth", "epochs": 4}
FIGURES = {"AP": 0.1, "AP50": 0.2, "AP75": 0.0, "AR": 0.1, "AP_hard": 0.0, "duplicates": 0.0, "misses": 0.5}


@pytest.fixture(scope="module")
def compare(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("compare")


def finished_run(model: str, seed: int, ap: float = 0.1, label: str = "", mode: str = "") -> dict[str, Any]:
    record = {"model": model, "label": label, "settings": {}, "seed": seed, "mode": mode, "seconds": 600}
    return {**record, "curve": [{**FIGURES, "AP": ap}] * 4}


def test_a_second_process_adds_to_the_table(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare.common, "RESULTS", tmp_path)
    begun: list[tuple[str, int]] = []

    def run(model: str, label: str, settings: dict[str, Any], seed: int, args: Any) -> list[dict[str, Any]]:
        begun.append((model, seed))
        if model == "erpose-n":  # meanwhile the other process ends its run
            file = tmp_path / "compare-synth.json"
            record = json.loads(file.read_text())
            file.write_text(json.dumps({**record, "runs": [*record["runs"], finished_run("yolov8n-pose", 0, 0.3)]}))
        return [finished_run(model, seed)]

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr("sys.argv", "compare.py --track synth --models yolo11n-pose erpose-n yolov8n-pose --seeds 0".split())
    compare.main()
    assert begun == [("yolo11n-pose", 0), ("erpose-n", 0)], "what the other one has done is not repeated"
    rows = [line.split("|")[1].strip() for line in (tmp_path / "compare-synth.md").read_text().splitlines() if line.count("|") > 5]
    assert rows[2:] == ["erpose-n", "yolov8n-pose", "yolo11n-pose"]
    assert "30.0 |" in (tmp_path / "compare-synth.md").read_text(), "the other's figures stand as it wrote them"


def test_a_result_file_is_never_half_written(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that reads it while another one writes sees the old runs or the new ones."""
    monkeypatch.setattr(compare.common, "RESULTS", tmp_path)
    compare.common.write("compare-synth", {"budget": BUDGET, "runs": []}, "")
    target, seen = tmp_path / "compare-synth.json", []
    write_text = Path.write_text

    def slow(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write_text(self, text[: len(text) // 2])
        seen.append(json.loads(target.read_text())["runs"])
        return write_text(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", slow)
    compare.common.write("compare-synth", {"budget": BUDGET, "runs": [finished_run("erpose-n", 0)]}, "")
    assert seen[0] == [] and compare.finished(target, BUDGET) == [finished_run("erpose-n", 0)]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["compare-synth.json", "compare-synth.md"]


def test_each_run_keeps_its_machine(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever machine adds the last row: a table may hold runs of several."""
    monkeypatch.setattr(compare.common, "RESULTS", tmp_path)
    monkeypatch.setattr(compare.common, "machine", lambda: "this laptop")
    there = [{**finished_run(model, seed), "machine": "a GPU"} for model in ("erpose-n", "yolo26n-pose") for seed in (0, 1)]
    compare.common.write("one", {"runs": there}, "table")
    assert (tmp_path / "one.md").read_text() == "table\n\na GPU\n"
    here = [{**finished_run("yolo26n-pose", 2), "machine": "this laptop"}]
    here += [{**finished_run("erpose-n", 0, label="no heatmaps"), "machine": "this laptop"}]
    compare.common.write("two", {"runs": there + here}, "table")
    assert (tmp_path / "two.md").read_text().splitlines()[2:] == [
        "a GPU: erpose-n; yolo26n-pose (seed 0, 1)  ",
        "this laptop: yolo26n-pose (seed 2); erpose-n: no heatmaps",
    ]
    assert [r["machine"] for r in json.loads((tmp_path / "two.json").read_text())["runs"]] == ["a GPU"] * 4 + ["this laptop"] * 2
    compare.common.write("none", {"rows": []}, "table")
    assert (tmp_path / "none.md").read_text() == "table\n\nthis laptop\n"


def test_pictures_kept_in_memory_are_another_budget(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are augmented in another way, on a CPU as on a GPU; what is kept on either goes into one table."""
    monkeypatch.setattr(compare.common, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "run", lambda model, label, settings, seed, args: [finished_run(model, seed)])
    words = "compare.py --track synth --models erpose-n --no-amp --device".split()
    for options, fits in (["0", "--resident"], True), (["cpu", "--resident", "--seeds", "2"], True), (["cpu"], False):
        monkeypatch.setattr("sys.argv", [*words, *options])
        if fits:
            compare.main()
        else:
            with pytest.raises(SystemExit):
                compare.main()
    assert [r["seed"] for r in json.loads((tmp_path / "compare-synth.json").read_text())["runs"]] == [0, 1, 2]


def test_ours_first_then_peers_then_variants(compare: ModuleType) -> None:
    mixed = [
        finished_run("erpose-n", 0, label="no heatmaps"),
        finished_run("yolo26n-pose", 1),
        finished_run("erpose-n", 1),
        finished_run("yolov8n-pose", 0),
        finished_run("erpose-n", 0),
        finished_run("erpose-n", 0, label="hard score target"),
    ]
    order = [(r["model"], r["label"], r["seed"]) for r in compare.in_order(mixed)]
    assert order == [
        ("erpose-n", "", 0),
        ("erpose-n", "", 1),
        ("yolov8n-pose", "", 0),
        ("yolo26n-pose", "", 1),
        ("erpose-n", "no heatmaps", 0),
        ("erpose-n", "hard score target", 0),
    ]


def test_another_budget_is_refused(compare: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "compare-synth.json"
    file.write_text(json.dumps({"budget": {**BUDGET, "epochs": 12}, "runs": []}))
    with pytest.raises(ValueError, match=r"compare-synth.json holds runs of another budget.*--name"):
        compare.finished(file, BUDGET)
    assert compare.finished(tmp_path / "none.json", BUDGET) == []


def test_other_pictures_are_another_budget(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare.common, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "run", lambda model, label, settings, seed, args: [finished_run(model, seed)])
    words = "compare.py --track synth --models erpose-n --seeds 0".split()
    monkeypatch.setattr("sys.argv", words)
    compare.main()
    monkeypatch.setattr("sys.argv", [*words, "--data", str(tmp_path / "others" / "data.yaml")])
    with pytest.raises(SystemExit):
        compare.main()
    assert json.loads((tmp_path / "compare-synth.json").read_text())["budget"]["data"] == "benchmarks/synth-few.yaml"
    monkeypatch.setattr("sys.argv", [*words, "--data", "elsewhere/benchmarks/synth-few.yaml", "--seeds", "0", "1"])
    compare.main()
    assert len(json.loads((tmp_path / "compare-synth.json").read_text())["runs"]) == 2


def test_a_start_that_was_never_trained_is_named_first(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before hours are spent on the contestants whose weights are there."""
    begun: list[str] = []

    def run(model: str, label: str, settings: dict[str, Any], seed: int, args: Any) -> list[dict[str, Any]]:
        begun.append(str(compare.start_of(model, seed, args)))
        return [finished_run(model, seed)]

    monkeypatch.setattr(compare.common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(compare, "run", run)
    files = [tmp_path / "compare-synth-12" / f"{model}-0" / "weights" / "last.pt" for model in ("erpose-n", "yolo11n-pose")]
    words = f"compare.py --track mini --data mini.yaml --start compare-synth-12 --out {tmp_path} --seeds 0 --models"
    monkeypatch.setattr("sys.argv", [*words.split(), "erpose-n", "yolo11n-pose"])
    files[0].parent.mkdir(parents=True)
    files[0].touch()
    with pytest.raises(SystemExit):
        compare.main()
    assert not begun and "Train yolo11n-pose with seed 0 for the table 'compare-synth-12' first" in capsys.readouterr().err
    files[1].parent.mkdir(parents=True)
    files[1].touch()
    compare.main()
    assert begun == [str(file) for file in files]


def test_variants_start_from_the_plain_model(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A branch that settings add is new, and all else is as trained."""
    asked: list[tuple[dict[str, Any], Any]] = []

    class Model:
        def __init__(self, settings: dict[str, Any]) -> None:
            self.settings = settings

        def add_callback(self, *_: Any) -> None:
            pass

        def train(self, **arguments: Any) -> None:
            asked.append((self.settings, arguments["pretrained"]))

    monkeypatch.setattr(compare, "open_model", lambda model, settings, folder: Model(settings))
    file = tmp_path / "before" / "erpose-n-0" / "weights" / "last.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    args = argparse.Namespace(
        out=tmp_path, table="after", start="before", epochs=2, data="", imgsz=96, batch=4, device="cpu", workers=0, augment={},
        resident=False, amp=True,
    )  # fmt: skip
    compare.run("erpose-n", "boxes learned", {"boxes": "learned"}, 0, args)
    args.start = None
    compare.run("erpose-n", "", {}, 0, args)
    assert asked == [({"boxes": "learned"}, str(file)), ({}, False)]


@pytest.mark.parametrize("model", ["erpose-n", "yolo26n-pose"])
def test_a_training_that_was_cut_off_goes_on(
    compare: ModuleType,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    """From its last checkpoint, with the stages that it had; the stage that the kill fell into is judged after all."""

    def arguments(table: str, **changes: Any) -> argparse.Namespace:
        values = {
            "out": tmp_path, "table": table, "start": None, "epochs": 4, "data": str(tiny_dataset), "imgsz": 64, "batch": 4,
            "device": "cpu", "workers": 0, "augment": {"mosaic": 0.0}, "resident": True, "amp": True,
        }  # fmt: skip
        return argparse.Namespace(**{**values, **changes})

    judged: list[int] = []
    kill_at: list[int] = []

    def judge(weights: Path, args: Any, mode: Any) -> dict[str, float]:
        epoch = int(torch_load(weights, map_location="cpu")["epoch"]) + 1
        if epoch in kill_at:
            raise KeyboardInterrupt
        judged.append(epoch)
        return {**FIGURES, "AP": epoch / 10}

    monkeypatch.setattr(compare, "judge", judge)
    whole = compare.run(model, "", {}, 0, arguments("whole"))
    ways = len(compare.modes(model))
    assert judged == [epoch for epoch in (1, 2, 4) for _ in range(ways)]
    assert [stage["AP"] for stage in whole[0]["curve"]] == [0.1, 0.1, 0.2, 0.4]

    judged.clear()
    kill_at.append(2)
    with pytest.raises(KeyboardInterrupt):
        compare.run(model, "", {}, 0, arguments("cut"))
    with pytest.raises(ValueError, match=rf"{model}-0 holds a training that was cut off, of \[4, 64, 4\].*Delete it"):
        compare.run(model, "", {}, 0, arguments("cut", epochs=8))
    words = f"compare.py --track mini --data {tiny_dataset} --name cut --out {tmp_path} --models {model} --seeds 0"
    monkeypatch.setattr("sys.argv", words.split())
    with pytest.raises(SystemExit):  # said before hours are spent on other contestants
        compare.main()
    assert "holds a training that was cut off" in capsys.readouterr().err
    kill_at.clear()
    runs = compare.run(model, "", {}, 0, arguments("cut"))
    assert judged == [epoch for epoch in (1, 2, 4) for _ in range(ways)], "no stage is judged twice, none is left out"
    assert [{**r, "seconds": 0} for r in runs] == [{**r, "seconds": 0} for r in whole]
    lines = (tmp_path / "cut" / f"{model}-0" / "results.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines] == [1, 2, 3, 4], "no epoch is trained twice"
    if model == "erpose-n":  # whose runs resume exactly; the pictures of each epoch are those that it would have seen
        weights = [torch_load(tmp_path / t / f"{model}-0" / "weights" / "last.pt")["model"].state_dict() for t in ("whole", "cut")]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    judged.clear()
    compare.run(model, "", {}, 0, arguments("cut"))
    assert judged[0] == 1, "one that came to its end is trained anew when its entry was deleted"
