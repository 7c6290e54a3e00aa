"""Copy-paste crowds of real people: persons cut out of images by their masks and pasted, scaled, onto person-free backgrounds.

compare.py fine-tunes and judges on them. The source is a folder with images/train, labels/train (YOLO-pose rows of 17 COCO
keypoints), masks/train (one mask per image, all its persons in it) and backgrounds. Sources are split before anything is
cut: no person and no background of train is in val. Labels are made anew: keypoints behind a person in front are labelled
but hidden (1), keypoints outside the image are not labelled (0), boxes and areas are those of the visible pixels, as COCO's
are. A person of whom too little is visible is not pasted at all, so no visible person lacks a label. The crowd index
(erpose_yolo/metrics/crowdpose.py) is sampled evenly from 0 to 0.85 for each image, and the nearest of many arrangements is
taken. The images are square; the same settings give the same bytes, and a finished set of the same settings is used again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from ultralytics.utils import TQDM

from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.metrics.crowdpose import crowd_index
from erpose_yolo.metrics.truth import GroundTruth

MARK = "crowd.json"
VERSION = 1  # raise when the images of a seed change, so that old sets are made anew
TOP_INDEX = 0.85
VISIBLE = 0.15  # least visible share of a pasted person
FLIP = np.array(COCO_17.flip)


@dataclass(frozen=True)
class Settings:
    """What decides the set."""

    data: str  # folder of the sources
    images: int = 3000
    val_images: int = 300
    size: int = 320  # side of an image in pixels
    people: tuple[int, int] = (2, 15)  # fewest and most persons arranged; hidden ones are taken out again, two always stay
    seed: int = 0


@dataclass(frozen=True)
class Cutout:
    """A person without surroundings.

    Attributes:
        levels: (h, w, 4) uint8 BGR and alpha, colours multiplied by alpha; each level half as large as the one before.
        keypoints: (17, 3) pixels of level 0 and visibility; those that lie off the mask are unlabelled.
        area: pixels of the person in level 0.
        whole: standing on what can be seen: with an ankle, and not cut off by the image's lower edge.
        source: name of the image.
    """

    levels: list[np.ndarray]
    keypoints: np.ndarray
    area: int
    whole: bool
    source: str


@dataclass(frozen=True)
class Arrangement:
    """Persons in an image, from the hindmost to the foremost.

    Attributes:
        chosen: (n) index of each person in what was arranged.
        keypoints: (n, 17, 3) pixels and visibility.
        boxes: (n, 4) left, top, right, bottom of the visible pixels.
        areas: (n,) number of visible pixels.
        index: crowd index.
    """

    chosen: list[int]
    keypoints: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    index: float


def cut(image: np.ndarray, mask: np.ndarray, rows: np.ndarray, source: str) -> list[Cutout]:
    """Persons that can be told from all others in their image.

    A person is taken if the parts of the mask under its keypoints are under nobody else's, reach as far as its labelled box
    and no farther, follow its skeleton (else somebody without a label is in them) and have 8 labelled keypoints or more.

    Args:
        image: (H, W, 3) uint8 BGR.
        mask: (H, W) bool, all persons of the image.
        rows: (n, 56) label rows.
        source: name of the image.
    """
    h, w = mask.shape
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    keypoints = rows[:, 5:].reshape(-1, 17, 3) * [w, h, 1]
    boxes = np.concatenate((rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2), 1) * [w, h, w, h]
    spots = keypoints[..., :2].astype(int).clip(0, [w - 1, h - 1])
    part_of = np.where(keypoints[..., 2] > 0, parts[spots[..., 1], spots[..., 0]], 0)  # (n, 17) part under each keypoint, 0 none
    found = []
    for i, box in enumerate(boxes):
        own = np.setdiff1d(part_of[i], [0])
        if not len(own) or np.isin(np.delete(part_of, i, 0), own).any():
            continue
        person = np.isin(parts, own)
        ys, xs = np.nonzero(person)
        left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        tall, wide = bottom - top, right - left
        shared = np.prod((np.minimum(box[2:], (right, bottom)) - np.maximum(box[:2], (left, top))).clip(0))
        union = np.prod(box[2:] - box[:2]) + tall * wide - shared
        cropped = left <= 1 or top <= 1 or right >= w - 1  # by the image: a straight cut through a body
        if tall < 72 or wide < 20 or len(ys) < 2000 or shared < 0.85 * union or cropped:
            continue
        near = cv2.dilate(person.astype(np.uint8), np.ones((5, 5)))[spots[i, :, 1], spots[i, :, 0]] > 0
        labelled, astray = keypoints[i, :, 2] > 0, (keypoints[i, :, 2] == 2) & ~near
        seen = labelled & near
        if seen.sum() < 8 or astray.sum() > 1 or not seen[:7].any():
            continue
        skeleton = np.zeros(mask.shape, np.uint8)
        thick = max(3, round(0.22 * max(tall, wide)))
        for a, b in (*COCO_17.limbs, (0, 5), (0, 6)):
            if labelled[a] and labelled[b]:
                cv2.line(skeleton, spots[i, a].tolist(), spots[i, b].tolist(), 1, thick)
        if (skeleton[person] == 0).mean() > 0.08:
            continue
        whole = bool(seen[15:].any() and bottom < h - 1)
        area = slice(max(top - 2, 0), bottom + 2), slice(max(left - 2, 0), right + 2)
        # outlines run along the outside of a person: a pixel less leaves no rim of the old background, the blur feathers
        alpha = cv2.erode(person.astype(np.float32), np.ones((3, 3)), borderValue=1)
        alpha = cv2.GaussianBlur(alpha, (0, 0), 0.8)[area] * person[area]
        pixels = np.concatenate((image[area] * alpha[..., None], alpha[..., None] * 255), 2)
        levels = [np.ascontiguousarray(pixels.round().astype(np.uint8))]
        while levels[-1].shape[0] > 24:
            levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        own_keypoints = np.where(seen[:, None], keypoints[i] - [area[1].start, area[0].start, 0], 0)
        found.append(Cutout(levels, own_keypoints, int((levels[0][..., 3] > 127).sum()), whole, source))
    return found


def _det(matrix: np.ndarray) -> float:
    """How much larger a (2, 3) affine map makes areas; negative if it mirrors."""
    return matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]


def warp(person: Cutout, matrix: np.ndarray, size: int) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """A person under an affine map into a square image.

    Args:
        person: cut-out.
        matrix: (2, 3) from pixels of level 0 to pixels of the image, both counted from the corner of the first pixel.
        size: side of the image.

    Returns:
        Rows and columns of the image, and the (h, w, 4) uint8 pixels to lay there; None outside the image.
    """
    scale = math.sqrt(abs(_det(matrix)))
    level = min(max(math.floor(0.25 - math.log2(scale)), 0), len(person.levels) - 1)
    source = person.levels[level]
    ratio = np.divide(person.levels[0].shape[1::-1], source.shape[1::-1])  # odd sides do not halve exactly
    linear = matrix[:, :2] * ratio
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * source.shape[1::-1] @ linear.T + matrix[:, 2]
    x0, y0 = (max(math.floor(value), 0) for value in corners.min(0))
    x1, y1 = (min(math.ceil(value), size) for value in corners.max(0))
    if x0 >= x1 or y0 >= y1:
        return None
    shift = matrix[:, 2] - (x0, y0) + linear @ (0.5, 0.5) - 0.5  # OpenCV counts from the centre of the first pixel
    pixels = cv2.warpAffine(source, np.column_stack((linear, shift)), (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    return (slice(y0, y1), slice(x0, x1)), pixels


def place(keypoints: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Keypoints (17, 3) of a cut-out in the image; a mirrored person's left and right change names."""
    moved = np.concatenate((keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2], keypoints[:, 2:]), 1)
    return moved[FLIP] if _det(matrix) < 0 else moved


def index_of(keypoints: np.ndarray, boxes: np.ndarray) -> float:
    """Crowd index of one image, by the definition that the evaluation uses."""
    n = len(keypoints)
    none, sides = np.zeros(n, np.int64), np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
    truth = GroundTruth([0], [""], none, none, keypoints, sides, np.ones(n), none > 0, (keypoints[..., 2] > 0).sum(1), [], "", "")
    return float(crowd_index(truth)[0])


def arrange(people: Sequence[Cutout], matrices: Sequence[np.ndarray], size: int, scale: float = 1.0) -> Arrangement:
    """Who is seen, and how much of them.

    Args:
        people: cut-outs, from the hindmost to the foremost.
        matrices: their affine maps into the image.
        size: side of the image in pixels.
        scale: of the raster on which visibility is computed; a coarse one is fast.

    Returns:
        Those of whom enough is visible, in pixels of the image. Taking one out may uncover another, so they
        are taken out one by one, the least visible first.
    """
    side = round(size * scale)
    layers = []
    for person, matrix in zip(people, matrices):
        layer = warp(person, matrix * scale, side)
        layers.append(None if layer is None else (layer[0], layer[1][..., 3] > 127))
    bodies = [p.area * abs(_det(m)) for p, m in zip(people, matrices)]
    keypoints = np.array([place(p.keypoints, m) for p, m in zip(people, matrices)])
    inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < size)).all(-1) & (keypoints[..., 2] > 0)
    keypoints[~inside] = 0
    chosen = [i for i, layer in enumerate(layers) if layer is not None]
    while True:
        owner = np.full((side, side), -1, np.int16)
        for i in chosen:
            area, mask = layers[i]  # type: ignore[misc]
            owner[area][mask] = i
        spots = (keypoints[..., :2] * scale).astype(int).clip(0, side - 1)
        hidden = owner[spots[..., 1], spots[..., 0]] > np.arange(len(people))[:, None]
        visible = np.bincount(owner[owner >= 0], minlength=len(people)) / scale**2
        free = (inside & ~hidden).sum(1)
        share = {i: visible[i] / bodies[i] for i in chosen}
        poor = [i for i in chosen if share[i] < VISIBLE or visible[i] < 40 or free[i] < 2]
        if not poor:
            break
        chosen.remove(min(poor, key=lambda i: share[i]))
    boxes = np.zeros((len(chosen), 4))
    for n, i in enumerate(chosen):
        area, mask = layers[i]  # type: ignore[misc]
        ys, xs = np.nonzero(owner[area] == i)
        ends = (xs.min() + area[1].start, ys.min() + area[0].start, xs.max() + area[1].start + 1, ys.max() + area[0].start + 1)
        boxes[n] = np.array(ends) / scale
    keypoints[..., 2] = np.where(inside & hidden, 1, keypoints[..., 2])
    kept = keypoints[chosen].reshape(-1, 17, 3)
    return Arrangement(chosen, kept, boxes, visible[chosen], index_of(kept, boxes))


def layout(rng: np.random.Generator, people: Sequence[Cutout], size: int, room: float) -> tuple[list[Cutout], list[np.ndarray]]:
    """Persons on a common ground, from the hindmost to the foremost, and their affine maps.

    As in a photograph from a camera at about eye level, the larger stand lower; who has no feet is in front, cut by the
    image's lower edge. More room spreads them wider and makes them smaller.
    """
    usual = np.clip(np.exp(rng.uniform(np.log(0.2), np.log(0.9))) / room, 0.2, 0.9)
    heights = (usual * np.exp(rng.normal(0, rng.uniform(0.1, 0.45), len(people)))).clip(0.2, 0.9) * size
    heights = np.minimum(heights, [1.25 * len(p.levels[0]) for p in people])  # larger ones would be blurred
    horizon, eye = rng.uniform(0.2, 0.6) * size, rng.uniform(0.75, 1.3)
    spread = np.clip(np.exp(rng.uniform(np.log(0.08), np.log(0.6))) * room, 0.04, 0.6)
    middle = rng.uniform(0.5 - 0.4 * (0.6 - spread), 0.5 + 0.4 * (0.6 - spread))
    across = (middle + spread * rng.uniform(-1, 1, len(people))) * size
    out = []
    for person, tall, x in zip(people, heights, across):
        feet = min(horizon + eye * tall * rng.normal(1, 0.06), size + 0.25 * tall)
        if not person.whole:
            feet = size + tall * rng.uniform(0.0, 0.15)
        scale, angle = tall / len(person.levels[0]), np.radians(np.clip(rng.normal(0, 4), -10, 10) * person.whole)
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.array([[c, -s], [s, c]]) * [rng.choice((-1, 1)), 1]
        base = np.array([person.levels[0].shape[1] / 2, len(person.levels[0])])
        out.append((feet, np.column_stack((linear, (x, feet) - linear @ base)), person))
    out.sort(key=lambda item: item[0])
    return [item[2] for item in out], [item[1] for item in out]


def compose(
    rng: np.random.Generator, cutouts: Sequence[Cutout], background: np.ndarray, settings: Settings
) -> tuple[np.ndarray, Arrangement]:
    """One image (size, size, 3) uint8 BGR of settings.people persons, and its labels."""
    size, target = settings.size, rng.uniform(0, TOP_INDEX)
    fewest, most = (min(n, len(cutouts)) for n in settings.people)
    number = int(rng.integers(fewest, most + 1))
    best, room = None, 1.0
    for _ in range(16):
        people = [cutouts[i] for i in rng.choice(len(cutouts), number, replace=False)]
        people, matrices = layout(rng, people, size, room)
        seen = arrange(people, matrices, size, min(1.0, 64 / size))
        miss = abs(seen.index - target) + (len(seen.chosen) < 2)
        if best is None or miss < best[0]:
            best = miss, people, matrices
        if miss < 0.03:
            break
        crowded = seen.index > target  # give room first, then take somebody out
        room *= 1.5 if crowded else 0.7
        number = max(number - (crowded and room > 2), fewest)
    assert best is not None
    _, people, matrices = best
    seen = arrange(people, matrices, size)

    side = round(min(background.shape[:2]) * rng.uniform(0.6, 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in background.shape[:2])
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    image = cv2.resize(background[y : y + side, x : x + side], (size, size), interpolation=how)
    image = image[:, :: rng.choice((-1, 1))].astype(np.float32)
    for i in seen.chosen:
        area, pixels = warp(people[i], matrices[i], size)  # type: ignore[misc]
        alpha = pixels[..., 3:].astype(np.float32) / 255
        contrast, light = rng.uniform(0.8, 1.2), rng.uniform(-20, 20)
        colour = (pixels[..., :3] * contrast + alpha * (128 * (1 - contrast) + light)).clip(0, 255 * alpha)
        image[area] = image[area] * (1 - alpha) + colour
    return image.round().astype(np.uint8), seen


def read(file: Path, how: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Pixels of an image file; ValueError if there are none."""
    image = cv2.imread(str(file), how)
    if image is None:
        raise ValueError(f"{file} is no image that OpenCV can read. Fix: remove or replace it.")
    return image


def load(data: Path, split: str, seed: int) -> tuple[list[Cutout], list[np.ndarray]]:
    """Cut-outs and backgrounds of a split: 80 % of the source images are for train, the others for val.

    Raises:
        FileNotFoundError: a folder of ``data`` is missing.
        ValueError: nothing to cut out, or no background.
    """

    def share(folder: str, pattern: str) -> list[Path]:
        if not (data / folder).is_dir():
            raise FileNotFoundError(f"{data / folder} does not exist. Fix: --data takes a folder such as coco-mini.")
        files = sorted((data / folder).glob(pattern))
        order = np.random.default_rng(seed).permutation(len(files))
        border = round(0.8 * len(files))
        return [files[i] for i in sorted(order[:border] if split == "train" else order[border:])]

    cutouts: list[Cutout] = []
    for mask in TQDM(share("masks/train", "*.png"), desc=f"{split}: cutting persons out"):
        image = next((data / "images/train").glob(f"{mask.stem}.*"), None)
        label = data / "labels/train" / f"{mask.stem}.txt"
        if image is None or not label.exists():
            raise FileNotFoundError(f"{mask} has no image in images/train or no rows in labels/train. Fix: remove it.")
        rows = np.array([line.split() for line in label.read_text().splitlines() if line.strip()], float).reshape(-1, 56)
        cutouts += cut(read(image), read(mask, cv2.IMREAD_GRAYSCALE) > 127, rows, mask.stem)
    backgrounds = [read(file) for file in share("backgrounds", "*.*")]
    if len(cutouts) < 2 or not backgrounds:
        raise ValueError(f"{data}: {len(cutouts)} persons to cut out, {len(backgrounds)} backgrounds for {split}: too few.")
    return cutouts, backgrounds


def write_split(folder: Path, split: str, images: int, settings: Settings) -> dict:
    """Images, label rows and COCO annotations of a split; returns what the set's record says of it."""
    cutouts, backgrounds = load(Path(settings.data), split, settings.seed)
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    entries: list[dict] = []
    notes: list[dict] = []
    start, number = time.process_time(), 0
    for n in TQDM(range(images), desc=f"{split}: crowds", unit="img"):
        rng = np.random.default_rng((settings.seed, split == "val", n))
        while True:  # rarely all but one of the best arrangement are hidden
            image, seen = compose(rng, cutouts, backgrounds[rng.integers(len(backgrounds))], settings)
            if len(seen.chosen) >= 2:
                break
        size, name = settings.size, f"{n:06d}"
        if not cv2.imwrite(str(folder / "images" / split / f"{name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"could not write {name}.jpg to {folder}")
        entries.append({"id": n, "file_name": f"{name}.jpg", "width": size, "height": size, "crowdIndex": seen.index})
        lines = []
        for keypoints, box, area in zip(seen.keypoints.round(2), seen.boxes, seen.areas):
            low, sides = box[:2], box[2:] - box[:2]
            row = [*(low + sides / 2) / size, *sides / size, *(keypoints / [size, size, 1]).ravel()]
            lines.append("0 " + " ".join(f"{value:.6g}" for value in row) + "\n")
            note: dict = {"id": len(notes) + 1, "image_id": n, "category_id": 1, "iscrowd": 0, "area": float(area)}
            note |= {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
            notes.append(note | {"bbox": [*low.tolist(), *sides.tolist()]})
        (folder / "labels" / split / f"{name}.txt").write_text("".join(lines))
        number += len(lines)
    seconds = time.process_time() - start
    limbs = [[a + 1, b + 1] for a, b in COCO_17.limbs]  # COCO counts from 1
    person = {"id": 1, "name": "person", "keypoints": COCO_17.names, "skeleton": limbs}
    (folder / "annotations").mkdir(exist_ok=True)
    truth = {"images": entries, "annotations": notes, "categories": [person]}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(truth))
    counts = np.histogram([e["crowdIndex"] for e in entries], np.linspace(0, 1, 11))[0]
    return {
        "sources": sorted({c.source for c in cutouts}),
        "cutouts": len(cutouts),
        "backgrounds": len(backgrounds),
        "persons": number,
        "crowd index, tenths from 0": counts.tolist(),
        "images per second of processor time": round(images / max(seconds, 1e-9), 1),
    }


def generate(out: Path, settings: Settings) -> dict:
    """Make the set in ``out``, whole or not at all, unless it is there; returns its record.

    Raises:
        FileExistsError: ``out`` holds something else.
        FileNotFoundError, ValueError: the sources are of no use.
    """
    wanted = json.loads(json.dumps({**asdict(settings), "version": VERSION}))
    if (out / MARK).is_file():
        made: dict = json.loads((out / MARK).read_text())
        if made["settings"] == wanted:
            return made
    if out.exists():
        raise FileExistsError(f"{out} exists and is not the set of these settings. Fix: another --out, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        record: dict = {"settings": wanted}
        for split, images in (("train", settings.images), ("val", settings.val_images)):
            record[split] = write_split(folder, split, images, settings)
        names = {"kpt_names": {0: list(COCO_17.names)}, "kpt_oks_sigmas": list(COCO_17.sigmas)}
        data = {"train": "images/train", "val": "images/val", "kpt_shape": [17, 3], "flip_idx": COCO_17.flip}
        truth = {split: f"annotations/{split}.json" for split in ("train", "val")}
        data |= {"annotations": truth, "names": {0: "person"}, **names, "skeleton": [list(limb) for limb in COCO_17.limbs]}
        (folder / "data.yaml").write_text(yaml.safe_dump({"path": str(out.resolve()), **data}, sort_keys=False))
        (folder / MARK).write_text(json.dumps(record, indent=1) + "\n")
        os.chmod(folder, 0o755)
        os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record
