"""Threads that predict at once, and processes that make one synthetic data set at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from erpose_yolo import ERPose
from erpose_yolo.data.synth import SynthConfig, generate
from erpose_yolo.data.synth.dataset import _install, is_complete

ROUNDS = 25


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints with different weights."""
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(tmp_path_factory.mktemp("weights") / f"{seed}.pt")
        ERPose("erpose-n.yaml").save(files[-1])
    return files


def images() -> list[np.ndarray]:
    """Images of different sizes, so that a mix-up of threads shows in the coordinates, too."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (int(h), int(w), 3), dtype=np.uint8) for h, w in rng.integers(30, 120, (ROUNDS, 2))]


def rows(model: ERPose, image: np.ndarray) -> Tensor:
    """Boxes, scores and keypoints of all persons that an image gives."""
    result = model.predict(image, imgsz=64, conf=0.0, max_det=20, device="cpu", verbose=False)[0]
    assert result.orig_shape == image.shape[:2]
    return torch.cat((result.boxes.data, result.keypoints.data.flatten(1)), 1)


def at_once(*work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """Results of functions that start together in threads of their own."""
    barrier = threading.Barrier(len(work))

    def run(function: Callable[[], list[Tensor]]) -> list[Tensor]:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_two_models_in_two_threads(models: list[Path]) -> None:
    """A model per thread gives the rows of a serial run, bit for bit, whether it is loaded in its thread or before."""
    serial = [[rows(model, p) for p in images()] for model in map(ERPose, models)]
    assert not same(*serial) and all(len(r) for r in serial[0])
    loaded = [ERPose(file) for file in models]
    for threads in (
        at_once(*(lambda m=m: [rows(m, p) for p in images()] for m in loaded)),  # type: ignore[misc]
        at_once(*(lambda f=f: [rows(m, p) for m in [ERPose(f)] for p in images()] for f in models)),  # type: ignore[misc]
    ):
        assert same(threads[0], serial[0]) and same(threads[1], serial[1])


def test_one_model_behind_a_lock(models: list[Path]) -> None:
    """Threads that share a model take turns: every thread gets the rows of its own images."""
    model, lock = ERPose(models[0]), threading.Lock()
    serial = [rows(model, p) for p in images()]

    def work(order: int) -> list[Tensor]:
        out = []
        for image in images()[::order]:
            with lock:
                out.append(rows(model, image))
        return out

    forth, back, again = at_once(lambda: work(1), lambda: work(-1), lambda: work(1))
    assert same(forth, serial) and same(back, serial[::-1]) and same(again, serial)


CFG = SynthConfig(images=6, val_images=3, size=64)
GENERATE = """
import sys, time
from pathlib import Path
from erpose_yolo.data.synth import SynthConfig, generate
while not Path(sys.argv[2]).exists():
    time.sleep(0.005)
generate(Path(sys.argv[1]), SynthConfig(images=6, val_images=3, size=64), workers=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "half a set", "an older set"])
def test_processes_that_make_one_set(tmp_path: Path, repo: Path, before: str) -> None:
    """Three at once into one folder: all succeed, the set is what one alone makes, nothing else is left behind."""
    root, flag = tmp_path / "home" / "people", tmp_path / "go"
    if before == "half a set":
        (root / "images" / "train").mkdir(parents=True)
        (root / "images" / "train" / "000000.jpg").write_bytes(b"torn")
    elif before == "an older set":
        generate(root, SynthConfig(images=2, val_images=1, size=64, seed=5), workers=0)
    command = [sys.executable, "-c", GENERATE, str(root), str(flag)]
    running = [subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    flag.touch()
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    alone = generate(tmp_path / "alone", CFG, workers=0)

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert is_complete(root, CFG) and contents(root) == contents(alone)
    assert len(contents(root)) == 2 * 9 + 1
    assert [p.name for p in root.parent.iterdir()] == ["people"]


def test_a_set_finished_in_between_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes between our look and our move: its set stays."""
    theirs = generate(tmp_path / "theirs", CFG, workers=0)
    ours = generate(tmp_path / "ours", CFG, workers=0)
    (theirs / "read by somebody").touch()
    looks = iter([False])  # the first look comes too early
    monkeypatch.setattr(
        "erpose_yolo.data.synth.dataset.is_complete", lambda root, cfg: next(looks, None) is None and is_complete(root, cfg)
    )
    _install(ours, theirs, CFG)
    assert (theirs / "read by somebody").exists() and is_complete(theirs, CFG)
