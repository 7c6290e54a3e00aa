"""Side by side: erpose-n and its peers trained on the same data with the same budget, and evaluated in the same way.

    python -m benchmarks.accuracy.compare --track synth --device 0 --gpu-cache --no-amp
    python -m benchmarks.accuracy.compare --track synth --epochs 4 --batch 16 --name compare-synth-cpu
    python -m benchmarks.accuracy.compare --track crowd --data crowds/data.yaml --device 0 --gpu-cache --no-amp
    python -m benchmarks.accuracy.compare --track pretrained --data coco-mini/data.yaml --start compare-crowd
    python -m benchmarks.accuracy.compare --track coco --device 0

Each model is trained by Ultralytics' own trainer from random weights (with --start from its weights of that table), with the
same images, order, augmentation, optimiser and schedule. ``erpose eval`` evaluates what is deployed: one-to-one scores where
a model has them, box NMS where not; YOLO26 in both modes. A finished run stands in results/compare-TRACK.json and is not
repeated; its weights are in --out. A run that was interrupted continues from its last epoch when the same command is given
again; its stages are in stages.json beside its weights. Calls with other --models or --seeds may run beside each other, one
core each (OMP_NUM_THREADS=1).
With --gpu-cache the images are kept on the device and augmented there (gpu_cache.py): a nano outruns the loader processes.
One such call leaves most of a large GPU idle; several share it under CUDA's multi-process service (nvidia-cuda-mps-control -d).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.utils.patches import torch_load

from benchmarks import common
from benchmarks.accuracy.gpu_cache import cache_images
from benchmarks.common import OURS, PEERS, modes
from erpose_yolo import ERPose
from erpose_yolo.metrics.evaluate import evaluate

STAGES = (0.1, 0.25, 0.5, 1.0)
NOTED = "stages.json"  # in the folder of a run: how far it is
# One optimiser for all: what Ultralytics' optimizer=auto takes for runs of this length and one class.
TRAIN = {"optimizer": "AdamW", "lr0": 2e-3, "momentum": 0.9, "warmup_epochs": 1.0, "warmup_bias_lr": 0.0}
# Small images and short runs bear little augmentation: no mosaic, which shows people at half their size.
SHORT = {"mosaic": 0.0, "scale": 0.3, "close_mosaic": 0}
TRACKS: dict[str, dict[str, Any]] = {
    "synth": {"data": str(Path(__file__).parent / "synth-few.yaml"), "imgsz": 128, "batch": 128, "epochs": 40, **SHORT},
    "crowd": {"imgsz": 192, "batch": 64, "epochs": 44, **SHORT},
    "pretrained": {"imgsz": 192, "batch": 8, "epochs": 30, **SHORT},
    "coco": {"data": "coco-people.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
    "crowdpose": {"data": "crowdpose.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
}


def folder_of(model: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run keeps its weights."""
    return Path(args.out) / args.name / f"{model}-{seed}"


def figures(weights: Path, args: argparse.Namespace, nms: bool | None) -> dict[str, float]:
    """Figures of weights on the validation split.

    Args:
        weights: checkpoint.
        args: of the command line.
        nms: as :func:`common.modes` has it.
    """
    options = {} if nms is None else {"nms": nms}
    report = evaluate(
        str(weights), args.data, imgsz=args.imgsz, batch=16, device=args.device, workers=0, plots=False, verbose=False,
        save_dir=weights.parents[1] / "eval", **options,
    )  # fmt: skip
    coco, crowd = report["coco"], report["crowding"]
    crowded = report.get("by_crowd_index") or report.get("crowdpose") or {}
    return {
        **{k: coco[k] for k in ("AP", "AP50", "AP75", "AR")},
        **{k: v for k, v in crowded.items() if isinstance(v, (int, float))},
        "duplicates": crowd["duplicate_rate"],
        "misses": crowd["miss_rate"],
    }


def start_of(model: str, seed: int, args: argparse.Namespace) -> Path:
    """Weights with which a model begins.

    Raises:
        FileNotFoundError: that run was not made, or was made with another ``--out``.
    """
    file = Path(args.out) / args.start / f"{model}-{seed}" / "weights" / "last.pt"
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such weights. Fix: train {model} with seed {seed} for the table {args.start!r} first.")
    return file


def interrupted(folder: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """What an interrupted training has noted, or None where there is nothing to continue.

    Returns:
        "curve", its stages by mode, "seconds" of training, and "epoch", how many are over.

    Raises:
        ValueError: it had another budget, so continuing would mix the two.
    """
    noted, last = folder / NOTED, folder / "weights" / "last.pt"
    epoch = int(torch_load(last, map_location="cpu")["epoch"]) + 1 if noted.exists() and last.exists() else 0
    if epoch == 0:  # also of one that came to its end
        return None
    state: dict[str, Any] = json.loads(noted.read_text())
    if state["budget"] != [args.epochs, args.imgsz, args.batch]:
        raise ValueError(
            f"{folder} holds an interrupted training of {state['budget']} epochs, px and images in a batch. "
            "Fix: delete it, or give --name or --out."
        )
    # what was noted after the checkpoint comes again
    curve = {mode: [s for s in stages if s["epoch"] <= epoch] for mode, stages in state["curve"].items()}
    return {**state, "curve": curve, "epoch": epoch}


def run(model: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a model and evaluate it at each stage of the budget, in each of its modes; continue where it was interrupted."""
    folder = folder_of(model, seed, args)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "weights" / "last.pt"
    marks = [max(1, round(share * args.epochs)) for share in STAGES]
    before = interrupted(folder, args)
    curve: dict[str, list[dict[str, Any]]] = before["curve"] if before else {mode: [] for mode in modes(model)}
    begin, spent = time.perf_counter(), before["seconds"] if before else 0.0  # of training alone

    def note(epoch: int, weights: Path) -> None:
        """Evaluate what an epoch left, if it is a stage, and write down how far the run is."""
        nonlocal begin, spent
        spent += time.perf_counter() - begin
        for mode, nms in modes(model).items():
            if epoch in marks and not any(stage["epoch"] == epoch for stage in curve[mode]):
                curve[mode] += [{"epoch": epoch, **figures(weights, args, nms)}] * marks.count(epoch)
        state = {"budget": [args.epochs, args.imgsz, args.batch], "seconds": spent, "curve": curve}
        (folder / f"{NOTED}.new").write_text(json.dumps(state))
        (folder / f"{NOTED}.new").replace(folder / NOTED)
        begin = time.perf_counter()

    def starts(trainer: Any) -> None:
        trainer.model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, for all

    if before:
        note(before["epoch"], last)  # interrupted between a checkpoint and its evaluation
    if not before or before["epoch"] < args.epochs:
        yolo = (ERPose if model.startswith("erpose") else YOLO)(str(last) if before else f"{model}.yaml")
        if args.gpu_cache:
            yolo.add_callback("on_pretrain_routine_end", cache_images)
        yolo.add_callback("on_train_start", starts)
        yolo.add_callback("on_model_save", lambda trainer: note(trainer.epoch + 1, trainer.last))
        yolo.train(
            data=args.data, epochs=args.epochs, imgsz=args.imgsz, batch=args.batch, nbs=args.batch, seed=seed,
            workers=args.workers, cache="ram", val=False, plots=False, verbose=False, amp=args.amp, device=args.device,
            deterministic=args.device == "cpu",  # on a GPU the deterministic kernels are the slow ones
            pretrained=str(start_of(model, seed, args)) if args.start else False,
            project=str((args.out / args.name).absolute()), name=folder.name, exist_ok=True, resume=bool(before), **TRAIN,
            **args.augment,
        )  # fmt: skip
    return [{"mode": mode, "seconds": round(spent), "curve": curve[mode]} for mode in curve]


def table(record: common.Record) -> str:
    """One row per model and mode; AP and rates in per cent."""
    rows = []
    for name, of in common.grouped(record["runs"]).items():
        last = [r["curve"][-1] for r in of]
        early = [f"{np.mean([r['curve'][i]['AP'] for r in of]) * 100:.1f}" for i in range(len(STAGES) - 1)]
        hard = [v["AP_hard"] for v in last]
        rows.append(
            [name, len(of), *early]
            + [common.mean_range([v["AP"] for v in last])]
            + [f"{np.mean([v[k] for v in last]) * 100:.1f}" for k in ("AP50", "AP75", "AR")]
            + ["-" if min(hard) < 0 else f"{np.mean(hard) * 100:.1f}"]  # no crowded image in the split
            + [common.mean_range([v[k] for v in last]) for k in ("duplicates", "misses")]
        )
    header = ["model", "seeds", *(f"AP at {s:.0%}" for s in STAGES[:-1]), "AP (range)", "AP50", "AP75", "AR"]
    return common.markdown([*header, "AP crowded", "duplicates / 100 persons", "misses / 100 persons"], rows)


def in_order(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours before the peers, seeds ascending."""
    known = {m: i for i, m in enumerate((*OURS, *PEERS))}
    return sorted(runs, key=lambda r: (known.get(r["model"], len(known)), r["seed"]))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--track", required=True, choices=TRACKS)
    parser.add_argument("--data", help="data YAML; tracks synth, coco and crowdpose have one of their own")
    parser.add_argument("--models", nargs="*", default=[OURS[0], *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--start", help="--name of another table, with whose weights a model begins")
    for name in ("epochs", "imgsz", "batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-cache", action="store_true", help="keep the training images on the device, augment them there")
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="float32 on a GPU, too")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for weights")
    parser.add_argument("--name", help="of the result file and of the folder of weights; compare-TRACK")
    args = parser.parse_args()
    preset = dict(TRACKS[args.track])
    for key in ("data", "epochs", "imgsz", "batch"):
        given, own = getattr(args, key), preset.pop(key, None)
        setattr(args, key, own if given is None else given)
    if not args.data:
        parser.error(f"--track {args.track} needs --data")
    args.augment, args.name = preset, args.name or f"compare-{args.track}"

    # folder and name alone: where the data lie on a machine is no part of the budget
    data = "/".join(Path(args.data).parts[-2:])
    setup = {"track": args.track, "data": data, **{k: getattr(args, k) for k in ("epochs", "imgsz", "batch", "start", "augment")}}
    setup |= {"train": TRAIN}
    if args.device != "cpu" or args.gpu_cache:  # cached images are augmented in another way
        setup |= {"gpu_cache": args.gpu_cache, "amp": args.amp}
    todo = [{"model": model, "seed": seed} for seed in args.seeds for model in args.models]
    try:
        for who in todo:  # what lacks is said now, and not after hours
            if not common.is_finished(args.name, setup, who):
                interrupted(folder_of(**who, args=args), args)
                if args.start:
                    start_of(**who, args=args)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    common.complete(args.name, setup, todo, lambda **who: run(**who, args=args), table, in_order)


if __name__ == "__main__":
    main()
