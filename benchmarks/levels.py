"""Which sizes of people a pyramid is for: drawn crowds of 8 to 320 px high persons learnt by heart, recall by height.

    python benchmarks/levels.py --models erpose-n erpose-n-p2 erpose-n-p6

All models get the same pictures, passes and optimiser, no augmentation, and start from random weights. Heights are
log-uniform, as in slices.py, whose pictures and matching (OKS 0.5) these are. Learning by heart says what the cells of a pyramid
can tell apart within a budget, not what a model finds in pictures that it has never seen. Seconds are of the training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
import slices
from compare import TRAIN
from ultralytics.utils import YAML

from erpose_yolo import ERPose, catalog
from erpose_yolo.data.skeletons import flip_from_names
from erpose_yolo.metrics.coco import NAMES

HEIGHTS = (8, 320)  # px of a person's whole silhouette
BINS = (8, 16, 32, 64, 128, 320)
PLAIN = {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}


def write_set(folder: Path, pictures: int, persons: int, size: int) -> tuple[Path, list[Path], list[slices.Drawn]]:
    """Draw crowds as an Ultralytics data set whose validation pictures are its training pictures.

    Returns:
        Data YAML, picture files, and what they show.
    """
    files, crowds = [], []
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(pictures):
        image, drawn = slices.draw([0, i], size, persons, HEIGHTS)
        file = folder / "images" / f"{i:03}.png"
        if not cv2.imwrite(str(file), image):
            raise OSError(f"could not write {file}")
        height, width = drawn.shape
        sides = np.concatenate((drawn.box[:, :2] + drawn.box[:, 2:], 2 * (drawn.box[:, 2:] - drawn.box[:, :2])), 1) / 2
        rows = np.concatenate((sides / [width, height, width, height], (drawn.joints / [width, height, 1]).reshape(persons, -1)), 1)
        lines = [" ".join(f"{v:.6g}" for v in (0, *row)) for row in rows[drawn.shown]]
        (folder / "labels" / f"{i:03}.txt").write_text("\n".join(lines))
        files.append(file)
        crowds.append(drawn)
    record = {"path": str(folder), "train": "images", "val": "images", "kpt_shape": [17, 3], "names": {0: "person"}}
    YAML.save(folder / "data.yaml", {**record, "flip_idx": flip_from_names(NAMES)[0]})
    return folder / "data.yaml", files, crowds


def run(
    model: str, seed: int, args: argparse.Namespace, data: Path, files: list[Path], crowds: list[slices.Drawn]
) -> dict[str, Any]:
    """Train one contestant and find people in the pictures it has learnt."""
    pose = ERPose(f"{model}.yaml")
    epochs = round(args.passes / args.pictures)
    begin = time.perf_counter()
    pose.train(
        data=str(data), epochs=epochs, imgsz=args.size, batch=args.batch, nbs=args.batch, seed=seed, device=args.device, workers=0,
        cache="ram", val=False, plots=False, verbose=False, pretrained=False, project=str(data.parent / "runs"),
        name=f"{model}-{seed}", exist_ok=True, **TRAIN, **PLAIN,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    learnt = ERPose(str(pose.trainer.last))
    figures = slices.measure(learnt, slices.Mode(args.size), files, crowds, args.conf, 0.0, BINS)
    return {"model": model, "seed": seed, "training_seconds": round(seconds), "strides": learnt.model.stride.tolist(), **figures}


def table(runs: list[dict[str, Any]]) -> str:
    """Recall by height, one row per model and seed."""
    names = [f"{low} to {high} px ({n})" for low, high, n in zip(BINS, BINS[1:], runs[0]["persons"])]
    rows = [
        [r["model"], r["seed"], ", ".join(f"{s:.0f}" for s in r["strides"])]
        + [f"{f / n:.2f}" if n else "-" for f, n in zip(r["found"], r["persons"])]
        + [f"{sum(r['found'])} of {sum(r['persons'])}", f"{r['false_positives']:.1f}", f"{r['training_seconds'] / 60:.0f}"]
        for r in runs
    ]
    return common.markdown(["model", "seed", "strides, px", *names, "all", "false positives", "minutes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["erpose-n", "erpose-n-p2", "erpose-n-p6"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--persons", type=int, default=10, help="in a picture")
    parser.add_argument("--size", type=int, default=448, help="long side of the pictures and of the network's input, px")
    parser.add_argument("--passes", type=int, default=3200, help="image passes of each contestant")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="levels", help="of the result files")
    args = parser.parse_args()
    if args.size / slices.ASPECT < HEIGHTS[1] + 4:
        parser.error(f"--size must be at least {(HEIGHTS[1] + 4) * slices.ASPECT:.0f} px: persons are up to {HEIGHTS[1]} px high.")
    for model in args.models:
        catalog.find_model(f"{model}.yaml")  # what is misspelt is said now, and not after the first model

    setup = {k: getattr(args, k) for k in ("pictures", "persons", "size", "passes", "batch", "conf")}
    setup |= {"heights": list(HEIGHTS), "bins": list(BINS), "train": TRAIN}
    file = common.RESULTS / f"{args.name}.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    runs = old["runs"] if old.get("setup") == setup else []
    with tempfile.TemporaryDirectory() as folder:
        data, files, crowds = write_set(Path(folder, "set"), args.pictures, args.persons, args.size)
        for seed in args.seeds:
            for model in args.models:
                if any(r["model"] == model and r["seed"] == seed for r in runs):
                    continue
                runs.append(run(model, seed, args, data, files, crowds))
                what = f"{args.pictures} pictures of {args.size} px by heart, {args.passes} image passes; score from {args.conf} on"
                common.write(args.name, {"setup": setup, "runs": runs}, f"{what}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
