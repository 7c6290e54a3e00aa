"""Pose distillation: cell by cell, a student learns the scores and poses of a teacher that has the same grid of cells.

Plain torch on tensors, as losses.py. Shapes: B images, A cells of all levels, C classes that both know, K keypoints, D cells at
which the teacher is sure of a person. Units: pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erpose_yolo.method.boxes import default_margins, derive_boxes
from erpose_yolo.method.decode import HeadOutputs
from erpose_yolo.method.losses import ERPoseLoss, Grid, Side, avg_factor, predicted_poses
from erpose_yolo.method.oks import object_area, oks_error

SURE = 0.02  # least score of a cell whose pose is worth learning
CELLS = 60  # of those at most in an image, the best: a crowd must not outweigh the rest of the batch
VISIBLE = 0.3  # least visibility of a keypoint whose place is worth learning


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of each cell; nothing of it needs a gradient.

    Attributes:
        scores: (B, C, A) probabilities.
        keypoints: (B, K, 2, A) pixels.
        visibility: (B, K, A) probabilities; None where the teacher has none, then every keypoint counts.
        one2one: whether the scores are one-to-one, a person being one cell.
    """

    scores: Tensor
    keypoints: Tensor
    visibility: Tensor | None
    one2one: bool


def distillation_loss(
    loss: ERPoseLoss, outputs: HeadOutputs, teacher: TeacherOutputs, classes: Sequence[int] | None = None
) -> Tensor:
    """Loss of a student's raw outputs against its teacher's.

    Scores learn those of all cells, keypoints and visibility those of the cells at which the teacher is sure of a person, weighed
    by the root of its score. Keypoints are the deployed ones. One-to-many scores are learnt by the student's one-to-many side: as
    one-to-one scores they would find each person several times.

    Args:
        loss: of the student; its sigmas, strides, gains and pose loss are used.
        outputs: of the student in training.
        teacher: of the same images.
        classes: (C,) index among the student's classes of each class of the teacher's scores; None for all in order.

    Returns:
        Scalar, a mean over persons, not multiplied by the batch size.

    Raises:
        ValueError: the teacher's cells or keypoints are not the student's.
    """
    assert outputs.one2one is not None and outputs.one2one_scores is not None
    side = Side.of(outputs.one2one, outputs.one2one_scores)
    b, k, _, cells = side.offsets.shape
    if teacher.keypoints.shape != (b, k, 2, cells):
        raise ValueError(f"the teacher has {tuple(teacher.keypoints.shape)} keypoints in cells, the student {(b, k, 2, cells)}")
    scores = side.scores if teacher.one2one or outputs.one2many_scores is None else outputs.one2many_scores.float()
    scores = scores if classes is None else scores[:, list(classes)]
    wanted = teacher.scores.float()
    score_loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / avg_factor(wanted.sum())

    best = wanted.amax(1)
    top = best.topk(min(CELLS, cells), 1)
    image, place = (top.values > SURE).nonzero(as_tuple=True)
    cell, weight = top.indices[image, place], top.values[image, place].sqrt()
    weight = weight / avg_factor(weight.sum())
    keypoints = teacher.keypoints[image, :, :, cell].float()  # (D, K, 2)
    sure = keypoints.new_ones(keypoints.shape[:2]) if teacher.visibility is None else teacher.visibility[image, :, cell].float()
    margins = default_margins(k).to(keypoints)
    area = object_area(derive_boxes(keypoints.permute(1, 2, 0)[None], sure.T[None], margins)[0].T)
    sigmas = loss.sigmas.to(keypoints.device)
    losses = [
        loss.pose_loss(oks_error(found, keypoints, area, sigmas), spread, sure > VISIBLE)
        for found, spread in predicted_poses(side, image, cell, Grid.of(outputs.shapes, loss.strides, side.offsets))
    ]
    each = loss.pose_gain * (losses[-1] + loss.aux_loss_gain * sum(losses[:-1], torch.zeros_like(weight)))
    if teacher.visibility is not None:
        logits = side.visibility[image, :, cell]
        each = each + loss.visibility_gain * F.binary_cross_entropy_with_logits(logits, sure, reduction="none").mean(1)
    return score_loss + (each * weight).sum()
