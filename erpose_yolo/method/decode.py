"""From raw head outputs to poses: cells, keypoints, boxes and rows. One decode for training, inference and every export.

Shapes: B images, A cells (all pyramid levels in a row, finest first, row-major), K keypoints.
Units: anchors are cell centres in cells of their own level; everything decoded is in pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Raw offsets are multiplied by this many cells: a person is several cells wide, so a unit output should be, too.
OFFSET_CELLS = 2.0


@dataclass(frozen=True)
class PoseOutputs:
    """Raw outputs of a pose branch, cells of all levels in a row.

    Attributes:
        offsets: (B, K, 2, A), see :func:`decode_keypoints`.
        visibility: (B, K, A) logits.
        log_spread: (B, K, A), the logarithm of each keypoint's spread in tolerances, see :func:`expected_oks`.
        refinement: per level (B, 3K, H, W), see refine.refine_keypoints; None leaves keypoints where their cells put them.
        box: (B, 4, A), see boxes.decode_boxes; None where boxes are derived from keypoints.
    """

    offsets: Tensor
    visibility: Tensor
    log_spread: Tensor
    refinement: list[Tensor] | None = None
    box: Tensor | None = None


@dataclass(frozen=True)
class HeadOutputs:
    """Raw outputs of a head: a pose branch and scores for each assignment.

    Attributes:
        one2many, one2many_scores: of the one-to-many assignment, scores (B, C, A) logits; None once the head is fused.
        one2one, one2one_scores: of the one-to-one assignment; None in a head that has NMS instead. Both assignments may share
            a pose branch: then ``one2one is one2many``.
        heatmaps: (B, K, A_h) logits of the finest level, None where there are none.
        shapes: (height, width) in cells of each level.
    """

    one2many: PoseOutputs | None
    one2one: PoseOutputs | None
    one2many_scores: Tensor | None
    one2one_scores: Tensor | None
    heatmaps: Tensor | None
    shapes: list[tuple[int, int]]


def make_cells(shapes: Sequence[tuple[int, int]], strides: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Cell centres and strides of a pyramid.

    Args:
        shapes: (height, width) in cells per level.
        strides: pixels per cell of each level.
        like: tensor that gives dtype and device.

    Returns:
        centres (2, A) in pixels and strides (1, A) in pixels.
    """
    centres, cell = [], []
    for (h, w), s in zip(shapes, strides, strict=True):
        x = torch.arange(w, device=like.device, dtype=like.dtype) + 0.5
        y = torch.arange(h, device=like.device, dtype=like.dtype) + 0.5
        grid = torch.stack((x.expand(h, w), y[:, None].expand(h, w))).flatten(1)  # (2, H*W)
        centres.append(grid * s)
        cell.append(torch.full_like(grid[:1], s))
    return torch.cat(centres, 1), torch.cat(cell, 1)


def decode_keypoints(offsets: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Keypoints in pixels: cell centre plus offset, the offset being in units of OFFSET_CELLS cells.

    Args:
        offsets: (B, K, 2, A) raw regression output, or (M, K, 2) for M picked cells.
        centres: (2, A), (B, 2, A) where each image has cells of its own, or (M, 2) pixels.
        strides: (1, A), (B, 1, A) or (M, 1) pixels.

    Returns:
        Pixels, shaped as ``offsets``.
    """
    if offsets.ndim == 3:  # picked cells
        return centres[:, None] + offsets * (strides * OFFSET_CELLS)[:, None]
    if centres.ndim == 2:
        centres, strides = centres[None], strides[None]
    return centres[:, None] + offsets * (strides * OFFSET_CELLS)[:, None]  # rank 4 throughout, for TensorFlow


def expected_oks(log_spread: Tensor, visibility: Tensor) -> Tensor:
    """OKS that a pose may expect of itself, from the spreads that the smooth OKS loss trains.

    A keypoint whose error r (in tolerances) follows that loss's law, density exp(1 - sqrt(1 + (r/b)^2)) / (4 pi b^2), has a
    mean OKS kernel exp(-r^2/2) of 1/(1 + e b^2) within 0.026 for every spread b, which is a sigmoid of log b. A pose's is
    the mean over its keypoints, weighed by visibility as OKS counts labelled keypoints only.

    Args:
        log_spread: (B, K, A) raw output, log b.
        visibility: (B, K, A) probabilities.

    Returns:
        (B, 1, A) in [0, 1].
    """
    weight = visibility + 1e-3  # no visible keypoint: all count
    return (torch.sigmoid(-1 - 2 * log_spread) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def confidence(scores: Tensor, quality: Tensor) -> Tensor:
    """What persons are sorted by and thresholds are compared with: the score's square root times the expected OKS.

    The score has learnt OKS too, but from one number per person where the spreads had all keypoints; the root keeps the
    scale, as the product of two such numbers would be their square.

    Args:
        scores: (B, C, A) probabilities per class.
        quality: (B, 1, A) of :func:`expected_oks`.

    Returns:
        (B, C, A) in [0, 1].
    """
    return scores.sqrt() * quality


def assemble_rows(
    boxes: Tensor, scores: Tensor, keypoints: Tensor, visibility: Tensor | None, sigma: Tensor | None = None
) -> Tensor:
    """Rows in the layout of the stock end-to-end pose head.

    Args:
        boxes: (B, 4, A) corners in pixels.
        scores: (B, 2, A), the best score of each cell and its class.
        keypoints: (B, K, 2, A) pixels.
        visibility: (B, K, A) probabilities, or None for two-column keypoints.
        sigma: (B, K, A) pixels of errorbars.keypoint_sigma, or None for rows that end with the keypoints.

    Returns:
        (B, 6 + K*D, A) with D of 2 or 3; with ``sigma`` K more.
    """
    points = keypoints if visibility is None else torch.cat((keypoints, visibility[:, :, None]), 2)
    columns = (boxes, scores, points.flatten(1, 2))
    return torch.cat(columns if sigma is None else (*columns, sigma), 1)


def select_rows(rows: Iterable[Tensor], conf: float, max_det: int, classes: int | Sequence[int] | None = None) -> list[Tensor]:
    """Persons of each image: a threshold and a sort. There is no NMS: the scores are one-to-one.

    Args:
        rows: (B, R, 6 + K*D) ``x1 y1 x2 y2 score class keypoints``, or a tensor per image; sorted or not.
        conf: least score.
        max_det: most rows per image.
        classes: class index or indices to keep, None for all.

    Returns:
        One (n, 6 + K*D) tensor per image, best first.
    """
    if isinstance(classes, int):
        classes = [classes]
    kept = []
    for image in rows:
        keep = image[:, 4] > conf
        if classes is not None:
            keep &= (image[:, 5:6] == torch.as_tensor(list(classes), device=image.device)).any(1)
        image = image[keep]
        kept.append(image[image[:, 4].argsort(descending=True, stable=True)[:max_det]])
    return kept
