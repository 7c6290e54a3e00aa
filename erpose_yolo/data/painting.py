"""The one painter of skeletons: for batches, results, the sheets of ``erpose check`` and those of synthetic people."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from erpose_yolo.data.skeletons import LEFT, MIDDLE, RIGHT

Colour = tuple[int, int, int]

SIDE_COLOURS: dict[str, Colour] = {LEFT: (0, 140, 255), RIGHT: (255, 120, 0), MIDDLE: (235, 235, 235)}  # BGR: orange, blue, white


def draw_skeleton(
    image: np.ndarray,
    points: np.ndarray,
    seen: Sequence[bool] | np.ndarray,
    limbs: Sequence[Sequence[int]],
    limb_colours: Sequence[Colour],
    width: int,
    point_colours: Sequence[Colour] = (),
    rings: Sequence[int] = (),
) -> None:
    """Draw one skeleton in place.

    Args:
        image: (H, W, 3) uint8.
        points: (K, 2) pixels.
        seen: (K,) the others are left out, with their limbs.
        limbs: pairs of keypoint indices; those beyond K are left out.
        limb_colours: one for each limb.
        width: of a limb in pixels; a keypoint is a disk of that radius and one pixel more.
        point_colours: (K,); without any, limbs alone are drawn.
        rings: (K,) line width of a keypoint that is drawn as a ring, -1 for a disk.
    """
    spots = [(round(x), round(y)) for x, y in np.clip(points, -1e4, 1e4).tolist()]
    for (a, b), colour in zip(limbs, limb_colours):
        if max(a, b) < len(spots) and seen[a] and seen[b]:
            cv2.line(image, spots[a], spots[b], colour, width, cv2.LINE_AA)
    for spot, there, colour, ring in zip(spots, seen, point_colours, rings):
        if there:
            cv2.circle(image, spot, width + 1, colour, ring, cv2.LINE_AA)


def draw_circles(image: np.ndarray, points: np.ndarray, radii: np.ndarray, colour: Colour) -> None:
    """Draw thin circles in place, lightly filled.

    Args:
        image: (H, W, 3) uint8.
        points: (N, 2) pixels.
        radii: (N,) pixels; drawn to a sixteenth of one.
        colour: of all.
    """
    fine = 4  # binary digits after the point
    whole = [
        (round(x * 2**fine), round(y * 2**fine), round(r * 2**fine))
        for (x, y), r in zip(np.clip(points, -1e4, 1e4).tolist(), np.clip(radii, 0, 1e4).tolist())
    ]
    filled = image.copy()
    for x, y, r in whole:
        cv2.circle(filled, (x, y), r, colour, -1, cv2.LINE_AA, fine)
    cv2.addWeighted(filled, 0.25, image, 0.75, 0, image)
    for x, y, r in whole:
        cv2.circle(image, (x, y), r, colour, 1, cv2.LINE_AA, fine)


def draw_sides(image: np.ndarray, pose: np.ndarray, sides: Sequence[str], limbs: Sequence[Sequence[int]], width: int) -> None:
    """Draw a labelled skeleton in place, left and right in their colours; hidden keypoints are rings.

    Args:
        image: (H, W, 3) uint8 BGR.
        pose: (K, 3) pixels and visibility (0, 1, 2).
        sides: (K,) LEFT, MIDDLE or RIGHT.
        limbs: pairs of keypoint indices. A limb has the side of its keypoints; MIDDLE if they differ.
        width: of a limb in pixels.
    """
    both = [{sides[a], sides[b]} - {MIDDLE} for a, b in limbs]
    limb_colours = [SIDE_COLOURS[of.pop() if len(of) == 1 else MIDDLE] for of in both]
    rings = np.where(pose[:, 2] == 1, 1, -1).tolist()
    draw_skeleton(image, pose[:, :2], pose[:, 2] > 0, limbs, limb_colours, width, [SIDE_COLOURS[side] for side in sides], rings)


def draw_text(image: np.ndarray, text: str, at: tuple[int, int], colour: Colour) -> None:
    """Write one line in place, as small as it must be to fit between ``at`` and an equal margin on the right."""
    room = image.shape[1] - 2 * at[0]
    scale = 0.5
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    scale *= min(1.0, room / max(width, 1))
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
