"""What the benchmarks share: models, images without augmentation, result files, and tables."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import LOGGER, TQDM

from erpose_yolo.method.oks import object_area
from erpose_yolo.nn.network import ERPoseModel, load_model_yaml

RESULTS = Path(__file__).parent / "results"
PEERS = ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose")
OURS = ("erpose-n", "erpose11-n", "erpose8-n")
Record = dict[str, Any]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Command line of a benchmark, its help being the module's docstring. Ultralytics is quiet from now on."""
    LOGGER.setLevel("WARNING")
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


# --- models and data ---


def build(
    name: str, seed: int = 0, epochs: int = 100, settings: dict[str, Any] | None = None, kind: type[ERPoseModel] = ERPoseModel
) -> torch.nn.Module:
    """A model with random weights, one class, 17 keypoints; peers as Ultralytics ships them.

    Args:
        name: erpose-n, erpose11-n, erpose8-n ..., or a stock name such as yolo26n-pose.
        seed: of the weights.
        epochs: length of the training, for loss schedules.
        settings: overrides of the ``erpose:`` block.
        kind: class of ours, a subclass for a baseline.
    """
    torch.manual_seed(seed)
    if name.startswith("erpose"):
        cfg = load_model_yaml(f"{name}.yaml")
        cfg["erpose"] = {**(cfg.get("erpose") or {}), **(settings or {})}
        model: torch.nn.Module = kind(cfg, nc=1, verbose=False)
    else:
        model = PoseModel(f"{name}.yaml", nc=1, data_kpt_shape=[17, 3], verbose=False)
        if hasattr(model.model[-1], "one2one_cv2"):
            model.end2end = True  # the peer's one-to-one mode, nms=False
    model.args = get_cfg(overrides={"epochs": epochs})
    model.names = {0: "person"}
    return model


def modes(model: str) -> dict[str, bool | None]:
    """How a model is deployed: label -> Ultralytics' ``nms`` argument. YOLO26 has two modes."""
    if model.startswith("erpose"):
        return {"": None}
    return {" one-to-one": False, " NMS": True} if "26" in model else {" NMS": True}


def load_split(data: str | Path, split: str, size: int, keep: Callable[[np.ndarray], bool] = lambda rows: True) -> list:
    """Letterboxed images of a YOLO-pose data set, in memory, without augmentation.

    Args:
        data: data YAML with 17-keypoint rows.
        split: train or val.
        size: side of the square input in pixels.
        keep: gets the label rows (N, 56) of an image and says whether to take it.

    Returns:
        List of (image (3, size, size) uint8 RGB, boxes (N, 4) x y w h of the centre form in pixels, keypoints (N, 17, 3)).
    """
    images = Path(check_det_dataset(str(data))[split])
    out = []
    for file in sorted(images.iterdir()):
        label = Path(str(file.parent).replace("images", "labels")) / f"{file.stem}.txt"
        text = label.read_text().split("\n") if label.exists() else []
        rows = np.array([line.split() for line in text if line.strip()], np.float64).reshape(-1, 56)
        if not keep(rows):
            continue
        image = cv2.imread(str(file))
        scale = size / max(image.shape[:2])
        h, w = (round(side * scale) for side in image.shape[:2])
        top, left = (size - h) // 2, (size - w) // 2
        canvas = np.full((size, size, 3), 114, np.uint8)
        canvas[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        boxes = rows[:, 1:5] * [w, h, w, h] + [left, top, 0, 0]
        keypoints = rows[:, 5:].reshape(-1, 17, 3) * [w, h, 1] + [left, top, 0]
        keypoints[keypoints[..., 2] == 0] = 0
        out.append((canvas[..., ::-1].transpose(2, 0, 1).copy(), boxes, keypoints))
    return out


def collate(samples: Sequence[tuple], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Ultralytics batch of :func:`load_split` samples."""
    size = samples[0][0].shape[-1]
    boxes = torch.tensor(np.concatenate([s[1] for s in samples]), dtype=torch.float32) / size
    keypoints = torch.tensor(np.concatenate([s[2] for s in samples]), dtype=torch.float32)
    keypoints[..., :2] /= size
    owner = torch.cat([torch.full((len(s[1]),), float(i)) for i, s in enumerate(samples)])
    batch = {
        "img": torch.tensor(np.stack([s[0] for s in samples])).float() / 255,
        "batch_idx": owner,
        "cls": torch.zeros(len(owner), 1),
        "bboxes": boxes,
        "keypoints": keypoints,
    }
    return {k: v.to(device) for k, v in batch.items()}


def corners(boxes: np.ndarray) -> torch.Tensor:
    """(N, 4) x1 y1 x2 y2 from boxes (N, 4) in centre form."""
    b = torch.tensor(boxes)
    return torch.cat((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), 1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Object areas by the area rule, from (N, 4) boxes in centre form, pixels."""
    return object_area(corners(boxes)).numpy()


def random_batch(size: int, images: int, persons: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up persons of mixed sizes on noise, for speed and memory."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(images):
        side = rng.uniform(0.05, 0.5, (persons, 1)) * size * [0.5, 1.0]
        centre = rng.uniform(0.2, 0.8, (persons, 2)) * size
        keypoints = centre[:, None] + rng.uniform(-0.45, 0.45, (persons, 17, 2)) * side[:, None]
        seen = rng.integers(0, 3, (persons, 17, 1))
        image = rng.integers(0, 255, (3, size, size), dtype=np.uint8)
        samples.append((image, np.concatenate((centre, side), 1), np.concatenate((keypoints, seen), 2)))
    return collate(samples)


def memory_of(field: str) -> int:
    """A field of /proc/self/status, such as VmRSS, in bytes (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


# --- result files ---


def machine() -> str:
    """One line on what the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    with_info = Path("/proc/cpuinfo")
    if with_info.exists():
        names = [line.split(":", 1)[1].strip() for line in with_info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def machines(record: Record) -> str:
    """Where a table was measured: one machine, or where there are several each with its runs ("model", "label", "seed")."""
    if "machine" in record:
        return str(record["machine"])
    names: dict[str, dict[str, list[int]]] = {}
    for run in record["runs"]:
        of = names.setdefault(run["machine"], {}).setdefault(": ".join(filter(None, (run["model"], run.get("label")))), [])
        of += [run["seed"]] * (run["seed"] not in of)
    if len(names) == 1:
        return next(iter(names))
    several = [name for of in names.values() for name in of]

    def words(name: str, seeds: list[int]) -> str:
        """A model whose seeds ran on several machines says which ran here."""
        return f"{name} (seed {', '.join(map(str, seeds))})" if several.count(name) > 1 else name

    return "; ".join(f"{at}: {', '.join(words(*one) for one in of.items())}" for at, of in names.items())


def read(name: str) -> Record:
    """A result file; empty where there is none."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def save(name: str, record: Record, table: Callable[[Record], str]) -> None:
    """Write results/NAME.json anew, with the machine, and print its table."""
    record = {"machine": machine(), **record}
    write(name, record)
    print(f"{table(record)}\n\n{machines(record)}")


def write(name: str, record: Record) -> None:
    """Write results/NAME.json at once: another process may be reading it."""
    RESULTS.mkdir(exist_ok=True)
    part = RESULTS / f"{name}.{os.getpid()}.part"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(RESULTS / f"{name}.json")


def finished(name: str, setup: dict[str, Any]) -> list[Record]:
    """Runs that a result file holds; read anew each time, as another process may have added some.

    Raises:
        ValueError: their setup is another one.
    """
    old = read(name)
    if old and old["setup"] != json.loads(json.dumps(setup)):
        raise ValueError(f"results/{name}.json holds runs of another setup, {old['setup']}. Fix: give --name for a second table.")
    return list(old.get("runs", []))


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Nobody else does meanwhile what asks for the same folder; yields whether that is so.

    Args:
        folder: of result files, or of a run; made if need be.
        wait: for those who have it; else yield False where somebody has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)  # which unlocks


def is_finished(name: str, setup: dict[str, Any], who: dict[str, Any]) -> bool:
    """Whether results/NAME.json holds the run that ``who`` identifies."""
    return any(who.items() <= run.items() for run in finished(name, setup))


def put(name: str, setup: dict[str, Any], entries: Callable[[Record], Record]) -> Record:
    """Add entries to results/NAME.json, which other processes may fill as well; returns the whole record.

    Args:
        name: of the result file.
        setup: what all of its runs share.
        entries: given the record so far, what to add or replace.
    """
    with locked(RESULTS):
        finished(name, setup)  # of the same setup
        record = {"setup": setup, "runs": [], **read(name)}
        record |= entries(record)
        write(name, record)
    return record


def complete(
    name: str,
    setup: dict[str, Any],
    todo: Sequence[dict[str, Any]],
    run: Callable[..., list[Record]],
    table: Callable[[Record], str],
    order: Callable[[list[Record]], list[Record]] = list,
    extra: Callable[[list[Record]], Record] = lambda runs: {},
) -> None:
    """Make the runs that results/NAME.json lacks, and save after each. Several processes may fill one file.

    Args:
        name: of the result file.
        setup: what all of its runs share.
        todo: what identifies each run.
        run: takes the entries of one ``todo`` as keywords, and returns one record per mode in which the model is deployed; none
            where another process makes that run.
        table: of the record {"setup", "runs"}.
        order: of the runs.
        extra: further entries of the record, from all runs.
    """
    for who in TQDM(todo, desc=name, disable=False):
        if is_finished(name, setup, who):
            continue
        new = [{"machine": machine(), **who, **record} for record in run(**who)]
        if not new:
            continue

        def add(record: Record, new: list[Record] = new) -> Record:
            runs = order(record["runs"] + new)
            return {"runs": runs, **extra(runs)}

        record = put(name, setup, add)
        print(f"{table(record)}\n\n{machines(record)}")


# --- tables ---


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def median_range(values: Sequence[float], digits: int = 3) -> str:
    """Median and range of repeated measurements."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def mean_range(values: Sequence[float], digits: int = 1, scale: float = 100) -> str:
    """Mean over seeds, and their range where there are several; in per cent unless ``scale`` says otherwise."""
    mean = f"{statistics.mean(values) * scale:.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values) * scale:.{digits}f} to {max(values) * scale:.{digits}f})"


def grouped(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs by what stands in the first column of a table: model, label and mode. Seeds share a row."""
    out: dict[str, list[Record]] = {}
    for run in runs:
        label = f": {run['label']}" if run.get("label") else ""
        out.setdefault(f"{run['model']}{label}{run.get('mode', '')}", []).append(run)
    return out
