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
from ultralytics.engine.exporter import export_formats
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
    "edgetpu": [INT8],
    "rknn": [HALF],
    "qnn": [{"quantize": "w8a16"}],
    "deepx": [INT8],
    "coreai": [{}],
    "xilinx": [INT8],
    "ascend": [HALF],
    "imx": [{}],
    "hailo": [{}],
    "axelera": [{}],
}
ARGUMENTS = dict(zip(export_formats()["Argument"], export_formats()["Arguments"], strict=True))
METADATA = ("head", "names", "kpt_shape", "kpt_names", "skeleton", "sigmas", "strides", "rows", "layout", "units", "input", "imgsz")
LABELS = {8: "int8", 16: "half"}
HEADER = ["format", "options", "exports", "runs", "metadata", "rows", "NMS", "TopK", "MB", "worst joint, px", "median, px", "score",
          "persons", "AP", "time", "notes"]  # fmt: skip


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
    """Score and joints, (n, 1 + 2 K), of each picture's persons, every picture letterboxed to the same shape."""
    out = []
    for i in range(0, len(images), batch):
        found = model.predict(images[i : i + batch], imgsz=imgsz, conf=conf, rect=False, device="cpu", verbose=False)
        out += [np.hstack((r.boxes.conf.cpu().numpy()[:, None], r.keypoints.xy.flatten(1).cpu().numpy())) for r in found]
    return out


def difference(reference: list[np.ndarray], other: list[np.ndarray]) -> dict[str, Any]:
    """What became of the persons of the reference, each matched to one of the other's by its joints.

    Args:
        reference: persons above the threshold, (n, 1 + 2 K) score and joints in px of the picture.
        other: the same of lower scores, too: a person whose score crosses the threshold is not lost.

    Returns:
        Largest and median over the persons of the distance of the worst joint, in px; the largest difference of a score; the
        persons compared, and those without a counterpart.
    """
    worst, scores, lost = [], [], 0
    for a, b in zip(reference, other, strict=True):
        distance = np.abs(a[:, None, 1:] - b[None, :, 1:]).max(2)
        for _ in range(min(distance.shape)):  # the closest two of those left
            row, column = np.unravel_index(distance.argmin(), distance.shape)
            worst.append(float(distance[row, column]))
            scores.append(float(abs(a[row, 0] - b[column, 0])))
            distance[row], distance[:, column] = np.inf, np.inf
        lost += max(0, len(a) - len(b))
    return {
        "px": round(max(worst), 3),
        "px_median": round(statistics.median(worst), 3),
        "score": round(max(scores), 3),
        "persons": len(worst),
        "lost": lost,
    }


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
        from MNN.tools import mnnconvert

        mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(path), "--JsonFile", "graph.json"])
        return Counter(op["type"] for op in json.loads(Path("graph.json").read_text())["oplists"])
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
    eight_bit = options.get("quantize") in (8, "w8a16")
    calibration = {"data": args.data} if eight_bit and args.data and "data" in ARGUMENTS[fmt] else {}
    stage = "exports"
    try:
        if fmt in ("saved_model", "pb", "edgetpu"):  # onnx2tf compares tensors on sample pictures, and would download them
            noise = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
            np.save("calibration_image_sample_data_20x128x128x3_float32.npy", noise)
        start = time.perf_counter()
        kwargs = {"imgsz": imgsz, "device": "cpu", **options, **calibration}
        path = Path(ERPose(weights).export(format=fmt, **kwargs))
        row |= {"exports": True, "seconds": round(time.perf_counter() - start, 1), "mb": round(size_mb(path), 2)}
        metadata = exporter.read_metadata(path)
        row |= {"rows": metadata.get("rows", "?"), "metadata": [key for key in METADATA if not metadata.get(key)]}
        ops = operators(path, fmt)
        row |= {"nms": named(ops, "nms", "nonmax", "suppress"), "topk": named(ops, "topk", "top_k")}
        stage = "runs"
        if fmt in ("coreml", "coreai") and sys.platform != "darwin":
            row["error"] = "runs on a Mac only"
            if fmt == "coreml":
                import coremltools

                about = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
                names = [[x.name for x in side] for side in (about.input, about.output)]
                row["error"] += f"; inputs {names[0]}, outputs {names[1]}"
            return row
        images = pictures(args.data, args.images)
        torch_model, other = ERPose(weights), ERPose(path)
        reference = persons(torch_model, images, imgsz, 0.25)
        row |= {"runs": True, **difference(reference, persons(other, images, imgsz, 0.05, batch))}
        stage = "AP"
        plain = not {"dynamic", "batch", "imgsz"} & set(options)
        if args.data and plain:
            row["ap"] = round(precision(ERPose(path), args.data, imgsz) - args.ap, 4)
        stage = "time"
        if plain:
            ratios = latency(torch_model, other, images[-1], imgsz, args.rounds)
            row["latency"] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
    except BaseException as error:  # whatever a converter throws, SystemExit too: the table goes on
        if isinstance(error, KeyboardInterrupt):
            raise
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        row["error"] = f"{stage}: {type(error).__name__}: {text}".replace(f"{folder}/", "")[:240]
    row["left"] = sorted(p.name for p in folder.iterdir() if p.name.startswith(".export-"))
    return row


def isolated(args: argparse.Namespace, fmt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The row, from a process of its own: a converter that crashes takes nothing with it."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--one", json.dumps([fmt, options]), "--folder", name]
        for key in ("model", "data", "imgsz", "images", "rounds", "ap"):
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
        ("lacks " + " ".join(row["metadata"]) if row["metadata"] else "whole") if "metadata" in row else "",
        row.get("rows", ""),
        row.get("nms", ""),
        row.get("topk", ""),
        row.get("mb", ""),
        row.get("px", ""),
        row.get("px_median", ""),
        row.get("score", ""),
        f"{row['persons']}, {row['lost']} lost" if "persons" in row else "",
        f"{row['ap']:+.4f}" if "ap" in row else "",
        f"{low[0]} ({low[1]} to {low[2]})" if low else "",
        row.get("error", "").replace("|", "/"),
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """One line per format: worst joint in px and AP difference of each precision, worst joint over the other options."""
    lines = []
    for fmt in dict.fromkeys(r["format"] for r in rows):
        of = {r["options"]: r for r in rows if r["format"] == fmt}
        plain = next(iter(of.values()))

        def worst(title: str, with_ap: bool = True, of: dict[str, dict[str, Any]] = of) -> str:
            row = of.get(title, {})
            if "px" not in row:
                return ""
            return f"{row['px']:.2f}" + (f", {row['ap']:+.3f}" if with_ap and "ap" in row else "")

        small = [f"{title} {worst(title)}" for title in of if title in ("int8", "w8a16", "w8a32") and worst(title)]
        shapes = [row["px"] for title, row in of.items() if "=" in title and "px" in row]
        errors = list(dict.fromkeys(r["error"] for r in of.values() if r.get("error")))
        lines.append(
            [fmt, plain.get("rows", ""), plain.get("nms", ""), plain.get("topk", ""), plain.get("mb", "")]
            + [worst("fp32", with_ap=False), worst("half"), "; ".join(small)]
            + [f"{max(shapes):.2f} ({len(shapes)} runs)" if shapes else "", "; ".join(errors).replace("|", "/")]
        )
    header = ["format", "rows", "NMS", "TopK", "MB", "fp32: px", "half: px, AP", "8 bits: px, AP"]
    return markdown([*header, "dynamic, batch 2, not square: px", "notes"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=lambda x: Path(x).resolve())
    parser.add_argument("--data", help="trained-on data set, for AP and int8 calibration", type=os.path.abspath)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--images", type=int, default=16, help="pictures of the data set to compare joints on")
    parser.add_argument("--rounds", type=int, default=10, help="latency rounds")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per row")
    parser.add_argument("--formats", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--append", action="store_true", help="keep the other formats of the last run")
    parser.add_argument("--ap", type=float, help="AP of the checkpoint, to spare its measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fmt, options = json.loads(args.one)
        row = measure(args, fmt, options, Path(args.folder))
        (Path(args.folder) / "row.json").write_text(json.dumps(row))
        return
    if args.data and args.ap is None:
        args.ap = precision(ERPose(args.model), args.data, args.imgsz)
    rows: list[dict[str, Any]] = []
    last = RESULTS / "export.json"
    if args.append and last.exists():
        rows = [r for r in json.loads(last.read_text())["rows"] if r["format"] not in args.formats]
    for fmt in args.formats:
        for options in CASES[fmt]:
            rows.append(isolated(args, fmt, options))
            rows.sort(key=lambda r: list(CASES).index(r["format"]))
            record = {"imgsz": args.imgsz, "ap": args.ap, "rows": rows}
            write("export", record, f"{summary(rows)}\n\nAll runs:\n\n{markdown(HEADER, [cells(r) for r in rows])}")


if __name__ == "__main__":
    main()
