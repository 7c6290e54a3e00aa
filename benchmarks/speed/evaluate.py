"""What exact evaluation costs, beside pycocotools' own evaluate and accumulate on the same persons, in the same run.

    python -m benchmarks.speed.evaluate            5,000 images, 11,000 persons, 20 predictions an image
    python -m benchmarks.speed.evaluate --quick    500 images

Ours is timed whole: predictions gathered as a validator does, matching, accumulation, the ten figures over all images.
pycocotools is timed without reading its dictionaries. The figures of both must be equal to the last bit, or nothing is
written.
"""

from __future__ import annotations

import contextlib
import io
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import common
from erpose_yolo.metrics import coco
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import Collector
from erpose_yolo.metrics.truth import GroundTruth


def made_up(images: int, persons: int, per_image: int, seed: int = 0) -> tuple[GroundTruth, list[tuple]]:
    """COCO-like persons, and per image scores, classes, keypoints and boxes: noisy copies of persons, then strays."""
    rng = np.random.default_rng(seed)
    crowd = rng.gamma(0.5, 1.0, images)
    image = np.sort(rng.choice(images, persons, p=crowd / crowd.sum()))  # many images with none, a few with dozens
    side = np.exp(rng.normal(4.3, 0.9, (persons, 1))) * [0.6, 1.4]
    corner = rng.uniform(0, 500, (persons, 2))
    keypoints = np.concatenate((corner[:, None] + rng.random((persons, 17, 2)) * side[:, None], np.zeros((persons, 17, 1))), 2)
    keypoints[..., 2] = rng.choice(3, (persons, 17), p=[0.35, 0.1, 0.55])
    keypoints[rng.random(persons) < 0.4, :, 2] = 0  # 42 % of COCO's val persons have no labelled keypoint
    truth = GroundTruth(
        ids=list(range(images)),
        names=[f"{i:012d}.jpg" for i in range(images)],
        image=image,
        category=np.zeros(persons, int),
        keypoints=keypoints.round(0),
        box=np.concatenate((corner, side), 1),
        area=side.prod(1) * 0.6,
        crowd=rng.random(persons) < 0.02,
        seen=(keypoints[..., 2] > 0).sum(1),
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
        poses = keypoints[person, :, :2] + rng.normal(size=(len(person), 17, 2)) * noise[:, None, None]
        poses = np.concatenate((poses, rng.uniform(0, 600, (per_image - len(person), 17, 2))))
        poses = np.concatenate((poses, np.ones((per_image, 17, 1))), 2)
        boxes = np.concatenate((poses[..., :2].min(1), poses[..., :2].max(1)), 1)
        found.append((np.sort(rng.random(per_image))[::-1], np.zeros(per_image), poses, boxes))
    return truth, found


def summary(record: common.Record) -> str:
    """Time over that of pycocotools, median (range)."""
    return (
        f"{common.median_range(record['ratio'], 2)} of the time of pycocotools' evaluate and accumulate, all ten figures equal to "
        f"the last bit; {record['images']:,} images, {record['persons']:,} persons, {20 * record['images']:,} predictions"
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="500 images instead of 5,000; nothing is saved")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    images, persons = (500, 1100) if args.quick else (5000, 11000)
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
            reference = COCO()
            reference.dataset = content
            reference.createIndex()
            evaluation = COCOeval(reference, reference.loadRes(collector.records(truth)), "keypoints")
            start = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            theirs.append(time.perf_counter() - start)
            evaluation.summarize()
        ratios.append(ours[-1] / theirs[-1])
        if list(figures.values()) != evaluation.stats.tolist():
            raise SystemExit(f"The figures differ: {figures} and {evaluation.stats}")

    record = {"images": images, "persons": persons, "ours": ours, "pycocotools": theirs, "ratio": ratios, "parts": parts}
    record |= {"figures": figures}
    print(summary(record)) if args.quick else common.save("evaluate", record, summary)


if __name__ == "__main__":
    main()
