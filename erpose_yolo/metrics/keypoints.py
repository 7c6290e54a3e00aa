"""OKS and PCK of each keypoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erpose_yolo.metrics.matching import Matches
from erpose_yolo.metrics.predictions import Predictions
from erpose_yolo.metrics.truth import GroundTruth

PCK_SHARES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class KeypointFigures:
    """Figures per keypoint.

    Attributes:
        labelled: (K,) labelled keypoints of all labelled persons.
        oks: (K,) mean of exp(-e_k) over the labelled keypoints of persons that were found, NaN where there are none.
        pck: (S, K) share of all labelled keypoints that lie within a share of the long side of the person's box, keypoints of
            persons that were not found counting as wrong; NaN where a keypoint is never labelled.
        shares: (S,).
    """

    labelled: np.ndarray
    oks: np.ndarray
    pck: np.ndarray
    shares: Sequence[float]


def measure_keypoints(
    truth: GroundTruth,
    predictions: Predictions,
    matches: Sequence[Matches],
    sigmas: np.ndarray,
) -> KeypointFigures:
    """OKS and PCK of each keypoint over matched pairs.

    PCK (percentage of correct keypoints, Yang and Ramanan 2013) counts a keypoint as correct within a share of the larger
    of width and height of the person's labelled box: unlike a head or torso length, every data set has one. A box of no
    size is replaced by the extent of the labelled keypoints, at least a pixel.

    Args:
        truth: persons.
        predictions: that the matches point into.
        matches: at one OKS threshold and area range, such as those of :func:`crowding.measure_crowding`.
        sigmas: (K,).
    """
    k = truth.keypoints.shape[1]
    sigmas = np.asarray(sigmas, np.float64)
    pairs = [(m.prediction[m.match[0, 0] >= 0], m.person[m.match[0, 0][m.match[0, 0] >= 0]]) for m in matches]
    found = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
    person = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
    keep = ~truth.ignore[person]
    found, person = found[keep], person[keep]

    keypoints = truth.keypoints[person]
    seen = keypoints[..., 2] > 0
    square = ((predictions.keypoints[found][..., :2] - keypoints[..., :2]) ** 2).sum(-1)  # (P, K)
    e = square / (2 * sigmas) ** 2 / (truth.area[person, None] + np.spacing(1)) / 2
    side = truth.box[person, 2:].max(1, initial=0)
    if (side <= 0).any():
        span = np.where(seen[..., None], keypoints[..., :2], np.nan)
        with np.errstate(invalid="ignore"):
            extent = (np.nanmax(span, 1) - np.nanmin(span, 1)).max(1) if len(span) else np.zeros(0)
        side = np.where(side > 0, side, np.maximum(extent, 1.0))
    right = np.stack([(square <= (share * side[:, None]) ** 2) & seen for share in PCK_SHARES])  # (S, P, K)

    all_seen = (truth.keypoints[~truth.ignore][..., 2] > 0).sum(0)
    of_found = seen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return KeypointFigures(
            labelled=all_seen,
            oks=np.where(seen, np.exp(-e), 0).sum(0).reshape(k) / np.where(of_found, of_found, np.nan),
            pck=right.sum(1) / np.where(all_seen, all_seen, np.nan),
            shares=PCK_SHARES,
        )


def table(figures: KeypointFigures, names: Sequence[str]) -> str:
    """The figures in text.

    Args:
        figures: of K keypoints.
        names: of the keypoints.
    """
    width = max(12, *(len(name) for name in names))
    head = "".join(f"{f'PCK@{share:g}':>10}" for share in figures.shares)
    lines = [
        " OKS per keypoint (persons that were found) and PCK (all persons; as shares of the long side of the labelled box)",
        f" {'keypoint':<{width}}{'labelled':>10}{'OKS':>10}{head}",
    ]
    for j, name in enumerate(names):
        values = [figures.oks[j], *figures.pck[:, j]]
        cells = "".join(f"{'-':>10}" if np.isnan(v) else f"{v:>10.3f}" for v in values)
        lines.append(f" {name:<{width}}{figures.labelled[j]:>10,}{cells}")
    total = np.where(figures.labelled > 0, figures.labelled, 0)
    if total.sum():
        means = [np.nansum(v * total) / total.sum() for v in (figures.oks, *figures.pck)]
        lines.append(f" {'all':<{width}}{total.sum():>10,}" + "".join(f"{v:>10.3f}" for v in means))
    return "\n".join(lines)
