"""Sliced prediction for large pictures: overlapping tiles at several sizes and the whole picture, merged by OKS.

A person of 15 px in a picture of 8,000 px vanishes when the picture is shrunk to the network's input, and one of 2,000 px
fits no tile. So the picture is seen several times, and a person seen twice is kept once: poses are compared joint by joint
with OKS, over the joints that both views could see; boxes play no part.

Shapes: P poses, K joints. Units: pixels of the whole picture, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER, TQDM

from erpose_yolo.oks import object_area, oks, sigmas_for

MERGE_OKS = 0.5  # COCO's least OKS for two poses to be of one person
COARSE_CELL = 16.0  # a pose is trusted to the size of a person this many network pixels high and wide, not below
EDGE = 2.0  # px: a box that comes this near to a border inside the picture is taken to be cut there
SEEN = 0.5  # joints of at least this visibility are compared

View = tuple[int, int, int, int]  # left, top, right, bottom


def check(side: int, overlap: float) -> None:
    """Check the size of tiles in pixels and the share that neighbours have in common.

    Raises:
        ValueError: one of them is out of range.
    """
    if side < 32 or not 0 <= overlap < 1:
        raise ValueError(f"slices must be at least 32 px and overlap lie in [0, 1), got {side} and {overlap}.")


def tiles(height: int, width: int, side: int, overlap: float) -> list[View]:
    """Tiles of equal size that cover a picture, row by row.

    Args:
        height, width: of the picture.
        side: of a square tile; a picture that is smaller on one axis gets tiles that are as small there.
        overlap: least share of a side that neighbours have in common. Anybody smaller than ``overlap * side`` is whole
            in at least one tile.

    Raises:
        ValueError: see :func:`check`.
    """
    check(side, overlap)

    def starts(length: int) -> list[int]:
        if length <= side:
            return [0]
        count = 1 + int(np.ceil((length - side) / (side * (1 - overlap))))
        return np.linspace(0, length - side, count).round().astype(int).tolist()

    return [(x, y, min(x + side, width), min(y + side, height)) for y in starts(height) for x in starts(width)]


@dataclass(frozen=True)
class Poses:
    """Poses of one picture from several views, best first within a view.

    Attributes:
        joints: (P, K, 3) pixels and visibility.
        box: (P, 4) corners.
        score: (P,).
        category: (P,).
        view: (P, 4) the view that a pose was seen in.
        grain: (P,) picture pixels per network pixel in that view.
    """

    joints: Tensor
    box: Tensor
    score: Tensor
    category: Tensor
    view: Tensor
    grain: Tensor

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: Tensor) -> Poses:
        return Poses(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def join(parts: Sequence[Poses]) -> Poses:
        """One set out of several, in their order."""
        return Poses(*(torch.cat([getattr(p, name) for p in parts]) for name in Poses.__dataclass_fields__))

    @classmethod
    def of(cls, result: Results, view: View, grain: float) -> Poses:
        """Poses of a tile's result, moved to their place in the picture."""
        boxes, joints = result.boxes.data.cpu().float(), result.keypoints.data.cpu().float()
        if joints.shape[-1] == 2:
            joints = torch.cat((joints, torch.ones_like(joints[..., :1])), -1)
        shift = torch.tensor(view[:2], dtype=torch.float32)
        joints = torch.cat((joints[..., :2] + shift, joints[..., 2:]), -1)
        n = len(boxes)
        return cls(
            joints,
            boxes[:, :4] + shift.repeat(2),
            boxes[:, -2],
            boxes[:, -1],
            torch.tensor(view, dtype=torch.float32).expand(n, 4),
            torch.full((n,), float(grain)),
        )


def is_cut(poses: Poses, height: int, width: int) -> Tensor:
    """(P,) bool: the person reaches a border of its view that is not a border of the picture."""
    edge = torch.tensor([0, 0, width, height], dtype=torch.float32)
    inner = poses.view != edge
    low = (poses.box[:, :2] <= poses.view[:, :2] + EDGE) & inner[:, :2]
    high = (poses.box[:, 2:] >= poses.view[:, 2:] - EDGE) & inner[:, 2:]
    return (low | high).any(1)


def merge(poses: Poses, height: int, width: int, sigmas: Tensor, threshold: float = MERGE_OKS) -> Tensor:
    """One pose per person.

    Whole persons come before those that a border cuts, better scores before worse ones. A pose is dropped where an
    earlier one of the same class, but of another view, has an OKS of at least ``threshold`` with it. Poses of one view
    are never compared: there every person has one cell.

    Only joints inside both views count, of them those that the later pose takes to be visible, so that the legs in one
    tile are compared with the legs of the whole person in the next. The area of the OKS is the earlier pose's, but no
    less than what the coarser of the two views can tell apart.

    Args:
        poses: of all views.
        height, width: of the picture.
        sigmas: (K,).
        threshold: least OKS for two poses to be of one person.

    Returns:
        Indices of the kept poses, by falling score.
    """
    cut = is_cut(poses, height, width)
    order = sorted(range(len(poses)), key=lambda i: (bool(cut[i]), -float(poses.score[i])))
    area = object_area(poses.box)
    kept: list[int] = []
    for i in order:
        others = torch.tensor(kept, dtype=torch.long)
        same = (poses.category[others] == poses.category[i]) & (poses.view[others] != poses.view[i]).any(1)
        others = others[same]
        if len(others):
            low = torch.maximum(poses.view[others, :2], poses.view[i, :2])[:, None]
            high = torch.minimum(poses.view[others, 2:], poses.view[i, 2:])[:, None]
            xy = poses.joints[i, :, :2]
            shared = ((xy >= low) & (xy < high)).all(-1)  # (others, K)
            visible = shared & (poses.joints[i, :, 2] >= SEEN)
            counted = torch.where(visible.any(1, keepdim=True), visible, shared)
            grain = torch.maximum(poses.grain[others], poses.grain[i])
            tolerated = torch.maximum(area[others], (COARSE_CELL * grain).square())
            target = torch.cat((xy.expand(len(others), -1, -1), counted[..., None].float()), -1)
            if bool((oks(poses.joints[others, :, :2], target, tolerated, sigmas) >= threshold).any()):
                continue
        kept.append(i)
    best = torch.tensor(kept, dtype=torch.long)
    return best[poses.score[best].argsort(descending=True, stable=True)]


def predict_slices(
    predict: Callable[[list[np.ndarray]], list[Results]],
    pictures: Iterator[tuple[str, np.ndarray]],
    sides: Sequence[int],
    input_size: int,
    sigmas: Sequence[float] | None = None,
    overlap: float = 0.25,
    batch: int = 8,
    max_det: int = 3000,
) -> Iterator[Results]:
    """Predict pictures of any size.

    Beside the decoded picture, memory holds ``batch`` tiles and the poses found, whatever the picture's size.

    Args:
        predict: takes BGR tiles, returns their Results.
        pictures: (path, (H, W, 3) BGR picture).
        sides: tile sizes in picture pixels; the whole picture is always seen, too.
        input_size: long side of the network's input in pixels.
        sigmas: the data set's own, None for COCO's (oks.sigmas_for).
        overlap: least share of a tile's side that it has in common with its neighbour.
        batch: tiles at a time.
        max_det: most persons per picture.

    Yields:
        Results of each picture; ``speed`` holds milliseconds for the whole picture.
    """
    for path, picture in pictures:
        height, width = picture.shape[:2]
        views = [(0, 0, width, height)]
        for side in sides:
            if side < max(height, width):
                views += tiles(height, width, side, overlap)
        found, last, spent = [], None, {"preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}
        bar = TQDM(range(0, len(views), batch), desc=f"{Path(path).name}: {len(views)} views", disable=len(views) <= batch)
        for first in bar:
            part = views[first : first + batch]
            results = predict([np.ascontiguousarray(picture[y1:y2, x1:x2]) for x1, y1, x2, y2 in part])
            for view, result in zip(part, results):
                grain = max(view[2] - view[0], view[3] - view[1]) / input_size
                found.append(Poses.of(result, view, grain))
                spent = {k: v + (result.speed.get(k) or 0.0) for k, v in spent.items()}
                last = result
        assert last is not None
        poses = Poses.join(found)
        poses = poses[merge(poses, height, width, sigmas_for(poses.joints.shape[1], sigmas))[:max_det]]
        boxes = torch.cat((poses.box, poses.score[:, None], poses.category[:, None]), 1)
        whole = Results(picture, path=path, names=last.names, boxes=boxes, keypoints=poses.joints, speed=spent)
        merged = last.new()  # brings the limbs of the network's data set along
        merged.__dict__.update(vars(whole))
        LOGGER.info(f"{path}: {height}x{width}, {len(views)} views, {len(poses)} persons")
        yield merged
