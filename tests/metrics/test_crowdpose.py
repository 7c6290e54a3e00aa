"""CrowdPose metrics against xtcocotools, on made-up persons and perturbed predictions."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_coco import make_truth, perturb

from erpose_yolo.data.skeletons import CROWDPOSE_14
from erpose_yolo.metrics import crowdpose
from erpose_yolo.metrics.predictions import Predictions, to_records
from erpose_yolo.metrics.truth import GroundTruth, from_annotations


@pytest.fixture(scope="module")
def xtcocotools() -> Any:
    """xtcocotools' coco and cocoeval.

    Its wheels on PyPI are built against an older numpy and fail to import with a newer one. What fails is its C module
    for segment masks, which keypoints never touch: pycocotools' own, from the same source, takes its place then.
    """
    pytest.importorskip("xtcocotools", reason="test dependency: pip install xtcocotools")
    try:
        importlib.import_module("xtcocotools.mask")
    except (ImportError, ValueError):
        sys.modules["xtcocotools._mask"] = importlib.import_module("pycocotools._mask")
    return importlib.import_module("xtcocotools.coco"), importlib.import_module("xtcocotools.cocoeval")


def make_crowd(rng: np.random.Generator) -> GroundTruth:
    """CrowdPose-like persons: no segment area, num_keypoints of visible keypoints alone, a crowd index per image."""
    images = int(rng.integers(1, 8))
    truth = make_truth(rng, images, int(rng.integers(1, 6)), 14)
    some = rng.random(len(truth.area)) < 0.1
    truth.keypoints[some, :, 2] = np.minimum(truth.keypoints[some, :, 2], 1)  # labelled, but none visible
    return replace(
        truth,
        area=truth.box[:, 2] * truth.box[:, 3] * 0.53,
        seen=(truth.keypoints[..., 2] == 2).sum(1),
        crowd_index=rng.choice([0.0, 0.1, 0.2, 0.5, 0.8, 1.0], images),
    )


def judge(modules: Any, folder: Path, truth: GroundTruth, found: Predictions) -> tuple[dict[str, float], list[float]]:
    """xtcocotools' nine figures, and AP of easy, medium and hard images before it rounds them to four digits."""
    coco, cocoeval = modules
    content = truth.to_coco()
    for entry in content["annotations"]:
        del entry["area"]
    file = folder / "crowdpose.json"
    file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO(str(file))
        dt = gt.loadRes(to_records(found, truth))
        dt_file = gt.anno_file  # get_type_result reads the annotation file again
        assert dt_file[0] == str(file)
        sigmas = np.array(CROWDPOSE_14.sigmas)
        evaluation = cocoeval.COCOeval(gt, dt, "keypoints_crowd", sigmas, use_area=False)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        exact = []
        for part in evaluation.split(str(file), 0.2, 0.8):
            evaluation.params.imgIds = part
            evaluation.evaluate()
            evaluation.accumulate()
            exact.append(float(np.mean(evaluation.eval["precision"][:, :, :, 0, :])))
    return dict(zip(crowdpose.STATS, evaluation.stats.tolist())), exact


def assert_same(ours: dict[str, float], theirs: dict[str, float], exact: list[float]) -> None:
    for name in crowdpose.STATS[:6]:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
    for name, value in zip(crowdpose.STATS[6:], exact):
        assert ours[name] == pytest.approx(value, abs=1e-6), name
        assert ours[name] == pytest.approx(theirs[name], abs=0.5e-4 + 1e-9), name  # what it prints is rounded


def test_equals_xtcocotools(xtcocotools: Any, tmp_path: Path) -> None:
    """300 cases; one test, so that they cost seconds."""
    undefined = ignored = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth = make_crowd(rng)
        found = perturb(rng, truth)
        found.keypoints[rng.random(len(found.score)) < 0.05, :, 2] = 0  # no keypoint visible: xtcocotools drops it
        theirs, exact = judge(xtcocotools, tmp_path, truth, found)
        ours = crowdpose.evaluate_crowdpose(truth, found)
        assert_same(ours, theirs, exact)
        read = from_annotations(tmp_path / "crowdpose.json", 14)
        assert crowdpose.evaluate_crowdpose(read, found) == ours  # from the file, which has no areas
        undefined += -1 in exact
        ignored += int((truth.seen == 0).any())
    assert undefined > 10 and ignored > 10  # the special cases were there


def test_parity_can_fail(xtcocotools: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = make_crowd(rng)
    found = perturb(rng, truth)
    theirs, exact = judge(xtcocotools, tmp_path, truth, found)
    for other in (
        crowdpose.evaluate_crowdpose(truth, found, np.array(CROWDPOSE_14.sigmas) * 0.9),
        crowdpose.evaluate_crowdpose(replace(truth, area=truth.area * 1.5), found),
    ):
        with pytest.raises(AssertionError):
            assert_same(other, theirs, exact)


def persons(*boxes_and_keypoints: tuple[tuple[float, ...], list[tuple[float, float]]]) -> GroundTruth:
    """One image; each person a box and its keypoints, all visible."""
    k = max(len(points) for _, points in boxes_and_keypoints)
    keypoints = np.zeros((len(boxes_and_keypoints), k, 3))
    for n, (_, points) in enumerate(boxes_and_keypoints):
        keypoints[n, : len(points), :2], keypoints[n, : len(points), 2] = points, 2
    box = np.array([b for b, _ in boxes_and_keypoints], float)
    n = len(box)
    zeros = np.zeros(n, int)
    category = [{"id": 1, "name": "person"}]
    seen = (keypoints[..., 2] > 0).sum(1)
    return GroundTruth([1], ["1.jpg"], zeros, zeros, keypoints, box, box[:, 2] * box[:, 3], zeros > 0, seen, category,
                       "labels", "made up", None, 1)  # fmt: skip


def test_crowd_index_by_hand() -> None:
    left, right = ((0, 0, 10, 10), [(1, 1), (2, 2), (9, 9), (8, 5)]), ((8, 0, 10, 10), [(9, 3), (15, 5)])
    # the left box holds one of the right person's two keypoints; the right box two of the left person's four
    assert crowdpose.crowd_index(persons(left, right)) == pytest.approx([(1 / 4 + 2 / 2) / 2])
    assert crowdpose.crowd_index(persons(left)) == [0]
    assert crowdpose.crowd_index(persons(left, left)) == [1]
    inside = ((4, 4, 1, 1), [(4.5, 4.5)])
    assert crowdpose.crowd_index(persons(inside, *[left] * 9)) <= 1
    hidden = persons(left, right)
    hidden.keypoints[1, :, 2] = 0
    assert crowdpose.crowd_index(hidden) == [0]


def test_index_of_the_annotations_wins() -> None:
    truth = make_crowd(np.random.default_rng(2))
    index, origin = crowdpose.with_crowd_index(truth)
    assert index is truth.crowd_index and "annotations" in origin
    index, origin = crowdpose.with_crowd_index(replace(truth, crowd_index=None))
    assert index.shape == (len(truth.ids),) and "1812.00324" in origin and index.min() >= 0 and index.max() <= 1


def test_labels_count_visible_keypoints_alone() -> None:
    truth = persons(((0, 0, 10, 10), [(1, 1), (2, 2)]))
    truth.keypoints[0, :, 2] = 1
    assert crowdpose.as_crowdpose(truth).ignore.tolist() == [True] and truth.ignore.tolist() == [False]


def test_table_states_the_rules() -> None:
    rng = np.random.default_rng(3)
    truth = make_crowd(rng)
    figures = crowdpose.evaluate_crowdpose(truth, perturb(rng, truth))
    out = crowdpose.table(figures, truth, *crowdpose.with_crowd_index(truth))
    assert f"type=  hard | maxDets= 20 ] = {figures['AP_hard']:0.3f}" in out
    assert "xtcocotools" in out and "index below 0.2" in out and "of the annotations" in out
