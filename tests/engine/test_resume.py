"""A run of days survives a power cut and a full disk: nothing is lost but the running epoch, and nothing changes."""

from __future__ import annotations

import csv
import errno
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erpose_yolo import ERPose
from erpose_yolo.engine import checkpoint
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.files import atomic_replace

SMALL = {"imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "verbose": False}

# A process that starts or resumes the run in a folder, and kills itself when told to: "batch 5" after the fifth batch
# of this process, "write 2" when its second checkpoint is written but has not taken its name.
CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from erpose_yolo import ERPose
from erpose_yolo.engine import trainer

folder, data, when, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
count = {"batch": 0, "write": 0}
replace = trainer.atomic_replace

def step(what):
    count[what] += 1
    if (what, count[what]) == (when, number):
        os.kill(os.getpid(), signal.SIGKILL)

def watched(part, file):
    if file.name == "last.pt":
        step("write")
    replace(part, file)

trainer.atomic_replace = watched
last = folder / "run" / "weights" / "last.pt"
model = ERPose(last if last.exists() else "erpose-n.yaml")
model.add_callback("on_train_batch_end", lambda trainer: step("batch"))
model.add_callback("on_model_save", lambda trainer: shutil.copy(trainer.last, folder / "end.pt"))
if last.exists():
    model.train(resume=True, device="cpu")
else:
    model.train(data=data, project=str(folder), name="run", epochs=5, imgsz=64, batch=4, nbs=12, warmup_epochs=1.5,
                close_mosaic=2, optimizer="MuSGD", device="cpu", plots=False, verbose=False)
"""


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=False)


def assert_same(a: Any, b: Any, where: str) -> None:
    """Equality to the last bit of nested containers of tensors."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv less its column of times."""
    with (folder / "run" / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_ends_as_one_left_alone(tiny_dataset: Path, tmp_path: Path) -> None:
    """Killed twice, once while it saves, with gradients waiting and a torn results.csv: the same to the last bit."""

    def child(folder: Path, when: str = "never", number: int = 0) -> int:
        command = [sys.executable, "-c", CHILD, str(folder), str(tiny_dataset), when, str(number)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    alone, cut = tmp_path / "alone", tmp_path / "cut"
    assert child(alone) == 0
    last = cut / "run" / "weights" / "last.pt"
    assert child(cut, "batch", 5) == -signal.SIGKILL  # in the third epoch of two batches
    assert load(last)["epoch"] == 1
    table = cut / "run" / "results.csv"
    table.write_text(table.read_text()[:-20])
    assert child(cut, "write", 2) == -signal.SIGKILL  # the fourth epoch is written, but not there
    assert load(last)["epoch"] == 2 and (last.parent / ".part").is_dir()
    assert child(cut) == 0

    ends = [load(folder / "end.pt") for folder in (alone, cut)]
    states = [end[checkpoint.STATE] for end in ends]
    assert states[0]["waiting"] == 1 and len(states[0]["gradients"]) > 100  # or that part is not tested
    for state in states:
        state.pop("results")  # holds times
    assert_same(*states, "state")
    for end in ends:
        for group in end["optimizer"]["param_groups"]:
            group.pop("fused", None)  # the stock resume names it where a new run does not: None either way
    for key in ("epoch", "updates", "optimizer", "best_fitness", "stopper"):
        assert_same(ends[0][key], ends[1][key], key)
    assert rows(alone) == rows(cut) and [int(row["epoch"]) for row in rows(cut)] == [1, 2, 3, 4, 5]
    for name in ("last.pt", "best.pt"):
        whole, resumed = (load(folder / "run" / "weights" / name) for folder in (alone, cut))
        assert_same(whole["model"].state_dict(), resumed["model"].state_dict(), name)
    assert sorted(file.name for file in last.parent.iterdir()) == ["best.pt", "last.pt"]


@pytest.fixture(scope="module")
def finished(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ERPoseTrainer:
    """Trainer of a finished run of one epoch."""
    model = ERPose("erpose-n.yaml")
    model.train(data=str(tiny_dataset), epochs=1, project=str(tmp_path_factory.mktemp("runs")), name="run", **SMALL)
    return model.trainer


@pytest.mark.slow
def test_a_finished_run_leaves_plain_checkpoints(finished: ERPoseTrainer) -> None:
    """Nothing of the resume state stays in what users publish, and the trainer's paths are the true ones again."""
    assert finished.last == finished.save_dir / "weights" / "last.pt"
    for file in (finished.last, finished.best):
        assert checkpoint.STATE not in load(file) and load(file)["optimizer"] is None
        assert file.stat().st_size < 8e6  # float16 weights and no more
    assert not (finished.wdir / ".part").exists()


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["stock", "state", "flush"])
def test_a_full_disk_leaves_the_checkpoints_whole(finished: ERPoseTrainer, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The disk fills up half way through a file, wherever that is: the error comes through, the files stay as they were."""
    before = {file: file.read_bytes() for file in (finished.last, finished.best)}
    write, save = Path.write_bytes, torch.save

    def half(file: Path, content: bytes) -> int:
        write(file, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    def half_saved(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(content, file, *args, **kwargs)
        if isinstance(file, Path):
            half(file, file.read_bytes())

    if moment == "stock":
        monkeypatch.setattr(Path, "write_bytes", half)
    elif moment == "state":
        monkeypatch.setattr(torch, "save", half_saved)
    else:
        monkeypatch.setattr("erpose_yolo.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        finished.save_model()
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in before} == before
    assert not (finished.wdir / ".part").exists()  # and the space is free again
    assert finished.last.parent == finished.wdir

    assert finished.save_model()  # with room again, it goes on
    assert checkpoint.STATE in load(finished.last) and checkpoint.STATE not in load(finished.best)
    for file, content in before.items():
        file.write_bytes(content)


@pytest.mark.slow
def test_epochs_are_seeded_by_their_number(finished: ERPoseTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same epoch draws the same, another one does not, and a repetition after a NaN does not run into it again."""

    def draw(epoch: int, attempt: int = 0) -> tuple[Any, ...]:
        monkeypatch.setattr(finished, "epoch", epoch)
        monkeypatch.setattr(finished, "nan_recovery_attempts", attempt)
        finished.run_callbacks("on_train_epoch_start")
        images = [name for batch in finished.train_loader for name in batch["im_file"]]
        return random.random(), np.random.rand(), torch.rand(1).item(), images

    first = draw(3)
    assert draw(3) == first
    for other in (draw(4), draw(3, attempt=1)):
        assert all(a != b for a, b in zip(first, other)) and sorted(other[3]) == sorted(first[3])


@pytest.mark.slow
def test_callbacks_of_users_and_ours(tiny_dataset: Path, tmp_path: Path) -> None:
    """Users may reset theirs, put them in place of all others, and train again: epochs are seeded, batches counted once."""
    seen: list[tuple[int, int]] = []

    def alone(trainer: ERPoseTrainer) -> None:
        for event in ("on_train_epoch_start", "on_train_batch_start"):
            trainer.set_callback(event, lambda trainer: None)

    model = ERPose("erpose-n.yaml")
    small = {**SMALL, "epochs": 1, "nbs": 12, "warmup_epochs": 0, "val": False}
    for run in ("first", "second"):
        model.reset_callbacks()
        model.add_callback("on_pretrain_routine_start", alone)
        model.add_callback("on_train_batch_end", lambda trainer: seen.append((trainer.waiting, torch.initial_seed())))
        model.train(data=str(tiny_dataset), project=str(tmp_path), name=run, **small)
        assert ERPoseTrainer._begin_epoch not in model.callbacks["on_train_epoch_start"]  # this trainer's alone
    seed = int(np.random.SeedSequence((0, 0, 0, 0)).generate_state(1)[0])
    assert seen == [(1, seed), (0, seed)] * 2  # the last batch of a run takes a step


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    part, file = tmp_path / "part", tmp_path / "file"
    part.write_text("new")
    file.write_text("old")
    atomic_replace(part, file)
    assert file.read_text() == "new" and not part.exists()
