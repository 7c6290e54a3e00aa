"""Losses of ER-Pose: smooth OKS, scores, keypoint heatmaps, visibility.

Plain torch on tensors; nothing here knows Ultralytics. All arithmetic is float32 whatever the autocast type.

Shapes: B images, A cells of all levels, K keypoints, N persons of the batch in a row, D assigned (person, cell) pairs.
Units: pixels of the network input, unless a name says cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from erpose_yolo.method import assigner
from erpose_yolo.method.assigner import NO_CELL, Candidates
from erpose_yolo.method.boxes import decode_boxes
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs, decode_keypoints, make_cells
from erpose_yolo.method.oks import kernel, mean_over_labelled, oks_error
from erpose_yolo.method.refine import refine_picked

# A spread of exp(-4) tolerances is a twentieth of the distance at which OKS .95 is lost: nothing is gained below it,
# and the bound keeps the gradient of a small person's keypoint finite.
MIN_LOG_SPREAD = -4.0
AT_ONCE = 32768  # candidates whose poses are decoded at a time: crowds have hundreds of thousands
LOSS_NAMES = ("pose_loss", "kobj_loss", "cls_loss", "o2o_loss", "heat_loss")


@dataclass(frozen=True)
class Targets:
    """Persons of a batch, flattened over images.

    Attributes:
        image: (N,) image index.
        keypoints: (N, K, 3) pixels and visibility; at least one keypoint of each labelled.
        box: (N, 4) corners in pixels.
        area: (N,) object area in square pixels (oks.object_area).
        category: (N,) class index.
        ignore_image: (I,) image index of each ignore region.
        ignore_box: (I, 4) corners in pixels; cells inside are neither positives nor background.
    """

    image: Tensor
    keypoints: Tensor
    box: Tensor
    area: Tensor
    category: Tensor
    ignore_image: Tensor
    ignore_box: Tensor


def bounded(log_spread: Tensor) -> Tensor:
    """Raw spread output held above MIN_LOG_SPREAD, smoothly, so that its gradient never dies."""
    return MIN_LOG_SPREAD + F.softplus(log_spread - MIN_LOG_SPREAD)


def smooth_oks_loss(error: Tensor, log_spread: Tensor) -> Tensor:
    """Smooth OKS loss of single keypoints.

    OKS measures the distance r = sqrt(2e) in tolerances. Where exp(-r^2/2) has lost its gradient a few tolerances away
    and is flat at the keypoint, exp(-(sqrt(1 + (r/b)^2) - 1)) has the same value and curvature at r = 0 but an
    exponential tail. Its negative logarithm is quadratic within b and linear beyond: the gradient is bounded by 1/b and
    never vanishes. The spread b (in tolerances) is predicted per keypoint while training; the log b terms make the whole a
    likelihood, so b follows the error down and the loss sharpens itself. A b that does not match the error costs: this is our
    reading of the paper's confidence mismatch, and what a pose's confidence is made of when deployed.

    Args:
        error: (...) e_k of the OKS formula.
        log_spread: (...) raw output; log b is it, held above MIN_LOG_SPREAD by a softplus.

    Returns:
        (...) loss.
    """
    log_b = bounded(log_spread)
    ratio = 2 * error * torch.exp(-2 * log_b)
    return ratio / (torch.sqrt(1 + ratio) + 1) + 2 * log_b


def plain_oks_loss(error: Tensor) -> Tensor:
    """1 - exp(-e), the loss of YOLO-Pose (arXiv 2204.06806). Its gradient vanishes far away."""
    return 1 - kernel(error)


def schedule(pair: tuple[float, float], progress: float) -> float:
    """Value of a (first, last) schedule at a share of the training in [0, 1]."""
    if progress <= 0:
        return pair[0]
    return pair[1] if progress >= 1 else pair[0] + (pair[1] - pair[0]) * progress


def avg_factor(count: Tensor) -> Tensor:
    """What a sum of losses is divided by: the count it was taken over, at least 1.

    DistributedDataParallel averages gradients over processes. Divided by each process's own count, a person would weigh
    more where there are few others; divided by the mean count, the average is the gradient of the whole batch. So every
    process must get here in training, persons or not. Validation gives each process its own number of batches: no mean.
    """
    if not (torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total.clamp(min=1) / distributed.get_world_size()


@dataclass(frozen=True)
class Assignment:
    """Assigned pairs: person index, cell index in its image, and the score target. All (D,)."""

    person: Tensor
    cell: Tensor
    target: Tensor


@dataclass(frozen=True)
class Grid:
    """Cells of a pyramid."""

    centres: Tensor  # (2, A) pixels
    strides: Tensor  # (1, A) pixels
    level: Tensor  # (A, 3) first cell, height and width in cells of each cell's level

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], strides: Sequence[float], like: Tensor) -> Grid:
        """Grid of levels (height, width) in cells; type and device from ``like``."""
        counts = torch.tensor([h * w for h, w in shapes])
        levels = torch.tensor([[int(counts[:i].sum()), h, w] for i, (h, w) in enumerate(shapes)])
        return cls(*make_cells(shapes, strides, like), levels.repeat_interleave(counts, 0).to(like.device))


@dataclass(frozen=True)
class BatchContext(Grid):
    """What assignment and losses of one batch share: the grid, targets, ignore regions, candidates."""

    targets: Targets
    shapes: Sequence[tuple[int, int]]
    background: Tensor  # (B, A) bool: may be trained as background, i.e. lies in no ignore region
    found: Candidates


@dataclass(frozen=True)
class Side:
    """What the loss reads of one assignment: its outputs in float32, refinement maps of all levels in a row (B, 3K, A)."""

    scores: Tensor
    offsets: Tensor
    visibility: Tensor
    log_spread: Tensor
    refinement: Tensor | None
    box: Tensor | None

    @classmethod
    def of(cls, pose: PoseOutputs, scores: Tensor) -> Side:
        maps = None if pose.refinement is None else torch.cat([m.flatten(2) for m in pose.refinement], 2).float()
        box = None if pose.box is None else pose.box.float()
        return cls(scores.float(), pose.offsets.float(), pose.visibility.float(), pose.log_spread.float(), maps, box)

    def tensors(self) -> list[Tensor]:
        every = (self.scores, self.offsets, self.visibility, self.log_spread, self.refinement, self.box)
        return [v for v in every if v is not None]


def predicted_poses(side: Side, image: Tensor, cell: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Poses that some cells predict.

    Args:
        side: outputs of the assignment.
        image: (D,) image index of each cell.
        cell: (D,) its index in that image.
        grid: the cells.

    Returns:
        Keypoints (D, K, 2) in pixels and log spread (D, K): the deployed ones last, before them those not yet refined. The
        place of a sample is no matter of what was found there: the coarse keypoints have a loss of their own.
    """
    stride = grid.strides.T[cell]
    keypoints = decode_keypoints(side.offsets[image, :, :, cell], grid.centres.T[cell], stride)
    spread = side.log_spread[image, :, cell]
    if side.refinement is None:
        return [(keypoints, spread)]
    moved, wider = refine_picked(keypoints.detach(), side.refinement, image, grid.level[cell], stride)
    return [(keypoints, spread), (moved, spread + wider)]


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of aligned boxes (D, 4), corners in pixels."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1).clamp(min=1e-6)
    iou = both / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull


def outside_boxes(image: Tensor, box: Tensor, shapes: Sequence[tuple[int, int]], strides: Sequence[float], batch: int) -> Tensor:
    """Cells whose centre lies in no box of their image.

    Each box adds one to the cells inside, written as the differences at its four corners and summed up once per level: memory
    and time grow with cells plus boxes, not with their product, and nothing is read back from the device.

    Args:
        image: (R,) image index of each box.
        box: (R, 4) corners in pixels.
        shapes: (height, width) in cells per level.
        strides: pixels per cell of each level.
        batch: B.

    Returns:
        (B, A) bool.
    """
    if len(image) == 0:
        return torch.ones((batch, sum(h * w for h, w in shapes)), dtype=torch.bool, device=box.device)
    levels = []
    for (h, w), s in zip(shapes, strides, strict=True):
        ends = []
        for low, high, n in ((box[:, 0], box[:, 2], w), (box[:, 1], box[:, 3], h)):
            centre = (torch.arange(n, device=box.device, dtype=box.dtype) + 0.5) * s
            first = torch.searchsorted(centre, low.contiguous(), right=True)  # the first centre beyond the low side
            ends.append((first, torch.maximum(torch.searchsorted(centre, high.contiguous()), first)))
        steps = torch.zeros((batch, h + 1, w + 1), dtype=torch.int32, device=box.device)
        for i, column in enumerate(ends[0]):
            for j, row in enumerate(ends[1]):
                one = torch.full_like(image, 1 if i == j else -1, dtype=torch.int32)
                steps.index_put_((image, row, column), one, accumulate=True)
        inside = steps.cumsum(1, dtype=steps.dtype).cumsum(2, dtype=steps.dtype)
        levels.append(inside[:, :h, :w].flatten(1) == 0)
    return torch.cat(levels, 1)


class ERPoseLoss:
    """Assignment and losses of one batch.

    Args:
        sigmas: (K,) OKS sigmas.
        strides: pixels per cell of each level, finest first.
        topk: most cells per person in the one-to-many assignment.
        alpha: exponent of the score in the rank of a candidate.
        beta: exponent of the pose quality in it.
        center_sampling_window, size_range: see assigner.find_candidates.
        one2many_weight: (first, last) share of the one-to-many assignment; one-to-one has the rest.
        pose_gain, oks_gain, aux_loss_gain, visibility_gain, heatmap_gain, box_gain: weights of the terms; oks_gain is that of
            1 - OKS beside the smooth OKS loss, aux_loss_gain that of the pose loss of keypoints before they are refined.

    Attributes:
        kernel_dof: (first, last) degrees of freedom of the OKS kernel that ranks candidates: few, so a wide kernel, while poses
            are bad.
    """

    kernel_dof = (1.0, 8.0)

    def __init__(
        self,
        sigmas: Tensor,
        strides: Sequence[float],
        *,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 2.0,
        center_sampling_window: int = 7,
        size_range: tuple[float, float] = (2.0, 12.0),
        one2many_weight: tuple[float, float] = (0.8, 0.1),
        pose_gain: float = 2.0,
        oks_gain: float = 4.0,
        aux_loss_gain: float = 0.5,
        visibility_gain: float = 0.2,
        heatmap_gain: float = 1.0,
        box_gain: float = 2.0,
    ) -> None:
        self.sigmas = sigmas.float()
        self.strides = [float(s) for s in strides]
        self.topk, self.alpha, self.beta = topk, alpha, beta
        self.center_sampling_window, self.size_range = center_sampling_window, size_range
        self.one2many_weight = one2many_weight
        self.pose_gain, self.oks_gain, self.aux_loss_gain = pose_gain, oks_gain, aux_loss_gain
        self.visibility_gain, self.heatmap_gain, self.box_gain = visibility_gain, heatmap_gain, box_gain

    def __call__(self, outputs: HeadOutputs, targets: Targets, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            outputs: raw outputs of a head.
            targets: persons and ignore regions.
            progress: share of the training that is over, drives the schedules.

        Returns:
            Scalar loss (a mean over persons and images, not multiplied by the batch size) and its detached, gained terms
            by name.

        Raises:
            ValueError: the offsets are not of the targets' keypoints or of the levels' cells.
        """
        sides = {
            name: Side.of(pose, scores)
            for name, pose, scores in (
                ("one2many", outputs.one2many, outputs.one2many_scores),
                ("one2one", outputs.one2one, outputs.one2one_scores),
            )
            if pose is not None and scores is not None
        }
        heatmaps = None if outputs.heatmaps is None else outputs.heatmaps.float()
        context = self._scene(next(iter(sides.values())).offsets, targets, outputs.shapes)
        weight = schedule(self.one2many_weight, progress)
        # every output is in the graph, persons or not (distributed training needs it); no value of it is read, as 0 * inf is NaN
        tensors = [v for side in sides.values() for v in side.tensors()] + ([] if heatmaps is None else [heatmaps])
        zero = sum((v[:0].sum() for v in tensors), torch.zeros((), device=context.centres.device))
        items: dict[str, Tensor] = dict.fromkeys(LOSS_NAMES, zero)

        before: tuple[Side, Assignment] | None = None
        for name, share, label in (("one2many", weight, "cls_loss"), ("one2one", 1 - weight, "o2o_loss")):
            if name not in sides:
                continue
            side = sides[name]
            pairs = self.assign(name, side, context, progress)
            items[label] = share * self._score_loss(side.scores, pairs, context)
            for key, value in self._pose_terms(side, pairs, context).items():
                items[key] = items.get(key, zero) + share * value
            # a pose branch that both assignments share has learnt from the one-to-many pairs already
            if before is not None and side.refinement is not None and outputs.one2one is not outputs.one2many:
                items["pose_loss"] = items["pose_loss"] + share * self._sampling_loss(*before, side.refinement, context)
            before = side, pairs
        if heatmaps is not None:
            items["heat_loss"] = self.heatmap_gain * self._heatmap_loss(heatmaps, context)
        return sum(items.values(), zero), {k: v.detach() for k, v in items.items()}

    def pose_loss(self, error: Tensor, log_spread: Tensor, labelled: Tensor) -> Tensor:
        """Loss of whole poses: smooth OKS, and 1 - OKS beside it.

        The likelihood pulls far keypoints; where a pose of a person never seen before can be one of two, it settles between
        the two, and the metric rewards a choice.

        Args:
            error: (D, K) e_k of the OKS formula.
            log_spread: (D, K).
            labelled: (D, K) bool.

        Returns:
            (D,), means over labelled keypoints.
        """
        loss = smooth_oks_loss(error, log_spread)
        if self.oks_gain:
            loss = loss + self.oks_gain * plain_oks_loss(error)
        return mean_over_labelled(loss, labelled)

    def placed_loss(self, keypoints: Tensor, log_spread: Tensor, wanted: Tensor, area: Tensor) -> Tensor:
        """:meth:`pose_loss` of poses in their places.

        Args:
            keypoints: (D, K, 2) pixels.
            log_spread: (D, K).
            wanted: (D, K, 3) pixels and visibility.
            area: (D,) square pixels.

        Returns:
            (D,).
        """
        error = oks_error(keypoints, wanted, area, self.sigmas.to(keypoints.device))
        return self.pose_loss(error, log_spread, wanted[..., 2] > 0)

    def pose_quality(
        self, side: Side, similarity: Tensor, keypoints: Tensor, person: Tensor, cell: Tensor, context: BatchContext
    ) -> Tensor:
        """What ranks candidates beside their score.

        Args:
            side: outputs of the assignment.
            similarity: (D,) OKS of each candidate's pose, with the kernel's present degrees of freedom.
            keypoints: (D, K, 2) pixels, the poses.
            person: (D,) index of the person that the candidate is one of.
            cell: (D,) index of the candidate in its image.
            context: the batch.

        Returns:
            (D,) not negative.
        """
        return similarity

    def _scene(self, offsets: Tensor, targets: Targets, shapes: Sequence[tuple[int, int]]) -> BatchContext:
        grid = Grid.of(shapes, self.strides, offsets)
        if offsets.shape[3] != grid.centres.shape[1] or offsets.shape[1] != targets.keypoints.shape[1]:
            raise ValueError(
                f"offsets must be (B, K, 2, A) with K={targets.keypoints.shape[1]} keypoints of the targets and "
                f"A={grid.centres.shape[1]} cells of the levels {list(shapes)}, got {tuple(offsets.shape)}"
            )
        background = outside_boxes(targets.ignore_image, targets.ignore_box, shapes, self.strides, len(offsets))
        found = assigner.find_candidates(
            targets.keypoints,
            targets.area,
            shapes,
            self.strides,
            center_sampling_window=self.center_sampling_window,
            size_range=self.size_range,
        )
        return BatchContext(grid.centres, grid.strides, grid.level, targets, shapes, background, found)

    @torch.no_grad()
    def assign(self, name: str, side: Side, context: BatchContext, progress: float) -> Assignment:
        """Assignment of persons and cells from the current predictions.

        Args:
            name: "one2many" or "one2one".
            side: outputs of that assignment.
            context: the batch.
            progress: share of the training that is over.
        """
        targets, found = context.targets, context.found
        num_cells = context.centres.shape[1]
        person, column = found.valid.nonzero(as_tuple=True)
        cell = found.cell[person, column]
        some = zip(torch.split(person, AT_ONCE), torch.split(cell, AT_ONCE))
        keypoints = torch.cat([predicted_poses(side, targets.image[p], c, context)[-1][0] for p, c in some])
        labelled = targets.keypoints[person][..., 2] > 0
        error = oks_error(keypoints, targets.keypoints[person], targets.area[person], self.sigmas.to(keypoints.device))
        similarity = mean_over_labelled(kernel(error, schedule(self.kernel_dof, progress)), labelled)
        ranked_by = self.pose_quality(side, similarity, keypoints, person, cell, context)
        score = side.scores[targets.image[person], targets.category[person], cell].sigmoid()
        rank = assigner.alignment(score, ranked_by, self.alpha, self.beta)
        rank = rank.new_zeros(found.cell.shape).index_put((person, column), rank)
        if name == "one2many":
            chosen = assigner.one_to_many(rank, found, targets.image, num_cells, self.topk)
            p, c = chosen.nonzero(as_tuple=True)
            # the best cell of a person learns 1, the others their rank beside it
            target = rank[p, c] / (rank * chosen).amax(1).clamp(min=torch.finfo(rank.dtype).tiny)[p]
        else:
            column_of = assigner.one_to_one(rank, found, targets.image, num_cells)
            p = (column_of != NO_CELL).nonzero(as_tuple=True)[0]
            c = column_of[p]
            target = torch.ones_like(rank[p, c])
        return Assignment(p, found.cell[p, c], target)

    def _pose_terms(self, side: Side, pairs: Assignment, context: BatchContext) -> dict[str, Tensor]:
        """Pose, visibility and box loss by name; each person weighs the same, however many cells learn it."""
        targets = context.targets
        image, cell = targets.image[pairs.person], pairs.cell
        wanted = targets.keypoints[pairs.person]
        labelled = wanted[..., 2] > 0
        weight = self._weight(pairs, len(targets.image))
        losses = []
        for keypoints, spread in predicted_poses(side, image, cell, context):
            losses.append(self.placed_loss(keypoints, spread, wanted, targets.area[pairs.person]))
        pose = losses[-1] + self.aux_loss_gain * sum(losses[:-1], torch.zeros_like(weight))
        logits = side.visibility[image, :, cell]
        visible = F.binary_cross_entropy_with_logits(logits, labelled.float(), reduction="none").mean(1)
        terms = {
            "pose_loss": self.pose_gain * (pose * weight).sum(),
            "kobj_loss": self.visibility_gain * (visible * weight).sum(),
        }
        if side.box is not None:
            sides = side.box[image, :, cell]  # (D, 4)
            boxes = decode_boxes(sides.T[None], context.centres.T[cell].T, context.strides.T[cell].T)[0].T
            terms["box_loss"] = self.box_gain * ((1 - box_overlap(boxes, targets.box[pairs.person])[1]) * weight).sum()
        return terms

    def _sampling_loss(self, one2many: Side, pairs: Assignment, refinement: Tensor, context: BatchContext) -> Tensor:
        """Pose loss of the deployed refinement maps where the one-to-many assignment's keypoints sample them.

        A person's one cell samples each keypoint at one place; its ten one-to-many cells sample at ten, and what the maps say
        there is right or wrong whoever asks. The one-to-many branch learns nothing here.
        """
        targets = context.targets
        image, wanted = targets.image[pairs.person], targets.keypoints[pairs.person]
        keypoints, spread = predicted_poses(replace(one2many, refinement=None), image, pairs.cell, context)[0]
        stride = context.strides.T[pairs.cell]
        moved, wider = refine_picked(keypoints.detach(), refinement, image, context.level[pairs.cell], stride)
        loss = self.placed_loss(moved, spread.detach() + wider, wanted, targets.area[pairs.person])
        weight = self._weight(pairs, len(targets.image))
        return self.pose_gain * (loss * weight).sum()

    @staticmethod
    def _weight(pairs: Assignment, persons: int) -> Tensor:
        """(D,) weights of pairs: each person weighs the same, however many cells learn it, and all sum to 1."""
        count = torch.bincount(pairs.person, minlength=persons)
        weight = 1 / count[pairs.person].float()
        return weight / avg_factor(weight.sum())

    @staticmethod
    def _score_loss(scores: Tensor, pairs: Assignment, context: BatchContext) -> Tensor:
        """Binary cross-entropy of all cells but those in ignore regions, per unit of positive target."""
        wanted = torch.zeros_like(scores)
        wanted[context.targets.image[pairs.person], context.targets.category[pairs.person], pairs.cell] = pairs.target
        keep = context.background[:, None] | (wanted > 0)
        loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        return (loss * keep).sum() / avg_factor(wanted.sum())

    def _heatmap_loss(self, logits: Tensor, context: BatchContext) -> Tensor:
        """Penalty-reduced focal loss of keypoint heatmaps (CornerNet, arXiv 1808.01244, eq. 1), per labelled keypoint."""
        wanted = heatmap_targets(context.targets, self.sigmas, context.shapes[0], self.strides[0], logits)
        keep = context.background[:, None, : logits.shape[2]]
        peak = wanted == 1
        margin = torch.where(peak, logits, -logits)  # log-odds of being right
        weight = torch.where(peak, 1.0, (1 - wanted) ** 4 * keep)
        loss = weight * (-margin).sigmoid().square() * -F.logsigmoid(margin)  # no clamped log: it has no gradient at -12
        return loss.sum() / avg_factor(peak.sum())


def heatmap_targets(targets: Targets, sigmas: Tensor, shape: tuple[int, int], stride: float, like: Tensor) -> Tensor:
    """Gaussian bumps on the finest level, one map per keypoint.

    The bump's width is the keypoint's OKS tolerance, held between 0.6 and 2 cells, so a map is as sharp as the metric asks
    and the level allows. Where bumps meet the higher one stays.

    Args:
        targets: persons of the batch.
        sigmas: (K,) OKS sigmas.
        shape: (height, width) of the level in cells.
        stride: pixels per cell.
        like: (B, K, height * width), gives shape, type and device.

    Returns:
        (B, K, height * width) in [0, 1]; exactly 1 in the cell that holds a labelled keypoint.
    """
    k, (h, w) = like.shape[1], shape
    out = like.new_zeros(like.shape)  # row-major also where the backbone works in channels_last
    reach = torch.arange(-4, 5, device=like.device)
    dx, dy = reach.repeat(9), reach.repeat_interleave(9)
    person, keypoint = (targets.keypoints[..., 2] > 0).nonzero(as_tuple=True)
    xy = targets.keypoints[person, keypoint, :2]
    spread = targets.area[person].sqrt() * 2 * sigmas.to(like.device)[keypoint]
    column, row = (xy / stride).floor().long().unbind(1)
    std = (spread / stride).clamp(0.6, 2.0)[:, None]
    value = torch.exp(-(dx * dx + dy * dy) / (2 * std * std))  # (J, 81)
    x, y = column[:, None] + dx, row[:, None] + dy
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    where = (targets.image[person, None] * k + keypoint[:, None]) * (h * w) + y * w + x
    out.view(-1).scatter_reduce_(0, where[inside], value[inside].to(out.dtype), "amax")
    return out
