"""What exact evaluation costs, beside pycocotools' own evaluate and accumulate on the same persons, in the same run.

    python benchmarks/evaluate.py            500 images, seconds
    python benchmarks/evaluate.py --full     5,000 images, 11,000 persons, 20 predictions an image

Ours is timed whole: predictions gathered as a validator does, matching, accumulation, the ten figures over all images.
pycocotools is timed without reading its dictionaries. The figures of both must be equal to the last bit, or nothing is
written. The second table is what rides along in a validation during training: gathering the predictions of each image
(``ExactPose.update_metrics``) and evaluating once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time

import common
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.utils import ops

from erpose_yolo.metrics import coco
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import Collector
from erpose_yolo.metrics.truth import GroundTruth


def made_up(images: int, persons: int, per_image: int, seed: int = 0) -> tuple[GroundTruth, list[tuple]]:
    """COCO-like persons, and per image scores, classes, joints and boxes: noisy copies of persons, then strays."""
    rng = np.random.default_rng(seed)
    crowd = rng.gamma(0.5, 1.0, images)
    image = np.sort(rng.choice(images, persons, p=crowd / crowd.sum()))  # many images with none, a few with dozens
    side = np.exp(rng.normal(4.3, 0.9, (persons, 1))) * [0.6, 1.4]
    corner = rng.uniform(0, 500, (persons, 2))
    joints = np.concatenate((corner[:, None] + rng.random((persons, 17, 2)) * side[:, None], np.zeros((persons, 17, 1))), 2)
    joints[..., 2] = rng.choice(3, (persons, 17), p=[0.35, 0.1, 0.55])
    joints[rng.random(persons) < 0.4, :, 2] = 0  # 42 % of COCO's val persons have no labelled joint
    truth = GroundTruth(
        ids=list(range(images)),
        names=[f"{i:012d}.jpg" for i in range(images)],
        image=image,
        category=np.zeros(persons, int),
        joints=joints.round(0),
        box=np.concatenate((corner, side), 1),
        area=side.prod(1) * 0.6,
        crowd=rng.random(persons) < 0.02,
        seen=(joints[..., 2] > 0).sum(1),
        categories=[{"id": 1, "name": "person"}],
        source="annotations",
        area_rule="made up",
        annotated=images,
    )
    found = []
    for i in range(images):
        of = np.flatnonzero(image == i)
        person = rng.choice(of, per_image) if len(of) else np.zeros(0, int)
        noise = rng.gamma(1.0, 0.05, len(person)) * np.sqrt(truth.area[person])
        poses = joints[person, :, :2] + rng.normal(size=(len(person), 17, 2)) * noise[:, None, None]
        poses = np.concatenate((poses, rng.uniform(0, 600, (per_image - len(person), 17, 2))))
        poses = np.concatenate((poses, np.ones((per_image, 17, 1))), 2)
        boxes = np.concatenate((poses[..., :2].min(1), poses[..., :2].max(1)), 1)
        found.append((np.sort(rng.random(per_image))[::-1], np.zeros(per_image), poses, boxes))
    return truth, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="5,000 images instead of 500")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300, help="predictions of an image before selection, second table")
    args = parser.parse_args()
    images, persons = (5000, 11000) if args.full else (500, 1100)
    truth, found = made_up(images, persons, 20)
    sigmas = coco.exact_sigmas(17)
    content = truth.to_coco()

    ours, theirs, ratios = [], [], []
    parts: dict[str, list[float]] = {"gather": [], "match": [], "accumulate": []}
    for _ in range(args.repeats):
        start = time.perf_counter()
        collector = Collector()
        for name, image in zip(truth.names, found):
            collector.add(name, *image)
        predictions = collector.predictions(truth)
        gathered = time.perf_counter()
        matches = match(truth, predictions, sigmas)
        matched = time.perf_counter()
        figures = coco.stats_of(accumulate(matches))
        end = time.perf_counter()
        for key, seconds in zip(parts, (gathered - start, matched - gathered, end - matched)):
            parts[key].append(seconds)
        ours.append(end - start)

        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCO()
            judge.dataset = content
            judge.createIndex()
            evaluation = COCOeval(judge, judge.loadRes(collector.records(truth)), "keypoints")
            start = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            theirs.append(time.perf_counter() - start)
            evaluation.summarize()
        ratios.append(ours[-1] / theirs[-1])
        if list(figures.values()) != evaluation.stats.tolist():
            raise SystemExit(f"The figures differ: {figures} and {evaluation.stats}")

    # what a validation during training does for each image: 300 rows of the network scaled, moved and thinned out
    rng = np.random.default_rng(1)
    raw = {
        "bboxes": torch.rand(args.rows, 4) * 320,
        "conf": torch.from_numpy(np.sort(rng.beta(0.3, 4, args.rows))[::-1].astype(np.float32)),
        "cls": torch.zeros(args.rows),
        "keypoints": torch.rand(args.rows, 17, 3) * 320,
    }
    shape, original, ratio = (320, 320), (320, 320), ((1.0, 1.0), (0, 0))
    per_image = []
    collector = Collector()
    for i in range(200):
        start = time.perf_counter()
        boxes = ops.scale_boxes(shape, raw["bboxes"].clone(), original, ratio_pad=ratio)
        joints = ops.scale_coords(shape, raw["keypoints"].clone(), original, ratio_pad=ratio)
        collector.add(f"{i:012d}.jpg", raw["conf"].numpy(), raw["cls"].numpy(), joints.numpy(), boxes.numpy(), original)
        per_image.append((time.perf_counter() - start) * 1e3)
    some = truth.select(np.arange(images) < 200)
    start = time.perf_counter()
    coco.evaluate_coco(some, collector.predictions(some), sigmas, log=None)
    once = time.perf_counter() - start

    size = f"{images:,} images, {persons:,} persons, {images * 20:,} predictions, {args.repeats} repeats"
    rows = [
        ["ours: gather", common.spread(parts["gather"])],
        ["ours: match", common.spread(parts["match"])],
        ["ours: accumulate", common.spread(parts["accumulate"])],
        ["ours: all", common.spread(ours)],
        ["pycocotools: evaluate and accumulate", common.spread(theirs)],
        ["**ours / pycocotools**", f"**{common.spread(ratios)}**"],
    ]
    riding = [
        [f"gather, ms an image of {args.rows} rows", common.spread(per_image)],
        ["evaluate 200 images once, s", f"{once:.3f}"],
        ["whole validation of 200 images (synth-people), s", f"{statistics.fmean(per_image) * 0.2 + once:.3f}"],
    ]
    text = (
        f"Exact evaluation: {size}; seconds, median and range. All ten figures equal to the last bit.\n\n"
        f"{common.markdown(['step', 'seconds'], rows)}\n\nWhat it adds to a validation during training.\n\n"
        f"{common.markdown(['step', 'cost'], riding)}"
    )
    record = {"images": images, "persons": persons, "ours": ours, "pycocotools": theirs, "ratio": ratios, "parts": parts}
    record |= {"gather_ms_per_image": statistics.median(per_image), "evaluate_200_s": once, "figures": figures}
    common.write("evaluate" if args.full else "evaluate_quick", record, text)


if __name__ == "__main__":
    main()
