"""The last steps of erpose-n.pt: a fine-tuning with labels and the whole loss, and a mean with the weights before it.

    python -m benchmarks.accuracy.fine_tune --weights erpose-n.pt --data people-whole/data.yaml --out tuned.pt

Alone, a short fine-tuning on few photos finds more people, repeats more of them and places keypoints worse; a mean that has a
quarter of it keeps the first without the other two, and the next fine-tuning may begin there. Schedules stand at their end. The
backbone stays as it is, and so do all means and variances of BatchNorm, which normalises as when deployed. --data should have
ignore regions for people whom labels have left out: ``erpose label merge=``.

The photos that benchmarks.accuracy.calibrate takes from the same --data are left out, so the score map is fitted on photos that
the fine-tuning has not seen. What each step earned stands in cfg/weights/erpose-n.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import YAML

from benchmarks.accuracy import calibrate
from erpose_yolo import ERPose, catalog

BACKBONE = 11  # layers


def hold_norms(trainer: Any) -> None:
    """BatchNorm normalises by what it knows and not by the batch."""
    for module in trainer.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def end_schedules(trainer: Any) -> None:
    """Train as at the end of a training: exact sigmas, mostly one-to-one. Heatmaps, which start untrained, do not move the neck."""
    model = trainer.model
    model.criterion = model.init_criterion()
    model.criterion.updates = trainer.epochs
    model.criterion.loss.heatmap_gain = 0.0


def hold_out(data: str, count: int, out: Path) -> Path:
    """Write a data YAML without the training photos that the score map is fitted on.

    Args:
        data: a data YAML.
        count: how many photos calibrate takes of it.
        out: an existing folder for the YAML and its list of files.

    Returns:
        the new data YAML.

    Raises:
        ValueError: no training photo would be left.
    """
    held = set(calibrate.sample(data, count))
    photos = [file for file in calibrate.training_photos(data) if file not in held]
    if not photos:
        raise ValueError(f"{data}: all {len(held)} training photos are held out for calibrate; give fewer with --held.")
    (out / "train.txt").write_text("".join(f"{file}\n" for file in photos))
    resolved = check_det_dataset(str(catalog.resolve_data(data)))
    known = {key: value for key, value in YAML.load(resolved["yaml_file"]).items() if key not in {"path", "test", "download"}}
    YAML.save(out / "data.yaml", {**known, "train": str((out / "train.txt").absolute()), "val": resolved["val"]})
    return out / "data.yaml"


def mix(model: nn.Module, tuned: nn.Module, share: float) -> None:
    """Move the weights of a model by ``share`` of the way to those that were tuned from it."""
    theirs = tuned.float().state_dict()
    with torch.no_grad():
        for name, value in model.float().state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name], share)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of an ER-Pose model")
    parser.add_argument("--data", required=True, help="data YAML; its training photos are seen")
    parser.add_argument("--held", type=int, default=300, help="training photos that calibrate takes, and this does not")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--imgsz", type=int, default=512)
    parser.add_argument("--mosaic", type=float, default=1.0, help="share of mosaics among the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--share", type=float, default=0.25, help="of the tuned weights in the mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(words)
    folder = args.out.parent / args.out.stem
    folder.mkdir(parents=True, exist_ok=True)
    data = hold_out(args.data, args.held, folder)
    trained = ERPose(args.weights)
    trained.add_callback("on_pretrain_routine_end", lambda trainer: trainer.model.to(memory_format=torch.channels_last))
    trained.add_callback("on_train_start", end_schedules)
    trained.add_callback("on_train_batch_start", hold_norms)
    trained.train(
        data=str(data), imgsz=args.imgsz, batch=args.batch, nbs=args.batch, epochs=args.epochs, optimizer="AdamW", lr0=args.lr,
        lrf=0.05, cos_lr=True, warmup_epochs=0.3, warmup_bias_lr=0.0, freeze=BACKBONE, workers=0, amp=False, val=False, plots=False,
        mosaic=args.mosaic, close_mosaic=0, scale=0.5, seed=args.seed, project=str(args.out.parent.absolute()), name=args.out.stem,
        exist_ok=True,
    )  # fmt: skip
    out = ERPose(args.weights)
    mix(out.model, ERPose(folder / "weights" / "last.pt").model, args.share)
    out.ckpt = {}
    out.save(args.out)


if __name__ == "__main__":
    main()
