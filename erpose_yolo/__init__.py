"""ER-Pose for ultralytics: real-time multi-person pose from keypoints alone, without a box branch and without NMS.

    model.py, cli.py   ERPose, what users hold; the ``erpose`` command
    method/            the method in plain torch: OKS, assignment, losses, decode, refinement, derived boxes, settings
    nn/                head and network
    engine/            training, validation, prediction; checkpoints, slices, tracking, smoothing
    export/            exports to every format, quantisation, safetensors
    data/              data YAML, labels, images, skeletons, the data set; check, convert, init, synthetic people
    metrics/           COCO and CrowdPose AP, duplicates and misses, ``erpose eval``
    upstream/          what is touched of ultralytics beyond its public API, and the hook that attaches this package to it

Imports run one way, from method/ up to cli.py (tests/test_imports.py). Importing this package imports neither torch nor
ultralytics: every Python start does it, by way of ``autoload.pth``. Public names are imported when they are first asked for.
"""

from __future__ import annotations

from erpose_yolo.upstream import autoload

__version__ = "0.1.0"

_HOME = {
    "ERPose": "erpose_yolo.model",
    "ERPoseModel": "erpose_yolo.nn.network",
    "ERPoseHead": "erpose_yolo.nn.head",
    "Settings": "erpose_yolo.method.settings",
}

__all__ = ["ERPose", "ERPoseHead", "ERPoseModel", "Settings", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first access (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    """List the lazy names beside those that are bound already."""
    return sorted({*globals(), *__all__})


autoload.install()
