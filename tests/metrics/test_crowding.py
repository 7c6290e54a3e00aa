"""Duplicates, misses, figures per keypoint, and the images of all that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_coco import make_truth, perturb

from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.metrics import coco, crowding, keypoints, plots
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import Predictions, extent_area
from erpose_yolo.metrics.truth import GroundTruth

SIGMAS = coco.exact_sigmas(17)


def apart(images: int = 3, people: int = 4) -> GroundTruth:
    """Persons of 100 x 200 px, 300 px from each other, all keypoints visible."""
    rng = np.random.default_rng(0)
    n = images * people
    corner = np.stack((np.tile(np.arange(people) * 300.0, images), np.zeros(n)), 1)
    pose = rng.uniform(0, 1, (17, 2)) * (100, 200)
    points = np.concatenate((corner[:, None] + pose, np.full((n, 17, 1), 2.0)), 2)
    box = np.concatenate((corner, np.tile([100.0, 200.0], (n, 1))), 1)
    image, zeros = np.repeat(np.arange(images), people), np.zeros(n, int)
    return GroundTruth(list(range(images)), [f"{i}.jpg" for i in range(images)], image, zeros, points, box,
                       np.full(n, 10000.0), zeros > 0, np.full(n, 17), [{"id": 1, "name": "p"}], "labels", "made up",
                       None, images)  # fmt: skip


def found(truth: GroundTruth, person: list[int], score: list[float], shift: float = 0.0) -> Predictions:
    points = truth.keypoints[person] + (shift, 0, 0)
    return Predictions(truth.image[person], truth.category[person], np.array(score), points, extent_area(points))


def test_perfect_predictions_cost_nothing() -> None:
    truth = apart()
    cost = crowding.measure_crowding(truth, found(truth, list(range(12)), [0.9] * 12), SIGMAS)
    assert (cost.duplicate_rate, cost.miss_rate, cost.duplicate_label_rate) == (0, 0, 0)
    assert cost.persons.tolist() == [4, 4, 4] == cost.predictions.tolist()


def test_duplicates_and_misses_by_hand() -> None:
    truth = apart()
    # person 0 three times, person 1 once, person 4 (second image) twice, of which one below the threshold
    cost = crowding.measure_crowding(truth, found(truth, [0, 0, 0, 1, 4, 4], [0.9, 0.3, 0.8, 0.9, 0.9, 0.2]), SIGMAS)
    assert cost.duplicates.tolist() == [2, 0, 0] and cost.missed.tolist() == [2, 3, 4]
    assert cost.duplicate_rate == pytest.approx(2 / 12) and cost.miss_rate == pytest.approx(9 / 12)
    # far enough apart to be two persons, and other classes and images never repeat each other
    assert crowding.measure_crowding(truth, found(truth, [0, 1, 4], [0.9] * 3), SIGMAS).duplicate_rate == 0
    other = found(truth, [0, 0], [0.9, 0.8])
    other.category[1] = 1
    assert not crowding.repeated(other.image, other.category, other.score, other.keypoints, SIGMAS).any()


def test_the_thresholds_decide() -> None:
    truth = apart()
    pair = found(truth, [0, 0], [0.9, 0.8])
    pair.keypoints[1, :, 0] += 8
    same = pair.keypoints[1] - pair.keypoints[0]
    area = 0.53 * np.prod(np.ptp(pair.keypoints[0, :, :2], axis=0))
    oks = np.exp(-(same[:, :2] ** 2).sum(1) / (2 * area * (2 * SIGMAS) ** 2)).mean()
    assert 0.2 < oks < 0.95
    for threshold, duplicates in ((oks - 1e-6, 1), (oks + 1e-6, 0)):
        assert crowding.measure_crowding(truth, pair, SIGMAS, duplicate_oks=threshold).duplicates.sum() == duplicates
    assert crowding.measure_crowding(truth, pair, SIGMAS, score=0.85, duplicate_oks=0).duplicates.sum() == 0
    off = found(truth, [0], [0.9], shift=30)
    assert crowding.measure_crowding(truth, off, SIGMAS).missed.sum() == 12
    assert crowding.measure_crowding(truth, off, SIGMAS, found_oks=0.01).missed.sum() == 11


def test_no_cap_of_twenty_and_labels_have_a_floor() -> None:
    truth = apart(images=1, people=40)
    assert crowding.measure_crowding(truth, found(truth, list(range(40)), [0.9] * 40), SIGMAS).miss_rate == 0
    truth.keypoints[1] = truth.keypoints[0]
    assert crowding.measure_crowding(truth, found(truth, [], []), SIGMAS).duplicate_label_rate == pytest.approx(1 / 40)


def test_bins_hold_every_image_once() -> None:
    truth = apart()
    cost = crowding.measure_crowding(truth, found(truth, [0, 0, 4], [0.9, 0.8, 0.7]), SIGMAS)
    rows = crowding.against_index(cost, np.array([0.0, 0.2, 1.0]))
    assert [row["low"] for row in rows] == [0.0, 0.2, 0.8] and sum(row["persons"] for row in rows) == 12
    assert [row["duplicate_rate"] for row in rows] == [0.25, 0, 0]
    assert [row["miss_rate"] for row in rows] == [0.75, 0.75, 1]
    text = crowding.table(cost, rows, "made up")
    assert "0.0833 per labelled person" in text and "made up" in text


def test_keypoints_by_hand() -> None:
    truth = apart(images=1)
    guess = found(truth, [0, 1], [0.9, 0.8])
    guess.keypoints[0, 3, 0] += 15  # within 0.1 of 200 px, not within 0.05
    truth.keypoints[1, 5, 2] = 0
    cost = crowding.measure_crowding(truth, guess, SIGMAS)
    figures = keypoints.measure_keypoints(truth, cost.shown, cost.matches, SIGMAS)
    assert figures.labelled.tolist() == [4] * 5 + [3] + [4] * 11
    assert figures.oks[0] == 1 and figures.oks[3] == pytest.approx((1 + np.exp(-(15**2) / 2e4 / (2 * SIGMAS[3]) ** 2)) / 2)
    assert figures.pck[:, 3].tolist() == [0.25, 0.5, 0.5]
    assert figures.pck[0, 5] == pytest.approx(1 / 3)
    text = keypoints.table(figures, COCO_17.names)
    assert "left_ear" in text and "PCK@0.05" in text and "box" in text


def test_predictions_below_the_threshold_do_not_shift_the_keypoints() -> None:
    """The matches point into the shown predictions, not into all of them."""
    truth = apart(images=1)
    all_of_them = found(truth, [3, 2, 0, 1], [0.1, 0.1, 0.9, 0.8])
    cost = crowding.measure_crowding(truth, all_of_them, SIGMAS)
    assert (keypoints.measure_keypoints(truth, cost.shown, cost.matches, SIGMAS).oks == 1).all()


def test_nothing_found_and_no_box() -> None:
    truth = apart(images=1)
    none = crowding.measure_crowding(truth, found(truth, [], []), SIGMAS)
    figures = keypoints.measure_keypoints(truth, none.shown, none.matches, SIGMAS)
    assert np.isnan(figures.oks).all() and (figures.pck == 0).all()
    truth.box[:, 2:] = 0
    all_found = crowding.measure_crowding(truth, found(truth, [0, 1, 2, 3], [0.9] * 4), SIGMAS)
    assert (keypoints.measure_keypoints(truth, all_found.shown, all_found.matches, SIGMAS).pck == 1).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_images_are_drawn(tmp_path: Path, seed: int) -> None:
    import cv2

    rng = np.random.default_rng(seed)
    truth = make_truth(rng, images=30)
    guess = perturb(rng, truth)
    if seed:  # nothing predicted
        guess = guess.select(np.zeros(0, int))
    cost = crowding.measure_crowding(truth, guess, SIGMAS)
    rows = crowding.against_index(cost, rng.random(30))
    files = [
        plots.plot_precision_recall(accumulate(match(truth, guess, SIGMAS)), tmp_path / "pr.png"),
        plots.plot_calibration(cost.matches, tmp_path / "calibration.png"),
        plots.plot_crowding(rows, tmp_path / "crowding.png", 0.25),
    ]
    for file in files:
        image = cv2.imread(str(file))
        assert min(image.shape[:2]) > 400 and image.std() > 10
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)
