"""benchmarks/accuracy/paired.py: what is kept per photo gives the exact figures back, and intervals are of the same photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import paired
from erpose_yolo.metrics.coco import exact_sigmas, from_arrays
from erpose_yolo.metrics.crowdpose import with_crowd_index
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import Predictions
from erpose_yolo.metrics.truth import GroundTruth

SIGMAS = exact_sigmas(17)


def scene(rng: np.random.Generator, spread: float, photos: int = 30) -> tuple[GroundTruth, Predictions]:
    """Persons on photos, most of them found, ``spread`` px off, some twice, and some found where nobody is."""
    truth, found = [], []
    draw = np.random.default_rng(7)  # the same persons whatever is found
    for _ in range(photos):
        number = draw.integers(0, 5)
        people = draw.uniform(0, 400, (number, 1, 2)) + draw.uniform(0, 120, (number, 17, 2))
        truth.append((np.concatenate((people, np.full((number, 17, 1), 2.0)), 2), np.full(number, 120.0**2)))
        picked = people[rng.integers(0, number, number + 1)] if number else people
        strangers = rng.uniform(0, 400, (2, 17, 2))
        poses = np.concatenate((picked + rng.normal(0, spread, picked.shape) * rng.uniform(0, 3), strangers))
        found.append((np.concatenate((poses, np.ones((*poses.shape[:2], 1))), 2), rng.uniform(0.05, 1, len(poses))))
    return from_arrays(truth, found, 17)


def made_up(rng: np.random.Generator, spread: float) -> paired.Kept:
    return paired.keep(*scene(rng, spread), SIGMAS)


def test_figures_are_exact(tmp_path: Path) -> None:
    truth, found = scene(np.random.default_rng(0), 4.0)
    truth = replace(truth, seen=np.where(np.arange(len(truth.seen)) % 7 == 0, 0, truth.seen))  # ignored: void predictions
    paired.write(tmp_path / "one.npz", {"64": paired.keep(truth, found, SIGMAS)})
    kept = paired.read(tmp_path / "one.npz")["64"]
    matches = match(truth, found, SIGMAS)
    figures, crowd = paired.figures(kept), paired.at_number(truth, found, SIGMAS, paired.SHOWN)
    assert kept["void"].any() and 0.1 < figures["AP"][0] < 0.9
    assert figures["AP"][0] == pytest.approx(accumulate(matches).ap(), abs=1e-12)
    crowded = with_crowd_index(truth)[0] >= paired.CROWDED
    assert figures["crowded"][0] == pytest.approx(accumulate(matches, crowded).ap(), abs=1e-12) and 0 < crowded.sum() < 30
    assert figures["misses"][0] == pytest.approx(crowd.miss_rate) and figures["duplicates"][0] == pytest.approx(
        crowd.duplicate_rate
    )
    assert crowd.predictions.sum() == (~truth.ignore).sum(), "as many as persons"


def test_a_photo_drawn_twice_counts_twice() -> None:
    """As if it were in the data set two times, next to itself; a photo not drawn is not there."""
    truth, found = scene(np.random.default_rng(1), 4.0)
    kept, draws = paired.keep(truth, found, SIGMAS), np.ones((1, 30))
    draws[0, :5], draws[0, 5:9] = 2, 0
    chosen = np.concatenate((np.arange(5), np.arange(5), np.arange(9, 30)))
    again = {key: kept[key][chosen] for key in ("persons", "missed", "duplicates", "index")}
    places = [np.flatnonzero(chosen == photo) for photo in kept["photo"]]
    for key in ("right", "void"):
        again[key] = np.concatenate([np.repeat(value, len(p)) for value, p in zip(kept[key], places)])
    again["photo"] = np.concatenate(places)
    for name, value in paired.figures(kept, draws).items():
        assert value[0] == pytest.approx(paired.figures(again)[name][0], abs=1e-12), name


def test_intervals_are_of_the_same_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and itself differ by nothing however the photos are drawn; a worse one is surely worse."""
    monkeypatch.setattr(paired, "DRAWS", 200)
    good, poor = (made_up(np.random.default_rng(2), spread) for spread in (1.0, 6.0))
    assert all(value == [0, 0, 0] for value in paired.difference([good], [good, good]).values())
    by, low, high = paired.difference([good], [poor])["AP"]
    assert 0 < low < by < high
    with pytest.raises(ValueError, match="other photos"):
        paired.difference([good], [{**poor, "persons": poor["persons"][::-1]}])


def test_nobody_found_and_nobody_there() -> None:
    truth, found = scene(np.random.default_rng(3), 4.0)
    nothing = paired.keep(truth, found.select(found.score > 2), SIGMAS)
    assert paired.figures(nothing)["AP"][0] == 0 and paired.figures(nothing)["misses"][0] == 1
    empty = {**nothing, "persons": np.zeros(30, int)}
    assert paired.figures(empty)["AP"][0] == -1


def test_table_compares_at_equal_numbers() -> None:
    """Misses and duplicates are those at equal numbers of detections, and what the partner has more stands in brackets."""
    judged = {"AP": 0.1, "misses": 0.9, "duplicates": 0.8, "equal": {"crowded": 0.05, "misses": 0.5, "duplicates": 0.02}}
    point = {"AP": 0.1, "AP50": 0.3, "AP75": 0.04}
    run = {"model": "m", "mode": " NMS", "label": "less", "judged": {"64": judged}, "curve": [point] * 4, "lr": 0.1}
    more = {"AP": [0.2, 0.1, 0.3], "crowded": [0, 0, 0], "misses": [-0.1, -0.2, 0.01], "duplicates": [0.03, 0.02, 0.04]}
    record = {"setup": {"sizes": [64]}, "runs": [{**run, "seconds per 1,000": 7}], "differences": {"m: less NMS": {"64": more}}}
    cells = [cell.strip() for cell in paired.table(record).splitlines()[2].split("|")]
    assert cells[1] == "m NMS: less" and "10.0 [+20.0: 10.0 to 30.0]" in cells
    assert cells[8:11] == ["5.0 [+0.0: 0.0 to 0.0]", "50.0 [-10.0: -20.0 to 1.0]", "2.0 [+3.0: 2.0 to 4.0]"]
