"""Side by side: erpose-n and its peers trained on the same data with the same budget, and evaluated in the same way.

    python -m benchmarks.accuracy.compare --track synth --device 0 --gpu-cache --no-amp

With pre-training on real photos, the paper's stronger claim: everybody starts from the COCO detector of its own backbone.

    python -m benchmarks.accuracy.compare --track coco-people --data coco-people/data.yaml --start-weights weights \\
        --cutouts coco-mini --models erpose8-n yolov8n-pose --seeds 0

--start-weights is a folder with yolo26n.pt, yolo11n.pt and yolov8n.pt (or -dq.pt, recovered from exports). Each model takes the
learning rate of --rates that does better on a tenth of the training photos, after a tenth of the budget on the others. With
--cutouts (a folder for copy_paste.py) the trained weights are fine-tuned on copy-paste crowds and judged on other crowds; photos
whose persons are in the latter are not trained on. What is kept of each photo stands in results/NAME/, for paired intervals.
``--models MODEL+`` is a peer that starts with the detector's box and class towers, too, as Ultralytics' own ``load`` has it.
The whole table and the ablation, in order of importance; what is finished is left out, so the same line continues. Some processors
are faster with --no-amp than in bfloat16; rows of either stand in one table, which says so.

    python -m benchmarks.accuracy.compare --track coco-people --data ... --start-weights ... --cutouts ... --all

Full COCO and CrowdPose. ``--estimate`` says how long a call takes, from a few measured steps, and trains nothing; with a number,
of so many images (train2017 has 118,287, CrowdPose's trainval 12,000).

    python -m benchmarks.accuracy.compare --track coco --start-weights weights --device 0,1,2,3 --workers 8 --sizes 640
    python -m benchmarks.accuracy.compare --track crowdpose --start-weights weights --device 0,1,2,3 --workers 8 --sizes 640
    python -m benchmarks.accuracy.compare --track coco --device 0,1,2,3 --estimate 118287

Each model is trained by Ultralytics' own trainer, from random weights without --start-weights, with the same images, order,
augmentation, optimiser and schedule (budget.py). ``erpose eval`` evaluates what is deployed: one-to-one scores where a model has
them, box NMS where not; YOLO26 in both modes. A finished run stands in results/compare-TRACK.json and is not repeated; its
weights are in --out. A run that was interrupted continues from its last epoch when the same command is given again. Calls may run
beside each other, one core each (OMP_NUM_THREADS=1), also of the same line: each run is made by one of them.
With --gpu-cache the images are kept on the device and augmented there (gpu_cache.py): a nano outruns the loader processes.
One such call leaves most of a large GPU idle; several share it under CUDA's multi-process service (nvidia-cuda-mps-control -d).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from benchmarks import common
from benchmarks.accuracy import paired
from benchmarks.accuracy.budget import STAGES, STOCK_LOAD, epochs_over, marks, seconds_of, stage_file, trainer_of, without_spreads
from benchmarks.accuracy.gpu_cache import cache_images
from benchmarks.accuracy.photos import CROWDS, SHARE, count, lay_out
from benchmarks.common import OURS, PEERS, modes
from erpose_yolo import ERPose, catalog
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.evaluate import evaluate, read_truth
from erpose_yolo.metrics.predictions import read_predictions

# One optimiser for all: what Ultralytics' optimizer=auto takes for runs of this length and one class.
TRAIN = {"optimizer": "AdamW", "lr0": 2e-3, "momentum": 0.9, "warmup_epochs": 1.0, "warmup_bias_lr": 0.0}
PHOTOS = "coco-people"
SYNTH = str(Path(__file__).parent / "synth-few.yaml")
TRACKS: dict[str, dict[str, Any]] = {  # small images and short runs bear no mosaic, which shows people at half their size
    "synth": {"data": SYNTH, "imgsz": 128, "batch": 128, "epochs": 40, "mosaic": 0.0, "scale": 0.3, "close_mosaic": 0},
    PHOTOS: {"imgsz": 320, "batch": 16, "epochs": 17, "mosaic": 0.0, "scale": 0.5, "close_mosaic": 0},
    "coco": {"data": "coco-people.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
    "crowdpose": {"data": "crowdpose.yaml", "imgsz": 640, "batch": 128, "epochs": 300},
}
SIZES = (416, 320, 640)  # px; the first is that of all columns but AP
RATES = (2e-3, 7e-4)
FAMILIES = {"erpose-n": "yolo26n", "erpose8-n": "yolov8n", "erpose11-n": "yolo11n"}  # the backbone and neck of ours
ALL = (("erpose8-n yolov8n-pose", 0), ("erpose-n yolo26n-pose", 0), ("erpose8-n yolov8n-pose", 1), ("erpose-n yolo26n-pose", 1))
ALL += (("erpose11-n yolo11n-pose", 0), ("yolov8n-pose+ yolo26n-pose+", 0), ("ablation", 0))


def folder_of(model: str, seed: int, args: argparse.Namespace, label: str = "") -> Path:
    """Where a run keeps its weights."""
    row = "-".join(filter(None, (model, label.replace(",", "").replace(" ", "-"), str(seed))))
    return Path(args.out) / args.name / row


def start_of(model: str, args: argparse.Namespace) -> Path | None:
    """The detector with which a model begins, None where it begins with random weights.

    Raises:
        FileNotFoundError: it is not in the folder.
    """
    if not args.start_weights:
        return None
    family = FAMILIES.get(model, model.removesuffix("-pose"))
    for name in (f"{family}.pt", f"{family}-dq.pt"):
        if (args.start_weights / name).exists():
            return Path(args.start_weights / name)
    raise FileNotFoundError(f"{args.start_weights} has neither {family}.pt nor {family}-dq.pt. Fix: --start-weights.")


def judge(weights: Path, data: str, size: int, nms: bool | None, args: argparse.Namespace) -> tuple[dict[str, float], paired.Kept]:
    """Figures of weights on the validation split, and what is kept of it per photo.

    Args:
        weights: checkpoint.
        data: data YAML.
        size: px.
        nms: as :func:`common.modes` has it.
        args: of the command line.
    """
    folder = weights.parents[1] / "eval"
    options: dict[str, Any] = {} if nms is None else {"nms": nms}
    device = str(args.device).split(",", maxsplit=1)[0]
    options |= {"imgsz": size, "batch": 16, "device": device, "workers": 0, "plots": False, "verbose": False, "save_dir": folder}
    with contextlib.redirect_stdout(io.StringIO()):
        report = evaluate(str(weights), data, **options)
    truth, info = read_truth(str(catalog.resolve_data(data)), "val", folder, {})
    sigmas = exact_sigmas(truth.keypoints.shape[1], info.get("kpt_oks_sigmas"))
    kept = paired.keep(truth, read_predictions(folder / "predictions.json", truth), sigmas)
    coco, crowd = report["coco"], report["crowding"]
    by_index = report.get("by_crowd_index") or report.get("crowdpose") or {}
    equal = {name: float(value[0]) for name, value in paired.figures(kept).items() if name != "AP"}
    return {
        **{k: coco[k] for k in ("AP", "AP50", "AP75", "AR")},
        **{k: v for k, v in by_index.items() if isinstance(v, (int, float))},
        "duplicates": crowd["duplicate_rate"],
        "misses": crowd["miss_rate"],
        "equal": equal,
    }, kept


def train(folder: Path, model: str, data: str, epochs: int, start: Path | None, args: argparse.Namespace, **options: Any) -> Path:
    """Train a model, or continue where it was interrupted; returns its last weights.

    Args:
        folder: of the run.
        model: erpose-n ..., with "label" and "seed" in ``options``.
        data: data YAML.
        epochs: of the whole training.
        start: weights to begin with.
        args: of the command line.
        **options: "label", "seed" and "rate".
    """
    label, seed, rate = (options.get(name, other) for name, other in (("label", ""), ("seed", 0), ("rate", TRAIN["lr0"])))
    last = folder / "weights" / "last.pt"
    over = epochs_over(folder, {"epochs": epochs, "imgsz": args.imgsz, "batch": args.batch})
    if over >= epochs:
        return last
    folder.mkdir(parents=True, exist_ok=True)
    yolo = (ERPose if model.startswith("erpose") else YOLO)(str(last) if over else f"{model}.yaml")
    if args.gpu_cache:
        yolo.add_callback("on_pretrain_routine_end", cache_images)
    yolo.train(
        trainer=trainer_of(model, label), data=data, epochs=epochs, imgsz=args.imgsz, batch=args.batch, nbs=args.batch, seed=seed,
        workers=args.workers, cache="ram", val=False, plots=False, verbose=False, amp=args.amp, device=args.device,
        deterministic=args.device == "cpu",  # on a GPU the deterministic kernels are the slow ones
        pretrained=str(start) if start else False, project=str(folder.parent.absolute()), name=folder.name, exist_ok=True,
        resume=bool(over), **{**TRAIN, "lr0": rate}, **args.augment,
    )  # fmt: skip
    return last


def chosen_rate(model: str, args: argparse.Namespace) -> float:
    """The better learning rate of a model; both are tried unless the result file knows them."""
    with common.locked(args.out / args.name / "rates" / model):
        known = common.read(args.name).get("rates", {})
        if model not in known:
            known[model] = {f"{rate:g}": tried_rate(model, rate, args) for rate in args.rates}
            common.put(args.name, args.setup, lambda record: {"rates": {**record.get("rates", {}), model: known[model]}})
    return float(max(known[model], key=lambda rate: known[model][rate]))


def tried_rate(model: str, rate: float, args: argparse.Namespace) -> float:
    """AP on the photos held back after a short run on the others, of the better mode."""
    data, epochs = str(args.photos / "choose.yaml"), max(2, round(SHARE * args.epochs))
    last = train(args.out / args.name / "rates" / f"{model}-{rate:g}", model, data, epochs, start_of(model, args), args, rate=rate)
    return max(judge(last, data, args.imgsz, nms, args)[0]["AP"] for nms in modes(model).values())


def run_alone(args: argparse.Namespace, **who: Any) -> list[dict[str, Any]]:
    """:func:`run`, unless another process makes that run or has just made it."""
    with common.locked(folder_of(**who, args=args), wait=False) as mine:
        return run(**who, args=args) if mine and not common.is_finished(args.name, args.setup, who) else []


def run(model: str, seed: int, args: argparse.Namespace, label: str = "") -> list[dict[str, Any]]:
    """Train a model and evaluate it at each stage of the budget, in each of its modes; continue where it was interrupted."""
    folder = folder_of(model, seed, args, label)
    rate = chosen_rate(model, args) if args.rates else TRAIN["lr0"]
    base = folder_of(model, seed, args)
    if label == "confidence is the score" and stage_file(base, args.epochs).exists():  # the weights are those of the base
        stages = [without_spreads(stage_file(base, epoch), stage_file(folder, epoch)) for epoch in marks(args.epochs)]
        spent = seconds_of(base)
    else:
        last = train(folder, model, args.data, args.epochs, start_of(model, args), args, label=label, seed=seed, rate=rate)
        stages = [stage_file(folder, epoch) for epoch in marks(args.epochs)[:-1]] + [last]
        spent = seconds_of(folder)
    more = crowds(folder, model, seed, rate, args) if args.crowds else None
    records = []
    for mode, nms in modes(model).items():
        record: dict[str, Any] = {"mode": mode, "seconds": round(spent[0])}
        if args.sizes and not args.amp:
            record["machine"] = f"{common.machine()}, float32"
        first = (args.sizes or [args.imgsz])[0]
        judged = [judge(stage, args.data, first, nms, args) for stage in stages]
        record["curve"] = [{"epoch": epoch, **found} for epoch, (found, _) in zip(marks(args.epochs), judged)]
        if args.sizes:
            of = {str(first): judged[-1]} | {str(size): judge(stages[-1], args.data, size, nms, args) for size in args.sizes[1:]}
            if more:
                of["crowds"] = judge(more, str(args.crowds), args.imgsz, nms, args)
            record |= {"lr": rate, "seconds per 1,000": round(spent[1] * 1000 / (args.images or count(args.data)), 1)}
            record["judged"] = {key: found for key, (found, _) in of.items()}
            record["kept"] = f"{args.name}/{folder.name}{mode.replace(' ', '-')}.npz"
            paired.write(common.RESULTS / record["kept"], {key: kept for key, (_, kept) in of.items()})
        records.append(record)
    return records


def crowds(folder: Path, model: str, seed: int, rate: float, args: argparse.Namespace) -> Path:
    """The weights of a run, fine-tuned on copy-paste crowds."""
    start = folder / "weights" / "last.pt"
    return train(folder / "crowds", model, str(args.crowds), CROWDS["epochs"], start, args, seed=seed, rate=rate)


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
    return sorted(runs, key=lambda r: (known.get(r["model"], len(known)), r.get("label", ""), r["seed"]))


def estimate(args: argparse.Namespace, models: list[str]) -> str:
    """How long trainings take on this machine, from a few steps of each model on made-up images."""
    images, rows = args.estimate or args.images or count(args.data), []
    devices = str(args.device).split(",")
    device = devices[0] if devices[0] == "cpu" else f"cuda:{devices[0]}"
    batch = common.random_batch(args.imgsz, max(1, args.batch // len(devices)), 3)
    for model in models:
        speed = images_per_second(model.rstrip("+"), batch, device, args.amp) * len(devices)
        hours = images * args.epochs / speed / 3600
        rows.append([model, f"{speed:.1f}", f"{hours * 60:.0f}", f"{hours:.1f}", f"{hours * len(devices):.1f}"])
    text = common.markdown(["model", "images/s", "minutes of training", "hours", "hours times devices"], rows)
    return f"{text}\n\n{images:,} images x {args.epochs} epochs of {args.imgsz} px, each seed; {common.machine()}"


def images_per_second(model: str, batch: dict[str, torch.Tensor], device: str, amp: bool, steps: int = 6) -> float:
    """Training steps of a model, the fastest of a few: loading, augmentation and evaluation come on top."""
    network = common.build(model).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch, times = {key: value.to(device) for key, value in batch.items()}, []
    for _ in range(steps):
        begin = time.perf_counter()
        with torch.autocast(torch.device(device).type, enabled=amp):
            loss = network(dict(batch))[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - begin)
    return len(batch["img"]) / min(times[1:])


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this command and the ablation take."""
    parser.add_argument("--data", help="data YAML; tracks synth, coco and crowdpose have one of their own")
    parser.add_argument("--start-weights", type=Path, help="folder of the detectors with which the models begin")
    parser.add_argument("--cutouts", type=Path, help="folder for copy_paste.py: a fine-tuning on crowds follows each run")
    for name in ("epochs", "imgsz", "batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--sizes", nargs="*", type=int, help="sides in px at which the weights are judged, the main one first")
    parser.add_argument("--rates", nargs="*", type=float, help="learning rates of which each model takes the better")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-cache", action="store_true", help="keep the training images on the device, augment them there")
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="float32 throughout")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for weights")
    parser.add_argument("--name", help="of the result file and of the folder of weights")


def prepare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in what the track says, and lay the photos out."""
    preset, photos = dict(TRACKS[args.track]), args.track == PHOTOS
    for key in ("data", "epochs", "imgsz", "batch"):
        given, own = getattr(args, key), preset.pop(key, None)
        setattr(args, key, own if given is None else given)
    if not args.data:
        parser.error(f"--track {args.track} needs --data")
    if photos and not args.start_weights:
        parser.error(f"--track {PHOTOS} needs --start-weights")
    args.augment = preset
    args.sizes = list(SIZES if photos else ()) if args.sizes is None else args.sizes
    args.rates = list(RATES if photos else ()) if args.rates is None else args.rates
    args.amp = args.amp and (photos or args.device != "cpu")
    args.images, args.crowds, args.photos = 0, None, None
    # folder and name alone: where the data lie on a machine is no part of the budget
    data = "/".join(Path(args.data).parts[-2:])
    start = "detection" if args.start_weights else None
    args.setup = {"track": args.track, "data": data, **{k: getattr(args, k) for k in ("epochs", "imgsz", "batch")}}
    args.setup |= {"start": start, "augment": args.augment, "train": TRAIN}
    on_gpu = args.device != "cpu" or args.gpu_cache
    if on_gpu or photos:  # cached images are augmented in another way
        args.setup |= {"gpu_cache": args.gpu_cache}
    if on_gpu:  # each run on a CPU says its own
        args.setup |= {"amp": args.amp}
    if args.sizes:
        args.setup |= {"sizes": args.sizes, "rates": args.rates}
    if photos:
        with common.locked(args.out / args.name):
            lay_out(args)
        args.setup |= {"images": args.images, "crowds": bool(args.crowds) and CROWDS}


def complete(args: argparse.Namespace, todo: list[dict[str, Any]], parser: argparse.ArgumentParser) -> None:
    """Make the runs that the result file lacks."""
    try:
        for who in todo:  # what lacks is said now, and not after hours
            if not common.is_finished(args.name, args.setup, who):
                start_of(who["model"], args)
                epochs_over(folder_of(**who, args=args), {"epochs": args.epochs, "imgsz": args.imgsz, "batch": args.batch})
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    made: dict[str, Any] = {"table": table}
    if args.sizes:
        made = {"table": paired.table, "extra": lambda runs: {"differences": paired.differences(runs)}}
    common.complete(args.name, args.setup, todo, partial(run_alone, args), order=in_order, **made)


def main(words: list[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--track", required=True, choices=TRACKS)
    parser.add_argument("--models", nargs="*", default=[OURS[0], *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--all", action="store_true", help="the table of --track coco-people and its ablation, one after the other")
    more = "measure a few steps, say how long it takes, and train nothing; for so many images where the data are not here"
    parser.add_argument("--estimate", nargs="?", type=int, const=0, metavar="IMAGES", help=more)
    arguments(parser)
    args = parser.parse_args(words)
    args.name, given = args.name or f"compare-{args.track}", argparse.Namespace(**vars(args))
    args.cutouts = args.cutouts if args.estimate is None else None
    prepare(args, parser)
    if args.estimate is not None:
        print(estimate(args, args.models))
        return

    def rows(models: list[str], seed: int) -> list[dict[str, Any]]:
        """What identifies runs; in a table with labels, a plus is one."""
        label = {"label": ""} if args.sizes else {}
        return [{"model": m.rstrip("+"), "seed": seed, **label, **({"label": STOCK_LOAD} if "+" in m else {})} for m in models]

    if not args.all:
        complete(args, [who for seed in args.seeds for who in rows(args.models, seed)], parser)
    for models, seed in ALL * args.all:
        if models == "ablation":
            from benchmarks.accuracy import ablation

            ablation.photos(given, parser)
        else:
            complete(args, rows(models.split(), seed), parser)


if __name__ == "__main__":
    main()
