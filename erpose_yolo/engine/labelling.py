"""Pseudo-labels: a data set of images without labels, or of labels that leave people out: ``erpose label``.

    OUT/images/SPLIT/*, OUT/labels/SPLIT/*.txt    a copy of each image, and its rows (``erpose_yolo.data.labels``)
    OUT/data.yaml                                 classes, keypoints, skeleton, sigmas and flip_idx of the model
    OUT/sheet.jpg                                 the images of which the model doubts most, with what was written
    OUT/labelling.jsonl                           the settings, then a line an image: what was found, and the doubt

An image is copied, its line is added, and its label file is written, last and whole: so a run that was killed goes on where it
stopped, and a label file without such a line is the user's and stays.

Shapes: N rows, K keypoints, D values of a keypoint. Coordinates are pixels of the image unless they are said to be shares.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml

from erpose_yolo.data.convert.files import safe_relative
from erpose_yolo.data.data_yaml import SPLITS, DataError, DataYaml, load_data_yaml
from erpose_yolo.data.images import UNDECODED, image_size, images_of, label_of
from erpose_yolo.data.labels import Array, Rows, complete_boxes, read_rows
from erpose_yolo.data.painting import draw_sides, draw_text
from erpose_yolo.data.progress import Progress
from erpose_yolo.data.skeletons import flip_from_names, keypoint_names, known_skeleton, limbs_of, read_kpt_shape, sides_of
from erpose_yolo.errors import one_line
from erpose_yolo.files import written_whole

SAME = 0.5  # least OKS, or share of a found box that a row without keypoints covers, of one and the same person
SEEN = 0.5  # least visibility of a keypoint that is written
LEAST = 3  # keypoints of a person's row: fewer give it neither size nor place
MIN_PIXELS = 10  # Ultralytics leaves smaller images out
UNLABELLED = {2: (-0.005, -0.005), 3: (0.0, 0.0, 0.0)}  # a keypoint, by D; stock Ultralytics takes no less than -0.01
NEUTRAL = ("device", "workers", "verbose", "half")  # arguments that may differ when a run goes on
YAML_KEYS = ("names", "kpt_shape", "kpt_names", "flip_idx", "skeleton", "kpt_oks_sigmas")

USAGE = """Usage: erpose label model=FILE source=DIR out=DIR [key=value ...]
       erpose label model=FILE merge=DATA.yaml out=DIR [key=value ...]

  model      any pose model that Ultralytics opens, weights or export (erpose-n.pt)
  source     images without labels: a folder with all below it, or a list of images (.txt)
  out        folder of the new data set; the same command goes on where it was stopped
  conf       from this score on, a person becomes a row of keypoints without a box (0.5)
  ignore     from this score on, other finds become ignore regions: rows with a box and no keypoint (0.1)
  merge      labels to add to: a data YAML, whose images are then labelled, or a folder of label files for source=. Their
             rows are kept. Whoever matches none of them becomes an ignore region, however sure the model is
  val        share of the images that go into the validation split (0.1)
  images     copy (default), or link: symbolic links
  sheet      most images on the contact sheet (24); 0: no sheet
  overwrite  True: label anew, and replace label files that are in out= (False)
  imgsz, device, iou, max_det, classes, half, augment ...   as 'yolo predict' takes them"""


class Item(NamedTuple):
    """An image to label: its file, ``SPLIT/NAME`` in the new set, and its existing label file, None without ``merge``."""

    source: Path
    key: str
    labels: Path | None


class Found(NamedTuple):
    """What a model found in an image, best first."""

    category: Array  # (N,) class indices
    score: Array  # (N,)
    boxes: Array  # (N, 4) corners
    keypoints: Array  # (N, K, 3) pixels and visibility from 0 to 1


def label(
    model: Any = "erpose-n.pt",
    source: str | Path | None = None,
    out: str | Path | None = None,
    conf: float = 0.5,
    ignore: float = 0.1,
    merge: str | Path | None = None,
    val: float = 0.1,
    images: str = "copy",
    sheet: int = 24,
    overwrite: bool = False,
    **kwargs: Any,
) -> dict[str, int]:
    """Label images with a model, see USAGE.

    Args:
        model: a pose model's file, or an ``ultralytics.YOLO``.
        source, out, conf, ignore, merge, val, images, sheet, overwrite: see USAGE.
        **kwargs: as ``YOLO.predict`` takes them.

    Returns:
        Counts: images, persons, regions and rows (taken over) of the whole set; skipped and kept images.

    Raises:
        ValueError, DataError: an argument out of range, or a data YAML that does not fit the model.
        FileNotFoundError: no such file or folder, or no image in it.
        FileExistsError: ``out`` holds something else, or was begun with other settings.
        TypeError: a model of another task.
    """
    given = Path(merge).absolute() if merge else None
    known = load_data_yaml(merge) if merge and Path(merge).suffix in (".yaml", ".yml") else None
    if out is None or (source is None) is (known is None):
        raise ValueError("Give out=, and either source= or merge=DATA.yaml, whose images are labelled.\n\n" + USAGE)
    if not 0 < ignore <= conf < 1:
        raise ValueError(f"conf={conf} ignore={ignore}: give scores with 0 < ignore <= conf < 1.")
    if not 0 <= val < 1 or images not in ("copy", "link"):
        raise ValueError(f"val={val} images={images}: val is a share of the images below 1, images copy or link.")
    if given is not None and known is None and not given.is_dir():
        raise FileNotFoundError(f"merge={merge}: neither a data YAML nor a folder of label files.")
    out = Path(out).absolute()
    place = None if source is None else Path(source).absolute()
    name = str(getattr(model, "ckpt_path", None) or model)
    about = {"model": name, "source": place, "conf": conf, "ignore": ignore, "merge": given, **kwargs}
    sources = _sources(place, known, out)
    labeller = Labeller(model, ignore, kwargs)
    done = _begin(out, {k: v for k, v in about.items() if k not in NEUTRAL}, overwrite)
    items, skipped = _plan(sources, None if known else given, known, val, out)
    data, classes = _describe(labeller, known, {item.key.partition("/")[0] for item in items})
    if overwrite or not (out / "data.yaml").exists():
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
        with written_whole(out / "data.yaml") as part:
            part.write_text(f"# Labelled by {Path(name).name}, erpose label\n{text}", encoding="utf-8")
    (keypoints, dims), sigmas, kept = data["kpt_shape"], np.array(data["kpt_oks_sigmas"]), 0
    todo = [item for item in items if item.key not in done or not _label_file(out, item.key).exists()]
    if len(todo) < len(items):
        print(f"{out}: {len(items) - len(todo)} of {len(items)} images are labelled already, going on with the rest.")
    with open(out / "labelling.jsonl", "a", encoding="utf-8") as journal:
        journal.write("\n")  # an earlier run may have been killed while it wrote a line
        for item in Progress("labelling", len(todo)).over(todo):
            file, merging = _label_file(out, item.key), item.labels is not None
            if file.exists() and not overwrite:
                kept += 1
                continue
            try:
                image = _read(item.source)
                text, rows = _existing(item.labels, keypoints, dims)
            except (OSError, DataError) as error:
                skipped += _say(item.source, error)
                continue
            found, size = labeller(image), (image.shape[1], image.shape[0])
            verdict = decide(found, *_pixels(rows, size), sigmas, conf, merging)
            new = [_row(found, n, kind, size, dims, classes) for n, kind in enumerate(verdict)]
            verdict = [kind if row else "" for kind, row in zip(verdict, new)]
            record = done[item.key] = {
                "image": item.key,
                "doubt": doubt(found.score, verdict, conf, ignore, merging),
                "persons": verdict.count("person"),
                "regions": verdict.count("region"),
                "rows": len(rows.lines),
            }
            _place(item.source, out / "images" / item.key, images)
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as part:
                part.write_text(text + "".join(f"{row}\n" for row in new if row), encoding="utf-8")
    records = [done[item.key] for item in items if item.key in done]
    if sheet and records:
        contact_sheet(out, data, sorted(records, key=lambda r: -r["doubt"])[:sheet], out / "sheet.jpg")
    counts = {"images": len(records), **{key: sum(r[key] for r in records) for key in ("persons", "regions", "rows")}}
    return {**counts, "skipped": skipped, "kept": kept}


# -- what becomes of a find ------------------------------------------------------------------------------------------


def decide(found: Found, boxes: Array, poses: Array, sigmas: Array, conf: float, merging: bool = False) -> list[str]:
    """Say what each find becomes: a ``person``, a ``region`` to ignore, or nothing (empty), best first.

    A find is nothing if it is the same as a row: by OKS where the row has keypoints, else if the row's box covers it (a region of
    a crowd covers many). Rows are those that were there, and what better finds have become. Who would become a region is the same
    by the box, too: of 24 sure finds in 234 photos of COCO whose box was that of a labelled person and whose pose was not, 23 were
    this very person, found in a wrong pose.

    Args:
        found: finds of one image.
        boxes: (N, 4) corners of the rows that were there.
        poses: (N, K, 3) their keypoints with visibility.
        sigmas: (K,) for OKS.
        conf: least score of a person.
        merging: nobody becomes a person: whoever wrote the rows has seen the image, and left this one out.
    """
    import torch

    from erpose_yolo.method.oks import object_area, oks

    finds, corners = torch.from_numpy(found.keypoints), torch.from_numpy(found.boxes)
    rows, targets, weights = torch.from_numpy(boxes), torch.from_numpy(poses), torch.from_numpy(sigmas)
    out = []
    for n, score in enumerate(found.score.tolist()):
        seen = finds[n, :, 2] >= SEEN
        person = score >= conf and not merging and int(seen.sum()) >= min(LEAST, len(seen))
        posed = (targets[..., 2] > 0).any(1)
        alike = oks(finds[n, :, :2], targets, object_area(rows), weights) >= SAME
        common = (torch.minimum(corners[n, 2:], rows[:, 2:]) - torch.maximum(corners[n, :2], rows[:, :2])).clamp(min=0).prod(1)
        area, areas = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (corners[n], rows))
        if not person:
            alike |= common >= SAME * (area + areas - common)
        if bool(torch.where(posed, alike, common >= SAME * area).any()):
            out.append("")
            continue
        out.append("person" if person else "region")
        pose = torch.cat((finds[n, :, :2], (seen & torch.tensor(person))[:, None]), 1)
        rows, targets = torch.cat((rows, corners[n : n + 1])), torch.cat((targets, pose[None]))
    return out


def doubt(score: Array, verdict: Sequence[str], conf: float, ignore: float, merging: bool = False) -> float:
    """How much there is to look at in an image, a sum over its new rows.

    A row counts 1 at a score of ``conf``, down to 0 at ``ignore`` and at 1; its score where it was merged, because a sure model and
    existing labels that disagree are worth a look.
    """
    new = score[[bool(kind) for kind in verdict]]
    if not merging:
        new = np.where(new < conf, (new - ignore) / max(conf - ignore, 1e-9), (1 - new) / (1 - conf))
    return round(float(new.sum()), 4)


def _row(found: Found, n: int, kind: str, size: tuple[int, int], dims: int, classes: Mapping[int, int]) -> str:
    """The label row of a find; empty where it has none: nothing, a class that the data set lacks, or a box outside of the image."""
    category = classes.get(int(found.category[n]))
    if not kind or category is None:
        return ""
    scale = np.array(size, float)
    point = found.keypoints[n, :, :2] / scale
    seen = (found.keypoints[n, :, 2] >= SEEN) & ((point >= 0) & (point <= 1)).all(1)
    if kind == "region" or not seen.any():
        low, high = (found.boxes[n].reshape(2, 2) / scale).clip(0, 1)
        if ((high - low) * scale < 1).any():
            return ""
        numbers, seen = [*(low + high) / 2, *high - low], np.zeros(len(seen), bool)
    else:
        numbers = []
    for xy, there in zip(point, seen):
        numbers += [*xy, 2.0][:dims] if there else UNLABELLED[dims]
    return " ".join([str(category), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in numbers)])


# -- the model -------------------------------------------------------------------------------------------------------


class Labeller:
    """A pose model of any kind, run on one image at a time.

    Args:
        model: its file, or an ``ultralytics.YOLO``.
        conf: least score of a find.
        options: for ``YOLO.predict``.

    Raises:
        TypeError: a model of another task.
    """

    def __init__(self, model: Any, conf: float, options: Mapping[str, Any]) -> None:
        from ultralytics import YOLO

        from erpose_yolo.upstream import compat

        compat.install()
        self.yolo = YOLO(model) if isinstance(model, (str, Path)) else model
        if self.yolo.task != "pose":
            raise TypeError(f"{model} is a model of the task '{self.yolo.task}', not of 'pose'.")
        self.options = {"verbose": False, "save": False, **options, "conf": conf}
        self(np.zeros((64, 64, 3), np.uint8))  # opens an export, which says only then what it is
        self.sources = (self.yolo.model, self.yolo.predictor.model)

    def __call__(self, image: np.ndarray) -> Found:
        """Find people in an image (H, W, 3), BGR."""
        result = self.yolo.predict(image, **self.options)[0].cpu().numpy()
        boxes, points = result.boxes, result.keypoints.data.astype(np.float64)
        if points.shape[-1] == 2:
            points = np.concatenate((points, np.ones((*points.shape[:2], 1))), 2)
        order = np.argsort(-boxes.conf, kind="stable")
        return Found(*(np.asarray(part, np.float64)[order] for part in (boxes.cls, boxes.conf, boxes.xyxy, points)))

    def tell(self, key: str) -> Any:
        """What weights or export know of their data set; None if nothing. Most exports keep text."""
        value = next((v for of in self.sources if (v := getattr(of, key, None)) is not None), None)
        return json.loads(value) if isinstance(value, str) else value


def _describe(labeller: Labeller, known: DataYaml | None, splits: set[str]) -> tuple[dict[str, Any], dict[int, int]]:
    """The data YAML to write, and which of its classes each class of the model is.

    Raises:
        DataError: the model has other keypoints or classes than the data YAML of merge=.
    """
    from erpose_yolo.method.oks import sigmas_for

    found = labeller.yolo.names
    shape = read_kpt_shape(list(labeller.tell("kpt_shape") or ()), "the model")
    names = keypoint_names(labeller.tell("kpt_names"), shape[0])
    published = known_skeleton(names, shape[0])
    names = names or (list(published.names) if published else None)
    limbs = limbs_of({"skeleton": labeller.tell("skeleton") or None, "kpt_names": names}, shape[0])
    sigmas = labeller.tell("kpt_oks_sigmas") or labeller.tell("sigmas")
    data: dict[str, Any] = {
        "names": {int(k): str(v) for k, v in found.items()},
        "kpt_shape": shape,
        "kpt_names": names and dict.fromkeys(map(int, found), names),
        "flip_idx": labeller.tell("flip_idx") or (names and flip_from_names(names)[0]),
        "skeleton": [list(limb) for limb in limbs] or None,
        "kpt_oks_sigmas": sigmas,
    }
    classes = {k: k for k in data["names"]}
    if known is not None:
        theirs = read_kpt_shape(known.data.get("kpt_shape"), known.file)
        if theirs[0] != shape[0]:
            raise DataError(f"{known.file}: kpt_shape is {theirs}, but the model finds {shape[0]} keypoints. Fix: another model.")
        data |= {k: known.data[k] for k in YAML_KEYS if known.data.get(k) is not None}
        listed = data["names"] = dict(enumerate(data["names"])) if isinstance(data["names"], list) else data["names"]
        places = {str(v): int(k) for k, v in listed.items()}
        only = next(iter(places.values())) if len(places) == 1 else None
        classes = {int(k): c for k, v in found.items() if (c := places.get(str(v), only)) is not None}
        if not classes:
            raise DataError(f"{known.file}: names has none of the model's classes, {', '.join(map(str, found.values()))}.")
    data["kpt_oks_sigmas"] = [round(float(s), 6) for s in sigmas_for(shape[0], data["kpt_oks_sigmas"])]
    places_of = {split: f"images/{split}" for split in SPLITS if split in splits}
    places_of.setdefault("val", places_of.get("train", "images/train"))  # Ultralytics asks for both
    places_of.setdefault("train", places_of["val"])
    return {**places_of, **{k: v for k, v in data.items() if v is not None}}, classes


# -- images and labels -----------------------------------------------------------------------------------------------


def _sources(source: Path | None, known: DataYaml | None, out: Path) -> list[tuple[str, Path, Path]]:
    """Split (empty where it is to be drawn), root and file of each image.

    Raises:
        ValueError: ``out`` and the images lie in one another.
        FileNotFoundError: no such folder, or no image there.
    """
    roots = [(s, root) for s in SPLITS for root in known.entries(s)] if known else [("", source)] if source else []
    found = [(split, root, image) for split, root in roots for image in images_of([root])]
    if not found:
        raise FileNotFoundError(f"{source or (known and known.file)}: no images there.")
    for _, root in roots:
        if out == root or out in root.parents or root in out.parents:
            raise ValueError(f"out={out} and the images of {root} lie in one another. Give a folder outside.")
    return found


def _plan(
    sources: list[tuple[str, Path, Path]], labels: Path | None, known: DataYaml | None, val: float, out: Path
) -> tuple[list[Item], int]:
    """The images that can be read, and the number of those that cannot, which are told.

    A split that is not given is drawn by content, so that no copy of a validation image is trained on. Who has one in ``out`` keeps
    it.

    Args:
        sources: see :func:`_sources`.
        labels: folder of label files that exist.
        known: the data set that exists.
        val: share of the validation split.
        out: the new data set.
    """
    items: list[Item] = []
    lots: list[float] = []
    skipped, taken = 0, set()
    for split, root, image in Progress("looking at images", len(sources)).over(sources):
        inside = image.relative_to(root) if image.is_relative_to(root) and image != root else Path(image.name)
        first, suffix = os.path.splitext(f"{split}/{_safe(inside.as_posix())}")
        stem, number = first, 1
        while stem.lower() in taken:  # the same but for the suffix, which labels have not, or for the case
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.lower())
        try:
            size = image_size(image)
            if min(size) < MIN_PIXELS:
                raise DataError(f"{size[0]} x {size[1]} px, Ultralytics leaves out images below {MIN_PIXELS} px")
            lots.append(_lot(image))
        except (OSError, DataError) as error:
            skipped += _say(image, error)
            continue
        items.append(Item(image, stem + suffix, label_of(image) if known else labels and labels / inside.with_suffix(".txt")))
    if not items:
        raise FileNotFoundError("None of the images can be read.")
    if not known:
        bound = max(val, min(lots)) if val and len(items) > 1 else val  # one at least
        drawn = ["val" if val and lot <= bound else "train" for lot in lots]
        earlier = ([s for s in ("train", "val") if os.path.lexists(f"{out}/images/{s}{item.key}")] for item in items)
        items = [item._replace(key=(*before, split)[0] + item.key) for item, before, split in zip(items, earlier, drawn)]
    return items, skipped


def _lot(image: Path) -> float:
    """A number in [0, 1) drawn by the content of a file, of which its size and beginning stand for all."""
    with image.open("rb") as handle:
        head = handle.read(1 << 16)
        digest = hashlib.blake2b(head + str(handle.seek(0, os.SEEK_END)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _safe(name: str) -> str:
    """A path as a name for the data set: text, and without folders named ``images``, where labels would be looked for elsewhere."""
    text = re.sub(r"[\x00-\x1f\x7f\\:]", "_", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return safe_relative(text) or f"image-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}{Path(text).suffix}"


def _say(image: Path, error: Exception) -> int:
    """Tell of an image that is left out; 1, for the count."""
    text = "\n" * sys.stderr.isatty() + f"{image}: left out: {one_line(error)}"
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr)
    return 1


def _read(file: Path) -> np.ndarray:
    """The image as training reads it: 8 bits, BGR, turned as its EXIF orientation says.

    Raises:
        OSError: it cannot be decoded.
    """
    from ultralytics.utils.patches import imread

    try:
        image = imread(file)
    except (cv2.error, ValueError, SyntaxError) as error:
        raise OSError(f"{UNDECODED} ({one_line(error)})") from None
    if image is None:
        raise OSError(UNDECODED)
    image = np.atleast_3d(image)
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., [0, 1, 2] if image.shape[2] > 3 else [0, 0, 0]])


def _rows_of(file: Path | None, keypoints: int, dims: int) -> Rows:
    """Rows of a label file; an absent one has none."""
    return read_rows(file if file is not None and file.is_file() else Path(os.devnull), keypoints, dims)


def _existing(file: Path | None, keypoints: int, dims: int) -> tuple[str, Rows]:
    """Text and rows of a label file; an absent one is empty.

    Raises:
        DataError: a row cannot be read.
    """
    rows = _rows_of(file, keypoints, dims)
    for first in rows.problems:
        raise DataError(f"{file}:{first.line}: {first.what}. Fix: {first.fix}")
    text = file.read_text(encoding="utf-8-sig") if file is not None and file.is_file() else ""
    return text if not text or text.endswith("\n") else f"{text}\n", rows


def _pixels(rows: Rows, size: tuple[int, int]) -> tuple[Array, Array]:
    """Corners (N, 4) and keypoints (N, K, 3) of rows in pixels, boxes derived where there are none."""
    poses = rows.posed()
    boxes = np.nan_to_num(complete_boxes(rows.boxes, poses, size)) * (*size, *size)
    corners = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    return corners, poses * (*size, 1)


def _label_file(out: Path, key: str) -> Path:
    return out / "labels" / (os.path.splitext(key)[0] + ".txt")


def _place(source: Path, target: Path, how: str) -> None:
    """Copy or link an image to its name in the data set."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "copy":
        with written_whole(target) as part:
            shutil.copyfile(source, part)
        return
    target.unlink(missing_ok=True)
    os.symlink(os.path.realpath(source), target)


def _begin(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, dict[str, Any]]:
    """What earlier runs have labelled, by "split/name"; starts the journal if need be.

    Raises:
        FileExistsError: the folder holds other things, or was begun with other settings.
    """
    file = out / "labelling.jsonl"
    settings = json.loads(json.dumps(settings, default=str))
    lines: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() and not overwrite else ():
        with contextlib.suppress(ValueError):  # killed while writing
            lines.append(json.loads(line))
    if lines:
        begun = lines[0].get("settings", {})
        for key in sorted({*begun, *settings}):
            if begun.get(key) != settings.get(key):
                raise FileExistsError(
                    f"{out} was begun with {key}={begun.get(key)}, not {key}={settings.get(key)}. Give the same, or another out=, "
                    "or overwrite=True to label all anew."
                )
        return {line["image"]: line for line in lines if "image" in line}
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{out} holds files that erpose label has not written. Give another out=, or overwrite=True to replace label files of "
            "the same names."
        )
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as part:
        part.write_text(json.dumps({"settings": settings}), encoding="utf-8")
    return {}


# -- contact sheet ---------------------------------------------------------------------------------------------------


def contact_sheet(out: Path, data: Mapping[str, Any], records: Sequence[Mapping[str, Any]], file: Path, tile: int = 320) -> None:
    """Save images with the rows that were written for them: left limbs orange, right ones blue, ignore regions yellow boxes.

    Args:
        out: folder of the data set.
        data: its data YAML.
        records: lines of the journal, in the order of the sheet.
        file: where the sheet goes, a JPEG.
        tile: side of an image on it in pixels.
    """
    k, dims = data["kpt_shape"]
    names = keypoint_names(data.get("kpt_names"), k)
    sides = [side for side, _ in sides_of(names or [""] * k)]
    limbs = limbs_of(data, k)
    columns, gap, line = min(6, len(records)), 4, 20
    lines = math.ceil(len(records) / columns)
    sheet = np.full((line + lines * (tile + line + gap), columns * (tile + gap) + gap, 3), 40, np.uint8)
    title = "most doubtful first. Left side of the body orange, right side blue; yellow: ignore regions, grey: rows that were there"
    draw_text(sheet, title, (gap, line - 6), (235, 235, 235))
    for n, record in enumerate(records):
        try:
            image = _read(out / "images" / record["image"])
        except OSError:  # removed by the user
            continue
        scale = tile / max(image.shape[:2])
        w, h = (max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        rows = _rows_of(_label_file(out, record["image"]), k, dims)
        for row, (box, pose) in enumerate(zip(*_pixels(rows, (w, h)))):
            if (pose[:, 2] > 0).any():
                draw_sides(image, pose, sides, limbs, 1)
            else:
                colour = (160, 160, 160) if row < record["rows"] else (0, 255, 255)
                low, high = box.round().astype(int).reshape(2, 2).tolist()
                cv2.rectangle(image, low, high, colour, 2, cv2.LINE_AA)
        y, x = line + n // columns * (tile + line + gap), gap + n % columns * (tile + gap)
        top, left = y + (tile - h) // 2, x + (tile - w) // 2
        sheet[top : top + h, left : left + w] = image
        numbers = (f"{kind} {record[kind]}" for kind in ("rows", "persons", "regions") if record[kind])
        caption = f"{record['image']}: {', '.join(numbers) or 'nobody'}"
        draw_text(sheet[:, x : x + tile], caption, (2, y + tile + line - 6), (235, 235, 235))
    with written_whole(file) as part:
        part.write_bytes(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())


# -- command line ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run ``erpose label``: see :func:`arguments.run_command`; 130 after Ctrl-C."""
    from erpose_yolo.arguments import run_command

    try:
        return run_command("label", USAGE, label_and_say, arguments)
    except KeyboardInterrupt:
        print("\nerpose label: stopped. The same command goes on from here.", file=sys.stderr)
        return 130


@functools.wraps(label)
def label_and_say(**options: Any) -> int:
    """Label, and say what came of it; 1 if no image was labelled."""
    counts, out = label(**options), Path(str(options["out"]))
    print(f"{out}: {counts['images']} images, {counts['persons']} persons, {counts['regions']} ignore regions")
    for count, text in (
        (counts["rows"], "rows of merge= taken over"),
        (counts["skipped"], "images left out, the lines above say why"),
        (counts["kept"], "label files that erpose label has not written stay as they are (overwrite=True replaces them)"),
    ):
        if count:
            print(f"  {count} {text}")
    data = out / "data.yaml"
    print(f"Look at {out / 'sheet.jpg'}, most doubtful images first. Then: erpose check {data}; erpose train data={data}")
    return int(not counts["images"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
