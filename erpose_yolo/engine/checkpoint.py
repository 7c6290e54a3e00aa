"""Checkpoints that a power cut cannot spoil, and that a run goes on from as if it had never been cut off.

Stock checkpoints are written in place, and hold the averaged weights and the momentum in float16 but neither the weights
that are trained nor the gradients that wait for their optimiser step. The trainer writes aside and renames, and adds a
:data:`STATE` entry with the rest to ``last.pt``; it is gone from the checkpoints of a finished run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import unwrap_model

from erpose_yolo.files import written_whole

STATE = "erpose_state"


def state_of(trainer: Any) -> dict[str, Any]:
    """What a run needs besides the stock checkpoint to go on exactly, of plain types and tensors.

    Args:
        trainer: an ERPoseTrainer at the end of an epoch.

    Returns:
        ``model`` and ``ema``: float32 weights and buffers; ``gradients``: by parameter name, of the batches since the last
        optimiser step, ``waiting`` their number; ``buffer``: indices of the images that mosaic draws from; ``results``:
        text of results.csv.
    """
    model = unwrap_model(trainer.model)
    return {
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "waiting": trainer.waiting,
        "buffer": list(trainer.train_loader.dataset.buffer),
        "results": trainer.csv.read_text(encoding="utf-8") if trainer.csv.exists() else "",
    }


def add_state(file: Path, trainer: Any) -> None:
    """Add the state, and the optimiser's as it is instead of its float16 copy, to a stock checkpoint."""
    checkpoint = torch_load(file, map_location="cpu")
    torch.save({**checkpoint, "optimizer": trainer.optimizer.state_dict(), STATE: state_of(trainer)}, file)


def copy_without_state(file: Path, to: Path) -> None:
    """Copy a checkpoint, less what only an unfinished run needs."""
    checkpoint = torch_load(file, map_location="cpu")
    torch.save({key: value for key, value in checkpoint.items() if key != STATE}, to)


def restore(trainer: Any, state: dict[str, Any], write_results: bool) -> None:
    """Put a trainer, after the stock resume, into the state that :func:`state_of` found.

    Args:
        trainer: an ERPoseTrainer before its first epoch. Gradients are left to the caller: the stock trainer clears them
            once more before that epoch.
        state: of a checkpoint.
        write_results: bring results.csv back to what it was: a kill may have cut a row, or left that of a lost epoch.
    """
    unwrap_model(trainer.model).load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    for index in state["buffer"]:
        trainer.train_loader.dataset.load_image(index)
    if write_results and state["results"]:
        with written_whole(trainer.csv) as part:
            part.write_text(state["results"], encoding="utf-8")
