"""Every touch of what ultralytics does not promise to keep: the supported range, the one patch, and why.

No other module of this package may use a private name of ultralytics (``tests/test_imports.py`` keeps it so), so a new
release of ultralytics is checked here first. Nothing heavy is imported at the top: :func:`install` runs at the end of
the import of ``ultralytics.models.yolo.model``, while the packages around that module are still being imported.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUPPORTED = (">=8.4.190", "<8.5")  # the versions whose source was read and that the tests ran on; equal to pyproject's

# What is touched, as "module:attribute", and why. A test asks the installed ultralytics for each.
TOUCHED = {
    "ultralytics.models.yolo.model:YOLO.__init__": (
        "replaced, see install(): stock commands and `YOLO(...)` offer no way to register a model family. Relied upon: "
        "its first argument is the model, and a class change inside it is seen by the caller (it does so for RT-DETR)"
    ),
    "ultralytics.nn.backends.base:BaseBackend.read_metadata": (
        "tells an export of ours from a stock one without its runtime; YOLO.__init__ asks it for RT-DETR exports"
    ),
    "ultralytics.utils:SAFE_LOAD": (
        "ULTRALYTICS_SAFE_LOAD as ultralytics parsed it; then our classes must be registered before any .pt is read"
    ),
}

HEAD = "ERPoseHead"  # class name of our head: what a checkpoint's last layer or an export's metadata is asked for
MARK = "__erpose__"  # attribute of the function that replaces YOLO.__init__

_warned = False  # of an unsupported ultralytics: once per process


def install() -> None:
    """Make ``YOLO(...)`` hand over to :class:`erpose_yolo.model.ERPose` for a YAML, checkpoint or export of ours.

    The one patch point of this package. ``YOLO.__init__`` itself hands over to RTDETR and YOLOE by changing
    ``self``'s class and ``__dict__``; the replacement does the same for ER-Pose and runs the original for stock models.
    Subclasses of ``YOLO`` (YOLOWorld, YOLOE, ERPose, a user's own) have made their choice: they get the original.

    Idempotent, per class and not per process: a reloaded ``YOLO`` is patched again.
    """
    yolo = _yolo()
    if not hasattr(yolo.__init__, MARK):
        yolo.__init__ = _with_hand_over(yolo)
    warn_if_unsupported()

    from ultralytics.utils import SAFE_LOAD

    if SAFE_LOAD:  # this process unpickles registered classes only; importing network registers ours
        importlib.import_module("erpose_yolo.network")


def uninstall() -> None:
    """Give ``YOLO`` its own ``__init__`` back (for tests)."""
    yolo = _yolo()
    if hasattr(yolo.__init__, MARK):
        yolo.__init__ = yolo.__init__.__wrapped__


def _yolo() -> Any:
    return importlib.import_module("ultralytics.models.yolo.model").YOLO


def _with_hand_over(yolo: Any) -> Any:
    """Return the replacement for ``yolo.__init__``."""
    original = yolo.__init__

    @functools.wraps(original)  # keeps signature and docstring, and the original as __wrapped__
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is not yolo:
            original(self, *args, **kwargs)
        elif is_our_yaml(args[0] if args else kwargs.get("model")):
            _hand_over(self, *args, **kwargs)
        else:
            original(self, *args, **kwargs)
            if type(self) is yolo and head_name(self) == HEAD:
                _hand_over(self, self)  # shares what is loaded, nothing is read twice

    setattr(__init__, MARK, True)
    return __init__


def _hand_over(self: Any, *args: Any, **kwargs: Any) -> None:
    """Turn a ``YOLO`` into the ``ERPose`` that these arguments make."""
    from erpose_yolo.model import ERPose

    new = ERPose(*args, **kwargs)
    self.__class__ = type(new)
    self.__dict__ = new.__dict__


def is_our_yaml(model: object) -> bool:
    """Tell whether a model argument names a YAML of ours: ``erpose*.yaml``, with any folder before it."""
    if not isinstance(model, (str, Path)):
        return False
    path = Path(model)
    return path.stem.lower().startswith("erpose") and path.suffix.lower() in {".yaml", ".yml"}


def head_name(model: Any) -> str:
    """Return the class name of the head of a ``YOLO`` object's network or export; empty if it has none to tell."""
    network = model.model
    if isinstance(network, (str, Path)):  # an export is kept as its path
        from ultralytics.nn.backends.base import BaseBackend

        if Path(network).suffix.lower() == ".mnn":  # the one format that ultralytics leaves to the runtime
            from erpose_yolo.exporter import read_metadata

            return str(read_metadata(network).get("head", ""))
        return str(BaseBackend.read_metadata(network).get("head", ""))
    layers = getattr(network, "model", None)
    try:
        return type(layers[-1]).__name__ if layers is not None else ""
    except (TypeError, IndexError, KeyError):  # a foreign module whose `model` is no sequence of layers
        return ""


def register_safe_globals(classes: Iterable[type]) -> None:
    """Let ``torch.load(weights_only=True)`` rebuild our classes, so that ``ULTRALYTICS_SAFE_LOAD=1`` reads our ``.pt``.

    torch's own registry is enough. The restricted loader of ultralytics (``_SafeLoad`` in ``ultralytics/nn/tasks.py``)
    keeps an allow-list of torch's and its own classes and adds those that a file needs to that same registry; it asks
    torch which globals of the file are still unknown, and ours no longer are. So ``_SafeLoad`` is not touched.

    Everything that a checkpoint pickles by class must be passed: model, head, its own layers, settings. Call it where
    the classes are defined: registered is what is imported. :func:`install` sees to it when the switch is on; who calls
    ``torch_safe_load(..., safe_only=True)`` without the switch imports ``erpose_yolo.network`` first.

    Args:
        classes: The classes to trust. They must be ours: their ``__setstate__`` runs while a file is read.
    """
    import torch

    torch.serialization.add_safe_globals(list(classes))


def is_supported(version: str) -> bool:
    """Tell whether a version of ultralytics lies in :data:`SUPPORTED`; a suffix such as ``.dev0`` is left out."""
    low, high = (_numbers(bound) for bound in SUPPORTED)
    return low <= _numbers(version) < high


def _numbers(version: str) -> tuple[int, ...]:
    match = re.search(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def warn_if_unsupported() -> None:
    """Log one warning per process when the installed ultralytics is outside the supported range, and go on."""
    global _warned
    from ultralytics import __version__ as installed
    from ultralytics.utils import LOGGER

    if not _warned and not is_supported(installed):
        _warned = True
        wanted = ",".join(SUPPORTED)
        LOGGER.warning(
            f"erpose-yolo supports ultralytics{wanted}, but {installed} is installed. Going on; if an ER-Pose model "
            f"fails: pip install 'ultralytics{wanted}'"
        )
