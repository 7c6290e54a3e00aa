"""Who is matched with whom, and what average precision follows: the rules of pycocotools, whole data sets at a time.

pycocotools.cocoeval (``computeOks``, ``evaluateImg``, ``accumulate``) is the definition. Its loops over images,
thresholds, predictions and persons are array operations here, and the same additions are made in the same order, so
figures agree to the last bit; tests/metrics/test_coco.py holds the two against each other.

Shapes: I images, N persons, M predictions (at most ``max_dets`` per image), K keypoints, T OKS thresholds, A area ranges,
R recall levels, G persons in one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from erpose_yolo.metrics.predictions import MAX_DETS, Predictions, best
from erpose_yolo.metrics.truth import GroundTruth

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # .50:.05:.95
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
# pycocotools.cocoeval.Params.setKpParams, square pixels: keypoints have no small range
AREA_RANGES = ((0**2, 1e5**2), (32**2, 96**2), (96**2, 1e5**2))

_CHUNK = 1 << 15  # pairs at a time: their keypoints stay in the processor's cache


@dataclass(frozen=True)
class Matches:
    """Matches of one class.

    Attributes:
        person: (N',) index into the ground truth, by image.
        prediction: (M',) index into the predictions, by image and falling score, the best of each image only.
        match: (A, T, M') position in ``person`` that each prediction is matched with, -1 for none.
        void: (A, T, M') predictions that count neither as right nor as wrong.
        ignore: (A, N') persons that do not count.
        best_oks: (M',) highest OKS with any person that counts (first area range), 0 where there is none.
        score: (M',).
        image_of_person, image_of_prediction: (N',) and (M',).
    """

    person: np.ndarray
    prediction: np.ndarray
    match: np.ndarray
    void: np.ndarray
    ignore: np.ndarray
    best_oks: np.ndarray
    score: np.ndarray
    image_of_person: np.ndarray
    image_of_prediction: np.ndarray


def pair_oks(
    found: np.ndarray,
    keypoints: np.ndarray,
    area: np.ndarray,
    box: np.ndarray,
    sigmas: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """OKS of pairs of predictions and persons, as pycocotools' computeOks.

    For a person without labelled keypoints, keypoints within its box enlarged to three times its sides cost nothing and
    others their distance to it: that is how crowd regions and unlabelled persons swallow predictions.

    Args:
        found: (M, K, 2 or more) predicted keypoints in pixels.
        keypoints: (N, K, 3) true keypoints in pixels and visibility.
        area: (N,) square pixels.
        box: (N, 4) left, top, width, height in pixels.
        sigmas: (K,) float64.
        first: (P,) index into the predictions.
        second: (P,) index into the persons.

    Returns:
        (P,) in [0, 1]; 0 where a predicted keypoint is not finite.
    """
    labelled = keypoints[..., 2] > 0
    count = labelled.sum(1)
    order = np.argsort(~labelled, axis=1, kind="stable")  # labelled keypoints first
    variance = (sigmas * 2) ** 2
    denominator = area + np.spacing(1)
    out = np.zeros(len(first))
    # persons with equally many labelled keypoints together: sums over n numbers, not over K with zeros between, because
    # the order of additions decides the last bit and pycocotools adds the labelled ones only
    number = count[second]
    for n in np.unique(number):
        of = np.flatnonzero(number == n)
        for start in range(0, len(of), _CHUNK):
            pair = of[start : start + _CHUNK]
            i, j = first[pair], second[pair]
            if n:
                column = order[j, :n]
                dx = found[i[:, None], column, 0] - keypoints[j[:, None], column, 0]
                dy = found[i[:, None], column, 1] - keypoints[j[:, None], column, 1]
                e = (dx**2 + dy**2) / variance[column] / denominator[j, None] / 2
            else:
                low = box[j, :2] - box[j, 2:]
                high = box[j, :2] + box[j, 2:] * 2
                d = found[i, :, :2]
                d = np.maximum(0, low[:, None] - d) + np.maximum(0, d - high[:, None])
                e = (d[..., 0] ** 2 + d[..., 1] ** 2) / variance / denominator[j, None] / 2
            out[pair] = np.exp(-e).sum(1) / e.shape[1]
    return np.nan_to_num(out, nan=0.0)


def _starts(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of the first entry of each image in a sorted index, and how many there are."""
    number = np.bincount(index, minlength=size)
    return np.cumsum(number) - number, number


def match(
    truth: GroundTruth,
    predictions: Predictions,
    sigmas: np.ndarray,
    thresholds: np.ndarray = OKS_THRESHOLDS,
    area_ranges: Sequence[tuple[float, float]] = AREA_RANGES,
    max_dets: int = MAX_DETS,
) -> list[Matches]:
    """Match predictions with persons, greedily by falling score, per image and class.

    A prediction takes the free person with the highest OKS from the threshold on; persons that are ignored only where
    there is no other. An ignored match makes it void, and so does having none while its own area is out of range.

    Args:
        truth: persons.
        predictions: of the same images.
        sigmas: (K,) OKS sigmas.
        thresholds: (T,) OKS.
        area_ranges: (A, 2) square pixels; persons outside are ignored.
        max_dets: predictions per image and class that count; pycocotools takes 20.

    Returns:
        One entry per class.
    """
    sigmas = np.asarray(sigmas, np.float64)
    return [
        _match_class(truth, predictions, sigmas, np.asarray(thresholds), np.asarray(area_ranges, float), max_dets, c)
        for c in range(len(truth.categories))
    ]


def _match_class(
    truth: GroundTruth,
    predictions: Predictions,
    sigmas: np.ndarray,
    thresholds: np.ndarray,
    ranges: np.ndarray,
    max_dets: int,
    c: int,
) -> Matches:
    images = len(truth.ids)
    person = np.flatnonzero(truth.category == c)
    person = person[np.argsort(truth.image[person], kind="stable")]
    found = np.flatnonzero(predictions.category == c)
    order, keep = best(predictions.image[found], predictions.category[found], predictions.score[found], max_dets)
    found = found[order[keep]]

    image_p, image_d = truth.image[person], predictions.image[found]
    start_p, number_p = _starts(image_p, images)
    start_d, number_d = _starts(image_d, images)
    area, crowd = truth.area[person], truth.crowd[person]
    outside = (area < ranges[:, :1]) | (area > ranges[:, 1:])  # (A, N')
    ignore = truth.ignore[person] | outside

    # all pairs within an image, the persons of one prediction next to each other
    per_d = number_p[image_d]
    offset = np.cumsum(per_d) - per_d
    first = np.repeat(np.arange(len(found)), per_d)
    second = np.arange(len(first)) - np.repeat(offset, per_d) + np.repeat(start_p[image_d], per_d)
    similarity = pair_oks(predictions.keypoints[found], truth.keypoints[person], area, truth.box[person], sigmas, first, second)

    best_oks = np.zeros(len(found))
    np.maximum.at(best_oks, first, np.where(ignore[0, second], 0.0, similarity))
    matched = np.full((len(ranges), len(thresholds), len(found)), -1, np.int32)
    limit = np.minimum(thresholds, 1 - 1e-10)
    for g in np.unique(number_p[(number_d > 0) & (number_p > 0)]):  # images with equally many persons together
        group = np.flatnonzero((number_p == g) & (number_d > 0))
        number, first_d, first_p = number_d[group], start_d[group], start_p[group]
        _match_images(int(g), number, first_d, first_p, offset, similarity, ignore, crowd, limit, matched)

    d_area = predictions.area[found]
    d_outside = (d_area < ranges[:, :1]) | (d_area > ranges[:, 1:])  # (A, M')
    taken = np.take_along_axis(ignore, np.maximum(matched, 0).reshape(len(ranges), -1), 1) if len(person) else None
    if taken is None:
        void = np.repeat(d_outside[:, None], len(thresholds), 1)
    else:
        void = np.where(matched >= 0, taken.reshape(matched.shape), d_outside[:, None])
    return Matches(person, found, matched, void, ignore, best_oks, predictions.score[found], image_p, image_d)


def _match_images(
    g: int,
    number_d: np.ndarray,
    start_d: np.ndarray,
    start_p: np.ndarray,
    offset: np.ndarray,
    similarity: np.ndarray,
    ignore: np.ndarray,
    crowd: np.ndarray,
    limit: np.ndarray,
    matched: np.ndarray,
) -> None:
    """Fill ``matched`` for images of ``g`` persons each, all at once, one prediction after another."""
    areas = ignore.shape[0]
    most = int(number_d.max())
    inside = np.arange(most) < number_d[:, None]  # (I, D)
    d = np.where(inside, start_d[:, None] + np.arange(most), 0)
    p = start_p[:, None] + np.arange(g)  # (I, G)
    oks = np.full((len(p), most, g), -1.0)
    oks[inside] = similarity[offset[d[inside]][:, None] + np.arange(g)]
    # an order instead of values: persons that count before ignored ones, higher OKS first, among equal OKS the later
    rank = np.empty(oks.shape, np.int32)
    np.put_along_axis(rank, np.argsort(oks, axis=-1, kind="stable"), np.arange(g, dtype=np.int32)[None, None], -1)
    counts = ~ignore[:, p].transpose(1, 0, 2)  # (I, A, G)
    bonus = (counts * g + 1).astype(np.int32)
    free = np.ones((len(p), areas, len(limit), g), bool)
    again = crowd[p]  # (I, G): may be matched again and again
    row = np.arange(len(p))
    for n in range(most):
        live = row[inside[:, n]] if n else row
        key = rank[live, n][:, None] + bonus[live]  # (I, A, G)
        enough = oks[live, n][:, None] >= limit[:, None]  # (I, T, G)
        key = key[:, :, None] * (free[live] & enough[:, None])  # (I, A, T, G)
        choice = key.argmax(-1)
        hit = np.take_along_axis(key, choice[..., None], -1)[..., 0] > 0
        i, a, t = np.nonzero(hit)
        person = choice[i, a, t]
        matched[a, t, d[live[i], n]] = p[live[i], person]
        free[live[i], a, t, person] = again[live[i], person]


@dataclass(frozen=True)
class Curves:
    """What pycocotools' accumulate returns, without its last axis (maxDets).

    Attributes:
        precision: (T, R, C, A), -1 where a class has no person that counts.
        recall: (T, C, A), -1 likewise.
        scores: (T, R, C, A) least score at each recall level.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray

    def ap(self, area: int = 0, threshold: int | None = None) -> float:
        """Mean over recall levels, classes and thresholds (or of one), -1 where undefined."""
        return _mean(self.precision[slice(None) if threshold is None else threshold, ..., area])

    def ar(self, area: int = 0, threshold: int | None = None) -> float:
        """Mean highest recall, -1 where undefined."""
        return _mean(self.recall[slice(None) if threshold is None else threshold, ..., area])


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def accumulate(matches: Sequence[Matches], images: np.ndarray | None = None) -> Curves:
    """Precision and recall over all images, or over those where a mask (I,) holds.

    Matching is done per image, so the matches of a whole data set serve for each part of it.
    """
    areas, thresholds = matches[0].match.shape[:2] if matches else (len(AREA_RANGES), len(OKS_THRESHOLDS))
    shape = (thresholds, len(RECALL_LEVELS), len(matches), areas)
    precision, scores = -np.ones(shape), -np.ones(shape)
    recall = -np.ones((thresholds, len(matches), areas))
    for c, a, hit, void, persons, score in _per_area(matches, images):
        if not persons:
            continue
        right = np.cumsum(hit & ~void, 1, dtype=np.float64)
        wrong = np.cumsum(~hit & ~void, 1, dtype=np.float64)
        level = right / persons
        share = right / (wrong + right + np.spacing(1))
        share = np.maximum.accumulate(share[:, ::-1], 1)[:, ::-1]  # the best precision at this recall or a higher one
        recall[:, c, a] = level[:, -1] if level.shape[1] else 0
        for t in range(thresholds):
            at = np.searchsorted(level[t], RECALL_LEVELS, side="left")
            reached = at < level.shape[1]
            precision[t, :, c, a] = scores[t, :, c, a] = 0
            precision[t, reached, c, a] = share[t, at[reached]]
            scores[t, reached, c, a] = score[at[reached]]
    return Curves(precision, recall, scores)


def _per_area(
    matches: Sequence[Matches], images: np.ndarray | None
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, int, np.ndarray]]:
    """Per class and area range: matched (T, M'), void (T, M'), number of persons and scores, by falling score."""
    for c, m in enumerate(matches):
        d = slice(None) if images is None else np.flatnonzero(images[m.image_of_prediction])
        p = slice(None) if images is None else images[m.image_of_person]
        score = m.score[d]
        order = np.argsort(-score, kind="mergesort")  # equal scores by image, as pycocotools
        hit, void = (m.match[..., d] >= 0)[..., order], m.void[..., d][..., order]
        for a in range(len(m.ignore)):
            yield c, a, hit[a], void[a], int((~m.ignore[a, p]).sum()), score[order]
