"""benchmarks/common.py: result files that several processes fill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common

SETUP = {"epochs": 4, "bins": (1, 2)}


def table(record: dict[str, Any]) -> str:
    return ", ".join(f"{r['model']} {r['seed']}" for r in record["runs"])


def test_a_second_process_adds_to_the_file(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[tuple[str, int]] = []

    def run(model: str, seed: int) -> list[dict[str, Any]]:
        begun.append((model, seed))
        if model == "b":  # meanwhile the other process ends its run
            file = results / "one.json"
            record = json.loads(file.read_text())
            file.write_text(json.dumps({**record, "runs": [*record["runs"], {"model": "c", "seed": 0, "machine": "there"}]}))
        return [{"mode": mode, "AP": 0.5} for mode in ("", " NMS")]

    todo = [{"model": model, "seed": 0} for model in "abc"]
    common.complete("one", SETUP, todo, run, table, lambda runs: sorted(runs, key=lambda r: r["model"], reverse=True))
    assert begun == [("a", 0), ("b", 0)], "what the other one has done is not repeated"
    runs = common.read("one")["runs"]
    assert [r["model"] for r in runs] == ["c", "b", "b", "a", "a"]
    assert runs[0] == {"model": "c", "seed": 0, "machine": "there"}, "the other's run stands as it wrote it"
    assert runs[1] == {"model": "b", "seed": 0, "mode": "", "AP": 0.5, "machine": common.machine()}
    assert "c 0, b 0, b 0, a 0, a 0" in capsys.readouterr().out


def test_another_setup_is_refused(results: Path) -> None:
    common.save("one", {"setup": SETUP, "runs": []}, table)
    assert common.finished("one", SETUP) == common.finished("none", SETUP) == []
    with pytest.raises(ValueError, match=r"one.json holds runs of another setup.*--name"):
        common.finished("one", {**SETUP, "epochs": 8})


def test_a_result_file_is_never_half_written(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that reads it while another one writes sees the old runs or the new ones."""
    common.save("one", {"setup": SETUP, "runs": []}, table)
    seen, write_text = [], Path.write_text

    def slow(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write_text(self, text[: len(text) // 2])
        seen.append(common.read("one")["runs"])
        return write_text(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", slow)
    common.save("one", {"setup": SETUP, "runs": [{"model": "a", "seed": 0, "machine": "here"}]}, table)
    assert seen == [[]] and len(common.finished("one", SETUP)) == 1
    assert [f.name for f in results.iterdir()] == ["one.json"]


def test_each_run_keeps_its_machine(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever machine adds the last row: a table may hold runs of several."""
    monkeypatch.setattr(common, "machine", lambda: "this laptop")
    there = [{"model": model, "seed": seed, "machine": "a GPU"} for model in ("erpose-n", "yolo26n-pose") for seed in (0, 1)]
    assert common.machines({"runs": there}) == "a GPU"
    here = [{"model": "yolo26n-pose", "seed": 2, "machine": "this laptop"}]
    here += [{"model": "erpose-n", "label": "heatmaps off", "seed": 0, "machine": "this laptop"}]
    assert common.machines({"runs": there + here}) == (
        "a GPU: erpose-n, yolo26n-pose (seed 0, 1); this laptop: yolo26n-pose (seed 2), erpose-n: heatmaps off"
    )
    common.save("none", {"rows": []}, lambda record: "")
    assert common.machines(common.read("none")) == "this laptop"


def test_images_keep_their_labels(tiny_dataset: Path) -> None:
    """Letterboxed to another size, a box still frames its keypoints, and a batch is what Ultralytics makes of them."""
    samples = common.load_split(tiny_dataset, "val", 96)
    assert len(samples) == 4 and all(image.shape == (3, 96, 96) for image, *_ in samples)
    for _, boxes, keypoints in samples:
        ends = common.corners(boxes).numpy()
        seen = keypoints[..., 2] > 0
        inside = (keypoints[..., :2] >= ends[:, None, :2] - 1) & (keypoints[..., :2] <= ends[:, None, 2:] + 1)
        assert inside.all(-1)[seen].all() and (keypoints[~seen] == 0).all()
    batch = common.collate(samples)
    assert batch["batch_idx"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.allclose(batch["bboxes"].numpy() * 96, np.concatenate([boxes for _, boxes, _ in samples]), atol=1e-3)
