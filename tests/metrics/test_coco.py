"""COCO metrics against pycocotools itself, on made-up persons and perturbed predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from erpose_yolo.method.oks import COCO_SIGMAS, DEFAULT_SIGMA
from erpose_yolo.metrics import coco
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import (
    Collector,
    Predictions,
    extent_area,
    from_records,
    read_predictions,
    to_records,
    write_json,
)
from erpose_yolo.metrics.truth import GroundTruth, find_annotations, from_annotations, from_labels


def make_truth(
    rng: np.random.Generator, images: int = 6, people: int = 4, k: int = 17, classes: int = 1, side: float = 300.0
) -> GroundTruth:
    """Random persons: some without labelled keypoints, some crowd regions, some out of a range, some twice."""
    count = rng.integers(0, people + 1, images)
    image = np.repeat(np.arange(images), count)
    n = len(image)
    size = rng.uniform(5, side, (n, 1)) * [0.5, 1.0]
    corner = rng.uniform(0, 400, (n, 2))
    keypoints = np.concatenate((corner[:, None] + rng.uniform(0, 1, (n, k, 2)) * size[:, None], np.zeros((n, k, 1))), 2)
    keypoints[..., 2] = rng.choice(3, (n, k), p=[0.3, 0.2, 0.5])
    keypoints[rng.random(n) < 0.15, :, 2] = 0
    for i in range(1, n):
        if image[i] == image[i - 1] and rng.random() < 0.1:  # the same person twice: equal OKS, a tie to break
            keypoints[i], size[i], corner[i] = keypoints[i - 1], size[i - 1], corner[i - 1]
    keypoints[keypoints[..., 2] == 0] = 0
    keypoints = keypoints.round(2)
    return GroundTruth(
        ids=[int(i) for i in np.sort(rng.choice(10**6, images, replace=False))],
        names=[f"{i}.jpg" for i in range(images)],
        image=image,
        category=rng.integers(0, classes, n),
        keypoints=keypoints,
        box=np.concatenate((corner, size), 1).round(2),
        area=(size.prod(1) * rng.uniform(0.3, 0.9, n)).round(2),
        crowd=rng.random(n) < 0.08,
        seen=(keypoints[..., 2] > 0).sum(1),
        categories=[{"id": 10 * c + 1, "name": f"c{c}"} for c in range(classes)],
        source="annotations",
        area_rule="made up",
        annotated=images,
    )


def perturb(rng: np.random.Generator, truth: GroundTruth, copies: int = 3, strays: int = 3) -> Predictions:
    """Predictions: each person several times with noise of its own strength, strays, and scores with ties."""
    times = rng.integers(0, copies + 1, len(truth.area))
    person = np.repeat(np.arange(len(truth.area)), times)
    k = truth.keypoints.shape[1]
    noise = np.sqrt(truth.area[person])[:, None, None] * rng.choice([0, 0.02, 0.05, 0.2], (len(person), 1, 1))
    keypoints = truth.keypoints[person].copy()
    keypoints[..., :2] += rng.normal(size=(*keypoints.shape[:2], 2)) * noise
    stray = int(rng.integers(1, strays * len(truth.ids) + 1))  # at least one: pycocotools reads no empty results
    keypoints = np.concatenate((keypoints, rng.uniform(0, 500, (stray, k, 3)))).round(2)
    keypoints[..., 2] = 1
    image = np.concatenate((truth.image[person], rng.integers(0, len(truth.ids), stray)))
    category = np.concatenate((truth.category[person], rng.integers(0, len(truth.categories), stray)))
    order = rng.permutation(len(image))
    score = rng.random(len(image)).round(int(rng.integers(1, 4)))  # one decimal: many equal scores
    area = extent_area(keypoints) if rng.random() < 0.5 else rng.uniform(0, 2e4, len(image)).round(1)
    return Predictions(image[order], category[order], score, keypoints[order], area[order])


def images_of(truth: GroundTruth, keep: np.ndarray) -> GroundTruth:
    """The images where the mask ``keep`` (I,) holds."""
    of = keep[truth.image]
    persons = {n: getattr(truth, n)[of] for n in ("category", "keypoints", "box", "area", "crowd", "seen")}
    ids, names = ([value for value, k in zip(values, keep) if k] for values in (truth.ids, truth.names))
    return replace(truth, ids=ids, names=names, image=(np.cumsum(keep) - 1)[truth.image[of]], **persons)


def predictions_of(predictions: Predictions, keep: np.ndarray) -> Predictions:
    """Those of the images that :func:`images_of` keeps."""
    part = predictions.select(keep[predictions.image])
    return replace(part, image=(np.cumsum(keep) - 1)[part.image])


def assert_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert {name: ours[name] for name in coco.STATS} == theirs  # to the last bit


@pytest.mark.parametrize("seed", range(150))
def test_equals_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.choice([17, 17, 5, 14, 21]))
    truth = make_truth(rng, int(rng.integers(1, 8)), int(rng.integers(1, 7)), k, int(rng.integers(1, 4)))
    predictions = perturb(rng, truth)
    sigmas = coco.exact_sigmas(k) if rng.random() < 0.5 else rng.uniform(0.02, 0.12, k)
    assert_same(coco.evaluate_coco(truth, predictions, sigmas), coco.reference_evaluation(truth, predictions, sigmas))


def test_equals_pycocotools_beyond_twenty_predictions() -> None:
    rng = np.random.default_rng(1)
    truth = make_truth(rng, images=3, people=30)
    predictions = perturb(rng, truth, copies=4)
    assert np.bincount(predictions.image).max() > 20  # pycocotools' cap is at work
    figures = coco.evaluate_coco(truth, predictions, coco.exact_sigmas(17))
    assert_same(figures, coco.reference_evaluation(truth, predictions, coco.exact_sigmas(17)))
    uncapped = match(truth, predictions, coco.exact_sigmas(17), max_dets=1000)
    assert coco.stats_of(accumulate(uncapped)) != {name: figures[name] for name in coco.STATS}


def test_parity_can_fail() -> None:
    rng = np.random.default_rng(2)
    truth = make_truth(rng)
    predictions = perturb(rng, truth)
    other = coco.evaluate_coco(truth, predictions, coco.exact_sigmas(17) * 1.05)
    with pytest.raises(AssertionError):
        assert_same(other, coco.reference_evaluation(truth, predictions, coco.exact_sigmas(17)))


def test_sigmas_are_pycocotools_own() -> None:
    from pycocotools.cocoeval import Params

    theirs = Params("keypoints").kpt_oks_sigmas
    assert (coco.exact_sigmas(17) == theirs).all()
    assert (coco.exact_sigmas(17, COCO_SIGMAS) == theirs).all()  # as a data YAML spells them
    assert (coco.exact_sigmas(4) == DEFAULT_SIGMA).all()
    assert coco.exact_sigmas(2, [0.1, 0.3]).tolist() == [0.1, 0.3]
    with pytest.raises(ValueError, match="kpt_oks_sigmas must hold 3"):
        coco.exact_sigmas(3, [0.1, 0.1])


def test_constants_are_pycocotools_own() -> None:
    from pycocotools.cocoeval import Params

    from erpose_yolo.metrics import matching

    params = Params("keypoints")
    assert (params.iouThrs == matching.OKS_THRESHOLDS).all() and (params.recThrs == matching.RECALL_LEVELS).all()
    assert np.array_equal(params.areaRng, matching.AREA_RANGES) and params.maxDets == [matching.MAX_DETS]


def test_no_predictions_and_no_persons() -> None:
    rng = np.random.default_rng(3)
    truth = make_truth(rng)
    nothing = perturb(rng, truth).select(np.zeros(0, np.int64))
    figures = coco.evaluate_coco(truth, nothing, coco.exact_sigmas(17))
    assert figures["AP"] == figures["AR"] == 0
    empty = images_of(truth, ~np.isin(np.arange(len(truth.ids)), truth.image))
    assert coco.evaluate_coco(empty, nothing, coco.exact_sigmas(17))["AP"] == -1
    none = GroundTruth([], [], *(np.zeros(0, int),) * 2, np.zeros((0, 17, 3)), np.zeros((0, 4)), np.zeros(0),
                       np.zeros(0, bool), np.zeros(0, int), [{"id": 1, "name": "a"}], "labels", "none")  # fmt: skip
    assert coco.evaluate_coco(none, nothing, coco.exact_sigmas(17))["AP"] == -1


def test_predictions_that_are_not_finite_are_wrong_not_fatal() -> None:
    rng = np.random.default_rng(4)
    truth = make_truth(rng)
    predictions = perturb(rng, truth)
    predictions.keypoints[:] = np.nan
    figures = coco.evaluate_coco(truth, predictions, coco.exact_sigmas(17))
    assert figures["AP"] == 0


def test_a_part_is_evaluated_as_if_it_were_all() -> None:
    rng = np.random.default_rng(5)
    truth = make_truth(rng, images=8)
    predictions = perturb(rng, truth)
    keep = np.arange(8) % 2 == 0
    part, sigmas = predictions_of(predictions, keep), coco.exact_sigmas(17)
    figures = coco.evaluate_coco(images_of(truth, keep), part, sigmas)
    assert_same(figures, coco.reference_evaluation(images_of(truth, keep), part, sigmas))
    assert_same(coco.stats_of(accumulate(match(truth, predictions, sigmas), keep)), {n: figures[n] for n in coco.STATS})


def test_table_states_area_and_protocol() -> None:
    rng = np.random.default_rng(6)
    truth = make_truth(rng, images=9)
    assert 0 < truth.with_keypoints.sum() < 9
    found = perturb(rng, truth)
    figures = coco.evaluate_coco(truth, found, coco.exact_sigmas(17))
    out = coco.table(figures, truth)
    assert f"maxDets= 20 ] = {figures['AP']:0.3f}" in out and "made up" in out
    assert "COCO's protocol" in out and f"alone: {figures['AP_labelled']:0.3f}" in out
    labelled = images_of(truth, truth.with_keypoints)
    assert "Ultralytics' protocol" in coco.protocol(labelled)
    part = coco.evaluate_coco(labelled, predictions_of(found, truth.with_keypoints), coco.exact_sigmas(17))
    assert figures["AP_labelled"] == part["AP"] == part["AP_labelled"]


def test_keypoint_ap_of_arrays() -> None:
    rng = np.random.default_rng(7)
    keypoints = np.concatenate((rng.uniform(0, 200, (3, 17, 2)), np.full((3, 17, 1), 2.0)), 2)
    area = np.array([9000.0, 500.0, 40000.0])
    perfect = coco.keypoint_ap([(keypoints, area)], [(keypoints[..., :2], np.array([0.9, 0.8, 0.7]))], coco.exact_sigmas(17))
    assert set(perfect) == set(coco.STATS) and perfect["AP"] == perfect["AR"] == pytest.approx(1)
    none = coco.keypoint_ap([(keypoints, area)], [(keypoints[:0], np.zeros(0))], coco.exact_sigmas(17))
    assert none["AP"] == 0
    with pytest.raises(ValueError, match="1 images of truth, but 0"):
        coco.keypoint_ap([(keypoints, area)], [], coco.exact_sigmas(17))


# ground truth from files -------------------------------------------------------------------------------------------


def write_annotations(folder: Path, truth: GroundTruth, **changes: object) -> Path:
    file = folder / "annotations.json"
    file.write_text(json.dumps({**truth.to_coco(), **changes}))
    return file


def test_annotations_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    truth = make_truth(rng, classes=2)
    read = from_annotations(write_annotations(tmp_path, truth), 17, {0: "c0", 1: "c1"})
    for name in ("image", "category", "keypoints", "box", "area", "crowd", "seen"):
        assert np.array_equal(getattr(read, name), getattr(truth, name)), name
    assert list(read.ids) == list(truth.ids) and read.crowd_index is None
    swapped = from_annotations(tmp_path / "annotations.json", 17, ["c1", "c0"])
    assert np.array_equal(swapped.category, 1 - truth.category)
    part = from_annotations(tmp_path / "annotations.json", 17, ["c0", "c1"], images=["some/folder/3.png", "0.jpg"])
    assert list(part.names) == ["0.jpg", "3.jpg"] and part.annotated == 6
    assert "2 of the 6 annotated" in coco.protocol(part)


def test_pycocotools_reads_the_same_from_the_files(tmp_path: Path) -> None:
    """Nothing of ours between pycocotools and the two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(9)
    truth = make_truth(rng, images=12)
    annotations = write_annotations(tmp_path, truth)
    collector = Collector()
    found = perturb(rng, truth)
    for i, name in enumerate(truth.names):
        p = found.select(found.image == i)
        corners = np.concatenate((p.keypoints[..., :2].min(1) - 3, p.keypoints[..., :2].max(1) + 5), 1)
        collector.add(name, p.score, p.category, p.keypoints, corners)
    results = write_json(tmp_path / "predictions.json", collector.records(truth))
    gt = COCO(str(annotations))
    evaluation = COCOeval(gt, gt.loadRes(str(results)), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    theirs = dict(zip(coco.STATS, evaluation.stats.tolist()))
    sigmas = coco.exact_sigmas(17)
    live = coco.evaluate_coco(from_annotations(annotations, 17), collector.predictions(truth), sigmas)
    assert_same(live, theirs)
    assert_same(coco.evaluate_coco(truth, read_predictions(results, truth), sigmas), theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "'annotations' is missing"),
        ({"images": [{"id": 1}]}, "an image without 'id' or 'file_name'"),
        ({"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]}, r"classes \['c0'\].*\['dog', 'cat'\]"),
        ({"bbox": None}, "annotation 1: 'bbox' is missing"),
        ({"keypoints": [1.0] * 48}, "48 keypoint values, but 17 keypoints"),
        ({"keypoints": ["a"] * 51}, "keypoint values"),
        ({"keypoints": [float("nan")] * 51}, "NaN"),
        ({"area": float("inf")}, "infinite"),
        ({"image_id": -5}, "image_id -5 is not among"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, change: dict, message: str) -> None:
    content = make_truth(np.random.default_rng(10)).to_coco()
    for key, value in change.items():
        target = content if key in content else content["annotations"][0]
        if value is None:
            del target[key]
        else:
            target[key] = value
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        from_annotations(file, 17, ["c0"])


def test_truncated_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    file = write_annotations(tmp_path, make_truth(np.random.default_rng(11)))
    with pytest.raises(ValueError, match="Image 'nobody.jpg' is not in"):
        from_annotations(file, 17, images=["nobody.jpg"])
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": 640, "height": 480}
    file.write_text(json.dumps(content))
    truth = from_annotations(file, 17, images=["0.jpg", "1.jpg"])
    truth.check_sizes({"0.jpg": (480, 640), "1.jpg": (1, 1)})
    with pytest.raises(ValueError, match="64 x 48 px, but 640 x 480 px"):
        truth.check_sizes({"0.jpg": (48, 64)})
    file.write_text(file.read_text()[:-40])
    with pytest.raises(ValueError, match="annotations.json is truncated or not JSON"):
        from_annotations(file, 17)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        from_annotations(tmp_path / "absent.json", 17)


def test_annotations_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    data = {"path": tmp_path, "val": str(tmp_path / "val2017.txt")}
    assert find_annotations(data, "val") is None
    (folder / "person_keypoints_val.json").touch()
    assert find_annotations(data, "val") == folder / "person_keypoints_val.json"
    (folder / "person_keypoints_val2017.json").touch()
    assert find_annotations(data, "val") == folder / "person_keypoints_val2017.json"
    with pytest.raises(FileNotFoundError, match="'annotations: val:' of the data YAML"):
        find_annotations({**data, "annotations": {"val": "annotations/other.json"}}, "val")
    (folder / "other.json").touch()
    assert find_annotations({**data, "annotations": {"val": "annotations/other.json"}}, "val") == folder / "other.json"


def label(name: str, rows: int, d: int = 3) -> dict:
    rng = np.random.default_rng(rows)
    keypoints = np.concatenate((rng.random((rows, 5, 2)), np.full((rows, 5, 1), 2)), 2)[..., :d]
    boxes = np.full((rows, 4), [0.5, 0.5, 0.2, 0.4])
    return {"im_file": name, "shape": (100, 200), "cls": np.zeros((rows, 1)), "bboxes": boxes, "keypoints": keypoints}


def test_labels_in_original_pixels() -> None:
    truth = from_labels([label("b/12.jpg", 2), label("b/7.jpg", 1), label("b/3.jpg", 0)], {0: "person"})
    assert list(truth.ids) == [3, 7, 12] and truth.image.tolist() == [1, 2, 2]
    assert truth.box[0].tolist() == pytest.approx([80, 30, 40, 40])
    assert truth.area.tolist() == pytest.approx([0.53 * 1600] * 3)  # original pixels, not those of the network input
    assert "0.53 x width x height" in truth.area_rule and "original" in truth.area_rule
    assert truth.with_keypoints.tolist() == [False, True, True]
    assert list(from_labels([label("a.jpg", 1), label("3.jpg", 1)], ["p"]).ids) == ["3", "a"]
    assert list(from_labels([label("a/1.jpg", 1), label("b/1.jpg", 1)], ["p"]).names) == ["a/1.jpg", "b/1.jpg"]
    two = from_labels([label("a.jpg", 2, 2)], ["p"])
    assert two.keypoints.shape == (2, 5, 3) and (two.keypoints[..., 2] == 1).all()


def test_persons_without_keypoints_are_ignored() -> None:
    labels = [label("a.jpg", 2)]
    labels[0]["keypoints"][1, :, 2] = 0
    labels[0]["bboxes"][1, 0] = 0.9
    truth = from_labels(labels, ["p"])
    assert truth.ignore.tolist() == [False, True]
    # a prediction on the ignored person is neither right nor wrong
    keypoints = np.stack((truth.keypoints[0], np.full((5, 3), (180.0, 50.0, 1.0))))
    found = Predictions(np.zeros(2, int), np.zeros(2, int), np.array([0.5, 0.9]), keypoints, extent_area(keypoints))
    assert coco.evaluate_coco(truth, found, coco.exact_sigmas(5))["AP"] == pytest.approx(1)
    far = found.select(np.array([0, 1]))
    far.keypoints[1, :, 0] = 5
    assert coco.evaluate_coco(truth, far, coco.exact_sigmas(5))["AP"] == pytest.approx(0.5)


# predictions -------------------------------------------------------------------------------------------------------


def test_collector_keeps_what_counts_and_merges() -> None:
    collector, other = Collector(keep_score=0.5), Collector()
    score = np.linspace(1, 0, 50)
    collector.add("0.jpg", score, np.zeros(50), np.zeros((50, 17, 3)))
    assert len(collector.rows["0.jpg"][0]) == 25  # all from 0.5 on, more than 20
    collector.add("0.jpg", score / 10, np.arange(50) % 2, np.zeros((50, 17, 3)))  # again: replaces
    assert len(collector.rows["0.jpg"][0]) == 40  # 20 of each class
    other.add("1.jpg", [0.1], [0], np.zeros((1, 17, 2)), np.array([[1.0, 2.0, 4.0, 6.0]]))
    collector.merge([other])
    assert set(collector.rows) == {"0.jpg", "1.jpg"}
    truth = make_truth(np.random.default_rng(12), classes=2)
    assert len(collector.records(truth)) == 41
    assert collector.records(truth)[-1]["bbox"] == [1.0, 2.0, 3.0, 4.0]
    assert other.predictions(truth).area.tolist() == [12.0] and other.predictions(truth).keypoints.shape == (1, 17, 3)
    assert len(Collector().predictions(truth).score) == 0
    collector.add("2.jpg", [0.9, 0.8], [2, 0], np.zeros((2, 17, 3)), np.zeros((2, 4)))  # class 2 is not of the truth
    collector.add("0.jpg", score, np.zeros(50), np.zeros((50, 17, 3)), np.zeros((50, 4)))
    assert collector.predictions(truth).image.tolist() == [0] * 25 + [1, 2] and len(collector.records(truth)) == 27
    other.add("9.jpg", [0.1], [0], np.zeros((1, 17, 3)))
    with pytest.raises(ValueError, match="'9.jpg' is not in"):
        other.predictions(truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 424242424}, "number 1 is for image '424242424', which is not among the 6 images"),
        ({"category_id": 7}, "category_id 7 is none of"),
        ({"score": None}, "'score' is missing"),
        ({"keypoints": [0.0] * 9}, "9 keypoint values, but 17"),
        ({"keypoints": [float("nan")] * 51}, "NaN"),
    ],
)
def test_bad_predictions_are_named(tmp_path: Path, change: dict, message: str) -> None:
    rng = np.random.default_rng(13)
    truth = make_truth(rng)
    records = to_records(perturb(rng, truth), truth)
    for key, value in change.items():
        if value is None:
            del records[1][key]
        else:
            records[1][key] = value
    with pytest.raises(ValueError, match=message):
        from_records(records, truth)
    with pytest.raises(ValueError, match="a list of results was expected, got dict"):
        from_records({}, truth)


def test_predictions_are_found_by_file_name_where_ids_differ() -> None:
    rng = np.random.default_rng(14)
    truth = make_truth(rng)
    found = perturb(rng, truth)
    pairs = zip(to_records(found, truth), found.image)
    records = [{**record, "image_id": "x", "file_name": truth.names[i]} for record, i in pairs]
    assert np.array_equal(from_records(records, truth).image, found.image)


def test_write_json_leaves_nothing_incomplete(tmp_path: Path) -> None:
    file = write_json(tmp_path / "new" / "a.json", [{"a": 1.5}, {"b": 2}])
    assert json.loads(file.read_text()) == [{"a": 1.5}, {"b": 2}]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, [{"a": 1}, {"a": float("nan")}])
    assert json.loads(file.read_text()) == [{"a": 1.5}, {"b": 2}]  # the old one stands
    assert [f.name for f in file.parent.iterdir()] == ["a.json"]
    assert json.loads(write_json(file, []).read_text()) == []
