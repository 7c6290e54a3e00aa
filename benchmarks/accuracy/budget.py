"""One budget for all: trainers of ours and of the peers that begin, step and keep their stages alike.

    YOLO("yolov8n-pose.yaml").train(trainer_of("yolov8n-pose"), data="coco-people.yaml", pretrained="yolov8n.pt")

Weights of a detector give everybody their backbone and neck. The stock ``load`` would give a peer its box and class towers as
well, which a head without boxes cannot have; with the label STOCK_LOAD it does. On a CPU, ``amp`` computes in bfloat16 and
channels_last, which Ultralytics does on GPUs alone.
"""

from __future__ import annotations

import csv
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import RANK
from ultralytics.utils.patches import torch_load

from benchmarks.variants import VARIANTS
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.nn.network import ERPoseModel, load_model_yaml

STAGES = (0.1, 0.25, 0.5, 1.0)
STOCK_LOAD = "box and class towers loaded, too"
# Settings of rows beside erpose-n; the plain OKS loss has the gain of Ultralytics' own training.
SETTINGS: dict[str, dict[str, Any]] = {
    "heatmaps off": {"heatmap_gain": 0},
    "refine off": {"refine": False},
    "boxes on": {"boxes": True},
    "no size range": {"size_range": [0, 1e6]},
    "plain OKS loss": {"pose_gain": 12},
}


def marks(epochs: int) -> list[int]:
    """Epochs after which a training is judged, one for each of STAGES."""
    return [max(1, round(share * epochs)) for share in STAGES]


def take_body(model: nn.Module, weights: nn.Module) -> tuple[int, int, int]:
    """Take over what fits of backbone and neck, and nothing of the head; returns tensors taken, those there are, and the head's."""
    ours, theirs, last = model.state_dict(), weights.float().state_dict(), f"model.{len(model.model) - 1}."
    body = [name for name in ours if not name.startswith(last)]
    taken = {name: theirs[name] for name in body if name in theirs and theirs[name].shape == ours[name].shape}
    model.load_state_dict(taken, strict=False)
    return len(taken), len(body), len(ours) - len(body)


class Budget:
    """Mix-in for a pose trainer, in front of it.

    Attributes:
        block: overrides of the ``erpose:`` block.
        stock_load: take what the stock ``load`` takes of a detector.
    """

    block: dict[str, Any] = {}
    stock_load = False

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        this: Any = super()
        if self.block and not isinstance(weights, PoseModel):  # else that of the weights
            cfg = load_model_yaml(cfg) if isinstance(cfg, (str, Path)) else cfg
            cfg = {**cfg, "erpose": {**(cfg.get("erpose") or {}), **self.block}}
        if weights is None or self.stock_load or isinstance(weights, PoseModel):
            return this.get_model(cfg, weights, verbose)
        model: nn.Module = this.get_model(cfg, None, verbose)
        taken, body, head = take_body(model, weights)
        if RANK in {-1, 0}:
            print(f"Taken from the detector: {taken} of {body} tensors of backbone and neck, 0 of {head} of the head")
        return model

    def _setup_train(self) -> None:
        super()._setup_train()  # type: ignore[misc]
        this: Any = self
        if this.device.type == "cpu":
            this.amp = bool(this.args.amp)  # bfloat16, and no scaler
            this.model.to(memory_format=torch.channels_last)

    def save_model(self) -> bool:
        this: Any = self
        saved = bool(super().save_model())  # type: ignore[misc]
        keep_stage(this.last, this.epoch + 1, this.epochs)
        return saved


class OurTrainer(Budget, ERPoseTrainer):
    """Of ER-Pose."""


class PeerTrainer(Budget, PoseTrainer):
    """Of the models that Ultralytics ships."""


def trainer_of(model: str, label: str = "") -> type[Budget]:
    """The trainer of a row.

    Args:
        model: erpose-n, yolov8n-pose, ...
        label: key of SETTINGS or VARIANTS, or STOCK_LOAD; empty for the model as it is.

    Raises:
        KeyError: a label that is none of them.
    """
    base = OurTrainer if model.startswith("erpose") else PeerTrainer
    if not label:
        return base
    if label not in {*SETTINGS, *VARIANTS, STOCK_LOAD}:
        raise KeyError(label)
    own = {"block": SETTINGS.get(label, {}), "stock_load": label == STOCK_LOAD, "model_class": VARIANTS.get(label, ERPoseModel)}
    return type("RowTrainer", (base,), own)


def stage_file(folder: Path, epoch: int) -> Path:
    """Where a run keeps the weights of a stage."""
    return folder / "weights" / f"stage{epoch}.pt"


def keep_stage(last: Path, epoch: int, epochs: int) -> None:
    """Keep a checkpoint if its epoch ends a stage. Of a distributed run, the main process does."""
    if RANK in {-1, 0} and epoch in marks(epochs):
        file = stage_file(last.parent.parent, epoch)
        shutil.copy(last, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)


def epochs_over(folder: Path, budget: dict[str, Any]) -> int:
    """Epochs that a training in a folder has behind it, 0 where there is none.

    Args:
        folder: of the run.
        budget: what its arguments must be, "epochs" among them.

    Raises:
        ValueError: it had another budget, so continuing would mix the two.
    """
    last = folder / "weights" / "last.pt"
    if not last.exists():
        return 0
    found = torch_load(last, map_location="cpu")
    had = {name: found["train_args"].get(name) for name in budget}
    if had != budget:
        raise ValueError(f"{folder} holds a training of {had}, not {budget}. Fix: delete it, or give --name or --out.")
    epoch = int(found["epoch"]) + 1
    if not epoch:  # it came to its end
        return int(budget["epochs"])
    keep_stage(last, epoch, budget["epochs"])  # it may have been cut off in between
    return epoch


def seconds_of(folder: Path) -> tuple[float, float]:
    """Seconds of training that results.csv tells of, and of the median epoch.

    The time in it starts anew where a run continues, and its last epoch holds a validation.
    """
    with open(folder / "results.csv", encoding="utf-8") as file:
        times = [float(row["time"]) for row in csv.DictReader(file, skipinitialspace=True)]
    spent = [now - before if now > before else now for before, now in zip([0.0, *times], times)]
    return sum(spent), statistics.median(spent[:-1] or spent)


def without_spreads(file: Path, to: Path) -> Path:
    """A checkpoint that sorts by scores alone; the weights stay."""
    checkpoint = torch_load(file, map_location="cpu")
    for name in ("ema", "model"):
        if checkpoint.get(name) is not None:
            checkpoint[name].model[-1].confidence = "score"
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, to)
    return to
