"""One model in every export format: does it export, run, and find what PyTorch finds?

    python -m benchmarks.robustness.export --model best.pt --data data.yaml --imgsz 224
    python -m benchmarks.robustness.export --model best.pt --formats onnx ncnn            # some of them

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
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.engine.exporter import export_formats
from ultralytics.utils import ASSETS

from benchmarks import common
from erpose_yolo.export import exporter
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
METADATA = ("head", "names", "kpt_shape", "kpt_names", "skeleton", "sigmas", "strides", "layout", "row", "units", "input", "imgsz")
LABELS = {8: "int8", 16: "half"}


def title(options: dict[str, Any]) -> str:
    """Options in words."""
    parts = [LABELS.get(v, str(v)) if k == "quantize" else f"{k}={v}" for k, v in options.items()]
    return " ".join(parts) or "fp32"


def load_images(data: str | None, count: int) -> list[np.ndarray]:
    """Images of the ultralytics package, and the first ones of the data set's val split."""
    files = sorted(ASSETS.glob("*.jpg"))
    if data:
        from ultralytics.data.utils import check_det_dataset, img2label_paths

        split = check_det_dataset(data)["val"]
        found = sorted(Path(split).glob("*.*")) if Path(split).is_dir() else [Path(x) for x in Path(split).read_text().split()]
        files += [f for f in found if Path(img2label_paths([str(f)])[0]).exists()][:count]
    return [image for f in files if (image := cv2.imread(str(f))) is not None]


def persons(model: ERPose, images: list[np.ndarray], imgsz: Any, conf: float, batch: int = 1) -> list[np.ndarray]:
    """Score and keypoints, (n, 1 + 2 K), of each image's persons, every image letterboxed to the same shape."""
    out = []
    for i in range(0, len(images), batch):
        found = model.predict(images[i : i + batch], imgsz=imgsz, conf=conf, rect=False, device="cpu", verbose=False)
        out += [np.hstack((r.boxes.conf.cpu().numpy()[:, None], r.keypoints.xy.flatten(1).cpu().numpy())) for r in found]
    return out


def difference(reference: list[np.ndarray], other: list[np.ndarray]) -> dict[str, Any]:
    """What became of the persons of the reference, each matched to one of the other's by its keypoints.

    Args:
        reference: persons above the threshold, (n, 1 + 2 K) score and keypoints in px of the image.
        other: the same of lower scores, too: a person whose score crosses the threshold is not lost.

    Returns:
        Largest and median over the persons of the distance of the worst keypoint, in px; the largest difference of a score; the
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


def size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files) / 1e6


def precision(model: ERPose, data: str, imgsz: Any) -> float:
    """Pose AP on a data set."""
    found = model.val(data=data, imgsz=imgsz, batch=1, rect=False, device="cpu", plots=False, verbose=False, workers=0)
    return float(found.pose.map)


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
        if fmt in ("saved_model", "pb", "edgetpu"):  # onnx2tf compares tensors on sample images, and would download them
            noise = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
            np.save("calibration_image_sample_data_20x128x128x3_float32.npy", noise)
        start = time.perf_counter()
        kwargs = {"imgsz": imgsz, "device": "cpu", **options, **calibration}
        path = Path(ERPose(weights).export(format=fmt, **kwargs))
        row |= {"exports": True, "seconds": round(time.perf_counter() - start, 1), "mb": round(size_mb(path), 2)}
        metadata = exporter.read_metadata(path)
        row |= {"rows": metadata.get("layout", "?"), "metadata": [key for key in METADATA if not metadata.get(key)]}
        stage = "runs"
        if fmt in ("coreml", "coreai") and sys.platform != "darwin":
            row["error"] = "runs on a Mac only"
            return row
        images = load_images(args.data, args.images)
        torch_model, other = ERPose(weights), ERPose(path)
        reference = persons(torch_model, images, imgsz, 0.25)
        row |= {"runs": True, **difference(reference, persons(other, images, imgsz, 0.05, batch))}
        stage = "AP"
        plain = not {"dynamic", "batch", "imgsz"} & set(options)
        if args.data and plain:
            row["ap"] = round(precision(ERPose(path), args.data, imgsz) - args.ap, 4)
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
        command = [sys.executable, "-m", "benchmarks.robustness.export", "--one", json.dumps([fmt, options]), "--folder", name]
        for key in ("model", "data", "imgsz", "images", "ap"):
            if getattr(args, key) is not None:
                command += [f"--{key}", str(getattr(args, key))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
        except subprocess.TimeoutExpired:
            return {"format": fmt, "options": title(options), "error": f"more than {args.timeout} s"}
        out = Path(name) / "row.json"
        if out.exists():
            return dict(json.loads(out.read_text()))
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"format": fmt, "options": title(options), "error": f"process ended with {done.returncode}: {last}"[:240]}


def table(record: common.Record) -> str:
    """One line per format: worst keypoint in px and AP difference of each precision, worst keypoint over the other options."""
    lines, rows = [], record["rows"]
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
            [fmt, plain.get("rows", ""), plain.get("mb", "")]
            + [worst("fp32", with_ap=False), worst("half"), "; ".join(small)]
            + [f"{max(shapes):.2f} ({len(shapes)} runs)" if shapes else "", "; ".join(errors).replace("|", "/")]
        )
    header = ["format", "rows", "MB", "fp32: px", "half: px, AP", "8 bits: px, AP"]
    return common.markdown([*header, "dynamic, batch 2, not square: px", "notes"], lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", required=True, type=lambda x: Path(x).resolve())
    parser.add_argument("--data", help="trained-on data set, for AP and int8 calibration", type=os.path.abspath)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--images", type=int, default=16, help="images of the data set on which keypoints are compared")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per row")
    parser.add_argument("--formats", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--append", action="store_true", help="keep the other formats of the last run")
    parser.add_argument("--ap", type=float, help="AP of the checkpoint, to spare its measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        os.chdir(args.folder)  # converters leave files where they run
        fmt, options = json.loads(args.one)
        row = measure(args, fmt, options, Path(args.folder))
        (Path(args.folder) / "row.json").write_text(json.dumps(row))
        return
    if args.data and args.ap is None:
        args.ap = precision(ERPose(args.model), args.data, args.imgsz)
    rows: list[dict[str, Any]] = []
    if args.append:
        rows = [r for r in common.read("export").get("rows", []) if r["format"] not in args.formats]
    for fmt in args.formats:
        for options in CASES[fmt]:
            rows.append(isolated(args, fmt, options))
            rows.sort(key=lambda r: list(CASES).index(r["format"]))
            common.save("export", {"imgsz": args.imgsz, "ap": args.ap, "rows": rows}, table)


if __name__ == "__main__":
    main()
