"""COCO-format keypoint JSON -> YOLO-pose labels, data YAML and a sidecar for exact evaluation.

Shapes: N annotations of the keypoint category, K keypoints. Pixels as in the JSON: x to the right, y down, (0, 0) the top
left corner of the image.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from erpose_yolo.data.coco_json import read_json, write_annotations
from erpose_yolo.data.convert.files import install, safe_relative
from erpose_yolo.data.data_yaml import DataError, load_data_yaml
from erpose_yolo.data.labels import Array
from erpose_yolo.data.progress import Progress
from erpose_yolo.data.skeletons import CROWDPOSE_14, flip_from_names, keypoint_names, known_skeleton, side_of
from erpose_yolo.method.sigmas import DEFAULT_SIGMA

# Not needed for keypoint evaluation
DROPPED_OF_IMAGE = ("license", "coco_url", "flickr_url", "date_captured")

EDGE = 1.0  # px: a keypoint so little outside the image is a click on its border and is moved there
SHOWN = 5  # examples in a message

HEADER = "# Made by `erpose convert`. Without `path:` the root is this folder, so it can be moved as a whole.\n"


@dataclass
class Source:
    """A keypoint JSON that has passed every check.

    Attributes:
        file: of it.
        images: entries as the sidecar holds them, ``file_name`` being the path in the data set, parted by '/'.
        given: their ``file_name`` as the JSON has it.
        category: the keypoint category.
        annotations: N of that category, as the sidecar holds them.
        keypoints: (N, K, 3) pixels and visibility.
        boxes: (N, 4) x, y, width, height in pixels; NaN where none is given.
        owner: (N,) index into ``images``.
        others: number of annotations of other categories.
    """

    file: Path
    images: list[dict[str, Any]]
    given: list[str]
    category: dict[str, Any]
    annotations: list[dict[str, Any]]
    keypoints: Array
    boxes: Array
    owner: NDArray[np.int64]
    others: int

    @property
    def names(self) -> list[str]:
        """Names of the K keypoints."""
        return [str(name) for name in self.category["keypoints"]]


@dataclass
class Summary:
    """What was converted, for the report."""

    images: int = 0
    persons: int = 0
    regions: int = 0
    crowds: int = 0
    other_category: int = 0
    left_out: int = 0
    keypoints_outside: int = 0
    keypoints_moved: int = 0
    boxes_clipped: int = 0
    boxes_derived: int = 0
    without_area: int = 0
    missing: int = 0
    notes: list[str] = field(default_factory=list)


def convert(
    file: Path,
    out: Path,
    images: Path | None = None,
    split: str = "train",
    how: str = "link",
    crowdpose: bool = False,
    category: str | None = None,
    skip_empty: bool = False,
    skip_missing: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Convert a keypoint JSON into a split of a data set.

    Args:
        file: COCO-format JSON with `images`, `annotations`, `categories`.
        out: root of the data set; other splits in it are kept.
        images: folder of the images; may be None where ``how`` is "none".
        split: train, val, test or minival.
        how: "link" (symbolic links), "copy", or "none" (a list OUT/SPLIT.txt, images are put there by the user).
        crowdpose: insist on CrowdPose's 14 keypoints and a crowd index for every image.
        category: name of the keypoint category, where there are several.
        skip_empty: leave out images without a labelled keypoint.
        skip_missing: leave out images whose file is absent, instead of an error.
        overwrite: replace this split if it is there.

    Returns:
        The counts.

    Raises:
        DataError: the JSON cannot be used; nothing has been written.
        FileNotFoundError: the JSON or images are absent.
        FileExistsError: the split exists.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file. Fix: give the path of the annotation JSON.")
    if images is None and how != "none":
        raise DataError("the folder of the images is needed to link or copy them. Fix: add --images DIR, or --none.")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"{images} is no folder. Fix: give the folder of the images as --images.")
    finals = [out / "images" / split, out / "labels" / split, out / "annotations" / f"{split}.json", out / f"{split}.txt"]
    there = [path for path in (finals if how != "none" else finals[1:]) if os.path.lexists(path)]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists. Fix: choose another --split or --out, or replace it with --overwrite.")
    if how != "none" and images is not None and images.resolve() == finals[0].resolve():
        raise DataError(f"{images} is already where the images go. Fix: leave them there with --none.")

    source = read(file, category)
    if crowdpose:
        _insist_on_crowdpose(source)
    summary = Summary()
    listed = f"{split}.txt" if how == "none" else f"images/{split}"
    description = _merge(out / "data.yaml", _describe(source, summary), split, listed, overwrite)
    persons = _to_rows(source, summary)
    keep = _images(source, images, persons.seen, skip_empty, skip_missing, summary)

    new = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".convert-", dir=out))
    try:
        _write_labels(stage / "labels", source, persons, keep, summary)
        if how == "none":
            lines = (f"./images/{split}/{source.images[i]['file_name']}\n" for i in np.flatnonzero(keep))
            (stage / "images").write_text("".join(lines), encoding="utf-8")
        else:
            assert images is not None
            _place_images(stage / "images", source, images, keep, how)
        _write_sidecar(stage / "sidecar.json", source, keep)
        (stage / "data.yaml").write_text(HEADER + _dump(description), encoding="utf-8")

        labels = out / "labels" / split
        staged = [(stage / "labels", labels), (stage / "sidecar.json", out / "annotations" / f"{split}.json")]
        staged.append((stage / "images", out / listed))
        trash = stage / "trash"
        trash.mkdir()
        install([*staged, (stage / "data.yaml", out / "data.yaml")], trash)
        # Ultralytics knows its cache by names and sizes of the files alone, which may be the same
        labels.with_suffix(".cache").unlink(missing_ok=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in new:  # an error leaves no trace
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return summary


# -- reading ---------------------------------------------------------------------------------------------------------


def read(file: Path, category: str | None = None) -> Source:
    """Read and check a keypoint JSON.

    Args:
        file: the JSON.
        category: name of the keypoint category, where there are several.

    Raises:
        DataError: it cannot be used; the first thing that is wrong is named.
    """
    document = read_json(file)
    if not isinstance(document, dict):
        raise DataError(f"{file}: must be an object, is {type(document).__name__}. Fix: give a COCO-format annotation file.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            state = "is no list" if key in document else f"is missing; the file has {_listed(document)}"
            raise DataError(f"{file}: `{key}` {state}. Fix: give a COCO-format keypoint annotation file.")
        if not document[key] and key != "annotations":  # there may be images without anybody
            raise DataError(f"{file}: `{key}` is empty, so there is nothing to convert. Fix: make the file again.")
        what = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
        for number, entry in enumerate(document[key]):
            _check_keys(entry, file, what, number)
    places = _places(document["images"], file, "image")
    _places(document["annotations"], file, "annotation")
    images, given = [], []
    for entry in document["images"]:
        where = f"{file}: image {entry['id']}"
        for key in ("width", "height"):
            if not _is_number(entry[key]) or entry[key] == 0:
                raise DataError(f"{where}: {key} is {entry[key]!r}. Fix: write the image's {key} in pixels.")
        path = safe_relative(entry["file_name"])
        if path is None:
            raise DataError(f"{where}: file_name is {entry['file_name']!r}. Fix: write a path inside the folder of the images.")
        given.append(entry["file_name"])
        images.append({**{k: v for k, v in entry.items() if k not in DROPPED_OF_IMAGE}, "file_name": path})

    chosen = _choose_category(document["categories"], file, category)
    known = sorted(entry["id"] for entry in document["categories"])
    k = len(chosen["keypoints"])
    taken: list[dict[str, Any]] = []
    poses, boxes, owner = [], [], []
    for entry in document["annotations"]:
        where = f"{file}: annotation {entry['id']}"
        if entry["category_id"] not in known:
            raise DataError(
                f"{where}: category_id {entry['category_id']} is not among `categories` ({', '.join(map(str, known))}). Fix: add "
                "the category."
            )
        if entry["category_id"] != chosen["id"]:
            continue
        if entry["image_id"] not in places:
            raise DataError(
                f"{where}: image_id {entry['image_id']} is not among `images`. Fix: add the image, or remove the annotation."
            )
        pose, box = _read_pose(entry, where, k, chosen["name"]), _read_box(entry, where)
        seen = pose[:, 2] > 0
        if entry.get("bbox") is None and not seen.any():
            raise DataError(f"{where}: has neither a bbox nor a labelled keypoint. Fix: add the bbox, or remove the annotation.")
        area = entry.get("area")
        if area is not None and not _is_number(area):  # without one the evaluation takes a share of the box and says so
            raise DataError(f"{where}: area is {area!r}. Fix: write the segment's area in square pixels, or leave it out.")
        entry.setdefault("iscrowd", 0)
        if entry.get("keypoints") is not None:
            if entry.get("num_keypoints") is None:
                entry["num_keypoints"] = int(seen.sum())  # pycocotools asks for it
            if entry.get("bbox") is None:
                low, high = pose[seen, :2].min(0), pose[seen, :2].max(0)
                entry["bbox"] = np.concatenate((low, high - low))
        taken.append(entry)
        poses.append(pose)
        boxes.append(box)
        owner.append(places[entry["image_id"]])
    return Source(
        file=file,
        images=images,
        given=given,
        category=chosen,
        annotations=taken,
        keypoints=np.array(poses, np.float64).reshape(-1, k, 3),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        owner=np.array(owner, np.int64),
        others=len(document["annotations"]) - len(taken),
    )


KEYS = {
    "image": ("id", "file_name", "width", "height"),
    "annotation": ("id", "image_id", "category_id"),
    "category": ("id", "name"),
}


def _check_keys(entry: Any, file: Path, what: str, number: int) -> None:
    """Make sure that an entry has the keys that it needs, and whole numbers as ids."""
    where = f"{file}: {what} {entry.get('id', f'number {number}') if isinstance(entry, dict) else f'number {number}'}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object, is {type(entry).__name__}. Fix: make the file again.")
    for key in KEYS[what]:
        if key not in entry:
            raise DataError(f"{where}: the key {key!r} is missing. Fix: add it.")
        if key.endswith("id") and (isinstance(entry[key], bool) or not isinstance(entry[key], int)):
            raise DataError(f"{where}: {key} is {entry[key]!r}, it must be an integer. Fix: number the entries.")


def _places(entries: list[dict[str, Any]], file: Path, what: str) -> dict[int, int]:
    """Index of each entry by its id."""
    places = {entry["id"]: i for i, entry in enumerate(entries)}
    if len(places) < len(entries):
        twice, times = Counter(entry["id"] for entry in entries).most_common(1)[0]
        raise DataError(f"{file}: {what} id {twice} is used {times} times. Fix: give every entry an id of its own.")
    return places


def _read_pose(entry: Mapping[str, Any], where: str, keypoints: int, category: str) -> Array:
    """Keypoints (K, 3) of an annotation; zeros for a region that has none."""
    points, wanted = entry.get("keypoints"), 3 * keypoints
    if points is None and (entry.get("iscrowd") or entry.get("num_keypoints") == 0):
        return np.zeros((keypoints, 3))
    if points is not None and (not isinstance(points, np.ndarray) or points.ndim != 1):
        raise DataError(f"{where}: keypoints must be a list of numbers. Fix that annotation.")
    if points is None or len(points) != wanted:
        what = "the key 'keypoints' is missing" if points is None else f"keypoints has {len(points)} numbers"
        raise DataError(
            f"{where}: {what}, {wanted} are needed for the {keypoints} keypoints of category {category!r}. Fix this annotation, "
            "or the category."
        )
    pose: Array = points.reshape(-1, 3)
    if not np.isfinite(pose).all():
        raise DataError(f"{where}: a keypoint is NaN or infinite. Fix or remove it.")
    if not set(pose[:, 2].tolist()) <= {0, 1, 2}:
        raise DataError(f"{where}: a visibility is not 0, 1 or 2. Fix: 0 is not labelled, 1 hidden, 2 visible.")
    return pose


def _read_box(entry: Mapping[str, Any], where: str) -> list[float]:
    """Box x, y, width, height of an annotation, NaN where it has none."""
    box = entry.get("bbox")
    if box is None:
        return [math.nan] * 4
    if not isinstance(box, list) or not all(isinstance(v, (int, float)) for v in box):
        raise DataError(f"{where}: bbox must be a list of numbers. Fix that annotation.")
    if len(box) != 4:
        raise DataError(f"{where}: bbox has {len(box)} numbers. Fix: write x, y, width, height in pixels.")
    if not all(map(math.isfinite, box)):
        raise DataError(f"{where}: bbox is NaN or infinite. Fix or remove it.")
    if min(box[2:]) < 0:
        raise DataError(f"{where}: bbox has a negative width or height. Fix: x, y, width, height.")
    return box


def _is_number(value: Any) -> bool:
    """Whether this is a finite number from 0 on."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _listed(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no keys"


def _choose_category(categories: list[dict[str, Any]], file: Path, wanted: str | None) -> dict[str, Any]:
    """The keypoint category: the one of that name, or the only one."""
    posed = [c for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]]
    if not posed:
        raise DataError(
            f"{file}: no category has `keypoints` (categories: {_listed(c['name'] for c in categories)}), so this is no keypoint "
            "file. Fix: take the file with keypoints, for COCO person_keypoints_*.json."
        )
    titles = _listed(c["name"] for c in posed)
    if wanted is not None:
        named = [c for c in posed if c["name"] == wanted]
        if len(named) != 1:
            raise DataError(f"{file}: {len(named)} keypoint categories are named {wanted!r}; there are {titles}. Fix --category.")
        return named[0]
    if len(posed) > 1:
        raise DataError(
            f"{file}: several categories have keypoints: {titles}. A data set of this package has one. Fix: choose it with "
            "--category NAME."
        )
    return posed[0]


def _insist_on_crowdpose(source: Source) -> None:
    names, without = source.names, sum("crowdIndex" not in entry for entry in source.images)
    if known_skeleton(names) is not CROWDPOSE_14:
        raise DataError(
            f"{source.file}: has {len(names)} keypoints ({', '.join(names[:4])}, ...), not CrowdPose's 14. "
            "Fix: erpose convert coco takes any keypoints."
        )
    if without:
        raise DataError(
            f"{source.file}: {without} of {len(source.images)} images have no crowdIndex, which CrowdPose's easy/medium/hard "
            "scores need. Fix: take CrowdPose's own file, or erpose convert coco."
        )


# -- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Persons:
    """Label rows of N annotations, as shares of the image: boxes (N, 4) in centre form, keypoints (N, K, 3)."""

    boxes: Array
    keypoints: Array
    seen: NDArray[np.bool_]  # (N,) has a labelled keypoint and is no crowd
    usable: NDArray[np.bool_]  # (N,) has a place in the image


def _to_rows(source: Source, summary: Summary) -> Persons:
    """Pixels -> shares of the image; crowds lose their keypoints, what lies outside the image is clipped."""
    poses, boxes = source.keypoints, source.boxes
    size = np.array([(entry["width"], entry["height"]) for entry in source.images], np.float64)[source.owner]  # (N, 2)
    crowd = np.array([bool(entry["iscrowd"]) for entry in source.annotations], bool)
    summary.other_category = source.others
    summary.without_area = sum(entry.get("area") is None for entry in source.annotations)
    point, label = poses[:, :, :2], poses[:, :, 2] > 0
    label &= ~crowd[:, None]
    summary.crowds = int(crowd.sum())
    limit = size[:, None]
    outside: Any = ((point < 0) | (point > limit)).any(2) & label
    near = ((point >= -EDGE) & (point <= limit + EDGE)).all(2)
    summary.keypoints_moved = int((outside & near).sum())
    summary.keypoints_outside = int((outside & ~near).sum())
    label &= near | ~outside
    keypoints = np.zeros_like(poses)
    np.divide(np.clip(point, 0, limit), limit, out=keypoints[:, :, :2])
    keypoints[:, :, 2] = poses[:, :, 2]
    keypoints[~label] = 0
    seen: Any = label.any(1)

    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    corner = [np.clip(low, 0, size), np.clip(high, 0, size)]
    beyond = ((low < -1e-3) | (high > size + 1e-3)).any(1)
    flat: Any = ~((corner[1] - corner[0]) > 0).all(1)  # NaN, that is no box, included
    derive = flat & seen
    if derive.any():
        corner[0][derive], corner[1][derive] = _boxes_of_keypoints(keypoints[derive], label[derive], size[derive])
    summary.boxes_derived = int(derive.sum())
    summary.boxes_clipped = int((beyond & ~flat).sum())
    centre = (corner[0] + corner[1]) / 2 / size
    side = (corner[1] - corner[0]) / size
    return Persons(np.concatenate((centre, side), 1), keypoints, seen, ~flat | seen)


def _boxes_of_keypoints(keypoints: Array, label: NDArray[np.bool_], size: Array) -> tuple[Array, Array]:
    """Corners (N, 2), (N, 2) in pixels around the labelled keypoints, no side shorter than a quarter of the other or 4 px.

    The same least aspect as the area rule of :mod:`erpose_yolo.method.oks` takes.
    """
    point = keypoints[:, :, :2] * size[:, None]
    low = np.where(label[..., None], point, np.inf).min(1)
    high = np.where(label[..., None], point, -np.inf).max(1)
    side = np.maximum(high - low, np.maximum((high - low).max(1, keepdims=True) / 4, 4.0))
    centre = (low + high) / 2
    return np.clip(centre - side / 2, 0, size), np.clip(centre + side / 2, 0, size)


def _images(
    source: Source, images: Path | None, seen: NDArray[np.bool_], skip_empty: bool, skip_missing: bool, summary: Summary
) -> NDArray[np.bool_]:
    """Which images are converted; checks that their files are there and that their labels do not collide."""
    keep = np.ones(len(source.images), bool)
    if skip_empty:
        keep = np.bincount(source.owner[seen], minlength=len(keep)) > 0
        summary.left_out = int((~keep).sum())
    stems: dict[str, int] = {}
    for i, entry in enumerate(source.images):
        stem = entry["file_name"].rpartition(".")[0]
        if stem in stems:
            first, again = ((source.images[j]["id"], source.given[j]) for j in (stems[stem], i))
            raise DataError(
                f"{source.file}: images {first[0]} and {again[0]} ({first[1]}, {again[1]}) would share one label file. "
                "Fix: give them names that differ before the suffix."
            )
        stems[stem] = i
    if images is None:
        return keep
    absent = [i for i in np.flatnonzero(keep).tolist() if _file_of(str(images), source, i) is None]
    if absent and not skip_missing:
        some = ", ".join(source.given[i] for i in absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        raise FileNotFoundError(
            f"{source.file}: {len(absent)} of {int(keep.sum())} images are not in {images}: {some}. Fix: fetch them, give "
            "the right --images, or leave them out with --skip-missing."
        )
    if len(absent) == keep.sum() and absent:
        raise FileNotFoundError(f"{source.file}: none of the images is in {images}. Fix: give the right --images.")
    keep[absent] = False
    summary.missing = len(absent)
    return keep


def _file_of(images: str, source: Source, index: int) -> str | None:
    """File of an image: where its name says below the folder, or straight in it; None if it is in neither place."""
    name, given = source.images[index]["file_name"], source.given[index]
    places = (os.path.join(images, part) for part in (given.replace("\\", "/"), name.rpartition("/")[2]))
    return next((path for path in places if os.path.isfile(path)), None)


# -- writing ---------------------------------------------------------------------------------------------------------


def _write_labels(folder: Path, source: Source, persons: Persons, keep: NDArray[np.bool_], summary: Summary) -> None:
    """One file for every image, empty where nobody is: that says that it was looked at."""
    keypoints = persons.keypoints.shape[1]
    # 8 digits: the rounding is below 1e-4 px in an image of 10,000 px
    person = "0" + " %.8g" * 4 + " %.8g %.8g %d" * keypoints
    region = "0" + " %.8g" * 4 + " 0 0 0" * keypoints
    order = np.argsort(source.owner, kind="stable")
    ends = np.searchsorted(source.owner[order], np.arange(len(keep)), side="right")
    numbers = persons.keypoints.reshape(len(order), 3 * keypoints)
    folder.mkdir()
    bar = Progress("writing labels", int(keep.sum()))
    start = 0
    for i, end in enumerate(ends):
        rows = order[start:end]
        start = end
        if not keep[i]:
            continue
        rows = rows[persons.usable[rows]]
        text = []
        for box, pose, seen in zip(persons.boxes[rows].tolist(), numbers[rows].tolist(), persons.seen[rows]):
            text.append(person % (*box, *pose) if seen else region % tuple(box))
        with open(_place(folder, source.images[i]["file_name"].rpartition(".")[0] + ".txt"), "w", encoding="ascii") as handle:
            handle.write("\n".join(text) + "\n" if text else "")
        summary.images += 1
        seen_rows = int(persons.seen[rows].sum())
        summary.persons += seen_rows
        summary.regions += len(rows) - seen_rows
        bar.add()
    bar.close()


def _place_images(folder: Path, source: Source, images: Path, keep: NDArray[np.bool_], how: str) -> None:
    root = os.path.realpath(images)
    folder.mkdir()
    indices = np.flatnonzero(keep).tolist()
    for i in Progress("linking images" if how == "link" else "copying images", len(indices)).over(indices):
        file, target = _file_of(root, source, i), _place(folder, source.images[i]["file_name"])
        if file is None:
            raise FileNotFoundError(f"{source.given[i]} has gone from {images} meanwhile. Fix: run it again.")
        if how == "copy":
            shutil.copyfile(file, target)
            continue
        try:
            os.symlink(file, target)
        except OSError as error:
            raise DataError(f"cannot make links in {folder.parent.parent}: {error}. Fix: use --copy or --none.") from None


def _place(folder: Path, name: str) -> str:
    """Path of a name that is parted by '/', whose own folders are made."""
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _write_sidecar(file: Path, source: Source, keep: NDArray[np.bool_]) -> None:
    """The annotations without polygons, with the images' names in the data set: what pycocotools evaluates on."""
    limbs = [[a + 1, b + 1] for a, b in _limbs(source)[0]]
    info = {"description": f"{source.file.name}, filtered by erpose convert: no segmentation"}
    images = (entry for entry, kept in zip(source.images, keep) if kept)
    annotations = (entry for entry, kept in zip(source.annotations, keep[source.owner]) if kept)
    head = {"info": info, "categories": [{**source.category, "skeleton": limbs}]}
    write_annotations(file, head, {"images": images, "annotations": annotations})


# -- data YAML -------------------------------------------------------------------------------------------------------


def _limbs(source: Source) -> tuple[list[list[int]], bool]:
    """The category's limbs, counted from 0, and True; the published ones or none and False where its own are no use."""
    pairs, names = source.category.get("skeleton"), source.names
    keypoints = range(1, len(names) + 1)  # COCO counts from 1
    if isinstance(pairs, list) and pairs:
        if all(isinstance(p, list) and len(p) == 2 and p[0] in keypoints and p[1] in keypoints for p in pairs):
            return [[int(a) - 1, int(b) - 1] for a, b in pairs], True
    known = known_skeleton(names)
    return [list(pair) for pair in known.limbs] if known else [], False


def _describe(source: Source, summary: Summary) -> dict[str, Any]:
    """The keys of the data YAML that the JSON knows."""
    chosen, names = source.category, source.names
    data: dict[str, Any] = {"kpt_shape": [len(names), 3], "names": {0: str(chosen["name"])}, "kpt_names": {0: names}}
    known = known_skeleton(names)
    if known:
        data["kpt_oks_sigmas"] = list(known.sigmas)
    else:
        summary.notes.append(
            f"no published sigmas for these {len(names)} keypoints: OKS takes {DEFAULT_SIGMA} for each, about COCO's mean. "
            "kpt_oks_sigmas in data.yaml sets others."
        )
    flip, alone = flip_from_names(names)
    if alone or (len(names) > 1 and not any(side_of(name)[0] for name in names)):
        why = f"{alone[0]!r} has no partner on the other side" if alone else "the keypoints' names tell no sides"
        summary.notes.append(f"no flip_idx written, so training does not mirror: {why}. Add flip_idx to data.yaml.")
    else:
        data["flip_idx"] = flip
    limbs, own = _limbs(source)
    if limbs:
        data["skeleton"] = limbs
    if chosen.get("skeleton") and not own:
        instead = f"{known.title}'s limbs are written in its place" if known else "it is left out"
        summary.notes.append(f"the file's skeleton is not pairs of keypoints from 1 to {len(names)}: {instead}.")
    return data


def _merge(file: Path, new: dict[str, Any], split: str, where: str, overwrite: bool) -> dict[str, Any]:
    """Add a split to the data YAML that is there, or begin one; what its owner added is kept.

    Raises:
        DataError: the data YAML is of other keypoints.
    """
    data: dict[str, Any] = {}
    if file.is_file():
        there = load_data_yaml(file)
        data = dict(there.data)
        k, shape = new["kpt_shape"][0], data.get("kpt_shape")
        line = f"{file}:{there.lines.get('kpt_shape', 1)}"
        if shape is not None and shape != new["kpt_shape"]:
            raise DataError(
                f"{line}: kpt_shape is {shape}, but the file to convert has {k} keypoints: {new['kpt_shape']}. Fix: convert "
                "it into another --out."
            )
        old = keypoint_names(data.get("kpt_names"), k)
        if old is not None and old != new["kpt_names"][0]:
            first = next(i for i in range(k) if old[i] != new["kpt_names"][0][i])
            raise DataError(
                f"{file}:{there.lines['kpt_names']}: keypoint {first} is {old[first]!r}, but {new['kpt_names'][0][first]!r} in "
                "the file to convert. Fix: convert it into another --out."
            )
        if data.get(split) not in (None, where) and not overwrite:
            raise FileExistsError(
                f"{file}:{there.lines[split]}: {split} is {data[split]!r} already. Fix: another --split, or --overwrite."
            )
    data[split] = where
    data["annotations"] = {**(data.get("annotations") or {}), split: f"annotations/{split}.json"}
    for key, value in new.items():
        data.setdefault(key, value)
    order = ["path", "train", "val", "test", "minival", "annotations"]
    first_keys = {key: data[key] for key in order if data.get(key) is not None}
    return {**first_keys, **{key: value for key, value in data.items() if key not in order}}


def _dump(data: dict[str, Any]) -> str:
    return yaml.dump(data, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
