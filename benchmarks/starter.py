"""The starter weights, cfg/weights/erpose-n.pt: tune a nano that knows crowds of cut-out persons on real photos, and clean it.

    python benchmarks/starter.py --photos coco-mini/data.yaml --crowds crowds/data.yaml --start crowd/erpose-n-0/weights/last.pt

--start are weights of ``compare.py --track crowd``, --crowds the pictures that they were trained on. Each epoch shows all
training photos twice and all crowds once; the validation photos are never seen. A finished training in --out is not repeated.
The figures of the model card (cfg/weights/erpose-n.md) are printed, and the photos inside the ultralytics package are drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
import torch
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import ASSETS, YAML
from ultralytics.utils.patches import torch_load

from erpose_yolo import ERPose, catalog
from erpose_yolo.metrics.evaluate import evaluate

SIZE = 192
TRAIN = {
    "epochs": 10, "imgsz": SIZE, "batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 1.5e-3, "momentum": 0.9,
    "warmup_epochs": 0.3, "warmup_bias_lr": 0.0, "mosaic": 0.0, "scale": 0.4, "close_mosaic": 0, "seed": 0,
}  # fmt: skip
# Of what a checkpoint says of its run; the rest is of the machine that made it.
KEPT = ("imgsz", "batch", "epochs", "optimizer", "lr0", "scale", "mosaic", "seed", "task", "mode")


def cleaned(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A finished checkpoint without paths, dates and tables, its weights in half precision."""
    args = {k: v for k, v in checkpoint["train_args"].items() if k in KEPT} | {"model": "erpose-n.yaml", "data": None}
    model = checkpoint["model"].half()
    model.args = args
    model.yaml.pop("yaml_file", None)
    for name in ("pt_path", "yaml_file"):
        model.__dict__.pop(name, None)
    return {"model": model, "train_args": args, "epoch": -1, "version": checkpoint.get("version"), "license": "AGPL-3.0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path, help="data YAML; its train split is learnt, val judges")
    parser.add_argument("--crowds", required=True, type=Path, help="data YAML; its train split is learnt")
    parser.add_argument("--start", required=True, type=Path, help="weights of compare.py --track crowd")
    parser.add_argument("--out", type=Path, default=Path("runs/starter"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    weights = args.out.absolute() / "tuned" / "weights" / "last.pt"
    if not weights.exists() or torch_load(weights, map_location="cpu")["epoch"] != -1:  # none, or cut off
        photos, crowds = (check_det_dataset(str(file)) for file in (args.photos, args.crowds))
        both = {k: photos[k] for k in ("val", "kpt_shape", "flip_idx", "names")}
        args.out.mkdir(parents=True, exist_ok=True)
        YAML.save(args.out / "both.yaml", {**both, "train": [photos["train"]] * 2 + [crowds["train"]]})
        ERPose(str(args.start)).train(
            data=str(args.out / "both.yaml"), val=False, plots=False, workers=0, cache="ram", device=args.device,
            project=str(args.out.absolute()), name="tuned", exist_ok=True, **TRAIN,
        )  # fmt: skip
    final = catalog.cfg_root() / "weights" / "erpose-n.pt"
    final.parent.mkdir(exist_ok=True)
    torch.save(cleaned(torch_load(weights, map_location="cpu")), final)

    rows = []
    for size in (SIZE, 256, 320):
        report = evaluate(
            str(final), str(args.photos), imgsz=size, device=args.device, plots=False, verbose=False, save_dir=args.out
        )
        coco, crowd = report["coco"], report["crowding"]
        figures = [coco["AP"], coco["AP50"], coco["AP75"], coco["AR"], crowd["duplicate_rate"], crowd["miss_rate"]]
        rows.append([size, *(f"{100 * v:.1f}" for v in figures)])
    header = ["px", "AP", "AP50", "AP75", "AR", "duplicates / 100 persons", "misses / 100 persons"]
    table = common.markdown(header, rows)
    common.write(
        "starter", {"train": TRAIN, "rows": rows, "bytes": final.stat().st_size}, f"{final.stat().st_size / 1e6:.2f} MB\n\n{table}"
    )
    pictures = []
    for photo in ("bus.jpg", "zidane.jpg"):
        drawn = ERPose(str(final)).predict(ASSETS / photo, imgsz=SIZE, verbose=False)[0].plot()
        pictures.append(cv2.resize(drawn, (round(drawn.shape[1] * 480 / drawn.shape[0]), 480), interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(common.RESULTS / "starter.jpg"), np.concatenate(pictures, 1))


if __name__ == "__main__":
    main()
