"""Export: the same persons from every runtime, no NMS in any graph, nothing half-written, and clear words for bad input."""

from __future__ import annotations

import ast
import json
import logging
import shutil
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import test_yolo26
import torch
import torch.nn.functional as F
from ultralytics import YOLO
from ultralytics.utils import ASSETS, LOGGER

from erpose_yolo import catalog
from erpose_yolo.export import exporter, formats
from erpose_yolo.model import ERPose

SIZE = 96
MAPS = ("ncnn", "executorch", "paddle")
NEEDS = {"openvino": ["openvino"], "ncnn": ["ncnn", "pnnx"], "mnn": ["MNN"], "litert": ["litert_torch"],
         "executorch": ["executorch"], "paddle": ["paddle", "x2paddle"], "saved_model": ["tensorflow", "onnx2tf"]}  # fmt: skip


def fill(model: ERPose, refined: bool = True) -> None:
    """Random weights, with scores far above zero, for a network whose keypoints are moved where it is refined."""
    head = model.model.model[-1]
    norms = [m for m in model.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    usual = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    photo = cv2.imread(str(ASSETS / "bus.jpg"))[:, :, ::-1]
    side = max(SIZE, 2 * int(head.stride.max()))
    corners = [(y, x) for y in range(0, 600, 120) for x in range(0, 400, 100)]
    crops = np.stack([cv2.resize(photo[y : y + 480, x : x + 400], (side, side)) for y, x in corners])
    with torch.no_grad():  # unless its normalisation fits, a random network sees next to nothing of its input
        model.model.train()(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255)
    for m, momentum in zip(norms, usual):
        m.momentum = momentum
    for tower in head.one2one_score:
        tower[-1].bias.data.fill_(1.0)
        tower[-1].weight.data.normal_(0, 0.1)
    for conv in head.deployed.spread:
        conv.bias.data.fill_(-2.0)  # sure of its keypoints, so that scores stay high
        conv.weight.data.normal_(0, 0.05)
    for conv in head.deployed.refinement if refined else ():
        conv.weight.data.normal_(0, 0.05)  # keypoints are looked up and moved


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with scores far above zero, so that there are persons to compare."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    fill(model)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    model.model.names = {0: "person"}
    model.save(path)
    return path


@pytest.fixture
def checkpoint(weights: Path, tmp_path: Path) -> Path:
    """The checkpoint in the folder of the test."""
    path = tmp_path / "small.pt"
    path.write_bytes(weights.read_bytes())
    return path


def test_the_look_ups_move_keypoints(checkpoint: Path) -> None:
    """What the other tests compare must depend on the maps."""
    refined = rows_of(checkpoint)
    model = ERPose(checkpoint)
    model.model.model[-1].one2one_pose.refinement = None
    model.save(checkpoint)
    assert np.abs(rows_of(checkpoint)[:20, 1:] - refined[:20, 1:]).max() > 1


def rows_of(path: Path | str, size: int = SIZE, conf: float = 0.3) -> np.ndarray:
    """Scores and keypoints of the rows on a photo of the package, best first."""
    image = cv2.imread(str(ASSETS / "bus.jpg"))
    result = ERPose(path).predict(image, imgsz=size, conf=conf, rect=False, device="cpu", verbose=False)[0]
    return torch.cat((result.boxes.conf[:, None], result.keypoints.xy.flatten(1)), 1).cpu().numpy()


def same(path: Path | str, checkpoint: Path, tolerance: float = 0.5, size: int = SIZE) -> None:
    """Every person of the checkpoint is found by the export: its keypoints within the tolerance in px."""
    wanted, got = rows_of(checkpoint, size), rows_of(path, size, conf=0.2)
    assert len(wanted) >= 20
    for row in wanted[:20]:
        assert np.abs(got[:, 1:] - row[1:]).max(1).min() < tolerance


@pytest.mark.parametrize("fmt", ["torchscript", "onnx"])
def test_export_gives_same_persons(fmt: str, checkpoint: Path) -> None:
    path = ERPose(checkpoint).export(format=fmt, imgsz=SIZE)
    assert Path(path).parent == checkpoint.parent
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == sorted(["small.pt", Path(path).name])
    same(path, checkpoint)
    assert type(YOLO(path)) is ERPose


@pytest.mark.slow
@pytest.mark.parametrize("fmt", sorted(NEEDS))
def test_other_runtimes_give_same_persons(fmt: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS[fmt]:
        pytest.importorskip(module)
    monkeypatch.chdir(checkpoint.parent)
    if fmt == "saved_model":  # onnx2tf compares tensors on sample images, and would download them
        np.save("calibration_image_sample_data_20x128x128x3_float32.npy", np.random.rand(20, 128, 128, 3).astype(np.float32))
    path = ERPose(checkpoint).export(format=fmt, imgsz=SIZE)
    assert exporter.read_metadata(path)["layout"] == ("maps" if fmt in MAPS else "rows")
    same(path, checkpoint)
    if fmt == "ncnn":  # and for those who want rows in their app
        path = ERPose(checkpoint).export(format=fmt, imgsz=SIZE, layout="cells")
        assert exporter.read_metadata(path)["layout"] == "cells"
        same(path, checkpoint)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The weights that ship; on trained maps rounding is not magnified as on random ones."""
    return Path(shutil.copy(catalog.cfg_root() / "weights" / "erpose-n.pt", tmp_path / "trained.pt"))


def people(path: Path | str, size: int | list[int], batch: int = 1) -> list[torch.Tensor]:
    """Boxes with scores, keypoints, and error bars of people on a photo, in its pixels, of which 4 are at most one of the input."""
    image = cv2.imread(str(ASSETS / "bus.jpg"))
    found = YOLO(path).predict([image] * batch, imgsz=size, rect=False, device="cpu", verbose=False)[0]
    return [found.boxes.data, found.keypoints.data, found.erpose.sigma]


@pytest.mark.parametrize(
    "options", [{"dynamic": True}, {"batch": 2, "imgsz": [288, 352]}, {"quantize": 16}, {"format": "ncnn"}], ids=str
)
def test_the_host_decodes_maps(options: dict[str, Any], trained: Path) -> None:
    """Files of maps give the people of the checkpoint; ONNX Runtime stands in for the runtimes that have no TopK."""
    for module in {"ncnn": ["ncnn", "pnnx"]}.get(options.get("format", ""), ["onnxruntime"]):
        pytest.importorskip(module)
    options = {"format": "onnx", "imgsz": 288, **options}
    path = ERPose(trained).export(layout="maps", **options)
    assert exporter.read_metadata(path)["layout"] == "maps" and type(YOLO(path)) is ERPose
    wanted, got = people(trained, options["imgsz"]), people(path, options["imgsz"], options.get("batch", 1))
    assert len(wanted[0]) >= 3
    for a, b in zip(wanted, got):
        torch.testing.assert_close(b, a, rtol=0, atol=1.0 if "quantize" in options else 4e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["erpose-n-p2.yaml", "erpose-n-p6.yaml", "yolo26n-pose.pt"])
def test_maps_of_other_networks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels from stride 4, and to stride 64; a stock checkpoint, whose keypoints are not refined and whose score is a class's."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    refined = name.endswith(".yaml")
    torch.manual_seed(0)
    model = ERPose(name if refined else test_yolo26.save(test_yolo26.stock(), name))
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.fill_(0.4)  # nearly linear: rounding in a deep random network at full gain changes all
    fill(model, refined)
    model.save("filled.pt")
    path = ERPose("filled.pt").export(format="onnx", imgsz=128, layout="maps")
    about = exporter.read_metadata(path)
    assert len(ast.literal_eval(about["strides"])) == (4 if refined else 3)
    assert ("refinement" in ast.literal_eval(about["maps"])) is refined
    same(path, Path("filled.pt"), size=128)


def test_maps_in_track_and_val(trained: Path, tmp_path: Path) -> None:
    """Both work as with the checkpoint; the labels are the checkpoint's own poses."""
    pytest.importorskip("onnxruntime")
    photo = ASSETS / "bus.jpg"
    options: dict[str, Any] = {"imgsz": 288, "rect": False, "device": "cpu", "verbose": False}
    found = ERPose(trained).predict(photo, **options)[0]
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder / "val").mkdir(parents=True)
    shutil.copy(photo, tmp_path / "data/images/val")
    keypoints = torch.cat((found.keypoints.xyn, torch.full((len(found), 17, 1), 2.0)), 2).flatten(1)
    rows = torch.cat((torch.zeros(len(found), 1), found.boxes.xywhn, keypoints), 1).tolist()
    text = "".join(" ".join(f"{value:.6g}" for value in row) + "\n" for row in rows)
    (tmp_path / "data/labels/val/bus.txt").write_text(text)
    data = tmp_path / "data" / "data.yaml"
    data.write_text(f"path: {data.parent}\ntrain: images/val\nval: images/val\nkpt_shape: [17, 3]\nnames: {{0: person}}\n")
    model = ERPose(ERPose(trained).export(format="onnx", imgsz=288, layout="maps"))
    assert model.track(photo, **options)[0].boxes.is_track
    assert model.val(data=str(data), batch=1, plots=False, workers=0, **options).pose.map > 0.9


def test_layouts_that_a_format_can_have() -> None:
    assert [formats.layout_of(f) for f in ("onnx", "ncnn", "qnn", "edgetpu")] == ["rows", "maps", "maps", "cells"]
    assert formats.layout_of("onnx", "maps") == "maps" and formats.layout_of("ncnn", "cells") == "cells"
    with pytest.raises(ValueError, match="layout='rows' cannot be had with format='ncnn': ncnn has no TopK.*Give layout='maps' or"):
        formats.layout_of("ncnn", "rows")
    with pytest.raises(ValueError, match="layout='maps' cannot be had with format='edgetpu'. Give layout='cells'"):
        formats.layout_of("edgetpu", "maps")
    with pytest.raises(ValueError, match="layout='dense' cannot be had"):
        formats.layout_of("onnx", "dense")


def test_onnx_has_no_nms_and_metadata_suffice(checkpoint: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = ERPose(checkpoint)
    model.model.kpt_oks_sigmas = [0.05] * 17
    graph = onnx.load(model.export(format="onnx", imgsz=SIZE))
    assert not [n.op_type for n in graph.graph.node if "Suppress" in n.op_type]
    looks = [{a.name: a for a in n.attribute} for n in graph.graph.node if n.op_type == "GridSample"]
    assert [a["padding_mode"].s for a in looks] == [b"zeros"]  # onnx2tf, the way to TensorFlow, knows no other padding
    info = {p.key: p.value for p in graph.metadata_props}
    assert info["head"] == "ERPoseHead" and info["end2end"] == "True"
    assert info["layout"] == "rows" and info["row"] == "x1 y1 x2 y2 score class (x y v)*K" and info["units"].startswith("pixels")
    assert "margins" not in info
    assert json.loads(info["sigmas"]) == [0.05] * 17
    assert len(json.loads(info["skeleton"])) >= 16 and json.loads(info["strides"]) == [8, 16, 32]
    assert ast.literal_eval(info["kpt_names"])[0][0] == "nose"
    assert ast.literal_eval(info["input"])["padding"] == 114
    assert ast.literal_eval(info["kpt_shape"]) == [17, 3]


def test_nms_argument_is_ignored_with_a_warning(checkpoint: Path, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erpose_yolo.arguments._told", set())  # said once per process
    path = ERPose(checkpoint).export(format="torchscript", imgsz=SIZE, nms=True)
    assert any("nms=True has no effect" in line for line in log)
    assert "nms" not in str(torch.jit.load(path).inlined_graph)


class FakeExporter:
    """As much of the stock exporter as prepare() reads."""

    def __init__(self, checkpoint: Path, quantize: int | None = None) -> None:
        self.model = ERPose(checkpoint).model.eval()
        self.model.model[-1].export = True
        self.args = type("Args", (), {"quantize": quantize, "opset": None})()
        self.im = torch.rand(1, 3, 64, 96)
        self.imgsz, self.metadata, self.output_shape = [64, 96], {}, (1, 300, 57)


def test_a_row_per_cell(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = FakeExporter(checkpoint)
    wanted = stock.model(stock.im)
    cells = FakeExporter(checkpoint)
    exporter.prepare(cells, "ncnn", "cells")
    padding, look_up = set(), F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda *a, **k: (padding.add(k["padding_mode"]), look_up(*a, **k))[1])
    got = cells.model(stock.im)
    assert padding == {"zeros"}  # the Edge TPU's route goes through onnx2tf, which knows no other
    assert got.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 57)
    assert cells.metadata["layout"] == "cells"
    for row in wanted[0, :20]:  # not by order: scores can be equal
        assert (got[0] - row).abs().amax(1).min() < 1e-3


def test_edge_tpu_gets_shares(checkpoint: Path) -> None:
    pixels, shares = FakeExporter(checkpoint), FakeExporter(checkpoint)
    exporter.prepare(pixels, "ncnn", "cells")
    exporter.prepare(shares, "edgetpu", "cells")
    rows, wanted = shares.model(pixels.im), pixels.model(pixels.im)
    assert shares.metadata["units"].startswith("shares") and pixels.metadata["units"].startswith("pixels")
    for start in (0, 2, *range(6, 57, 3)):  # what ultralytics' runtime does with them
        rows[..., start] *= 96
        rows[..., start + 1] *= 64
    torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-3)
    two = FakeExporter(checkpoint)
    two.model.model[-1].kpt_shape = [17, 2]
    with pytest.raises(ValueError, match="three columns"):
        exporter.prepare(two, "edgetpu", "cells")


def test_files_of_a_folder_are_checked_by_size(tmp_path: Path) -> None:
    folder = tmp_path / "a_ncnn_model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"12345")
    (folder / "metadata.yaml").write_text("head: ERPoseHead\n")
    exporter._list_files(folder)
    assert exporter.read_metadata(folder) == {"head": "ERPoseHead", "files": {"model.bin": 5}}
    (folder / "model.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="3 of 5 bytes"):
        exporter.check_file(folder)


def test_paddle_is_taught_the_look_up_for_one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """x2paddle's graph gets the layer with the padding of ours; other formats, and what comes after, find x2paddle as it was."""
    aten = types.ModuleType("aten")
    for name in ("x2paddle", "x2paddle.op_mapper", "x2paddle.op_mapper.pytorch2paddle"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "x2paddle.op_mapper.pytorch2paddle.aten", aten)
    with exporter.paddle_sampling("onnx"):
        assert not hasattr(aten, "aten_grid_sampler")
    mapper, graph = MagicMock(), MagicMock()
    mapper._get_outputs_name.return_value = ["out"]
    mapper._get_inputs_name.return_value = (["x", "grid", "mode", "padding", "align"], list("abcde"))
    with pytest.raises(KeyboardInterrupt), exporter.paddle_sampling("paddle"):
        assert aten.aten_grid_sampler(mapper, graph, "node") == (["x", "grid"], ["out"])
        raise KeyboardInterrupt
    (kernel,), told = graph.add_layer.call_args
    assert kernel == "paddle.nn.functional.grid_sample" and told["inputs"] == {"x": "x", "grid": "grid"}
    assert (told["mode"], told["padding_mode"], told["align_corners"]) == ("'bilinear'", "'zeros'", False)
    assert not hasattr(aten, "aten_grid_sampler")
    aten.aten_grid_sampler = "its own"  # a later x2paddle may know it
    with exporter.paddle_sampling("paddle"):
        assert aten.aten_grid_sampler == "its own"
    assert aten.aten_grid_sampler == "its own"


def test_failed_export_keeps_the_good_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ERPose(checkpoint)
    good = Path(model.export(format="torchscript", imgsz=SIZE))
    before = good.read_bytes()

    def broken(*args: object, output_file: Path, **kwargs: object) -> None:
        Path(output_file).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("ultralytics.utils.export.torchscript.torch2torchscript", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        model.export(format="torchscript", imgsz=SIZE)
    assert good.read_bytes() == before
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["small.pt", "small.torchscript"]
    assert model.model.model[-1].layout == "rows" and not any(
        isinstance(getattr(callback, "__self__", None), exporter._Work) for callback in model.callbacks["on_export_start"]
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("onxx", "Did you mean 'onnx'"), ("pt", "no export format 'pt'"), ("imx", "box NMS"), ("hailo", "layer names")],
)
def test_unknown_format(name: str, words: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=words):
        ERPose(checkpoint).export(format=name)


def test_missing_converter_names_the_package(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "CONVERTERS", {"ncnn": {"no_such_module": "ncnn==1"}})
    with pytest.raises(ModuleNotFoundError, match="pip install 'ncnn==1'"):
        ERPose(checkpoint).export(format="ncnn")


def test_what_the_stock_command_passes_on(checkpoint: Path) -> None:
    """``yolo export`` calls export(model=..., format=...)."""
    assert Path(ERPose(checkpoint).export(model=str(checkpoint), format="torchscript", imgsz=SIZE)).is_file()


def test_shipped_weights_are_exported_into_the_users_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation is no place for the exports of its weights, and may be read-only."""
    root = tmp_path / "site-packages" / "cfg"
    (root / "weights").mkdir(parents=True)
    shipped = checkpoint.rename(root / "weights" / "erpose-n.pt")
    monkeypatch.setattr(exporter.catalog, "cfg_root", lambda: root)
    made = ERPose(shipped).export(format="torchscript", imgsz=SIZE)
    assert Path(made).resolve() == tmp_path / "erpose-n.torchscript" and list((root / "weights").iterdir()) == [shipped]


@pytest.mark.parametrize("given", [None, "numbers", "short"])
def test_every_export_names_its_keypoints(given: str | None, checkpoint: Path) -> None:
    """COCO's 17 where nobody named them (the stock trainer writes numbers then), numbers for other skeletons."""
    network = ERPose(checkpoint).model
    network.kpt_names = {None: None, "numbers": {0: [str(k) for k in range(17)]}, "short": {0: ["nose"]}}[given]
    told = exporter.describe(network, network.model[-1])
    assert told["kpt_names"][0][:2] == ["nose", "left_eye"] and len(told["kpt_names"][0]) == 17 and len(told["skeleton"]) == 19
    network.model[-1].kpt_shape = [14, 3]
    network.kpt_names = {None: None, "numbers": {0: [str(k) for k in range(14)]}, "short": {0: ["nose"]}}[given]
    told = exporter.describe(network, network.model[-1])
    assert told["kpt_names"] == {0: [f"keypoint_{k}" for k in range(14)]} and told["skeleton"] == []
    network.kpt_names = {0: list("abcdefghijklmn"), 1: list("ABCDEFGHIJKLMN")}
    network.skeleton = [(0, 1)]
    told = exporter.describe(network, network.model[-1])
    assert told["kpt_names"] == network.kpt_names and told["skeleton"] == [[0, 1]]


def test_what_is_lacking_is_said_before_anything_starts(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX by our extra, and a numpy that is too new for CoreML; nothing is installed by itself."""
    model = ERPose(checkpoint)
    monkeypatch.setattr("ultralytics.engine.exporter.Exporter.__init__", lambda *a, **k: pytest.fail("started"))
    find = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx, onnxslim, onnxruntime.*pip install 'erpose-yolo\[export\]'$"):
        model.export(format="onnx")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: name != "pkg_resources" or None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'setuptools<82'$"):  # rknn-toolkit2 needs it and does not say so
        model.export(format="rknn")
    version = formats.importlib.metadata.version
    for installed, allowed in (("2.3.5", True), ("1.26.4", True), ("2.4.0rc1", False), ("2.10.1", False), ("3.0.0", False)):
        monkeypatch.setattr(
            formats.importlib.metadata, "version", lambda name, v=installed: v if name == "numpy" else version(name)
        )
        assert (formats.missing(formats.CONVERTERS["coreml"]) == []) is allowed
    with pytest.raises(ModuleNotFoundError, match=r"format='coreml' needs numpy<2.4, .*pip install 'numpy<2.4'$"):
        model.export(format="coreml")


def test_exports_of_two_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of other modules are as they were after both, and no export sees the replacements of another."""
    module = types.SimpleNamespace(convert=lambda: "stock")
    stock, seen, busy = module.convert, [], threading.Event()

    @contextmanager
    def patch(fmt: str):
        before = module.convert
        module.convert = lambda: f"for {fmt} over {before()}"
        try:
            yield
        finally:
            module.convert = before

    def run(fmt: str):
        def stock_export(**kwargs: object) -> str:
            busy.wait(0.3)  # the other thread has time to come in
            seen.append(module.convert())
            return fmt

        model = types.SimpleNamespace(overrides={}, callbacks={"on_export_start": []})
        return exporter.export(model, stock_export, format=fmt)

    monkeypatch.setattr(exporter, "CONVERTERS", {})
    monkeypatch.setattr(exporter, "paddle_sampling", patch)
    monkeypatch.setattr(exporter._Work, "publish", lambda self, made: made)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, ("onnx", "openvino"))) == ["onnx", "openvino"]
    assert module.convert is stock and sorted(seen) == ["for onnx over stock", "for openvino over stock"]


def test_bad_files(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Path(ERPose(checkpoint).export(format="torchscript", imgsz=SIZE))
    damaged = tmp_path / "damaged.torchscript"
    damaged.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(ValueError, match="no metadata"):
        ERPose(damaged)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ERPose(tmp_path / "none.onnx")
    folder = tmp_path / "other_ncnn_model"
    folder.mkdir()
    (folder / "metadata.yaml").write_text("head: Pose26\ntask: pose\n")
    with pytest.raises(TypeError, match="export of a Pose26"):
        ERPose(folder)
    (folder / "metadata.yaml").write_text("head: ERPoseHead\ntask: pose\n")
    monkeypatch.setattr(exporter, "RUNTIMES", {"ncnn": {"no_such_module": "ncnn"}})
    with pytest.raises(ModuleNotFoundError, match="pip install 'ncnn'"):
        ERPose(folder)


def test_wrong_size_for_a_static_file() -> None:
    backend = type("Backend", (), {"imgsz": [64, 96], "dynamic": False, "metadata": {"head": "ERPoseHead"}})()
    exporter.check_input((1, 3, 64, 96), backend)
    with pytest.raises(ValueError, match="exported for 64 x 96 px only"):
        exporter.check_input((1, 3, 96, 96), backend)
    backend.dynamic = True
    exporter.check_input((1, 3, 96, 96), backend)


def test_metadata_of_mnn_without_its_runtime(tmp_path: Path) -> None:
    path = tmp_path / "a.mnn"
    path.write_bytes(b"\x00MNN" + json.dumps({"description": "x", "head": "ERPoseHead"}).encode() + b"\x00\xff\x01")
    assert exporter.read_metadata(path)["head"] == "ERPoseHead"


def test_misleading_warning_is_kept_out(checkpoint: Path) -> None:
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    try:
        with exporter._Work("ncnn", "maps").quiet():
            LOGGER.warning("This export format does not support end2end models, disabling the end2end branch.")
            LOGGER.warning("other")
    finally:
        LOGGER.removeHandler(handler)
    assert len(seen) == 1 and seen[0].endswith("other")  # ultralytics puts its own prefix before it


@pytest.mark.parametrize("fmt", ["torchscript", "onnx"])
def test_error_bars_are_exported_when_asked_for(fmt: str, checkpoint: Path) -> None:
    """The metadata say so, and predict reads back what the checkpoint gives; without the flag there are none."""
    image = cv2.imread(str(ASSETS / "bus.jpg"))
    options = {"imgsz": SIZE, "conf": 0.3, "rect": False, "device": "cpu", "verbose": False}
    wanted = ERPose(checkpoint).predict(image, **options)[0]
    path = ERPose(checkpoint).export(format=fmt, imgsz=SIZE, sigma=True)
    assert exporter.read_metadata(path)["row"] == "x1 y1 x2 y2 score class (x y v)*K sigma*K"
    got = ERPose(path).predict(image, **options)[0]
    assert got.keypoints.data.shape == (len(got), 17, 3) and got.erpose.sigma.shape == (len(got), 17)
    for keypoints, sigma in list(zip(wanted.keypoints.xy, wanted.erpose.sigma))[:10]:
        row = (got.keypoints.xy - keypoints).flatten(1).norm(dim=1).argmin()
        assert torch.allclose(got.erpose.sigma[row], sigma, rtol=2e-2)
    assert sorted(got.erpose.oks.tolist())[-3:] == pytest.approx(sorted(wanted.erpose.oks.tolist())[-3:], abs=0.01)
    if fmt == "torchscript":
        plain = ERPose(checkpoint).export(format=fmt, imgsz=SIZE)
        assert "sigma*K" not in exporter.read_metadata(plain)["row"]
        assert ERPose(plain).predict(image, **options)[0].erpose is None


def test_error_bars_that_cannot_be_exported(checkpoint: Path) -> None:
    dense = FakeExporter(checkpoint)
    exporter.prepare(dense, "ncnn", "cells", sigma=True)
    assert dense.model(dense.im).shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 57 + 17)
    with pytest.raises(ValueError, match="Edge TPU"):
        exporter.prepare(FakeExporter(checkpoint), "edgetpu", "cells", sigma=True)
    untrained = FakeExporter(checkpoint)
    untrained.model.model[-1].confidence = "score"
    with pytest.raises(ValueError, match="not trained"):
        exporter.prepare(untrained, "onnx", "rows", sigma=True)
