"""Predictions as flat arrays: collected from a validator, read from a results file, and saved as one.

Shapes: M predictions, K keypoints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo.data.coco_json import read_json
from erpose_yolo.files import written_whole
from erpose_yolo.metrics.truth import GroundTruth

MAX_DETS = 20  # pycocotools' Params.maxDets for keypoints: the best 20 of an image and category count
KEEP_SCORE = 0.05  # beyond those, predictions from this score on are kept: duplicates are counted among all of them


@dataclass(frozen=True)
class Predictions:
    """Predicted persons of a set of images.

    Attributes:
        image: (M,) index into the images of the ground truth.
        category: (M,) class index.
        score: (M,).
        keypoints: (M, K, 3) pixels and visibility.
        area: (M,) square pixels, by the rule of pycocotools' loadRes: the predicted box where there is one, else the
            keypoints' extent. It only decides whether an unmatched prediction counts in APm and APl.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    keypoints: np.ndarray
    area: np.ndarray

    def select(self, keep: np.ndarray) -> Predictions:
        """The predictions where a mask holds, or in the order of an index."""
        return Predictions(self.image[keep], self.category[keep], self.score[keep], self.keypoints[keep], self.area[keep])


def extent_area(keypoints: np.ndarray) -> np.ndarray:
    """Area (M,) of the extent of all keypoints (M, K, 2 or more), in square pixels."""
    if not keypoints.size:
        return np.zeros(len(keypoints))
    return np.ptp(keypoints[..., :2], axis=1).prod(1)


def best(image: np.ndarray, category: np.ndarray, score: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Order by image, category and falling score, and the mask of the best ``most`` per image and category.

    Equal scores keep their order (pycocotools sorts with mergesort).
    """
    order = np.lexsort((-score, category, image))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(image[order]) != 0) | (np.diff(category[order]) != 0)
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order, rank < most


class Collector:
    """Gathers the predictions of a validation run, image by image.

    Of each image and class the best 20 are kept, which is all that pycocotools looks at, and all others from
    ``keep_score`` on. Coordinates are rounded to a thousandth of a pixel and scores to a millionth right away, so that
    the figures of a run are those of the file that it saves.
    """

    def __init__(self, keep_score: float = KEEP_SCORE) -> None:
        self.keep_score = keep_score
        self.rows: dict[str, tuple[np.ndarray, ...]] = {}
        self.shapes: dict[str, tuple[int, int]] = {}  # (height, width) in pixels of each image

    def add(
        self, file: str, score: Any, category: Any, keypoints: Any, box: Any = None, shape: Sequence[int] | None = None
    ) -> None:
        """Add an image; a second time replaces the first (distributed samplers repeat images to even out).

        Args:
            file: the image.
            score: (n,).
            category: (n,) class indices.
            keypoints: (n, K, 2 or 3) pixels of the original image.
            box: (n, 4) corners in pixels of the original image, or None.
            shape: height and width of the original image, where they will be asked for.
        """
        if shape is not None:
            self.shapes[str(file)] = (int(shape[0]), int(shape[1]))
        score = np.asarray(score, np.float64).round(6)
        category = np.asarray(category).astype(np.int64)
        order, keep = best(np.zeros(len(score), np.int64), category, score, MAX_DETS)
        order = np.sort(order[keep | (score[order] >= self.keep_score)])
        keypoints = np.asarray(keypoints, np.float64)[order].round(3)
        if keypoints.shape[-1] == 2:
            keypoints = np.concatenate((keypoints, np.ones((*keypoints.shape[:-1], 1))), -1)
        corners = np.zeros((len(order), 0)) if box is None else np.asarray(box, np.float64)[order]
        if corners.size:
            corners = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1).round(3)
        self.rows[str(file)] = (score[order], category[order], keypoints, corners)

    def merge(self, others: Sequence[Collector]) -> None:
        """Take over the images of the other ranks of a distributed run."""
        for other in others:
            self.rows.update(other.rows)
            self.shapes.update(other.shapes)

    def records(self, truth: GroundTruth) -> list[dict[str, Any]]:
        """COCO result entries of all images, in the order of the ground truth's images, of the classes that it knows.

        Raises:
            ValueError: an image that is not of this ground truth.
        """
        out = []
        of = dict(zip(truth.find(self.rows), self.rows))
        for i in sorted(of):
            score, category, keypoints, box = self.rows[of[i]]
            flat, boxes = [pose.reshape(-1).tolist() for pose in keypoints], box.tolist()
            for n, (s, c) in enumerate(zip(score.tolist(), category.tolist())):
                if c >= len(truth.categories):
                    continue
                entry = {
                    "image_id": truth.ids[i],
                    "file_name": Path(of[i]).name,
                    "category_id": truth.categories[c]["id"],
                    "score": s,
                    "keypoints": flat[n],
                }
                if boxes[n]:
                    entry["bbox"] = boxes[n]
                out.append(entry)
        return out

    def predictions(self, truth: GroundTruth) -> Predictions:
        """What was collected, on the images of a ground truth.

        Predictions of classes that the ground truth does not know (a model of 80 classes, a data set of one) are left
        out, as pycocotools does.

        Raises:
            ValueError: an image that is not of this ground truth.
        """
        of = sorted(zip(truth.find(self.rows), self.rows))
        k = truth.keypoints.shape[1]
        parts: list[tuple[Any, ...]] = [(i, *self.rows[file]) for i, file in of if len(self.rows[file][0])]
        if not parts:
            return Predictions(*(np.zeros(0, np.int64),) * 2, np.zeros(0), np.zeros((0, k, 3)), np.zeros(0))
        keypoints = np.concatenate([p[3] for p in parts])
        box = np.concatenate([p[4] for p in parts])
        category = np.concatenate([p[2] for p in parts])
        all_of_them = Predictions(
            image=np.concatenate([np.full(len(p[1]), p[0]) for p in parts]),
            category=category,
            score=np.concatenate([p[1] for p in parts]),
            keypoints=keypoints,
            area=box[:, 2] * box[:, 3] if box.size else extent_area(keypoints),
        )
        known = category < len(truth.categories)
        return all_of_them if known.all() else all_of_them.select(known)


def from_records(records: Any, truth: GroundTruth, source: str = "the predictions") -> Predictions:
    """Predictions of a COCO results list.

    Args:
        records: entries with ``image_id`` (or ``file_name``), ``category_id``, ``keypoints`` and ``score``; a ``bbox``
            in the first one makes boxes the predictions' area, as in pycocotools.
        truth: their ground truth.
        source: the file, for errors.

    Raises:
        ValueError: no list, missing keys, numbers that are not finite, another number of keypoints, or predictions for
            an image or category that the ground truth does not know; the first one is named.
    """
    k = truth.keypoints.shape[1]
    if not isinstance(records, list):
        raise ValueError(f"{source}: a list of results was expected, got {type(records).__name__}.")
    by_id: dict[Any, int] = {}
    for i, key in enumerate(truth.ids):
        by_id[key] = i
        by_id.setdefault(str(key), i)
    classes = {c["id"]: i for i, c in enumerate(truth.categories)}
    image, category, score = (np.zeros(len(records), t) for t in (np.int64, np.int64, np.float64))
    keypoints, area = np.zeros((len(records), k, 3)), np.zeros(len(records))
    boxes = bool(records) and isinstance(records[0], dict) and bool(records[0].get("bbox"))
    names: dict[str, int] = {}
    for n, entry in enumerate(records):
        what = f"{source}: result number {n}"
        wanted = ("category_id", "keypoints", "score", *(("bbox",) if boxes else ()))
        missing = "all keys" if not isinstance(entry, dict) else next((key for key in wanted if key not in entry), None)
        if missing:
            raise ValueError(f"{what}: '{missing}' is missing.")
        found = by_id.get(entry.get("image_id"))
        if found is None and "file_name" in entry:
            name = entry["file_name"]
            if name not in names:
                try:
                    names[name] = truth.find([name])[0]
                except ValueError:
                    names[name] = -1
            found = names[name] if names[name] >= 0 else None
        if found is None:
            unknown = entry.get("image_id", entry.get("file_name"))
            raise ValueError(
                f"{what} is for image '{unknown}', which is not among the {len(truth.ids)} images of {truth.source}. "
                "Are these predictions of another split or data set?"
            )
        if entry["category_id"] not in classes:
            raise ValueError(f"{what}: category_id {entry['category_id']} is none of {list(classes)}.")
        points = np.asarray(entry["keypoints"], np.float64).reshape(-1)
        if points.shape != (3 * k,):
            raise ValueError(f"{what}: {len(points)} keypoint values, but {k} keypoints (x, y, visibility) have {3 * k}.")
        if not np.isfinite(points).all() or not np.isfinite(entry["score"]):
            raise ValueError(f"{what} (image '{entry.get('image_id')}'): NaN or infinite numbers.")
        image[n], category[n], score[n] = found, classes[entry["category_id"]], entry["score"]
        keypoints[n] = points.reshape(k, 3)
        if boxes:
            area[n] = entry["bbox"][2] * entry["bbox"][3]
    return Predictions(image, category, score, keypoints, area if boxes else extent_area(keypoints))


def read_predictions(file: str | Path, truth: GroundTruth) -> Predictions:
    """Predictions of a COCO results file; see :func:`from_records` for the errors."""
    return from_records(read_json(file), truth, str(file))


def write_json(file: str | Path, content: Any) -> Path:
    """Write JSON aside and rename it: what carries the name is complete.

    Args:
        file: where to.
        content: lists, dictionaries and numbers.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as part, open(part, "w", encoding="utf-8") as handle:
        # one string at a time: json.dump(list) walks in Python, json.dumps of an entry in C
        if isinstance(content, list):
            handle.write("[")
            for n, entry in enumerate(content):
                handle.write((",\n" if n else "") + json.dumps(entry, allow_nan=False))
            handle.write("]\n")
        else:
            handle.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return file


def to_records(predictions: Predictions, truth: GroundTruth) -> list[Mapping[str, Any]]:
    """COCO result entries of predictions, for judges; ``area`` survives as that of a box one pixel high."""
    return [
        {
            "image_id": truth.ids[i],
            "category_id": truth.categories[c]["id"],
            "score": s,
            "keypoints": keypoints,
            "bbox": [0.0, 0.0, a, 1.0],
        }
        for i, c, s, keypoints, a in zip(
            predictions.image.tolist(),
            predictions.category.tolist(),
            predictions.score.tolist(),
            [pose.reshape(-1).tolist() for pose in predictions.keypoints],
            predictions.area.tolist(),
        )
    ]
