"""Weights without code: tensors in a safetensors file, everything else in a YAML of the same name beside it.

A ``.pt`` is a pickle, and opening a pickle may run what its author put into it. This pair holds numbers and plain text only:
``best.safetensors`` the state of the network, ``best.yaml`` what it takes to build that network again. Opening it builds known
layers, nothing else; no text of it is ever executed.
"""

from __future__ import annotations

import ast
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from ultralytics.nn import modules as layers
from ultralytics.utils import DEFAULT_CFG_DICT

from erpose_yolo import __version__
from erpose_yolo.data.skeletons import flip_from_names, keypoint_names, known_skeleton, read_kpt_shape
from erpose_yolo.files import atomic_replace
from erpose_yolo.method.oks import sigmas_for
from erpose_yolo.nn import HEAD
from erpose_yolo.nn.head import ERPoseHead
from erpose_yolo.nn.network import ERPoseModel

SUFFIX = ".safetensors"
FORMAT = "erpose weights 1"  # value of `format:`; raise the number when older readers would go wrong
KEPT = ("names", "kpt_names", "skeleton", "flip_idx")  # attributes of a model that are written and restored as they are


def is_weights(model: object) -> bool:
    """Tell whether a model argument names a safetensors file."""
    return isinstance(model, (str, Path)) and Path(model).suffix.lower() == SUFFIX


def save_weights(model: ERPoseModel, file: str | Path) -> Path:
    """Write a model as ``NAME.safetensors`` and ``NAME.yaml``.

    Args:
        model: network, fused or not; its tensors are written in the type that they have.
        file: the safetensors file; folders are made.

    Returns:
        Path of the safetensors file.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        FileExistsError: ``NAME.yaml`` exists and is not such a description, a model YAML for example.
    """
    library = _library()
    file = Path(file)
    text = file.with_suffix(".yaml")
    if text.exists() and not _is_ours(text):
        raise FileExistsError(
            f"{text} exists and does not describe weights. Give {file.name} another name, or move that file away."
        )
    about = yaml.safe_dump(describe(model), sort_keys=False, default_flow_style=None, width=120)
    state = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}  # clone: no shared memory
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [f.with_name(f".{f.name}.{os.getpid()}") for f in (file, text)]
    try:  # both are written in full before either takes its name
        library.torch.save_file(state, parts[0], metadata={"format": FORMAT})
        parts[1].write_text(about, encoding="utf-8")
        shutil.copymode(parts[1], parts[0])  # safetensors writes files that nobody else may read
        for part, final in zip(parts, (file, text), strict=True):
            atomic_replace(part, final)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return file


def load_weights(file: str | Path) -> ERPoseModel:
    """Build the network that ``NAME.yaml`` describes and fill it from ``NAME.safetensors``.

    Args:
        file: the safetensors file.

    Returns:
        Network in float32 and evaluation mode, on the CPU.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        FileNotFoundError: one of the two files is not there.
        ValueError: damaged, not written by :func:`save_weights`, or the two files do not belong together.
    """
    library = _library()
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist.")
    text = file.with_suffix(".yaml")
    if not text.is_file():
        raise FileNotFoundError(f"{text} is missing: it says what network the tensors of {file.name} make. Put it beside them.")
    about = _read(text)
    try:
        state = library.torch.load_file(file)
    except (library.SafetensorError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}. Save it again, or copy it anew.") from None
    model = _build(about, text)
    wanted = model.state_dict()
    odd = [f"{k} is missing" for k in wanted if k not in state]
    odd += [f"{k} is not of this network" for k in state if k not in wanted]
    odd += [
        f"{k} is {state[k].dtype} {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and (state[k].shape != v.shape or state[k].is_floating_point() != v.is_floating_point())
    ]
    if odd:
        raise ValueError(
            f"{file} does not fit {text.name}: {'; '.join(odd[:3])}{f'; and {len(odd) - 3} more' if len(odd) > 3 else ''}. "
            "Use the two files that were saved together."
        )
    model.load_state_dict(state)
    model.pt_path = str(file)
    return model.eval()


def describe(model: ERPoseModel) -> dict[str, Any]:
    """What the YAML holds: format, network, classes, keypoints and the training size, in plain YAML types."""
    keypoints = model.kpt_shape[0]
    names = keypoint_names(getattr(model, "kpt_names", None), keypoints)
    known = known_skeleton(names, keypoints)
    args = model.args if isinstance(model.args, dict) else vars(model.args)
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "imgsz": args.get("imgsz", 640),
        "fused": bool(model.is_fused()),
        "names": dict(model.names),
        "kpt_shape": list(model.kpt_shape),
        "confidence": model.model[-1].confidence,
        "spread_factors": model.model[-1].spread_factors,
        "oks_factor": model.model[-1].oks_factor,
        "flip_idx": flip_from_names(names)[0] if names else known.flip if known else None,
        # the shortest decimals that give the same float32
        "kpt_oks_sigmas": [float(str(np.float32(s))) for s in sigmas_for(keypoints, model.kpt_oks_sigmas)],
        **{key: getattr(model, key) for key in KEPT if getattr(model, key, None)},
        # all settings, so that a change of defaults does not change this network
        "network": {**model.yaml, "erpose": model.settings.to_dict()},
    }
    return _plain({k: v for k, v in about.items() if v is not None})


def _build(about: dict[str, Any], text: Path) -> ERPoseModel:
    """The network of a description, with random weights."""
    cfg = about["network"]
    _check_layers(cfg, text)
    try:
        model = ERPoseModel(cfg, ch=cfg.get("channels", 3), nc=cfg["nc"], data_kpt_shape=about["kpt_shape"], verbose=False)
    except Exception as error:  # whatever a layer makes of wrong numbers
        raise ValueError(
            f"{text}: its network cannot be built: {type(error).__name__}: {error}. Save the weights again."
        ) from error
    model.model[-1].confidence = about.get("confidence", ERPoseHead.confidence)
    model.model[-1].spread_factors = about.get("spread_factors")
    model.model[-1].oks_factor = about.get("oks_factor", ERPoseHead.oks_factor)
    if about.get("fused"):
        model.fuse(verbose=False)
    for key in KEPT:
        if key in about:
            setattr(model, key, about[key])
    model.kpt_oks_sigmas = sigmas_for(model.kpt_shape[0], about.get("kpt_oks_sigmas")).tolist()
    model.task = "pose"
    model.args = {**DEFAULT_CFG_DICT, "task": "pose", "imgsz": about.get("imgsz", 640)}
    return model


def _check_layers(cfg: dict[str, Any], text: Path) -> None:
    """Make sure that a network names layers of torch and ultralytics only: stock code looks names up and runs ``eval``.

    Raises:
        ValueError: a row or an activation that is something else.
    """
    rows = [*cfg.get("backbone", ()), *cfg.get("head", ())]
    if not rows or not all(isinstance(row, list) and len(row) == 4 and isinstance(row[2], str) for row in rows):
        raise ValueError(
            f"{text}: backbone and head must be rows of four: from, repeats, layer, arguments. Save the weights again."
        )
    for *_, name, _ in rows[:-1]:
        kind = getattr(nn, name[3:], None) if name.startswith("nn.") else getattr(layers, name, None)
        # TorchVision builds any model of torchvision, and downloads weights for it
        if not isinstance(kind, type) or not issubclass(kind, nn.Module) or name == "TorchVision":
            raise ValueError(f"{text}: '{name}' is not a layer of torch.nn or ultralytics. Open only files that erpose-yolo saved.")
    if rows[-1][2] != HEAD:
        raise ValueError(f"{text}: the last layer is '{rows[-1][2]}', not {HEAD}: not an ER-Pose model.")
    if cfg.get("activation") and not _is_activation(str(cfg["activation"])):
        raise ValueError(
            f"{text}: activation '{cfg['activation']}' is not a layer of torch.nn with plain numbers, such as nn.SiLU()."
        )


def _is_activation(text: str) -> bool:
    """Tell whether this is ``nn.NAME(...)`` or ``torch.nn.NAME(...)`` with literal arguments."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        module, _, name = ast.unparse(call.func).rpartition(".")
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(argument)
        return module in ("nn", "torch.nn") and issubclass(getattr(nn, name), nn.Module)
    except (SyntaxError, AssertionError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return False


def _read(text: Path) -> dict[str, Any]:
    """A description, checked for what is used unconditionally."""
    try:
        about = yaml.safe_load(text.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{text} is not YAML: {' '.join(str(error).split())}. Save the weights again.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        said = about.get("format") if isinstance(about, dict) else None
        raise ValueError(f"{text} does not describe ER-Pose weights: it must say 'format: {FORMAT}', not {said!r}.")
    cfg = about.get("network")
    if not isinstance(cfg, dict) or not isinstance(cfg.get("nc"), int) or not _names_fit(about):
        raise ValueError(f"{text}: network with nc and a name per class are needed. Save the weights again.")
    read_kpt_shape(about.get("kpt_shape"), text)
    return about


def _names_fit(about: dict[str, Any]) -> bool:
    names = about.get("names")
    return isinstance(names, dict) and sorted(names, key=str) == sorted(range(about["network"]["nc"]), key=str)


def _is_ours(text: Path) -> bool:
    try:
        _read(text)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The same in types that every YAML reader knows: tuples, arrays and paths turned into lists and text."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _library() -> Any:
    """The safetensors package."""
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{SUFFIX} files need safetensors, which this environment lacks: pip install safetensors", name="safetensors"
        ) from None
    return safetensors
