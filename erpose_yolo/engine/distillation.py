"""``distill_model=``: a teacher beside the network in training, of which nothing gets into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import PoseModel, load_checkpoint
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK
from ultralytics.utils.torch_utils import torch_distributed_zero_first

from erpose_yolo.data.skeletons import keypoint_names
from erpose_yolo.export.safetensors import is_weights, load_weights
from erpose_yolo.method.decode import HeadOutputs
from erpose_yolo.method.distillation import TeacherOutputs, distillation_loss
from erpose_yolo.nn.network import Criterion, ERPoseModel


class Teacher:
    """A frozen pose model of Ultralytics or of ours, read cell by cell.

    Args:
        weights: checkpoint, or safetensors file of ours.
        student: network that learns from it.

    Attributes:
        classes: (ours, theirs), class indices that mean the same.

    Raises:
        ValueError: no pose model, or one whose cells, keypoints, channels or classes are not the student's.
    """

    def __init__(self, weights: str | Path, student: ERPoseModel) -> None:
        with torch_distributed_zero_first(LOCAL_RANK):  # one process downloads
            model: Any = load_weights(str(weights)) if is_weights(weights) else load_checkpoint(weights)[0]
        if not isinstance(model, PoseModel):
            raise ValueError(f"distill_model={weights}: a {type(model).__name__} is no pose model. Give one, as yolo26n-pose.pt.")
        k = student.kpt_shape[0]
        for what, ours, theirs in (
            ("strides", student.stride.tolist(), model.stride.tolist()),
            ("keypoints", k, model.model[-1].kpt_shape[0]),
            ("keypoints", *(keypoint_names(getattr(m, "kpt_names", None), k) for m in (student, model))),
            ("input channels", *(m.yaml.get("channels", 3) for m in (student, model))),
        ):
            if ours != theirs and None not in (ours, theirs):
                raise ValueError(
                    f"distill_model={weights}: the teacher has {what} {theirs}, the student {ours}. Give a teacher with the same."
                )
        self.classes = _shared_classes(student.names, model.names)
        if not self.classes[0]:
            theirs, ours = (", ".join(list(of.names.values())[:5]) for of in (model, student))
            raise ValueError(
                f"distill_model={weights}: the teacher's {len(model.names)} classes ({theirs} ...) are none of the student's "
                f"{len(student.names)} ({ours} ...). Give a teacher that knows one of them by name, or as many."
            )
        device = next(student.parameters()).device
        self.model = model.float().eval().requires_grad_(False).to(device)
        if isinstance(model, ERPoseModel):
            self.model.model[-1].layout = "cells"

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Itself: the averaged model is a deep copy of the one in training, and there is one teacher."""
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutputs:
        """Read images (B, ch, H, W) in 0 to 1."""
        head = self.model.model[-1]
        rows, raw = self.model(images)
        one2one = True
        if isinstance(raw, HeadOutputs):
            assert raw.one2one_scores is not None
            logits, flat = raw.one2one_scores, rows[..., 6:].transpose(1, 2)
        else:
            one2one = "one2one" in raw
            raw = raw["one2one"] if one2one else raw
            logits, flat = raw["scores"], head.kpts_decode(raw["kpts"])
        points = flat.unflatten(1, tuple(head.kpt_shape))  # (B, K, D, A)
        visibility = points[:, :, 2] if points.shape[2] == 3 else None
        return TeacherOutputs(logits[:, self.classes[1]].sigmoid(), points[:, :, :2], visibility, one2one)


class DistillingCriterion(Criterion):
    """The loss of labels, and beside it in training that of a teacher's poses.

    Args:
        model: student.
        teacher: of it.
        updates: epochs that are over.
    """

    def __init__(self, model: ERPoseModel, teacher: Teacher, updates: int = 0) -> None:
        super().__init__(model)
        self.teacher, self.updates = teacher, updates
        self.gain = model.args.dis / DEFAULT_CFG.dis

    def __call__(self, preds: HeadOutputs | tuple[Tensor, HeadOutputs], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch as Criterion has it; in training with a second entry, and ``dis_loss`` among the terms."""
        loss, items = super().__call__(preds, batch)
        if isinstance(preds, tuple):
            return loss, items
        distillation = self.gain * distillation_loss(self.loss, preds, self.teacher(batch["img"]), self.teacher.classes[0])
        return torch.cat((loss, distillation[None] * len(batch["img"]))), {**items, "dis_loss": distillation.detach()}


def _shared_classes(ours: dict[int, str], theirs: dict[int, str]) -> tuple[list[int], list[int]]:
    """Classes of the same name; where no name is shared and both have as many, those of the same number."""
    names = [[str(name).strip().lower() for name in of.values()] for of in (ours, theirs)]
    pairs = [(i, names[1].index(name)) for i, name in enumerate(names[0]) if name in names[1]]
    if not pairs and len(ours) == len(theirs):
        pairs = [(i, i) for i in range(len(ours))]
    return [i for i, _ in pairs], [j for _, j in pairs]
