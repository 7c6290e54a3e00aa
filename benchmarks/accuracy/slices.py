"""Sliced prediction on synthetic crowds of 4,000 to 8,000 px with persons of 15 to 2,000 px: recall by height, cost, duplicates.

    python -m benchmarks.accuracy.slices --weights best.pt --cache slices-cache

A mode is the network's input size, then the sides of the tiles if it has any: ``640`` sees the whole image at 640 px,
``640:640,1600`` also tiles of 640 and 1,600 px of the image, each of them at 640 px. Heights are log-uniform, so every
octave has equally many persons. All stand on their feet and are rendered far to near into one background. Persons of whom
less than a tenth is visible count neither as missed nor as found. Matching is COCO's, at an OKS of 0.5, of all predictions
from --conf on. An unmatched prediction that has an OKS of 0.5 with a person who is already found makes that person found
twice; the others are false positives. Seconds include reading the file. Memory is the peak of the resident memory over one
prediction less what was resident before, decoded image included, in a fresh process (Linux only).
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.utils import TQDM

from benchmarks import common
from benchmarks.common import memory_of
from erpose_yolo import ERPose
from erpose_yolo.data.synth import background, scene
from erpose_yolo.data.synth.camera import Camera
from erpose_yolo.data.synth.raster import rasterise
from erpose_yolo.engine.slicing import tiles
from erpose_yolo.method.oks import object_area, sigmas_for
from erpose_yolo.metrics.matching import AREA_RANGES, match, pair_oks
from erpose_yolo.metrics.predictions import Predictions, extent_area
from erpose_yolo.metrics.truth import AREA_OF_LABELS, GroundTruth

VERSION = 1  # raise when the images of a seed change, so that cached ones are made anew
HEIGHTS = (15, 2000)  # px, of a person's whole silhouette
BINS = (15, 30, 60, 120, 250, 500, 1000, 2000)
LONG_SIDES = (4000, 8000)  # px, of the first and the last image
ASPECT = 4 / 3
LENS = 0.45  # px, sigma of the blur: no photograph is as sharp as a rendering
FOUND_OKS = 0.5
COVERED = 0.5  # most of a person's box that larger persons may cover, where there is room
SIGMAS = sigmas_for(17).numpy().astype(float)


@dataclass(frozen=True)
class Mode:
    """A way of predicting: input size of the network, and sides of tiles in pixels of the image, or none."""

    imgsz: int
    sides: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mode:
        """From ``IMGSZ`` or ``IMGSZ:SIDE,SIDE``."""
        size, _, sides = text.partition(":")
        return cls(int(size), tuple(int(side) for side in sides.split(",") if side))

    def __str__(self) -> str:
        seen = f"tiles of {' + '.join(map(str, self.sides))} px and the whole" if self.sides else "the whole"
        return f"{self.imgsz} px: {seen}"

    def options(self, overlap: float) -> dict[str, Any]:
        """Arguments of ``ERPose.predict``."""
        return {"imgsz": self.imgsz, **({"slices": self.sides, "overlap": overlap} if self.sides else {})}

    def tiles(self, height: int, width: int, overlap: float) -> np.ndarray:
        """(V, 4) the tiles of an image, without the whole."""
        views = [v for side in self.sides if side < max(height, width) for v in tiles(height, width, side, overlap)]
        return np.array(views, float).reshape(-1, 4)


@dataclass(frozen=True)
class Crowd:
    """What an image shows.

    Attributes:
        shape: height and width in pixels.
        box: (N, 4) corners of the visible pixels, of all persons rendered.
        keypoints: (N, 17, 3) pixels and visibility.
        height: (N,) of the whole silhouette, px.
        shown: (N,) bool: enough is visible to count.
    """

    shape: np.ndarray
    box: np.ndarray
    keypoints: np.ndarray
    height: np.ndarray
    shown: np.ndarray


def stand(rng: np.random.Generator, tall: float) -> tuple[scene.Actor, Camera, tuple[int, int]]:
    """A person on its feet, and a camera that sees it ``tall`` px high in an image of the shape returned."""
    while True:
        actor = scene.make_actor(rng)
        distance = float(rng.uniform(4, 12))
        lens = float(rng.normal(1.5, 0.4))
        pitch = float(np.degrees(np.arctan2(lens - 0.9, distance)))
        actor = actor.moved(np.array((0.0, 0.0, distance)))
        pixels, _ = Camera(1000, (0, 0), lens, pitch).project(actor.mesh.verts[np.unique(actor.mesh.quads)])
        low, high = pixels.min(0), pixels.max(0)
        if actor.support == "feet" and high[0] - low[0] <= high[1] - low[1]:
            break
    zoom = tall / (high[1] - low[1])
    x, y = 2 - low * zoom
    width, height = np.ceil((high - low) * zoom).astype(int) + 4
    return actor, Camera(1000 * zoom, (float(x), float(y)), lens, pitch), (int(height), int(width))


def arrange(rng: np.random.Generator, sizes: Sequence[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """(N, 4) int corners for regions (height, width), largest first, in groups of like sizes, none much behind larger ones."""
    boxes = np.zeros((0, 4), int)
    for height, width in sizes:
        best, least = np.zeros(4, int), np.inf
        for _ in range(200):
            corner = rng.uniform(0, 1, 2) * (shape[1] - width, shape[0] - height)
            if len(boxes) and rng.random() < 0.8:  # beside somebody of about the same size
                x1, y1, x2, y2 = boxes[-rng.integers(1, min(len(boxes), 6) + 1)]
                corner = np.array((x1, y2 - height)) + rng.normal(0, 0.4, 2) * (x2 - x1 + width, height)
            x, y = np.clip(corner, 0, (shape[1] - width, shape[0] - height)).astype(int)
            box = np.array((x, y, x + width, y + height))
            side = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None)
            covered = side.prod(1).sum() / (height * width)
            if covered < least:
                best, least = box, covered
            if least <= COVERED:
                break
        boxes = np.concatenate((boxes, [best]))
    return boxes


def render(seed: Sequence[int], long_side: int, persons: int, heights: tuple[float, float] = HEIGHTS) -> tuple[np.ndarray, Crowd]:
    """Render a crowd.

    Args:
        seed: of the image.
        long_side: px.
        persons: number of them, at most 32,767.
        heights: least and largest, px; each person gets an equal share of the octaves between, and a random place in it.

    Returns:
        Image (H, W, 3) uint8 BGR and what it shows.
    """
    rng = np.random.default_rng(seed)
    shape = (round(long_side / ASPECT), long_side)
    image = background.paint(rng, shape, shape[0] * rng.uniform(0.2, 0.5))
    for _ in range(40):  # things of all sizes, as persons have them
        side = int(np.exp(rng.uniform(np.log(4 * heights[0]), np.log(min(shape)))))
        x, y = (int(rng.integers(0, length - side + 1)) for length in (shape[1], shape[0]))
        background.clutter(rng, image[y : y + side, x : x + side], 6)
    part = (np.arange(persons) + rng.random(persons)) / persons
    tall = heights[1] * (heights[0] / heights[1]) ** part  # falling
    actors, cameras, sizes = zip(*(stand(rng, t) for t in tall))
    regions = arrange(rng, sizes, shape)
    light, owner = scene.sample_light(rng), np.full(shape, -1, np.int16)
    keypoints, area = np.zeros((persons, 17, 3)), np.zeros(persons)
    for k in reversed(range(persons)):  # far to near
        x1, y1, x2, y2 = regions[k]
        crop = image[y1:y2, x1:x2].copy()
        raster = rasterise(crop, [actors[k].mesh], cameras[k], light)
        scene.soften(crop, raster)
        image[y1:y2, x1:x2] = crop
        owner[y1:y2, x1:x2][raster.owner == 0] = k
        area[k] = raster.own_area[0]
        keypoints[k] = scene.label([actors[k]], [0], raster, cameras[k])[1][0] + (x1, y1, 0)
    box, shown = np.zeros((persons, 4)), np.zeros(persons, bool)
    for k, (x1, y1, x2, y2) in enumerate(regions):
        mine = owner[y1:y2, x1:x2] == k
        shown[k] = mine.sum() >= max(scene.MIN_PIXELS, scene.MIN_SHOWN * area[k])
        rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
        if len(rows):
            box[k] = x1 + columns[0], y1 + rows[0], x1 + columns[-1] + 1, y1 + rows[-1] + 1
        for point in keypoints[k]:  # its pixel and those around: a keypoint at the silhouette may fall just beside it
            x, y = point[:2].astype(int) - (x1, y1)
            if point[2] == 2 and not mine[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any():
                point[2] = 1
    return cv2.GaussianBlur(image, (3, 3), LENS), Crowd(np.array(shape), box, keypoints, tall, shown)


def cached(folder: Path, seed: int, index: int, long_side: int, persons: int) -> tuple[Path, Crowd]:
    """The file of an image and what it shows, rendered unless it is there."""
    stem = f"{VERSION}-{seed}-{index}-{long_side}-{persons}"
    file, notes = folder / f"{stem}.jpg", folder / f"{stem}.npz"
    if not notes.exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        image, crowd = render([seed, index], long_side, persons)
        if not cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"could not write {file}")
        np.savez(folder / f"{stem}.part.npz", **vars(crowd))
        (folder / f"{stem}.part.npz").replace(notes)
    return file, Crowd(**np.load(notes))


def truth_of(files: Sequence[Path], crowds: Sequence[Crowd]) -> GroundTruth:
    """The crowds as ground truth; hidden persons are ignored."""
    box, keypoints, shown = (np.concatenate([getattr(c, name) for c in crowds]) for name in ("box", "keypoints", "shown"))
    return GroundTruth(
        ids=list(range(len(files))),
        names=[str(file) for file in files],
        image=np.repeat(np.arange(len(files)), [len(c.box) for c in crowds]),
        category=np.zeros(len(box), int),
        keypoints=keypoints,
        box=np.concatenate((box[:, :2], box[:, 2:] - box[:, :2]), 1),
        area=object_area(torch.tensor(box)).numpy(),
        crowd=np.zeros(len(box), bool),
        seen=(keypoints[..., 2] > 0).sum(1) * shown,
        categories=[{"id": 1, "name": "person"}],
        source="synthetic crowds",
        area_rule=AREA_OF_LABELS,
    )


def count(truth: GroundTruth, found: Predictions) -> tuple[np.ndarray, int]:
    """How often each person (N,) is found, and the number of false positives."""
    times = np.zeros(len(truth.image), int)
    (m,) = match(truth, found, SIGMAS, np.array([FOUND_OKS]), AREA_RANGES[:1], max_dets=max(len(found.score), 1))
    taken = m.match[0, 0]
    times[m.person[taken[taken >= 0]]] = 1
    rest = m.prediction[taken < 0]
    first, second = np.nonzero(found.image[rest][:, None] == truth.image)
    similarity = np.zeros((len(rest), len(truth.image)))
    similarity[first, second] = pair_oks(found.keypoints, truth.keypoints, truth.area, truth.box, SIGMAS, rest[first], second)
    again = similarity.max(1) >= FOUND_OKS
    np.add.at(times, similarity[again].argmax(1), 1)
    return times, int((~again).sum())


def measure(
    model: Any,
    mode: Mode,
    files: Sequence[Path],
    crowds: Sequence[Crowd],
    conf: float,
    overlap: float,
) -> dict[str, Any]:
    """Figures of a mode over all images; ``model`` has the ``predict`` of ERPose."""
    parts, seconds, views = [], [], []
    for i, (file, crowd) in enumerate(TQDM(list(zip(files, crowds)), desc=str(mode), disable=False)):
        begin = time.perf_counter()
        (result,) = model.predict(str(file), conf=conf, verbose=False, **mode.options(overlap))
        seconds.append(time.perf_counter() - begin)
        keypoints = result.keypoints.data.cpu().numpy().astype(float)
        score = result.boxes.conf.cpu().numpy().astype(float)
        none = np.zeros(len(score), int)
        parts.append(Predictions(none + i, none, score, keypoints, extent_area(keypoints)))
        views.append(1 + len(mode.tiles(int(crowd.shape[0]), int(crowd.shape[1]), overlap)))
    found = Predictions(*(np.concatenate([getattr(p, name) for p in parts]) for name in Predictions.__dataclass_fields__))
    truth = truth_of(files, crowds)
    times, false = count(truth, found)
    height, shown = np.concatenate([c.height for c in crowds]), ~truth.ignore
    bins = [(height >= low) & (height < high) & shown for low, high in zip(BINS, BINS[1:])]
    return {
        "mode": str(mode),
        "views": float(np.mean(views)),
        "persons": [int(b.sum()) for b in bins],
        "found": [int((times[b] > 0).sum()) for b in bins],
        "twice": int((times[shown] > 1).sum()),
        "false_positives": false / len(files),
        "seconds": seconds,
    }


def peak(weights: str, device: str, file: str, conf: float, options: dict[str, Any]) -> int:
    """Growth of this process's resident memory in bytes over one prediction."""
    model = ERPose(weights)
    model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, device=device, verbose=False)  # libraries and weights are in
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_of("VmRSS")
    model.predict(file, conf=conf, device=device, verbose=False, **options)
    return memory_of("VmHWM") - before


def table(record: common.Record) -> str:
    """One row per mode: recall by height, duplicates and cost."""
    runs, rows = record["runs"], []
    for r in runs:
        recall = [f"{f / n:.2f}" if n else "-" for f, n in zip(r["found"], r["persons"])]
        found, memory = f"{sum(r['found'])} of {sum(r['persons'])}", [f"{b / 2**20:.0f}" for b in r.get("memory", [])]
        cost = [f"{r['views']:.0f}", common.median_range(r["seconds"], 1), " to ".join(memory)]
        rows.append([r["mode"], *recall, found, f"{r['false_positives']:.0f}", r["twice"], *cost])
    heights = [f"{low} to {high} px ({n})" for low, high, n in zip(BINS, BINS[1:], runs[0]["persons"])]
    return common.markdown(["recall (persons)", *heights, "found", "false positives", "twice", "views", "seconds", "MiB"], rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the images, rendered unless they are there")
    modes = ["640", "1280", "640:640", "640:640,1600", "640:640,1280,2560"]
    parser.add_argument("--modes", nargs="+", type=Mode.parse, default=[Mode.parse(m) for m in modes], help="IMGSZ[:SIDE,SIDE]")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--persons", type=int, default=70, help="in an image")
    parser.add_argument("--sides", nargs=2, type=int, default=LONG_SIDES, help="long side of the first and the last image, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="slices", help="of the result file")
    args = parser.parse_args()
    if min(args.sides) / ASPECT < HEIGHTS[1] + 4:
        parser.error(f"--sides must be at least {(HEIGHTS[1] + 4) * ASPECT:.0f} px: persons are up to {HEIGHTS[1]} px high.")

    sides = np.linspace(args.sides[0], args.sides[1], args.images).round().astype(int).tolist()
    bar = TQDM(sides, desc="rendering", disable=False)
    rendered = [cached(args.cache, args.seed, i, side, args.persons) for i, side in enumerate(bar)]
    files, crowds = [r[0] for r in rendered], [r[1] for r in rendered]
    ends = {sides[i]: str(files[i]) for i in (0, -1)}  # memory is measured on the smallest and the largest
    model = ERPose(args.weights)
    model.overrides["device"] = args.device
    model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)  # the first prediction prepares the network
    setup = {k: getattr(args, k) for k in ("images", "persons", "sides", "seed", "conf", "overlap", "device")}
    setup |= {"weights": Path(args.weights).name, "heights": HEIGHTS, "bins": BINS, "aspect": ASPECT}
    runs = []
    for mode in args.modes:
        run = measure(model, mode, files, crowds, args.conf, args.overlap)
        if sys.platform == "linux":
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                jobs = [(args.weights, args.device, file, args.conf, mode.options(args.overlap)) for file in ends.values()]
                run["memory"] = pool.starmap(peak, jobs, chunksize=1)
        runs.append(run)
        common.save(args.name, {"setup": setup, "runs": runs}, table)


if __name__ == "__main__":
    main()
