"""From raw head outputs to poses: cells, joints, boxes and rows. One decode for training, inference and every export.

Shapes: B images, A cells (all pyramid levels in a row, finest first, row-major), K joints.
Units: anchors are cell centres in cells of their own level; everything decoded is in pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Raw offsets are multiplied by this many cells: a person is several cells wide, so a unit output should be, too.
OFFSET_CELLS = 2.0
# Cells that look-ups keep from the outermost centres: a point that rounding puts beyond them reads nothing in onnx2tf's graphs.
INSET = 2e-5
# Pixels in which extents are squared: float16 holds the squares of 256 at most, and a power of two rounds nothing.
SPAN = 512.0


@dataclass(frozen=True)
class PoseOutputs:
    """Raw outputs of a pose branch, cells of all levels in a row.

    Attributes:
        offsets: (B, K, 2, A), see :func:`decode_joints`.
        visibility: (B, K, A) logits.
        log_spread: (B, K, A), the logarithm of each keypoint's spread in tolerances, see :func:`expected_oks`.
        refinement: per level (B, 3K, H, W), see :func:`refine_joints`; None leaves keypoints where their cells put them.
        box: (B, 4, A), see :func:`decode_boxes`; None where boxes are derived from keypoints.
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


def decode_joints(offsets: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Joints in pixels: cell centre plus offset, the offset being in units of OFFSET_CELLS cells.

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


def read_field(field: Tensor, points: Tensor, one_by_one: bool = False, held: bool = True) -> Tensor:
    """Read the maps of each joint where that joint is: bilinear between cell centres, the border's value beyond.

    Args:
        field: (B, K * C, H, W), C maps for each joint, those of a joint in a row.
        points: (B, K, 2, A) cells of this level, (0, 0) the corner of its first cell.
        one_by_one: a look-up per joint instead of one for all, for runtimes without batches.
        held: hold points between the outermost centres; False where they are there, and H and W may be open in a graph.

    Returns:
        (B, K, C, A), of the type of ``field``; the arithmetic is float32 at least.
    """
    b, k = points.shape[:2]
    h, w = field.shape[2:]
    kind = field.dtype
    if kind in (torch.float16, torch.bfloat16):  # a half type cannot tell neighbouring places in a large map apart
        field, points = field.float(), points.float()
    x, y = points[:, :, 0], points[:, :, 1]
    if held:  # instead of padding with the border: onnx2tf, the way to TensorFlow, pads with zeros alone
        low = 0.5 + INSET
        x, y = x.clamp(low, float(w) - low), y.clamp(low, float(h) - low)
    places = torch.stack((x * 2 / w - 1, y * 2 / h - 1), 2)  # (B, K, 2, A), as grid_sample counts

    def sample(maps: Tensor, places: Tensor) -> Tensor:
        """Maps (B, C, H, W) at places (B, 2, M, A): (B, C, M, A)."""
        grid = places.permute(0, 2, 3, 1)
        return torch.nn.functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)

    if one_by_one:
        c = field.shape[1] // k
        found = torch.cat([sample(field[:, i * c : (i + 1) * c], places[:, i, :, None]) for i in range(k)], 2)  # (B, C, K, A)
        return found.transpose(1, 2).to(kind)
    found = sample(field.reshape(b * k, -1, h, w), places.reshape(b * k, 2, 1, -1))  # (B * K, C, 1, A)
    return found.reshape(b, k, field.shape[1] // k, -1).to(kind)


def split_levels(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, C, A) of all levels in a row as maps (B, C, H, W), one per level."""
    out, first = [], 0
    for h, w in shapes:
        out.append(flat[:, :, first : first + h * w].reshape(flat.shape[0], flat.shape[1], h, w))
        first += h * w
    return out


def refine_joints(
    joints: Tensor, fields: Sequence[Tensor], strides: Sequence[float], one_by_one: bool = False
) -> tuple[Tensor, Tensor]:
    """Joints moved by what the maps of their cell's level say at the places where they are.

    A cell far from a wrist guesses where it is; the features at the wrist know better. Each joint has three maps per
    level: the offset from there to the joint of whoever is there (the short-range offsets of PersonLab, arXiv 1803.08225,
    learnt here through the poses that read them), and what is to be added to log b, the joint's spread.

    Args:
        joints: (B, K, 2, A) pixels, all cells of all levels in a row.
        fields: per level (B, 3K, H, W), x, y and log b of each joint in a row; x and y in units of OFFSET_CELLS cells.
        strides: pixels per cell of each level.
        one_by_one: see :func:`read_field`.

    Returns:
        joints (B, K, 2, A) in pixels, and (B, K, A) to be added to log b.
    """
    shifts, wider, first = [], [], 0
    for field, s in zip(fields, strides, strict=True):
        last = first + field.shape[2] * field.shape[3]
        found = read_field(field, joints[..., first:last] / s, one_by_one)
        shifts.append(found[:, :, :2] * (s * OFFSET_CELLS))
        wider.append(found[:, :, 2])
        first = last
    return joints + torch.cat(shifts, 3), torch.cat(wider, 2)


def refine_best(joints: Tensor, fields: Sequence[Tensor], strides: Sequence[float], level: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`refine_joints` for a few cells of each image, in one look-up: all levels are laid out on one sheet.

    Args:
        joints: (B, K, 2, N) pixels of N cells.
        fields: as there; each level about half as high and wide as the one before.
        strides: as there.
        level: (B, L, N), 1 for the level that a cell is of and else 0.

    Returns:
        joints (B, K, 2, N) in pixels, and (B, K, N) to be added to log b.

    Raises:
        ValueError: levels that do not halve, which would not fit the sheet.
    """
    pad = torch.nn.functional.pad
    finest, coarser = fields[0], fields[1:]
    if not torch.jit.is_tracing() and not torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
        high, wide = zip(*(f.shape[2:] for f in fields))  # in a graph they may be open
        if sum(high[1:]) > high[0] or max(wide[1:], default=0) > wide[min(1, len(wide) - 1)]:
            raise ValueError(f"each level must be about half as high and wide as the one before, got {high} high, {wide} wide")
    height, width = finest.shape[2:]
    sheet, sizes, corners = finest, [(width, height)], [(0, 0)]
    if coarser:  # stacked at the right of the finest
        across, down, column = coarser[0].shape[3], 0, []
        for field in coarser:
            column.append(pad(field, (0, across - field.shape[3])))
            sizes.append((field.shape[3], field.shape[2]))
            corners.append((width, down))
            down = down + field.shape[2]
        sheet = torch.cat((finest, pad(torch.cat(column, 2), (0, 0, 0, height - down))), 3)

    def of_level(values: Sequence[tuple[float, float]]) -> Tensor:
        """(B, 1, 2, N): the pair that belongs to each cell's level."""
        of_all = [torch.stack((level[:, n] * x, level[:, n] * y), 1) for n, (x, y) in enumerate(values)]
        return sum(of_all[1:], of_all[0])[:, None]

    stride, size = of_level([(s, s) for s in strides]), of_level(sizes)
    low = 0.5 + INSET
    place = torch.minimum((joints / stride).clamp(min=low), size - low)  # the border's value beyond, not the neighbour's
    found = read_field(sheet, place + of_level(corners), held=False)
    return joints + found[:, :, :2] * stride * OFFSET_CELLS, found[:, :, 2]


def refine_picked(joints: Tensor, field: Tensor, image: Tensor, where: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`refine_joints` for a few cells of a batch, at a cost that does not grow with the picture.

    Args:
        joints: (M, K, 2) pixels of M picked cells.
        field: (B, 3K, A) raw maps, levels in a row.
        image: (M,) image index.
        where: (M, 3) first cell, height and width in cells of the picked cell's level.
        strides: (M, 1) pixels per cell.

    Returns:
        joints (M, K, 2) in pixels, and (M, K) to be added to log b.
    """
    m, k = joints.shape[:2]
    maps = field.reshape(field.shape[0], k, 3, -1)
    first, size = where[:, :1], where[:, 1:].flip(1)[:, None]  # (M, 1, 2): width, height
    place = (joints / strides[:, None] - 0.5).nan_to_num()  # between centres; a pose that is no number moves nowhere
    place = torch.minimum(place.clamp(min=INSET), (size - 1).to(joints.dtype) - INSET).clamp(min=0)
    low = place.floor()
    share, low = place - low, low.long()
    high = torch.minimum(low + 1, size - 1)
    joint = torch.arange(k, device=joints.device).expand(m, k)
    found = maps.new_zeros((m, k, 3))
    for y, part_y in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
        for x, part_x in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
            cell = first + y * size[..., 0] + x
            found = found + maps[image[:, None], joint, :, cell] * (part_x * part_y)[..., None]
    return joints + found[..., :2] * (strides * OFFSET_CELLS)[:, None], found[..., 2]


def default_margins(num_joints: int) -> Tensor:
    """Margins of a person whose training labels are not known: (4, 3 + K), see :func:`derive_boxes`.

    The least-squares fit of one share per side on COCO persons (benchmarks/boxes.py prints it).
    """
    margins = torch.zeros(4, 3 + num_joints)
    margins[:, 1] = torch.tensor([0.15, 0.0, 0.15, 0.0])
    margins[:, 2] = torch.tensor([0.0, 0.17, 0.0, 0.10])
    return margins


def _step(values: Tensor, least: float) -> Tensor:
    """1 where values exceed ``least`` and else 0; steep, not sharp: ncnn lacks comparisons, and paddle's converter floor."""
    return ((values - least) * 1e4).clamp(0, 1)


def _extent(joints: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high corner (B, 2, A) of the joints that count, and which do (B, K, A), see :func:`derive_boxes`."""
    counts = _step(weight, 0.499)
    counts = counts + (1 - counts.amax(1, keepdim=True))  # none visible: let every joint count
    others = _step(1 - counts, 0.001)[:, :, None]
    kept = joints * (1 - others)
    # the others move to the far corner of all joints, beyond which no joint that counts can lie
    low = (kept + others * joints.amax(1, keepdim=True)).amin(1)
    high = (kept + others * joints.amin(1, keepdim=True)).amax(1)
    return low, high, counts


def _margin_features(low: Tensor, high: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Regressors (B, 3 + K, A) of the margins, and their unit, the extent's diagonal (B, 1, A) in multiples of SPAN pixels."""
    side = (high - low) / SPAN
    unit = (side**2).sum(1, keepdim=True).sqrt().clamp(min=1 / SPAN)  # one pixel at least
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
    grow = torch.matmul(margins.to(joints.dtype), features).clamp(min=0) * unit * SPAN  # (B, 4, A)
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


def assemble_rows(boxes: Tensor, scores: Tensor, joints: Tensor, visibility: Tensor | None) -> Tensor:
    """Dense rows in the layout that the top-k step and NMS-free exports share.

    Args:
        boxes: (B, 4, A) corners in pixels.
        scores: (B, 2, A), the best score of each cell and its class.
        joints: (B, K, 2, A) pixels.
        visibility: (B, K, A) probabilities, or None for two-column key points.

    Returns:
        (B, 6 + K*D, A) with D of 2 or 3.
    """
    points = joints if visibility is None else torch.cat((joints, visibility[:, :, None]), 2)
    return torch.cat((boxes, scores, points.flatten(1, 2)), 1)


def select_rows(rows: Tensor, conf: float, max_det: int, classes: int | Sequence[int] | None = None) -> list[Tensor]:
    """Persons of each image: a threshold and a sort. There is no NMS: the scores are one-to-one.

    Args:
        rows: (B, R, 6 + K*D) ``x1 y1 x2 y2 score class joints``, sorted (top-k graphs) or not (dense graphs).
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
