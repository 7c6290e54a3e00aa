"""The painter of skeletons: what it draws, where, and in which colour."""

from __future__ import annotations

import numpy as np
import pytest

from erpose_yolo.data.painting import SIDE_COLOURS, draw_sides, draw_skeleton
from erpose_yolo.data.skeletons import LEFT, MIDDLE, RIGHT

POSE = np.array([[10, 10, 2], [30, 10, 2], [10, 30, 1], [30, 30, 0]], float)


def test_sides_have_their_colours_and_hidden_keypoints_are_rings() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    draw_sides(image, POSE, [LEFT, RIGHT, LEFT, RIGHT], [(0, 1), (0, 2), (1, 3)], 3)
    assert [tuple(image[10, x]) for x in (10, 20, 30)] == [SIDE_COLOURS[side] for side in (LEFT, MIDDLE, RIGHT)]
    assert tuple(image[20, 10]) == SIDE_COLOURS[LEFT]
    assert not image[16:, 16:].any()  # a keypoint that is not there takes its limb along
    alone = np.zeros((40, 40, 3), np.uint8)
    draw_sides(alone, POSE, [LEFT, RIGHT, LEFT, RIGHT], [], 3)
    assert not alone[30, 10].any() and alone[30, 14].any()


@pytest.mark.parametrize("place", [1e30, -1e30])
def test_limbs_have_colours_of_their_own(place: float) -> None:
    """Without colours for keypoints limbs alone are drawn; limbs beyond the keypoints and places beyond integers do no harm."""
    image = np.zeros((40, 40, 3), np.uint8)
    points = np.array([[10, 10], [30, 10], [10, place]])
    draw_skeleton(image, points, [True] * 3, [(0, 1), (0, 2), (2, 7)], [(1, 2, 3), (4, 5, 6), (7, 8, 9)], 3)
    assert tuple(image[10, 20]) == (1, 2, 3) and tuple(image[30 if place > 0 else 0, 10]) == (4, 5, 6)
    assert not image[14:, 14:].any() and tuple(image[10, 30]) == (1, 2, 3) and not image[10, 33:].any()
