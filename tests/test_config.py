"""The ``erpose:`` block: defaults, round trip, and errors that name the key and the mend."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from erpose_yolo.config import CHOICES, Settings, at


def test_empty_block_is_the_default() -> None:
    """A YAML without, with an empty, and with a bare ``erpose:`` all mean the same model."""
    assert Settings.from_dict(None) == Settings.from_dict({}) == Settings()


def test_round_trip() -> None:
    """What a checkpoint carries as plain YAML types reads back as the same settings."""
    settings = Settings(tower="plain", tail=(2.0, 4.0), topk=5, heatmap_gain=0)
    block = settings.to_dict()
    assert block["tail"] == [2.0, 4.0] and Settings.from_dict(block) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_frozen() -> None:
    """No module can change a running model's settings under another's feet."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().topk = 3  # type: ignore[misc]


def test_one_number_stands_for_a_constant_schedule() -> None:
    """``tail: 4`` is what a user writes for no schedule."""
    assert Settings.from_dict({"tail": 4}).tail == (4, 4)
    assert Settings.from_dict({"gate": [1, 20]}).gate == (1, 20)


@pytest.mark.parametrize(("key", "near"), [("assinger", "assigner"), ("pose_los", "pose_loss"), ("Topk", "topk")])
def test_unknown_key_is_named_with_the_nearest(key: str, near: str) -> None:
    """A typing error must stop the run, not silently train the default."""
    with pytest.raises(ValueError, match=f"Unknown key '{key}' .*of my.yaml.*Did you mean '{near}'"):
        Settings.from_dict({key: 1}, "my.yaml")


def test_unknown_key_without_a_nearest() -> None:
    """Also then the known keys are listed; a key need not be text."""
    for key in ("zzz", 7):
        with pytest.raises(ValueError, match="Known: .*assigner"):
            Settings.from_dict({key: 1})


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_choices(name: str) -> None:
    """Every listed choice is taken; any other is refused with the list."""
    for value in CHOICES[name]:
        assert getattr(Settings.from_dict({name: value}), name) == value
    for value in ("nonsense", None, 1, True):
        with pytest.raises(ValueError, match=f"erpose.{name}: .* is not one of {CHOICES[name][0]}"):
            Settings.from_dict({name: value})


@pytest.mark.parametrize(
    "block",
    [
        {"alpha": -1},
        {"beta": "2"},
        {"pose_gain": None},
        {"pose_gain": float("nan")},
        {"heatmap_gain": True},
        {"tail": [1, 2, 3]},
        {"tail": [1, "x"]},
        {"tail": []},
        {"gate": [-1, 2]},
        {"window": 4},
        {"window": 0},
        {"topk": 0},
        {"width": 0},
    ],
    ids=str,
)
def test_bad_values_are_named(block: dict[str, Any]) -> None:
    """A value out of range stops before training, naming its key."""
    with pytest.raises(ValueError, match=rf"erpose\.{next(iter(block))}"):
        Settings.from_dict(block)


@pytest.mark.parametrize(
    "block",
    [
        {"tail": 0},  # (1 + e/0)^0 is NaN
        {"topk": 2.5},  # fails deep inside topk
        {"window": 7.5},
        {"width": 64.5},
        {"dense_weight": 1.5},  # a negative share for the deployed scores
        {"score_floor": [2, 0]},  # a score target above 1
        {"steer": 1.5},  # more than the gradient
        {"gate": [12, 2]},  # no level takes anyone
        {"gate": [2, 3]},  # persons between 3 and 4 cells of two neighbouring levels have none
    ],
    ids=str,
)
def test_values_that_would_break_training_are_named(block: dict[str, Any]) -> None:
    """Numbers that pass as numbers but give NaN, negative losses or people without a level are refused, too."""
    with pytest.raises(ValueError, match=rf"erpose\.{next(iter(block))}"):
        Settings.from_dict(block)


@pytest.mark.parametrize("block", ["topk: 3", ["topk", 3], 5])
def test_block_that_is_no_mapping(block: object) -> None:
    """A wrong indentation makes a list or a text of the block."""
    with pytest.raises(ValueError, match="erpose: in my.yaml must be a mapping"):
        Settings.from_dict(block, "my.yaml")  # type: ignore[arg-type]


def test_schedule() -> None:
    """A straight line from the first epoch to the last, held at both ends."""
    assert [at((1.0, 0.2), p) for p in (-1, 0, 0.25, 1, 7)] == pytest.approx([1.0, 1.0, 0.8, 0.2, 0.2])


def test_infinite_tail_is_oks_itself() -> None:
    """``tail: .inf`` is how the kernel's own documentation asks for plain OKS; the schedule must not make NaN of it."""
    inf = float("inf")
    assert at(Settings.from_dict({"tail": inf}).tail, 0.5) == inf
    assert at((1.0, inf), 0.0) == 1.0 and at((1.0, inf), 1.0) == inf
