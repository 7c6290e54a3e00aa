"""YOLO26-pose networks as ER-Pose networks, without training.

The one-to-one side of the stock head ``Pose26`` is exactly representable in ours: score towers of the same layers, a pose
tower of two plain 3 x 3 convolutions, keypoints as offsets from the cell centre. So scores and keypoints stay the same numbers;
the box branch goes, and boxes are derived from keypoints. Refinement and spreads, which that head lacks, start neutral.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Pose26
from ultralytics.nn.tasks import PoseModel

from erpose_yolo.method.decode import OFFSET_CELLS
from erpose_yolo.nn import HEAD
from erpose_yolo.nn.head import PoseBranch
from erpose_yolo.nn.network import ERPoseModel

VISIBLE = math.log(99)  # logit of keypoints that have no visibility (two columns): all count
_CARRIED = ("names", "kpt_names", "kpt_oks_sigmas", "skeleton", "flip_idx", "args", "task", "pt_path")
_KEPT_ROWS = ("backbone", "scales", "scale", "activation", "depth_multiple", "width_multiple", "nc", "kpt_shape", "channels")


def is_yolo26_pose(model: object) -> bool:
    """Tell whether this is a stock pose network with the head of YOLO26."""
    return isinstance(model, PoseModel) and isinstance(model.model[-1], Pose26)


def from_yolo26_pose(source: PoseModel) -> ERPoseModel:
    """Build the ER-Pose network that gives the one-to-one scores and keypoints of a YOLO26-pose network.

    Persons are sorted by their score (``confidence`` of the head), as the stock head sorts them: the spreads, of which the other
    choice needs to know, are untrained. Training keeps that choice: a short fine-tuning leaves the spreads half trained, and would
    take every person below the usual thresholds. After a long one set ``confidence`` to "expected_oks" and save.

    Args:
        source: see :func:`is_yolo26_pose`; any K, D and classes. It stays as it is.

    Returns:
        Network in float32 and evaluation mode.

    Raises:
        ValueError: no one-to-one head, fused, or other layers than those of YOLO26.
    """
    head: Any = source.model[-1]
    if getattr(head, "one2one_cv4", None) is None:
        raise ValueError("it has no one-to-one head ('end2end: True' was missing in the YAML that it was trained from)")
    if head.cv4 is None:
        raise ValueError("it has been fused for inference and lost its one-to-many head; give the checkpoint before fusing")
    pose_channels, score_channels = head.cv4[0][0].conv.out_channels, head.cv3[0][-1].in_channels
    levels = source.yaml["head"][-1][0]
    cfg = {
        **{k: v for k, v in source.yaml.items() if k in _KEPT_ROWS},
        "head": [*source.yaml["head"][:-1], [levels, 1, HEAD, ["nc", "kpt_shape"]]],
        "nc": head.nc,
        "kpt_shape": list(head.kpt_shape),
        "erpose": {"tower": "plain", "tower_channels": [pose_channels, score_channels]},
        "yaml_file": source.yaml.get("yaml_file", "yolo26-pose.yaml"),
    }
    model = ERPoseModel(cfg, ch=cfg.get("channels", 3), nc=head.nc, data_kpt_shape=cfg["kpt_shape"], verbose=False)
    ours: Any = model.model[-1]
    try:
        for to, of in zip(model.model[:-1], source.model[:-1], strict=True):
            _copy(to, of)
        for branch, scores, of_scores, of_towers, of_keypoints in (
            (ours.pose, ours.one2many_score, head.cv3, head.cv4, head.cv4_kpts),
            (ours.one2one_pose, ours.one2one_score, head.one2one_cv3, head.one2one_cv4, head.one2one_cv4_kpts),
        ):
            _copy(scores, of_scores)
            _copy(branch.tower, of_towers)
            for conv, of in zip(branch.keypoints, of_keypoints, strict=True):
                _copy_keypoints(conv, of, branch, head.kpt_shape[1])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"its layers are not those of YOLO26-pose: {' '.join(str(error).split())[:200]}") from None
    ours.confidence = "score"
    for name in _CARRIED:
        if getattr(source, name, None) is not None:
            setattr(model, name, getattr(source, name))
    return model.eval()


def advice(model: nn.Module, weights: object) -> str:
    """What to do with a stock network that is no ER-Pose model and cannot become one, in one clause."""
    yaml = getattr(model, "yaml", None) or {}
    found = re.search(r"yolo(?:v?(8)|(11)|(26))([nsmlx])?", str(yaml.get("yaml_file", "")).lower())
    family, scale = (found[1] or found[2] or "", found[4]) if found else ("", None)
    name = f"erpose{family}-{scale or yaml.get('scale') or 'n'}.yaml"
    return f"take over its backbone and neck, and train: ERPose('{name}').load('{weights}')"


def _copy(to: nn.Module, of: nn.Module) -> None:
    """Copy parameters and buffers of the same names, all of them."""
    to.load_state_dict({k: v.detach().float() if v.is_floating_point() else v for k, v in of.state_dict().items()})


@torch.no_grad()
def _copy_keypoints(to: nn.Conv2d, of: nn.Conv2d, branch: PoseBranch, columns: int) -> None:
    """Reorder the rows of (x, y[, visibility]) per keypoint to x and y of all, then visibility; offsets in units of OFFSET_CELLS.

    Raises:
        ValueError: another number of keypoints or channels.
    """
    k = branch.num_keypoints

    def rows(values: Tensor, hidden: Tensor) -> Tensor:
        each = values.float().unflatten(0, (k, columns))
        return torch.cat(((each[:, :2] / OFFSET_CELLS).flatten(0, 1), each[:, 2] if columns == 3 else hidden))

    assert to.bias is not None and of.bias is not None
    if of.weight.shape[1:] != to.weight.shape[1:]:
        raise ValueError(f"keypoints of {of.in_channels} channels, not {to.in_channels}")
    to.weight.copy_(rows(of.weight, to.weight.new_zeros(k, *to.weight.shape[1:])))
    to.bias.copy_(rows(of.bias, to.bias.new_full((k,), VISIBLE)))
