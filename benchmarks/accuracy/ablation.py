"""Ablation: erpose-n with one part switched off or replaced at a time, on people who stand or walk, or on photos.

    python -m benchmarks.accuracy.ablation
    python -m benchmarks.accuracy.ablation --models --only "refine off" "IoU assignment" --seeds 0
    python -m benchmarks.accuracy.ablation --track coco-people --data coco-people/data.yaml --start-weights weights --seeds 0

On photos each row has half the budget of compare.py's table of that track, its trainer, its evaluation at several sizes and its
intervals, the backbone and neck of yolo26n.pt to start from, and its learning rate for erpose-n. On synthetic people it is a
short training without Ultralytics' trainer, the same for every model: random weights, AdamW, all training images, half of them
flipped. The validation split is evaluated with what is deployed: one-to-one scores where a model has them, box NMS elsewhere,
YOLO26 in both modes. Baselines that are no settings of the package come from variants.py. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.utils import TQDM
from ultralytics.utils.nms import non_max_suppression

from benchmarks import common
from benchmarks.accuracy.budget import SETTINGS
from benchmarks.accuracy.compare import PHOTOS, TRACKS, arguments, complete, prepare
from benchmarks.variants import VARIANTS
from erpose_yolo.data.skeletons import COCO_17, flip_from_names
from erpose_yolo.method.oks import sigmas_for
from erpose_yolo.metrics.coco import from_arrays, keypoint_ap
from erpose_yolo.metrics.crowding import measure_crowding
from erpose_yolo.nn.network import ERPoseModel

DATA = Path(__file__).parent / "synth-walk.yaml"
ROWS = ("heatmaps off", "refine off", "boxes on", "no size range", "plain OKS loss", "IoU assignment", "shared pose branch")
# On photos, by what they may change.
PARTS = ("refine off", "plain OKS loss", "heatmaps off", "IoU assignment", "one-to-one only", "RLE", "confidence is the score")
QUARTERS = 4
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # of common.load_split


@torch.no_grad()
def figures(model: Any, samples: list[Sample], nms: bool | None, device: str) -> dict[str, float]:
    """Figures of a model in training, deployed as ``nms`` says (:func:`common.modes`)."""
    model.eval()
    if nms is not None:
        model.end2end = not nms
    found = []
    for sample in samples:
        rows = model(common.collate([sample], device)["img"])
        rows = rows[0] if isinstance(rows, tuple) else rows
        rows = (non_max_suppression(rows, 0.001, 0.7, nc=1) if nms else rows)[0].cpu().numpy()  # val's defaults
        found.append((rows[:, 6:].reshape(-1, 17, 3), rows[:, 4]))
    if hasattr(model.model[-1], "one2one_cv2"):
        model.end2end = True  # training continues with both assignments
    model.train()
    truth, sigmas = [(keypoints, common.areas(boxes)) for _, boxes, keypoints in samples], sigmas_for(17).numpy()
    crowd = measure_crowding(*from_arrays(truth, found, 17), sigmas)
    return {**keypoint_ap(truth, found, sigmas), "duplicates": crowd.duplicate_rate, "misses": crowd.miss_rate}


def flipped(sample: Sample) -> Sample:
    """A sample with left and right swapped."""
    image, boxes, keypoints = sample
    width = image.shape[2]
    boxes, keypoints = boxes.copy(), keypoints[:, flip_from_names(COCO_17.names)[0]]
    boxes[:, 0] = width - boxes[:, 0]
    keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    return image[:, :, ::-1].copy(), boxes, keypoints


def build(model: str, label: str, seed: int, epochs: int) -> Any:
    """A model of random weights, changed as the label of its row says; unchanged where it is empty."""
    return common.build(model, seed, epochs, SETTINGS.get(label), VARIANTS.get(label, ERPoseModel))


def run(
    model: str, label: str, seed: int, args: argparse.Namespace, samples: list[Sample], unseen: list[Sample]
) -> list[common.Record]:
    """Train a model; figures on unseen images at each quarter of the budget.

    Args:
        model: erpose-n or a peer.
        label: of the row, which says what is changed; empty for nothing.
        seed: of weights and order.
        args: of the command line.
        samples: to train on.
        unseen: to evaluate.

    Returns:
        One record per mode.
    """
    steps = args.images_seen // args.batch
    per_epoch = max(1, min(len(samples) // args.batch, steps // 20))  # loss schedules advance by epochs: twenty at least
    network = build(model, label, seed, steps // per_epoch)
    flips = np.random.default_rng(seed)
    network.to(args.device, memory_format=torch.channels_last).train()  # a fifth faster on a CPU, for all
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    order = torch.Generator().manual_seed(seed)
    curve: dict[str, list] = {mode: [] for mode in common.modes(model)}
    start = time.perf_counter()
    bar = TQDM(range(steps), desc=f"{model} {label} seed {seed}", disable=False)
    for step in bar:
        if step % per_epoch == 0:
            shuffled = torch.randperm(len(samples), generator=order).tolist()
            if step and hasattr(network.criterion, "update"):
                network.criterion.update()
        rate = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 - step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        first = step % per_epoch * args.batch
        chosen = [samples[i] for i in shuffled[first : first + args.batch]]
        chosen = [flipped(s) if flips.random() < 0.5 else s for s in chosen]
        loss = network(common.collate(chosen, args.device))[0].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        if (step + 1) % (steps // QUARTERS) == 0:
            for mode, nms in common.modes(model).items():
                curve[mode].append(figures(network, unseen, nms, args.device))
                bar.set_postfix(AP=f"{curve[mode][-1]['AP']:.3f}")
    seconds = round(time.perf_counter() - start)
    return [{"mode": mode, "seconds": seconds, "curve": stages} for mode, stages in curve.items()]


def table(record: common.Record) -> str:
    """One row per model and mode; AP and rates in per cent."""
    rows = []
    for name, of in common.grouped(record["runs"]).items():
        early = [f"{100 * np.mean([r['curve'][q]['AP'] for r in of]):.1f}" for q in range(QUARTERS - 1)]
        last = [r["curve"][-1] for r in of]
        rates = [f"{100 * np.mean([v[k] for v in last]):.1f}" for k in ("AP50", "AP75", "AR50", "duplicates", "misses")]
        rows.append([name, len(of), *early, common.mean_range([v["AP"] for v in last]), *rates])
    header = ["model", "seeds", "AP at 25%", "AP at 50%", "AP at 75%", "AP (range)", "AP50", "AP75", "AR50"]
    return common.markdown([*header, "duplicates / 100 persons", "misses / 100 persons"], rows)


def photos(
    args: argparse.Namespace, parser: argparse.ArgumentParser, only: Sequence[str] = PARTS, seeds: Sequence[int] = (0,)
) -> None:
    """The rows on photos, with half the budget of the comparison and the learning rate that it has chosen.

    Args:
        args: of compare.py's command line, whose budget is halved.
        parser: for errors.
        only: some rows.
        seeds: of each of them and of erpose-n unchanged.
    """
    rates = common.read(f"compare-{PHOTOS}").get("rates", {})
    args.name, args.cutouts, args.epochs = f"ablation-{PHOTOS}", None, (args.epochs or TRACKS[PHOTOS]["epochs"]) // 2
    prepare(args, parser)
    if "erpose-n" in rates:
        common.put(args.name, args.setup, lambda record: {"rates": {"erpose-n": rates["erpose-n"]}})
    complete(args, [{"model": "erpose-n", "seed": seed, "label": label} for seed in seeds for label in ("", *only)], parser)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--track", choices=("walk", PHOTOS), default="walk")
    if parser.parse_known_args([word for word in sys.argv[1:] if word not in ("-h", "--help")])[0].track == PHOTOS:
        parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="some rows")
        parser.add_argument("--seeds", nargs="+", type=int, default=[0])
        arguments(parser)
        args = parser.parse_args()
        photos(args, parser, args.only, args.seeds)
        return
    parser.add_argument("--models", nargs="*", default=["erpose-n", "yolo26n-pose"], help="unchanged, for comparison")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=ROWS, help="some rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images-seen", type=int, default=48000, help="in the whole training")
    parser.add_argument("--size", type=int, default=96, help="side of the input in px")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="ablation", help="of the result file")
    args = parser.parse_args()
    samples, unseen = (common.load_split(DATA, split, args.size) for split in ("train", "val"))
    setup = {"data": "/".join(DATA.parts[-2:]), "images": len(samples)}
    setup |= {k: getattr(args, k) for k in ("images_seen", "size", "batch", "lr")} | {"persons": sum(len(s[1]) for s in samples)}
    pairs = [(model, "") for model in args.models] + [("erpose-n", label) for label in args.only]
    todo = [{"model": model, "label": label, "seed": seed} for seed in args.seeds for model, label in pairs]
    common.complete(args.name, setup, todo, lambda **who: run(**who, args=args, samples=samples, unseen=unseen), table)


if __name__ == "__main__":
    main()
