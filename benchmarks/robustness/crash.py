"""Does a run survive? Killed (SIGKILL) again and again and resumed, against the same run without a kill.

    python -m benchmarks.robustness.crash

Every other kill is aimed at the moment in which a checkpoint is written, the others fall at random; after every third one
the last row of results.csv is cut off half way as well. A second run is saved and resumed the way the stock trainer does,
for comparison. Synthetic people of 64 px, erpose-n, CPU, gradients accumulated over two batches.
"""

from __future__ import annotations

import csv
import multiprocessing
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.utils import YAML

from benchmarks import common
from erpose_yolo import ERPose
from erpose_yolo.data.synth import SynthConfig, generate
from erpose_yolo.engine.checkpoint import state_of
from erpose_yolo.engine.trainer import ERPoseTrainer

FORK = multiprocessing.get_context("fork")  # a new process without importing everything anew
KEYPOINTS = {"kpt_shape": [17, 3], "flip_idx": [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]}
SMALL = {"imgsz": 64, "batch": 4, "nbs": 8, "warmup_epochs": 2.5, "close_mosaic": 4, "optimizer": "MuSGD"}
PER_EPOCH = 3  # batches: an optimiser step of two reaches over the end of every other epoch


class StockSaving(ERPoseTrainer):
    """Saves and resumes with what stock checkpoints hold."""

    save_model = PoseTrainer.save_model
    resume_training = PoseTrainer.resume_training


def train(data: Path, folder: Path, epochs: int, trainer: type, batches: Any, saved: Any) -> None:
    """One process: start the run, or continue from its last checkpoint; its end goes to end.pt.

    Args:
        batches: shared counter of this process's batches.
        saved: shared number of epochs in last.pt.
    """
    common.LOGGER.setLevel("ERROR")
    last = folder / "run" / "weights" / "last.pt"
    model = ERPose(last if last.exists() else "erpose-n.yaml")

    def note(t: Any) -> None:
        saved.value = t.epoch + 1
        if t.epoch + 1 == t.epochs:
            state = state_of(t)
            state.pop("results")  # compared by its rows, as it holds times
            optimizer = t.optimizer.state_dict()
            for group in optimizer["param_groups"]:
                group.pop("fused", None)  # the stock resume names it where a new run does not: None either way
            torch.save({**state, "optimizer": optimizer, "best score": t.best_fitness}, folder / "end.pt")

    def count(t: Any) -> None:
        batches.value += 1

    model.add_callback("on_train_batch_end", count)
    model.add_callback("on_model_save", note)
    if last.exists():
        model.train(trainer, resume=True, device="cpu")
    else:
        where = {"data": str(data), "project": str(folder), "name": "run", "exist_ok": True}
        model.train(trainer, epochs=epochs, device="cpu", plots=False, verbose=False, **where, **SMALL)


def run(data: Path, folder: Path, epochs: int, kills: int, trainer: type, rng: random.Random, after: int = -1) -> dict[str, Any]:
    """Train to the end, killed so many times on the way; at random moments, or after a number of batches."""
    weights, table = folder / "run" / "weights", folder / "run" / "results.csv"
    part, log = weights / ".part", []
    while True:
        shutil.rmtree(part, ignore_errors=True)  # of the kill before, so that it can be waited for
        batches, saved = FORK.Value("i", 0), FORK.Value("i", 0)
        process = FORK.Process(target=train, args=(data, folder, epochs, trainer, batches, saved))
        process.start()
        if len(log) == kills:
            process.join()
            if process.exitcode:
                raise SystemExit(f"the run failed with exit code {process.exitcode}")
            return {"kills": log, "end": torch.load(folder / "end.pt"), "rows": list(csv.DictReader(table.open()))}
        aimed = len(log) % 2 == 1 and after < 0
        wanted = after if after >= 0 else rng.randrange(2 * PER_EPOCH + 1)
        while process.is_alive() and not (part.exists() if aimed else batches.value >= wanted):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.05 if aimed else 0.3))
        if not process.is_alive():
            raise SystemExit(f"the run ended after {len(log)} of {kills} kills: give it more epochs")
        process.kill()
        process.join()
        epoch = torch.load(weights / "last.pt", weights_only=False)["epoch"] + 1 if (weights / "last.pt").exists() else 0
        log.append({"while_writing": part.exists(), "epochs_saved": epoch, "lost": max(saved.value - epoch, 0)})
        if len(log) % 3 == 0 and table.exists():
            text = table.read_text()
            table.write_text(text[: len(text) - rng.randrange(2, 60)])


def difference(a: dict[str, Any], b: dict[str, Any], part: str) -> float:
    """Largest absolute difference of the float tensors of two end states."""
    pairs = [(a[part][k], v) for k, v in b[part].items() if v.is_floating_point()]
    return max((x - y).abs().max().item() for x, y in pairs)


def same(a: Any, b: Any) -> bool:
    """Equality to the last bit of nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return bool(a == b)


def summary(record: common.Record) -> str:
    """What became of the run that was killed."""
    log, unequal = record["kills"], [key for key, value in record["equal"].items() if not value]
    writing, lost = sum(kill["while_writing"] for kill in log), sum(kill["lost"] for kill in log)
    worst, stock = (max(record[key].values()) for key in ("difference", "difference_stock"))
    return (
        f"{len(log)} kills, {writing} of them while a checkpoint was being written: {lost} finished epochs lost; at the end equal "
        f"to the last bit: {', '.join(key for key in record['equal'] if key not in unequal)}; not equal: "
        f"{', '.join(unequal) or 'nothing'}; "
        f"largest difference of a weight {worst:.2g}, with stock checkpoints and one kill {stock:.2g}"
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    epochs, rng = args.epochs, random.Random(args.seed)

    with tempfile.TemporaryDirectory() as root:
        data = Path(root) / "data.yaml"
        generate(Path(root) / "people", SynthConfig(images=PER_EPOCH * SMALL["batch"] - 1, val_images=4, size=64))
        split = {"path": f"{root}/people", "train": "images/train", "val": "images/val", "names": {0: "person"}}
        YAML.save(data, {**split, **KEYPOINTS})
        alone = run(data, Path(root) / "alone", epochs, 0, ERPoseTrainer, rng)
        cut = run(data, Path(root) / "cut", epochs, args.kills, ERPoseTrainer, rng)
        stock = run(data, Path(root) / "stock", epochs, 1, StockSaving, rng, epochs * PER_EPOCH // 2)

    log = cut["kills"]
    columns = [[{k: v for k, v in row.items() if k != "time"} for row in each["rows"]] for each in (alone, cut)]
    record = {
        "kills": log,
        "epochs": epochs,
        "equal": {key: same(value, cut["end"][key]) for key, value in alone["end"].items()},
        "difference": {part: difference(alone["end"], cut["end"], part) for part in ("model", "ema")},
        "difference_stock": {part: difference(alone["end"], stock["end"], part) for part in ("model", "ema")},
    }
    record["equal"]["results.csv"] = columns[0] == columns[1]
    common.save("crash", record, summary)


if __name__ == "__main__":
    main()
