"""YOLO-pose label files, with boxes (``cls cx cy w h`` + K*D values) and without (``cls`` + K*D values), row by row.

Coordinates are normalised by the picture's width and height. D is 3 (x, y, visibility: 0 not labelled, 1 labelled but
occluded, 2 visible) or 2 (x, y; a negative coordinate means not labelled). Rows of both kinds may stand in one file.
A row with a box and no labelled joint is an ignore region.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from erpose_yolo.decode import default_margins, derive_boxes
from erpose_yolo.oks import MIN_ASPECT

# Sides of the box of a person without extent (one joint, or all in one place), as a share of the image's long side: 16 px of
# 640. Augmentation drops objects whose box has no size. Joints on one line have a length, of which MIN_ASPECT is the least
# width, as in the area rule of OKS.
POINT_SIDE = 1 / 40

# A side below this share of the picture is none: a thousandth of a pixel of 1,000.
EMPTY = 1e-6

# How far coordinates may lie outside the picture before a row counts as broken; Ultralytics allows the same for rounding.
SLACK = 0.01


class LabelError(ValueError):
    """A label row that cannot be used: says file, line, what is wrong and the mend."""


class ColumnError(LabelError):
    """A wrong number of columns: a mistake of the whole data set and not of one row, so training does not start."""


def parse_labels(
    file: str | Path, kpt_shape: tuple[int, int], num_classes: int, size: tuple[int, int], single_class: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a label file.

    Args:
        file: text file; a byte-order mark and any line ends are fine.
        kpt_shape: (K, D).
        num_classes: class indices must lie below it.
        size: (width, height) of the picture in pixels, for the shape of derived boxes.
        single_class: treat all classes as one.

    Returns:
        Classes (N, 1), boxes (N, 4) as normalised centre and size, joints (N, K, 3) normalised with visibility; float32.
        Exact duplicates of a row are left out.

    Raises:
        ColumnError: a row has neither 5 + K*D nor 1 + K*D columns.
        LabelError: a row holds what is not a number or not finite, a class, coordinate or visibility out of range.
    """
    k, d = kpt_shape
    with_box, box_free = 5 + k * d, 1 + k * d
    rows, seen = [], set()
    text = Path(file).read_bytes().decode("utf-8-sig", errors="replace")
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # line ends as editors count them, unlike splitlines()
        words = line.split()
        if not words:
            continue
        where = f"{file}:{number}"
        if len(words) not in (with_box, box_free):
            raise ColumnError(
                f"{where}: {len(words)} columns. A row must have {with_box} (class, box x y w h, {k} joints of {d} values) "
                f"or {box_free} (without the box), as kpt_shape [{k}, {d}] says. Mend the row, or kpt_shape in the data YAML."
            )
        if (row_text := " ".join(words)) in seen:
            continue
        seen.add(row_text)
        try:
            row = np.array(words, dtype=np.float64)
        except ValueError as error:  # numpy's message quotes the word
            raise LabelError(f"{where}: {error}. Mend or delete the row.") from None
        rows.append(_checked(row, where, k, d, 1 if single_class else num_classes, single_class))
    if not rows:
        return np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), np.zeros((0, k, 3), np.float32)
    classes, boxes, joints = (np.stack(part) for part in zip(*rows, strict=True))
    boxes = complete_boxes(boxes, joints, size)
    known = np.isfinite(boxes).all(1)  # neither box nor joint: the row says nothing
    return classes[known].astype(np.float32), boxes[known].astype(np.float32), joints[known].astype(np.float32)


def complete_boxes(boxes: np.ndarray, joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Derive the boxes that are missing (NaN) from the labelled joints.

    Args:
        boxes: (N, 4) normalised centre and size, NaN where a row has no box.
        joints: (N, K, 3) normalised, with visibility.
        size: (width, height) in pixels.

    Returns:
        (N, 4), inside the picture; NaN is left where no joint is labelled either.
    """
    need = np.isnan(boxes).any(axis=1) & (joints[..., 2] > 0).any(axis=1)
    if not need.any():
        return boxes
    scale = torch.tensor(size, dtype=torch.float64)
    points = torch.from_numpy(joints[need]).double()
    visible = (points[..., 2] > 0).double().T[None]
    xy = (points[..., :2] * scale).permute(1, 2, 0)[None]
    corners = derive_boxes(xy, visible, default_margins(joints.shape[1]))[0].T  # (n, 4) pixels
    centre, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    longest = side.amax(1, keepdim=True)
    side = torch.maximum(side, torch.where(longest < 1, POINT_SIDE * max(size), MIN_ASPECT * longest))
    low = ((centre - side / 2) / scale).clamp(0, 1)
    high = ((centre + side / 2) / scale).clamp(0, 1)
    out = boxes.copy()
    out[need] = torch.cat(((low + high) / 2, high - low), 1).numpy()
    return out


def _checked(
    row: np.ndarray, where: str, k: int, d: int, num_classes: int, single_class: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class (1,), box (4,) and joints (K, 3) of a row, NaN for a box that is not there."""
    if not np.isfinite(row).all():
        column = int(np.isfinite(row).argmin()) + 1
        raise LabelError(f"{where}: column {column} is not finite. Mend or delete the row.")
    category = 0.0 if single_class else row[0]
    if category % 1 or not 0 <= category < num_classes:
        last = num_classes - 1
        raise LabelError(f"{where}: class {category:g} is not one of 0 to {last}. Mend the row, or names in the data YAML.")
    box = row[1:5] if len(row) == 5 + k * d else np.full(4, np.nan)
    if np.isfinite(box).all() and box[2:].min() < 0:
        raise LabelError(f"{where}: box size {box[2]:g} x {box[3]:g} is negative. Mend the row.")
    joints = row[len(row) - k * d :].reshape(k, d)
    if d == 3 and joints[:, 2].max() > 2:
        raise LabelError(
            f"{where}: visibility {joints[:, 2].max():g} is none of 0 (not labelled), 1 (hidden), 2 (visible). Mend the row."
        )
    labelled = joints.min(axis=1) >= 0 if d == 2 else joints[:, 2] > 0
    joints = np.concatenate((joints[:, :2], (joints[:, 2:] if d == 3 else labelled[:, None]).astype(np.float64)), 1)
    joints[~labelled] = 0
    outside = np.concatenate((joints[:, :2].ravel(), box[np.isfinite(box)]))
    if outside.min(initial=0) < -SLACK or outside.max(initial=0) > 1 + SLACK:
        worst = outside[np.abs(outside - 0.5).argmax()]
        raise LabelError(
            f"{where}: coordinate {worst:g} lies outside the picture. Coordinates are shares of its width and height, 0 to 1; "
            "mend the row, or give joints outside the picture visibility 0."
        )
    if box[2:].min() < EMPTY:  # a box without extent says nothing, and augmentation drops its person
        box = np.full(4, np.nan)
    return np.array([category]), box, joints
