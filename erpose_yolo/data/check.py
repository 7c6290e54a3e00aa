"""A linter for YOLO-pose data sets: ``erpose check``.

    erpose check data.yaml [--split train ...] [--show FILE.jpg] [--deep] [--backgrounds]

What it finds it reports as ``FILE:LINE: error: what is wrong. Fix: what to do``. Exit code 0: clean, 1: something is
wrong, 2: wrong usage. Notes do not count as wrong.

Rows may have a box (class, box, keypoints) or not (class, keypoints); both in one file are fine. ``--show`` saves a sheet of
images with their skeletons and, below each, the same image mirrored as training does it, with ``flip_idx``: the left
side of the body is orange, the right side blue. A person who faces the camera has orange on the right of the image, in
both rows; where a wrong ``flip_idx`` leaves the sides alone, the colours change places with the image.

Shapes: N rows of a file, K keypoints, D values of a keypoint. Coordinates are shares of the image unless it says pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from erpose_yolo.data.data_yaml import SPLITS, DataError, DataYaml, YamlError, load_data_yaml
from erpose_yolo.data.images import IMAGE_SUFFIXES, image_folder_of, image_size, images_of, label_of
from erpose_yolo.data.labels import Array, Rows, read_rows
from erpose_yolo.data.painting import draw_sides, draw_text
from erpose_yolo.data.progress import Progress
from erpose_yolo.data.skeletons import (
    MIDDLE,
    flip_from_names,
    keypoint_names,
    known_skeleton,
    limbs_of,
    limbs_ok,
    read_kpt_shape,
    sides_of,
)
from erpose_yolo.method.sigmas import DEFAULT_SIGMA

ROUNDING = 1e-5  # label files have five or six digits
BOX_SLACK = 0.01  # corners of boxes: Ultralytics' own tolerance
FAR = 0.5  # a visible keypoint is far from its box if farther outside than this share of the box's longer side
FAR_HIDDEN = 2.0  # the same of a hidden keypoint, since many boxes enclose what is visible alone
TWIN = 0.01  # two persons are one if their keypoints differ by less than this share of their extent, on average
TWIN_KEYPOINTS = 4  # keypoints that two persons must have in common to be compared
MIN_PIXELS = 10  # Ultralytics leaves smaller images out
UNKNOWN_SIZE = (640, 640)  # px, for the labels of an image that cannot be read
PER_KIND = 20  # findings of a kind that are printed


@dataclass(frozen=True)
class Finding:
    """Something to tell about a data set.

    Args:
        kind: short name, the same for all findings of a kind.
        file: where.
        line: line in it, 0 for the whole file.
        what: what is wrong.
        fix: what to do.
        error: False for a note.
    """

    kind: str
    file: Path
    line: int
    what: str
    fix: str
    error: bool = True

    def __str__(self) -> str:
        """FILE:LINE: error: what. Fix: fix."""
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{where}: {'error' if self.error else 'note'}: {self.what}. Fix: {self.fix}."


@dataclass
class Report:
    """What the linter found, and what it saw."""

    findings: list[Finding] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)  # by split
    persons: Counter[str] = field(default_factory=Counter)
    gallery: list[tuple[float, int, Path, Array]] = field(default_factory=list)  # heap of images worth showing

    @property
    def errors(self) -> int:
        """Number of findings that are not notes."""
        return sum(finding.error for finding in self.findings)

    def add(self, kind: str, file: Path, line: int, what: str, fix: str, error: bool = True) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, file, line, what, fix, error))


def check(
    data_yaml: str | Path,
    splits: Sequence[str] | None = None,
    deep: bool = False,
    backgrounds: bool = False,
    show: int = 0,
) -> Report:
    """Check a data set.

    Args:
        data_yaml: path of a data YAML, or the bare name of one that ships with the package.
        splits: which to look at; all that the YAML has where None.
        deep: decode every image, not its header alone.
        backgrounds: images without a label file are meant as backgrounds.
        show: how many images to remember for :func:`contact_sheet`.

    Returns:
        The findings.

    Raises:
        FileNotFoundError: there is no such YAML.
        KeyError: it has no such split.
    """
    report = Report()
    try:
        source = load_data_yaml(data_yaml)
    except YamlError as error:
        report.add("yaml", error.file, error.line, error.what, error.fix)
        return report
    for split in splits or ():
        if not source.data.get(split):
            raise KeyError(f"{source.file} has no split {split!r}")
    shape = check_yaml(source, report)
    chosen = [s for s in (splits or SPLITS) if source.data.get(s)]
    files: dict[str, list[Path]] = {}
    for split in chosen:
        try:
            files[split] = images_of(source.entries(split))
        except (FileNotFoundError, UnicodeDecodeError) as error:
            fix = "make the set, or fix path and splits"
            if source.data.get("download"):
                fix = "the set is made when it is used first (its `download:`); train or validate with it once"
            report.add("split", source.file, source.lines[split], f"{split}: {error}", fix)
            continue
        if not files[split]:
            report.add("split", source.file, source.lines[split], f"{split}: no images there", "fix the split's path")
    if shape is not None:
        for split, images in files.items():
            _check_split(source, split, images, shape, report, deep, backgrounds, show)
    _check_leaks(files, report)
    return report


# -- the data YAML ---------------------------------------------------------------------------------------------------


def check_yaml(source: DataYaml, report: Report) -> tuple[int, int] | None:
    """Check the keys of a data YAML.

    Returns:
        kpt_shape, or None if it cannot be used, so that labels cannot be checked either.
    """
    data, file = source.data, source.file

    def add(kind: str, key: str, what: str, fix: str, error: bool = True) -> None:
        report.add(kind, file, source.lines.get(key, 1), what, fix, error)

    for key in ("train", "val"):
        if not data.get(key) and not (key == "val" and data.get("validation")):
            add("yaml", key, f"no {key}, which Ultralytics asks for", f"add {key}: and a folder of images")
    names, nc = data.get("names"), data.get("nc")
    if names is None and nc is None:
        add("names", "names", "neither names nor nc", "add names: {0: person}")
    elif names is not None and (not isinstance(names, (list, dict)) or not names):
        add("names", "names", f"names is {names!r}", "write names: {0: person}")
    elif isinstance(names, dict) and sorted(names, key=str) != sorted(range(len(names)), key=str):
        add("names", "names", f"names has the classes {list(names)}", f"count from 0 to {len(names) - 1} without gaps")
    elif names is not None and nc is not None and nc != len(names):
        add("names", "nc", f"nc is {nc}, but names has {len(names)}", "remove nc")

    try:
        k, values = read_kpt_shape(data.get("kpt_shape"), file)
    except ValueError:
        what, fix = f"kpt_shape is {data.get('kpt_shape')!r}", "write [number of keypoints, 3], or 2 for rows without visibility"
        add("kpt_shape", "kpt_shape", what, fix)
        return None

    sigmas = data.get("kpt_oks_sigmas")
    if sigmas is not None:
        numbers = isinstance(sigmas, list) and all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in sigmas)
        if not numbers:
            add("sigmas", "kpt_oks_sigmas", f"kpt_oks_sigmas is {sigmas!r}", f"write a list of {k} positive numbers")
        elif len(sigmas) != k:
            add("sigmas", "kpt_oks_sigmas", f"{len(sigmas)} sigmas for {k} keypoints", "write one for each keypoint")
        elif not all(0 < s < math.inf for s in sigmas):
            bad = next(i for i, s in enumerate(sigmas) if not 0 < s < math.inf)
            add("sigmas", "kpt_oks_sigmas", f"sigma {bad} is {sigmas[bad]}", "write positive numbers")
    elif k != 17:
        what = f"no kpt_oks_sigmas: OKS takes {DEFAULT_SIGMA} for every keypoint, about COCO's mean"
        add("sigmas", "kpt_shape", what, "add kpt_oks_sigmas, COCO's range from 0.025 (eyes) to 0.107 (hips)", error=False)

    titles = _check_names(source, k, add)
    _check_flip(source, k, titles, add)
    limbs = data.get("skeleton")
    if limbs is not None and not limbs_ok(limbs, k):
        add("skeleton", "skeleton", f"skeleton is not pairs of keypoints from 0 to {k - 1}", "write [[5, 7], [7, 9], ...]")
    return k, values


def _check_names(source: DataYaml, k: int, add: Any) -> dict[Any, list[str]]:
    """Check kpt_names; return the usable lists by class."""
    value = source.data.get("kpt_names")
    if value is None:
        return {}
    groups = value if isinstance(value, dict) else {0: value}
    good = {}
    for category, names in groups.items():
        of = f"kpt_names of class {category}"
        if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
            add("kpt_names", "kpt_names", f"{of} is no list of names", "write {0: [nose, left_eye, ...]}")
        elif len(names) != k:
            add("kpt_names", "kpt_names", f"{of} has {len(names)} names for {k} keypoints", "name every keypoint of kpt_shape once")
        elif len(set(map(str, names))) < k:
            twice = Counter(map(str, names)).most_common(1)[0][0]
            add("kpt_names", "kpt_names", f"{of} has {twice!r} twice", "give every keypoint a name of its own")
        else:
            good[category] = [str(name) for name in names]
    return good


def _check_flip(source: DataYaml, k: int, titles: dict[Any, list[str]], add: Any) -> None:
    """Check flip_idx by itself and against the names."""
    flip = source.data.get("flip_idx")
    names = next(iter(titles.values()), None)
    expected, alone = flip_from_names(names) if names else (None, [])
    sided = names is not None and any(side for side, _ in sides_of(names))
    proposal = f"flip_idx: {expected}" if sided and not alone else "the partner of every keypoint, itself for those in the middle"
    if flip is None:
        add("flip_idx", "kpt_shape", "no flip_idx, so Ultralytics does not mirror images in training", f"add {proposal}",
            error=False)  # fmt: skip
        return
    if not isinstance(flip, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in flip):
        add("flip_idx", "flip_idx", f"flip_idx is {flip!r}", f"write {proposal}")
        return
    if len(flip) != k:
        add("flip_idx", "flip_idx", f"flip_idx has {len(flip)} entries for {k} keypoints", f"write {proposal}")
        return
    if any(not 0 <= i < k for i in flip):
        bad = next(i for i in flip if not 0 <= i < k)
        add("flip_idx", "flip_idx", f"flip_idx names keypoint {bad}, keypoints are 0 to {k - 1}", f"write {proposal}")
        return
    broken = [i for i in range(k) if flip[flip[i]] != i]
    if broken:
        i = broken[0]
        what = f"flip_idx does not mirror back: keypoint {i} goes to {flip[i]}, but {flip[i]} goes to {flip[flip[i]]}"
        add("flip_idx", "flip_idx", what, f"write {proposal}")
        return
    for category, group in titles.items():
        wanted, _ = flip_from_names(group)
        sides = sides_of(group)
        wrong = [
            i for i in range(k)
            if (wanted[i] != i and flip[i] != wanted[i])  # has a partner, is mirrored to another
            or (wanted[i] == i and sides[i][0] == MIDDLE and sides[flip[i]][0] != MIDDLE)
        ]  # fmt: skip
        if wrong:
            pairs = ", ".join(f"{group[i]} -> {group[flip[i]]}" for i in wrong[:4]) + (", ..." if len(wrong) > 4 else "")
            of = f" of class {category}" if len(titles) > 1 else ""
            what = f"flip_idx contradicts kpt_names{of} for {len(wrong)} keypoints: {pairs}"
            add("flip_idx", "flip_idx", what, f"write flip_idx: {wanted}")
    if alone:
        what = f"{alone[0]!r} has a side but no partner on the other one"
        add("kpt_names", "kpt_names", what, "check its spelling, and flip_idx by hand", error=False)
    guess = known_skeleton(None, k)
    if names is None and guess is not None and flip != guess.flip:
        what = f"no kpt_names, and flip_idx is not that of {guess.title}, which has {k} keypoints too"
        add("flip_idx", "flip_idx", what, f"if these are its keypoints write flip_idx: {guess.flip}; add kpt_names in any case",
            error=False)  # fmt: skip
    elif names is None and k > 1 and flip == list(range(k)):
        what = "flip_idx leaves every keypoint in its place, right only for objects without left and right"
        add("flip_idx", "flip_idx", what, "add kpt_names, and look at --show", error=False)


# -- images and labels ---------------------------------------------------------------------------------------------


def _check_split(
    source: DataYaml,
    split: str,
    images: list[Path],
    shape: tuple[int, int],
    report: Report,
    deep: bool,
    backgrounds: bool,
    show: int,
) -> None:
    """Check the images of a split and their labels."""
    names = source.data.get("names")
    classes = len(names) if isinstance(names, (list, dict)) else int(source.data.get("nc") or 1)
    labels: dict[Path, Path] = {}
    without_keypoints: list[tuple[Path, int]] = []
    box_free = with_box = 0
    first_free: Path | None = None
    for image in Progress(f"checking {split}", len(images)).over(images):
        report.images[split] += 1
        label = label_of(image)
        if label in labels and labels[label] != image:
            report.add("shared label", label, 0, f"{labels[label].name} and {image.name} share it", "rename one image")
        labels[label] = image
        size = _check_image(image, deep, report)
        if not label.is_file():
            if not backgrounds:
                what = f"no label file: {label} is absent"
                report.add("no label", image, 0, what, "write it; an empty file says that nobody is there (or --backgrounds)")
            continue
        rows = read_rows(label, *shape)
        for problem in rows.problems:
            report.add(problem.kind, label, problem.line, problem.what, problem.fix)
        if not len(rows.category):
            continue
        poses, seen = _check_rows(rows, label, classes, size or UNKNOWN_SIZE, shape[1], report)
        report.persons[split] += len(poses)
        free = rows.box_free
        box_free, with_box = box_free + int(free.sum()), with_box + int((~free).sum())
        first_free = first_free or (label if free.any() else None)
        without_keypoints += [(label, int(line)) for line in rows.lines[~seen.any(1)]]
        if show and size is not None:
            _remember(report, image, poses, seen, size, show)
    if without_keypoints:
        label, line = without_keypoints[0]
        what = f"{len(without_keypoints)} rows of {split} have no labelled keypoint, here is the first"
        report.add("no keypoints", label, line, what, "nothing: they are ignore regions in training", error=False)
    if first_free is not None:
        what = f"{box_free} rows of {split} have no box ({with_box} have one), here are the first"
        fix = "nothing: erpose-yolo trains on them; stock Ultralytics cannot"
        report.add("no boxes", first_free, 0, what, fix, error=False)
    for label in _orphans(set(labels)):
        report.add("no image", label, 0, "label file without an image", "add the image, or remove the label")


def _check_image(image: Path, deep: bool, report: Report) -> tuple[int, int] | None:
    """Width and height of an image in pixels; None if it cannot be read."""
    try:
        size = image_size(image, deep)
    except OSError as error:
        if not image.exists():
            report.add("image", image, 0, "there is no such file (a dangling link?)", "bring it back, or remove it here")
        else:
            report.add("image", image, 0, f"cannot be read: {error}", "replace the image")
        return None
    if min(size) < MIN_PIXELS:
        what = f"{size[0]} x {size[1]} px, Ultralytics leaves out images below {MIN_PIXELS} px"
        report.add("image", image, 0, what, "remove or replace it")
        return None
    return size


def _check_rows(
    rows: Rows, label: Path, classes: int, size: tuple[int, int], dims: int, report: Report
) -> tuple[Array, NDArray[np.bool_]]:
    """Check the rows of a label file.

    Returns:
        Keypoints (N, K, 3) with visibility, and which of them are labelled (N, K); rows with broken numbers have none.
    """
    poses = rows.posed()
    boxes, lines = rows.boxes, rows.lines
    free = rows.box_free
    finite: Any = np.isfinite(rows.category) & np.isfinite(rows.keypoints).all((1, 2)) & (free | np.isfinite(boxes).all(1))
    for n in np.flatnonzero(~finite):
        report.add("number", label, int(lines[n]), "a value is NaN or infinite", "fix the row")

    # a NaN passes none of the comparisons below
    for n in np.flatnonzero(finite & ((rows.category < 0) | (rows.category >= classes) | (rows.category % 1 != 0))):
        what = f"class {rows.category[n]:g}, names has classes 0 to {classes - 1}"
        report.add("class", label, int(lines[n]), what, "fix the row, or names in the data YAML")
    if dims == 3:
        strange: Any = ~np.isin(poses[:, :, 2], (0, 1, 2)) & np.isfinite(poses[:, :, 2])
        for n in np.flatnonzero(strange.any(1) & finite):
            k = int(np.flatnonzero(strange[n])[0])
            what = f"keypoint {k} has visibility {poses[n, k, 2]:g}"
            report.add("visibility", label, int(lines[n]), what, "0 is not labelled, 1 hidden, 2 visible")
    point = rows.keypoints[:, :, :2]
    least = -np.inf if dims == 2 else -ROUNDING  # without visibility, negative means not labelled
    outside: Any = ((point < least) | (point > 1 + ROUNDING)).any(2)
    for n in np.flatnonzero(outside.any(1) & finite):
        k = int(np.flatnonzero(outside[n])[0])
        what = f"keypoint {k} is at ({point[n, k, 0]:g}, {point[n, k, 1]:g}), outside the image"
        fix = "coordinates are shares of width and height, 0 to 1; write 0 0 0 for a keypoint outside"
        if point[n, k].max() > 2:
            fix = "coordinates are shares, 0 to 1: divide pixels by the image's width and height"
        report.add("outside", label, int(lines[n]), what, fix)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    beyond: Any = (low < -BOX_SLACK).any(1) | (high > 1 + BOX_SLACK).any(1)
    for n in np.flatnonzero(beyond & finite & ~free):
        what = f"the box reaches from ({low[n, 0]:.3g}, {low[n, 1]:.3g}) to ({high[n, 0]:.3g}, {high[n, 1]:.3g})"
        report.add("outside", label, int(lines[n]), what, "rows hold centre x, centre y, width, height, as shares; clip the box")
    for n in np.flatnonzero(~(boxes[:, 2:] > 0).all(1) & finite & ~free):
        what = f"the box is {boxes[n, 2]:g} wide and {boxes[n, 3]:g} high"
        report.add("box", label, int(lines[n]), what, "write a box with an extent, or leave out the four box columns")

    seen: Any = (poses[:, :, 2] > 0) & finite[:, None] & ~outside
    for n in np.flatnonzero(free & finite & ~seen.any(1)):
        report.add("nothing", label, int(lines[n]), "neither a box nor a labelled keypoint", "remove the row")
    scale = np.array(size, float)
    away: Any = np.maximum(np.maximum(low[:, None] - point, point - high[:, None]), 0) * scale  # (N, K, 2) pixels outside
    side: Any = (boxes[:, 2:] * scale).max(1)
    limit: Any = np.where(poses[:, :, 2] == 1, FAR_HIDDEN, FAR) * side[:, None]
    boxed: Any = ~free & (boxes[:, 2:] > 0).all(1)
    far: Any = (away.max(2) > limit) & seen & boxed[:, None]
    for n in np.flatnonzero(far.any(1)):
        k = int(np.argmax(np.where(far[n], away[n].max(1), -1)))
        what = f"keypoint {k} lies {away[n, k].max():.0f} px outside its box, whose longer side is {side[n]:.0f} px"
        report.add("far", label, int(lines[n]), what, "fix the keypoint or the box (another person's?)")
    for first, again in _twins(rows, poses, seen, scale):
        what = f"the same person as in line {lines[first]}"
        report.add("duplicate", label, int(lines[again]), what, "remove one of the rows")
    return poses, seen


def _twins(rows: Rows, poses: Array, seen: NDArray[np.bool_], scale: Array) -> Iterator[tuple[int, int]]:
    """Pairs of rows, first and later one, that are the same person."""
    if len(poses) < 2:
        return
    point = np.where(seen[:, :, None], poses[:, :, :2] * scale, np.nan)
    with np.errstate(invalid="ignore"):
        low = np.where(seen[:, :, None], point, np.inf).min(1)
        high = np.where(seen[:, :, None], point, -np.inf).max(1)
        extent = np.maximum((high - low).max(1), 1.0)  # (N,) pixels
    raw = np.concatenate((rows.category[:, None], rows.boxes, poses.reshape(len(poses), -1)), 1)
    gone: set[int] = set()
    for n in range(len(poses) - 1):
        if n in gone:
            continue
        later = np.arange(n + 1, len(poses))
        same = ((raw[later] == raw[n]) | (np.isnan(raw[later]) & np.isnan(raw[n]))).all(1)
        common = seen[later] & seen[n]
        count = common.sum(1)
        apart = np.linalg.norm(np.where(common[:, :, None], point[later] - point[n], 0), axis=2).sum(1) / np.maximum(count, 1)
        like = (count >= TWIN_KEYPOINTS) & (2 * count >= np.maximum(seen[later].sum(1), seen[n].sum()))
        like &= (apart < TWIN * np.maximum(extent[later], extent[n])) & (rows.category[later] == rows.category[n])
        for m in later[same | like].tolist():
            if m not in gone:
                gone.add(m)
                yield n, m


def _orphans(labels: set[Path]) -> list[Path]:
    """Label files beside those of the split that no image belongs to, whatever split it may be in."""
    out = []
    for folder in sorted({label.parent for label in labels}):
        if not folder.is_dir():
            continue
        extra = [Path(e.path) for e in os.scandir(folder) if e.name.endswith(".txt") and Path(e.path) not in labels]
        if not extra:
            continue
        home = image_folder_of(folder)
        stems = set()
        if home.is_dir():
            stems = {os.path.splitext(n)[0] for n in os.listdir(home) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES}
        names = {"classes.txt", "README.txt"}  # annotation tools leave these
        out += sorted(path for path in extra if path.stem not in stems and path.name not in names)
    return out


# -- leakage ---------------------------------------------------------------------------------------------------------


def _check_leaks(files: dict[str, list[Path]], report: Report) -> None:
    """Find images that are in two splits: the same path, or the same bytes.

    Only files of equal size can be the same, of these only those with equal ends; so little of a set is read in full.
    """
    if len(files) < 2:
        return
    groups: dict[Any, list[tuple[str, Path]]] = defaultdict(list)
    for split, images in files.items():
        for image in images:
            try:
                groups[image.stat().st_size].append((split, image))
            except OSError:
                continue  # reported as unreadable
    for reader in (_ends_of, _hash_of):
        shared = [group for group in groups.values() if len({split for split, _ in group}) > 1]
        groups = defaultdict(list)
        bar = Progress("comparing splits", sum(map(len, shared)))
        for number, group in enumerate(shared):
            for split, image in group:
                try:
                    groups[number, reader(image)].append((split, image))
                except OSError:
                    pass
                bar.add()
        bar.close()
    order = {split: i for i, split in enumerate(files)}
    for group in groups.values():
        group.sort(key=lambda item: (order[item[0]], item[1]))
        first_split, first = group[0]
        told = set()
        for split, image in group[1:]:
            if split != first_split and split not in told:
                told.add(split)
                what = f"the same image as {first} of {first_split}, so {split} is not unseen"
                report.add("leak", image, 0, what, f"remove one of the two ({split} or {first_split})")


def _ends_of(file: Path, size: int = 4096) -> bytes:
    with file.open("rb") as handle:
        head = handle.read(size)
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - size))
        return head + handle.read()


def _hash_of(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.digest()


# -- contact sheet ---------------------------------------------------------------------------------------------------


def _remember(report: Report, image: Path, poses: Array, seen: NDArray[np.bool_], size: tuple[int, int], show: int) -> None:
    """Keep the images whose main person is large and fully labelled: there the sides are seen best."""
    point = np.where(seen[:, :, None], poses[:, :, :2] * size, np.nan)
    whole = seen.sum(1) >= 2
    if not whole.any():
        return
    extent = (np.nanmax(point[whole], 1) - np.nanmin(point[whole], 1)).max(1) / max(size)
    score = float((extent.clip(max=0.8) * seen[whole].mean(1) ** 2).max()) / (1 + 0.1 * max(0, int(whole.sum()) - 3))
    drawn = poses.copy()
    drawn[~seen] = 0
    item = (score, -report.images.total(), image, drawn)
    if len(report.gallery) < show:
        heapq.heappush(report.gallery, item)
    elif item[:2] > report.gallery[0][:2]:
        heapq.heapreplace(report.gallery, item)


def contact_sheet(source: DataYaml, report: Report, file: Path, tile: int = 300) -> None:
    """Save images with their skeletons and, below each, the mirrored image with ``flip_idx`` applied.

    Args:
        source: the data YAML.
        report: of :func:`check` with ``show``.
        file: where the sheet goes; the suffix says the format.
        tile: side of an image on the sheet in pixels.

    Raises:
        DataError: nothing to show, or the sheet cannot be written.
    """
    if not report.gallery:
        raise DataError(f"{source.file}: no image with a labelled person to show. Fix: the errors above first.")
    gallery = [(path, poses) for _, _, path, poses in sorted(report.gallery, key=lambda g: g[:2], reverse=True)]
    k = gallery[0][1].shape[1]
    names = keypoint_names(source.data.get("kpt_names"), k)
    known = known_skeleton(names, k)
    sides = [side for side, _ in sides_of(names or (known.names if known else [""] * k))]
    limbs = limbs_of(source.data, k)
    flip, title, colour = _verdict(source, report, k, names)

    gap, head, line = 4, 26, 22
    width = gap + len(gallery) * (tile + gap)
    sheet = np.full((head + 2 * (line + tile) + gap, width, 3), 40, np.uint8)
    draw_text(sheet, title, (gap, head - 8), colour)
    labelled = "as labelled: left side of the body orange, right side blue"
    if names is None:
        guess = f"taken for {known.title}; {labelled}" if known else "sides are not known, keypoints are white"
        labelled = f"no kpt_names in the data YAML: {guess}"
    labelled += "" if limbs else "; no skeleton: keypoints alone"
    draw_text(sheet, labelled, (gap, head + line - 7), (235, 235, 235))
    below = head + line + tile
    caption = "mirrored with flip_idx: who faces you still has orange on the right of the image"
    draw_text(sheet, caption if flip else "no usable flip_idx: nothing to mirror", (gap, below + line - 7), (235, 235, 235))
    for n, (path, poses) in enumerate(gallery):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            continue
        scale = tile / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = image[:tile, :tile]
        rows = [(head + line, image, poses)]
        if flip:
            mirrored = poses[:, flip].copy()
            mirrored[:, :, 0] = 1 - mirrored[:, :, 0]
            rows.append((below + line, image[:, ::-1], mirrored))
        left = gap + n * (tile + gap)
        for top, pixels, persons in rows:
            canvas = np.ascontiguousarray(pixels)
            h, w = canvas.shape[:2]
            for pose in persons.clip(-1, 2) * (w, h, 1):
                draw_sides(canvas, pose, sides, limbs, max(1, round(max(h, w) / 150)))
            y, x = top + (tile - h) // 2, left + (tile - w) // 2
            sheet[y : y + h, x : x + w] = canvas
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(file), sheet)
    except cv2.error:
        written = False
    if not written:
        raise DataError(f"{file}: cannot be written. Fix: give --show a name that ends in .jpg or .png.")


def _verdict(
    source: DataYaml, report: Report, k: int, names: list[str] | None
) -> tuple[list[int] | None, str, tuple[int, int, int]]:
    """The flip_idx to draw with, a title, and its colour."""
    green, yellow, red = (120, 230, 120), (80, 220, 255), (90, 90, 255)
    flip = source.data.get("flip_idx")
    usable = isinstance(flip, list) and len(flip) == k and all(isinstance(i, int) and 0 <= i < k for i in flip)
    wrong = [f for f in report.findings if f.kind == "flip_idx" and f.error]
    title = source.file.name
    if wrong:
        title, colour = f"{title}: {wrong[0].what}", red
    elif not usable:
        title, colour = f"{title}: no flip_idx{'' if names else ' and no kpt_names'}", yellow
    elif names is None:
        title, colour = f"{title}: no kpt_names, so flip_idx can be judged by eye only", yellow
    else:
        title, colour = f"{title}: flip_idx agrees with kpt_names", green
    return (list(flip) if usable and flip is not None else None), title, colour


# -- command line ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``erpose check``.

    Returns:
        0 where the set is clean, 1 where something is wrong, 2 on wrong usage.
    """
    parser = argparse.ArgumentParser("erpose check", description="Find what is wrong with a YOLO-pose data set.")
    parser.add_argument(
        "data",
        metavar="data.yaml",
        type=lambda word: word.removeprefix("data="),  # as the yolo commands have it
        help="data YAML, or the name of a set that ships with erpose-yolo",
    )
    parser.add_argument("--split", nargs="+", metavar="NAME", help="look at these splits only (default: all)")
    parser.add_argument("--show", type=Path, metavar="FILE.jpg", help="save a sheet of skeletons, and of the same mirrored")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="images on that sheet (default: 6)")
    parser.add_argument("--deep", action="store_true", help="decode every image in full (slow)")
    parser.add_argument("--backgrounds", action="store_true", help="images without label file are meant so")
    parser.add_argument("--all", action="store_true", help=f"print every finding, not {PER_KIND} of a kind")
    try:
        args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        if args.images < 1:
            parser.error("--images must be at least 1")
        report = check(args.data, args.split, args.deep, args.backgrounds, args.images if args.show else 0)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    except (FileNotFoundError, KeyError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2

    _print(report, args.all)
    failed = report.errors > 0
    if args.show:
        try:
            contact_sheet(load_data_yaml(args.data), report, args.show)
            print(f"sheet: {args.show}")
        except (DataError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _print(report: Report, every: bool) -> None:
    counts: Counter[tuple[bool, str]] = Counter()
    for finding in report.findings:
        counts[finding.error, finding.kind] += 1
        if every or counts[finding.error, finding.kind] <= PER_KIND:
            print(finding)
    for (_, kind), count in counts.items():
        if count > PER_KIND and not every:
            print(f"... and {count - PER_KIND} more of the kind '{kind}' (--all prints them)")
    seen = ", ".join(f"{s}: {n} images, {report.persons[s]} persons" for s, n in report.images.items())
    notes = len(report.findings) - report.errors
    print(f"{seen or 'no images'}; {report.errors} errors, {notes} notes")


if __name__ == "__main__":
    sys.exit(main())
