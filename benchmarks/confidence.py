"""What should sort persons: the score alone, or the score and the OKS that a pose's spreads expect of it?

    python benchmarks/confidence.py --data benchmarks/synth-few.yaml --imgsz 128 --weights a.pt b.pt

The same weights are judged twice by ``erpose eval``, with ``confidence: score`` and ``confidence: expected_oks``; training
does not know the difference. Weights are checkpoints of training, which still have their spreads. Shown are predictions with a
score of 0.25 or more, found the persons whom one of these fits (OKS 0.5); the last column has duplicates of the best predictions,
eight for ten labelled persons, however sure they are (strata.at_equal_numbers).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from compare import cell
from strata import at_equal_numbers
from ultralytics.utils import TQDM

from erpose_yolo import ERPose
from erpose_yolo.config import CHOICES
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.evaluate import evaluate, read_truth
from erpose_yolo.metrics.predictions import from_records


def judge(weights: Path, confidence: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a checkpoint whose persons are sorted by ``confidence``."""
    yolo = ERPose(str(weights))
    head = yolo.model.model[-1]
    if head.deployed.spread is None:
        raise ValueError(f"{weights} is fused and without spreads. Give the checkpoint that training saved.")
    head.settings = replace(head.settings, confidence=confidence)
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate(
            yolo, args.data, imgsz=args.imgsz, batch=16, device=args.device, workers=0, plots=False, verbose=False, save_dir=folder
        )
        crowd = report["crowding"]
        records = json.loads((Path(folder) / "predictions.json").read_text())
        truth, info = read_truth(args.data, "val", Path(folder), {})
    sigmas = exact_sigmas(truth.joints.shape[1], info.get("kpt_oks_sigmas"))
    rates = {
        "found": 1 - crowd["miss_rate"],
        "shown": sum(p["score"] >= crowd["score"] for p in records) / crowd["persons"],
        "duplicates": crowd["duplicate_rate"],
        "repeated": at_equal_numbers(truth, from_records(records, truth), sigmas)["0.8"]["duplicates"],
    }
    return {**{k: report["coco"][k] for k in ("AP", "AP50", "AP75", "AR")}, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=os.path.abspath, help="data YAML")
    parser.add_argument("--weights", required=True, nargs="+", type=Path)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="confidence", help="of the result files")
    args = parser.parse_args()
    rows, runs = [], []
    for weights in TQDM(args.weights, desc=args.name, disable=False):
        for kind in CHOICES["confidence"]:
            runs.append({"weights": "/".join(weights.parts[-3:]), "confidence": kind, **judge(weights, kind, args)})
    for kind in CHOICES["confidence"]:
        of = [r for r in runs if r["confidence"] == kind]
        cells = [cell([r[k] for r in of], 2) for k in ("AP", "AP50")]
        rows.append(
            [kind, len(of), *cells, *(cell([r[k] for r in of]) for k in ("AP75", "AR", "found", "shown", "duplicates", "repeated"))]
        )
    header = ["sorted by", "weights", "AP (range)", "AP50", "AP75", "AR", "found / 100 persons", "shown", "duplicates"]
    header.append("duplicates at 80 shown")
    common.write(args.name, {"imgsz": args.imgsz, "runs": runs}, common.markdown(header, rows))


if __name__ == "__main__":
    main()
