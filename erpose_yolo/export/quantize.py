"""Eight-bit exports whose keypoints stay where they are: the quantisers leave the pose branch in float.

A keypoint offset spans several hundred pixels and must be right to one, and an 8-bit output has 256 steps for that. The pose
branch is small, so float costs little there, while backbone and neck, nearly all of the arithmetic, is in 8 bits. LiteRT keeps the
score towers in float as well: their 8-bit scores lost three persons of four on a trained model.

Ultralytics calls the quantisers and has no argument for parts that it does not know. So what it calls is wrapped for the
length of one export, see :func:`float_pose`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POSE = r"model\.\d+[/.](one2one_)?pose[/.]"  # ONNX: /model.23/pose/..., OpenVINO: __module.model.23.pose....
HEAD = r"\.ERPoseHead_\d+"  # LiteRT: erpose_yolo.nn.network.ERPoseModel/erpose_yolo.nn.head.ERPoseHead_23/...


def _onnx(stock: Callable[..., Any]) -> Callable[..., Any]:
    def quantize_static(model_input: Any, *args: Any, **kwargs: Any) -> Any:
        import onnx

        names = [node.name for node in onnx.load(model_input).graph.node if re.search(POSE, node.name)]
        kwargs["nodes_to_exclude"] = [*(kwargs.get("nodes_to_exclude") or ()), *names]
        return stock(model_input, *args, **kwargs)

    return quantize_static


def _openvino(stock: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(model: Any, *args: Any, **kwargs: Any) -> Any:
        import nncf

        names = [op.get_friendly_name() for op in model.get_ordered_ops()]
        given = kwargs.get("ignored_scope")
        kept = [*(given.names if given else ()), *(name for name in names if re.search(POSE, name))]
        kwargs["ignored_scope"] = nncf.IgnoredScope(names=kept)
        return stock(model, *args, **kwargs)

    return quantize


def _litert(stock: Callable[..., Any]) -> Callable[..., Any]:
    def make_recipe(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        return [*stock(*args, **kwargs), {"regex": HEAD, "operation": "*", "algorithm_key": "no_quantize", "op_config": {}}]

    return make_recipe


# Per format, what ultralytics' exporter calls: (module, function, wrapper)
WRAPPED = {
    "onnx": [("onnxruntime.quantization", "quantize_static", _onnx)],
    "openvino": [("nncf", "quantize", _openvino)],
    "litert": [("ai_edge_quantizer.recipe", name, _litert) for name in ("static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32")],
}


@contextmanager
def float_pose(fmt: str) -> Iterator[None]:
    """Make the quantiser of a format, where it has one, leave the pose branch in float.

    Args:
        fmt: export format.

    Raises:
        ModuleNotFoundError: the quantiser is not installed.
    """
    undo = []
    try:
        for name, function, wrapper in WRAPPED.get(fmt, []):
            module = importlib.import_module(name)
            stock = getattr(module, function)
            undo.append((module, function, stock))
            setattr(module, function, wrapper(stock))
        yield
    finally:
        for module, function, stock in undo:
            setattr(module, function, stock)
