"""Stock arguments that an ER-Pose model refuses, or that have no effect on it: one table each, with the reason.

Every other key of ``ultralytics.utils.DEFAULT_CFG_DICT`` does what it does for a stock pose model
(``tests/test_stock_arguments.py`` goes through all of them).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK

from erpose_yolo.errors import is_input_error, suggestion
from erpose_yolo.upstream import compat


class Refusal(NamedTuple):
    """An argument that stops a command.

    Attributes:
        modes: the commands.
        values: values that are refused; empty for each but None and the default.
        reason: why, and what to do instead.
    """

    modes: tuple[str, ...]
    values: tuple[Any, ...]
    reason: str


class NoEffect(NamedTuple):
    """An argument that changes nothing, which is said once.

    Attributes:
        modes: the commands to which it belongs.
        reason: completes "has no effect on ER-Pose models: ...".
        met: values beside the default that ask for what is done anyway.
    """

    modes: tuple[str, ...]
    reason: str
    met: tuple[Any, ...] = ()


REFUSED = {
    "quantize": Refusal(
        ("train",), (8,), "Quantization-aware training is not supported: train without it, then export with quantize=8."
    ),
}

_USE = ("val", "predict", "track")
_NMS = "there is no NMS, a person is one row"
_GAINS = "the loss is another one, its gains stand in the erpose block of the model YAML"
_SEGMENT, _CLASSIFY, _DEPTH = (f"it belongs to {task} models" for task in ("segmentation", "classification", "depth"))
_PASTE = "it pastes segments, which pose labels do not have"

WITHOUT_EFFECT = {
    "nms": NoEffect(("train", *_USE, "export", "benchmark"), _NMS, met=(False,)),
    "iou": NoEffect(("train", *_USE, "export", "benchmark"), _NMS),
    "agnostic_nms": NoEffect(("train", *_USE, "export"), _NMS),
    "conf": NoEffect(("export",), "an export holds no threshold, give conf= to predict"),
    "box": NoEffect(("train",), _GAINS),
    "cls": NoEffect(("train",), _GAINS),
    "dfl": NoEffect(("train",), _GAINS),
    "pose": NoEffect(("train",), _GAINS),
    "kobj": NoEffect(("train",), _GAINS),
    "rle": NoEffect(("train",), _GAINS),
    "cls_pw": NoEffect(("train",), "the score loss has no class weights"),
    "overlap_mask": NoEffect(("train",), _SEGMENT),
    "mask_ratio": NoEffect(("train",), _SEGMENT),
    "retina_masks": NoEffect(_USE, _SEGMENT),
    "dropout": NoEffect(("train",), _CLASSIFY),
    "auto_augment": NoEffect(("train",), _CLASSIFY),
    "erasing": NoEffect(("train",), _CLASSIFY),
    "angle": NoEffect(("train",), "it belongs to models of oriented boxes"),
    "dlog": NoEffect(("train",), _DEPTH),
    "dgrad": NoEffect(("train",), _DEPTH),
    "dlam": NoEffect(("train",), _DEPTH),
    "copy_paste": NoEffect(("train",), _PASTE),
    "copy_paste_mode": NoEffect(("train",), _PASTE),
}

_told: set[str] = set()  # once per process


def check_arguments(mode: str, given: Mapping[str, Any]) -> None:
    """Refuse what an ER-Pose model cannot do, and say once of an argument that it has no effect.

    Args:
        mode: train, val, predict, track, export or benchmark.
        given: arguments by name; those at their default and unknown ones are passed over.

    Raises:
        ValueError: an argument of :data:`REFUSED`.
    """
    for key, value in given.items():
        if value is None or value == DEFAULT_CFG_DICT.get(key):
            continue
        refusal = REFUSED.get(key)
        if refusal and mode in refusal.modes and (not refusal.values or value in refusal.values):
            raise ValueError(f"{key}={value}: {refusal.reason}")
        entry = WITHOUT_EFFECT.get(key)
        if entry and mode in entry.modes and value not in entry.met and key not in _told and RANK in {-1, 0}:
            _told.add(key)
            LOGGER.warning(f"{key}={value} has no effect on ER-Pose models: {entry.reason}.")


def run_command(name: str, usage: str, function: Callable[..., Any], words: Sequence[str]) -> int:
    """Run ``erpose NAME``, a function of keyword arguments.

    Args:
        name: of the command.
        usage: what ``--help`` prints.
        function: takes the arguments; ``**kwargs`` are those of Ultralytics.
        words: ``key=value`` pairs.

    Returns:
        Exit code: that of the function where it returns one, else 0; 1 with a message on what is wrong with the input; 2 with one
        on an unknown argument.
    """
    if not words or any(word in ("-h", "--help", "help") for word in words):
        print(usage)
        return int(not words)
    from ultralytics.cfg import parse_key_value_pair

    options: dict[str, Any] = {}
    known = {*inspect.signature(function).parameters, *DEFAULT_CFG_DICT} - {"kwargs"}
    try:
        for word in words:
            if "=" not in word:
                raise ValueError(f"'{word}' is not key=value.\n\n{usage}")
            key, value = parse_key_value_pair(word)
            if key not in known and not compat.is_argument(key):
                print(f"erpose {name}: '{key}' is not an argument.{suggestion(key, known)}", file=sys.stderr)
                return 2
            options[key] = value
        code = function(**options)
    except Exception as error:
        if not is_input_error(error):
            raise
        print(f"erpose {name}: {error}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0
