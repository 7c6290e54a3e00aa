"""Baselines that the method is compared with, as subclasses of its parts. They are no settings: none of them won.

from benchmarks.variants import VARIANTS, trainer_for
ERPose("erpose-n.yaml").train(trainer_for("IoU assignment"), data="coco-pose.yaml")
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules.block import RealNVP

from erpose_yolo import ERPoseHead, ERPoseModel
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.method.boxes import decode_boxes, default_margins, derive_boxes
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs
from erpose_yolo.method.losses import BatchContext, ERPoseLoss, Side, Targets, bounded, box_overlap, plain_oks_loss
from erpose_yolo.method.oks import mean_over_labelled, oks_error, tolerance
from erpose_yolo.nn.network import Criterion


class PlainOKSLoss(ERPoseLoss):
    """1 - OKS alone, the loss of YOLO-Pose: no tail beyond a few tolerances and no spread."""

    def pose_loss(self, error: Tensor, log_spread: Tensor, labelled: Tensor) -> Tensor:
        return mean_over_labelled(plain_oks_loss(error), labelled)


class ScoreHead(ERPoseHead):
    """Sorted by scores alone, where no likelihood has trained the spreads."""

    confidence = "score"


class IoULoss(ERPoseLoss):
    """Candidates ranked by the IoU of boxes: learned ones where there are any, else those derived from the poses."""

    def pose_quality(
        self, side: Side, similarity: Tensor, keypoints: Tensor, person: Tensor, cell: Tensor, context: BatchContext
    ) -> Tensor:
        if side.box is None:
            visible = (context.targets.keypoints[person][..., 2] > 0).to(keypoints.dtype)
            margins = default_margins(keypoints.shape[1]).to(keypoints.device)
            boxes = derive_boxes(keypoints.permute(1, 2, 0)[None], visible.T[None], margins)[0].T
        else:
            sides = side.box[context.targets.image[person], :, cell]  # (D, 4)
            boxes = decode_boxes(sides.T[None], context.centres.T[cell].T, context.strides.T[cell].T)[0].T
        return box_overlap(boxes, context.targets.box[person])[0].clamp(min=0)


class SharedPoseHead(ERPoseHead):
    """One pose branch that both assignments train."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.one2one_pose = None

    def poses(self, x: list[Tensor]) -> tuple[PoseOutputs | None, PoseOutputs, Tensor | None]:
        both, heatmaps = self.pose(x)
        return both, both, heatmaps


class RLELoss(ERPoseLoss):
    """Residual log-likelihood (arXiv 2107.11291), as YOLO26 has it, in place of the smooth OKS loss; 1 - OKS stays beside it."""

    flow: RealNVP

    def placed_loss(self, keypoints: Tensor, log_spread: Tensor, wanted: Tensor, area: Tensor) -> Tensor:
        sigmas, log_b = self.sigmas.to(keypoints.device), bounded(log_spread)
        away = (keypoints - wanted[..., :2]) / (tolerance(area, sigmas) * log_b.exp())[..., None]
        away = away.clamp(-100, 100)
        with torch.autocast(away.device.type, enabled=False):
            likelihood = self.flow.log_prob(away.flatten(0, 1)).view_as(log_b)
        # of both coordinates: log b and -log flow, and the residual's log 2b and |e|; log 2 is a constant
        loss = 4 * log_b - 2 * likelihood + away.abs().sum(-1)
        loss = loss + self.oks_gain * plain_oks_loss(oks_error(keypoints, wanted, area, sigmas))
        return mean_over_labelled(loss, wanted[..., 2] > 0)


class FlowHead(ERPoseHead):
    """With the flow that the residual log-likelihood trains along."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flow = RealNVP()


class OneToOneLoss(ERPoseLoss):
    """No one-to-many assignment; heatmaps stay."""

    def __call__(self, outputs: HeadOutputs, targets: Targets, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        self.one2many_weight = (0.0, 0.0)
        return super().__call__(replace(outputs, one2many=None, one2many_scores=None), targets, progress)


class PlainOKS(ERPoseModel):
    head_class, loss_class = ScoreHead, PlainOKSLoss


class IoUAssignment(ERPoseModel):
    loss_class = IoULoss


class SharedPose(ERPoseModel):
    head_class = SharedPoseHead


class RLE(ERPoseModel):
    head_class, loss_class = FlowHead, RLELoss

    def init_criterion(self) -> Criterion:
        criterion = super().init_criterion()
        criterion.loss.flow = self.model[-1].flow
        return criterion


class OneToOneOnly(ERPoseModel):
    loss_class = OneToOneLoss


class PlainScores(ERPoseModel):
    head_class = ScoreHead


VARIANTS: dict[str, type[ERPoseModel]] = {
    "plain OKS loss": PlainOKS,
    "RLE": RLE,
    "IoU assignment": IoUAssignment,
    "shared pose branch": SharedPose,
    "one-to-one only": OneToOneOnly,
    "confidence is the score": PlainScores,
}


def trainer_for(name: str) -> type[ERPoseTrainer]:
    """A trainer that builds a variant.

    Args:
        name: key of VARIANTS.
    """
    return type("VariantTrainer", (ERPoseTrainer,), {"model_class": VARIANTS[name]})
