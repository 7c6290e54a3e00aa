"""COCO-format keypoint JSON -> YOLO-pose labels, data YAML and a sidecar for exact evaluation.

Shapes: N annotations of the keypoint category, K keypoints. Pixels as in the JSON: x to the right, y down, (0, 0) the top
left corner of the image.

One pass over the file: what the label rows need goes into flat arrays (0.5 kB an annotation), and every annotation
without its polygon goes to a spool file at once, since the categories that decide which of them count may come last.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from erpose_yolo.data.convert.files import install, safe_relative
from erpose_yolo.data.convert.stream import JsonStream
from erpose_yolo.data.data_yaml import DataError, load_data_yaml
from erpose_yolo.data.labels import Array
from erpose_yolo.data.progress import Progress
from erpose_yolo.data.skeletons import CROWDPOSE_14, flip_from_names, keypoint_names, known_skeleton, side_of
from erpose_yolo.method.sigmas import DEFAULT_SIGMA

# Not needed for keypoint evaluation, and nine tenths of the file
DROPPED = ("segmentation",)
DROPPED_OF_IMAGE = ("license", "coco_url", "flickr_url", "date_captured")

EDGE = 1.0  # px: a keypoint so little outside the image is a click on its border and is moved there
SHOWN = 5  # examples in a message

HEADER = "# Made by `erpose convert`. Without `path:` the root is this folder, so it can be moved as a whole.\n"


@dataclass
class Collected:
    """What one pass over the JSON keeps."""

    file: Path
    image_ids: array = field(default_factory=lambda: array("q"))
    image_sizes: array = field(default_factory=lambda: array("d"))  # width, height
    image_names: list[str] = field(default_factory=list)  # path in the data set, parted by '/'
    image_extra: list[str] = field(default_factory=list)  # JSON text of the entry, completed later
    sources: list[str] = field(default_factory=list)  # file_name as given
    with_crowd_index: int = 0
    categories: list[dict[str, Any]] = field(default_factory=list)
    ids: array = field(default_factory=lambda: array("q"))
    owners: array = field(default_factory=lambda: array("q"))
    kinds: array = field(default_factory=lambda: array("q"))
    crowd: array = field(default_factory=lambda: array("b"))
    empty: array = field(default_factory=lambda: array("b"))  # num_keypoints is there and 0
    offsets: array = field(default_factory=lambda: array("q"))  # byte in the file, for messages
    boxes: array = field(default_factory=lambda: array("d"))  # x, y, width, height; NaN where not given
    has_box: array = field(default_factory=lambda: array("b"))
    lengths: array = field(default_factory=lambda: array("q"))  # numbers in `keypoints`, -1 where not given
    keypoints: array = field(default_factory=lambda: array("d"))
    without_area: int = 0


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
        JsonError, DataError: the JSON cannot be used; nothing has been written.
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

    new = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".convert-", dir=out))
    try:
        return _convert(file, out, stage, images, split, how, crowdpose, category, skip_empty, skip_missing, overwrite)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in new:  # an error leaves no trace
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _convert(
    file: Path,
    out: Path,
    stage: Path,
    images: Path | None,
    split: str,
    how: str,
    crowdpose: bool,
    category: str | None,
    skip_empty: bool,
    skip_missing: bool,
    overwrite: bool,
) -> Summary:
    summary = Summary()
    spool = stage / "spool"
    with spool.open("w", encoding="ascii") as handle:
        found = collect(file, handle)
    chosen = _choose_category(found, category)
    names = [str(name) for name in chosen["keypoints"]]
    if crowdpose:
        _insist_on_crowdpose(found, names)
    description = _describe(found, chosen, names, summary)
    description = _merge(out / "data.yaml", description, split, "images/" + split if how != "none" else f"{split}.txt",
                         overwrite)  # fmt: skip

    keypoints, boxes, select = _check(found, chosen, len(names))
    summary.other_category = len(found.ids) - len(select)
    owner, order = _owners(found, select)
    persons = _to_rows(found, keypoints, boxes, select, owner, summary)
    keep = _images(found, images, owner, persons.seen, skip_empty, skip_missing, summary)

    _write_labels(stage / "labels", found, persons, owner, order, keep, summary)
    if how == "none":
        lines = (f"./images/{split}/{found.image_names[i]}\n" for i in np.flatnonzero(keep))
        (stage / "list.txt").write_text("".join(lines), encoding="utf-8")
    else:
        assert images is not None
        _place_images(stage / "images", found, images, keep, how)
    kept_rows = np.zeros(len(found.ids), bool)
    kept_rows[select] = keep[owner]
    _write_sidecar(stage / "sidecar.json", spool, found, chosen, keep, kept_rows, names)
    (stage / "data.yaml").write_text(HEADER + _dump(description), encoding="utf-8")

    labels = out / "labels" / split
    staged = [(stage / "labels", labels), (stage / "sidecar.json", out / "annotations" / f"{split}.json")]
    if how == "none":
        staged.append((stage / "list.txt", out / f"{split}.txt"))
    else:
        staged.append((stage / "images", out / "images" / split))
    trash = stage / "trash"
    trash.mkdir()
    install([*staged, (stage / "data.yaml", out / "data.yaml")], trash)
    # Ultralytics knows its cache by names and sizes of the files alone, which may be the same
    labels.with_suffix(".cache").unlink(missing_ok=True)
    return summary


def _view(values: array) -> NDArray[Any]:
    """The numbers of an array without copying them."""
    return np.frombuffer(values, values.typecode) if values else np.empty(0, values.typecode)


# -- reading ---------------------------------------------------------------------------------------------------------


def collect(file: Path, spool: Any) -> Collected:
    """Read the JSON once.

    Args:
        file: the JSON.
        spool: text file that every annotation is written to, one a line.
    """
    found = Collected(file)
    bar = Progress(f"reading {file.name}", file.stat().st_size, " MB", 1e6)
    stream = JsonStream(file, on_read=bar.add)
    takers = {"images": _take_image, "categories": _take_category}
    dump = json.JSONEncoder(separators=(",", ":")).encode
    try:
        for key, index, value in stream:
            if key == "annotations" and index is not None:
                _take_annotation(found, value, stream.offset)
                spool.write(dump(value))
                spool.write("\n")
            elif key in takers and index is not None:
                takers[key](found, value, stream.offset)
    finally:
        bar.close()
    for key in ("images", "annotations", "categories"):
        if stream.keys.get(key) is None:
            state = "is no list" if key in stream.keys else f"is missing; the file has {_listed(stream.keys)}"
            raise DataError(f"{file}: `{key}` {state}. Fix: give a COCO-format keypoint annotation file.")
        if not stream.keys[key]:
            if key == "annotations":
                continue  # a set of images without anybody
            raise DataError(f"{file}: `{key}` is empty, so there is nothing to convert. Fix: make the file again.")
    ids = _view(found.image_ids)
    _refuse_twice(file, "image", ids)
    _refuse_twice(file, "annotation", _view(found.ids))
    return found


def _take_image(found: Collected, entry: Any, offset: int) -> None:
    where = f"{found.file}: byte {offset}: image {entry.get('id') if isinstance(entry, dict) else '?'}"
    _need(entry, where, "id", "file_name", "width", "height")
    number, name, width, height = entry["id"], entry["file_name"], entry["width"], entry["height"]
    _need_integer(number, where, "id")
    for key, side in (("width", width), ("height", height)):
        if isinstance(side, bool) or not isinstance(side, (int, float)) or not 0 < side < math.inf:
            raise DataError(f"{where}: {key} is {side!r}. Fix: write the image's {key} in pixels.")
    path = safe_relative(name)
    if path is None:
        raise DataError(f"{where}: file_name is {name!r}. Fix: write a path inside the folder of the images.")
    found.image_ids.append(number)
    found.image_sizes.extend((width, height))
    found.image_names.append(path)
    found.sources.append(name)
    found.with_crowd_index += "crowdIndex" in entry
    entry = {key: value for key, value in entry.items() if key not in DROPPED_OF_IMAGE}
    entry["file_name"] = path
    found.image_extra.append(json.dumps(entry, separators=(",", ":")))


def _take_category(found: Collected, entry: Any, offset: int) -> None:
    where = f"{found.file}: byte {offset}: category {entry.get('id') if isinstance(entry, dict) else '?'}"
    _need(entry, where, "id", "name")
    _need_integer(entry["id"], where, "id")
    found.categories.append(entry)


def _take_annotation(found: Collected, entry: Any, offset: int) -> None:
    """Append the annotation to the arrays and make it what the sidecar holds."""
    where = f"{found.file}: byte {offset}: annotation {entry.get('id') if isinstance(entry, dict) else '?'}"
    _need(entry, where, "id", "image_id", "category_id")
    for key in ("id", "image_id", "category_id"):
        _need_integer(entry[key], where, key)
    for key in DROPPED:
        entry.pop(key, None)

    box = entry.get("bbox")
    if box is None:
        found.boxes.extend((math.nan,) * 4)
    else:
        _numbers(found.boxes, box, where, "bbox")
        if len(box) != 4:
            raise DataError(f"{where}: bbox has {len(box)} numbers. Fix: write x, y, width, height in pixels.")
    keypoints = entry.get("keypoints")
    if keypoints is not None:
        _numbers(found.keypoints, keypoints, where, "keypoints")
    count = entry.get("num_keypoints")
    if count is None and keypoints is not None:
        entry["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])  # pycocotools asks for it
    area = entry.get("area")
    if area is None:
        found.without_area += 1  # left so: the evaluation takes a share of the box and says so
    elif isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise DataError(f"{where}: area is {area!r}. Fix: write the segment's area in square pixels, or leave it out.")
    entry.setdefault("iscrowd", 0)
    if box is None and keypoints is not None:
        entry["bbox"] = _extent(keypoints)

    found.ids.append(entry["id"])
    found.owners.append(entry["image_id"])
    found.kinds.append(entry["category_id"])
    found.crowd.append(bool(entry["iscrowd"]))
    found.empty.append(count == 0)
    found.offsets.append(offset)
    found.has_box.append(box is not None)
    found.lengths.append(-1 if keypoints is None else len(keypoints))


def _extent(keypoints: Sequence[float]) -> list[float] | None:
    """Box x, y, width, height of the labelled keypoints; None where there is none."""
    seen = [k for k in range(2, len(keypoints), 3) if keypoints[k] > 0]
    if not seen:
        return None
    xs, ys = [keypoints[k - 2] for k in seen], [keypoints[k - 1] for k in seen]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _numbers(into: array, values: Any, where: str, key: str) -> None:
    try:
        if not isinstance(values, list):
            raise TypeError
        into.extend(values)
    except (TypeError, OverflowError):
        raise DataError(f"{where}: {key} must be a list of numbers. Fix that annotation.") from None


def _need(entry: Any, where: str, *keys: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object, is {type(entry).__name__}. Fix: make the file again.")
    for key in keys:
        if key not in entry:
            raise DataError(f"{where}: the key {key!r} is missing. Fix: add it.")


def _need_integer(value: Any, where: str, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {key} is {value!r}, it must be an integer. Fix: number the entries.")


def _refuse_twice(file: Path, what: str, ids: NDArray[np.int64]) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        twice = unique[counts > 1]
        raise DataError(
            f"{file}: {what} id {twice[0]} is used {counts[counts > 1][0]} times ({len(twice)} such ids). "
            "Fix: give every entry an id of its own."
        )


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no keys"


# -- checking --------------------------------------------------------------------------------------------------------


def _choose_category(found: Collected, wanted: str | None) -> dict[str, Any]:
    """The keypoint category: the one of that name, or the only one."""
    posed = [c for c in found.categories if isinstance(c.get("keypoints"), list) and c["keypoints"]]
    all_names = _listed(c["name"] for c in found.categories)
    if not posed:
        raise DataError(
            f"{found.file}: no category has `keypoints` (categories: {all_names}), so this is no keypoint file. "
            "Fix: take the file with keypoints, for COCO person_keypoints_*.json."
        )
    if wanted is not None:
        named = [c for c in posed if c["name"] == wanted]
        if len(named) != 1:
            raise DataError(
                f"{found.file}: {len(named)} keypoint categories are named {wanted!r}; there are "
                f"{_listed(c['name'] for c in posed)}. Fix --category."
            )
        return named[0]
    if len(posed) > 1:
        raise DataError(
            f"{found.file}: several categories have keypoints: {_listed(c['name'] for c in posed)}. A data set of this "
            "package has one. Fix: choose it with --category NAME."
        )
    return posed[0]


def _insist_on_crowdpose(found: Collected, names: list[str]) -> None:
    if known_skeleton(names) is not CROWDPOSE_14:
        raise DataError(
            f"{found.file}: has {len(names)} keypoints ({', '.join(names[:4])}, ...), not CrowdPose's 14. "
            "Fix: erpose convert coco takes any keypoints."
        )
    if found.with_crowd_index < len(found.image_ids):
        raise DataError(
            f"{found.file}: {len(found.image_ids) - found.with_crowd_index} of {len(found.image_ids)} images have no "
            "crowdIndex, which CrowdPose's easy/medium/hard scores need. Fix: take CrowdPose's own file, or erpose "
            "convert coco."
        )


def _check(found: Collected, chosen: dict[str, Any], keypoints: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Check what could not be checked before the categories were known.

    Returns:
        Keypoints (N, K, 3) and boxes (N, 4) of the annotations of the category, in pixels, and their places (N,).
    """
    kinds = _view(found.kinds)
    known = {c["id"] for c in found.categories}
    strange = np.flatnonzero(~np.isin(kinds, sorted(known)))
    if len(strange):
        raise DataError(
            f"{_place(found, strange[0])}: category_id {kinds[strange[0]]} is not among `categories` "
            f"({', '.join(map(str, sorted(known)))}; {len(strange)} such annotations). Fix: add the category."
        )
    select = np.flatnonzero(kinds == chosen["id"])
    lengths = _view(found.lengths)
    crowd, empty = _view(found.crowd), _view(found.empty)
    excused = (lengths == -1) & ((crowd == 1) | (empty == 1))  # a region without keypoints may lack the key
    wrong = select[(lengths[select] != 3 * keypoints) & ~excused[select]]
    if len(wrong):
        n = lengths[wrong[0]]
        what = "the key 'keypoints' is missing" if n < 0 else f"keypoints has {n} numbers"
        raise DataError(
            f"{_place(found, wrong[0])}: {what}, {3 * keypoints} are needed for the {keypoints} keypoints of category "
            f"{chosen['name']!r} ({len(wrong)} such annotations). Fix these annotations, or the category."
        )
    sizes = np.maximum(lengths, 0)
    starts = np.cumsum(sizes) - sizes
    flat = _view(found.keypoints)
    if len(select) == len(lengths) and not excused.any():
        poses = flat.reshape(-1, keypoints, 3)
    else:
        poses = np.zeros((len(select), keypoints, 3))
        full = lengths[select] >= 0
        poses[full] = flat[starts[select][full, None] + np.arange(3 * keypoints)].reshape(-1, keypoints, 3)
    boxes = _view(found.boxes).reshape(-1, 4)[select]

    bad = select[~np.isfinite(poses).all((1, 2))]
    if len(bad):
        raise DataError(f"{_place(found, bad[0])}: a keypoint is NaN or infinite ({len(bad)} such). Fix or remove it.")
    bad = select[~np.isin(poses[:, :, 2], (0, 1, 2)).all(1)]
    if len(bad):
        raise DataError(
            f"{_place(found, bad[0])}: a visibility is not 0, 1 or 2 ({len(bad)} such). Fix: 0 is not labelled, 1 hidden, "
            "2 visible."
        )
    has_box = _view(found.has_box)[select] == 1
    bad = select[has_box & ~np.isfinite(boxes).all(1)]
    if len(bad):
        raise DataError(f"{_place(found, bad[0])}: bbox is NaN or infinite ({len(bad)} such). Fix or remove it.")
    bad = select[has_box & (boxes[:, 2:] < 0).any(1)]
    if len(bad):
        raise DataError(
            f"{_place(found, bad[0])}: bbox has a negative width or height ({len(bad)} such). Fix: x, y, width, height."
        )
    bad = select[~has_box & ~(poses[:, :, 2] > 0).any(1)]
    if len(bad):
        raise DataError(
            f"{_place(found, bad[0])}: has neither a bbox nor a labelled keypoint ({len(bad)} such). Fix: add the bbox, or "
            "remove the annotation."
        )
    return poses, boxes, select


def _place(found: Collected, index: int) -> str:
    return f"{found.file}: byte {found.offsets[index]}: annotation {found.ids[index]}"


def _owners(found: Collected, select: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of the image of every annotation (N,), and the annotations in the order of the images (N,)."""
    ids, wanted = _view(found.image_ids), _view(found.owners)[select]
    rank = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[rank], wanted), len(ids) - 1)
    owner = rank[at]
    lost = np.flatnonzero(ids[owner] != wanted)
    if len(lost):
        raise DataError(
            f"{_place(found, select[lost[0]])}: image_id {wanted[lost[0]]} is not among `images` ({len(lost)} such "
            "annotations). Fix: add the image, or remove the annotation."
        )
    return owner, np.argsort(owner, kind="stable")


# -- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Persons:
    """Label rows of N annotations, as shares of the image: boxes (N, 4) in centre form, keypoints (N, K, 3)."""

    boxes: Array
    keypoints: Array
    seen: NDArray[np.bool_]  # (N,) has a labelled keypoint and is no crowd
    usable: NDArray[np.bool_]  # (N,) has a place in the image


def _to_rows(
    found: Collected, poses: Array, boxes: Array, select: NDArray[np.int64], owner: NDArray[np.int64], summary: Summary
) -> Persons:
    """Pixels -> shares of the image; crowds lose their keypoints, what lies outside the image is clipped."""
    size = _view(found.image_sizes).reshape(-1, 2)[owner]  # (N, 2)
    crowd = _view(found.crowd)[select] == 1
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
    found: Collected,
    images: Path | None,
    owner: NDArray[np.int64],
    seen: NDArray[np.bool_],
    skip_empty: bool,
    skip_missing: bool,
    summary: Summary,
) -> NDArray[np.bool_]:
    """Which images are converted; checks that their files are there and that their labels do not collide."""
    keep = np.ones(len(found.image_ids), bool)
    if skip_empty:
        keep = np.bincount(owner[seen], minlength=len(keep)) > 0
        summary.left_out = int((~keep).sum())
    stems: dict[str, int] = {}
    for i, name in enumerate(found.image_names):
        stem = name.rpartition(".")[0]
        if stem in stems:
            raise DataError(
                f"{found.file}: images {found.image_ids[stems[stem]]} and {found.image_ids[i]} ({found.sources[stems[stem]]}, "
                f"{found.sources[i]}) would share one label file. Fix: give them names that differ before the suffix."
            )
        stems[stem] = i
    if images is None:
        return keep
    absent = [i for i in np.flatnonzero(keep).tolist() if _source(str(images), found, i) is None]
    if absent and not skip_missing:
        some = ", ".join(found.sources[i] for i in absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        raise FileNotFoundError(
            f"{found.file}: {len(absent)} of {int(keep.sum())} images are not in {images}: {some}. Fix: fetch them, give "
            "the right --images, or leave them out with --skip-missing."
        )
    if len(absent) == keep.sum() and absent:
        raise FileNotFoundError(f"{found.file}: none of the images is in {images}. Fix: give the right --images.")
    keep[absent] = False
    summary.missing = len(absent)
    return keep


def _source(images: str, found: Collected, index: int) -> str | None:
    """File of an image: where its name says below the folder, or straight in it; None if it is in neither place."""
    path = os.path.join(images, found.sources[index].replace("\\", "/"))
    if os.path.isfile(path):
        return path
    path = os.path.join(images, found.image_names[index].rpartition("/")[2])
    return path if os.path.isfile(path) else None


# -- writing ---------------------------------------------------------------------------------------------------------


def _write_labels(
    folder: Path,
    found: Collected,
    persons: Persons,
    owner: NDArray[np.int64],
    order: NDArray[np.int64],
    keep: NDArray[np.bool_],
    summary: Summary,
) -> None:
    """One file for every image, empty where nobody is: that says that it was looked at."""
    keypoints = persons.keypoints.shape[1]
    # 8 digits: the rounding is below 1e-4 px in an image of 10,000 px
    person = "0" + " %.8g" * 4 + " %.8g %.8g %d" * keypoints
    region = "0" + " %.8g" * 4 + " 0 0 0" * keypoints
    ends = np.searchsorted(owner[order], np.arange(len(keep)), side="right")
    numbers = persons.keypoints.reshape(len(order), 3 * keypoints)
    folders = _Folders(folder)
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
        with open(folders.place(found.image_names[i].rpartition(".")[0] + ".txt"), "w", encoding="ascii") as handle:
            handle.write("\n".join(text) + "\n" if text else "")
        summary.images += 1
        seen_rows = int(persons.seen[rows].sum())
        summary.persons += seen_rows
        summary.regions += len(rows) - seen_rows
        bar.add()
    bar.close()


def _place_images(folder: Path, found: Collected, images: Path, keep: NDArray[np.bool_], how: str) -> None:
    root = os.path.realpath(images)
    folders = _Folders(folder)
    indices = np.flatnonzero(keep).tolist()
    for i in Progress("linking images" if how == "link" else "copying images", len(indices)).over(indices):
        source, target = _source(root, found, i), folders.place(found.image_names[i])
        if source is None:
            raise FileNotFoundError(f"{found.sources[i]} has gone from {images} meanwhile. Fix: run it again.")
        if how == "copy":
            shutil.copyfile(source, target)
            continue
        try:
            os.symlink(source, target)
        except OSError as error:
            raise DataError(f"cannot make links in {folder.parent.parent}: {error}. Fix: use --copy or --none.") from None


class _Folders:
    """Paths below a folder, whose own folders are made when they are first needed."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._made = {""}
        root.mkdir()

    def place(self, name: str) -> str:
        """Path of a name that is parted by '/'."""
        parent = name.rpartition("/")[0]
        if parent not in self._made:
            os.makedirs(os.path.join(self._root, parent), exist_ok=True)
            self._made.add(parent)
        return os.path.join(self._root, name)


def _write_sidecar(
    file: Path,
    spool: Path,
    found: Collected,
    chosen: dict[str, Any],
    keep: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    names: list[str],
) -> None:
    """The annotations without polygons, with the images' names in the data set: what pycocotools evaluates on."""
    category = dict(chosen)
    category["skeleton"] = [[a + 1, b + 1] for a, b in _limbs(chosen, names)[0]]
    info = {"description": f"{found.file.name}, filtered by erpose convert: no segmentation"}
    with file.open("w", encoding="ascii") as handle, spool.open(encoding="ascii") as lines:
        handle.write(f'{{"info":{json.dumps(info)},\n"categories":[{json.dumps(category)}],\n"images":[\n')
        handle.write(",\n".join(found.image_extra[i] for i in np.flatnonzero(keep)))
        handle.write('\n],\n"annotations":[')
        comma = "\n"
        for line, wanted in zip(lines, rows):
            if wanted:
                handle.write(comma + line[:-1])
                comma = ",\n"
        handle.write("\n]}\n")


# -- data YAML -------------------------------------------------------------------------------------------------------


def _limbs(chosen: dict[str, Any], names: list[str]) -> tuple[list[list[int]], bool]:
    """The category's limbs, counted from 0, and True; the published ones or none and False where its own are no use."""
    pairs = chosen.get("skeleton")
    keypoints = range(1, len(names) + 1)  # COCO counts from 1
    if isinstance(pairs, list) and pairs:
        if all(isinstance(p, list) and len(p) == 2 and p[0] in keypoints and p[1] in keypoints for p in pairs):
            return [[int(a) - 1, int(b) - 1] for a, b in pairs], True
    known = known_skeleton(names)
    return [list(pair) for pair in known.limbs] if known else [], False


def _describe(found: Collected, chosen: dict[str, Any], names: list[str], summary: Summary) -> dict[str, Any]:
    """The keys of the data YAML that the JSON knows."""
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
    limbs, own = _limbs(chosen, names)
    if limbs:
        data["skeleton"] = limbs
    if chosen.get("skeleton") and not own:
        instead = f"{known.title}'s limbs are written in its place" if known else "it is left out"
        summary.notes.append(f"the file's skeleton is not pairs of keypoints from 1 to {len(names)}: {instead}.")
    summary.without_area = found.without_area
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
