"""Clips with known truth made of photos: a crop that pans, zooms and sways over a crowded photo, through which pasted people walk.

The photo's own people stand still in the scene and move with the camera; the people who are pasted by their masks
(copy_paste.cut) walk, bob and sway past them and past one another. Who is where is known, and each keypoint's place. Cut-outs have
one pose each: what is tested is identity and steadiness, not gait. Every frame has fresh sensor noise. The seed decides everything.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from ultralytics.data.utils import check_det_dataset

from benchmarks.accuracy.copy_paste import Cutout, cut, warp
from benchmarks.accuracy.moving_people import FPS, Frame

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # (H, W, 3) BGR, boxes (N, 4) xyxy px, keypoints (N, 17, 3) px
ROOM = 1.35  # short side of a scene, in sides of a frame
LEAST = 4  # keypoints in sight of a person who counts


def _rows(file: Path) -> np.ndarray:
    """(N, 56) label rows of an image."""
    label = file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt"
    return np.loadtxt(label, ndmin=2).reshape(-1, 56) if label.is_file() else np.zeros((0, 56))


def scenes(data: str, split: str, size: int, people: tuple[int, int] = (3, 12)) -> list[Scene]:
    """Crowded photos of a data set, those with most people first, scaled to ROOM frames; each labelled person has LEAST keypoints.

    Args:
        data: data YAML with 17-keypoint rows.
        split: train or val.
        size: side of the frames in px.
        people: fewest and most persons.
    """
    folders = check_det_dataset(data, autodownload=False)[split]
    found: list[Scene] = []
    for folder in folders if isinstance(folders, list) else [folders]:
        for file in sorted(Path(folder).iterdir()):
            rows = _rows(file)
            keypoints = rows[:, 5:].reshape(-1, 17, 3)
            if not people[0] <= len(rows) <= people[1] or ((keypoints[..., 2] > 0).sum(1) < LEAST).any():
                continue
            image = cv2.imread(str(file))
            scale = ROOM * size / min(image.shape[:2])
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            sides = np.array(image.shape[1::-1])
            corners = np.concatenate((rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2), 1) * np.tile(sides, 2)
            found.append((image, corners, keypoints * [*sides, 1]))
    return sorted(found, key=lambda scene: -len(scene[1]))


def cutouts(folder: str, half: int) -> list[Cutout]:
    """People of every second photo that has a mask.

    Args:
        folder: with images/train, labels/train and masks/train, see copy_paste.py.
        half: 0 or 1; the halves share no photo.
    """
    out: list[Cutout] = []
    for mask in sorted((Path(folder) / "masks/train").iterdir())[half::2]:
        file = next((Path(folder) / "images/train").glob(f"{mask.stem}.*"))
        out += [c for c in cut(cv2.imread(str(file)), cv2.imread(str(mask), 0) > 127, _rows(file), file.stem) if c.whole]
    return out


def _wave(rng: np.random.Generator, times: np.ndarray, low: float, high: float) -> np.ndarray:
    """Sine of a random phase and a frequency between `low` and `high` Hz."""
    return np.sin(2 * math.pi * rng.uniform(low, high) * times + rng.uniform(0, 2 * math.pi))


def clip(seed: int, scene: Scene, people: list[Cutout], size: int = 384, frames: int = 60) -> list[Frame]:
    """Film a scene.

    Args:
        seed: decides everything.
        scene: photo and its labels.
        people: cut-outs of whom three to five walk through it.
        size: side of the square frames in px.
        frames: their number, FPS a second.
    """
    rng = np.random.default_rng((seed, 35))
    image, corners, standing = scene
    height, width = image.shape[:2]
    times = np.arange(frames) / FPS
    # camera: side of the crop, and its place in the scene
    side = size * (1.15 + 0.15 * _wave(rng, times, 0.1, 0.3))
    sway = size * rng.uniform(0.01, 0.025)
    x, y = (
        ((1 + _wave(rng, times, 0.1, 0.3)) / 2 * (room - side) + sway * _wave(rng, times, 0.6, 1.5)).clip(0, room - side)
        for room in (width, height)
    )
    # walkers: scale, place of their feet, lean
    usual = float(np.median(corners[:, 3] - corners[:, 1]))
    walkers = []
    for i in range(int(rng.integers(3, 6))):
        person = people[rng.integers(len(people))]
        tall = person.levels[0].shape[0]
        scale = min(float(np.clip(usual * rng.uniform(0.8, 1.3), 0.25 * size, 0.7 * size)) / tall, 1.8)
        met = corners[rng.integers(len(corners))]
        when, way = rng.uniform(0.2, 0.8) * times[-1], (-1) ** i
        across = (met[0] + met[2]) / 2 + way * rng.uniform(0.4, 1.0) * scale * tall * (times - when)
        across += 0.02 * scale * tall * _wave(rng, times, 0.4, 0.8)
        feet = float(np.clip(met[3] + rng.normal(0, 0.1) * usual, 0.6 * height, 0.97 * height))
        up = 0.012 * scale * tall * _wave(rng, times, 1.6, 2.0)
        nearer, lean = 1 + 0.08 * _wave(rng, times, 0.1, 0.3), 0.05 * _wave(rng, times, 0.7, 1)
        walkers.append((feet, person, scale * nearer, across, feet + up, lean))
    walkers.sort(key=lambda walker: walker[0])  # the lower, the nearer

    out = []
    for t in range(frames):
        zoom = size / side[t]
        view = np.array([[zoom, 0, -zoom * x[t]], [0, zoom, -zoom * y[t]]])
        canvas = cv2.warpAffine(image, view, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
        owner = np.full((size, size), -1)
        poses, boxes = [standing.copy()], [(corners.reshape(-1, 2, 2) * zoom + view[:, 2]).reshape(-1, 4).clip(0, size)]
        poses[0][..., :2] = standing[..., :2] * zoom + view[:, 2]
        for i, (_, person, scale, across, foot, lean) in enumerate(walkers):
            h, w = person.levels[0].shape[:2]
            local = scale[t] * np.array([[1, lean[t]], [0, 1]])
            matrix = zoom * np.column_stack((local, [across[t], foot[t]] - local @ [w / 2, h]))
            matrix[:, 2] += view[:, 2]
            layer = warp(person, matrix, size)
            if layer is not None:
                area, pixels = layer
                canvas[area] = canvas[area] * (1 - pixels[..., 3:] / 255) + pixels[..., :3]
                owner[area][pixels[..., 3] > 127] = i
            pose = person.keypoints.copy()
            pose[:, :2] = pose[:, :2] @ matrix[:, :2].T + matrix[:, 2]
            poses.append(pose[None])
        for i in range(len(walkers)):
            ys, xs = np.nonzero(owner == i)
            boxes.append(np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(ys) else [[0, 0, 0, 0]], float))
        keypoints, ends = np.concatenate(poses), np.concatenate(boxes)
        inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < size)).all(-1) & (keypoints[..., 2] > 0)
        spots = keypoints[..., :2].astype(int).clip(0, size - 1)
        layer_of = np.concatenate((np.full(len(corners), -1), np.arange(len(walkers))))
        hidden = owner[spots[..., 1], spots[..., 0]] > layer_of[:, None]
        keypoints[..., 2] = np.where(hidden, 1, keypoints[..., 2])
        keypoints[~inside] = 0
        ids = np.flatnonzero(((inside & ~hidden).sum(1) >= LEAST) & (ends[:, 2:] > ends[:, :2]).all(1))
        noise = np.random.default_rng((seed, 36, t)).normal(0, 2, canvas.shape)
        frame = (canvas + noise).round().clip(0, 255).astype(np.uint8)
        out.append(Frame(frame, ids, ends[ids].astype(np.float32), keypoints[ids].astype(np.float32)))
    return out


def clips(data: str, folder: str, split: str, count: int, frames: int, size: int) -> list[list[Frame]]:
    """Clips of every second of the most crowded photos; cut-outs of train and val are different people.

    Args:
        data: data YAML with 17-keypoint rows.
        folder: of the cut-outs, see :func:`cutouts`.
        split: train or val.
        count: number of clips.
        frames: of each clip.
        size: side of the frames in px.

    Raises:
        ValueError: too few photos are crowded.
    """
    found, people = scenes(data, split, size), cutouts(folder, int(split == "val"))
    if len(found) < 2 * count:
        raise ValueError(
            f"{data}: {len(found)} {split} photos show three to twelve persons with {LEAST} labelled keypoints or more each, and "
            f"two for each of {count} clips are wanted. Fix: ask for fewer clips, or give other photos."
        )
    return [clip(rank, found[rank], people, size, frames) for rank in range(0, 2 * count, 2)]
