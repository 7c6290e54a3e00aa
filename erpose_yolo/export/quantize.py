"""Eight-bit exports whose keypoints stay where they are: which parts the quantisers leave in float, and one range that they get.

What loses accuracy on the weights that ship (docs/deploy.md has what exports lose with these parts in float):

* The head. A keypoint offset spans several hundred pixels and must be right to one, and an 8-bit output has 256 steps for that.
  The scores lose as much.
* Blocks that hold attention. A softmax over 400 cells gives values of 1/400, and their other activations spread widest of all.
* Except for LiteRT the first three blocks, whose activations spread widely, too.
* The range of what goes into a SiLU, a convolution's output. It reaches far down, but SiLU of all below -8 is nearly zero: the
  256 steps are for what lies above.

Ultralytics calls the quantisers and has no argument for parts that it does not know. So what it calls is wrapped for the
length of one export, see :func:`held_in_float`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from erpose_yolo.nn.head import ERPoseHead

SILU_FLOOR = -8.0  # SiLU of it is -0.003
FIRST = 3  # blocks
LARGE = 512  # values of a tensor that is worth storing in half precision


@dataclass(frozen=True)
class Parts:
    """Blocks of a network, as (index, name of the class).

    Attributes:
        head: the last one.
        attention: those that hold attention.
        first: the first three.
    """

    head: list[tuple[int, str]]
    attention: list[tuple[int, str]]
    first: list[tuple[int, str]]


def parts_of(model: nn.Module) -> Parts:
    """The blocks of an ERPoseModel that 8 bits harm."""
    blocks: Any = model.model
    named = [(i, type(block).__name__, block) for i, block in enumerate(blocks)]
    with_attention = [(i, name) for i, name, b in named if any(path.endswith("attn") for path, _ in b.named_modules())]
    heads = [(i, name) for i, name, block in named if isinstance(block, ERPoseHead)]
    return Parts(heads, with_attention, [(i, name) for i, name, _ in named[:FIRST]])


def traced(blocks: list[tuple[int, str]]) -> str:
    """A pattern of the names that ONNX (/model.23/pose/...) and OpenVINO (__module.model.23.pose...) give the parts of blocks."""
    return rf"(^|/|\.)model\.({'|'.join(str(i) for i, _ in blocks)})[/.]" if blocks else "(?!)"


def scoped(blocks: list[tuple[int, str]]) -> str:
    """The same for LiteRT (erpose_yolo.nn.network.ERPoseModel/ultralytics.nn.modules.block.C2PSA_10/...;3)."""
    return rf"Model/[\w.]+\.({'|'.join(f'{name}_{i}' for i, name in blocks)})([/;]|$)" if blocks else "(?!)"


@contextmanager
def replaced(module: str, name: str, wrapper: Callable[[Any], Any]) -> Iterator[None]:
    """A module's function wrapped meanwhile.

    Args:
        module: its full name.
        name: of the function, or of a method as ``Class.method``.
        wrapper: takes the function, gives what is called instead.
    """
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    stock = getattr(owner, name)
    setattr(owner, name, wrapper(stock))
    try:
        yield
    finally:
        setattr(owner, name, stock)


def _onnx(parts: Parts) -> Callable[[Any], Any]:
    kept = traced([*parts.first, *parts.attention, *parts.head])

    def wrap(stock: Callable[..., Any]) -> Callable[..., Any]:
        def quantize_static(model_input: Any, model_output: Any, *args: Any, **kwargs: Any) -> None:
            import onnx
            from onnxruntime.quantization import QuantType

            nodes = onnx.load(model_input).graph.node
            names = [node.name for node in nodes if re.search(kept, node.name)]
            kwargs["nodes_to_exclude"] = [*(kwargs.get("nodes_to_exclude") or ()), *names]
            kwargs |= {"per_channel": True, "activation_type": QuantType.QUInt8}
            into_silu = {node.input[0] for node in nodes if node.op_type == "Sigmoid"}
            with replaced("onnxruntime.quantization.quantize", "create_calibrator", lambda make: _floored(make, into_silu)):
                stock(model_input, model_output, *args, **kwargs)
            made = onnx.load(model_output)
            _store_in_half(made.graph)
            onnx.save(made, model_output)

        return quantize_static

    return wrap


def _store_in_half(graph: Any) -> None:
    """Keep weights that are in float as float16 in the file; the runtime turns them into float32 when it opens it."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weights in graph.initializer:
        if weights.data_type == TensorProto.FLOAT and len(weights.dims) == 4 and np.prod(weights.dims) >= LARGE:
            name = weights.name
            weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # in the order of computation
    del graph.node[:]
    graph.node.extend(nodes)


def _floored(stock: Callable[..., Any], into_silu: set[str]) -> Callable[..., Any]:
    """ONNX Runtime's calibrators, with the range of what goes into a SiLU cut off below."""

    def create_calibrator(*args: Any, **kwargs: Any) -> Any:
        calibrator = stock(*args, **kwargs)
        compute = calibrator.compute_data

        def compute_data() -> Any:
            ranges = compute()
            for name in into_silu & set(ranges.keys()):
                low, high = ranges[name].range_value
                ranges[name].lowest = np.maximum(low, np.asarray(SILU_FLOOR, low.dtype))
            return ranges

        calibrator.compute_data = compute_data
        return calibrator

    return create_calibrator


def _openvino(parts: Parts) -> Callable[[Any], Any]:
    kept = traced([*parts.first, *parts.attention, *parts.head])

    def wrap(stock: Callable[..., Any]) -> Callable[..., Any]:
        def quantize(model: Any, *args: Any, **kwargs: Any) -> Any:
            import nncf

            names = [op.get_friendly_name() for op in model.get_ordered_ops()]
            given = kwargs.get("ignored_scope")
            here = (name for name in names if re.search(kept, name))
            kwargs["ignored_scope"] = nncf.IgnoredScope(names=[*dict.fromkeys([*(given.names if given else ()), *here])])
            return stock(model, *args, **kwargs)

        return quantize

    return wrap


def _saved_in_half(stock: Callable[..., Any]) -> Callable[..., Any]:
    def save_model(model: Any, path: Any, **kwargs: Any) -> Any:
        return stock(model, path, **{**kwargs, "compress_to_fp16": True})

    return save_model


def _litert(parts: Parts, stock: Callable[..., Any]) -> Callable[..., Any]:
    from ai_edge_quantizer import recipe

    weights = recipe.dynamic_wi8_afp32()[0]  # 8-bit weights alone; this function is not wrapped yet

    def make_recipe(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        def rule(pattern: str, operation: str, of: dict[str, Any]) -> dict[str, Any]:
            return {**of, "regex": pattern, "operation": operation}

        head = scoped(parts.head) + "|^serving_default_output"  # the name of its last operation
        attention = scoped(parts.attention)
        as_it_is: dict[str, Any] = {"algorithm_key": "no_quantize", "op_config": {}}
        kept = [rule(attention, "*", as_it_is), rule(attention, "CONV_2D", weights), rule(head, "*", as_it_is)]
        return [*stock(*args, **kwargs), *kept]

    return make_recipe


def _litert_ranges(stock: Callable[..., Any]) -> Callable[..., Any]:
    def calibrate(quantizer: Any, *args: Any, **kwargs: Any) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        ranges = stock(quantizer, *args, **kwargs)
        network = Interpreter(model_content=bytes(quantizer._float_model_buffer))
        names = {tensor["index"]: tensor["name"] for tensor in network.get_tensor_details()}
        for operation in network._get_ops_details():
            found = ranges.get(names.get(operation["inputs"][0])) if operation["op_name"] == "LOGISTIC" else None
            if found:
                found["min"] = np.maximum(found["min"], SILU_FLOOR)
        return ranges

    return calibrate


def _wrapped(fmt: str, parts: Parts) -> list[tuple[str, str, Callable[[Any], Any]]]:
    """What ultralytics' exporter calls: (module, function, wrapper)."""
    recipes = ("static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32")
    known: dict[str, list[tuple[str, str, Callable[[Any], Any]]]] = {
        "onnx": [("onnxruntime.quantization", "quantize_static", _onnx(parts))],
        "openvino": [("nncf", "quantize", _openvino(parts)), ("openvino", "save_model", _saved_in_half)],
        "litert": [
            *(("ai_edge_quantizer.recipe", name, partial(_litert, parts)) for name in recipes),
            ("ai_edge_quantizer.quantizer", "Quantizer.calibrate", _litert_ranges),
        ],
    }
    return known.get(fmt, [])


@contextmanager
def held_in_float(fmt: str, model: nn.Module) -> Iterator[None]:
    """Make the quantiser of a format, where it has one, leave the parts in float that 8 bits harm.

    Args:
        fmt: export format.
        model: ERPoseModel.

    Raises:
        ModuleNotFoundError: the quantiser is not installed.
    """
    with ExitStack() as undo:
        for module, name, wrapper in _wrapped(fmt, parts_of(model)):
            undo.enter_context(replaced(module, name, wrapper))
        yield
