"""From raw head outputs to poses: cells, joints, boxes and rows. One decode for training, inference and every export.

Shapes: B images, A cells (all pyramid levels in a row, finest first, row-major), K joints.
Units: anchors are cell centres in cells of their own level; everything decoded is in pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Raw offsets are multiplied by this many cells: a person is several cells wide, so a unit output should be, too.
OFFSET_CELLS = 2.0


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


def decode_joints(offsets: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Joints in pixels: cell centre plus offset, the offset being in units of OFFSET_CELLS cells.

    Args:
        offsets: (B, K, 2, A) raw regression output, or (M, K, 2) for M picked cells.
        centres: (2, A) or (M, 2) pixels.
        strides: (1, A) or (M, 1) pixels.

    Returns:
        Pixels, shaped as ``offsets``.
    """
    if offsets.ndim == 3:  # picked cells
        return centres[:, None] + offsets * (strides * OFFSET_CELLS)[:, None]
    return centres[None, None] + offsets * (strides * OFFSET_CELLS)[None, None]  # rank 4 throughout, for TensorFlow


def encode_joints(joints: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Inverse of :func:`decode_joints` for picked cells: (M, K, 2) pixels to raw offsets."""
    return (joints - centres[:, None]) / (strides * OFFSET_CELLS)[:, None]


def expected_oks(log_spread: Tensor, visibility: Tensor) -> Tensor:
    """OKS that a pose may expect of itself, from the spreads that the smooth OKS loss teaches.

    A joint whose error r (in tolerances) follows that loss's law, density exp(1 - sqrt(1 + (r/b)^2)) / (4 pi b^2), has a
    mean OKS kernel exp(-r^2/2) of 1/(1 + e b^2) within 0.026 for every spread b, which is a sigmoid of log b. A pose's is
    the mean over its joints, weighed by visibility as OKS counts labelled joints only.

    Args:
        log_spread: (B, K, A) raw output, log b.
        visibility: (B, K, A) probabilities.

    Returns:
        (B, 1, A) in [0, 1].
    """
    weight = visibility + 1e-3  # no visible joint: all count
    return (torch.sigmoid(-1 - 2 * log_spread) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def confidence(scores: Tensor, quality: Tensor) -> Tensor:
    """What persons are sorted by and thresholds are compared with: the score's square root times the expected OKS.

    The score has learnt OKS too, but from one number per person where the spreads had all joints; the root keeps the
    scale, as the product of two such numbers would be their square.

    Args:
        scores: (B, C, A) probabilities per class.
        quality: (B, 1, A) of :func:`expected_oks`.

    Returns:
        (B, C, A) in [0, 1].
    """
    return scores.sqrt() * quality


def default_margins(num_joints: int) -> Tensor:
    """Margins of a person whose training labels are not known: (4, 3 + K), see :func:`derive_boxes`.

    The least-squares fit of one share per side on COCO persons (benchmarks/boxes.py prints it).
    """
    margins = torch.zeros(4, 3 + num_joints)
    margins[:, 1] = torch.tensor([0.15, 0.0, 0.15, 0.0])
    margins[:, 2] = torch.tensor([0.0, 0.17, 0.0, 0.10])
    return margins


def _extent(joints: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high corner (B, 2, A) of the joints that count, and which do (B, K, A), see :func:`derive_boxes`."""
    # A step a hair below one half, steep instead of sharp: ncnn lacks comparisons, and paddle's converter lacks floor.
    counts = ((weight - 0.499) * 1e4).clamp(0, 1)
    counts = counts + (1 - counts.amax(1, keepdim=True))  # none visible: let every joint count
    away = (1 - counts)[:, :, None] * 1e4  # pushes the others out of the running
    return (joints + away).amin(1), (joints - away).amax(1), counts


def _margin_features(low: Tensor, high: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Regressors (B, 3 + K, A) of the margins, and the extent's diagonal (B, 1, A) in pixels, their unit."""
    side = high - low
    unit = ((side / 64) ** 2).sum(1, keepdim=True).sqrt().clamp(min=1 / 64) * 64  # float16 holds no square of 256
    return torch.cat((counts[:, :1] * 0 + 1, side / unit, counts), 1), unit


def derive_boxes(joints: Tensor, weight: Tensor, margins: Tensor) -> Tensor:
    """Boxes from joints: their extent, widened on each side by a margin that is linear in what is visible.

    A margin is a share of the extent's diagonal: constant + share of the width + share of the height + one term per
    visible joint (a person seen to the hips only ends well below the lowest joint). Linear, so :func:`fit_margins` is a
    least-squares fit and the cost a (4, 3 + K) product per cell.

    Args:
        joints: (B, K, 2, A) pixels.
        weight: (B, K, A) in [0, 1], visibility. A joint below one half neither pushes the extent nor adds its term;
            where no joint reaches one half all of them count.
        margins: (4, 3 + K) for left, top, right, bottom.

    Returns:
        (B, 4, A) corners x1 y1 x2 y2 in pixels, x1 <= x2 and y1 <= y2.
    """
    low, high, counts = _extent(joints, weight)
    features, unit = _margin_features(low, high, counts)
    grow = torch.matmul(margins.to(joints.dtype), features).clamp(min=0) * unit  # (B, 4, A)
    return torch.cat((low - grow[:, :2], high + grow[:, 2:]), 1)


def fit_margins(joints: Tensor, boxes: Tensor, ridge: float = 5.0) -> Tensor:
    """Least-squares margins of labelled persons, in closed form.

    Args:
        joints: (N, K, 3) pixels and visibility.
        boxes: (N, 4) labelled corners in pixels.
        ridge: pull towards zero, in persons; keeps joints that are always or never labelled harmless.

    Returns:
        (4, 3 + K); :func:`default_margins` where fewer than ten persons can be used.
    """
    k = joints.shape[1]
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=0).sqrt()
    usable = ((joints[..., 2] > 0).sum(1) >= 2) & (size > 1) & joints.isfinite().all(2).all(1) & boxes.isfinite().all(1)
    if int(usable.sum()) < 10:
        return default_margins(k)
    joints, boxes, size = joints[usable].double(), boxes[usable].double(), size[usable].double()
    xy = joints[..., :2].permute(1, 2, 0)[None]  # (1, K, 2, N): the persons stand where cells stand
    low, high, counts = _extent(xy, (joints[..., 2] > 0).double().T[None])
    features, unit = _margin_features(low, high, counts)
    x, u = features[0].T, unit[0].T  # (N, 3 + K), (N, 1)
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
        centres: (2, A) pixels.
        strides: (1, A) pixels.

    Returns:
        (B, 4, A) corners in pixels.
    """
    distance = torch.nn.functional.softplus(sides) * strides * OFFSET_CELLS
    return torch.cat((centres - distance[:, :2], centres + distance[:, 2:]), 1)


def assemble_rows(boxes: Tensor, scores: Tensor, joints: Tensor, visibility: Tensor | None) -> Tensor:
    """Dense rows in the layout that the top-k step and NMS-free exports share.

    Args:
        boxes: (B, 4, A) corners in pixels.
        scores: (B, C, A) probabilities per class.
        joints: (B, K, 2, A) pixels.
        visibility: (B, K, A) probabilities, or None for two-column key points.

    Returns:
        (B, 4 + C + K*D, A) with D of 2 or 3.
    """
    points = joints if visibility is None else torch.cat((joints, visibility[:, :, None]), 2)
    return torch.cat((boxes, scores, points.flatten(1, 2)), 1)


def select_rows(rows: Tensor, conf: float, max_det: int, classes: Sequence[int] | None = None) -> list[Tensor]:
    """Persons of each image: a threshold and a sort. There is no NMS: the scores are one-to-one.

    Args:
        rows: (B, R, 6 + K*D) ``x1 y1 x2 y2 score class joints``, sorted (top-k graphs) or not (dense graphs).
        conf: least score.
        max_det: most rows per image.
        classes: class indices to keep, None for all.

    Returns:
        One (n, 6 + K*D) tensor per image, best first.
    """
    kept = []
    for image in rows:
        keep = image[:, 4] > conf
        if classes is not None:
            keep &= (image[:, 5:6] == torch.as_tensor(list(classes), device=image.device)).any(1)
        image = image[keep]
        kept.append(image[image[:, 4].argsort(descending=True, stable=True)[:max_det]])
    return kept
