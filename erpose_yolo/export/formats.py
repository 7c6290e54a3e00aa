"""Export formats: names, what converts and runs them, which have no TopK and which are refused, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

from ultralytics.engine.exporter import export_formats

from erpose_yolo.errors import suggestion

ROWS = {
    2: "x1 y1 x2 y2 score class (x y)*K",
    3: "x1 y1 x2 y2 score class (x y v)*K",
}
SIGMA_LAYOUT = " sigma*K"  # what follows in rows with error bars

# Formats that get no rows of the best cells, and why: the list of ultralytics' Exporter.__call__, which forces these to NMS
NO_TOPK = {
    "ncnn": "ncnn has no TopK layer and no gather by computed indices",
    "rknn": "the NPU has no TopK",
    "executorch": "XNNPACK has no TopK",
    "paddle": "x2paddle has no TopK of computed size",
    "edgetpu": "the Edge TPU has no TopK",
    "qnn": "the HTP has no TopK of floats",
}

# Their runtime in ultralytics takes three dimensions for rows, four for masks
NO_MAPS = ("saved_model", "pb", "edgetpu")

REFUSED = {
    "imx": "ultralytics builds box NMS into every pose model for the IMX500, and this model has no boxes to suppress",
    "hailo": "ultralytics' converter knows the layer names of YOLOv8, YOLO11 and YOLO26 heads only",
    "axelera": "the Axelera runtime decodes the stock heads itself and does not know this one",
}

ALIASES = {
    "tensorrt": "engine", "trt": "engine", "mlmodel": "coreml", "mlpackage": "coreml", "mlprogram": "coreml",
    "apple": "coreml", "ios": "coreml", "huawei": "ascend", "cann": "ascend", "om": "ascend", "vitis": "xilinx",
    "vitisai": "xilinx", "versal": "xilinx", "tflite": "litert", "tfjs": "litert",
}  # fmt: skip

EIGHT_BIT = (8, "w8a16", "w8a32")

ALWAYS_EIGHT_BIT = ("edgetpu", "deepx", "qnn", "xilinx")

# Formats whose 8-bit ranges are measured on images; Core ML and MNN put the weights alone into 8 bits
CALIBRATED = {*(f for f, a in zip(export_formats()["Argument"][1:], export_formats()["Arguments"][1:]) if "data" in a), "ncnn"}

QUANTIZE = {"fp16": 16, "half": 16, "16": 16, "int8": 8, "8": 8, "fp32": 32, "32": 32}

_ONNX = {"onnx": "onnx", "onnxslim": "onnxslim", "onnxruntime": "onnxruntime"}

_TF = {
    "tensorflow": "tensorflow<=2.19.0", "tf_keras": "tf_keras<=2.19.0", "onnx2tf": "onnx2tf>=1.26.3,<1.29.0",
    "sng4onnx": "sng4onnx", "onnx_graphsurgeon": "onnx_graphsurgeon", **_ONNX,
}  # fmt: skip

# What converts, {module: pip requirement} with the bounds that ultralytics states
CONVERTERS: dict[str, dict[str, str]] = {
    "torchscript": {},
    "onnx": _ONNX,
    "openvino": {"openvino": "openvino"},
    "engine": {"tensorrt": "tensorrt", **_ONNX},
    "coreml": {"coremltools": "coremltools>=9.0", "numpy": "numpy<2.4"},
    "coreai": {"coreai_torch": "coreai-torch>=0.4.3"},
    "saved_model": _TF,
    "pb": _TF,
    "edgetpu": _TF,
    "litert": {"litert_torch": "litert-torch>=0.10.0", "ai_edge_litert": "ai-edge-litert>=2.3.0"},
    "paddle": {"paddle": "paddlepaddle>=3.0.0,<3.3.0", "x2paddle": "x2paddle", "six": "six"},  # x2paddle does not declare six
    "mnn": {"MNN": "MNN>=2.9.6", **_ONNX},
    "ncnn": {"ncnn": "ncnn", "pnnx": "pnnx==20260526"},
    "rknn": {"rknn": "rknn-toolkit2>=2.3.2,<2.5", "pkg_resources": "setuptools<82", **_ONNX},
    "executorch": {"executorch": "executorch"},
    "deepx": {"dx_com": "dx_com>=2.4.1", **_ONNX},
    "qnn": {"onnxruntime_qnn": "onnxruntime-qnn", **_ONNX},
    "ascend": _ONNX,  # and CANN's atc, which is no pip package: ultralytics asks for it
    "xilinx": {"quark": "amd-quark>=0.13.0,<0.14.0", **_ONNX},
}

QUANTIZERS = {
    "openvino": {"nncf": "nncf>=2.14.0"},
    "litert": {"ai_edge_quantizer": "ai-edge-quantizer>=0.10.0"},
    "coreml": {"sklearn": "scikit-learn"},
}

RUNTIMES: dict[str, dict[str, str]] = {
    "onnx": {"onnxruntime": "onnxruntime"},
    "openvino": {"openvino": "openvino"},
    "engine": {"tensorrt": "tensorrt"},
    "coreml": {"coremltools": "coremltools>=9.0"},
    "saved_model": {"tensorflow": "tensorflow"},
    "pb": {"tensorflow": "tensorflow"},
    "edgetpu": {"ai_edge_litert": "ai-edge-litert"},
    "litert": {"ai_edge_litert": "ai-edge-litert>=2.3.0"},
    "paddle": {"paddle": "paddlepaddle>=3.0.0,<3.3.0"},
    "mnn": {"MNN": "MNN"},
    "ncnn": {"ncnn": "ncnn"},
    "executorch": {"executorch": "executorch"},
    "rknn": {"rknnlite": "rknn-toolkit-lite2"},
    "qnn": {"onnxruntime_qnn": "onnxruntime-qnn"},
}


def format_of(name: object) -> str:
    """Return the format that a ``format=`` argument means.

    Raises:
        ValueError: there is no such format; stock code would guess one and go on.
    """
    key = ALIASES.get(str(name).lower(), str(name).lower())
    known = export_formats()["Argument"][1:]
    if key not in known:
        raise ValueError(f"There is no export format '{name}'.{suggestion(key, known)} The formats are {', '.join(known)}.")
    if key in REFUSED:
        raise ValueError(
            f"ER-Pose cannot be exported to format='{key}': {REFUSED[key]}. A file of format='onnx', layout='maps' ends with plain "
            "convolutions, for the vendor's own tools."
        )
    return key


def layout_of(fmt: str, name: str | None = None) -> str:
    """Return the layout of an export, of its ``layout=`` argument or the first of those that the format can have.

    Args:
        fmt: format.
        name: "rows" of the best cells, "cells", a row per cell, or "maps", raw maps that the host decodes (method.maps).

    Raises:
        ValueError: there is no such layout, or not in this format.
    """
    possible = ["rows", "cells", "maps"]
    if fmt in NO_TOPK:
        possible = ["maps", "cells"]
    if fmt in NO_MAPS:
        possible.remove("maps")
    if name is None:
        return possible[0]
    if name in possible:
        return name
    reason = f": {NO_TOPK[fmt]}" if name == "rows" else ""
    others = " or ".join(f"layout='{other}'" for other in possible)
    raise ValueError(f"layout='{name}' cannot be had with format='{fmt}'{reason}. Give {others}.")


def missing(wanted: dict[str, str]) -> list[str]:
    """Pip requirements that are not met: no such module, or one that is too new for a bound ``<``."""
    return [package for module, package in wanted.items() if not _is_met(module, package)]


def _is_met(module: str, package: str) -> bool:
    if importlib.util.find_spec(module) is None:
        return False
    bound = re.fullmatch(rf"{module}<(\d+)\.(\d+)", package)
    if bound is None:  # ultralytics states the other bounds itself
        return True
    installed = re.findall(r"\d+", importlib.metadata.version(module))
    return (int(installed[0]), int(installed[1])) < (int(bound[1]), int(bound[2]))


def _need(wanted: dict[str, str], what: str) -> None:
    lacking = missing(wanted)
    if lacking:
        ours = set(lacking) <= set(_ONNX.values())
        names = "'erpose-yolo[export]'" if ours else " ".join(f"'{name}'" for name in lacking)
        raise ModuleNotFoundError(f"{what} needs {', '.join(lacking)}, which this environment lacks: pip install {names}")
