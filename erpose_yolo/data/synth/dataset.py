"""Writing a data set to disk, whole or not at all, and a contact sheet of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from erpose_yolo.data.painting import draw_sides
from erpose_yolo.data.skeletons import COCO_17, sides_of
from erpose_yolo.files import written_whole

from .config import SynthConfig
from .scene import render_scene
from .skeleton import Array

MARK = "synth.json"
_SPLITS = ("train", "val")


def draw_image(cfg: SynthConfig, split: str, index: int) -> tuple[NDArray[np.uint8], Array, Array]:
    """Image `index` of a split; it depends on nothing but (seed, split, index) and the configuration."""
    return render_scene(np.random.default_rng((cfg.seed, _SPLITS.index(split), index)), cfg)


def label_rows(boxes: Array, keypoints: Array, shape: tuple[int, int]) -> str:
    """YOLO pose rows: `0 cx cy w h` and 17 times `x y v`, normalised.

    Args:
        boxes: (M, 4) xyxy px.
        keypoints: (M, 17, 3) px and visibility.
        shape: height and width of the image in px.
    """
    height, width = shape
    rows = []
    for (x0, y0, x1, y1), person in zip(boxes.astype(float), keypoints.astype(float), strict=True):
        numbers = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        text = ["0", *(f"{v:.6f}" for v in numbers)]
        for x, y, v in person:
            text += [f"{x / width:.6f}", f"{y / height:.6f}", f"{int(v)}"]
        rows.append(" ".join(text) + "\n")
    return "".join(rows)


def _write_one(job: tuple[str, int], cfg: SynthConfig, folder: str) -> None:
    split, index = job
    image, boxes, keypoints = draw_image(cfg, split, index)
    name = f"{index:06d}"
    path = Path(folder, "images", split, f"{name}.jpg")
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f"could not write {path}")
    Path(folder, "labels", split, f"{name}.txt").write_text(label_rows(boxes, keypoints, image.shape[:2]))


def _run_share(folder: str, config: str, part: int, parts: int) -> None:
    """A worker process: every `parts`-th image from `part` on; a byte in its tally file says that one is done."""
    cv2.setNumThreads(1)  # the processes share the cores already
    cfg = SynthConfig(**json.loads(config))
    with open(Path(folder, f"tally-{part}"), "wb", buffering=0) as tally:
        for job in _jobs(cfg)[part::parts]:
            _write_one(job, cfg=cfg, folder=folder)
            tally.write(b".")


def _jobs(cfg: SynthConfig) -> list[tuple[str, int]]:
    return [("train", i) for i in range(cfg.images)] + [("val", i) for i in range(cfg.val_images)]


def _write_shared(cfg: SynthConfig, folder: Path, workers: int, tick: Callable[[int], object]) -> None:
    """Write all images with several fresh interpreters, reporting progress through `tick`.

    Not with multiprocessing: a fork of a process whose OpenCV or torch has threads hangs, and spawning runs the
    caller's script again where it has no `__main__` guard.
    """
    code = f"import sys; from {__name__} import _run_share as run; run(*sys.argv[1:3], *map(int, sys.argv[3:]))"
    config = json.dumps({k: v for k, v in cfg.as_dict().items() if k != "version"})
    package = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    tallies = [folder / f"tally-{k}" for k in range(workers)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for k in range(workers):
            command = [sys.executable, "-c", code, str(folder), config, str(k), str(workers)]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        done, running = 0, True
        while running:
            time.sleep(0.1)
            codes = [p.poll() for p in processes]
            if any(codes):
                raise RuntimeError(f"a worker of the synthetic set failed (exit codes {codes}); see its message above")
            running = None in codes
            now = sum(t.stat().st_size for t in tallies if t.exists())
            tick(now - done)
            done = now
        for tally in tallies:
            tally.unlink()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def is_complete(root: Path, cfg: SynthConfig) -> bool:
    """Whether `root` holds the finished set of this configuration and generator version."""
    try:
        made: dict[str, object] = json.loads((root / MARK).read_text())
        return {**SynthConfig().as_dict(), "version": None, **made} == cfg.as_dict()  # older sets name fewer fields
    except (OSError, ValueError, TypeError):
        return False


def generate(root: Path, cfg: SynthConfig, workers: int | None = None) -> Path:
    """Make the data set in `root` unless it is there.

    The set is written into a temporary sibling folder and renamed, so that a half-made one never appears under `root`,
    and of two processes at work at once one wins and the other throws its copy away.

    Args:
        root: folder of the set: images/{train,val}, labels/{train,val}, synth.json.
        cfg: what to make.
        workers: processes; None uses the cores, 0 or 1 this process. The result is the same.

    Returns:
        `root`.
    """
    root = Path(root)
    if is_complete(root, cfg):
        return root
    if _is_foreign(root):
        raise FileExistsError(f"{root} exists and is no synthetic set; choose another folder")
    from ultralytics.utils import TQDM  # late: importing this package must not bring torch in

    root.parent.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(cfg)
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for kind in ("images", "labels"):
            for split in _SPLITS:
                (folder / kind / split).mkdir(parents=True)
        bar = TQDM(total=len(jobs), desc=f"synth-people -> {root}", unit="img")
        try:
            if workers > 1 and len(jobs) > 64:
                _write_shared(cfg, folder, workers, bar.update)
            else:
                for job in jobs:
                    _write_one(job, cfg=cfg, folder=str(folder))
                    bar.update(1)
        finally:
            bar.close()
        (folder / MARK).write_text(json.dumps(cfg.as_dict(), indent=1) + "\n")
        os.chmod(folder, 0o755)
        _install(folder, root, cfg)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def write_data_yaml(root: Path) -> Path:
    """Write ``data.yaml`` into a finished set, unless there is one.

    It names no ``path``, so that the folder can be moved.

    Returns:
        The file.
    """
    file = Path(root) / "data.yaml"
    if not file.exists():
        about = {
            "train": "images/train",
            "val": "images/val",
            "kpt_shape": [len(COCO_17.names), 3],
            "flip_idx": COCO_17.flip,
            "kpt_oks_sigmas": list(COCO_17.sigmas),
            "names": {0: "person"},
            "kpt_names": {0: list(COCO_17.names)},
            "skeleton": [list(limb) for limb in COCO_17.limbs],
        }
        text = yaml.safe_dump(about, sort_keys=False, default_flow_style=None, width=120)
        with written_whole(file) as part:
            part.write_text(text)
    return file


def _is_foreign(root: Path) -> bool:
    """A folder with anything but a set in it; one that lost its mark has nothing but the folders we make."""
    try:
        names = set(os.listdir(root))  # looked at once: another process may put a set there between two looks
    except FileNotFoundError:
        return False
    return MARK not in names and not names <= {"images", "labels"}


def _install(folder: Path, root: Path, cfg: SynthConfig) -> None:
    """Rename the finished folder to `root`, moving an older or half-made set out of the way.

    A set that another process has finished meanwhile stays: it may be read already.
    """
    for _ in range(10):
        try:
            os.rename(folder, root)  # fails where there is a folder with files, so of two new sets the first one stays
            return
        except OSError:
            if is_complete(root, cfg):
                return
        old = Path(tempfile.mkdtemp(prefix=f".{root.name}-old-", dir=root.parent))
        try:
            os.rename(root, old / "set")
            if is_complete(old / "set", cfg):  # it was finished since the look above
                os.rename(old / "set", root)
        except OSError:  # somebody was here in between: look again
            continue
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"could not move the finished set to {root}")


def draw_skeletons(image: NDArray[np.uint8], boxes: Array, keypoints: Array) -> None:
    """Draw boxes and keypoints (in place): left orange, right blue, middle white; hidden keypoints hollow."""
    sides = [side for side, _ in sides_of(COCO_17.names)]
    for (x0, y0, x1, y1), person in zip(boxes, keypoints, strict=True):
        cv2.rectangle(image, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), (120, 255, 120), 1)
        draw_sides(image, person, sides, COCO_17.limbs, max(1, round(max(image.shape[:2]) / 320)))


def contact_sheet(cfg: SynthConfig, n: int = 24, path: Path | str = "synth-contact-sheet.jpg") -> Path:
    """Write a grid of images, the last third with their skeletons.

    Args:
        cfg: what to draw.
        n: number of images.
        path: image file to write.

    Returns:
        `path`.
    """
    columns = max(1, int(np.ceil(np.sqrt(n * 1.5))))
    rows = int(np.ceil(n / columns))
    height, width = cfg.shape
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), 255, np.uint8)
    for i in range(n):
        image, boxes, keypoints = draw_image(cfg, "train", i)
        if i >= n - n // 3:
            draw_skeletons(image, boxes, keypoints)
        y, x = (i // columns) * (height + 4) + 2, (i % columns) * (width + 4) + 2
        sheet[y : y + height, x : x + width] = image
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 82]):
        raise OSError(f"could not write {path}")
    return path
