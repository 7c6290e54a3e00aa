"""The weights in every export format and precision: accuracy on photos of people, size, and time.

    python -m benchmarks.robustness.export --weights erpose-n.pt --data coco-people.yaml              # all of its val photos
    python -m benchmarks.robustness.export --weights erpose-n.pt --data coco-people.yaml --photos 60 --formats onnx openvino

Installs nothing: a format whose packages are missing is named with them. Rows are saved one by one, and those that are there are
not measured again, so that several environments, of which some formats need their own, fill one table. 8-bit exports are
calibrated on photos of the train split. The time is processor time of the network alone, on one thread, over that of the float32
export in the same runtime; both run in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import common
from benchmarks.speed import latency
from erpose_yolo import catalog
from erpose_yolo.export.exporter import read_metadata
from erpose_yolo.export.formats import CALIBRATED
from erpose_yolo.metrics.evaluate import read_labels
from erpose_yolo.model import ERPose

FP32, FP16, INT8, W8A16, W8A32 = "fp32", "fp16", "int8", "w8a16", "w8a32"
CASES = {
    "torchscript": [FP32],
    "onnx": [FP32, FP16, INT8],
    "openvino": [FP32, FP16, INT8],
    "ncnn": [FP32, FP16, INT8],
    "mnn": [FP32, FP16, INT8],
    "litert": [FP32, INT8, W8A16, W8A32],
    "executorch": [FP32],
    "paddle": [FP32],
    "coreml": [FP32, FP16, INT8],
}
QUANTIZE = {FP32: 32, FP16: 16, INT8: 8}
CALIBRATION = 16  # photos; LiteRT takes seconds for each
SHARE = 0.05  # of the train split, from which they are drawn: labels of all would be read in vain
ROUNDS = 20


def open_mnn(path: str) -> latency.Infer:
    import MNN

    runtime = MNN.nn.create_runtime_manager(({"precision": "low", "backend": "CPU", "numThread": 1},))  # as ultralytics does
    network = MNN.nn.load_module_from_file(path, [], [], runtime_manager=runtime, rearrange=True)
    return lambda x: [out.read() for out in network.onForward([MNN.expr.const(x.ctypes.data, x.shape)])]


def open_litert(path: str) -> latency.Infer:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(path, num_threads=1)
    network.allocate_tensors()
    into, outputs = network.get_input_details()[0]["index"], network.get_output_details()

    def infer(x: np.ndarray) -> list[np.ndarray]:
        network.set_tensor(into, x)
        network.invoke()
        return [network.get_tensor(out["index"]) for out in outputs]

    return infer


OPEN = {**latency.OPEN, "mnn": open_mnn, "litert": open_litert}


def accuracy(path: Path, data: str, imgsz: int) -> float:
    """Pose AP, 0 to 1."""
    options = {"batch": 1, "rect": False, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
    found = ERPose(path).val(data=data, imgsz=imgsz, **options)
    return float(found.pose.map)


def size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files) / 1e6


def export(args: argparse.Namespace, fmt: str, precision: str) -> Path:
    """The exported file, which an earlier row may have made."""
    folder = Path(args.folder) / f"{fmt}-{precision}"
    made = folder / "made.txt"
    if not made.exists():
        folder.mkdir(exist_ok=True)
        weights = Path(shutil.copy(args.weights, folder))
        options: dict[str, Any] = {"imgsz": args.imgsz, "device": "cpu", "quantize": QUANTIZE.get(precision, precision)}
        if precision in (INT8, W8A16) and fmt in CALIBRATED:
            options["data"] = str(Path(args.data).with_name("calibration.yaml"))
        made.write_text(str(ERPose(weights).export(format=fmt, **options)))
    return Path(made.read_text())


def times(fmt: str, precision: str, path: Path, plain: Path, imgsz: int) -> tuple[float, float]:
    """Milliseconds of a network, and the median of its time over that of the float32 export."""
    image = np.ascontiguousarray(latency.Letterbox(imgsz)(latency.photo(0)))
    opened = partial(latency.open_openvino, precision="bf16") if (fmt, precision) == ("openvino", FP16) else OPEN[fmt]
    networks = [opened(str(path)), OPEN[fmt](str(plain))]  # OpenVINO computes float16 files in bfloat16 on CPUs that have it
    spent: list[tuple[float, ...]] = []
    for _ in range(ROUNDS + 3):  # three to warm up
        round_ = []
        for network in networks:
            start = time.process_time()
            network(image)
            round_.append(time.process_time() - start)
        spent.append(tuple(round_))
    kept = spent[3:]
    return 1e3 * statistics.median(a for a, _ in kept), statistics.median(a / b for a, b in kept)


def measure(args: argparse.Namespace, fmt: str, precision: str) -> dict[str, Any]:
    """One row of the table, without its name."""
    row: dict[str, Any] = {}
    try:
        if fmt == "torch":
            return {"ap": round(accuracy(Path(args.weights), args.data, args.imgsz), 4)}
        start = time.process_time()
        path = export(args, fmt, precision)
        row |= {"mb": round(size_mb(path), 2), "layout": read_metadata(path).get("layout", "?")}
        row["export_s"] = round(time.process_time() - start, 1)
        if fmt == "coreml" and sys.platform != "darwin":
            return row | {"note": "converted; runs on a Mac only"}
        row["ap"] = round(accuracy(path, args.data, args.imgsz), 4)
        if fmt in OPEN:
            milliseconds, ratio = times(fmt, precision, path, export(args, fmt, FP32), args.imgsz)
            row |= {"ms": round(milliseconds, 1), "time": round(ratio, 2)}
    except Exception as error:  # whatever a converter throws: the table goes on
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        row["note"] = f"{type(error).__name__}: {text}".replace(f"{args.folder}/", "")[:200]
    return row


def isolated(args: argparse.Namespace, fmt: str, precision: str) -> dict[str, Any]:
    """The row, from a process of its own: a converter that crashes takes nothing with it."""
    command = [sys.executable, "-m", "benchmarks.robustness.export", "--one", fmt, precision]
    for key in ("weights", "data", "imgsz", "folder"):
        command += [f"--{key}", str(getattr(args, key))]
    out = Path(args.folder) / "row.json"
    out.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if out.exists():
        return dict(json.loads(out.read_text()))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"note": f"process ended with {done.returncode}: {last}"[:200]}


def subset(data: str, photos: int | None, folder: Path) -> tuple[str, int]:
    """A data set of some val photos, and of train photos to calibrate on under its val, too, where exporters look.

    Returns:
        Path of its data YAML, and the number of val photos.
    """
    data = str(catalog.resolve_data(data))
    val, info = read_labels(data, "val", folder, {})
    train, _ = read_labels(data, "train", folder, {"fraction": SHARE})
    draw = random.Random(0).sample
    chosen = {
        "photos": val if photos is None else draw(val, min(photos, len(val))),
        "calibration": draw(train, min(CALIBRATION, len(train))),
    }
    kept = {key: info[key] for key in ("kpt_shape", "flip_idx", "kpt_oks_sigmas", "names") if key in info}
    for name, labels in chosen.items():
        (folder / f"{name}.txt").write_text("\n".join(label["im_file"] for label in labels))
        about = {"path": str(folder), "train": "calibration.txt", "val": f"{name}.txt", **kept}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(about))
    return str(folder / "photos.yaml"), len(chosen["photos"])


def table(record: common.Record) -> str:
    """A line per format and precision."""
    plain = next((row["ap"] for row in record["rows"] if row["format"] == "torch"), None)
    lines = []
    for row in record["rows"]:
        ap = f"{100 * row['ap']:.1f}" if "ap" in row else ""
        lost = f"{100 * (plain - row['ap']) + 0.0:.1f}" if plain is not None and "ap" in row else ""
        cells = [row["format"], row["precision"], ap, lost, row.get("mb", ""), row.get("time", "")]
        lines.append([*cells, str(row.get("note", "")).replace("|", "/")])
    return common.markdown(["format", "precision", "AP", "AP lost", "MB", "time / fp32", "note"], lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="its val photos are judged, 8 bits are calibrated on its train photos")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--photos", type=int, help="val photos, drawn at random; all of them without it")
    parser.add_argument("--formats", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=[FP32, FP16, INT8, W8A16, W8A32])
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        os.chdir(args.folder)  # converters leave files where they run
        Path("row.json").write_text(json.dumps(measure(args, *args.one)))
        return
    args.weights = str(Path(catalog.resolve_weights(args.weights)).resolve())
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        args.data, count = subset(args.data, args.photos, Path(folder))
        digest = hashlib.sha256(Path(args.weights).read_bytes()).hexdigest()[:12]
        setup = {"weights": Path(args.weights).name, "sha256": digest, "imgsz": args.imgsz, "photos": count}
        measure_all(args, setup)


def rows_of(setup: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are there, read anew each time, as another process may have added some.

    Raises:
        ValueError: they are of other weights or photos.
    """
    old = common.read("export")
    if old and {key: old.get(key) for key in setup} != setup:
        raise ValueError(f"results/export.json was measured with other weights or photos than {setup}. Fix: remove it.")
    return list(old.get("rows", []))


def measure_all(args: argparse.Namespace, setup: dict[str, Any]) -> None:
    """Measure the rows that are missing, and save after each."""
    order = [("torch", FP32), *((fmt, precision) for fmt, precisions in CASES.items() for precision in precisions)]

    def place(row: dict[str, Any]) -> int:
        return order.index((row["format"], row["precision"]))

    for fmt, precision in order:
        there = any((row["format"], row["precision"]) == (fmt, precision) for row in rows_of(setup))
        if there or not (fmt == "torch" or (fmt in args.formats and precision in args.precisions)):
            continue
        new = {"format": fmt, "precision": precision, **isolated(args, fmt, precision)}
        with common.locked(common.RESULTS):
            common.save("export", {**setup, "rows": sorted([*rows_of(setup), new], key=place)}, table)


if __name__ == "__main__":
    main()
