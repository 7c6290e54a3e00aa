"""Losses of ER-Pose: smooth OKS, scores that learn pose quality, joint heatmaps, visibility.

Plain torch on tensors; nothing here knows Ultralytics. All arithmetic is float32 whatever the autocast type.

Shapes: B images, A cells of all levels, K joints, N persons of the batch in a row, D assigned (person, cell) pairs.
Units: pixels of the network input, unless a name says cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from erpose_yolo import assigner
from erpose_yolo.assigner import NO_CELL, Candidates
from erpose_yolo.config import LIKELIHOODS, Settings, at
from erpose_yolo.decode import decode_boxes, decode_joints, default_margins, derive_boxes, make_cells, refine_picked
from erpose_yolo.oks import kernel, mean_over_labelled, oks_error

# A spread of exp(-4) tolerances is a twentieth of the distance at which OKS .95 is lost: nothing is gained below it,
# and the bound keeps the gradient of a small person's joint finite.
MIN_LOG_SPREAD = -4.0
AT_ONCE = 32768  # candidates whose poses are looked up at a time: crowds have hundreds of thousands
LOSS_NAMES = ("pose_loss", "kobj_loss", "cls_loss", "o2o_loss", "heat_loss")


@dataclass(frozen=True)
class Targets:
    """Persons of a batch, flattened over images.

    Attributes:
        image: (N,) image index.
        joints: (N, K, 3) pixels and visibility; at least one joint of each labelled.
        box: (N, 4) corners in pixels.
        area: (N,) object area in square pixels (oks.object_area).
        category: (N,) class index.
        ignore_image: (I,) image index of each ignore region.
        ignore_box: (I, 4) corners in pixels; cells inside are neither positives nor background.
    """

    image: Tensor
    joints: Tensor
    box: Tensor
    area: Tensor
    category: Tensor
    ignore_image: Tensor
    ignore_box: Tensor


def bounded(log_spread: Tensor) -> Tensor:
    """Raw spread output held above MIN_LOG_SPREAD, smoothly, so that its gradient never dies."""
    return MIN_LOG_SPREAD + F.softplus(log_spread - MIN_LOG_SPREAD)


def smooth_oks_loss(error: Tensor, log_spread: Tensor) -> Tensor:
    """Smooth OKS loss of single joints.

    OKS measures the distance r = sqrt(2e) in tolerances. Where exp(-r^2/2) has lost its gradient a few tolerances away
    and is flat at the joint, exp(-(sqrt(1 + (r/b)^2) - 1)) has the same value and curvature at r = 0 but an
    exponential tail. Its negative logarithm is quadratic within b and linear beyond: the gradient is bounded by 1/b and
    never vanishes. The spread b (in tolerances) is predicted per joint while training; the log b terms make the whole a
    likelihood, so b follows the error down and the loss sharpens itself.

    Args:
        error: (...) e_k of the OKS formula.
        log_spread: (...) raw output; log b is it, held above MIN_LOG_SPREAD by a softplus.

    Returns:
        (...) loss.
    """
    log_b = bounded(log_spread)
    ratio = 2 * error * torch.exp(-2 * log_b)
    return ratio / (torch.sqrt(1 + ratio) + 1) + 2 * log_b


def laplace_loss(error: Tensor, log_spread: Tensor) -> Tensor:
    """Negative log-likelihood of an isotropic Laplace law in tolerances: r/b + 2 log b. Kinked at the joint."""
    log_b = bounded(log_spread)
    return torch.sqrt(2 * error + 1e-6) * torch.exp(-log_b) + 2 * log_b


def plain_oks_loss(error: Tensor, log_spread: Tensor) -> Tensor:
    """1 - exp(-e), the loss of YOLO-Pose (arXiv 2204.06806). Its gradient vanishes far away."""
    return 1 - kernel(error)


JOINT_LOSSES = {"smooth_oks": smooth_oks_loss, "laplace": laplace_loss, "oks": plain_oks_loss}


def pose_loss(kind: str, error: Tensor, log_spread: Tensor, labelled: Tensor, oks_gain: float = 0.0) -> Tensor:
    """Loss of whole poses.

    Args:
        kind: one of config.CHOICES["pose_loss"]; "log_oks" is -log of the mean OKS kernel, the others are means over
            labelled joints.
        error: (D, K) e_k of the OKS formula.
        log_spread: (D, K).
        labelled: (D, K) bool.
        oks_gain: of 1 - OKS, added to the likelihoods. They pull far joints; where a pose of a person never seen before
            can be one of two, they settle between the two, and the metric rewards a choice.

    Returns:
        (D,).
    """
    if kind == "log_oks":
        return -torch.log(mean_over_labelled(kernel(error, 1.0), labelled).clamp(min=1e-9))
    loss = JOINT_LOSSES[kind](error, log_spread)
    if oks_gain and kind in LIKELIHOODS:
        loss = loss + oks_gain * plain_oks_loss(error, log_spread)
    return mean_over_labelled(loss, labelled)


def normaliser(count: Tensor) -> Tensor:
    """What a sum of losses is divided by: the count it was taken over, at least 1.

    DistributedDataParallel averages gradients over processes. Divided by each process's own count, a person would weigh
    more where there are few others; divided by the mean count, the average is the gradient of the joint batch. So every
    process must get here in training, persons or not. Validation gives each process its own number of batches: no mean.
    """
    if not (torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total.clamp(min=1) / distributed.get_world_size()


@dataclass(frozen=True)
class Pairs:
    """Assigned pairs: person index, cell index in its image, and the score target. All (D,)."""

    person: Tensor
    cell: Tensor
    target: Tensor


@dataclass(frozen=True)
class Scene:
    """What assignment and losses of one batch share: targets, the grid, ignore regions, candidates."""

    targets: Targets
    shapes: Sequence[tuple[int, int]]
    centres: Tensor  # (2, A) pixels
    strides: Tensor  # (1, A) pixels
    level: Tensor  # (A, 3) first cell, height and width in cells of each cell's level
    background: Tensor  # (B, A) bool: may be taught to be background, i.e. lies in no ignore region
    found: Candidates


def branch_outputs(outputs: dict[str, Tensor], assignment: str) -> dict[str, Tensor]:
    """Outputs of the pose branch that an assignment trains: its own where there is one, else the shared one."""
    own = f"{assignment}_"
    if own + "offsets" not in outputs:
        own = ""
    return {k: outputs[own + k] for k in ("offsets", "visibility", "spread", "field", "box") if own + k in outputs}


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
        settings: the ``erpose:`` block.
        sigmas: (K,) OKS sigmas.
        strides: pixels per cell of each level, finest first.
        num_classes: C.
    """

    def __init__(self, settings: Settings, sigmas: Tensor, strides: Sequence[float], num_classes: int = 1) -> None:
        self.settings = settings
        self.sigmas = sigmas.float()
        self.strides = [float(s) for s in strides]
        self.num_classes = num_classes

    def __call__(
        self, outputs: dict[str, Tensor], targets: Targets, shapes: Sequence[tuple[int, int]], progress: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            outputs: raw head outputs: ``offsets`` (B, K, 2, A), ``spread`` (B, K, A), ``visibility`` (B, K, A),
                ``one2many`` and ``one2one`` (B, C, A) logits (either may be missing), ``heatmaps`` (B, K, A_h) logits of
                the first levels (may be missing), ``field`` (B, 3K, A), maps that refine the joints
                (decode.refine_joints, may be missing), ``box`` (B, 4, A) (may be missing).
            targets: persons and ignore regions.
            shapes: (height, width) in cells of each level.
            progress: share of the training that is over, drives the schedules.

        Returns:
            Scalar loss (a mean over persons and images, not multiplied by the batch size) and its detached, gained terms
            by name.
        """
        s = self.settings
        outputs = {k: v.float() for k, v in outputs.items()}
        scene = self._scene(outputs, targets, shapes)
        dense = at(s.dense_weight, progress) if s.supervision == "dual" else float(s.supervision == "one2many")
        # every output is in the graph, persons or not (distributed training needs it); no value of it is read, as 0 * inf is NaN
        zero = sum((v[:0].sum() for v in outputs.values()), torch.zeros((), device=scene.centres.device))
        items: dict[str, Tensor] = dict.fromkeys(LOSS_NAMES, zero)

        looks: tuple[dict[str, Tensor], Pairs] | None = None
        for name, share, label in (("one2many", dense, "cls_loss"), ("one2one", 1 - dense, "o2o_loss")):
            if name not in outputs:
                continue
            branch = branch_outputs(outputs, name)
            pairs = self.assign(name, outputs[name], branch, scene, progress)
            items[label] = s.score_gain * share * self._score_loss(outputs[name], pairs, scene)
            for key, value in self._pose_terms(branch, pairs, scene).items():
                items[key] = items.get(key, zero) + share * value
            if looks is not None and s.look_gain and "one2one_field" in outputs:
                items["pose_loss"] = items["pose_loss"] + share * self._look_loss(*looks, branch, scene)
            looks = branch, pairs
        if "heatmaps" in outputs:
            items["heat_loss"] = s.heatmap_gain * self._heatmap_loss(outputs["heatmaps"], scene)
        if "box" in outputs:
            items.setdefault("box_loss", zero)
        return sum(items.values(), zero), {k: v.detach() for k, v in items.items()}

    def _scene(self, outputs: dict[str, Tensor], targets: Targets, shapes: Sequence[tuple[int, int]]) -> Scene:
        offsets = outputs["offsets"]
        centres, strides = make_cells(shapes, self.strides, offsets)
        if offsets.shape[3] != centres.shape[1] or offsets.shape[1] != targets.joints.shape[1]:
            raise ValueError(
                f"offsets must be (B, K, 2, A) with K={targets.joints.shape[1]} joints of the targets and "
                f"A={centres.shape[1]} cells of the levels {list(shapes)}, got {tuple(offsets.shape)}"
            )
        background = outside_boxes(targets.ignore_image, targets.ignore_box, shapes, self.strides, len(offsets))
        found = assigner.find_candidates(
            targets.joints, targets.area, shapes, self.strides, self.settings.window, self.settings.gate
        )
        counts = torch.tensor([h * w for h, w in shapes])
        levels = torch.tensor([[int(counts[:i].sum()), h, w] for i, (h, w) in enumerate(shapes)])
        level = levels.repeat_interleave(counts, 0).to(offsets.device)
        return Scene(targets, shapes, centres, strides, level, background, found)

    @torch.no_grad()
    def assign(self, name: str, scores: Tensor, branch: dict[str, Tensor], scene: Scene, progress: float) -> Pairs:
        """Pairs of persons and cells from the current predictions.

        Args:
            name: "one2many" or "one2one".
            scores: (B, C, A) logits of that assignment.
            branch: outputs of the pose branch that belongs to it.
            scene: the batch.
            progress: share of the training that is over.
        """
        s, targets, found = self.settings, scene.targets, scene.found
        num_cells = scene.centres.shape[1]
        person, column = found.valid.nonzero(as_tuple=True)
        cell = found.cell[person, column]
        some = zip(torch.split(person, AT_ONCE), torch.split(cell, AT_ONCE))
        joints = torch.cat([self._poses(branch, p, c, scene)[-1][0] for p, c in some])
        labelled = targets.joints[person][..., 2] > 0
        error = oks_error(joints, targets.joints[person], targets.area[person], self.sigmas.to(joints.device))
        similarity = mean_over_labelled(kernel(error, at(s.tail, progress)), labelled)
        if s.assigner == "oks":
            ranked_by = similarity
        elif s.assigner == "iou":
            boxes = self._boxes(branch, joints, person, cell, scene)
            ranked_by = box_overlap(boxes, targets.box[person])[0].clamp(min=0)
        else:
            away = (found.centre[person, column] - assigner.labelled_extent(targets.joints)[0][person]).norm(dim=-1)
            ranked_by = torch.exp(-away / targets.area[person].sqrt())
        score = scores[targets.image[person], targets.category[person], cell].sigmoid()

        def table(values: Tensor) -> Tensor:
            return values.new_zeros(found.cell.shape).index_put((person, column), values)

        rank, quality = table(assigner.alignment(score, ranked_by, s.alpha, s.beta)), table(similarity)
        floor = at(s.score_floor, progress)
        if name == "one2many":
            chosen = assigner.one_to_many(rank, found, targets.image, num_cells, s.topk)
            p, c = chosen.nonzero(as_tuple=True)
            # cells of one person share its best quality in proportion to their rank
            best = (rank * chosen).amax(1).clamp(min=torch.finfo(rank.dtype).tiny)[p]
            top = (quality * chosen).amax(1)[p]
            target = (rank[p, c] / best) * (floor + (1 - floor) * top)
        else:
            column_of = assigner.one_to_one(rank, found, targets.image, num_cells)
            p = (column_of != NO_CELL).nonzero(as_tuple=True)[0]
            c = column_of[p]
            target = floor + (1 - floor) * quality[p, c]
        return Pairs(p, found.cell[p, c], target if s.score_target == "oks" else torch.ones_like(target))

    @staticmethod
    def _poses(branch: dict[str, Tensor], person: Tensor, cell: Tensor, scene: Scene) -> list[tuple[Tensor, Tensor]]:
        """Poses that cells predict in the images of the persons they are paired with.

        Returns:
            Joints (D, K, 2) in pixels and log spread (D, K): the deployed ones last, before them those not yet refined. The
            place of a look-up is no matter of what was found there: the coarse joints have a loss of their own.
        """
        image, stride = scene.targets.image[person], scene.strides.T[cell]
        joints = decode_joints(branch["offsets"][image, :, :, cell], scene.centres.T[cell], stride)
        spread = branch["spread"][image, :, cell]
        if "field" not in branch:
            return [(joints, spread)]
        moved, wider = refine_picked(joints.detach(), branch["field"], image, scene.level[cell], stride)
        return [(joints, spread), (moved, spread + wider)]

    def _boxes(self, branch: dict[str, Tensor], joints: Tensor, person: Tensor, cell: Tensor, scene: Scene) -> Tensor:
        """(D, 4) corners in pixels, of the learned branch where there is one, else derived from the joints."""
        if "box" in branch:
            sides = branch["box"][scene.targets.image[person], :, cell]  # (D, 4)
            return decode_boxes(sides.T[None], scene.centres.T[cell].T, scene.strides.T[cell].T)[0].T
        visible = (scene.targets.joints[person][..., 2] > 0).to(joints.dtype)
        margins = default_margins(joints.shape[1]).to(joints.device)
        return derive_boxes(joints.permute(1, 2, 0)[None], visible.T[None], margins)[0].T

    def _pose_terms(self, branch: dict[str, Tensor], pairs: Pairs, scene: Scene) -> dict[str, Tensor]:
        """Pose, visibility and box loss by name; each person weighs the same, however many cells learn it."""
        s, targets = self.settings, scene.targets
        image, cell = targets.image[pairs.person], pairs.cell
        wanted = targets.joints[pairs.person]
        labelled = wanted[..., 2] > 0
        weight = self._weight(pairs, len(targets.image))
        losses = []
        for joints, spread in self._poses(branch, pairs.person, cell, scene):
            error = oks_error(joints, wanted, targets.area[pairs.person], self.sigmas.to(joints.device))
            losses.append(pose_loss(s.pose_loss, error, spread, labelled, s.oks_gain))
        pose = losses[-1] + s.coarse_gain * sum(losses[:-1], torch.zeros_like(weight))
        logits = branch["visibility"][image, :, cell]
        visible = F.binary_cross_entropy_with_logits(logits, labelled.float(), reduction="none").mean(1)
        terms = {
            "pose_loss": s.pose_gain * (pose * weight).sum(),
            "kobj_loss": s.visibility_gain * (visible * weight).sum(),
        }
        if "box" in branch:
            boxes = self._boxes(branch, joints, pairs.person, cell, scene)
            terms["box_loss"] = s.box_gain * ((1 - box_overlap(boxes, targets.box[pairs.person])[1]) * weight).sum()
        return terms

    def _look_loss(self, dense: dict[str, Tensor], pairs: Pairs, branch: dict[str, Tensor], scene: Scene) -> Tensor:
        """Pose loss of the deployed maps where the dense assignment's joints look them up.

        A person's one cell looks at each of its joints from one place; its ten dense cells look from ten, and what the
        maps say there is right or wrong whoever asks. The dense branch learns nothing here.
        """
        s, targets = self.settings, scene.targets
        image, wanted = targets.image[pairs.person], targets.joints[pairs.person]
        joints, spread = self._poses({k: v for k, v in dense.items() if k != "field"}, pairs.person, pairs.cell, scene)[0]
        stride = scene.strides.T[pairs.cell]
        moved, wider = refine_picked(joints.detach(), branch["field"], image, scene.level[pairs.cell], stride)
        error = oks_error(moved, wanted, targets.area[pairs.person], self.sigmas.to(moved.device))
        loss = pose_loss(s.pose_loss, error, spread.detach() + wider, wanted[..., 2] > 0, s.oks_gain)
        weight = self._weight(pairs, len(targets.image))
        return s.pose_gain * s.look_gain * (loss * weight).sum()

    @staticmethod
    def _weight(pairs: Pairs, persons: int) -> Tensor:
        """(D,) weights of pairs: each person weighs the same, however many cells learn it, and all sum to 1."""
        count = torch.bincount(pairs.person, minlength=persons)
        weight = 1 / count[pairs.person].float()
        return weight / normaliser(weight.sum())

    @staticmethod
    def _score_loss(scores: Tensor, pairs: Pairs, scene: Scene) -> Tensor:
        """Binary cross-entropy of all cells but those in ignore regions, per unit of positive target."""
        wanted = torch.zeros_like(scores)
        wanted[scene.targets.image[pairs.person], scene.targets.category[pairs.person], pairs.cell] = pairs.target
        keep = scene.background[:, None] | (wanted > 0)
        loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        return (loss * keep).sum() / normaliser(wanted.sum())

    def _heatmap_loss(self, logits: Tensor, scene: Scene) -> Tensor:
        """Penalty-reduced focal loss of joint heatmaps (CornerNet, arXiv 1808.01244, eq. 1), per labelled joint."""
        wanted = heatmap_targets(scene.targets, self.sigmas, scene.shapes, self.strides, logits)
        keep = scene.background[:, None, : logits.shape[2]]
        peak = wanted == 1
        margin = torch.where(peak, logits, -logits)  # log-odds of being right
        weight = torch.where(peak, 1.0, (1 - wanted) ** 4 * keep)
        loss = weight * (-margin).sigmoid().square() * -F.logsigmoid(margin)  # no clamped log: it has no gradient at -12
        return loss.sum() / normaliser(peak.sum())


def heatmap_targets(
    targets: Targets, sigmas: Tensor, shapes: Sequence[tuple[int, int]], strides: Sequence[float], like: Tensor
) -> Tensor:
    """Gaussian bumps, one map per joint, on as many levels as ``like`` covers.

    The bump's width is the joint's OKS tolerance, held between 0.6 and 2 cells, so a map is as sharp as the metric asks
    and the level allows. Where bumps meet the higher one stays.

    Returns:
        (B, K, A_h) in [0, 1]; exactly 1 in the cell that holds a labelled joint.
    """
    b, k, length = like.shape
    out = like.new_zeros(like.shape)  # row-major also where the trunk works in channels_last
    reach = torch.arange(-4, 5, device=like.device)
    dx, dy = reach.repeat(9), reach.repeat_interleave(9)
    person, joint = (targets.joints[..., 2] > 0).nonzero(as_tuple=True)
    xy = targets.joints[person, joint, :2]
    spread = targets.area[person].sqrt() * 2 * sigmas.to(like.device)[joint]
    first = 0
    for (h, w), s in zip(shapes, strides, strict=True):
        if first >= length:
            break
        column, row = (xy / s).floor().long().unbind(1)
        std = (spread / s).clamp(0.6, 2.0)[:, None]
        value = torch.exp(-(dx * dx + dy * dy) / (2 * std * std))  # (J, 81)
        x, y = column[:, None] + dx, row[:, None] + dy
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        where = (targets.image[person, None] * k + joint[:, None]) * length + first + y * w + x
        out.view(-1).scatter_reduce_(0, where[inside], value[inside].to(out.dtype), "amax")
        first += h * w
    return out
