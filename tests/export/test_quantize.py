"""8 bits: what stays in float, whatever tracers call it; ranges; and the images that are there without a data set."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import ASSETS, LOGGER

from erpose_yolo import catalog
from erpose_yolo.export import calibration, exporter, quantize
from erpose_yolo.model import ERPose

PARTS = quantize.Parts([(23, "ERPoseHead")], [(10, "C2PSA"), (22, "C3k2")], [(0, "Conv"), (1, "Conv"), (2, "C3k2")])
SCOPE = "erpose_yolo.nn.network.ERPoseModel/ultralytics.nn.modules.block."


def finds_the_same(path: Path | str, weights: Path) -> None:
    """An export finds the people of the weights that ship on a photo, most keypoints within some pixels."""
    photo = cv2.imread(str(ASSETS / "bus.jpg"))
    wanted, got = (
        YOLO(file).predict(photo, imgsz=640, rect=False, conf=conf, device="cpu", verbose=False)[0].keypoints.xy.numpy()
        for file, conf in ((weights, 0.4), (path, 0.25))
    )
    assert len(wanted) >= 3
    for person in wanted:
        assert np.median(np.abs(got - person).max(2), axis=1).min() < 8  # px of a photo of 1080


@pytest.mark.parametrize(
    ("yaml", "attention"), [("erpose-n.yaml", [10, 22]), ("erpose11-n.yaml", [10]), ("erpose8-n.yaml", [])], ids=str
)
def test_blocks_that_8_bits_harm_are_found(yaml: str, attention: list[int]) -> None:
    parts = quantize.parts_of(ERPose(yaml).model)
    assert [i for i, _ in parts.attention] == attention
    assert [name for _, name in parts.head] == ["ERPoseHead"] and [i for i, _ in parts.first] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("/model.23/pose/keypoints.0/Conv", True),
        ("/model.22/m.0/m.0.1/attn/qkv/conv/Conv", True),
        ("/model.2/cv1/conv/Conv", True),
        ("/model.20/conv/Conv", False),
        ("/model.3/conv/Conv", False),
        ("__module.model.23.one2one_score.0.2/aten::_convolution/Convolution", True),
        ("__module.model.10.cv1.conv/aten::_convolution/Convolution", True),
        ("__module.model.13.m.0.cv1.conv/aten::_convolution/Convolution", False),
    ],
)
def test_blocks_are_known_by_what_tracers_call_them(name: str, kept: bool) -> None:
    pattern = quantize.traced([*PARTS.first, *PARTS.attention, *PARTS.head])
    assert bool(re.search(pattern, name)) is kept
    assert not re.search(quantize.traced([]), name)


def test_litert_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head stays in float; blocks with attention have 8-bit weights alone; the last rule that fits an operation holds."""
    recipe = types.ModuleType("ai_edge_quantizer.recipe")
    package = types.ModuleType("ai_edge_quantizer")
    monkeypatch.setattr(package, "recipe", recipe, raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", package)
    weights = {"regex": ".*", "operation": "*", "algorithm_key": "weights", "op_config": {"bits": 8}}
    recipe.dynamic_wi8_afp32 = lambda: [weights]  # type: ignore[attr-defined]
    rules = quantize._litert(PARTS, lambda: [{"regex": ".*", "operation": "*", "algorithm_key": "all"}])()

    def last(name: str, operation: str) -> str:
        fits = [r for r in rules if re.search(r["regex"], name) and r["operation"] in ("*", operation)]
        return str(fits[-1]["algorithm_key"])

    assert last("erpose_yolo.nn.network.ERPoseModel/erpose_yolo.nn.head.ERPoseHead_23/erpose_yolo.nn;3", "CONV_2D") == "no_quantize"
    assert last("serving_default_output_0_output", "GATHER_ND") == "no_quantize"
    assert last(SCOPE + "C3k2_22/torch.nn.modules.container.S", "BATCH_MATMUL") == "no_quantize"
    assert last(SCOPE + "C3k2_22/torch.nn.modules.container.S", "CONV_2D") == "weights"
    assert last(SCOPE + "C3k2_2/ultralytics.nn.modules.conv.Conv_cv1", "CONV_2D") == "all"
    assert last(SCOPE + "C3k2_2;1", "CONCATENATION") == "all"


def test_ranges_of_silu_are_cut_off_below() -> None:
    def range_of(low: float, high: float) -> types.SimpleNamespace:
        value = types.SimpleNamespace(lowest=np.float32(low), highest=np.float32(high))
        value.range_value = (value.lowest, value.highest)
        return value

    found = {"wide": range_of(-100, 50), "narrow": range_of(-3, 5), "other": range_of(-100, 50)}
    made = types.SimpleNamespace(compute_data=lambda: found)
    ranges = quantize._floored(lambda: made, {"wide", "narrow", "absent"})().compute_data()
    assert [float(ranges[name].lowest) for name in found] == [-8, -3, -100]


def test_wrappers_are_undone_and_may_name_methods() -> None:
    stock = types.SimpleNamespace
    with pytest.raises(RuntimeError), quantize.replaced("types", "SimpleNamespace", lambda given: (given, 1)):
        assert types.SimpleNamespace == (stock, 1)  # type: ignore[comparison-overlap]
        raise RuntimeError
    assert types.SimpleNamespace is stock


def test_images_without_a_data_set(tmp_path: Path) -> None:
    path = calibration.write_default_data(tmp_path, 5)
    info = check_det_dataset(str(path))
    files = sorted(Path(info["val"]).iterdir())
    assert len(files) == 5 * len(list(ASSETS.glob("*.jpg"))) + calibration.DRAWN and info["kpt_shape"] == [5, 3]
    contents = {np.asarray(cv2.imread(str(f))).tobytes() for f in files}
    assert len(contents) == len(files)  # no image twice


@pytest.mark.slow
def test_int8_onnx_without_a_data_set(tmp_path: Path) -> None:
    """On the weights that ship: which convolutions are in 8 bits, the hint, and the people of the checkpoint."""
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    stock = quantization.quantize_static
    lines: list[str] = []
    keep = logging.Handler()
    keep.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(keep)
    weights = Path(shutil.copy(catalog.cfg_root() / "weights" / "erpose-n.pt", tmp_path))
    try:
        path = ERPose(weights).export(format="onnx", imgsz=640, int8=True)
    finally:
        LOGGER.removeHandler(keep)
    assert quantization.quantize_static is stock
    told = [line for line in lines if re.search("calibrat|abels", line)]
    assert sum(calibration.HINT in line for line in told) == 1 and not any("missing" in line for line in told)
    graph = onnx.load(path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    kept = quantize.traced([*PARTS.first, *PARTS.attention, *PARTS.head])
    for node in graph.node:
        if node.op_type == "Conv":
            assert (made_by.get(node.input[1]) == "DequantizeLinear") is not bool(re.search(kept, node.name))
    assert exporter.read_metadata(path)["head"] == "ERPoseHead"
    finds_the_same(path, weights)
