"""Raw maps of an export (``layout: maps``) and their decode on the host, for the few cells that can be shown.

Runtimes without TopK would have to decode and refine every cell of the grid in the graph. So these graphs end with the
convolutions of the head, and the host looks for the cells whose score passes and decodes those. Per pyramid level, finest
first, there are two outputs, of H x W cells:

    scores  (B, C, H, W)  logits per class
    pose    (B, P, H, W)  in this order of channels, each part as raw as it leaves its convolution:
        offsets     2K    x0 y0 x1 y1 ..., in units of OFFSET_CELLS cells, from the cell's centre
        visibility   K    logits
        log_spread   K    log b of each keypoint, b being its spread in OKS tolerances
        refinement  3K    dx dy db of each keypoint in a row, to be read bilinearly where the keypoint is (not at its cell);
                          dx and dy in units of OFFSET_CELLS cells, db is added to log b; no such channels in a head without it
        box          4    left top right bottom, softplus of them in units of OFFSET_CELLS cells; only with ``boxes: true``

docs/export-layout.md has the arithmetic for those who decode without Python.

Shapes: B images, C classes, K keypoints, P pose channels, N picked cells. Units: pixels of the network input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erpose_yolo.method.decode import select_rows
from erpose_yolo.method.refine import refine_keypoints
from erpose_yolo.method.rows import make_rows

MOST = 300  # cells of an image that are decoded, as in a head; more where more persons are asked for


def select_persons(
    outputs: Any, decoder: MapsDecoder | None, conf: float, max_det: int, classes: int | Sequence[int] | None = None
) -> list[Tensor]:
    """Persons of each image from what a network gave, be it rows or maps.

    Args:
        outputs: rows (B, R, 6 + K*D), alone or first in a tuple, or the maps of an export.
        decoder: of the maps; None for rows.
        conf, max_det, classes: see decode.select_rows.

    Returns:
        One (n, 6 + K*D) tensor per image, best first.
    """
    if decoder is not None:
        outputs = decoder(outputs, conf, max(max_det, MOST))
    elif isinstance(outputs, (list, tuple)):
        outputs = outputs[0]
    return select_rows(outputs, conf, max_det, classes)


def pose_channels(num_keypoints: int, refine: bool, boxes: bool) -> dict[str, int]:
    """Channels of each part of a pose map, in their order."""
    k = num_keypoints
    parts = {"offsets": 2 * k, "visibility": k, "log_spread": k}
    return parts | ({"refinement": 3 * k} if refine else {}) | ({"box": 4} if boxes else {})


@dataclass(frozen=True)
class MapsDecoder:
    """What it takes to make rows of the maps of an export.

    Attributes:
        channels: see :func:`pose_channels`.
        strides: pixels per cell of each level, finest first.
        margins: (4, 3 + K) of derived boxes, with room.
        sorted_by: "expected_oks" or "score", see rows.make_rows.
        columns: D of ``kpt_shape``.
        classes: C.
        sigma_units: (K,) of errorbars.sigma_units, with which rows end with error bars; None for no error bars.
    """

    channels: dict[str, int]
    strides: Sequence[float]
    margins: Tensor
    sorted_by: str
    columns: int
    classes: int
    sigma_units: Tensor | None = None

    def __call__(self, outputs: Sequence[Tensor], conf: float, most: int) -> list[Tensor]:
        """Rows of each image's cells that can reach a score.

        Args:
            outputs: the maps of all levels, in any order, as runtimes sort them differently.
            conf: least score.
            most: cells that are decoded at most, those of the best scores.

        Returns:
            One (N, 6 + K*D) float tensor per image, neither sorted nor all above the threshold: decode.select_rows does that.

        Raises:
            ValueError: outputs of other shapes.
        """
        scores, poses = self.levels(outputs)
        logits = torch.cat([s.flatten(2) for s in scores], 2)  # (B, C, A)
        best = logits.amax(1)
        passing = best > self.bound(conf)
        found = []
        for image in range(len(best)):
            cells = passing[image].nonzero()[:, 0]
            if len(cells) > most:
                cells = cells[best[image, cells].topk(most, sorted=False).indices].sort().values
            found.append(self.decode(cells, logits[image : image + 1], [p[image : image + 1] for p in poses]))
        return found

    def levels(self, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Score maps and pose maps, finest first."""
        by_size = sorted(outputs, key=lambda t: (-t.shape[2] * t.shape[3], t.shape[1] != self.classes))
        scores, poses = by_size[::2], by_size[1::2]
        if [(s.shape[1], p.shape[1]) for s, p in zip(scores, poses)] != [(self.classes, sum(self.channels.values()))] * len(
            self.strides
        ) or len(outputs) != 2 * len(self.strides):
            raise ValueError(
                f"maps of shapes {[tuple(t.shape) for t in outputs]} are not those of {len(self.strides)} levels with "
                f"{self.classes} scores and {sum(self.channels.values())} pose channels. Export the model again."
            )
        return scores, poses

    def bound(self, conf: float) -> float:
        """Logit that no person of this confidence lies below."""
        least = conf**2 if self.sorted_by == "expected_oks" else conf  # the root of the score, weighed by at most 1
        return -math.inf if least <= 0 else math.inf if least >= 1 else math.log(least / (1 - least)) - 1e-4

    def decode(self, cells: Tensor, logits: Tensor, poses: Sequence[Tensor]) -> Tensor:
        """Rows (N, 6 + K*D) of some cells of one image.

        Args:
            cells: (N,) indices into the cells of all levels in a row, ascending.
            logits: (1, C, A).
            poses: per level (1, P, H, W).
        """
        first, columns, places, sizes, maps, counts = 0, [], [], [], [], []
        start = sum(n for name, n in self.channels.items() if name not in ("refinement", "box"))  # of the maps
        for pose, stride in zip(poses, self.strides, strict=True):
            width, area = pose.shape[3], pose.shape[2] * pose.shape[3]
            here = cells[(cells >= first) & (cells < first + area)] - first
            first += area
            if len(here):
                columns.append(pose.flatten(2).index_select(2, here))  # (1, P, n)
                places.append(torch.stack((here % width + 0.5, here // width + 0.5)) * stride)
                sizes.append(torch.full((1, len(here)), float(stride), device=here.device))
                maps.append(pose[:, start : start + self.channels.get("refinement", 0)].float())
                counts.append((len(here), stride))
        if not columns:
            values = self.columns + (self.sigma_units is not None)
            return logits.new_zeros((0, 6 + self.channels["visibility"] * values), dtype=torch.float32)
        part = dict(zip(self.channels, torch.split(torch.cat(columns, 2).float(), list(self.channels.values()), 1)))
        part["offsets"] = part["offsets"].reshape(1, -1, 2, len(cells))
        part["scores"] = logits.index_select(2, cells).float().sigmoid()
        refine = partial(refine_keypoints, refinements=maps, strides=[s for _, s in counts], counts=[n for n, _ in counts])
        refined = refine if part.pop("refinement", None) is not None else None
        margins, centres, strides = self.margins.to(logits.device), torch.cat(places, 1), torch.cat(sizes, 1)
        return make_rows(part, centres, strides, refined, margins, self.sorted_by, self.columns, self.sigma_units)[0].T
