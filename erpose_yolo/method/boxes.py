"""Boxes derived from keypoints: their extent and margins that are fitted in closed form; and the decode of a learned box branch.

Shapes: B images, A grid cells, K keypoints, N persons. Units: pixels of the network input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erpose_yolo.method.decode import (
    OFFSET_CELLS,
)

# Pixels in which extents are squared: float16 holds the squares of 256 at most, and a power of two rounds nothing.
SPAN = 512.0

# fit_margins of COCO training photos, for persons whose labels are not known: left, top, right and bottom; in each the constant,
# shares of width and height, and the 17 keypoints.
COCO_MARGINS = (
    (
        0.121, 0.046, -0.007, 0.013, -0.008, -0.010, -0.004, -0.009, -0.023, -0.007, -0.019, -0.012, 0.011, 0.008, -0.011,
        -0.010, -0.003, 0.003, -0.006, -0.003,
    ),
    (
        0.327, 0.051, -0.058, -0.015, 0.005, 0.005, -0.008, -0.011, -0.002, -0.001, -0.019, -0.025, -0.008, -0.000, -0.031,
        -0.043, -0.031, -0.012, -0.011, -0.007,
    ),
    (
        0.161, 0.033, -0.024, 0.013, -0.007, -0.008, -0.009, -0.007, -0.003, -0.032, -0.004, -0.016, 0.002, 0.006, -0.019,
        -0.011, -0.006, -0.007, 0.000, 0.000,
    ),
    (
        0.253, 0.005, -0.059, -0.002, -0.006, -0.008, -0.010, -0.004, 0.010, -0.014, -0.047, -0.031, 0.022, 0.008, -0.036,
        -0.037, -0.043, 0.001, 0.037, 0.006,
    ),
)  # fmt: skip


# What predicted boxes get beyond the margins that are fitted to labels: left, top, right and bottom, in the unit of a margin. A fit
# of means leaves every second head outside, and predicted keypoints lie nearer to the middle of a person than labelled ones. Chosen
# on COCO training photos, where it raises both box AP and the share of people inside (benchmarks/accuracy/derived_boxes.py).
ROOM = (0.03, 0.04, 0.03, 0.06)


def with_room(margins: Tensor) -> Tensor:
    """Margins (4, 3 + K) with ROOM, for keypoints that are predicted."""
    return torch.cat((margins[:, :1] + torch.tensor(ROOM).to(margins)[:, None], margins[:, 1:]), 1)


def default_margins(num_keypoints: int) -> Tensor:
    """Margins of a person whose training labels are not known: (4, 3 + K), see :func:`derive_boxes`.

    For 17 keypoints COCO's; else the least-squares fit of one share per side on COCO persons.
    """
    if num_keypoints == len(COCO_MARGINS[0]) - 3:
        return torch.tensor(COCO_MARGINS)
    margins = torch.zeros(4, 3 + num_keypoints)
    margins[:, 1] = torch.tensor([0.15, 0.0, 0.15, 0.0])
    margins[:, 2] = torch.tensor([0.0, 0.17, 0.0, 0.10])
    return margins


def _step(values: Tensor, least: float) -> Tensor:
    """1 where values exceed ``least`` and else 0; steep, not sharp: ncnn lacks comparisons, and paddle's converter floor."""
    return ((values - least) * 1e4).clamp(0, 1)


def _extent(keypoints: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high corner (B, 2, A) of the keypoints that count, and which do (B, K, A), see :func:`derive_boxes`."""
    counts = _step(weight, 0.499)
    counts = counts + (1 - counts.amax(1, keepdim=True))  # none visible: let every keypoint count
    others = _step(1 - counts, 0.001)[:, :, None]
    kept = keypoints * (1 - others)
    # the others move to the far corner of all keypoints, beyond which no keypoint that counts can lie
    low = (kept + others * keypoints.amax(1, keepdim=True)).amin(1)
    high = (kept + others * keypoints.amin(1, keepdim=True)).amax(1)
    return low, high, counts


def _margin_features(low: Tensor, high: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Regressors (B, 3 + K, A) of the margins, and their unit, the extent's diagonal (B, 1, A) in multiples of SPAN pixels."""
    side = (high - low) / SPAN
    unit = (side**2).sum(1, keepdim=True).sqrt().clamp(min=1 / SPAN)  # one pixel at least
    return torch.cat((counts[:, :1] * 0 + 1, side / unit, counts), 1), unit


def derive_boxes(keypoints: Tensor, weight: Tensor, margins: Tensor) -> Tensor:
    """Boxes from keypoints: their extent, widened on each side by a margin that is linear in what is visible.

    A margin is a share of the extent's diagonal: constant + share of the width + share of the height + one term per
    visible keypoint (a person seen to the hips only ends well below the lowest keypoint). Linear, so :func:`fit_margins` is a
    least-squares fit and the cost a (4, 3 + K) product per cell.

    Args:
        keypoints: (B, K, 2, A) pixels.
        weight: (B, K, A) in [0, 1], visibility. A keypoint below one half neither pushes the extent nor adds its term;
            where no keypoint reaches one half all of them count.
        margins: (4, 3 + K) for left, top, right, bottom.

    Returns:
        (B, 4, A) corners x1 y1 x2 y2 in pixels, x1 <= x2 and y1 <= y2.
    """
    low, high, counts = _extent(keypoints, weight)
    features, unit = _margin_features(low, high, counts)
    grow = torch.matmul(margins.to(keypoints.dtype), features).clamp(min=0) * unit * SPAN  # (B, 4, A)
    return torch.cat((low - grow[:, :2], high + grow[:, 2:]), 1)


def fit_margins(keypoints: Tensor, boxes: Tensor, ridge: float = 5.0) -> Tensor:
    """Least-squares margins of labelled persons, in closed form.

    Args:
        keypoints: (N, K, 3) pixels and visibility.
        boxes: (N, 4) labelled corners in pixels.
        ridge: pull towards zero, in persons; keeps keypoints that are always or never labelled harmless.

    Returns:
        (4, 3 + K); :func:`default_margins` where fewer than ten persons can be used.
    """
    k = keypoints.shape[1]
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=0).sqrt()
    usable = ((keypoints[..., 2] > 0).sum(1) >= 2) & (size > 1) & keypoints.isfinite().all(2).all(1) & boxes.isfinite().all(1)
    if int(usable.sum()) < 10:
        return default_margins(k)
    keypoints, boxes, size = keypoints[usable].double(), boxes[usable].double(), size[usable].double()
    xy = keypoints[..., :2].permute(1, 2, 0)[None]  # (1, K, 2, N): the persons stand where cells stand
    low, high, counts = _extent(xy, (keypoints[..., 2] > 0).double().T[None])
    features, unit = _margin_features(low, high, counts)
    x, u = features[0].T, unit[0].T * SPAN  # (N, 3 + K), (N, 1)
    wanted = torch.cat((low[0].T - boxes[:, :2], boxes[:, 2:] - high[0].T), 1) / u
    weight = (u / size[:, None]).clamp(max=2.0)  # errors count relative to the box, as in IoU
    x, wanted = x * weight, wanted * weight
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    solution: Tensor = torch.linalg.solve(gram, x.T @ wanted)
    return solution.T.float()


def decode_boxes(sides: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes of the optional learned branch: distances from the cell centre to the four sides.

    Args:
        sides: (B, 4, A) raw output; softplus of it is the distance in units of OFFSET_CELLS cells.
        centres: (2, A) or (B, 2, A) pixels.
        strides: (1, A) or (B, 1, A) pixels.

    Returns:
        (B, 4, A) corners in pixels.
    """
    distance = torch.nn.functional.softplus(sides) * strides * OFFSET_CELLS
    return torch.cat((centres - distance[:, :2], centres + distance[:, 2:]), 1)
