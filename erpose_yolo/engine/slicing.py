"""Sliced prediction for large images: overlapping tiles at several sizes and the whole image, merged by OKS.

A person of 15 px in an image of 8,000 px vanishes when the image is shrunk to the network's input, and one of 2,000 px
fits no tile. So the image is seen several times, and a person seen twice is kept once: poses are compared keypoint by keypoint
with OKS, over the keypoints that both views could see; boxes play no part.

Shapes: P poses, K keypoints. Units: pixels of the whole image, unless a name says otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.engine.results import Results
from ultralytics.utils import TQDM

from erpose_yolo.data.drawing import PoseResults
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.method.oks import object_area, oks, sigmas_for, tolerance

MERGE_OKS = 0.5  # COCO's least OKS for two poses to be of one person
COARSE_CELL = 16.0  # a pose is trusted to the size of a person this many network pixels high and wide, not below
EDGE = 2.0  # px: a box that comes this near to a border inside the image is taken to be cut there
SEEN = 0.5  # keypoints of at least this visibility are compared
TILES = 8  # predicted at a time
ROWS, PAIRS = 256, 65_536  # poses and pairs of poses that are compared at a time: about 100 MB at 17 keypoints

View = tuple[int, int, int, int]  # left, top, right, bottom


def check(side: int, overlap: float) -> None:
    """Check the size of tiles in pixels and the share that neighbours have in common.

    Raises:
        ValueError: one of them is out of range.
    """
    if side < 32 or not 0 <= overlap < 1:
        raise ValueError(f"slices must be at least 32 px and overlap lie in [0, 1), got {side} and {overlap}.")


def parse_sides(slices: Any, overlap: Any = 0.25) -> tuple[int, ...]:
    """Read the ``slices=`` argument: ``640``, ``"640"``, ``"640,1600"`` or ``[640, 1600]``.

    Args:
        slices: sides of square tiles in pixels.
        overlap: checked with them.

    Raises:
        ValueError: something else, or out of range.
    """
    given = slices.split(",") if isinstance(slices, str) else slices if isinstance(slices, (list, tuple)) else [slices]
    try:
        sides = tuple(int(side) for side in given if float(side) == int(side) and not isinstance(side, bool))
        share = float(overlap)
    except (OverflowError, TypeError, ValueError):
        sides, share = (), math.nan
    if not sides or len(sides) != len(given) or math.isnan(share):
        raise ValueError(
            "slices must be the side of the tiles in pixels, or several sides, such as slices=640 or slices=640,1600, and "
            f"overlap a share such as 0.25; got slices={slices!r} and overlap={overlap!r}."
        )
    for side in sides:
        check(side, share)
    return sides


def tiles(height: int, width: int, side: int, overlap: float) -> list[View]:
    """Tiles of equal size that cover an image, row by row.

    Args:
        height, width: of the image.
        side: of a square tile; an image that is smaller on one axis gets tiles that are as small there.
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
    """Poses of one image from several views, best first within a view.

    Attributes:
        keypoints: (P, K, 3) pixels and visibility.
        box: (P, 4) corners.
        score: (P,).
        category: (P,).
        view: (P, 4) the view that a pose was seen in.
        grain: (P,) image pixels per network pixel in that view.
        bars: (P, K + 1) of ErrorBars, (P, 0) where there are none.
    """

    keypoints: Tensor
    box: Tensor
    score: Tensor
    category: Tensor
    view: Tensor
    grain: Tensor
    bars: Tensor

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
        """Poses of a tile's result, moved to their place in the image."""
        boxes, keypoints = result.boxes.data.cpu().float(), result.keypoints.data.cpu().float()
        if keypoints.shape[-1] == 2:
            keypoints = torch.cat((keypoints, torch.ones_like(keypoints[..., :1])), -1)
        shift = torch.tensor(view[:2], dtype=torch.float32)
        keypoints = torch.cat((keypoints[..., :2] + shift, keypoints[..., 2:]), -1)
        n, bars = len(boxes), getattr(result, "erpose", None)
        return cls(
            keypoints,
            boxes[:, :4] + shift.repeat(2),
            boxes[:, -2],
            boxes[:, -1],
            torch.tensor(view, dtype=torch.float32).expand(n, 4),
            torch.full((n,), float(grain)),
            torch.zeros((n, 0)) if bars is None else bars.data.cpu().float(),
        )


def is_cut(poses: Poses, height: int, width: int) -> Tensor:
    """(P,) bool: the person reaches a border of its view that is not a border of the image."""
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

    Only keypoints inside both views count, of them those that the later pose takes to be visible, so that the legs in one
    tile are compared with the legs of the whole person in the next. The area of the OKS is the earlier pose's, but no
    less than what the coarser of the two views can tell apart.

    Args:
        poses: of all views.
        height, width: of the image.
        sigmas: (K,).
        threshold: least OKS for two poses to be of one person.

    Returns:
        Indices of the kept poses, by falling score.
    """
    if not len(poses):
        return torch.zeros(0, dtype=torch.long)
    order = torch.from_numpy(np.lexsort((-poses.score.numpy(), is_cut(poses, height, width).numpy())))
    kept = order[:0]
    for rows in order.split(ROWS):
        rows = rows[~_same_person(poses, rows, kept, sigmas, threshold).any(1)]
        hits = _same_person(poses, rows, rows, sigmas, threshold).tril(-1).numpy()
        alive = np.ones(len(rows), bool)
        for i in np.flatnonzero(hits.any(1)):
            alive[i] = not hits[i, alive].any()
        kept = torch.cat((kept, rows[torch.from_numpy(alive)]))
    return kept[poses.score[kept].argsort(descending=True, stable=True)]


def _same_person(poses: Poses, later: Tensor, earlier: Tensor, sigmas: Tensor, threshold: float) -> Tensor:
    """(L, E) bool: whether each later pose is the person of each earlier one, see :func:`merge`.

    An OKS of ``threshold`` needs at least one keypoint that is off by no more than ``reach``; so only pairs whose keypoints'
    extents come that near are compared, a bounded number at a time.
    """
    extent = torch.cat((poses.keypoints[..., :2].amin(1), poses.keypoints[..., :2].amax(1)), 1)
    area = object_area(poses.box)[earlier]
    coarse = torch.maximum(poses.grain[later][:, None], poses.grain[earlier])  # (L, E)
    tolerated = torch.maximum(area, (COARSE_CELL * coarse).square())
    reach = tolerance(tolerated, sigmas.max()[None])[..., 0] * (1.01 * math.sqrt(-2 * math.log(threshold)))
    near = (poses.category[later][:, None] == poses.category[earlier]) & (poses.view[later][:, None] != poses.view[earlier]).any(2)
    for axis in (0, 1):
        near &= extent[later, axis][:, None] <= extent[earlier, axis + 2] + reach
        near &= extent[later, axis + 2][:, None] >= extent[earlier, axis] - reach

    same = torch.zeros_like(near)
    for pairs in near.nonzero().split(PAIRS):
        row, column = pairs.T
        i, j = later[row], earlier[column]
        low = torch.maximum(poses.view[j, :2], poses.view[i, :2])[:, None]
        high = torch.minimum(poses.view[j, 2:], poses.view[i, 2:])[:, None]
        xy = poses.keypoints[i, :, :2]
        shared = ((xy >= low) & (xy < high)).all(-1)  # (pairs, K)
        visible = shared & (poses.keypoints[i, :, 2] >= SEEN)
        counted = torch.where(visible.any(1, keepdim=True), visible, shared)
        target = torch.cat((xy, counted[..., None].float()), -1)
        same[row, column] = oks(poses.keypoints[j, :, :2], target, tolerated[row, column], sigmas) >= threshold
    return same


class SlicedPredictor(ERPosePredictor):
    """Predicts each image in tiles and as a whole; everything else, from loading to saving, is the stock predictor's.

    Beside the decoded image, memory holds ``tiles_at_once`` tiles and the poses found, whatever the image's size.
    Of the three times in ``Results.speed``, ``inference`` holds all that concerns the tiles.

    Attributes:
        sides: tile sizes in image pixels; the whole image is always seen, too.
        overlap: least share of a tile's side that it has in common with its neighbour.
        tiles_at_once: tiles in a batch.
    """

    sides: tuple[int, ...] = ()
    overlap = 0.25
    tiles_at_once = TILES

    def inference(self, im: Tensor, *args: Any, **kwargs: Any) -> list[Poses]:
        """Poses of every view of every image of a batch.

        Args:
            im: (B, 3, H, W) the whole images as network input; what is seen of them is read from ``self.batch``.
            *args, **kwargs: as the stock predictor takes them.

        Raises:
            ValueError: a tensor as the source, or an argument that tiles have no meaning for.
        """
        unfit = [name for name in ("embed", "visualize") if getattr(self.args, name)]
        if unfit or self.source_type.tensor:
            raise ValueError(
                f"slices= does not go with {unfit[0] + '=' if unfit else 'a tensor as the source: give arrays or files'}."
            )
        self.views: list[int] = []  # of each image
        return [self.see(path, image, *args, **kwargs) for path, image in zip(self.batch[0], self.batch[1])]

    def see(self, path: str, image: np.ndarray, *args: Any, **kwargs: Any) -> Poses:
        """Poses of all views of one image."""
        height, width = image.shape[:2]
        views: list[View] = []
        for side in self.sides:
            views += tiles(height, width, side, self.overlap) if side < max(height, width) else []
        parts = [[(0, 0, width, height)]]  # alone, because its shape is another; tiles of equal shape need no padding
        at_once = self.tiles_at_once if self.model.format == "pt" or getattr(self.model, "dynamic", False) else 1
        parts += [views[first : first + at_once] for first in range(0, len(views), at_once)]
        found: list[Poses] = []
        bar = TQDM(total=1 + len(views), desc=f"{Path(path).name}: views", unit="view", disable=not self.args.verbose or not views)
        for part in parts:
            crops = [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in part]
            results, size = self.detect(crops, path, *args, **kwargs)
            for view, result in zip(part, results):
                found.append(Poses.of(result, view, max(view[2] - view[0], view[3] - view[1]) / size))
            bar.set_description(f"{Path(path).name}: {sum(map(len, found))} poses in views")
            bar.update(len(part))
        bar.close()
        self.views.append(1 + len(views))
        return Poses.join(found)

    def detect(self, crops: list[np.ndarray], path: str, *args: Any, **kwargs: Any) -> tuple[list[Results], int]:
        """Results of views, (H, W, 3) BGR each, in their pixels, and the long side of the network's input for them."""
        im = self.preprocess(crops)
        rows = self.select(super().inference(im, *args, **kwargs))
        return [self.construct_result(kept, im, crop, path) for kept, crop in zip(rows, crops)], max(im.shape[2:])

    def postprocess(self, preds: list[Poses], img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[PoseResults]:
        """Merge the poses of all views into the Results of each image."""
        results: list[PoseResults] = []
        for poses, image, path in zip(preds, orig_imgs, self.batch[0]):
            sigmas = sigmas_for(poses.keypoints.shape[1], self.about("sigmas"))
            height, width = image.shape[:2]
            poses = poses[merge(poses, height, width, sigmas)[: self.args.max_det]]
            boxes = torch.cat((poses.box, poses.score[:, None], poses.category[:, None]), 1)
            result = Results(image, path=path, names=self.model.names, boxes=boxes, keypoints=poses.keypoints)
            results.append(self.finish(result, poses.bars if poses.bars.shape[1] else None))
        return results

    def write_results(self, i: int, p: Path, im: Tensor, s: list[str]) -> str:
        """Save and describe an image as the stock predictor does, with the number of views behind the persons."""
        return f"{super().write_results(i, p, im, s)}, {self.views[i]} views"


@functools.lru_cache(maxsize=16)
def sliced_predictor(sides: tuple[int, ...], overlap: float, tiles_at_once: int = TILES) -> type[SlicedPredictor]:
    """Predictor class of these settings; the same class for the same settings, so that a predictor is built once."""
    name = f"SlicedPredictor{'_'.join(map(str, sides))}"
    return type(name, (SlicedPredictor,), {"sides": sides, "overlap": overlap, "tiles_at_once": tiles_at_once})
