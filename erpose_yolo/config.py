"""The ``erpose:`` block of a model YAML as one frozen, checked dataclass.

Each of the method's parts has a key that switches it off or swaps it, so that an ablation is a YAML and not a patch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES = {
    "tower": ("mixed", "plain", "depthwise"),
    "pose_branch": ("separate", "shared"),
    "offsets": ("cell", "centre"),
    "offset_unit": ("cell", "person"),
    "refine": ("local", "none"),
    "boxes": ("derived", "learned"),
    "heatmap_levels": ("finest", "all"),
    "assigner": ("oks", "iou", "centre"),
    "supervision": ("dual", "one2one", "one2many"),
    "pose_loss": ("smooth_oks", "laplace", "log_oks", "oks"),
    "score_target": ("oks", "hard"),
    "confidence": ("expected_oks", "score"),
}
LIKELIHOODS = ("smooth_oks", "laplace")  # pose losses that learn a spread


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of head, assigner and loss.

    Pairs are (value at the first epoch, value at the last), with a straight line between them.
    """

    # head
    tower: str = "mixed"  # convolutions of the pose tower, see head.pose_tower
    width: int = 64  # channels of the towers at scale n; other scales grow with the trunk
    pose_branch: str = "separate"  # a pose branch for each assignment of two, or one that both share
    confidence: str = "expected_oks"  # what persons are sorted by: score and the OKS that their spreads expect, or score
    offsets: str = "cell"  # joints as offsets from the cell, or from a person centre that the cell points at
    offset_unit: str = "cell"  # offsets count cells, or multiples of a size that the cell predicts for its person
    refine: str = "local"  # joints moved by an offset that is read where the cell put them, or left there
    boxes: str = "derived"  # from the joints, or by a learned box branch
    # assignment
    assigner: str = "oks"  # what ranks candidates beside the score: OKS, IoU of boxes, or nearness to the centre
    supervision: str = "dual"  # one-to-many and one-to-one, or only one of them
    steer: float = 1.0  # share of the one-to-one side's gradient that reaches the trunk beside the dense side's
    topk: int = 10  # most cells per person in the one-to-many assignment
    alpha: float = 0.5  # exponent of the score
    beta: float = 2.0  # exponent of the pose quality
    window: int = 7  # cells on a side of the candidate window, per level
    gate: tuple[float, float] = (2.0, 12.0)  # sqrt(area) in cells that a level takes
    tail: tuple[float, float] = (1.0, 8.0)  # tail of the OKS kernel that ranks and that makes score targets
    # losses
    pose_loss: str = "smooth_oks"
    oks_gain: float = 4.0  # of 1 - OKS beside a likelihood (smooth_oks, laplace)
    coarse_gain: float = 0.5  # of the pose loss of joints before they are refined, beside that of refined ones
    look_gain: float = 1.0  # of the pose loss of deployed maps where the dense assignment's joints look them up
    score_target: str = "oks"  # the confidence-mismatch term: score learns the OKS of its cell, or plain 1
    score_floor: tuple[float, float] = (1.0, 0.2)  # least score target of a positive, so that none starves
    dense_weight: tuple[float, float] = (0.8, 0.1)  # share of the one-to-many assignment; one-to-one has the rest
    pose_gain: float = 2.0
    score_gain: float = 1.0
    visibility_gain: float = 0.2
    heatmap_gain: float = 1.0  # 0 leaves the heatmaps out of the model
    heatmap_levels: str = "finest"
    box_gain: float = 2.0  # only with boxes: learned

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"erpose.{name}: {value!r} is not one of {', '.join(allowed)}. Mend the model YAML.")
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if field.name not in CHOICES and not all(_is_number(v) and v >= 0 for v in numbers):
                raise ValueError(f"erpose.{field.name}: {value!r} is not made of numbers >= 0. Mend the model YAML.")
        for name in ("topk", "width", "window"):
            value = getattr(self, name)
            if value % 1 or value < 1 or (name == "window" and value % 2 == 0):
                kind = "an odd whole number" if name == "window" else "a whole number"
                raise ValueError(f"erpose.{name}: {value} must be {kind} and at least 1. Mend the model YAML.")
            object.__setattr__(self, name, int(value))  # 7.0 is fine in a YAML, and not as a count
        for name in ("dense_weight", "score_floor", "steer"):
            value = getattr(self, name)
            if (max(value) if isinstance(value, tuple) else value) > 1:
                raise ValueError(f"erpose.{name}: {value} must lie in 0 to 1. Mend the model YAML.")
        if min(self.tail) <= 0:
            raise ValueError(f"erpose.tail: {self.tail} must be greater than 0. Mend the model YAML.")
        if self.gate[1] < 2 * self.gate[0]:
            raise ValueError(
                f"erpose.gate: {self.gate}: the second number must be at least twice the first, or people of some "
                "sizes fall between two levels. Mend the model YAML."
            )

    @classmethod
    def from_dict(cls, block: Mapping[str, Any] | None, source: str = "the model YAML") -> Settings:
        """Read the ``erpose:`` block.

        Args:
            block: the mapping as YAML gave it; None or empty for all defaults.
            source: file to name in errors.

        Raises:
            ValueError: an unknown key (named, with the nearest known one) or a value out of range.
        """
        if block is not None and not isinstance(block, Mapping):
            raise ValueError(f"erpose: in {source} must be a mapping of settings, got {block!r}.")
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in (block or {}).items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown key {key!r} in the erpose: block of {source}.{hint} Known: {', '.join(known)}.")
            default = known[key].default
            if isinstance(default, tuple):
                value = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
                if len(value) != 2:
                    raise ValueError(f"erpose.{key} in {source} must be one number or two, got {list(value)}.")
            values[key] = value
        return cls(**values)

    @property
    def deploys_spread(self) -> bool:
        """Inference reads the spreads, and the pose loss teaches them."""
        return self.confidence == "expected_oks" and self.pose_loss in LIKELIHOODS

    def to_dict(self) -> dict[str, Any]:
        """The block as plain YAML types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def at(pair: tuple[float, float], progress: float) -> float:
    """Value of a (first, last) schedule at a share of the training in [0, 1]."""
    if progress <= 0 or pair[0] == pair[1]:  # also where a value is infinite, as a tail may be
        return pair[0]
    return pair[1] if progress >= 1 else pair[0] + (pair[1] - pair[0]) * progress


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
