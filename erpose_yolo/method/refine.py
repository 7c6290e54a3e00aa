"""Refinement: keypoints moved by maps that are sampled bilinearly where the keypoints lie.

Shapes: B images, A grid cells, K keypoints, M picked cells. Units: pixels of the network input, unless a name says cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erpose_yolo.method.decode import (
    OFFSET_CELLS,
)

# Cells that sampled points keep from the outermost centres: onnx2tf's graphs read nothing where rounding puts a point beyond.
INSET = 2e-5


def sample_maps(refinement: Tensor, points: Tensor, per_keypoint_sampling: bool = False, clamp_to_border: bool = True) -> Tensor:
    """Read the maps of each keypoint where that keypoint is: bilinear between cell centres, the border's value beyond.

    Args:
        refinement: (B, K * C, H, W), C maps for each keypoint, those of a keypoint in a row.
        points: (B, K, 2, A) cells of this level, (0, 0) the corner of its first cell.
        per_keypoint_sampling: sample each keypoint by itself instead of all at once, for runtimes without batches.
        clamp_to_border: hold points between the outermost centres; False where they are there, and H and W may be open in a graph.

    Returns:
        (B, K, C, A), of the type of ``refinement``; the arithmetic is float32 at least.
    """
    b, k = points.shape[:2]
    h, w = refinement.shape[2:]
    kind = refinement.dtype
    if kind in (torch.float16, torch.bfloat16):  # a half type cannot tell neighbouring places in a large map apart
        refinement, points = refinement.float(), points.float()
    x, y = points[:, :, 0], points[:, :, 1]
    if clamp_to_border:  # instead of padding with the border: onnx2tf, the way to TensorFlow, pads with zeros alone
        low = 0.5 + INSET
        x, y = x.clamp(low, float(w) - low), y.clamp(low, float(h) - low)
    places = torch.stack((x * 2 / w - 1, y * 2 / h - 1), 2)  # (B, K, 2, A), as grid_sample counts

    def sample(maps: Tensor, places: Tensor) -> Tensor:
        """Maps (B, C, H, W) at places (B, 2, M, A): (B, C, M, A)."""
        grid = places.permute(0, 2, 3, 1)
        return torch.nn.functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)

    if per_keypoint_sampling:
        c = refinement.shape[1] // k
        found = torch.cat([sample(refinement[:, i * c : (i + 1) * c], places[:, i, :, None]) for i in range(k)], 2)  # (B, C, K, A)
        return found.transpose(1, 2).to(kind)
    found = sample(refinement.reshape(b * k, -1, h, w), places.reshape(b * k, 2, 1, -1))  # (B * K, C, 1, A)
    return found.reshape(b, k, refinement.shape[1] // k, -1).to(kind)


def refine_keypoints(
    keypoints: Tensor,
    refinements: Sequence[Tensor],
    strides: Sequence[float],
    per_keypoint_sampling: bool = False,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Keypoints moved by what the maps of their cell's level say at the places where they are.

    A cell far from a wrist guesses where it is; the features at the wrist know better. Each keypoint has three maps per
    level: the offset from there to the keypoint of whoever is there (the short-range offsets of PersonLab, arXiv 1803.08225,
    learnt here through the poses that read them), and what is to be added to log b, the keypoint's spread.

    Args:
        keypoints: (B, K, 2, A) pixels, cells of all levels in a row.
        refinements: per level (B, 3K, H, W), x, y and log b of each keypoint in a row; x and y in units of OFFSET_CELLS cells.
        strides: pixels per cell of each level.
        per_keypoint_sampling: see :func:`sample_maps`.
        counts: cells of each level that are there; None for all.

    Returns:
        keypoints (B, K, 2, A) in pixels, and (B, K, A) to be added to log b.
    """
    shifts, wider, first = [], [], 0
    for level, (refinement, s) in enumerate(zip(refinements, strides, strict=True)):
        last = first + (refinement.shape[2] * refinement.shape[3] if counts is None else counts[level])
        found = sample_maps(refinement, keypoints[..., first:last] / s, per_keypoint_sampling)
        shifts.append(found[:, :, :2] * (s * OFFSET_CELLS))
        wider.append(found[:, :, 2])
        first = last
    return keypoints + torch.cat(shifts, 3), torch.cat(wider, 2)


def refine_best(keypoints: Tensor, refinements: Sequence[Tensor], strides: Sequence[float], level: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`refine_keypoints` for a few cells of each image, sampled at once: all levels are laid out on one sheet.

    Args:
        keypoints: (B, K, 2, N) pixels of N cells.
        refinements: as there; each level about half as high and wide as the one before.
        strides: as there.
        level: (B, L, N), 1 for the level that a cell is of and else 0.

    Returns:
        keypoints (B, K, 2, N) in pixels, and (B, K, N) to be added to log b.

    Raises:
        ValueError: levels that do not halve, which would not fit the sheet.
    """
    pad = torch.nn.functional.pad
    finest, coarser = refinements[0], refinements[1:]
    if not torch.jit.is_tracing() and not torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
        high, wide = zip(*(f.shape[2:] for f in refinements))  # in a graph they may be open
        if sum(high[1:]) > high[0] or max(wide[1:], default=0) > wide[min(1, len(wide) - 1)]:
            raise ValueError(f"each level must be about half as high and wide as the one before, got {high} high, {wide} wide")
    height, width = finest.shape[2:]
    sheet, sizes, corners = finest, [(width, height)], [(0, 0)]
    if coarser:  # stacked at the right of the finest
        across, down, column = coarser[0].shape[3], 0, []
        for refinement in coarser:
            column.append(pad(refinement, (0, across - refinement.shape[3])))
            sizes.append((refinement.shape[3], refinement.shape[2]))
            corners.append((width, down))
            down = down + refinement.shape[2]
        sheet = torch.cat((finest, pad(torch.cat(column, 2), (0, 0, 0, height - down))), 3)

    def of_level(values: Sequence[tuple[float, float]]) -> Tensor:
        """(B, 1, 2, N): the pair that belongs to each cell's level."""
        of_all = [torch.stack((level[:, n] * x, level[:, n] * y), 1) for n, (x, y) in enumerate(values)]
        return sum(of_all[1:], of_all[0])[:, None]

    stride, size = of_level([(s, s) for s in strides]), of_level(sizes)
    low = 0.5 + INSET
    place = torch.minimum((keypoints / stride).clamp(min=low), size - low)  # the border's value beyond, not the neighbour's
    found = sample_maps(sheet, place + of_level(corners), clamp_to_border=False)
    return keypoints + found[:, :, :2] * stride * OFFSET_CELLS, found[:, :, 2]


def refine_picked(keypoints: Tensor, refinement: Tensor, image: Tensor, where: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`refine_keypoints` for a few cells of a batch, at a cost that does not grow with the image.

    Args:
        keypoints: (M, K, 2) pixels of M picked cells.
        refinement: (B, 3K, A) raw maps, levels in a row.
        image: (M,) image index.
        where: (M, 3) first cell, height and width in cells of the picked cell's level.
        strides: (M, 1) pixels per cell.

    Returns:
        keypoints (M, K, 2) in pixels, and (M, K) to be added to log b.
    """
    m, k = keypoints.shape[:2]
    maps = refinement.reshape(refinement.shape[0], k, 3, -1)
    first, size = where[:, :1], where[:, 1:].flip(1)[:, None]  # (M, 1, 2): width, height
    place = (keypoints / strides[:, None] - 0.5).nan_to_num()  # between centres; a pose that is no number moves nowhere
    place = torch.minimum(place.clamp(min=INSET), (size - 1).to(keypoints.dtype) - INSET).clamp(min=0)
    low = place.floor()
    share, low = place - low, low.long()
    high = torch.minimum(low + 1, size - 1)
    keypoint = torch.arange(k, device=keypoints.device).expand(m, k)
    found = maps.new_zeros((m, k, 3))
    for y, part_y in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
        for x, part_x in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
            cell = first + y * size[..., 0] + x
            found = found + maps[image[:, None], keypoint, :, cell] * (part_x * part_y)[..., None]
    return keypoints + found[..., :2] * (strides * OFFSET_CELLS)[:, None], found[..., 2]
