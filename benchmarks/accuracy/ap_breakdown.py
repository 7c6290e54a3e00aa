"""AP breakdown of trained models: by occlusion and height, misses and duplicates at equal numbers, and the AP of their boxes.

    python -m benchmarks.accuracy.ap_breakdown --data data.yaml --imgsz 128 --weights erpose-n=a.pt erpose-n=b.pt yolo26n-pose=c.pt

Weights of one name are seeds of it. Models are deployed as in compare.py, YOLO26 in both modes, and run by ``erpose eval``.
Persons are grouped by

* occluded share: the share of the keypoints that are not visible (label 0 or 1: hidden, outside the image or not labelled);
* height: of the labelled box, in pixels of the network's input, whose long side is --imgsz.

AP within a bin is COCO's for keypoints, OKS .50:.95. Persons of all other bins are ignored as COCO ignores those outside an
area range: they match predictions that nobody in the bin matches, and these count neither as right nor as wrong. In COCO an
unmatched prediction is a false positive in the range of its own area. It has no occluded share of its own, so here it is one in
the bin of the person with which it has the highest OKS; where that is 0 for all persons of its image, in every bin. One bin of
all persons is thus COCO's AP. Recall, at OKS 0.5 and of the best 20 predictions of an image, does not depend on the score.

Models differ in how high they score, so one threshold is not fair to all. Misses (OKS 0.5) and duplicates, as ``erpose eval``
defines them, are therefore taken at equal numbers: the best SHOWN predictions per labelled person of the whole split.

Box AP is pycocotools' (``bbox``); ER-Pose derives its boxes from the keypoints. Boxes without labelled keypoints are ignored:
labels mark regions that way. Predictions below a score of 0.05 beyond the best 20 of an image are not kept, of any model.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.utils import TQDM

from benchmarks import common
from benchmarks.common import modes
from erpose_yolo import catalog
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.crowding import Crowding, measure_crowding
from erpose_yolo.metrics.evaluate import evaluate, read_truth
from erpose_yolo.metrics.matching import AREA_RANGES, accumulate, match, pair_oks
from erpose_yolo.metrics.predictions import Predictions, from_records
from erpose_yolo.metrics.truth import GroundTruth

# Left edges of the bins, each up to the next; the last is open. Bins without persons are left out.
BINS = {"occluded share": (0, 0.1, 0.25, 0.5), "height, px": (0, 24, 40, 64, 96, 192)}
SHOWN = (0.3, 0.5, 0.8, 1.2)  # predictions per labelled person


def best_fit(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray) -> np.ndarray:
    """The labelled person of its image and class with which each prediction (M,) has the highest OKS; -1 where all are 0."""
    out = np.full(len(predictions.score), -1)
    classes = len(truth.categories)
    of_person = np.where(truth.ignore, -1, truth.image * classes + truth.category)
    of_prediction = predictions.image * classes + predictions.category
    for group in np.unique(of_prediction):
        d, p = np.flatnonzero(of_prediction == group), np.flatnonzero(of_person == group)
        if not len(p):
            continue
        pairs = np.repeat(d, len(p)), np.tile(p, len(d))
        oks = pair_oks(predictions.keypoints, truth.keypoints, truth.area, truth.box, sigmas, *pairs).reshape(len(d), len(p))
        out[d] = np.where(oks.max(1) > 0, p[oks.argmax(1)], -1)
    return out


def by_group(
    truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray, groups: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """Persons, AP, and recall at OKS 0.5 of groups of persons, as the head of this file defines them.

    Args:
        truth: persons.
        predictions: of the same images.
        sigmas: (K,) OKS sigmas.
        groups: masks (N,) of the persons of each group.
    """
    fits, rows = best_fit(truth, predictions, sigmas), []
    for inside in groups:
        part = replace(truth, seen=np.where(inside, truth.seen, 0))  # no keypoint counts as labelled: ignored
        elsewhere = (fits >= 0) & ~inside[fits]
        matches = [
            replace(m, void=m.void | ((m.match < 0) & elsewhere[m.prediction]))
            for m in match(part, predictions, sigmas, area_ranges=AREA_RANGES[:1])
        ]
        curves = accumulate(matches)
        rows.append({"persons": int((~part.ignore).sum()), "AP": curves.ap(), "recall": curves.ar(threshold=0)})
    return rows


def split(truth: GroundTruth, imgsz: int) -> dict[str, dict[str, np.ndarray]]:
    """Masks (N,) of the persons in each bin: axis -> name of the bin -> mask.

    Raises:
        ValueError: labels without visibility, or annotations that do not say how large the images are.
    """
    visible = truth.keypoints[..., 2] == 2
    if not visible.any():
        raise ValueError("No keypoint is labelled as visible (2): rows of x and y alone do not tell who is occluded.")
    if truth.sizes is None or None in truth.sizes:
        raise ValueError(f"{truth.source}: images without 'height' and 'width'.")
    long_side = np.array([max(size) for size in truth.sizes if size])
    values = ((~visible).mean(1), truth.box[:, 3] * imgsz / long_side[truth.image])
    out: dict[str, dict[str, np.ndarray]] = {}
    for (axis, edges), value in zip(BINS.items(), values):
        masks = [np.digitize(value, edges) == b for b in range(1, len(edges) + 1)]
        names = [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:])] + [f"from {edges[-1]:g}"]
        out[axis] = {name: mask for name, mask in zip(names, masks) if (mask & ~truth.ignore).any()}
    return out


def at_number(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray, share: float) -> Crowding:
    """Misses and duplicates where the best ``share`` predictions per labelled person of the whole split are shown."""
    falling = np.sort(predictions.score)[::-1]
    number = min(round(share * int((~truth.ignore).sum())), len(falling))
    return measure_crowding(truth, predictions, sigmas, float(falling[number - 1]) if number else 1.0)


def at_equal_numbers(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray) -> dict[str, dict[str, float]]:
    """Misses and duplicates per labelled person, and the score of the last prediction shown, for each of SHOWN."""
    out = {}
    for share in SHOWN:
        crowd = at_number(truth, predictions, sigmas, share)
        score = float(crowd.shown.score.min()) if len(crowd.shown.score) else 1.0
        out[f"{share:g}"] = {"misses": crowd.miss_rate, "duplicates": crowd.duplicate_rate, "score": score}
    return out


def box_ap(truth: GroundTruth, records: list[dict[str, Any]]) -> dict[str, float]:
    """AP and AP50 of the boxes of COCO result entries, by pycocotools."""
    if not records:  # which it cannot read
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = replace(truth, crowd=truth.ignore).to_coco()
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(records), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


def table(record: common.Record) -> str:
    """One row per model, in per cent, means over seeds: AP of each bin (persons), of the boxes, and misses and duplicates."""
    runs, rows = record["runs"], []
    first = next(iter(runs.values()))[0]
    bins = [(axis, name) for axis in BINS for name in first[axis]]
    for name, of in runs.items():
        aps = [100 * np.mean([r[axis][b]["AP"] for r in of]) for axis, b in bins] + [100 * np.mean([r["box"]["AP"] for r in of])]
        rates = ([100 * np.mean([r["shown"][x][k] for r in of]) for k in ("misses", "duplicates")] for x in first["shown"])
        rows.append([name, len(of), *(f"{ap:.1f}" for ap in aps), *(f"{missed:.1f}, {again:.1f}" for missed, again in rates)])
    header = ["model", "seeds", *(f"{axis} {name} ({first[axis][name]['persons']})" for axis, name in bins), "box AP"]
    return common.markdown([*header, *(f"misses, duplicates at {100 * float(x):g} shown" for x in first["shown"])], rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="data YAML; its val split is used")
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--weights", nargs="+", required=True, help="MODEL=FILE.pt, such as yolo26n-pose=last.pt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/ap-breakdown"), help="folder for predictions")
    parser.add_argument("--name", default="ap-breakdown", help="of the result file")
    parser.add_argument("--append", action="store_true", help="keep what the result file has of other models")
    args = parser.parse_args()
    pairs = [text.partition("=")[::2] for text in args.weights]
    for name, path in pairs:
        if not name or not Path(path).is_file():
            parser.error(f"--weights {name}={path}: MODEL=FILE, and the file must be there")

    setup: dict[str, Any] = {"data": Path(args.data).name, "imgsz": args.imgsz}
    old = common.read(args.name) if args.append else {}
    if old and {k: old[k] for k in setup} != setup:
        parser.error(f"results/{args.name}.json has other images, {old['data']} of {old['imgsz']} px. Give --name.")
    args.out.mkdir(parents=True, exist_ok=True)
    truth, info = read_truth(str(catalog.resolve_data(args.data)), "val", args.out, {})
    sigmas = exact_sigmas(truth.keypoints.shape[1], info.get("kpt_oks_sigmas"))
    groups = split(truth, args.imgsz)
    again = {model + mode for model, _ in pairs for mode in modes(model)}
    runs: dict[str, list[dict[str, Any]]] = {name: of for name, of in old.get("runs", {}).items() if name not in again}
    for model, weights in TQDM(pairs, desc=args.name, disable=False):
        for mode, nms in modes(model).items():
            of = runs.setdefault(model + mode, [])
            folder = args.out / f"{model}{mode}-{len(of)}".replace(" ", "-")
            options: dict[str, Any] = {"imgsz": args.imgsz, "batch": args.batch, "device": args.device, "workers": 0}
            options |= {"plots": False, "verbose": False, "save_dir": folder} | ({} if nms is None else {"nms": nms})
            with contextlib.redirect_stdout(io.StringIO()):
                report = evaluate(weights, args.data, **options)
            records = json.loads((folder / "predictions.json").read_text())
            found = from_records(records, truth)
            record = {"AP": report["coco"]["AP"], "box": box_ap(truth, records)}
            record["shown"] = at_equal_numbers(truth, found, sigmas)
            for axis, masks in groups.items():
                record[axis] = dict(zip(masks, by_group(truth, found, sigmas, list(masks.values()))))
            of.append(record)
    common.save(args.name, {**setup, "runs": runs}, table)


if __name__ == "__main__":
    main()
