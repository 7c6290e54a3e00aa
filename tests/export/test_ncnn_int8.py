"""NCNN in 8 bits: its files are read and written as ncnn does, and the right convolutions are rounded."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from test_quantize import finds_the_same
from ultralytics.utils import LOGGER

from erpose_yolo import catalog
from erpose_yolo.export import ncnn_int8
from erpose_yolo.export.exporter import read_metadata
from erpose_yolo.model import ERPose

PARAM = """7767517
9 9
Input                    in0                      0 1 in0
Convolution              first                    1 1 in0 a 0=4 1=1 11=1 5=1 6=12
Swish                    silu                     1 1 a b
Convolution              body                     1 1 b c 0=4 1=1 11=1 5=1 6=16
ConvolutionDepthWise     wide                     1 1 c d 0=4 1=1 11=1 5=1 6=4 7=4
Split                    fork                     1 2 d e f
Convolution              tower                    1 1 e g 0=4 1=1 11=1 5=1 6=16
Convolution              out0                     1 1 g out0 0=2 1=1 11=1 5=1 6=8
Convolution              out1                     1 1 f out1 0=2 1=1 11=1 5=1 6=8
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network with a first convolution, a body and a head."""
    rng = np.random.default_rng(0)
    (tmp_path / "model.ncnn.param").write_text(PARAM)
    parts = []
    for outputs, count in ((4, 12), (4, 16), (4, 4), (4, 16), (2, 8), (2, 8)):
        parts.append(struct.pack("<I", ncnn_int8.FLOAT16) + rng.normal(0, 1, count).astype("<f2").tobytes() + bytes(-2 * count % 4))
        parts.append(rng.normal(0, 1, outputs).astype("<f4").tobytes())
    (tmp_path / "model.ncnn.bin").write_bytes(b"".join(parts))
    return tmp_path


def test_lines_are_written_as_they_were_read(folder: Path) -> None:
    magic, counts, layers = ncnn_int8.read_param(folder / "model.ncnn.param")
    assert "\n".join([magic, counts, *(layer.line() for layer in layers)]) + "\n" == PARAM


def test_head_and_first_convolution_stay_in_float(folder: Path) -> None:
    layers = ncnn_int8.read_param(folder / "model.ncnn.param")[2]
    assert [layer.name for layer in ncnn_int8.quantizable(layers, 1)] == ["body"]
    assert [layer.name for layer in ncnn_int8.quantizable(layers, 0)] == ["first", "body"]


def test_files_in_8_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.ncnn.bin").read_bytes()
    monkeypatch.setattr(ncnn_int8, "input_scales", lambda *_: ({"b": 50.0}, {"b": 0.001}))
    assert ncnn_int8.quantize_folder(folder, []) == {"body": 0.001}
    layers = {layer.name: layer for layer in ncnn_int8.read_param(folder / "model.ncnn.param")[2]}
    assert layers["body"].options[8] == "2" and not any(8 in layer.options for name, layer in layers.items() if name != "body")
    after = (folder / "model.ncnn.bin").read_bytes()
    start = 4 + 24 + 16  # the first convolution: tag, weights, bias
    assert after[:start] == before[:start]
    body = after[start:]
    assert struct.unpack("<I", body[:4])[0] == ncnn_int8.INT8
    bias, *rest = (np.frombuffer(body[4 + 16 + 16 * i :][:16], "<f4") for i in range(2))
    weights = np.frombuffer(before[start + 4 : start + 36], "<f2").astype(np.float32).reshape(4, 4)
    assert bias.tobytes() == before[start + 36 : start + 52]
    restored = np.frombuffer(body[4:20], np.int8).reshape(4, 4) / rest[0][:, None]
    np.testing.assert_allclose(restored, weights, atol=np.abs(weights).max() / 127 / 2 + 1e-6)
    assert struct.unpack("<f", body[52:56])[0] == 50
    assert body[56:] == before[start + 52 :]  # what follows
    monkeypatch.setattr(ncnn_int8, "input_scales", lambda *_: ({"b": 50.0}, {"b": 1.0}))
    with pytest.raises(ValueError, match="unknown type"):  # they are in 8 bits already
        ncnn_int8.quantize_folder(folder, [])


def test_an_input_that_loses_much_stays_in_float(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.ncnn.bin").read_bytes()
    monkeypatch.setattr(ncnn_int8, "input_scales", lambda *_: ({"b": 50.0}, {"b": 2 * ncnn_int8.KEEP}))
    ncnn_int8.quantize_folder(folder, [])
    assert (folder / "model.ncnn.bin").read_bytes() == before


def test_outliers_are_clipped() -> None:
    values = np.abs(np.random.default_rng(0).normal(0, 1, 20_000)).astype(np.float32)
    limit, lost = ncnn_int8.best_limit(values)
    assert limit <= values.max() * 1.001 and 0 < lost < 1e-3
    values[0] = 20
    with_outlier, _ = ncnn_int8.best_limit(values)
    assert with_outlier < 20


def test_cells_are_refused_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erpose_yolo.export.exporter._need", lambda *_: None)
    with pytest.raises(ValueError, match="layout='maps' alone"):
        ERPose("erpose-n.yaml").export(format="ncnn", layout="cells", quantize=8)


@pytest.mark.slow
def test_export_in_8_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the folder that is there, and the folder finds the people."""
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    weights = tmp_path / "erpose-n.pt"
    weights.write_bytes((catalog.cfg_root() / "weights" / "erpose-n.pt").read_bytes())
    LOGGER.addHandler(caplog.handler)
    try:
        path = ERPose(weights).export(format="ncnn", imgsz=640, int8=True)
    finally:
        LOGGER.removeHandler(caplog.handler)
    named = re.findall(r"erpose-n\w*_ncnn_model", caplog.text)
    assert len(named) >= 3 and set(named) == {"erpose-n_int8_ncnn_model"} and "now in 8 bits" in caplog.text
    assert Path(path).name == "erpose-n_int8_ncnn_model" and read_metadata(path)["args"]["quantize"] == 8
    assert "8=2" in (Path(path) / "model.ncnn.param").read_text()
    finds_the_same(path, weights)
