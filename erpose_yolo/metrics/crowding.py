"""What crowds cost: one person found twice, and persons not found at all, both against the crowd index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erpose_yolo.method.oks import BOX_FILL
from erpose_yolo.metrics.matching import AREA_RANGES, Matches, match, pair_oks
from erpose_yolo.metrics.predictions import Predictions, best
from erpose_yolo.metrics.truth import GroundTruth

DEPLOYED_SCORE = 0.25  # Ultralytics' default conf of predict and track
DUPLICATE_OKS = 0.7  # the box IoU from which Ultralytics' NMS takes two detections for one, as an OKS
FOUND_OKS = 0.5
BINS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)  # left edges; easy, medium and hard of CrowdPose begin at some of them


@dataclass(frozen=True)
class Crowding:
    """Counts per image, at one score threshold.

    Attributes:
        persons: (I,) labelled persons.
        missed: (I,) of them without a prediction.
        duplicates: (I,) predictions that repeat a better-scored one.
        predictions: (I,) predictions above the score threshold.
        duplicate_labels: (I,) labelled persons that would count as duplicates of another if the labels were predictions: what the
            definition cannot tell from a duplicate.
        matches: those behind ``missed``, without a cap on predictions per image.
        shown: the predictions from the score threshold on, which the matches point into.
    """

    persons: np.ndarray
    missed: np.ndarray
    duplicates: np.ndarray
    predictions: np.ndarray
    duplicate_labels: np.ndarray
    matches: Sequence[Matches]
    shown: Predictions

    @property
    def duplicate_rate(self) -> float:
        """Duplicates per labelled person."""
        return float(self.duplicates.sum() / max(self.persons.sum(), 1))

    @property
    def duplicate_label_rate(self) -> float:
        """Twins per labelled person: the floor under the duplicate rate."""
        return float(self.duplicate_labels.sum() / max(self.persons.sum(), 1))

    @property
    def miss_rate(self) -> float:
        """Missed persons per labelled person."""
        return float(self.missed.sum() / max(self.persons.sum(), 1))


def repeated(
    image: np.ndarray,
    category: np.ndarray,
    score: np.ndarray,
    keypoints: np.ndarray,
    sigmas: np.ndarray,
    oks: float = DUPLICATE_OKS,
) -> np.ndarray:
    """Poses (M,) that repeat a better-scored pose of the same image and class.

    The better-scored pose stands for the truth in the OKS formula. Its area is 0.53 of the extent of its keypoints, the
    same for every model, whether its boxes are predicted, derived or absent.

    Args:
        image, category, score: (M,).
        keypoints: (M, K, 3) pixels and visibility; the keypoints of the better-scored pose with a visibility above 0 count.
        sigmas: (K,).
        oks: above it, two poses are one.

    Returns:
        (M,) mask.
    """
    order, _ = best(image, category, score, len(score))
    image, category, keypoints = image[order], category[order], keypoints[order]
    group = np.flatnonzero(np.r_[True, (np.diff(image) != 0) | (np.diff(category) != 0)]) if len(order) else order
    number = np.diff(np.append(group, len(order)))
    rank = np.arange(len(order)) - np.repeat(group, number)  # how many better ones there are
    later = np.repeat(np.arange(len(order)), rank)
    offset = np.cumsum(rank) - rank
    better = np.arange(len(later)) - np.repeat(offset, rank) + np.repeat(np.repeat(group, number), rank)
    labelled = keypoints[..., 2] > 0
    low = np.where(labelled[..., None], keypoints[..., :2], np.inf).min(1)
    high = np.where(labelled[..., None], keypoints[..., :2], -np.inf).max(1)
    some = np.asarray(labelled.any(1))
    side = np.where(some[:, None], high - np.where(some[:, None], low, 0), 0)
    box = np.concatenate((np.where(some[:, None], low, 0), side), 1)
    repeats = np.zeros(len(order), bool)
    step = 1 << 20  # pairs at a time: a crowd of 300 has 45,000
    for start in range(0, len(later), step):
        i, j = later[start : start + step], better[start : start + step]
        same = pair_oks(keypoints, keypoints, BOX_FILL * side.prod(1), box, sigmas, i, j)
        repeats[i[(same > oks) & some[i] & some[j]]] = True
    out = np.zeros(len(order), bool)
    out[order] = repeats
    return out


def measure_crowding(
    truth: GroundTruth,
    predictions: Predictions,
    sigmas: np.ndarray,
    score: float = DEPLOYED_SCORE,
    duplicate_oks: float = DUPLICATE_OKS,
    found_oks: float = FOUND_OKS,
) -> Crowding:
    """Count duplicates and misses.

    A duplicate is a prediction from ``score`` on whose OKS with a better-scored prediction of the same image and class
    exceeds ``duplicate_oks``, all keypoints counting. A person is missed if COCO's matching, at an OKS of ``found_oks``,
    gives it none of the predictions from ``score`` on; all of them take part, not the best 20 alone.

    Args:
        truth: persons.
        predictions: of the same images.
        sigmas: (K,).
        score: least score of a prediction that a user would see.
        duplicate_oks: above it, two predictions are of one person.
        found_oks: from it on, a person is found.
    """
    sigmas = np.asarray(sigmas, np.float64)
    shown = predictions.select(predictions.score >= score)
    images = len(truth.ids)
    all_keypoints = np.concatenate((shown.keypoints[..., :2], np.ones((*shown.keypoints.shape[:2], 1))), -1)
    double = repeated(shown.image, shown.category, shown.score, all_keypoints, sigmas, duplicate_oks)
    matches = match(truth, shown, sigmas, np.array([found_oks]), AREA_RANGES[:1], max_dets=len(shown.score) or 1)
    missed = np.zeros(images, np.int64)
    for m in matches:
        lost = ~m.ignore[0]
        lost[m.match[0, 0][m.match[0, 0] >= 0]] = False
        missed += np.bincount(m.image_of_person[lost], minlength=images)
    counts = ~truth.ignore
    people, kind, keypoints = truth.image[counts], truth.category[counts], truth.keypoints[counts]
    # the person with fewer labelled keypoints stands for the better-scored one: only its keypoints can be compared
    duplicate_labels = repeated(people, kind, -(keypoints[..., 2] > 0).sum(1).astype(float), keypoints, sigmas, duplicate_oks)
    return Crowding(
        persons=np.bincount(people, minlength=images),
        missed=missed,
        duplicates=np.bincount(shown.image[double], minlength=images),
        predictions=np.bincount(shown.image, minlength=images),
        duplicate_labels=np.bincount(people[duplicate_labels], minlength=images),
        matches=matches,
        shown=shown,
    )


def against_index(crowding: Crowding, index: np.ndarray) -> list[dict[str, float]]:
    """Rates in bins of the crowd index.

    Args:
        crowding: counts per image.
        index: (I,) crowd index.

    Returns:
        One entry per bin that has images: ``low`` and ``high`` edge, ``images``, ``persons``, ``duplicate_rate`` and
        ``miss_rate`` (NaN in a bin without persons).
    """
    rows = []
    where = np.digitize(index, BINS) - 1
    for b, low in enumerate(BINS):
        of = where == b
        if not of.any():
            continue
        persons = crowding.persons[of].sum()
        rows.append(
            {
                "low": float(low),
                "high": float(BINS[b + 1]) if b + 1 < len(BINS) else 1.0,
                "images": int(of.sum()),
                "persons": int(persons),
                "duplicate_rate": float(crowding.duplicates[of].sum() / persons) if persons else float("nan"),
                "miss_rate": float(crowding.missed[of].sum() / persons) if persons else float("nan"),
            }
        )
    return rows


def table(crowding: Crowding, rows: Sequence[dict[str, float]], origin: str, score: float = DEPLOYED_SCORE) -> str:
    """The rates in text."""
    lines = [
        f" Duplicates: {crowding.duplicate_rate:.4f} per labelled person (score from {score} on, OKS with a "
        f"better-scored prediction above {DUPLICATE_OKS}; the labels themselves: {crowding.duplicate_label_rate:.4f})",
        f" Misses:     {crowding.miss_rate:.4f} of {crowding.persons.sum():,} labelled persons (score from {score} on, "
        f"OKS from {FOUND_OKS} on)",
        f" By crowd index, {origin}:",
        f" {'crowd index':>12} {'images':>8} {'persons':>8} {'duplicates':>11} {'misses':>8}",
    ]
    for r in rows:
        span = f"{r['low']:.1f} to {r['high']:.1f}"
        rates = f"{r['duplicate_rate']:>11.4f} {r['miss_rate']:>8.4f}" if r["persons"] else f"{'-':>11} {'-':>8}"
        lines.append(f" {span:>12} {r['images']:>8,} {r['persons']:>8,} {rates}")
    return "\n".join(lines)
