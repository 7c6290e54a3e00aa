"""Ground truth as flat arrays, from a COCO-style annotation file or from YOLO labels.

Shapes: I images, N persons, K keypoints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from erpose_yolo.data.coco_json import read_json
from erpose_yolo.method.oks import BOX_FILL, MIN_AREA, MIN_ASPECT, object_area

AREA_OF_ANNOTATIONS = "segment area of the annotations"
AREA_OF_BOXES = f"{BOX_FILL} x width x height of the annotated box"
AREA_OF_LABELS = (
    f"{BOX_FILL} x width x height of the labelled box in pixels of the original image "
    f"(boxes thinner than 1:{1 / MIN_ASPECT:.0f} widened to that, at least {MIN_AREA:.0f} px2)"
)


@dataclass(frozen=True)
class GroundTruth:
    """Persons of a set of images.

    Attributes:
        ids: (I) image ids, ascending: pycocotools breaks ties of equal scores in this order.
        names: (I) image files as the source names them.
        image: (N,) index into ``ids``.
        category: (N,) index into ``categories``.
        keypoints: (N, K, 3) pixels and visibility 0, 1, 2.
        box: (N, 4) left, top, width, height in pixels.
        area: (N,) object area in square pixels.
        crowd: (N,) a region with many persons (iscrowd), which any number of predictions may match without harm.
        seen: (N,) keypoints that the source counts as labelled (num_keypoints); persons with none are ignored.
        categories: one ``{"id", "name"}`` per class index of the model.
        source: where this comes from, for the output.
        area_rule: how ``area`` came about, for the output.
        crowd_index: (I,) of the source, None where it gives none.
        annotated: images in the source, of which ``ids`` may be a part.
        sizes: per image (height, width) in pixels as the source says, None where it does not.
    """

    ids: Sequence[int | str]
    names: Sequence[str]
    image: np.ndarray
    category: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    seen: np.ndarray
    categories: Sequence[Mapping[str, Any]]
    source: str
    area_rule: str
    crowd_index: np.ndarray | None = None
    annotated: int = 0
    sizes: Sequence[tuple[int, int] | None] | None = None

    @property
    def ignore(self) -> np.ndarray:
        """(N,) persons that are no use as truth: no labelled keypoint, or a crowd region."""
        return (self.seen == 0) | self.crowd

    @property
    def with_keypoints(self) -> np.ndarray:
        """(I,) images that hold at least one person with a labelled keypoint."""
        out = np.zeros(len(self.ids), bool)
        out[self.image[(self.keypoints[..., 2] > 0).any(1)]] = True
        return out

    def find(self, files: Iterable[str | Path]) -> list[int]:
        """Index of each image file.

        A file is found by the longest end of its path that the source names, then by its name without suffix.

        Raises:
            ValueError: the first file that is not of this ground truth.
        """
        by_name = _Names(self.names)
        return [by_name.find(file, self.source) for file in files]

    def check_sizes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Make sure that the source is of these very images, not of larger or smaller copies.

        Args:
            shapes: (height, width) in pixels by image file.

        Raises:
            ValueError: an image of another size, or one that is not of this ground truth.
        """
        for i, (file, shape) in zip(self.find(shapes), shapes.items()):
            size = self.sizes[i] if self.sizes is not None else None
            if size is not None and tuple(shape[:2]) != tuple(size):
                raise ValueError(
                    f"{file} has {shape[1]} x {shape[0]} px, but {size[1]} x {size[0]} px in {self.source}: these are of "
                    "another copy of the image. Convert the file for the resized images, or use the originals."
                )

    def to_coco(self) -> dict[str, Any]:
        """The same as a COCO annotation dictionary, for judges such as pycocotools; annotation ids count from 1."""
        images: list[dict[str, Any]] = [{"id": i, "file_name": n} for i, n in zip(self.ids, self.names)]
        if self.crowd_index is not None:
            for entry, index in zip(images, self.crowd_index.tolist()):
                entry["crowdIndex"] = index
        flat = self.keypoints.reshape(len(self.keypoints), 3 * self.keypoints.shape[1]).tolist()
        rows = zip(self.image, self.category, flat, self.box.tolist(), self.area.tolist(), self.crowd, self.seen)
        return {
            "info": {},
            "images": images,
            "categories": [dict(c) for c in self.categories],
            "annotations": [
                {
                    "id": n,
                    "image_id": self.ids[image],
                    "category_id": self.categories[category]["id"],
                    "keypoints": keypoints,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                    "num_keypoints": int(seen),
                }
                for n, (image, category, keypoints, box, area, crowd, seen) in enumerate(rows, 1)
            ],
        }


class _Names:
    """Finds image files among the names of a source, which may or may not carry folders or another suffix."""

    def __init__(self, names: Sequence[str]) -> None:
        self.full = {PurePosixPath(name.replace("\\", "/")).as_posix(): i for i, name in enumerate(names)}
        self.depth = max((len(PurePosixPath(name).parts) for name in self.full), default=0)
        self.stem: dict[str, int] = {}
        for name, i in self.full.items():
            stem = PurePosixPath(name).stem
            self.stem[stem] = -1 if stem in self.stem else i  # -1: two images share it, so it tells nothing

    def find(self, file: str | Path, source: str, required: bool = True) -> int:
        parts = Path(file).parts
        for n in range(min(len(parts), self.depth), 0, -1):
            if (i := self.full.get("/".join(parts[-n:]).replace("\\", "/"))) is not None:
                return i
        i = self.stem.get(Path(file).stem, -1)
        if i < 0 and required:
            raise ValueError(f"Image '{file}' is not in {source}. Is this the annotation file of the same split?")
        return i


def find_annotations(data: Mapping[str, Any], split: str) -> Path | None:
    """The annotation file of a split, None where the data set has none.

    Args:
        data: Ultralytics data dictionary with a resolved ``path``. Its key ``annotations: {val: annotations/val.json}``
            decides; else COCO's usual ``annotations/person_keypoints_<split>.json`` is looked for, by the split's name
            and by that of its image folder or list (``val2017``).
        split: train, val or test.

    Raises:
        FileNotFoundError: ``annotations`` names a file that is not there.
    """
    root = Path(data.get("path") or ".")
    named = (data.get("annotations") or {}).get(split)
    if named:
        file = Path(named) if Path(named).is_absolute() else root / named
        if not file.is_file():
            raise FileNotFoundError(f"{file}, named by 'annotations: {split}:' of the data YAML, does not exist.")
        return file
    images = data.get(split)
    stems = [split] + ([Path(images).stem] if isinstance(images, str) else [])
    candidates = (root / "annotations" / f"person_keypoints_{stem}.json" for stem in reversed(stems))
    return next((file for file in candidates if file.is_file()), None)


def from_annotations(
    file: str | Path,
    num_keypoints: int,
    names: Mapping[int, str] | Sequence[str] | None = None,
    images: Iterable[str | Path] | None = None,
) -> GroundTruth:
    """Ground truth of a COCO-style annotation file (COCO, CrowdPose, or written by ``erpose convert``).

    Args:
        file: JSON with images, annotations and categories. Without ``area`` the area is 0.53 of the box, as xtcocotools
            computes CrowdPose; ``iscrowd`` and ``num_keypoints`` may be absent.
        num_keypoints: K.
        names: class names of the model or data set, mapped to the file's categories by name, by order where no name
            is the same, or to the only one; None takes the categories as they are.
        images: image files of the split; None for all of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or foreign JSON, missing keys, a category or image that is not in the file, another K, or
            coordinates that are not finite. The first offender is named.
    """
    content = read_json(file)
    source = f"annotations {file}"
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file}: '{key}' is missing. A COCO-style file has images, annotations and categories.")
    listed = content["images"]
    for entry in listed:
        if "id" not in entry or "file_name" not in entry:
            raise ValueError(f"{file}: an image without 'id' or 'file_name': {str(entry)[:120]}")
    listed = sorted(listed, key=lambda entry: entry["id"])
    if images is not None:
        by_name = _Names([entry["file_name"] for entry in listed])
        chosen = [listed[i] for i in sorted({by_name.find(image, str(file)) for image in images})]
    else:
        chosen = listed
    index = {entry["id"]: i for i, entry in enumerate(chosen)}
    known = {entry["id"] for entry in listed}
    categories = _map_categories(content["categories"], names, file)
    class_of = {category["id"]: c for c, category in enumerate(categories)}

    rows = []
    for number, entry in enumerate(content["annotations"]):
        what = f"{file}: annotation {entry.get('id', f'number {number}')}"
        missing = [key for key in ("image_id", "category_id", "bbox") if key not in entry]
        if missing:
            raise ValueError(f"{what}: '{missing[0]}' is missing.")
        if entry["image_id"] not in known:
            raise ValueError(f"{what}: its image_id {entry['image_id']} is not among the images of the file.")
        if entry["image_id"] not in index or entry["category_id"] not in class_of:
            continue
        points = entry.get("keypoints")
        points = np.zeros(num_keypoints * 3) if points is None or len(points) == 0 else points
        if not isinstance(points, np.ndarray) or points.shape != (num_keypoints * 3,):
            raise ValueError(
                f"{what}: {len(points)} keypoint values, but {num_keypoints} keypoints of x, y, visibility have "
                f"{num_keypoints * 3}. Does kpt_shape of the data YAML fit this file?"
            )
        points = points.reshape(-1, 3)
        box = np.asarray(entry["bbox"], np.float64)
        area = entry.get("area")
        if box.shape != (4,) or not np.isfinite(points).all() or not np.isfinite([*box, area or 0.0]).all():
            raise ValueError(f"{what}: NaN, infinite or missing numbers in keypoints, bbox or area.")
        seen = entry.get("num_keypoints", int((points[:, 2] > 0).sum()))
        rows.append((index[entry["image_id"]], class_of[entry["category_id"]], points, box, area, entry, seen))

    no_area = [row[4] is None for row in rows]
    crowd_index = [entry.get("crowdIndex") for entry in chosen]
    box = np.array([row[3] for row in rows], np.float64).reshape(-1, 4)
    area = np.array([row[4] if row[4] is not None else np.nan for row in rows], np.float64)
    rule = AREA_OF_BOXES if all(no_area) and rows else AREA_OF_ANNOTATIONS
    if any(no_area):
        area = np.where(np.isnan(area), box[:, 2] * box[:, 3] * BOX_FILL, area)
        rule = rule if all(no_area) else f"{AREA_OF_ANNOTATIONS}, {AREA_OF_BOXES} for the {sum(no_area)} without"
    return GroundTruth(
        ids=[entry["id"] for entry in chosen],
        names=[entry["file_name"] for entry in chosen],
        image=np.array([row[0] for row in rows], np.int64),
        category=np.array([row[1] for row in rows], np.int64),
        keypoints=np.array([row[2] for row in rows], np.float64).reshape(-1, num_keypoints, 3),
        box=box,
        area=area,
        crowd=np.array([bool(row[5].get("iscrowd", 0)) for row in rows], bool),
        seen=np.array([row[6] for row in rows], np.int64),
        categories=categories,
        source=source,
        area_rule=rule,
        crowd_index=None if not chosen or None in crowd_index else np.array(crowd_index, np.float64),
        annotated=len(listed),
        sizes=[(e["height"], e["width"]) if e.get("height") and e.get("width") else None for e in chosen],
    )


def _map_categories(
    listed: Sequence[Mapping[str, Any]], names: Mapping[int, str] | Sequence[str] | None, file: str | Path
) -> list[dict[str, Any]]:
    """Categories of an annotation file in the order of the class indices."""
    known: list[dict[str, Any]] = [{"id": c["id"], "name": str(c.get("name", c["id"]))} for c in listed]
    known.sort(key=lambda c: c["id"])
    if names is None:
        return known
    wanted = [str(names[i]) for i in range(len(names))]
    by_name = {c["name"]: c for c in known}
    if all(name in by_name for name in wanted):
        return [by_name[name] for name in wanted]
    if len(wanted) == len(known) and not any(name in by_name for name in wanted):
        return [{**c, "name": name} for c, name in zip(known, wanted)]
    raise ValueError(
        f"The classes {wanted} of the data YAML do not fit the categories {[c['name'] for c in known]} of {file}. "
        "Name them alike in 'names'."
    )


def from_labels(
    labels: Sequence[Mapping[str, Any]],
    names: Mapping[int, str] | Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> GroundTruth:
    """Ground truth of YOLO-pose labels, as an Ultralytics data set holds them after reading.

    Args:
        labels: per image ``im_file``, ``shape`` (height, width) in pixels, ``cls`` (n, 1), ``bboxes`` (n, 4) in centre
            form and ``keypoints`` (n, K, 2 or 3), both normalised.
        names: class names.
        shapes: (height, width) by ``im_file`` where ``labels`` lack them (Ultralytics drops them for rect=True).
    """
    files = [Path(label["im_file"]) for label in labels]
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems) and all(stem.isdecimal() for stem in stems):
        ids: list[int | str] = [int(stem) for stem in stems]  # as Ultralytics names them in its predictions.json
    elif len(set(stems)) == len(stems):
        ids = list(stems)
    else:
        ids = list(range(1, len(files) + 1))
    if len(set(ids)) < len(ids):  # 7.jpg and 007.jpg
        ids = list(range(1, len(files) + 1))
    order = sorted(range(len(ids)), key=lambda i: ids[i])  # type: ignore[arg-type,return-value]
    tail = 1 if len({file.name for file in files}) == len(files) else 3  # folders only where names repeat

    sizes, image, category, keypoints, box = [], [], [], [], []
    for n, i in enumerate(order):
        label = labels[i]
        height, width = (label.get("shape") or (shapes or {})[str(label["im_file"])])[:2]
        sizes.append((int(height), int(width)))
        points = np.array(label["keypoints"], np.float64)
        count = len(label["cls"])
        if not count:
            continue
        if points.shape[-1] == 2:
            points = np.concatenate((points, np.ones((*points.shape[:-1], 1))), -1)
        points[..., :2] *= (width, height)
        points[points[..., 2] == 0] = 0  # what is not labelled has no place
        sides = np.array(label["bboxes"], np.float64).reshape(-1, 4) * (width, height, width, height)
        image.append(np.full(count, n))
        category.append(np.array(label["cls"]).reshape(-1).astype(np.int64))
        keypoints.append(points)
        box.append(np.concatenate((sides[:, :2] - sides[:, 2:] / 2, sides[:, 2:]), 1))
    shape = next((np.shape(label["keypoints"]) for label in labels), (0, 0, 3))
    all_keypoints = np.concatenate(keypoints) if keypoints else np.zeros((0, shape[1] if len(shape) > 1 else 0, 3))
    boxes = np.concatenate(box) if box else np.zeros((0, 4))
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    return GroundTruth(
        ids=[ids[i] for i in order],
        names=["/".join(files[i].parts[-tail:]) for i in order],
        image=np.concatenate(image) if image else np.zeros(0, np.int64),
        category=np.concatenate(category) if category else np.zeros(0, np.int64),
        keypoints=all_keypoints,
        box=boxes,
        area=object_area(torch.from_numpy(corners)).numpy(),
        crowd=np.zeros(len(boxes), bool),
        seen=(all_keypoints[..., 2] > 0).sum(1),
        categories=[{"id": i + 1, "name": str(names[i])} for i in range(len(names))],
        source="labels",
        area_rule=AREA_OF_LABELS,
        annotated=len(files),
        sizes=sizes,
    )
