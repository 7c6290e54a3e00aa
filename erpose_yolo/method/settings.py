"""The ``erpose:`` block of a model YAML as one frozen, checked dataclass."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

TOWERS = ("mixed", "plain")


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of head, assigner and loss. Read where a model is built, and passed on from there as arguments.

    ``one2many_weight`` is a pair, (value at the first epoch, value at the last), with a straight line between them.
    """

    # head
    tower: str = "mixed"  # convolutions of the pose tower, see head.pose_tower
    width: int = 64  # channels of the towers at scale n; other scales grow with the backbone
    tower_channels: tuple[int, int] = (0, 0)  # of pose and score towers as they are; 0 is what width gives (imported models)
    refine: bool = True  # keypoints moved by an offset that is sampled where the cell put them
    boxes: bool = False  # a learned box branch instead of boxes derived from keypoints
    # assignment
    topk: int = 10  # most cells per person in the one-to-many assignment
    alpha: float = 0.5  # exponent of the score
    beta: float = 2.0  # exponent of the pose quality
    center_sampling_window: int = 7  # cells on a side of the candidate window, per level
    size_range: tuple[float, float] = (2.0, 12.0)  # sqrt(area) in cells that a level takes
    # losses
    one2many_weight: tuple[float, float] = (0.8, 0.1)  # share of the one-to-many assignment; one-to-one has the rest
    pose_gain: float = 2.0  # of the smooth OKS loss of keypoints
    oks_gain: float = 4.0  # of 1 - OKS beside the smooth OKS loss
    aux_loss_gain: float = 0.5  # of the pose loss of keypoints before they are refined, beside that of refined ones
    visibility_gain: float = 0.2  # of the loss of keypoint visibility
    heatmap_gain: float = 1.0  # 0 leaves the heatmaps out of the model
    box_gain: float = 2.0  # of the loss of learned boxes, only with boxes

    def __post_init__(self) -> None:
        if self.tower not in TOWERS:
            raise ValueError(f"erpose.tower: {self.tower!r} is not one of {', '.join(TOWERS)}. Fix the model YAML.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise ValueError(f"erpose.{field.name}: {value!r} is not true or false. Fix the model YAML.")
            elif not isinstance(field.default, str):
                numbers = value if isinstance(value, tuple) else (value,)
                if not all(_is_number(v) and v >= 0 for v in numbers):
                    raise ValueError(f"erpose.{field.name}: {value!r} is not made of numbers >= 0. Fix the model YAML.")
        for name in ("topk", "width", "center_sampling_window"):
            value = getattr(self, name)
            odd = name == "center_sampling_window"
            if value % 1 or value < 1 or (odd and value % 2 == 0):
                kind = "an odd whole number" if odd else "a whole number"
                raise ValueError(f"erpose.{name}: {value} must be {kind} and at least 1. Fix the model YAML.")
            object.__setattr__(self, name, int(value))  # 7.0 is fine in a YAML, and not as a count
        if any(channels % 1 for channels in self.tower_channels):
            raise ValueError(f"erpose.tower_channels: {list(self.tower_channels)} must be whole numbers. Fix the model YAML.")
        object.__setattr__(self, "tower_channels", tuple(int(channels) for channels in self.tower_channels))
        if max(self.one2many_weight) > 1:
            raise ValueError(f"erpose.one2many_weight: {self.one2many_weight} must lie in 0 to 1. Fix the model YAML.")
        if self.size_range[1] < 2 * self.size_range[0]:
            raise ValueError(
                f"erpose.size_range: {self.size_range}: the second number must be at least twice the first, or people of some "
                "sizes fall between two levels. Fix the model YAML."
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

    def to_dict(self) -> dict[str, Any]:
        """The block as plain YAML types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
