"""How far labelled keypoints are from where a model says that they are, in the standard deviations that it gives itself.

Shapes: N pairs of a predicted and a labelled person, K keypoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erpose_yolo.method.errorbars import spreads
from erpose_yolo.method.oks import object_area
from erpose_yolo.metrics.matching import match, pair_oks
from erpose_yolo.metrics.predictions import Predictions
from erpose_yolo.metrics.truth import GroundTruth

MATCH_OKS = 0.1  # a stricter match would leave out the errors that error bars are to tell of


@dataclass(frozen=True)
class Errors:
    """Errors of matched persons.

    Attributes:
        ratio: (N, K) distance between predicted and labelled keypoint, in standard deviations.
        labelled: (N, K) bool.
        spread: (N, K) spreads in tolerances (errorbars.spreads).
        visibility: (N, K) as predicted.
        expected: (N,) OKS that is expected of each person (``result.erpose.oks``).
        true: (N,) OKS.
    """

    ratio: np.ndarray
    labelled: np.ndarray
    spread: np.ndarray
    visibility: np.ndarray
    expected: np.ndarray
    true: np.ndarray


def measure_errors(results: Iterable[Any], truth: GroundTruth, sigmas: np.ndarray) -> Errors:
    """Match the persons of results with labelled ones and compare their keypoints.

    Args:
        results: Results with error bars, of images of the ground truth.
        truth: labelled persons.
        sigmas: (K,) OKS sigmas.

    Raises:
        ValueError: results without error bars, or of other images.
    """
    k = truth.keypoints.shape[1]
    image, category, score, points, boxes, bars, hopes = [], [], [], [], [], [], []
    for result in results:
        if getattr(result, "erpose", None) is None:
            raise ValueError(f"{result.path}: results without error bars. Take a model with spreads.")
        found = result.cpu().numpy()
        image.append(np.full(len(found), truth.find([result.path])[0]))
        category.append(found.boxes.cls.astype(np.int64))
        score.append(found.boxes.conf.astype(np.float64))
        xy, seen = found.keypoints.xy, found.keypoints.conf
        seen = np.ones(xy.shape[:2]) if seen is None else seen
        points.append(np.concatenate((xy, seen[..., None]), 2).astype(np.float64).reshape(-1, k, 3))
        boxes.append(found.boxes.xyxy.astype(np.float64))
        bars.append(found.erpose.sigma.astype(np.float64))
        hopes.append(found.erpose.oks.astype(np.float64))
    keypoints, box, sigma = np.concatenate(points), torch.from_numpy(np.concatenate(boxes)), np.concatenate(bars)
    area = object_area(box)
    predictions = Predictions(np.concatenate(image), np.concatenate(category), np.concatenate(score), keypoints, area.numpy())
    matches = match(truth, predictions, sigmas, np.array([MATCH_OKS]), max_dets=max(map(len, points), default=1))
    pairs = [(m.prediction[n], m.person[p]) for m in matches for n, p in enumerate(m.match[0, 0].tolist()) if p >= 0]
    pairs = [(n, p) for n, p in pairs if truth.seen[p] and not truth.crowd[p]]
    ours, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    labelled = truth.keypoints[theirs, :, 2] > 0
    distance = np.linalg.norm(keypoints[ours, :, :2] - truth.keypoints[theirs, :, :2], axis=2)
    spread = spreads(torch.from_numpy(sigma[ours]), box[ours], torch.from_numpy(sigmas)).numpy()
    expected = np.concatenate(hopes)[ours]
    true = pair_oks(keypoints, truth.keypoints, truth.area, truth.box, sigmas, ours, theirs)
    return Errors(distance / sigma[ours], labelled, spread, keypoints[ours, :, 2], expected, true)


def calibration_error(expected: np.ndarray, true: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (arXiv 1706.04599): |mean expected - mean true| of bins of equal width, weighed by their size."""
    place = np.minimum((expected * bins).astype(int), bins - 1)
    gaps = [abs(float((expected - true)[place == i].sum())) for i in range(bins)]
    return sum(gaps) / max(len(expected), 1)
