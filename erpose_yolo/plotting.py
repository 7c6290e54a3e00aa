"""Pictures of batches: skeletons with scores, no boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.utils.plotting import Annotator, colors

# COCO's limbs as pairs of joint indices (COCO keypoints annotation, `skeleton`, counted from 0)
COCO_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def draw_person(
    image: np.ndarray, joints: np.ndarray, colour: tuple[int, int, int], limbs: Sequence[tuple[int, int]], width: int
) -> None:
    """Draw one skeleton in place.

    Args:
        image: (H, W, 3) uint8.
        joints: (K, 2 or 3) pixels and visibility; joints below 0.5 are left out, labelled but occluded ones (1 where the
            labels use 0, 1, 2) are hollow.
        colour: of limbs and joints.
        limbs: pairs of joint indices.
        width: line width in pixels.
    """
    seen = joints[:, 2] >= 0.5 if joints.shape[1] == 3 else np.ones(len(joints), bool)
    labels = joints.shape[1] == 3 and joints[:, 2].max(initial=0) > 1
    points = [(int(round(x)), int(round(y))) for x, y in np.clip(joints[:, :2], -1e4, 1e4)]
    for a, b in limbs:
        if max(a, b) < len(points) and seen[a] and seen[b]:
            cv2.line(image, points[a], points[b], colour, width, cv2.LINE_AA)
    for k, point in enumerate(points):
        if seen[k]:
            hollow = labels and joints[k, 2] == 1
            cv2.circle(image, point, width + 1, colour, width if hollow else -1, cv2.LINE_AA)


def plot_skeletons(
    batch: dict[str, Any],
    paths: Sequence[str],
    file: Path,
    persons: dict[str, Any] | None = None,
    min_score: float = 0.25,
    limbs: Sequence[tuple[int, int]] | None = None,
    on_plot: Callable[[Path], None] | None = None,
    max_images: int = 16,
    max_size: int = 1920,
) -> None:
    """Save a grid of a batch with its persons drawn.

    Args:
        batch: collated batch; its ``img`` is drawn on, and its own labels are drawn where ``persons`` is None.
        paths: image files, for the captions.
        file: where the picture goes.
        persons: predictions with ``keypoints`` (N, K, D) in pixels, ``conf`` (N,) and ``batch_idx`` (N,).
        min_score: predictions below it are not drawn.
        limbs: pairs of joint indices, None for COCO's where K is 17 and joints alone elsewhere.
        on_plot: told of the saved file.
        max_images: most pictures in the grid.
        max_size: longest side of the grid in pixels.
    """
    images = batch["img"][:max_images].detach().float().cpu().numpy()
    images = images * 255 if images.max(initial=0) <= 1 else images
    n, c, h, w = images.shape
    side = math.ceil(math.sqrt(n))
    scale = min(max_size / (side * max(h, w)), max(1.0, 320 / max(h, w)))  # small inputs are drawn larger
    th, tw = max(1, round(h * scale)), max(1, round(w * scale))
    grid = np.full((side * th, side * tw, 3), 255, np.uint8)

    source = batch if persons is None else persons
    joints = source["keypoints"].detach().float().cpu().numpy().copy()
    if persons is None:  # labels are normalised
        joints[..., :2] *= [w, h]
    joints[..., :2] *= scale
    image_of = source["batch_idx"].detach().cpu().numpy().reshape(-1)
    scores = None if persons is None else persons["conf"].detach().float().cpu().numpy()
    if limbs is None:
        limbs = COCO_LIMBS if joints.shape[1:2] == (17,) else ()

    for i in range(n):
        tile = np.ascontiguousarray(images[i][[0, 0, 0] if c < 3 else [0, 1, 2]].transpose(1, 2, 0), np.uint8)
        tile = cv2.resize(tile, (tw, th), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
        annotator = Annotator(tile, line_width=max(1, round(min(tw, th) / 250)))
        for count, j in enumerate(np.flatnonzero(image_of == i)):
            if scores is not None and scores[j] < min_score:
                continue
            colour = colors(count, True)
            draw_person(annotator.im, joints[j], colour, limbs, annotator.lw)
            if scores is not None:
                x, y = joints[j, :, 0].mean(), joints[j, :, 1].min()
                annotator.text([int(np.clip(x, 0, tw - 30)), int(np.clip(y, 14, th - 4))], f"{scores[j]:.2f}", colour)
        if i < len(paths):
            annotator.text([4, 14], Path(paths[i]).name[:40], (220, 220, 220))
        row, column = divmod(i, side)
        grid[row * th : (row + 1) * th, column * tw : (column + 1) * tw] = annotator.result()
    cv2.imwrite(str(file), grid)
    if on_plot is not None:
        on_plot(file)
