"""CrowdPose: 14 keypoints, their sigmas, the crowd index, and AP of easy, medium and hard images.

The definition is xtcocotools.cocoeval with ``keypoints_crowd``; the data set is of arXiv 1812.00324. Two things that
differ from COCO: ``num_keypoints`` of its annotations counts visible keypoints (2) alone, and a person with none is
ignored even if occluded keypoints (1) are labelled; the area is 0.53 of the box, as there are no segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from erpose_yolo.method.sigmas import CROWDPOSE_SIGMAS
from erpose_yolo.metrics.coco import figure_lines, protocol
from erpose_yolo.metrics.matching import Matches, accumulate, match
from erpose_yolo.metrics.predictions import MAX_DETS, Predictions
from erpose_yolo.metrics.truth import GroundTruth

STATS = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard")

# Crowd index below which an image is easy, and from which on it is hard: xtcocotools' evaluation, which all published
# figures come from. The paper's text says 0.1 and 0.8.
EASY, HARD = 0.2, 0.8


def crowd_index(truth: GroundTruth) -> np.ndarray:
    """Crowd index of each image (I,) by the definition of the CrowdPose paper, section 4.1.

    Mean over the persons of an image of (keypoints of others inside the person's box) / (own keypoints), labelled keypoints
    only, and at most 1 as in the published annotations. Persons without labelled keypoints and crowd regions are left out;
    the index of an image without persons is 0. The indices that CrowdPose ships differ from this for some images (its
    authors' code is not public), so those of the file are taken where there are any.
    """
    use = ~truth.crowd & (truth.keypoints[..., 2] > 0).any(1)
    image, keypoints, box = truth.image[use], truth.keypoints[use], truth.box[use]
    labelled = keypoints[..., 2] > 0
    own = labelled.sum(1)
    total, number = np.zeros(len(truth.ids)), np.bincount(image, minlength=len(truth.ids))
    order = np.argsort(image, kind="stable")
    starts = np.cumsum(number) - number
    for i in np.flatnonzero(number > 1):  # alone means 0
        of = order[starts[i] : starts[i] + number[i]]
        low, high = box[of, :2], box[of, :2] + box[of, 2:]
        xy = keypoints[of, :, :2]  # (n, K, 2)
        inside = ((xy >= low[:, None, None]) & (xy <= high[:, None, None])).all(-1) & labelled[of]  # (box, person, K)
        inside = inside.sum(-1)
        others = inside.sum(1) - np.diagonal(inside)
        total[i] = (others / own[of]).sum()
    return np.minimum(total / np.maximum(number, 1), 1.0)


def with_crowd_index(truth: GroundTruth) -> tuple[np.ndarray, str]:
    """Crowd index (I,) of the annotations, or else computed, and a word on which it is."""
    if truth.crowd_index is not None:
        return truth.crowd_index, "of the annotations"
    return crowd_index(truth), "computed from the labels (arXiv 1812.00324, section 4.1)"


def by_crowding(matches: Sequence[Matches], index: np.ndarray) -> dict[str, float]:
    """AP of easy, medium and hard images, -1 where there are none."""
    parts = {"AP_easy": index < EASY, "AP_medium": (index >= EASY) & (index < HARD), "AP_hard": index >= HARD}
    # xtcocotools takes the plain mean, undefined classes (-1) included; with one class that is the same
    return {name: float(np.mean(accumulate(matches, mask).precision[..., 0])) for name, mask in parts.items()}


def as_crowdpose(truth: GroundTruth) -> GroundTruth:
    """Labels under CrowdPose's rule that visible keypoints alone make a person count; annotations carry it already."""
    return replace(truth, seen=(truth.keypoints[..., 2] == 2).sum(1)) if truth.source == "labels" else truth


def evaluate_crowdpose(
    truth: GroundTruth,
    predictions: Predictions,
    sigmas: np.ndarray | Sequence[float] = CROWDPOSE_SIGMAS,
) -> dict[str, float]:
    """CrowdPose's metrics.

    Args:
        truth: persons of the images to evaluate.
        predictions: of the same images; the best 20 of an image count. One without any visible keypoint is dropped.
        sigmas: (K,) OKS sigmas, CrowdPose's own by default.

    Returns:
        AP, AP50, AP75, AR, AR50, AR75, AP_easy, AP_medium, AP_hard; -1 where undefined.
    """
    truth = as_crowdpose(truth)
    predictions = predictions.select(np.asarray((predictions.keypoints[..., 2] > 0).any(1)))
    matches = match(truth, predictions, np.asarray(sigmas))
    curves = accumulate(matches)
    values = (
        curves.ap(), curves.ap(threshold=0), curves.ap(threshold=5),
        curves.ar(), curves.ar(threshold=0), curves.ar(threshold=5),
    )  # fmt: skip
    return {**dict(zip(STATS, values)), **by_crowding(matches, with_crowd_index(truth)[0])}


def table(figures: Mapping[str, float], truth: GroundTruth, index: np.ndarray, origin: str) -> str:
    """The figures as xtcocotools prints them, and what they stand for."""
    easy, hard = int((index < EASY).sum()), int((index >= HARD).sum())
    medium = len(index) - easy - hard
    lines = figure_lines(figures, STATS, "type")
    lines += [
        f" Images:  {protocol(truth)}",
        f" Crowd:   {easy:,} easy images (index below {EASY}), {medium:,} medium, {hard:,} hard (from {HARD} on); "
        f"crowd index {origin}",
        f" Area:    {truth.area_rule} ({truth.source})",
        f" Rules:   xtcocotools keypoints_crowd: the best {MAX_DETS} predictions of an image count; persons without a "
        "visible keypoint are ignored",
    ]
    return "\n".join(lines)
