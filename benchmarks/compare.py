"""Side by side: erpose-n and its peers trained on the same data with the same budget, and judged by one ruler.

    python benchmarks/compare.py --track synth
    python benchmarks/compare.py --track synth --ablation
    python benchmarks/compare.py --track synth --data benchmarks/synth-plain.yaml --name compare-plain
    python benchmarks/compare.py --track mini --data path/to/coco-mini/data.yaml
    python benchmarks/compare.py --track crowd --data path/to/crowd/data.yaml
    python benchmarks/compare.py --track pretrained --data path/to/coco-mini/data.yaml --start crowd
    python benchmarks/compare.py --track synth --start compare-synth-12 --epochs 2 --models erpose-n --name compare-boxes
        --settings '{"boxes learned": {"boxes": "learned"}}'
    python benchmarks/compare.py --track coco --data coco-people.yaml --device 0
    python benchmarks/compare.py --track synth --epochs 40 --batch 128 --device 0 --resident --no-amp --name compare-synth-gpu

Every contestant is trained by Ultralytics' own trainer from random weights (with --start from its own weights of that table,
variants from those of the plain model), with the same pictures, order, augmentation, optimiser and schedule. ``erpose eval``
judges what is deployed: one-to-one scores where a model has them, box NMS where not; YOLO26 in both of its modes. A finished
run is not repeated: it stands in results/compare-TRACK.json, and its weights in --out. One that was cut off goes on from its
last epoch when the same command is given again; its stages stand in stages.json beside its weights. The table is written anew
after each run, so calls with other --models or --seeds may run beside each other, a core each (OMP_NUM_THREADS=1).
With --resident the pictures are kept on the GPU and augmented there (resident.py): a nano outruns the loader processes. One such
call leaves most of a large GPU idle; several share it under CUDA's multi-process service (nvidia-cuda-mps-control -d).
Each run keeps its machine, which stands below the table: one that a GPU did not finish may be made on a CPU (--device cpu).
Parameters, training step and latency do not depend on the data: cost.py, step.py and latency.py have them.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from resident import keep_pictures
from ultralytics import YOLO
from ultralytics.utils import TQDM, YAML
from ultralytics.utils.patches import torch_load

from erpose_yolo import ERPose, catalog
from erpose_yolo.metrics.evaluate import evaluate

STAGES = (0.1, 0.25, 0.5, 1.0)
NOTED = "stages.json"  # in the folder of a run: how far it is
PEERS = ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose")
OURS = ("erpose-n", "erpose11-n", "erpose8-n")
# One optimiser for all: what Ultralytics' optimizer=auto takes for runs of this length and one class.
TRAIN = {"optimizer": "AdamW", "lr0": 2e-3, "momentum": 0.9, "warmup_epochs": 1.0, "warmup_bias_lr": 0.0}
# Small pictures and short runs bear little augmentation: no mosaic, which shows people at half their size.
SHORT = {"mosaic": 0.0, "scale": 0.3, "close_mosaic": 0}
TRACKS: dict[str, dict[str, Any]] = {
    "synth": {"data": str(Path(__file__).parent / "synth-few.yaml"), "imgsz": 128, "batch": 16, "epochs": 4, **SHORT},
    "mini": {"imgsz": 192, "batch": 8, "epochs": 30, **SHORT},
    "crowd": {"imgsz": 192, "batch": 8, "epochs": 4, **SHORT},
    "pretrained": {"imgsz": 192, "batch": 8, "epochs": 10, **SHORT},
    "coco": {"data": "coco-people.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
    "crowdpose": {"data": "crowdpose.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
}
# The seven parts, each off or swapped, one at a time; then what is open in the design.
ABLATION: dict[str, dict[str, Any]] = {
    "box branch added": {"boxes": "learned"},
    "no heatmaps": {"heatmap_gain": 0},
    "heatmaps on all levels": {"heatmap_levels": "all"},
    "offsets from a person centre": {"offsets": "centre"},
    "offsets in a predicted size": {"offset_unit": "person"},
    "joints not refined": {"refine": "none"},
    "no dense look-ups": {"look_gain": 0},
    "trunk taught by the dense side alone": {"steer": 0},
    "assigned by box IoU": {"assigner": "iou"},
    "assigned by nearness": {"assigner": "centre"},
    "one-to-one alone": {"supervision": "one2one"},
    "one-to-many alone": {"supervision": "one2many"},
    "stock OKS loss": {"pose_loss": "oks", "pose_gain": 12},  # the gain of Ultralytics' own training
    "log OKS loss": {"pose_loss": "log_oks"},
    "Laplace loss": {"pose_loss": "laplace"},
    "hard score target": {"score_target": "hard"},
    "one pose branch for both assignments": {"pose_branch": "shared"},
    "depth-wise tower": {"tower": "depthwise"},
    "plain tower": {"tower": "plain"},
    "width 48": {"width": 48},
    "width 80": {"width": 80},
    "no level gate": {"gate": [0, 1e6]},
}


def name_of(model: str, label: str) -> str:
    return f"{model}: {label}" if label else model


def folder_of(model: str, label: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run keeps its weights."""
    return Path(args.out) / args.table / f"{name_of(model, label).replace(': ', '-').replace(' ', '-')}-{seed}"


def open_model(model: str, settings: dict[str, Any], folder: Path) -> YOLO:
    """A contestant with random weights."""
    if not model.startswith("erpose"):
        return YOLO(f"{model}.yaml")
    if not settings:
        return ERPose(f"{model}.yaml")
    yaml = YAML.load(catalog.find_model(f"{model}.yaml")[0])
    file = folder / f"{model}.yaml"
    YAML.save(file, {**yaml, "erpose": {**(yaml.get("erpose") or {}), **settings}})
    return ERPose(str(file))


def judge(weights: Path, args: argparse.Namespace, mode: bool | None) -> dict[str, float]:
    """Figures of weights on the validation split.

    Args:
        weights: checkpoint.
        args: of the command line.
        mode: Ultralytics' ``nms`` argument: False for one-to-one scores, True for box NMS, None where there is no choice.
    """
    options = {} if mode is None else {"nms": mode}
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


def modes(model: str) -> dict[str, bool | None]:
    """How a contestant is deployed: label -> Ultralytics' ``nms`` argument."""
    if model.startswith("erpose"):
        return {"": None}
    return {" one-to-one": False, " NMS": True} if "26" in model else {" NMS": True}


def start_of(model: str, seed: int, args: argparse.Namespace) -> Path:
    """Weights that a contestant begins with.

    Raises:
        FileNotFoundError: that run was not made, or was made with another ``--out``.
    """
    file = Path(args.out) / args.start / f"{model}-{seed}" / "weights" / "last.pt"
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such weights. Train {model} with seed {seed} for the table {args.start!r} first.")
    return file


def interrupted(folder: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """What a training that was cut off has noted, or None where there is nothing to go on with.

    Returns:
        "curve", its stages by mode, "seconds" of training, and "epoch", how many are over.

    Raises:
        ValueError: it had another budget, so going on would mix the two.
    """
    noted, last = folder / NOTED, folder / "weights" / "last.pt"
    epoch = int(torch_load(last, map_location="cpu")["epoch"]) + 1 if noted.exists() and last.exists() else 0
    if epoch == 0:  # also of one that came to its end
        return None
    state: dict[str, Any] = json.loads(noted.read_text())
    if state["budget"] != [args.epochs, args.imgsz, args.batch]:
        raise ValueError(
            f"{folder} holds a training that was cut off, of {state['budget']} epochs, px and pictures in a batch. "
            "Delete it, or give --name or --out."
        )
    # what was noted after the checkpoint comes again
    curve = {mode: [s for s in stages if s["epoch"] <= epoch] for mode, stages in state["curve"].items()}
    return {**state, "curve": curve, "epoch": epoch}


def run(model: str, label: str, settings: dict[str, Any], seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a contestant and judge it at each stage of the budget, in each of its modes; go on where one was cut off."""
    folder = folder_of(model, label, seed, args)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "weights" / "last.pt"
    marks = [max(1, round(share * args.epochs)) for share in STAGES]
    before = interrupted(folder, args)
    curve: dict[str, list[dict[str, Any]]] = before["curve"] if before else {mode: [] for mode in modes(model)}
    begin, spent = time.perf_counter(), before["seconds"] if before else 0.0  # of training alone

    def note(epoch: int, weights: Path) -> None:
        """Judge what an epoch left, if it is a stage, and write down how far the run is."""
        nonlocal begin, spent
        spent += time.perf_counter() - begin
        for mode, nms in modes(model).items():
            if epoch in marks and not any(stage["epoch"] == epoch for stage in curve[mode]):
                curve[mode] += [{"epoch": epoch, **judge(weights, args, nms)}] * marks.count(epoch)
        state = {"budget": [args.epochs, args.imgsz, args.batch], "seconds": spent, "curve": curve}
        (folder / f"{NOTED}.new").write_text(json.dumps(state))
        (folder / f"{NOTED}.new").replace(folder / NOTED)
        begin = time.perf_counter()

    def starts(trainer: Any) -> None:
        trainer.model.to(memory_format=torch.channels_last)  # a fifth faster on this CPU, for all

    if before:
        note(before["epoch"], last)  # cut off between a checkpoint and its judgement
    if not before or before["epoch"] < args.epochs:
        yolo = (ERPose if model.startswith("erpose") else YOLO)(str(last)) if before else open_model(model, settings, folder)
        if args.resident:
            yolo.add_callback("on_pretrain_routine_end", keep_pictures)
        yolo.add_callback("on_train_start", starts)
        yolo.add_callback("on_model_save", lambda trainer: note(trainer.epoch + 1, trainer.last))
        yolo.train(
            data=args.data, epochs=args.epochs, imgsz=args.imgsz, batch=args.batch, nbs=args.batch, seed=seed,
            workers=args.workers, cache="ram", val=False, plots=False, verbose=False, amp=args.amp, device=args.device,
            deterministic=args.device == "cpu",  # on a GPU the deterministic kernels are the slow ones
            pretrained=str(start_of(model, seed, args)) if args.start else False,  # what fits: settings may add a branch
            project=str((args.out / args.table).absolute()), name=folder.name, exist_ok=True, resume=bool(before), **TRAIN,
            **args.augment,
        )  # fmt: skip
    record = {"model": model, "label": label, "settings": settings, "seed": seed}
    record |= {"seconds": round(spent), "machine": common.machine()}
    return [{**record, "mode": mode, "curve": curve[mode]} for mode in curve]


def contestants(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(model, label, settings) in the order of the table."""
    for model in args.models:
        yield model, "", {}
    for label, settings in ABLATION.items() if args.ablation else ():
        if not args.only or label in args.only:
            yield OURS[0], label, settings
    for label, settings in args.settings.items():
        yield OURS[0], label, settings


def cell(values: list[float], digits: int = 1, scale: float = 100) -> str:
    """Mean and range over seeds."""
    mean = f"{statistics.mean(values) * scale:.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values) * scale:.{digits}f} to {max(values) * scale:.{digits}f})"


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown, one row per contestant and mode; AP and rates in per cent."""
    rows, groups = [], {}
    for r in runs:
        groups.setdefault(name_of(r["model"], r["label"]) + r["mode"], []).append(r)
    for name, of in groups.items():
        last = [r["curve"][-1] for r in of]
        early = [f"{np.mean([r['curve'][i]['AP'] for r in of]) * 100:.1f}" for i in range(len(STAGES) - 1)]
        hard = [v["AP_hard"] for v in last]
        rows.append(
            [name, len(of), *early]
            + [cell([v["AP"] for v in last])]
            + [f"{np.mean([v[k] for v in last]) * 100:.1f}" for k in ("AP50", "AP75", "AR")]
            + ["-" if min(hard) < 0 else f"{np.mean(hard) * 100:.1f}"]  # no crowded picture in the split
            + [cell([v[k] for v in last]) for k in ("duplicates", "misses")]
        )
    header = ["model", "seeds", *(f"AP at {s:.0%}" for s in STAGES[:-1]), "AP (range)", "AP50", "AP75", "AR"]
    return common.markdown([*header, "AP crowded", "duplicates / 100 persons", "misses / 100 persons"], rows)


def finished(file: Path, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs in a result file; read anew each time, as another process may have added some.

    Raises:
        ValueError: they had another budget.
    """
    if not file.exists():
        return []
    old = json.loads(file.read_text())
    if old["budget"] != budget:
        raise ValueError(f"{file} holds runs of another budget, {old['budget']}. Give --name for a second table.")
    return list(old["runs"])


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else adds to a result file meanwhile."""
    file.parent.mkdir(exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # which unlocks


def in_order(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contestants first, ours before the peers, then variants in the order in which they came; seeds ascending."""
    known = {m: i for i, m in enumerate((*OURS, *PEERS))}
    labels = list(dict.fromkeys(r["label"] for r in runs))
    return sorted(runs, key=lambda r: (r["label"] != "", known.get(r["model"], len(known)), labels.index(r["label"]), r["seed"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", required=True, choices=TRACKS)
    parser.add_argument("--data", help="data YAML; tracks synth, coco and crowdpose have one of their own")
    parser.add_argument("--models", nargs="*", default=[*PEERS, *OURS])
    parser.add_argument("--ablation", action="store_true", help="also erpose-n with each part off or swapped")
    parser.add_argument("--only", nargs="+", help="some rows of the ablation")
    parser.add_argument("--settings", type=json.loads, default={}, help='more rows, JSON: {"label": {"key": value}}')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--start", help="track, or --name of another table, whose weights a contestant begins with")
    for name in ("epochs", "imgsz", "batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resident", action="store_true", help="keep the training pictures on the device, augment them there")
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="float32 on a GPU, too")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for weights")
    parser.add_argument("--name", help="of the result files and the folder of weights; compare-TRACK and TRACK")
    args = parser.parse_args()
    preset = dict(TRACKS[args.track])
    for key in ("data", "epochs", "imgsz", "batch"):
        given, own = getattr(args, key), preset.pop(key, None)
        setattr(args, key, own if given is None else given)
    if not args.data:
        parser.error(f"--track {args.track} needs --data")
    args.augment = preset
    name = args.name or f"compare-{args.track}"
    args.table = args.name or args.track

    # folder and name alone: where the data lie on a machine is no part of the budget
    pictures = "/".join(Path(args.data).parts[-2:])
    same = ("epochs", "imgsz", "batch", "start", "augment")
    budget = {"track": args.track, "data": pictures, **{k: getattr(args, k) for k in same}, "train": TRAIN}
    if args.device != "cpu" or args.resident:
        budget |= {"resident": args.resident, "amp": args.amp}
    file = common.RESULTS / f"{name}.json"
    todo = [
        {"model": model, "label": label, "settings": settings, "seed": seed}
        for seed in args.seeds
        for model, label, settings in contestants(args)
    ]

    def done(who: dict[str, Any]) -> bool:
        return any(who.items() <= r.items() for r in finished(file, budget))

    try:
        for who in todo:  # what lacks is said now, and not after hours
            if not done(who):
                interrupted(folder_of(who["model"], who["label"], who["seed"], args), args)
                if args.start:
                    start_of(who["model"], who["seed"], args)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    for who in TQDM(todo, desc=name, disable=False):
        if done(who):
            continue
        new = run(**who, args=args)
        what = f"{args.track}: {args.epochs} epochs, {args.imgsz} px, batch {args.batch}"
        with locked(file):
            runs = in_order(finished(file, budget) + new)
            common.write(name, {"budget": budget, "runs": runs}, f"{what}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
