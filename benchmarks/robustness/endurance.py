"""Do memory and file handles stay flat? python -m benchmarks.robustness.endurance (Linux)

Predictions on images of ever other sizes, checkpoints opened again and again, and training steps of the real trainer with its
epochs, validations and checkpoints. Each runs in a process of its own. Resident memory and open files are read
from /proc at intervals; a leak shows as a slope after the first quarter, in which caches and the allocator fill up.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from erpose_yolo import ERPose
from erpose_yolo.data.synth import SynthConfig, generate

POINTS = 20  # measurements of a run
WARM_UP = 0.25  # share of a run in which growth is no leak
UNITS = {"predict": "predictions", "load": "loads", "train": "training steps"}


class Meter:
    """Reads resident memory and open files of this process every ``count / POINTS`` steps."""

    def __init__(self, count: int) -> None:
        self.every = max(1, count // POINTS)
        self.steps = 0
        self.points: list[tuple[int, float, int]] = []  # step, MiB, files

    def __call__(self, *_: Any) -> None:
        """A step is over."""
        self.steps += 1
        if self.steps % self.every == 0:
            gc.collect()  # cycles that wait for the collector are no leak
            self.points.append((self.steps, common.memory_of("VmRSS") / 2**20, len(os.listdir("/proc/self/fd"))))
            print(*self.points[-1], file=sys.stderr, flush=True)


def checkpoint(folder: Path) -> Path:
    """An untrained checkpoint."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    model.save(folder / "mine.pt")
    return folder / "mine.pt"


def predict(count: int, folder: Path, meter: Meter) -> None:
    """Predict on images of random sizes at four network sizes."""
    rng = np.random.default_rng(0)
    model = ERPose(checkpoint(folder))
    for _ in range(count):
        image = rng.integers(0, 255, (*rng.integers(20, 240, 2), 3), dtype=np.uint8)
        size = int(rng.choice((64, 96, 128, 160)))
        model.predict(image, imgsz=size, conf=0.001, device="cpu", verbose=False)
        meter()


def load(count: int, folder: Path, meter: Meter) -> None:
    """Open the same file anew and use it once, the old model being dropped."""
    file, image = checkpoint(folder), np.zeros((64, 64, 3), np.uint8)
    for _ in range(count):
        ERPose(file).predict(image, imgsz=64, device="cpu", verbose=False)
        meter()


def train(count: int, folder: Path, meter: Meter) -> None:
    """Train on small synthetic images, an epoch being a twentieth of the steps."""
    batch = 4
    generate(folder / "people", SynthConfig(images=max(batch, count * batch // POINTS), val_images=8, size=64), workers=0)
    data = folder / "data.yaml"
    spec = {"path": str(folder / "people"), "train": "images/train", "val": "images/val"}
    data.write_text(json.dumps({**spec, "kpt_shape": [17, 3], "flip_idx": list(range(17)), "names": {0: "person"}}))
    model = ERPose("erpose-n.yaml")
    model.add_callback("on_train_batch_end", meter)
    settings = {"imgsz": 64, "batch": batch, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    model.train(data=str(data), epochs=POINTS, project=str(folder), name="run", **settings)


RUNS: dict[str, Callable[[int, Path, Meter], None]] = {"predict": predict, "load": load, "train": train}


def slope(points: list[tuple[int, float, int]]) -> float:
    """Growth after the warm-up, MiB per 1,000 steps: median slope of all pairs of points, which a single dip does not move."""
    late = points[int(len(points) * WARM_UP) :]
    return 1000 * statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(late, 2))


def summary(record: common.Record) -> str:
    """Growth of resident memory and open files after the warm-up of each run."""
    parts = []
    for name in RUNS:
        steps = record[name]["points"]
        files = [point[2] for point in steps[int(len(steps) * WARM_UP) :]]
        growth = f"{record[name]['slope']:+.2f} MiB per 1,000, open files {files[0]} to {files[-1]}"
        parts.append(f"{steps[-1][0]:,} {UNITS[name]}: {growth}")
    return "; ".join(parts)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--predict", type=int, default=5000, metavar="N", help="predictions")
    parser.add_argument("--load", type=int, default=500, metavar="N", help="checkpoints opened")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="training steps")
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)  # this process is one of the runs
    args = parser.parse_args()
    if args.only:
        meter = Meter(getattr(args, args.only))
        with tempfile.TemporaryDirectory() as folder:
            RUNS[args.only](getattr(args, args.only), Path(folder), meter)
        print(json.dumps(meter.points))
        return

    points = {}
    for name in RUNS:
        command = [sys.executable, "-m", "benchmarks.robustness.endurance", "--only", name, f"--{name}", str(getattr(args, name))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        points[name] = json.loads(done.stdout.splitlines()[-1])
    common.save("endurance", {k: {"points": v, "slope": slope(v)} for k, v in points.items()}, summary)


if __name__ == "__main__":
    main()
