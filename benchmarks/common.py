"""What the benchmarks share: contestants, a data loader without augmentation, the machine, and tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # Ultralytics sets it to 1 at import

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import LOGGER

from erpose_yolo.network import ERPoseModel, load_model_yaml
from erpose_yolo.oks import object_area

RESULTS = Path(__file__).parent / "results"
LOGGER.setLevel("WARNING")


def build(name: str, seed: int = 0, epochs: int = 100, settings: dict[str, Any] | None = None) -> torch.nn.Module:
    """A contestant from random weights, one class, 17 joints; peers as Ultralytics ships them.

    Args:
        name: erpose-n, erpose11-n, erpose8-n ..., or a stock name such as yolo26n-pose.
        seed: of the weights.
        epochs: length of the training, for loss schedules.
        settings: overrides of the ``erpose:`` block.
    """
    torch.manual_seed(seed)
    if name.startswith("erpose"):
        cfg = load_model_yaml(f"{name}.yaml")
        cfg["erpose"] = {**(cfg.get("erpose") or {}), **(settings or {})}
        model: torch.nn.Module = ERPoseModel(cfg, nc=1, verbose=False)
    else:
        model = PoseModel(f"{name}.yaml", nc=1, data_kpt_shape=[17, 3], verbose=False)
        if hasattr(model.model[-1], "one2one_cv2"):
            model.end2end = True  # the peer's one-to-one mode, nms=False
    model.args = get_cfg(overrides={"epochs": epochs})
    model.names = {0: "person"}
    return model


def machine() -> str:
    """One line on what the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    with_info = Path("/proc/cpuinfo")
    if with_info.exists():
        names = [line.split(":", 1)[1].strip() for line in with_info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def machines(runs: Sequence[dict[str, Any]]) -> str:
    """Which runs were made where: the machine, or where there are several each with its runs.

    Args:
        runs: with "machine", "model", "seed" and, of variants, "label".
    """
    names: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        of = names.setdefault(run["machine"], {}).setdefault(": ".join(filter(None, (run["model"], run.get("label")))), [])
        of += [run["seed"]] * (run["seed"] not in of)
    if len(names) == 1:
        return next(iter(names))
    several = [name for of in names.values() for name in of]

    def words(name: str, seeds: list[int]) -> str:
        """A contestant whose seeds ran on several machines says which ran here."""
        return f"{name} (seed {', '.join(map(str, seeds))})" if several.count(name) > 1 else name

    return "  \n".join(f"{at}: {'; '.join(words(*one) for one in of.items())}" for at, of in names.items())


def write(name: str, record: dict[str, Any], table: str) -> None:
    """Save a result as JSON and Markdown in results/, and print the table, with the machine of each run below it.

    Runs that say where they were made (:func:`machines`) keep that, whoever writes the file anew.
    """
    RESULTS.mkdir(exist_ok=True)
    runs = [run for run in record.get("runs", ()) if isinstance(run, dict) and "machine" in run]
    record = record if runs else {"machine": machine(), **record}
    half = RESULTS / f"{name}.{os.getpid()}.part"
    half.write_text(json.dumps(record, indent=1) + "\n")
    half.replace(RESULTS / f"{name}.json")  # at once: another process may be reading it
    text = f"{table}\n\n{machines(runs) if runs else record['machine']}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and range of repeated measurements."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def load_split(data: str | Path, split: str, size: int, keep: Callable[[np.ndarray], bool] = lambda rows: True) -> list:
    """Letterboxed pictures of a YOLO-pose data set, in memory, without augmentation.

    Args:
        data: data YAML with 17-joint rows.
        split: train or val.
        size: side of the square input in pixels.
        keep: told the label rows (N, 56) of a picture, says whether to take it.

    Returns:
        List of (image (3, size, size) uint8 RGB, boxes (N, 4) x y w h of the centre form in pixels, joints (N, 17, 3)).
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
        joints = rows[:, 5:].reshape(-1, 17, 3) * [w, h, 1] + [left, top, 0]
        joints[joints[..., 2] == 0] = 0
        out.append((canvas[..., ::-1].transpose(2, 0, 1).copy(), boxes, joints))
    return out


def collate(samples: Sequence[tuple], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Ultralytics batch of :func:`load_split` samples."""
    size = samples[0][0].shape[-1]
    boxes = torch.tensor(np.concatenate([s[1] for s in samples]), dtype=torch.float32) / size
    joints = torch.tensor(np.concatenate([s[2] for s in samples]), dtype=torch.float32)
    joints[..., :2] /= size
    owner = torch.cat([torch.full((len(s[1]),), float(i)) for i, s in enumerate(samples)])
    batch = {
        "img": torch.tensor(np.stack([s[0] for s in samples])).float() / 255,
        "batch_idx": owner,
        "cls": torch.zeros(len(owner), 1),
        "bboxes": boxes,
        "keypoints": joints,
    }
    return {k: v.to(device) for k, v in batch.items()}


def areas(boxes: np.ndarray) -> np.ndarray:
    """Object areas by the area rule, from (N, 4) boxes in centre form, pixels."""
    b = torch.tensor(boxes)
    return object_area(torch.cat((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), 1)).numpy()


def random_batch(size: int, images: int, persons: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up persons of mixed sizes on noise, for speed and memory."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(images):
        side = rng.uniform(0.05, 0.5, (persons, 1)) * size * [0.5, 1.0]
        centre = rng.uniform(0.2, 0.8, (persons, 2)) * size
        joints = centre[:, None] + rng.uniform(-0.45, 0.45, (persons, 17, 2)) * side[:, None]
        seen = rng.integers(0, 3, (persons, 17, 1))
        image = rng.integers(0, 255, (3, size, size), dtype=np.uint8)
        samples.append((image, np.concatenate((centre, side), 1), np.concatenate((joints, seen), 2)))
    return collate(samples)
