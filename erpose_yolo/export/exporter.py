"""Export to every format of Ultralytics without NMS, with metadata that suffice without Python, in one step or not at all.

The stock exporter does the work. It turns end-to-end models of formats without TopK into one-to-many models with NMS on the
host; ours gives them the raw maps of the one-to-one head instead, of which the host decodes the few cells that pass (method.maps).
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils import LOGGER, YAML

from erpose_yolo import catalog
from erpose_yolo.arguments import check_arguments
from erpose_yolo.data.skeletons import COCO_17, keypoint_names, known_skeleton
from erpose_yolo.export.calibration import HINT, write_default_data
from erpose_yolo.export.formats import (
    ALWAYS_EIGHT_BIT,
    CALIBRATED,
    CONVERTERS,
    EIGHT_BIT,
    QUANTIZE,
    QUANTIZERS,
    ROWS,
    RUNTIMES,
    SIGMA_LAYOUT,
    _need,
    format_of,
    layout_of,
)
from erpose_yolo.export.ncnn_int8 import describe as describe_errors
from erpose_yolo.export.ncnn_int8 import quantize_folder
from erpose_yolo.export.quantize import FIRST, held_in_float
from erpose_yolo.method.boxes import with_room
from erpose_yolo.method.decode import OFFSET_CELLS
from erpose_yolo.method.errorbars import sigma_units
from erpose_yolo.method.maps import MapsDecoder
from erpose_yolo.method.oks import sigmas_for
from erpose_yolo.nn import HEAD

EIGHT_BIT_FOLDER = "_int8_ncnn_model"  # how the name of an NCNN export in 8 bits ends, as stock code names other formats
_TURN = threading.RLock()  # of exports, which replace functions of other modules for their length


def export(model: Any, run: Callable[..., str], layout: str | None = None, sigma: bool = False, /, **kwargs: Any) -> str:
    """Export a model. Exports of several threads take turns, because parts of other packages are replaced meanwhile.

    Args:
        model: the ERPose object.
        run: the stock ``export`` method, bound to it.
        layout: what the outputs hold, see formats.layout_of.
        sigma: rows end with the error bar of each keypoint (method.errorbars), in the units of the coordinates.
        **kwargs: its arguments, of which the stock command line passes ``model`` on, too. ``nms`` is ignored: there is none.

    Returns:
        Path of the export. It is complete: a failed export leaves nothing, and what was there before stays.

    Raises:
        ValueError: unknown format or layout, or a format that cannot hold this model.
        ModuleNotFoundError: a converter is not installed; the message names the pip package.
    """
    fmt = format_of(kwargs.get("format") or model.overrides.get("format") or "torchscript")
    quantize = kwargs.get("quantize", 16 if kwargs.get("half") else 8 if kwargs.get("int8") else None)
    quantize = QUANTIZE.get(str(quantize).lower(), quantize)
    _need(CONVERTERS.get(fmt, {}) | (QUANTIZERS.get(fmt, {}) if quantize in EIGHT_BIT else {}), f"format='{fmt}'")
    check_arguments("export", kwargs)
    kwargs["nms"] = False
    work = _Work(fmt, layout_of(fmt, layout), sigma)
    eight_bit = quantize in EIGHT_BIT and isinstance(model.model, nn.Module)  # stock code refuses to export an export
    if fmt == "ncnn" and eight_bit and work.layout != "maps":
        raise ValueError("format='ncnn' has 8 bits with layout='maps' alone: cells would be decoded in 8 bits. Leave out layout=.")
    calibrated = fmt in CALIBRATED and ((eight_bit and quantize != "w8a32") or fmt in ALWAYS_EIGHT_BIT)
    starts = model.callbacks["on_export_start"]
    starts.append(work.start)
    try:
        with _TURN, work.quiet(), tempfile.TemporaryDirectory() as scratch:
            if calibrated and not kwargs.get("data"):
                LOGGER.warning(HINT)
                work.own_images = True
                kwargs["data"] = str(write_default_data(Path(scratch), model.model.model[-1].kpt_shape[0]))
            if fmt == "ncnn" and quantize == 8:  # ultralytics has no such step
                work.calibration = {key: kwargs.pop(key) for key in ("data", "split", "fraction") if key in kwargs}
                kwargs = {key: value for key, value in kwargs.items() if key not in ("half", "int8")} | {"quantize": 16}
            with held_in_float(fmt, model.model) if eight_bit else nullcontext(), paddle_sampling(fmt):
                made = run(**kwargs)
                return work.publish(str(made))  # coreml gives a Path
    finally:
        starts.remove(work.start)
        work.clean()


@contextmanager
def paddle_sampling(fmt: str) -> Iterator[None]:
    """Teach x2paddle, for the length of one export, the sampling of refine.sample_maps: paddle has it, the converter does not.

    Args:
        fmt: export format; nothing happens but for "paddle".
    """
    if fmt != "paddle":
        yield
        return
    aten: Any = importlib.import_module("x2paddle.op_mapper.pytorch2paddle.aten")
    name = "aten_grid_sampler"  # it looks for functions of this name

    def grid_sampler(mapper: Any, graph: Any, node: Any) -> tuple[list[str], list[str]]:
        scope, outputs = mapper.normalize_scope_name(node), [mapper._get_outputs_name(node)[0]]
        names, sources = mapper._get_inputs_name(node)
        for source, given in zip(sources[:2], names[:2]):
            mapper._check_input(graph, source, given, outputs, scope)
        graph.add_layer(
            "paddle.nn.functional.grid_sample", inputs={"x": names[0], "grid": names[1]}, outputs=outputs, scope_name=scope,
            mode="'bilinear'", padding_mode="'zeros'", align_corners=False,
        )  # fmt: skip
        return names[:2], outputs

    stock = getattr(aten, name, None)
    setattr(aten, name, stock or grid_sampler)
    try:
        yield
    finally:
        if stock is None:
            delattr(aten, name)


class _Work:
    """An export in a folder of its own beside the final place, so that it can be moved there in one step."""

    def __init__(self, fmt: str, layout: str, sigma: bool = False) -> None:
        self.fmt, self.layout, self.sigma = fmt, layout, sigma
        self.folder: Path | None = None
        self.final = Path()
        self.calibration: dict[str, Any] = {}  # arguments, of an NCNN export in 8 bits
        self.own_images = False  # calibrated on those of export.calibration
        self.stock: Any = None

    def start(self, exporter: Any) -> None:
        """Callback ``on_export_start``: the stock exporter's copy of the model is ready and nothing is written yet."""
        prepare(exporter, self.fmt, self.layout, self.sigma)
        self.stock = exporter
        shipped = catalog.cfg_root() / "weights"  # of an installation: the user's folder is where they are worked with
        self.final = Path.cwd() if exporter.file.parent.resolve() == shipped.resolve() else exporter.file.parent
        self.final.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".export-", dir=self.final))  # same file system: a move is a rename
        exporter.file = self.folder / exporter.file.name

    def publish(self, made: str) -> str:
        """Move what was made, not its by-products, to its final place.

        Args:
            made: what the exporter returned.

        Returns:
            Its final path, a folder with the separator at its end that stock code gives it.
        """
        assert self.folder is not None
        if self.calibration:
            made = self.to_eight_bits(made)
        inside = Path(made).relative_to(self.folder)
        tops = [inside.parts[0]]
        if self.fmt == "pb":  # its metadata lie in the folder of the SavedModel
            tops.append(next(p.name for p in self.folder.iterdir() if p.name.endswith("_saved_model")))
        for top in tops:
            source, target = self.folder / top, self.final / top
            for script in source.rglob("*.py") if source.is_dir() else ():  # sample code with paths in it
                script.write_text(script.read_text().replace(self.folder.as_posix(), self.final.as_posix()))
            _list_files(source)
            old = self.folder / f"old-{top}"
            if target.is_dir():  # a folder can only be renamed onto nothing
                target.rename(old)
            try:
                os.replace(source, target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        return str(self.final / inside) + (made[-1] if made[-1] in "/\\" else "")

    def to_eight_bits(self, made: str) -> str:
        """Put an NCNN folder into 8 bits and say so in its name and metadata."""
        source = Path(made)
        vars(self.stock.args).update(self.calibration)
        loader = self.stock.get_int8_calibration_dataloader("NCNN:")
        images = (image for batch in loader for image in batch["img"].float().div(255).numpy())
        first = sum(isinstance(m, nn.Conv2d) for block in self.stock.model.model[:FIRST] for m in block.modules())
        errors = quantize_folder(source, images, first)
        sidecar = source / "metadata.yaml"
        metadata = YAML.load(sidecar)
        YAML.save(sidecar, {**metadata, "args": {**metadata.get("args", {}), "quantize": 8}})
        target = source.with_name(source.name.replace("_ncnn_model", EIGHT_BIT_FOLDER))
        for script in source.glob("*.py"):
            script.write_text(script.read_text().replace(source.name, target.name))
        size = sum(file.stat().st_size for file in source.iterdir()) / 2**20
        LOGGER.info(f"NCNN: now in 8 bits ({size:.1f} MB); most is lost before {describe_errors(errors)}")
        return str(source.rename(target))

    def clean(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep out of the log what is not true of this export."""

        def keep(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            if "not support end2end" in text:
                return False  # it goes on to say that the branch is disabled, and it is not
            if self.own_images and re.search("No labels found|Labels are missing|images recommended|New cache created", text):
                return False  # HINT has said it
            said = text if self.folder is None else text.replace(str(self.folder), str(self.final))
            if self.calibration:  # stock code names what to_eight_bits is about to rename
                said = said.replace("_ncnn_model", EIGHT_BIT_FOLDER).replace(" quantize=16", "")
            if said != text:
                record.msg, record.args = said, ()
            return True

        LOGGER.addFilter(keep)
        try:
            yield
        finally:
            LOGGER.removeFilter(keep)


def _list_files(folder: Path) -> None:
    """Add the sizes of a folder's files to its metadata, for :func:`check_file`."""
    sidecar = folder / "metadata.yaml"
    if sidecar.exists():
        files = {f.relative_to(folder).as_posix(): f.stat().st_size for f in folder.rglob("*") if f.is_file() and f != sidecar}
        YAML.save(sidecar, {**YAML.load(sidecar), "files": files})


def prepare(exporter: Any, fmt: str, layout: str, sigma: bool = False) -> None:
    """Fit the exporter's own copy of the model to the format, and complete the metadata.

    Args:
        exporter: stock Exporter, its ``model``, ``im`` and ``metadata`` set.
        fmt: format.
        layout: see formats.layout_of.
        sigma: rows end with error bars.

    Raises:
        ValueError: a format or a network that cannot have what is asked for.
    """
    head: Any = exporter.model.model[-1]
    head.layout = layout
    if layout == "maps":
        head.deployed.merge()
    shares = fmt == "edgetpu"
    if sigma and (shares or not head.has_error_bars):
        reason = "the Edge TPU has one 8-bit scale for all of a row" if shares else "the spreads of this model are not trained"
        raise ValueError(f"sigma=True: {reason}. Export without it.")
    if sigma or (layout == "maps" and head.has_error_bars):  # maps hold the spreads anyway
        oks_sigmas = sigmas_for(head.kpt_shape[0], getattr(exporter.model, "kpt_oks_sigmas", None))
        head.sigma_units = sigma_units(oks_sigmas, head.spread_factors)
    if sigma and layout != "maps":
        *shape, columns = exporter.output_shape
        exporter.output_shape = (*shape, columns + head.kpt_shape[0])
    if shares:
        if head.kpt_shape[1] != 3:
            raise ValueError("ultralytics' Edge TPU runtime expects keypoints of three columns (kpt_shape: [K, 3]).")
        head.register_forward_hook(Shares(exporter.imgsz, head.kpt_shape))
    if fmt == "ncnn":
        exporter.im = exporter.im[:1]  # its graphs have no batch: pnnx crashes on one, and the backend runs image by image
        head.per_keypoint_sampling = True
    if fmt == "qnn":  # onnxruntime's shape inference, a step of this route, cannot read ReduceMax of later opsets
        exporter.args.opset = exporter.args.opset or 17
    exporter.metadata.update(describe(exporter.model, head, shares=shares))
    head.stride = tuple(head.stride.tolist())  # torch.export refuses to read numbers from tensors


class Shares:
    """Forward hook that turns pixels of rows into shares of the input's width and height.

    The Edge TPU has one 8-bit scale for a whole tensor, in which scores of 0..1 vanish beside pixels of 0..640. Ultralytics'
    runtime turns shares back into pixels.
    """

    def __init__(self, imgsz: tuple[int, int], kpt_shape: list[int]) -> None:
        height, width = imgsz
        keypoints, values = kpt_shape
        point = [1 / width, 1 / height]
        self.scale = torch.tensor(point * 2 + [1.0, 1.0] + (point + [1.0] * (values - 2)) * keypoints)

    def __call__(self, module: nn.Module, args: Any, rows: Tensor) -> Tensor:
        return rows * self.scale.to(rows)


def describe(model: Any, head: Any, shares: bool = False) -> dict[str, Any]:
    """What a program without this package must know of an export, besides the stock metadata.

    Returns:
        head, end2end, kpt_names (per class, as ultralytics writes it; numbered where nobody named them), skeleton (pairs of
        keypoint indices, empty where unknown), sigmas, strides (``stride`` is the largest), layout ("rows" of the best cells,
        sorted; "cells", a row per cell; "maps", see method.maps), row (its columns), units (of its coordinates), input (what
        the network was trained to see) and oks_factor (of errorbars.pose_oks). For maps also maps (channels of each part of a
        pose map), offset_cells, margins (of derived boxes, with room), confidence and sigma_units (of errorbars.keypoint_sigma,
        None where spreads are untrained).
        Numbers, strings, lists and dictionaries only.
    """
    keypoints, values = head.kpt_shape
    given = getattr(model, "kpt_names", None)
    names = keypoint_names(given, keypoints)
    known = known_skeleton(names) if names else COCO_17 if keypoints == len(COCO_17.names) else None
    if names is None:
        names, given = list(known.names) if known else [f"keypoint_{k}" for k in range(keypoints)], None
    per_class = given if isinstance(given, dict) else dict.fromkeys(range(head.nc), names)
    limbs = getattr(model, "skeleton", None) or (known.limbs if known else ())
    sigmas = sigmas_for(keypoints, getattr(model, "kpt_oks_sigmas", None)).tolist()
    maps = {
        "maps": head.deployed.channels,
        "offset_cells": OFFSET_CELLS,
        "margins": with_room(head.margins).tolist(),
        "confidence": head.confidence,
        "sigma_units": None if head.sigma_units is None else head.sigma_units.tolist(),
    }
    return {
        "head": HEAD,
        "end2end": True,  # in the sense of ultralytics' backends: rows are final, neither to be decoded nor suppressed
        "kpt_names": {int(k): list(v) for k, v in per_class.items()},
        "skeleton": [[int(a), int(b)] for a, b in limbs],
        "sigmas": [round(float(s), 6) for s in sigmas],
        "strides": [int(s) for s in head.stride.tolist()],
        "layout": head.layout,
        "row": ROWS[values] + (SIGMA_LAYOUT if head.sigma_units is not None else ""),
        "units": "shares of the input's width and height" if shares else "pixels of the input",
        "input": {"colour": "RGB", "range": [0, 1], "order": "BCHW", "resize": "letterbox", "padding": 114},
        "oks_factor": head.oks_factor,
        **(maps if head.layout == "maps" else {}),
    }


def format_of_file(path: str | Path) -> str | None:
    """Format of an export by its name; None for a checkpoint, a YAML or an address."""
    name = Path(str(path).rstrip("/\\")).name.lower()
    if "://" in str(path):
        return None
    table = export_formats()
    found = [(len(s), f) for s, f in zip(table["Suffix"], table["Argument"]) if f != "-" and name.endswith(s)]
    return max(found)[1] if found else None


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of an export, without its runtime; empty if there are none."""
    path = Path(path)
    if path.suffix.lower() != ".mnn":
        return dict(BaseBackend.read_metadata(path) or {})
    blob = path.read_bytes()  # ultralytics leaves MNN's to the runtime; it is JSON text inside the file
    start = blob.find(b'{"description"')
    if start < 0:
        return {}
    try:
        found = json.JSONDecoder().raw_decode(blob[start : start + 65536].decode("utf-8", "ignore"))[0]
    except ValueError:
        return {}
    return dict(found)


def check_file(path: str | Path) -> None:
    """Make sure that an exported file can be opened as an ER-Pose model, before a runtime fails in its own words.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: its runtime is not installed; the message names the pip package.
        ValueError: no metadata, or files of other sizes than exported: damaged, or not exported by ultralytics.
        TypeError: of another head.
    """
    fmt = format_of_file(path)
    if fmt is None:
        return
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist.")
    metadata = read_metadata(path)
    if not metadata:
        raise ValueError(
            f"{path} carries no metadata: it is damaged, or was not exported from an ER-Pose model. Export it again with "
            f"ERPose('model.pt').export(format='{fmt}')."
        )
    if metadata.get("head") != HEAD:
        raise TypeError(
            f"{path} is an export of a {metadata.get('head', 'model of unknown head')}, not of an ER-Pose model. Open it with "
            "ultralytics.YOLO."
        )
    for name, size in metadata.get("files", {}).items() if Path(path).is_dir() else ():
        file = Path(path) / name
        found = file.stat().st_size if file.exists() else 0
        if found != size:
            raise ValueError(f"{file} is damaged: it has {found:,} of {size:,} bytes. Copy or export the model again.")
    _need(RUNTIMES.get(fmt, {}), f"Opening {path}")


def check_input(shape: tuple[int, ...], model: Any) -> None:
    """Make sure that a batch fits a file of fixed size.

    Args:
        shape: (B, C, H, W) of the network input.
        model: AutoBackend.

    Raises:
        ValueError: another height or width than exported.
    """
    fixed = getattr(model, "imgsz", None)
    if fixed is None or getattr(model, "dynamic", False) or not getattr(model, "metadata", None):
        return
    height, width = (fixed, fixed) if isinstance(fixed, int) else fixed
    if tuple(shape[-2:]) != (height, width):
        raise ValueError(
            f"Input of {shape[-2]} x {shape[-1]} px, but the file was exported for {height} x {width} px only. Resize it, or "
            f"export with imgsz={shape[-2]},{shape[-1]} or with dynamic=True."
        )


def maps_decoder(model: Any) -> MapsDecoder | None:
    """What decodes the outputs of a network; None for a checkpoint, or an export that gives rows.

    Args:
        model: AutoBackend, a module, or an object with an export's metadata as attributes.
    """
    if getattr(model, "layout", None) != "maps":
        return None
    about = {key: getattr(model, key) for key in ("maps", "strides", "margins", "confidence", "sigma_units", "kpt_shape", "names")}
    about = {k: ast.literal_eval(v) if isinstance(v, str) and k != "confidence" else v for k, v in about.items()}  # text in ONNX
    margins, columns, classes = torch.tensor(about["margins"]), about["kpt_shape"][1], len(about["names"])
    units = None if about["sigma_units"] is None else torch.tensor(about["sigma_units"])
    return MapsDecoder(about["maps"], about["strides"], margins, about["confidence"], columns, classes, units)


def full_precision(model: Any, path: str | Path) -> None:
    """Make OpenVINO compute what is float32 in an export in float32.

    Of its own accord it computes in bfloat16 on CPUs that can, which moves keypoints by up to a pixel; in 8-bit exports that is
    the head. Who prefers that exports with ``quantize=16``. No other runtime needs it.

    Args:
        model: AutoBackend.
        path: its file.
    """
    backend: Any = getattr(model, "backend", None)
    if getattr(model, "format", None) != "openvino" or backend.metadata.get("args", {}).get("quantize") not in (None, 32, 8):
        return
    import openvino

    float32 = openvino.Type.f32
    options = backend.compile_model.keywords  # of the call that compiled it
    if options["device_name"] != "CPU" or backend.ov_compiled_model.get_property("INFERENCE_PRECISION_HINT") == float32:
        return
    options["config"]["INFERENCE_PRECISION_HINT"] = float32
    file = next(Path(path).glob("*.xml")) if Path(path).is_dir() else Path(path)
    backend.ov_compiled_model = backend.compile_model(openvino.Core().read_model(file))
