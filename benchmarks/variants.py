"""Baselines that the method is compared with, as subclasses of its parts. They are no settings: none of them won.

from benchmarks.variants import VARIANTS, trainer_for
ERPose("erpose-n.yaml").train(trainer_for("IoU assignment"), data="coco-pose.yaml")
"""

from __future__ import annotations

from torch import Tensor

from erpose_yolo import ERPoseHead, ERPoseModel
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.method.boxes import decode_boxes, default_margins, derive_boxes
from erpose_yolo.method.decode import PoseOutputs
from erpose_yolo.method.losses import BatchContext, ERPoseLoss, Side, box_overlap, plain_oks_loss
from erpose_yolo.method.oks import mean_over_labelled


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


class PlainOKS(ERPoseModel):
    head_class, loss_class = ScoreHead, PlainOKSLoss


class IoUAssignment(ERPoseModel):
    loss_class = IoULoss


class SharedPose(ERPoseModel):
    head_class = SharedPoseHead


VARIANTS = {"plain OKS loss": PlainOKS, "IoU assignment": IoUAssignment, "shared pose branch": SharedPose}


def trainer_for(name: str) -> type[ERPoseTrainer]:
    """A trainer that builds a variant.

    Args:
        name: key of VARIANTS.
    """
    return type("VariantTrainer", (ERPoseTrainer,), {"model_class": VARIANTS[name]})
