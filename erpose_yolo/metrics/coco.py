"""Keypoint AP as pycocotools computes it: for COCO itself, and for any other keypoints, sigmas and classes.

The definition is https://cocodataset.org/#keypoints-eval as written in pycocotools.cocoeval; :func:`reference_evaluation` runs
pycocotools itself on the same persons and predictions.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np

from erpose_yolo.method.oks import sigmas_for
from erpose_yolo.method.sigmas import COCO_SIGMAS, DEFAULT_SIGMA
from erpose_yolo.metrics.matching import Curves, Matches, accumulate, match
from erpose_yolo.metrics.predictions import MAX_DETS, Predictions, extent_area, to_records
from erpose_yolo.metrics.truth import GroundTruth

STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def exact_sigmas(num_keypoints: int, custom: Sequence[float] | None = None) -> np.ndarray:
    """OKS sigmas (K,) in float64; COCO's to the bit as pycocotools has them.

    Raises:
        ValueError: see oks.sigmas_for.
    """
    sigmas_for(num_keypoints, custom)  # its checks, and its messages
    if custom is None and num_keypoints != len(COCO_SIGMAS):
        return np.full(num_keypoints, DEFAULT_SIGMA)
    sigmas = np.asarray(COCO_SIGMAS if custom is None else custom, np.float64).reshape(-1)
    if num_keypoints == len(COCO_SIGMAS) and np.allclose(sigmas, COCO_SIGMAS, rtol=0, atol=1e-6):
        return np.round(np.asarray(COCO_SIGMAS) * 10, 2) / 10  # .26 / 10 is not .026 in its last bit
    return sigmas


def stats_of(curves: Curves) -> dict[str, float]:
    """The ten figures of pycocotools by name, -1 where undefined."""
    values = (
        curves.ap(), curves.ap(threshold=0), curves.ap(threshold=5), curves.ap(1), curves.ap(2),
        curves.ar(), curves.ar(threshold=0), curves.ar(threshold=5), curves.ar(1), curves.ar(2),
    )  # fmt: skip
    return dict(zip(STATS, values))


def protocol(truth: GroundTruth) -> str:
    """One sentence on which images are evaluated."""
    images, keypoints = len(truth.ids), int(truth.with_keypoints.sum())
    part = f"{images:,}{f' of the {truth.annotated:,} annotated' if images < truth.annotated else ''} images"
    if keypoints == images and images < truth.annotated:
        return (
            f"{part}, each with labelled keypoints (Ultralytics' protocol, 2,346 images of val2017; COCO's own takes all "
            "5,000 and gives less)"
        )
    if keypoints == images:
        return f"all {part}, each with labelled keypoints (COCO's protocol would also take images without, and give less)"
    return f"{part} (COCO's protocol), of which {keypoints:,} with labelled keypoints"


def evaluate_coco(
    truth: GroundTruth,
    predictions: Predictions,
    sigmas: np.ndarray | Sequence[float],
    matches: Sequence[Matches] | None = None,
) -> dict[str, float]:
    """COCO's keypoint metrics.

    Args:
        truth: persons of the images to evaluate.
        predictions: of the same images; the best 20 of an image and class count, which is pycocotools' rule.
        sigmas: (K,) OKS sigmas.
        matches: those of :func:`matching.match`, where they are at hand.

    Returns:
        AP, AP50, AP75, APm, APl, AR, AR50, AR75, ARm, ARl over all images; the same with the suffix ``_labelled`` for
        AP and AR over the images with labelled keypoints alone; -1 where undefined.
    """
    matches = match(truth, predictions, np.asarray(sigmas)) if matches is None else matches
    figures = stats_of(accumulate(matches))
    labelled = truth.with_keypoints
    part = figures if labelled.all() else stats_of(accumulate(matches, labelled))
    return {**figures, "AP_labelled": part["AP"], "AR_labelled": part["AR"]}


def figure_lines(figures: Mapping[str, float], names: Sequence[str], kind: str) -> list[str]:
    """Figures as pycocotools and xtcocotools print them.

    Args:
        figures: by name, AP or AR first.
        names: which, in their order.
        kind: what groups of persons or images are told apart by.
    """
    lines = []
    for name in names:
        title = "Average Precision (AP)" if name.startswith("AP") else "Average Recall    (AR)"
        rest = name[2:].lstrip("_")
        oks, group = (f"0.{rest}", "all") if rest.isdigit() else ("0.50:0.95", rest or "all")
        group = {"m": "medium", "l": "large"}.get(group, group)
        lines.append(f" {title} @[ OKS={oks:<9} | {kind}={group:>6} | maxDets={MAX_DETS:>3} ] = {figures[name]:0.3f}")
    return lines


def table(figures: Mapping[str, float], truth: GroundTruth) -> str:
    """The figures as pycocotools prints them, and what they stand for."""
    lines = figure_lines(figures, STATS, "area")
    counted = int((~truth.ignore).sum())
    lines += [
        f" Images:  {protocol(truth)}",
        f" Persons: {counted:,} with labelled keypoints; {len(truth.area) - counted:,} without or crowd regions, ignored",
        f" Area:    {truth.area_rule} ({truth.source})",
        f" Rules:   pycocotools: the best {MAX_DETS} predictions of an image and class count",
    ]
    if 0 < truth.with_keypoints.sum() < len(truth.ids):
        lines.insert(11, f"          AP over those with labelled keypoints alone: {figures['AP_labelled']:0.3f}")
    return "\n".join(lines)


def reference_evaluation(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray | Sequence[float]) -> dict[str, float]:
    """The same ten figures by pycocotools itself, which is slower.

    Args:
        truth: persons.
        predictions: of the same images, at least one (pycocotools reads no empty results).
        sigmas: (K,) OKS sigmas.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth.to_coco()
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(to_records(predictions, truth)), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, (float(v) for v in evaluation.stats)))


def from_arrays(
    truth: Sequence[tuple[np.ndarray, np.ndarray]], found: Sequence[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[GroundTruth, Predictions]:
    """Persons and predictions of one class, from arrays.

    Args:
        truth: per image, keypoints (N, K, 3) in pixels with visibility, and areas (N,) in square pixels.
        found: per image, keypoints (M, K, 2 or 3) in pixels and scores (M,).
        k: number of keypoints K.

    Raises:
        ValueError: truth and found are not of the same images.
    """
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} images of truth, but {len(found)} of predictions")
    keypoints = np.concatenate([np.asarray(t[0], np.float64).reshape(-1, k, 3) for t in truth])
    poses = np.concatenate([np.asarray(f[0], np.float64)[..., :2].reshape(-1, k, 2) for f in found])
    low, high = keypoints[..., :2].min(1), keypoints[..., :2].max(1)
    persons = GroundTruth(
        ids=list(range(1, len(truth) + 1)),
        names=[str(i) for i in range(1, len(truth) + 1)],
        image=np.repeat(np.arange(len(truth)), [len(t[1]) for t in truth]),
        category=np.zeros(len(keypoints), np.int64),
        keypoints=keypoints,
        box=np.concatenate((low, high - low), 1),
        area=np.concatenate([np.asarray(t[1], np.float64) for t in truth]),
        crowd=np.zeros(len(keypoints), bool),
        seen=(keypoints[..., 2] > 0).sum(1),
        categories=[{"id": 1, "name": "person"}],
        source="arrays",
        area_rule="as given",
        annotated=len(truth),
    )
    predictions = Predictions(
        image=np.repeat(np.arange(len(found)), [len(f[1]) for f in found]),
        category=np.zeros(len(poses), np.int64),
        score=np.concatenate([np.asarray(f[1], np.float64) for f in found]),
        keypoints=poses,
        area=extent_area(poses),
    )
    return persons, predictions


def keypoint_ap(
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    sigmas: np.ndarray,
) -> dict[str, float]:
    """COCO keypoint metrics of one class, from arrays; the best 20 predictions of an image count.

    Args:
        truth, found: as :func:`from_arrays` takes them.
        sigmas: (K,) OKS sigmas.

    Returns:
        The ten figures of pycocotools by name, -1 where undefined.
    """
    persons, predictions = from_arrays(truth, found, len(sigmas))
    return stats_of(accumulate(match(persons, predictions, np.asarray(sigmas))))
