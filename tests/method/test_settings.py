"""The ``erpose:`` block: defaults, round trip, and errors that name the key and the fix."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from erpose_yolo.method.settings import TOWERS, Settings


def test_empty_block_is_the_default() -> None:
    """A YAML without, with an empty, and with a bare ``erpose:`` all mean the same model."""
    assert Settings.from_dict(None) == Settings.from_dict({}) == Settings()


def test_round_trip() -> None:
    """What a checkpoint carries as plain YAML types reads back as the same settings."""
    settings = Settings(tower="plain", one2many_weight=(0.7, 0.4), topk=5, heatmap_gain=0, boxes=True)
    block = settings.to_dict()
    assert block["one2many_weight"] == [0.7, 0.4] and Settings.from_dict(block) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_frozen() -> None:
    """No module can change a running model's settings under another's feet."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().topk = 3  # type: ignore[misc]


def test_one_number_stands_for_a_constant_schedule() -> None:
    """``one2many_weight: 0.5`` is what a user writes for no schedule."""
    assert Settings.from_dict({"one2many_weight": 0.5}).one2many_weight == (0.5, 0.5)
    assert Settings.from_dict({"size_range": [1, 20]}).size_range == (1, 20)


def test_few_settings() -> None:
    """Every key that ships is one for ever, so what lost a comparison is none, nor what never needs another value."""
    assert len(dataclasses.fields(Settings)) <= 17


@pytest.mark.parametrize(("key", "near"), [("pose_gian", "pose_gain"), ("boxs", "boxes"), ("Topk", "topk")])
def test_unknown_key_is_named_with_the_nearest(key: str, near: str) -> None:
    """A typing error must stop the run, not silently train the default."""
    with pytest.raises(ValueError, match=f"Unknown key '{key}' .*of my.yaml.*Did you mean '{near}'"):
        Settings.from_dict({key: 1}, "my.yaml")


def test_unknown_key_without_a_nearest() -> None:
    """Also then the known keys are listed; a key need not be text."""
    for key in ("zzz", 7):
        with pytest.raises(ValueError, match="Known: .*topk"):
            Settings.from_dict({key: 1})


def test_towers() -> None:
    """Each tower is taken; any other is refused with the list."""
    for value in TOWERS:
        assert Settings.from_dict({"tower": value}).tower == value
    for value in ("nonsense", None, 1, True):
        with pytest.raises(ValueError, match="erpose.tower: .* is not one of mixed, plain"):
            Settings.from_dict({"tower": value})


@pytest.mark.parametrize("name", ["refine", "boxes"])
def test_switches(name: str) -> None:
    """On or off; "no" in quotes and 1 are neither."""
    for value in (False, True):
        assert getattr(Settings.from_dict({name: value}), name) is value
    for value in ("no", None, 1, [True]):
        with pytest.raises(ValueError, match=f"erpose.{name}: .* is not true or false"):
            Settings.from_dict({name: value})


@pytest.mark.parametrize(
    "block",
    [
        {"alpha": -1},
        {"beta": "2"},
        {"pose_gain": None},
        {"pose_gain": float("nan")},
        {"heatmap_gain": True},
        {"one2many_weight": [1, 0.5, 0]},
        {"one2many_weight": [1, "x"]},
        {"one2many_weight": []},
        {"size_range": [-1, 2]},
        {"center_sampling_window": 4},
        {"center_sampling_window": 0},
        {"topk": 0},
        {"width": 0},
        {"tower_channels": [-1, 64]},
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
        {"topk": 2.5},  # fails deep inside topk
        {"center_sampling_window": 7.5},
        {"width": 64.5},
        {"tower_channels": [85, 64.5]},
        {"one2many_weight": 1.5},  # a negative share for the deployed scores
        {"size_range": [12, 2]},  # no level takes anyone
        {"size_range": [2, 3]},  # persons between 3 and 4 cells of two neighbouring levels have none
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
