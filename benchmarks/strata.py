"""Where trained models find people and where not: AP by occlusion and height, misses and duplicates, and the AP of their boxes.

    python benchmarks/strata.py --data data.yaml --imgsz 128 --weights erpose-n=a.pt erpose-n=b.pt yolo26n-pose=c.pt

Weights of one name are seeds of it. Models are deployed as in compare.py, YOLO26 in both of its modes, and run by
``erpose eval``. Persons are sorted by

* occluded share: the share of the joints that are not visible (label 0 or 1: hidden, out of the picture or not labelled);
* height: of the labelled box, in pixels of the network's input, whose long side is --imgsz.

AP within a bin is COCO's for key points, OKS .50:.95, with the persons of all other bins ignored as COCO ignores those outside
an area range: they take the predictions that nobody in the bin takes, and these count neither as right nor as wrong. COCO
lets a prediction that nobody takes count as wrong in the range of its own area. It has no occluded share of its own, so here
it counts as wrong in the bin of the person that it fits best, by OKS; where it fits none (OKS 0 with all of its picture), in
every bin. One bin of all persons is thus COCO's AP. Recall, at OKS 0.5 and of the best 20 predictions of a picture, asks
nothing of the score.

A threshold means another thing for each model, as one is surer of itself than the next. So misses (OKS 0.5) and duplicates, as
``erpose eval`` defines them, are taken at equal numbers: the best SHOWN predictions per labelled person of the whole split.

Box AP is pycocotools' (``bbox``); ER-Pose derives its boxes from the joints. Boxes without labelled joints are ignored: labels
mark regions that way. Predictions below a score of 0.05 beyond the best 20 of a picture are not kept, of any model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from compare import cell, modes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.utils import TQDM

from erpose_yolo import catalog
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.crowding import measure_crowding
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
        oks = pair_oks(predictions.joints, truth.joints, truth.area, truth.box, sigmas, *pairs).reshape(len(d), len(p))
        out[d] = np.where(oks.max(1) > 0, p[oks.argmax(1)], -1)
    return out


def by_stratum(
    truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray, strata: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """Persons, AP, and recall at OKS 0.5 of groups of persons, as the head of this file defines them.

    Args:
        truth: persons.
        predictions: of the same images.
        sigmas: (K,) OKS sigmas.
        strata: masks (N,) of the persons of each group.
    """
    fits, rows = best_fit(truth, predictions, sigmas), []
    for inside in strata:
        part = replace(truth, seen=np.where(inside, truth.seen, 0))  # no joint counted as labelled: ignored
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
    visible = truth.joints[..., 2] == 2
    if not visible.any():
        raise ValueError("No joint is labelled as visible (2): rows of x and y alone do not tell who is occluded.")
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


def at_equal_numbers(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray) -> dict[str, dict[str, float]]:
    """Misses and duplicates per labelled person, and the score of the last prediction shown, for each of SHOWN."""
    out, falling = {}, np.sort(predictions.score)[::-1]
    for share in SHOWN:
        number = min(round(share * int((~truth.ignore).sum())), len(falling))
        score = float(falling[number - 1]) if number else 1.0
        crowd = measure_crowding(truth, predictions, sigmas, score)
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
        judge = COCOeval(coco, coco.loadRes(records), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"AP": float(judge.stats[0]), "AP50": float(judge.stats[1])}


def table(axis: str, figure: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    """A figure of all models in the bins of an axis, in per cent, mean and range over seeds."""
    first = next(iter(runs.values()))[0][axis]
    header = ["model", "seeds", *(f"{b} ({first[b]['persons']})" for b in first)]
    rows = [[name, len(of), *(cell([r[axis][b][figure] for r in of]) for b in first)] for name, of in runs.items()]
    return f"{figure} by {axis} (persons)\n\n{common.markdown(header, rows)}"


def draw(runs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """AP against occlusion and against height: lines are means, shades the range over seeds, NMS dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(BINS), figsize=(12, 4.5), sharey=True)
    for panel, axis in zip(axes, BINS):
        bins = next(iter(runs.values()))[0][axis]
        for n, (name, of) in enumerate(runs.items()):
            ap = 100 * np.array([[r[axis][b]["AP"] for b in bins] for r in of])
            panel.plot(ap.mean(0), "--o" if name.endswith(" NMS") else "-o", color=f"C{n}", label=f"{name} ({len(of)})")
            panel.fill_between(range(len(bins)), ap.min(0), ap.max(0), color=f"C{n}", alpha=0.15, linewidth=0)
        panel.set_xticks(range(len(bins)), [f"{b}\n({bins[b]['persons']})" for b in bins])
        panel.set_xlabel(f"{axis} (persons)")
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="key point AP of the bin, %", ylim=(0, None))  # shared, so once all lines are drawn
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="model (seeds)", frameon=False, loc="outside right center")
    figure.set_layout_engine("constrained")
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data YAML; its val split is used")
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--weights", nargs="+", required=True, help="MODEL=FILE.pt, such as yolo26n-pose=last.pt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/strata"), help="folder for predictions")
    parser.add_argument("--name", default="strata", help="of the result files")
    parser.add_argument("--append", action="store_true", help="keep what the result file has of other models")
    args = parser.parse_args()
    pairs = [text.partition("=")[::2] for text in args.weights]
    for name, path in pairs:
        if not name or not Path(path).is_file():
            parser.error(f"--weights {name}={path}: MODEL=FILE, and the file must be there")

    setup: dict[str, Any] = {"data": Path(args.data).name, "imgsz": args.imgsz}
    file = common.RESULTS / f"{args.name}.json"
    old = json.loads(file.read_text()) if args.append and file.exists() else {**setup, "runs": {}}
    if {k: old[k] for k in setup} != setup:
        parser.error(f"{file} has other pictures, {old['data']} of {old['imgsz']} px. Give --name for a second table.")
    args.out.mkdir(parents=True, exist_ok=True)
    truth, info = read_truth(str(catalog.resolve_data(args.data)), "val", args.out, {})
    sigmas = exact_sigmas(truth.joints.shape[1], info.get("kpt_oks_sigmas"))
    strata = split(truth, args.imgsz)
    again = {model + mode for model, _ in pairs for mode in modes(model)}
    runs: dict[str, list[dict[str, Any]]] = {name: of for name, of in old["runs"].items() if name not in again}
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
            for axis, masks in strata.items():
                record[axis] = dict(zip(masks, by_stratum(truth, found, sigmas, list(masks.values()))))
            of.append(record)

    boxes = [
        [name, len(of), cell([r["AP"] for r in of]), *(cell([r["box"][k] for r in of]) for k in ("AP", "AP50"))]
        for name, of in runs.items()
    ]
    what = f"{len(truth.ids)} pictures, {int((~truth.ignore).sum())} persons, {args.imgsz} px; per cent, mean (range over seeds)"
    parts = [what, *(table(axis, figure, runs) for axis in BINS for figure in ("AP", "recall"))]
    parts.append(f"boxes\n\n{common.markdown(['model', 'seeds', 'key point AP', 'box AP', 'box AP50'], boxes)}")
    for figure in ("misses", "duplicates"):
        rows = [[name, len(of), *(cell([r["shown"][f"{x:g}"][figure] for r in of]) for x in SHOWN)] for name, of in runs.items()]
        header = ["model", "seeds", *(f"{100 * x:g} shown" for x in SHOWN)]
        parts.append(f"{figure} per 100 persons, of as many predictions per 100 persons\n\n{common.markdown(header, rows)}")
    draw(runs, common.RESULTS / f"{args.name}.png")
    common.write(args.name, {**setup, "runs": runs}, "\n\n".join(parts))


if __name__ == "__main__":
    main()
