"""YOLO-pose labels -> COCO-format keypoint JSON, the way back of :mod:`erpose_yolo.data.convert.from_coco`.

What rows cannot say (segment area, crowd, image ids, crowd index) comes from the split's sidecar where there is one:
a row takes over the annotation whose box or keypoints it was made from. A row without such an annotation, which somebody
added or moved, gets a new id and the area rule's area, 0.53 of its box.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo.data.coco_json import read_json, write_annotations
from erpose_yolo.data.data_yaml import DataError, DataYaml, load_data_yaml
from erpose_yolo.data.images import image_size, images_of, label_of
from erpose_yolo.data.labels import Array, Rows, read_rows
from erpose_yolo.data.progress import Progress
from erpose_yolo.data.skeletons import keypoint_names, known_skeleton, read_kpt_shape
from erpose_yolo.files import written_whole

SAME = 0.5  # px: a row and an annotation of the sidecar that differ by less are the same person


@dataclass
class Sidecar:
    """The original annotations of a split, by the images' names in the data set."""

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by image id
    categories: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Summary:
    """What was converted."""

    images: int = 0
    annotations: int = 0
    matched: int = 0


def convert(data_yaml: Path, split: str, out: Path, overwrite: bool = False) -> Summary:
    """Write the labels of a split as a COCO-format JSON.

    Args:
        data_yaml: the data set.
        split: train, val, test or minival.
        out: the JSON to write.
        overwrite: replace it if it is there.

    Raises:
        DataError: the data YAML or a label file is wrong; nothing has been written.
        FileNotFoundError: something that is needed is absent.
        FileExistsError: the JSON exists.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Fix: another --out, or replace it with --overwrite.")
    source = load_data_yaml(data_yaml)
    try:
        keypoints, dims = read_kpt_shape(source.data.get("kpt_shape"), f"{source.file}:{source.lines.get('kpt_shape', 1)}")
    except ValueError as error:
        raise DataError(str(error)) from None
    if not source.data.get(split):
        raise DataError(f"{source.file}:1: no split {split!r}. Fix: choose one with --split.")
    side = _read_sidecar(source, split)
    images = images_of(source.entries(split))
    roots = [entry for entry in source.entries(split) if entry.is_dir()] or [source.root / "images" / split]
    names = source.data.get("names") or {0: "person"}
    names = dict(enumerate(names)) if isinstance(names, list) else names
    categories = _categories(source, side, names, keypoints)
    next_id = max((a["id"] for group in side.annotations.values() for a in group), default=0) + 1
    image_ids = _image_ids(images, side)
    summary, entries, annotations = Summary(len(images)), [], []
    for number, image in enumerate(Progress("converting labels", len(images)).over(images)):
        name = _name_in(image, roots)
        entry = side.images.get(name)
        if entry is None:
            try:
                width, height = image_size(image)
            except OSError as error:
                raise DataError(f"{image}: cannot be read: {error}. Fix: replace the image.") from None
            entry = {"id": image_ids[number], "file_name": name, "width": width, "height": height}
        entries.append(entry)
        label = label_of(image)
        if not label.is_file():
            continue
        rows = read_rows(label, keypoints, dims)
        for first in rows.problems:
            raise DataError(f"{label}:{first.line}: {first.what}. Fix: {first.fix}.")
        for annotation, match in _annotations(rows, entry, side.annotations.get(entry["id"], []), categories, label):
            if match is None:
                annotation["id"] = next_id
                next_id += 1
            else:
                summary.matched += 1
            annotations.append(annotation)
    summary.annotations = len(annotations)
    info = {"description": f"{source.file.name} by erpose convert; area: of the sidecar, else 0.53 x width x height"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as part:
        write_annotations(part, {"info": info, "categories": categories}, {"images": entries, "annotations": annotations})
    return summary


def _read_sidecar(source: DataYaml, split: str) -> Sidecar:
    """The sidecar of a split, empty where there is none."""
    file, side = source.annotations(split), Sidecar()
    if file is None:
        return side
    if not file.is_file():
        raise FileNotFoundError(f"{source.file}:{source.lines['annotations']}: {file} is no file. Fix: convert again.")
    content = read_json(file)
    try:
        side.images = {entry["file_name"]: entry for entry in content["images"]}
        side.categories = content["categories"]
        for entry in content["annotations"]:
            side.annotations.setdefault(entry["image_id"], []).append(entry)
    except (KeyError, TypeError):
        raise DataError(f"{file}: not as erpose convert writes it. Fix: convert again.") from None
    return side


def _categories(source: DataYaml, side: Sidecar, names: dict[int, str], keypoints: int) -> list[dict[str, Any]]:
    """One category a class; ids are those of the sidecar, else class index + 1."""
    titles = keypoint_names(source.data.get("kpt_names"), keypoints)
    limbs = source.data.get("skeleton")
    if titles is None and (guess := known_skeleton(None, keypoints)) is not None:
        titles, limbs = list(guess.names), limbs or guess.limbs  # rows do not need names, COCO files do
    titles = titles or [f"keypoint_{k}" for k in range(keypoints)]
    out = []
    for index, name in sorted(names.items()):
        theirs = next((c for c in side.categories if c.get("name") == name), None)
        number = theirs["id"] if theirs else index + 1
        pairs = [[a + 1, b + 1] for a, b in limbs or []]
        out.append({"id": number, "name": str(name), "keypoints": titles, "skeleton": pairs})
    return out


def _image_ids(images: list[Path], side: Sidecar) -> list[int]:
    """Ids of the images that the sidecar does not know: the number in the name where all are such, as in COCO."""
    if not side.images:
        stems = [p.stem for p in images]
        if all(s.isascii() and s.isdigit() and len(s) < 19 for s in stems) and len({int(s) for s in stems}) == len(stems):
            return [int(s) for s in stems]
        return list(range(1, len(images) + 1))
    first = max(entry["id"] for entry in side.images.values()) + 1
    return list(range(first, first + len(images)))


def _name_in(image: Path, roots: list[Path]) -> str:
    """Name of an image relative to its split's folder."""
    for root in roots:
        if image.is_relative_to(root):
            return image.relative_to(root).as_posix()
    return image.name


def _annotations(
    rows: Rows, image: dict[str, Any], known: list[dict[str, Any]], categories: list[dict[str, Any]], label: Path
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The rows of an image as annotations, each with the annotation of the sidecar that it takes over or None."""
    width, height = float(image["width"]), float(image["height"])
    poses = rows.posed().copy()
    poses[:, :, :2] *= (width, height)
    seen: Any = poses[:, :, 2] > 0
    poses[~seen] = 0
    boxes = rows.boxes * (width, height, width, height)
    corners = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), 1)  # x, y, width, height
    free: Any = np.isnan(corners).any(1)
    out: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    left = list(known)
    for n in range(len(poses)):
        line = f"{label}:{rows.lines[n]}"
        category = int(rows.category[n]) if np.isfinite(rows.category[n]) else -1
        if not 0 <= category < len(categories) or category != rows.category[n]:
            raise DataError(f"{line}: class {rows.category[n]:g} is not among `names`. Fix: the row, or names.")
        if not np.isfinite(poses[n]).all() or (not free[n] and not np.isfinite(corners[n]).all()):
            raise DataError(f"{line}: a value is NaN or infinite. Fix that row.")
        box = _box_of(poses[n][seen[n]]) if free[n] else corners[n]
        match = _match(poses[n], box, seen[n], left, width, height)
        annotation: dict[str, Any] = {}
        if match is not None:
            left = [candidate for candidate in left if candidate is not match]
            annotation.update(match)
        annotation["image_id"] = image["id"]
        annotation["category_id"] = categories[category]["id"]
        annotation.setdefault("iscrowd", 0)
        if match is None:
            annotation["area"] = _area(box)
        annotation["bbox"] = _rounded(box)
        annotation["keypoints"] = _rounded(poses[n].reshape(-1))
        annotation["num_keypoints"] = int(seen[n].sum())
        out.append((annotation, match))
    return out


def _box_of(points: Array) -> Array:
    """Box x, y, width, height around labelled keypoints; zero where there is none."""
    if not len(points):
        return np.zeros(4)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return np.concatenate((low, high - low))


def _match(
    pose: Array, box: Array, seen: Any, candidates: list[dict[str, Any]], width: float, height: float
) -> dict[str, Any] | None:
    """The annotation that the row was made from: same labelled keypoints, or the same box where none is labelled."""
    for candidate in candidates:
        theirs = np.asarray(candidate.get("keypoints", np.zeros(pose.size)), float).reshape(-1, 3)
        inside = (theirs[:, 2] > 0) & ((theirs[:, :2] >= -1) & (theirs[:, :2] <= (width + 1, height + 1))).all(1)
        if candidate.get("iscrowd"):
            inside[:] = False
        if theirs.shape != pose.shape or (inside != seen).any():
            continue
        if seen.any():
            clipped = np.clip(theirs[seen, :2], 0, (width, height))
            if np.abs(clipped - pose[seen, :2]).max() < SAME:
                return candidate
        elif candidate.get("bbox") is not None:
            x, y, w, h = candidate["bbox"]
            low, high = np.clip((x, y), 0, (width, height)), np.clip((x + w, y + h), 0, (width, height))
            if np.abs(np.concatenate((low, high - low)) - box).max() < SAME:
                return candidate
    return None


def _area(box: Array) -> float:
    import torch

    from erpose_yolo.method.oks import object_area

    corners = torch.tensor([box[0], box[1], box[0] + box[2], box[1] + box[3]], dtype=torch.float64)
    return round(float(object_area(corners)), 4)


def _rounded(values: Array) -> list[float]:
    """Plain numbers to 1e-4 px, whole ones as integers."""
    return [int(v) if v == int(v) else v for v in np.round(values, 4).tolist()]
