"""benchmarks/accuracy/ablation.py: flipped images keep their labels, and every row is a model that learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import common
from benchmarks.accuracy import ablation, budget

BOX = np.array([60.0, 50.0, 30.0, 60.0])  # centre form, pixels


def person() -> np.ndarray:
    """(17, 3) keypoints spread over the box, on the centres of pixels."""
    places = np.random.default_rng(0).uniform(-0.45, 0.45, (17, 2)) * BOX[2:] + BOX[:2]
    return np.concatenate((places.astype(int) + 0.5, np.full((17, 1), 2.0)), 1)


def test_a_flipped_person_changes_sides_and_names() -> None:
    keypoints = person()
    keypoints[5] = 0
    image = np.zeros((3, 128, 128), np.uint8)
    for x, y in keypoints[keypoints[:, 2] > 0, :2].astype(int):
        image[:, y, x] = 255
    turned, boxes, moved = ablation.flipped((image, BOX[None], keypoints[None]))
    assert boxes[0, 0] == 128 - BOX[0]
    assert moved[0, 1].tolist() == [128 - keypoints[2, 0], *keypoints[2, 1:]], "the right eye is the left one now"
    assert moved[0, 6].tolist() == [0, 0, 0], "unlabelled stays unlabelled"
    assert all(turned[0, int(y), int(x)] == 255 for x, y, v in moved[0] if v)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["", *ablation.ROWS, *ablation.PARTS])
def test_every_row_trains(label: str) -> None:
    pytest.importorskip("benchmarks.variants")
    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 255, (3, 64, 64), dtype=np.uint8), BOX[None] / 2, person()[None] / [2, 2, 1]) for _ in range(2)]
    args = SimpleNamespace(images_seen=8, batch=2, lr=1e-3, device="cpu")
    (run,) = ablation.run("erpose-n", label, 0, args, samples, samples)
    assert run["mode"] == "" and len(run["curve"]) == 4 and all(0 <= stage["AP"] <= 1 for stage in run["curve"])


def test_rows_on_photos_have_half_the_budget_and_the_rate_of_the_comparison(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(args: Any, parser: Any) -> None:
        args.setup = {"epochs": args.epochs, "cutouts": args.cutouts}

    done: list[dict[str, Any]] = []
    monkeypatch.setattr(ablation, "prepare", prepare)
    monkeypatch.setattr(ablation, "complete", lambda args, todo, parser: done.extend(todo))
    common.put("compare-coco-people", {}, lambda record: {"rates": {"erpose-n": {"0.002": 0.2, "0.001": 0.1}, "other": {}}})
    words = f"ablation.py --track coco-people --data d.yaml --start-weights {tmp_path} --epochs 20"
    monkeypatch.setattr("sys.argv", words.split())
    ablation.main()
    assert [who["label"] for who in done] == ["", *ablation.PARTS] and {who["model"] for who in done} == {"erpose-n"}
    record = common.read("ablation-coco-people")
    assert record["setup"] == {"epochs": 10, "cutouts": None} and record["rates"] == {"erpose-n": {"0.002": 0.2, "0.001": 0.1}}
    assert all(budget.trainer_of("erpose-n", label) for label in ablation.PARTS)

    done.clear()
    monkeypatch.setattr("sys.argv", [*words.split(), "--only", "RLE", "--seeds", "1", "2"])
    ablation.main()
    assert [(who["label"], who["seed"]) for who in done] == [("", 1), ("RLE", 1), ("", 2), ("RLE", 2)]
