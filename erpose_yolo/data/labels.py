"""YOLO-pose label files, with boxes (``cls cx cy w h`` + K*D values) and without (``cls`` + K*D values), row by row.

Coordinates are normalised by the image's width and height. D is 3 (x, y, visibility: 0 not labelled, 1 labelled but
occluded, 2 visible) or 2 (x, y; a negative coordinate means not labelled). Rows of both kinds may stand in one file.
A row with a box and no labelled keypoint is an ignore region.

:func:`read_rows` is the one reader: the linter and the converters take what it found and what it could not read,
training (:func:`parse_labels`) refuses a file at its first mistake.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Sides of the box of a person without extent (one keypoint, or all in one place), as a share of the image's long side: 16 px of
# 640. Augmentation drops objects whose box has no size. Keypoints on one line have a length, of which MIN_ASPECT is the least
# width, as in the area rule of OKS.
POINT_SIDE = 1 / 40

# A side below this share of the image is none: a thousandth of a pixel of 1,000.
EMPTY = 1e-6

# How far coordinates may lie outside the image before a row counts as broken; Ultralytics allows the same for rounding.
SLACK = 0.01


class LabelError(ValueError):
    """A label row that cannot be used: says file, line, what is wrong and the fix."""


class ColumnError(LabelError):
    """A wrong number of columns: a mistake of the whole data set and not of one row, so training does not start."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line of a label file."""

    kind: str
    line: int
    what: str
    fix: str


@dataclass(frozen=True)
class Rows:
    """The readable rows of a label file.

    Shapes: N rows, K keypoints, D values of a keypoint in the file.

    Args:
        category: (N,) class indices.
        boxes: (N, 4) centre x, centre y, width, height, as shares of the image; NaN in rows without a box.
        keypoints: (N, K, D) as in the file.
        lines: (N,) line numbers, from 1.
        box_free: (N,) which rows have no box.
        problems: lines that could not be read.
    """

    category: Array
    boxes: Array
    keypoints: Array
    lines: NDArray[np.int64]
    box_free: NDArray[np.bool_]
    problems: list[Problem]

    def posed(self) -> Array:
        """Keypoints with visibility (N, K, 3); where D is 2, negative coordinates mean unlabelled, as in Ultralytics."""
        if self.keypoints.shape[2] == 3:
            return self.keypoints
        seen = (self.keypoints >= 0).all(2, keepdims=True)
        return np.concatenate((self.keypoints, 2.0 * seen), 2)


def read_rows(file: Path, keypoints: int, dims: int) -> Rows:
    """Read a label file: rows of class, box and keypoints, or of class and keypoints, in any mixture.

    Args:
        file: the label file.
        keypoints: K.
        dims: D, 2 for x y or 3 for x y v.
    """
    values = keypoints * dims
    widths = (5 + values, 1 + values)
    try:
        lines = io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=None).readlines()  # as editors count them
    except UnicodeDecodeError as error:
        where = file.read_bytes()[: error.start].count(b"\n") + 1
        problem = Problem("encoding", where, "not UTF-8 text", "save the file as plain text")
        return _rows([], [], [problem], keypoints, dims)
    good: list[list[float]] = []
    numbers: list[int] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in widths:
            what = (
                f"{len(words)} columns; a row must have {widths[0]} (class, box x y w h, {keypoints} keypoints of {dims} values) "
                f"or {widths[1]} (without the box), as kpt_shape [{keypoints}, {dims}] says"
            )
            problems.append(Problem("columns", number, what, "fix the row, or kpt_shape in the data YAML"))
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            column, word = next((c, w) for c, w in enumerate(words, 1) if not _is_number(w))
            problems.append(Problem("number", number, f"column {column} is {word!r}, not a number", "write a number there"))
            continue
        good.append(row)
        numbers.append(number)
    return _rows(good, numbers, problems, keypoints, dims)


def _rows(rows: list[list[float]], lines: list[int], problems: list[Problem], keypoints: int, dims: int) -> Rows:
    free = np.array([len(row) == 1 + keypoints * dims for row in rows], bool)
    full = [[row[0], *[float("nan")] * 4, *row[1:]] if f else row for row, f in zip(rows, free)]
    array = np.array(full, np.float64).reshape(len(rows), 5 + keypoints * dims)
    poses = array[:, 5:].reshape(len(rows), keypoints, dims)
    return Rows(array[:, 0], array[:, 1:5], poses, np.array(lines, np.int64), free, problems)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def parse_labels(
    file: str | Path, kpt_shape: tuple[int, int], num_classes: int, size: tuple[int, int], single_class: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a label file for training.

    Args:
        file: text file; a byte-order mark and any line ends are fine.
        kpt_shape: (K, D).
        num_classes: class indices must lie below it.
        size: (width, height) of the image in pixels, for the shape of derived boxes.
        single_class: treat all classes as one.

    Returns:
        Classes (N, 1), boxes (N, 4) as normalised centre and size, keypoints (N, K, 3) normalised with visibility (2 for all
        labelled ones where D is 2); float32. Exact duplicates of a row are left out.

    Raises:
        ColumnError: a row has neither 5 + K*D nor 1 + K*D columns.
        LabelError: a row holds what is not a number or not finite, a class, coordinate or visibility out of range.
    """
    k, d = kpt_shape
    rows = read_rows(Path(file), k, d)
    checked, seen = [], set()
    wrong = [(problem.line, problem) for problem in rows.problems]
    for n, line in enumerate(rows.lines.tolist()):
        if wrong and wrong[0][0] < line:
            break  # the first mistake of the file is told
        row = np.concatenate((rows.category[n : n + 1], rows.boxes[n], rows.keypoints[n].ravel()))
        if row.tobytes() not in seen:
            seen.add(row.tobytes())
            checked.append(_checked(rows, n, f"{file}:{line}", 1 if single_class else num_classes, single_class))
    if wrong:
        line, problem = wrong[0]
        kind = ColumnError if problem.kind == "columns" else LabelError
        raise kind(f"{file}:{line}: {problem.what}. Fix: {problem.fix}.")
    if not checked:
        return np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), np.zeros((0, k, 3), np.float32)
    classes, boxes, keypoints = (np.stack(part) for part in zip(*checked, strict=True))
    boxes = complete_boxes(boxes, keypoints, size)
    known = np.isfinite(boxes).all(1)  # neither box nor keypoint: the row says nothing
    return classes[known].astype(np.float32), boxes[known].astype(np.float32), keypoints[known].astype(np.float32)


def complete_boxes(boxes: np.ndarray, keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Derive the boxes that are missing (NaN) from the labelled keypoints.

    Args:
        boxes: (N, 4) normalised centre and size, NaN where a row has no box.
        keypoints: (N, K, 3) normalised, with visibility.
        size: (width, height) in pixels.

    Returns:
        (N, 4), inside the image; NaN is left where no keypoint is labelled either.
    """
    import torch  # late: the command line tools read labels, too, and start at once

    from erpose_yolo.method.boxes import default_margins, derive_boxes
    from erpose_yolo.method.oks import MIN_ASPECT

    need = np.isnan(boxes).any(axis=1) & (keypoints[..., 2] > 0).any(axis=1)
    if not need.any():
        return boxes
    scale = torch.tensor(size, dtype=torch.float64)
    points = torch.from_numpy(keypoints[need]).double()
    visible = (points[..., 2] > 0).double().T[None]
    xy = (points[..., :2] * scale).permute(1, 2, 0)[None]
    corners = derive_boxes(xy, visible, default_margins(keypoints.shape[1]))[0].T  # (n, 4) pixels
    centre, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    longest = side.amax(1, keepdim=True)
    side = torch.maximum(side, torch.where(longest < 1, POINT_SIDE * max(size), MIN_ASPECT * longest))
    low = ((centre - side / 2) / scale).clamp(0, 1)
    high = ((centre + side / 2) / scale).clamp(0, 1)
    out = boxes.copy()
    out[need] = torch.cat(((low + high) / 2, high - low), 1).numpy()
    return out


def _checked(rows: Rows, n: int, where: str, num_classes: int, single_class: bool) -> tuple[Array, Array, Array]:
    """Class (1,), box (4,) and keypoints (K, 3) of a row, NaN for a box that is not there."""
    box, keypoints = rows.boxes[n], rows.posed()[n]
    written = np.concatenate((rows.category[n : n + 1], [] if rows.box_free[n] else box, rows.keypoints[n].ravel()))
    if not np.isfinite(written).all():
        column = int(np.isfinite(written).argmin()) + 1
        raise LabelError(f"{where}: column {column} is not finite. Fix or delete the row.")
    category = 0.0 if single_class else rows.category[n]
    if category % 1 or not 0 <= category < num_classes:
        last = num_classes - 1
        raise LabelError(f"{where}: class {category:g} is not one of 0 to {last}. Fix the row, or names in the data YAML.")
    if not rows.box_free[n] and box[2:].min() < 0:
        raise LabelError(f"{where}: box size {box[2]:g} x {box[3]:g} is negative. Fix the row.")
    if keypoints[:, 2].max() > 2:
        raise LabelError(
            f"{where}: visibility {keypoints[:, 2].max():g} is none of 0 (not labelled), 1 (hidden), 2 (visible). Fix the row."
        )
    keypoints = np.where(keypoints[:, 2:] > 0, keypoints, 0.0)
    outside = np.concatenate((keypoints[:, :2].ravel(), box[np.isfinite(box)]))
    if outside.min(initial=0) < -SLACK or outside.max(initial=0) > 1 + SLACK:
        worst = outside[np.abs(outside - 0.5).argmax()]
        raise LabelError(
            f"{where}: coordinate {worst:g} lies outside the image. Coordinates are shares of its width and height, 0 to 1; "
            "fix the row, or give keypoints outside the image visibility 0."
        )
    if box[2:].min() < EMPTY:  # a box without extent says nothing, and augmentation drops its person
        box = np.full(4, np.nan)
    return np.array([category]), box, keypoints
