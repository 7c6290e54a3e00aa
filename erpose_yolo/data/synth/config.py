"""What a synthetic set consists of: one frozen, checked configuration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .pose import ACTIVITIES

VERSION = 2  # raise when the images or labels of a seed change, so that old sets are made anew


@dataclass(frozen=True)
class SynthConfig:
    """Configuration of a generated data set.

    Args:
        images: number of training images.
        val_images: number of validation images.
        size: long side of an image in px.
        people: fewest and most persons drawn in an image (images kept empty by `empty` aside).
        crowding: wanted mean, over persons, of the largest box IoU with another person; 0 places people freely. A
            crowded image has at least two persons, and people in it tend to do the same thing.
        empty: fraction of images without a person.
        seed: seed of the whole set.
        aspect: width / height of the images.
        activities: what people do, some of `pose.ACTIVITIES`; none: all of them, common ones more often.
        plain: before an even background, with nothing in front of them and no blur, grain or JPEG: for first steps and
            small budgets.

    Raises:
        ValueError: naming the field that is wrong.
    """

    images: int = 2000
    val_images: int = 200
    size: int = 320
    people: tuple[int, int] = (1, 6)
    crowding: float = 0.0
    empty: float = 0.03
    seed: int = 0
    aspect: float = 1.0
    activities: tuple[str, ...] = ()
    plain: bool = False

    def __post_init__(self) -> None:
        """Check every field; `people` may come in as a list (from JSON or YAML)."""
        for name in ("images", "val_images", "size", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        for name in ("images", "val_images", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 px, got {self.size}")
        try:
            low, high = (int(n) for n in self.people)
        except (TypeError, ValueError):
            raise ValueError(f"people must be a pair (min, max), got {self.people!r}") from None
        if not 0 <= low <= high:
            raise ValueError(f"people must satisfy 0 <= min <= max, got {self.people!r}")
        object.__setattr__(self, "people", (low, high))
        for name, top in (("crowding", 0.8), ("empty", 1.0)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0.0 <= value <= top):
                raise ValueError(f"{name} must lie in [0, {top}], got {value!r}")
        if self.crowding > 0 and high < 2:
            raise ValueError(f"crowding needs people to allow at least 2 persons, got people={self.people!r}")
        if not (isinstance(self.aspect, (int, float)) and math.isfinite(self.aspect) and 0.2 <= self.aspect <= 5.0):
            raise ValueError(f"aspect must lie in [0.2, 5], got {self.aspect!r}")
        if isinstance(self.activities, str) or not all(a in ACTIVITIES for a in self.activities):
            raise ValueError(f"activities must be some of {', '.join(ACTIVITIES)}, got {self.activities!r}")
        object.__setattr__(self, "activities", tuple(self.activities))
        if not isinstance(self.plain, bool):
            raise ValueError(f"plain must be true or false, got {self.plain!r}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image in px."""
        if self.aspect >= 1:
            return max(16, round(self.size / self.aspect)), self.size
        return self.size, max(16, round(self.size * self.aspect))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields with the generator version."""
        return {**asdict(self), "people": list(self.people), "activities": list(self.activities), "version": VERSION}
