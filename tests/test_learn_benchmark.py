"""benchmarks/learn.py: the pictures that it makes of others still hold what their labels say."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

BOX = np.array([60.0, 50.0, 30.0, 60.0])  # centre form, pixels


@pytest.fixture(scope="module")
def learn(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("learn")


def dotted(joints: np.ndarray, size: int = 128) -> np.ndarray:
    """A black picture (3, size, size) with a white square of 5 x 5 pixels around each joint (n, 2)."""
    image = np.zeros((3, size, size), np.uint8)
    for x, y in joints.astype(int):
        image[:, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 255
    return image


def person(box: np.ndarray, seed: int = 0) -> np.ndarray:
    """(17, 3) joints spread over a box, on the centres of pixels."""
    places = np.random.default_rng(seed).uniform(-0.45, 0.45, (17, 2)) * box[2:] + box[:2]
    return np.concatenate((places.astype(int) + 0.5, np.full((17, 1), 2.0)), 1)


def test_close_ups_keep_joints_on_their_pixels(learn: ModuleType) -> None:
    joints = person(BOX)
    samples = [(dotted(joints[:, :2]), BOX[None], joints[None])]
    for seed in range(5):
        ((image, boxes, moved),) = learn.close_ups(samples, 96, seed=seed)
        assert image.shape == (3, 96, 96) and image.dtype == np.uint8
        seen = moved[0, :, 2] > 0
        assert seen.sum() >= 15, "the person fills the picture, and lies in it"
        assert all(image[0, int(y), int(x)] > 200 for x, y, _ in moved[0, seen])
        assert (image[0] > 200).mean() < 0.5, "dots, not a white picture"
        assert 96 / 1.9 - 1 <= boxes[0, 3] <= 96 / 1.3 + 1


def test_close_ups_of_neighbours(learn: ModuleType) -> None:
    """Each gets a picture of its own, with the other in it as far as it is in view; the far one is in none."""
    boxes = np.stack((BOX, BOX + [12, 0, 0, 0], [118, 118, 10, 10]))
    joints = np.stack([person(box, i) for i, box in enumerate(boxes)])
    out = learn.close_ups([(np.zeros((3, 128, 128), np.uint8), boxes, joints)], 96)
    assert len(out) == 2, "the third one is small"
    for _, sides, moved in out:
        assert len(sides) == len(moved) == 2
        low, high = sides[:, :2] - sides[:, 2:] / 2, sides[:, :2] + sides[:, 2:] / 2
        assert (low >= -1e-9).all() and (high <= 96 + 1e-9).all()
        seen = moved[..., 2] > 0
        assert ((moved[..., :2] >= 0) & (moved[..., :2] < 96))[seen].all() and (moved[~seen] == 0).all()


def test_unlabelled_joints_stay_zero(learn: ModuleType) -> None:
    """Also where the picture's corner, where they seem to lie, is in view."""
    box = np.array([16.0, 31.0, 30.0, 60.0])
    joints = person(box)
    joints[5] = 0
    ((_, _, moved),) = learn.close_ups([(np.zeros((3, 128, 128), np.uint8), box[None], joints[None])], 96)
    assert (moved[0, 5] == 0).all() and (moved[0, :5, 2] > 0).all()


@pytest.mark.parametrize(("least", "fewest"), [(61, 12), (40, 18)])
def test_who_is_left_out(learn: ModuleType, least: int, fewest: int) -> None:
    samples = [(np.zeros((3, 128, 128), np.uint8), BOX[None], person(BOX)[None])]
    assert len(learn.close_ups(samples, 96)) == 1
    assert learn.close_ups(samples, 96, least=least, fewest=fewest) == []


def test_mirrored(learn: ModuleType) -> None:
    """Left and right change sides and names."""
    joints = person(BOX)
    image, boxes, moved = learn.mirrored((dotted(joints[:, :2]), BOX[None], joints[None]))
    assert boxes[0, 0] == 128 - BOX[0]
    assert moved[0, 1].tolist() == [128 - joints[2, 0], *joints[2, 1:]], "the right eye is the left one now"
    assert all(image[0, int(y), int(x)] == 255 for x, y, _ in moved[0])
