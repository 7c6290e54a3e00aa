"""benchmarks/accuracy/ap_breakdown.py: AP of groups of persons, and of boxes, on made-up persons whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common
from benchmarks.accuracy import ap_breakdown
from erpose_yolo.metrics import coco
from erpose_yolo.metrics.predictions import Predictions, extent_area
from erpose_yolo.metrics.truth import GroundTruth, from_labels

SIGMAS = coco.exact_sigmas(17)
IMAGES, PERSONS = 40, 3


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    """Three persons each in 40 images of 200 x 100 px, one in ten without labelled keypoints."""
    rng = np.random.default_rng(0)
    labels = []
    for n in range(IMAGES):
        side = rng.uniform((0.05, 0.2), (0.2, 0.9), (PERSONS, 2))
        centre = np.stack((np.array([0.2, 0.5, 0.8]), rng.uniform(0.45, 0.55, PERSONS)), 1)
        keypoints = centre[:, None] + rng.uniform(-0.5, 0.5, (PERSONS, 17, 2)) * side[:, None]
        seen = np.where(rng.random((PERSONS, 17)) < rng.random((PERSONS, 1)), 2, rng.integers(0, 2, (PERSONS, 17)))
        seen[rng.random(PERSONS) < 0.1] = 0
        labels.append(
            {
                "im_file": f"{n}.jpg",
                "shape": (100, 200),
                "cls": np.zeros((PERSONS, 1)),
                "bboxes": np.concatenate((centre, side), 1),
                "keypoints": np.concatenate((keypoints, seen[..., None]), 2),
            }
        )
    return from_labels(labels, {0: "person"})


def _predictions(truth: GroundTruth, keypoints: np.ndarray, score: np.ndarray, image: np.ndarray) -> Predictions:
    return Predictions(image, np.zeros(len(score), int), score, keypoints, extent_area(keypoints))


@pytest.fixture(scope="module")
def perfect(truth: GroundTruth) -> Predictions:
    """The labelled persons themselves, with random scores."""
    some = ~truth.ignore
    score = np.random.default_rng(1).random(int(some.sum()))
    return _predictions(truth, truth.keypoints[some], score, truth.image[some])


@pytest.fixture(scope="module")
def noisy(truth: GroundTruth) -> Predictions:
    """Persons found badly, some twice, and strays, in the middle and far from all."""
    rng = np.random.default_rng(2)
    who = rng.choice(len(truth.image), 200)
    size = np.sqrt(truth.area[who])[:, None, None]
    keypoints = truth.keypoints[who, :, :2] + rng.normal(size=(200, 17, 2)) * size * rng.gamma(1, 0.1, (200, 1, 1))
    strays = np.concatenate((rng.uniform(0, 100, (30, 17, 2)), rng.uniform(5000, 6000, (10, 17, 2))))
    image = np.concatenate((truth.image[who], rng.integers(0, IMAGES, 40)))
    keypoints = np.concatenate((np.concatenate((keypoints, strays)), np.ones((240, 17, 1))), 2)
    return _predictions(truth, keypoints, rng.random(240), image)


def _masks(truth: GroundTruth) -> list[np.ndarray]:
    return [mask for axis in ap_breakdown.split(truth, 200).values() for mask in axis.values()]


def test_bins_are_those_of_the_definition(truth: GroundTruth) -> None:
    bins = ap_breakdown.split(truth, imgsz=100)  # images of 200 px, so heights are halved
    height = truth.box[:, 3] / 2
    hidden = np.array([sum(v != 2 for v in row) / 17 for row in truth.keypoints[..., 2]])
    assert (bins["occluded share"]["0.1 to 0.25"] == ((hidden >= 0.1) & (hidden < 0.25))).all()
    assert (bins["occluded share"]["from 0.5"] == (hidden >= 0.5)).all()
    assert (bins["height, px"]["24 to 40"] == ((height >= 24) & (height < 40))).all()
    assert list(bins["height, px"]) == ["0 to 24", "24 to 40", "40 to 64"]  # 90 % of 100 px is 45 px here: no higher ones
    for axis in bins.values():
        assert (np.sum(list(axis.values()), 0) == 1).all()
    blind = replace(truth, keypoints=np.concatenate((truth.keypoints[..., :2], np.ones_like(truth.keypoints[..., :1])), -1))
    with pytest.raises(ValueError, match="visible"):
        ap_breakdown.split(blind, 100)
    with pytest.raises(ValueError, match="height"):
        ap_breakdown.split(replace(truth, sizes=None), 100)


def test_perfect_predictions_are_perfect_in_every_bin(truth: GroundTruth, perfect: Predictions) -> None:
    rows = ap_breakdown.by_group(truth, perfect, SIGMAS, _masks(truth))
    assert len(rows) >= 7 and all(row["persons"] > 0 for row in rows)
    assert all(row["AP"] == pytest.approx(1) and row["recall"] == 1 for row in rows)


def test_one_bin_of_all_is_coco(truth: GroundTruth, noisy: Predictions) -> None:
    everyone = ap_breakdown.by_group(truth, noisy, SIGMAS, [np.ones(len(truth.image), bool)])[0]
    whole = coco.evaluate_coco(truth, noisy, SIGMAS, log=None)
    assert 0.1 < whole["AP"] < 0.9  # neither trivially good nor bad
    assert (everyone["AP"], everyone["recall"]) == (whole["AP"], whole["AR50"])
    assert everyone["persons"] == int((~truth.ignore).sum())


def test_recall_is_pycocotools_with_the_others_ignored(truth: GroundTruth, noisy: Predictions) -> None:
    masks = _masks(truth)
    for mask, row in zip(masks, ap_breakdown.by_group(truth, noisy, SIGMAS, masks)):
        theirs = coco.reference_evaluation(replace(truth, seen=np.where(mask, truth.seen, 0)), noisy, SIGMAS)
        assert row["recall"] == theirs["AR50"]
        assert row["AP"] >= theirs["AP"]  # which blames a bin for what nobody takes in other bins


def test_a_bin_not_found_is_the_only_one_that_suffers(truth: GroundTruth, perfect: Predictions) -> None:
    for axis in ap_breakdown.split(truth, 200).values():
        masks = list(axis.values())
        for lost, mask in enumerate(masks):
            found = perfect.select(~mask[~truth.ignore])
            rows = ap_breakdown.by_group(truth, found, SIGMAS, masks)
            assert [row["recall"] for row in rows] == [float(n != lost) for n in range(len(masks))]
            assert [row["AP"] for row in rows] == pytest.approx([float(n != lost) for n in range(len(masks))])


def test_a_wrong_prediction_counts_where_it_fits_best(truth: GroundTruth, perfect: Predictions) -> None:
    masks = list(ap_breakdown.split(truth, 200)["occluded share"].values())

    def with_extra(keypoints: np.ndarray, image: np.ndarray) -> list[float]:
        parts = (perfect.image, image), (perfect.keypoints, keypoints), (perfect.score, np.full(len(image), 2.0))
        image, keypoints, score = (np.concatenate(part) for part in parts)
        found = _predictions(truth, keypoints, score, image)
        return [row["AP"] for row in ap_breakdown.by_group(truth, found, SIGMAS, masks)]

    for b, mask in enumerate(masks):
        person = np.flatnonzero(mask & ~truth.ignore)
        beside = truth.keypoints[person] + [5, 0, 0]  # no match at high thresholds, but nearest to this person
        ap = with_extra(beside, truth.image[person])
        assert ap[b] < 0.95
        assert [v for n, v in enumerate(ap) if n != b] == pytest.approx([1.0] * (len(masks) - 1))
    far = np.tile([[[9e4, 9e4, 1.0]]], (20, 17, 1))
    assert max(with_extra(far, np.arange(20))) < 0.95  # fits nobody: every bin's


def test_equal_numbers_ask_nothing_of_the_scores(truth: GroundTruth, perfect: Predictions, noisy: Predictions) -> None:
    """The best predictions are taken however sure of itself a model is, and as many of each."""
    persons = int((~truth.ignore).sum())
    shown = ap_breakdown.at_equal_numbers(truth, perfect, SIGMAS)
    for share in ap_breakdown.SHOWN:
        rates = shown[f"{share:g}"]
        assert rates["misses"] == pytest.approx(1 - min(1, round(share * persons) / persons)) and rates["duplicates"] == 0
        assert (perfect.score >= rates["score"]).sum() == min(persons, round(share * persons))
    modest = ap_breakdown.at_equal_numbers(truth, replace(noisy, score=noisy.score**3 / 10), SIGMAS)
    for share, rates in ap_breakdown.at_equal_numbers(truth, noisy, SIGMAS).items():
        assert {k: modest[share][k] for k in ("misses", "duplicates")} == {k: rates[k] for k in ("misses", "duplicates")}
    assert 0 < modest["1.2"]["duplicates"] < modest["1.2"]["misses"] < modest["0.3"]["misses"] < 1
    nobody = ap_breakdown.at_equal_numbers(truth, noisy.select(noisy.score > 2), SIGMAS)
    assert all(rates["misses"] == 1 and rates["duplicates"] == 0 for rates in nobody.values())


def test_box_ap(truth: GroundTruth) -> None:
    records = [
        {"image_id": truth.ids[i], "category_id": 1, "score": 0.5, "bbox": box.tolist()}
        for i, box, skip in zip(truth.image, truth.box, truth.ignore)
        if not skip  # boxes without keypoints are regions: no miss
    ]
    assert ap_breakdown.box_ap(truth, records) == pytest.approx({"AP": 1.0, "AP50": 1.0})
    regions = [{"image_id": truth.ids[truth.image[n]], "category_id": 1, "score": 0.9, "bbox": truth.box[n].tolist()}
               for n in np.flatnonzero(truth.ignore)]  # fmt: skip
    assert regions and ap_breakdown.box_ap(truth, records + regions)["AP"] == pytest.approx(1.0)  # nor a false alarm
    loose = [{**r, "bbox": [r["bbox"][0], r["bbox"][1], r["bbox"][2], 0.72 * r["bbox"][3]]} for r in records]
    assert ap_breakdown.box_ap(truth, loose) == pytest.approx({"AP": 0.5, "AP50": 1.0})  # IoU .72: five of ten thresholds
    wrong = [{**r, "bbox": [r["bbox"][0] + 1000, *r["bbox"][1:]]} for r in records]
    assert ap_breakdown.box_ap(truth, wrong) == {"AP": 0.0, "AP50": 0.0}
    assert ap_breakdown.box_ap(truth, []) == {"AP": 0.0, "AP50": 0.0}


def test_another_model_is_added_to_a_table(
    truth: GroundTruth,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows of models whose weights are gone stay as they are; those of other images are refused."""

    def evaluate(weights: str, data: str, save_dir: Path, **_: object) -> dict[str, dict[str, float]]:
        save_dir.mkdir(parents=True)
        (save_dir / "predictions.json").write_text("[]")
        return {"coco": {"AP": float(Path(weights).stem)}}

    monkeypatch.setattr(ap_breakdown, "evaluate", evaluate)
    monkeypatch.setattr(ap_breakdown, "read_truth", lambda *_: (truth, {}))

    def call(size: int, *weights: str) -> dict[str, list[float]]:
        for text in weights:
            (tmp_path / text.split("=")[1]).touch()
        files = [f"{name}={tmp_path / file}" for name, _, file in (text.partition("=") for text in weights)]
        words = f"ap_breakdown.py --data some.yaml --imgsz {size} --append --out {tmp_path / str(len(list(tmp_path.iterdir())))}"
        monkeypatch.setattr("sys.argv", [*words.split(), "--weights", *files])
        ap_breakdown.main()
        runs = common.read("ap-breakdown")["runs"]
        return {name: [r["AP"] for r in of] for name, of in runs.items()}

    assert call(100, "erpose-n=0.1.pt", "erpose-n=0.2.pt") == {"erpose-n": [0.1, 0.2]}
    both = call(100, "yolo26n-pose=0.3.pt")
    assert both == {"erpose-n": [0.1, 0.2], "yolo26n-pose one-to-one": [0.3], "yolo26n-pose NMS": [0.3]}
    assert call(100, "erpose-n=0.4.pt") == {**both, "erpose-n": [0.4]}, "given again: made anew"
    with pytest.raises(SystemExit):
        call(200, "erpose-n=0.5.pt")
    assert "has other images, some.yaml of 100 px" in capsys.readouterr().err
