"""One model in every export format: does it export and run, without NMS, as exactly, and how fast.

    python benchmarks/export.py --model best.pt --data data.yaml --imgsz 224
    python benchmarks/export.py --model best.pt --formats onnx ncnn            # some of them

Installs nothing: a format whose packages are missing is named with them. ``--append`` keeps the rows of an earlier run, for
formats that need environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["YOLO_AUTOINSTALL"] = "false"  # nothing is installed by a measurement

import cv2
import numpy as np
import torch
from common import RESULTS, markdown, write
from ultralytics.utils import ASSETS

from erpose_yolo import exporter
from erpose_yolo.model import ERPose

HALF, INT8, DYNAMIC, BATCH, WIDE = {"quantize": 16}, {"quantize": 8}, {"dynamic": True}, {"batch": 2}, {"imgsz": [224, 160]}
CASES: dict[str, list[dict[str, Any]]] = {
    "torchscript": [{}, DYNAMIC, BATCH, WIDE],
    "onnx": [{}, HALF, INT8, DYNAMIC, BATCH, WIDE],
    "openvino": [{}, HALF, INT8, DYNAMIC, BATCH, WIDE],
    "ncnn": [{}, HALF, BATCH, WIDE],
    "mnn": [{}, HALF, INT8, DYNAMIC, BATCH, WIDE],
    "litert": [{}, INT8, {"quantize": "w8a16"}, {"quantize": "w8a32"}, BATCH, WIDE],
    "executorch": [{}, BATCH, WIDE],
    "paddle": [{}, BATCH, WIDE],
    "coreml": [{}, HALF, INT8, {"dynamic": True, "batch": 2}, WIDE],
    "saved_model": [{}, INT8, BATCH, WIDE],
    "pb": [{}],
    "engine": [{}],
    "edgetpu": [{}],
    "rknn": [{}],
    "qnn": [{}],
    "deepx": [{}],
    "coreai": [{}],
    "xilinx": [{}],
    "ascend": [{}],
    "imx": [{}],
    "hailo": [{}],
    "axelera": [{}],
}
LABELS = {8: "int8", 16: "half"}


def title(options: dict[str, Any]) -> str:
    """Options in words."""
    parts = [LABELS.get(v, str(v)) if k == "quantize" else f"{k}={v}" for k, v in options.items()]
    return " ".join(parts) or "fp32"


def pictures(data: str | None, count: int) -> list[np.ndarray]:
    """Pictures of the package, and the first ones of the data set's val split."""
    files = sorted(ASSETS.glob("*.jpg"))
    if data:
        from ultralytics.data.utils import check_det_dataset, img2label_paths

        split = check_det_dataset(data)["val"]
        found = sorted(Path(split).glob("*.*")) if Path(split).is_dir() else [Path(x) for x in Path(split).read_text().split()]
        files += [f for f in found if Path(img2label_paths([str(f)])[0]).exists()][:count]
    return [image for f in files if (image := cv2.imread(str(f))) is not None]


def persons(model: ERPose, images: list[np.ndarray], imgsz: Any, conf: float, batch: int = 1) -> list[np.ndarray]:
    """Joints (n, K, 2) of each picture, every picture letterboxed to the same shape."""
    out = []
    for i in range(0, len(images), batch):
        found = model.predict(images[i : i + batch], imgsz=imgsz, conf=conf, rect=False, device="cpu", verbose=False)
        out += [r.keypoints.xy.cpu().numpy() for r in found]
    return out


def joint_difference(reference: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, int, int]:
    """Largest distance of a joint in px of the picture, the persons compared, and those that have no counterpart.

    ``other`` holds persons of lower scores, too: one whose score crosses the threshold is no lost person.
    """
    worst, pairs, lost = 0.0, 0, 0
    for a, b in zip(reference, other, strict=True):
        for person in a:
            if not len(b):
                lost += 1
                continue
            distance = np.abs(b - person).max((1, 2)).min()
            pairs += 1
            worst = max(worst, float(distance))
    return worst, pairs, lost


def operators(path: Path, fmt: str) -> Counter[str]:
    """How often each operator is in a graph; empty where it cannot be listed."""
    if fmt == "onnx":
        import onnx

        return Counter(n.op_type for n in onnx.load(path).graph.node)
    if fmt == "torchscript":
        return Counter(n.kind() for n in torch.jit.load(path, map_location="cpu").inlined_graph.nodes())
    if fmt == "openvino":
        import openvino

        return Counter(op.get_type_name() for op in openvino.Core().read_model(next(path.glob("*.xml"))).get_ops())
    if fmt == "ncnn":
        return Counter(line.split()[0] for line in (path / "model.ncnn.param").read_text().splitlines()[2:])
    if fmt == "coreml":
        import coremltools

        program = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().mlProgram
        return Counter(op.type for f in program.functions.values() for b in f.block_specializations.values() for op in b.operations)
    if fmt == "litert":
        from ai_edge_litert.interpreter import Interpreter

        details: Any = Interpreter(str(path))
        return Counter(op["op_name"] for op in details._get_ops_details())
    if fmt == "executorch":
        blob = next(path.rglob("*.pte")).read_bytes()
        return Counter({name: blob.count(name.encode()) for name in ("aten::topk", "nms")})
    if fmt == "paddle":
        blob = next(path.rglob("*.json")).read_bytes().lower()
        return Counter({name: blob.count(name.encode()) for name in ("topk", "nms")})
    if fmt == "mnn":
        from MNN.tools import mnnconvert  # noqa: F401

        blob = path.read_bytes()
        return Counter({name: blob.count(name.encode()) for name in ("TopKV2", "NonMaxSuppression")})
    if fmt == "saved_model":
        import tensorflow

        graph = tensorflow.saved_model.load(str(path)).signatures["serving_default"].graph.as_graph_def()
        inner = [n for f in graph.library.function for n in f.node_def]
        return Counter(n.op for n in [*graph.node, *inner])
    return Counter()


def named(ops: Counter[str], *words: str) -> int | str:
    """Number of operators whose name holds one of the words."""
    return sum(n for name, n in ops.items() if any(word in name.lower() for word in words)) if ops else "?"


def size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files) / 1e6


def precision(model: ERPose, data: str, imgsz: Any) -> float:
    """Pose AP on a data set."""
    found = model.val(data=data, imgsz=imgsz, batch=1, rect=False, device="cpu", plots=False, verbose=False, workers=0)
    return float(found.pose.map)


def latency(a: ERPose, b: ERPose, image: np.ndarray, imgsz: Any, rounds: int) -> list[float]:
    """Time of ``b`` over that of ``a``, whole predictions in turn."""
    ratios = []
    for i in range(rounds + 3):
        times = []
        for model in (a, b):
            start = time.perf_counter()
            model.predict(image, imgsz=imgsz, rect=False, device="cpu", verbose=False)
            times.append(time.perf_counter() - start)
        if i >= 3:
            ratios.append(times[1] / times[0])
    return ratios


def measure(args: argparse.Namespace, fmt: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"format": fmt, "options": title(options), "exports": False, "runs": False}
    weights = folder / "model.pt"
    shutil.copy(args.model, weights)
    imgsz, batch = options.get("imgsz", args.imgsz), options.get("batch", 1)
    calibration = {"data": args.data} if options.get("quantize") in (8, "w8a16") and args.data else {}
    stage = "exports"
    try:
        start = time.perf_counter()
        kwargs = {"imgsz": imgsz, "device": "cpu", **options, **calibration}
        path = Path(ERPose(weights).export(format=fmt, **kwargs))
        row |= {"exports": True, "seconds": round(time.perf_counter() - start, 1), "mb": round(size_mb(path), 2)}
        metadata = exporter.read_metadata(path)
        row["rows"] = metadata.get("rows", "?")
        ops = operators(path, fmt)
        row |= {"nms": named(ops, "nms", "nonmax", "suppress"), "topk": named(ops, "topk", "top_k")}
        stage = "runs"
        if fmt == "coreml" and sys.platform != "darwin":
            import coremltools

            about = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
            names = [[x.name for x in side] for side in (about.input, about.output)]
            row["error"] = f"runs on a Mac only; inputs {names[0]}, outputs {names[1]}"
            return row
        images = pictures(args.data, args.images)
        torch_model, other = ERPose(weights), ERPose(path)
        reference = persons(torch_model, images, imgsz, 0.25)
        worst, pairs, lost = joint_difference(reference, persons(other, images, imgsz, 0.2, batch))
        row |= {"runs": True, "px": round(worst, 3), "persons": pairs, "lost": lost}
        stage = "AP"
        if args.data and not isinstance(imgsz, list):
            row["ap"] = round(precision(ERPose(path), args.data, imgsz) - precision(ERPose(weights), args.data, imgsz), 4)
        stage = "time"
        if batch == 1:
            ratios = latency(torch_model, other, images[-1], imgsz, args.rounds)
            row["latency"] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
    except BaseException as error:  # whatever a converter throws, SystemExit too: the table goes on
        if isinstance(error, KeyboardInterrupt):
            raise
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        row["error"] = f"{stage}: {type(error).__name__}: {text}"[:240]
    row["left"] = sorted(p.name for p in folder.iterdir() if p.name.startswith(".export-"))
    return row


def isolated(args: argparse.Namespace, fmt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The row, from a process of its own: a converter that crashes takes nothing with it."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--one", json.dumps([fmt, options]), "--folder", name]
        for key in ("model", "data", "imgsz", "images", "rounds"):
            if getattr(args, key) is not None:
                command += [f"--{key}", str(getattr(args, key))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, cwd=name)
        except subprocess.TimeoutExpired:
            return {"format": fmt, "options": title(options), "error": f"more than {args.timeout} s"}
        out = Path(name) / "row.json"
        if out.exists():
            return dict(json.loads(out.read_text()))
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"format": fmt, "options": title(options), "error": f"process ended with {done.returncode}: {last}"[:240]}


def cells(row: dict[str, Any]) -> list[object]:
    """A row of the Markdown table."""
    low = row.get("latency")
    return [
        row["format"],
        row["options"],
        "yes" if row.get("exports") else "no",
        "yes" if row.get("runs") else "no",
        row.get("rows", ""),
        row.get("nms", ""),
        row.get("topk", ""),
        row.get("mb", ""),
        row.get("px", ""),
        f"{row['persons']}, {row['lost']} lost" if "persons" in row else "",
        f"{row['ap']:+.4f}" if "ap" in row else "",
        f"{low[0]} ({low[1]} to {low[2]})" if low else "",
        row.get("error", "").replace("|", "/"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=lambda x: Path(x).resolve())
    parser.add_argument("--data", help="trained-on data set, for AP and int8 calibration", type=os.path.abspath)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--images", type=int, default=16, help="pictures of the data set to compare joints on")
    parser.add_argument("--rounds", type=int, default=15, help="latency rounds")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per row")
    parser.add_argument("--formats", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--append", action="store_true", help="keep the other formats of the last run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fmt, options = json.loads(args.one)
        row = measure(args, fmt, options, Path(args.folder))
        (Path(args.folder) / "row.json").write_text(json.dumps(row))
        return
    rows: list[dict[str, Any]] = []
    last = RESULTS / "export.json"
    if args.append and last.exists():
        rows = [r for r in json.loads(last.read_text())["rows"] if r["format"] not in args.formats]
    header = ["format", "options", "exports", "runs", "rows", "NMS", "TopK", "MB", "joints px", "persons", "AP", "time", "notes"]
    for fmt in args.formats:
        for options in CASES[fmt]:
            rows.append(isolated(args, fmt, options))
            print(*cells(rows[-1]), sep=" | ", flush=True)
        rows.sort(key=lambda r: list(CASES).index(r["format"]))
        write("export", {"imgsz": args.imgsz, "rows": rows}, markdown(header, [cells(r) for r in rows]))


if __name__ == "__main__":
    main()
