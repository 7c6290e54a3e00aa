"""Does it learn? A handful of pictures by heart, every contestant with the same pictures, budget and optimiser.

    python benchmarks/learn.py --data path/to/coco-mini/data.yaml
    python benchmarks/learn.py --data path/to/crowd/data.yaml --name learn-crowd
    python benchmarks/learn.py --data path/to/coco-mini/data.yaml --passes 3000 --ablation --name ablation
    python benchmarks/learn.py --data benchmarks/synth-few.yaml --unseen --passes 16000 --size 128 --batch 16 --name screen
    python benchmarks/learn.py --data benchmarks/synth-few.yaml --unseen --close-ups 128 --passes 16000 --size 96 --batch 16 \
        --name close-ups

Nano models from random weights, no augmentation; AP (OKS .50:.95, pycocotools) on the training pictures themselves, taken
from what is deployed: one-to-one scores where a model has them, box NMS elsewhere, YOLO26 in both of its modes. It shows
how fast and how well a method fits, not how it generalises. With --unseen all training pictures are learnt, half of them
mirrored, and the validation split judges: a quick look at what compare.py then measures with Ultralytics' own trainer.
With --close-ups each person gets a small picture that it fills, and poses are learnt sooner.
A finished contestant is not run again: delete its entry in results/NAME.json to repeat it.
"""

from __future__ import annotations

import argparse
import json
import time

import common
import cv2
import numpy as np
import torch
from compare import ABLATION, OURS, PEERS, modes
from ultralytics.utils import TQDM
from ultralytics.utils.nms import non_max_suppression

from erpose_yolo.data.skeletons import flip_from_names
from erpose_yolo.metrics.coco import NAMES, from_arrays, keypoint_ap
from erpose_yolo.metrics.crowding import measure_crowding
from erpose_yolo.oks import sigmas_for

QUARTERS = 4


@torch.no_grad()
def judge(model: torch.nn.Module, samples: list, truth: list, nms: bool | None, device: str) -> dict[str, float]:
    """Figures of the model in training, deployed as ``nms`` says (compare.modes)."""
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
        model.end2end = True  # training goes on with both assignments
    model.train()
    sigmas = sigmas_for(17).numpy()
    crowd = measure_crowding(*from_arrays(truth, found, 17), sigmas)
    return {**keypoint_ap(truth, found, sigmas), "duplicates": crowd.duplicate_rate, "misses": crowd.miss_rate}


def mirrored(sample: tuple) -> tuple:
    """A sample of common.load_split, left and right swapped."""
    image, boxes, joints = sample
    width = image.shape[2]
    boxes, joints = boxes.copy(), joints[:, flip_from_names(NAMES)[0]]
    boxes[:, 0] = width - boxes[:, 0]
    joints[..., 0] = np.where(joints[..., 2] > 0, width - joints[..., 0], 0)
    return image[:, :, ::-1].copy(), boxes, joints


def close_ups(samples: list, size: int, seed: int = 0, least: int = 40, fewest: int = 12) -> list:
    """A picture for each person that fills it, with whoever else is in view.

    Args:
        samples: of common.load_split.
        size: side of a close-up in pixels.
        seed: of place and scale: the person takes 1/1.9 to 1/1.3 of the side, its centre lies up to 0.15 sides off.
        least: longer side in pixels below which a person is left out.
        fewest: labelled joints below which a person is left out.

    Returns:
        Samples as those given; joints out of view are unlabelled, boxes end at the border.
    """
    rng = np.random.default_rng(seed)
    out = []
    for image, boxes, joints in samples:
        for box, own in zip(boxes, joints):
            if max(box[2:]) < least or (own[:, 2] > 0).sum() < fewest:
                continue
            side = max(box[2:]) * rng.uniform(1.3, 1.9)
            corner = box[:2] + rng.uniform(-0.15, 0.15, 2) * side - side / 2
            scale = size / side
            # OpenCV counts from the centre of the first pixel
            matrix = np.column_stack((np.eye(2) * scale, (0.5 - corner) * scale - 0.5))
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            picture = cv2.warpAffine(pixels, matrix, (size, size), borderValue=(114, 114, 114))
            moved = np.concatenate(((joints[..., :2] - corner) * scale, joints[..., 2:]), 2)
            outside = ((moved[..., :2] < 0) | (moved[..., :2] >= size)).any(-1)
            moved[outside | (joints[..., 2] == 0)] = 0
            low, high = (((boxes[:, :2] + sign * boxes[:, 2:] / 2 - corner) * scale).clip(0, size) for sign in (-1, 1))
            kept = (high - low >= 2).all(1) & (moved[..., 2] > 0).any(1)
            sides = np.concatenate(((low + high) / 2, high - low), 1)
            out.append((picture.transpose(2, 0, 1).copy(), sides[kept], moved[kept]))
    return out


def run(
    name: str,
    seed: int,
    args: argparse.Namespace,
    samples: list,
    truth: list | None = None,
    settings: dict | None = None,
    unseen: list | None = None,
) -> dict:
    """Train one contestant; figures at each quarter of the budget.

    Args:
        name: contestant.
        seed: of weights and order.
        args: of the command line.
        samples: to learn.
        truth: (joints, areas) of each picture that judges; by default its labels.
        settings: of the ``erpose:`` block.
        unseen: pictures that judge instead of ``samples``; then these are mirrored at random.
    """
    steps, per_epoch = args.passes // args.batch, len(samples) // args.batch
    per_epoch = max(1, min(per_epoch, steps // 20))  # loss schedules go on by epochs, and a few would be too coarse for them
    judged, chance = unseen or samples, np.random.default_rng(seed)
    settings = {**args.settings, **(settings or {})}
    model = common.build(name, seed, epochs=steps // per_epoch, settings=settings).to(args.device).train()
    model.to(memory_format=torch.channels_last)  # a fifth faster on this CPU, for all
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    order = torch.Generator().manual_seed(seed)
    truth = truth or [(joints, common.areas(boxes)) for _, boxes, joints in judged]
    curve: dict[str, list] = {mode: [] for mode in modes(name)}
    start = time.perf_counter()
    bar = TQDM(range(steps), desc=f"{name} seed {seed}", disable=False)
    for step in bar:
        if step % per_epoch == 0:
            shuffled = torch.randperm(len(samples), generator=order).tolist()
            if step and hasattr(model.criterion, "update"):
                model.criterion.update()
        rate = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 - step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        first = step % per_epoch * args.batch
        chosen = [samples[i] for i in shuffled[first : first + args.batch]]
        if unseen:
            chosen = [mirrored(s) if chance.random() < 0.5 else s for s in chosen]
        batch = common.collate(chosen, args.device)
        loss = model(batch)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if (step + 1) % (steps // QUARTERS) == 0:
            for mode, nms in modes(name).items():
                curve[mode].append(judge(model, judged, truth, nms, args.device))
                bar.set_postfix(AP=f"{curve[mode][-1]['AP']:.3f}")
    return {"seed": seed, "curves": curve, "seconds": round(time.perf_counter() - start), "machine": common.machine()}


def table(runs: list[dict]) -> str:
    """One row per contestant and way of deploying it."""
    rows = []
    for model in dict.fromkeys(r["model"] for r in runs):
        of = [r for r in runs if r["model"] == model]
        for mode in of[0]["curves"]:
            quarters = list(zip(*(r["curves"][mode] for r in of)))
            early = [f"{np.mean([v['AP'] for v in q]):.3f}" for q in quarters[:-1]]
            last, ap = quarters[-1], [v["AP"] for v in quarters[-1]]
            rates = [f"{np.mean([v[k] for v in last]):.3f}" for k in ("AP50", "AP75", "AR50", "duplicates", "misses")]
            rows.append([model + mode, len(of), *early, f"{np.mean(ap):.3f} ({min(ap):.3f} to {max(ap):.3f})", *rates])
    header = ["model", "seeds", "AP at 25 %", "50 %", "75 %", "AP at 100 % (range)", "AP50", "AP75", "AR50"]
    return common.markdown([*header, "duplicates per person", "missed persons"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data YAML of COCO-17 YOLO-pose labels")
    parser.add_argument("--models", nargs="*", default=[OURS[0], *PEERS])
    parser.add_argument("--ablation", action="store_true", help="erpose-n with each part off or swapped, instead of --models")
    parser.add_argument("--only", nargs="+", help="some rows of the ablation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--unseen", action="store_true", help="learn all training pictures, judge on the validation split")
    parser.add_argument("--close-ups", type=int, metavar="PX", help="cut persons out of the pictures at this size")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--people", nargs=2, type=int, default=[3, 8], help="persons in a picture, least and most")
    parser.add_argument("--passes", type=int, default=8000, help="image passes in all")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON overrides of the erpose: block")
    parser.add_argument("--name", default="learn", help="of the result files")
    args = parser.parse_args()
    if args.close_ups and not args.unseen:
        parser.error("--close-ups needs --unseen")

    low, high = args.people
    if args.unseen:
        samples, unseen = (common.load_split(args.data, split, args.close_ups or args.size) for split in ("train", "val"))
        if args.close_ups:
            samples, unseen = (close_ups(part, args.size) for part in (samples, unseen))
        args.images, args.people = len(samples), [0, max(len(s[1]) for s in samples)]
    else:
        samples = common.load_split(args.data, "train", args.size, lambda rows: low <= len(rows) <= high)[: args.images]
        unseen = None
    budget = {k: getattr(args, k) for k in ("images", "people", "passes", "size", "batch", "lr", "settings")}
    if args.close_ups:
        budget["close_ups"] = args.close_ups
    budget["persons"] = int(np.sum([len(s[1]) for s in samples]))
    file = common.RESULTS / f"{args.name}.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    runs = old["runs"] if old.get("budget") == budget else []
    todo = {name: (name, {}) for name in args.models}
    if args.ablation:
        rows = {label: v for label, v in ABLATION.items() if not args.only or label in args.only}
        todo = {OURS[0]: (OURS[0], {})} | {f"{OURS[0]}: {label}": (OURS[0], v) for label, v in rows.items()}
    for seed in args.seeds:
        for label, (name, settings) in todo.items():
            if any(r["model"] == label and r["seed"] == seed for r in runs):
                continue
            runs.append({"model": label, **run(name, seed, args, samples, settings=settings, unseen=unseen)})
            judged = f", judged on {len(unseen)} other pictures" if unseen else ""
            what = f"{budget['images']} pictures, {budget['persons']} persons, {args.size} px, {args.passes} image passes{judged}"
            common.write(args.name, {"budget": budget, "runs": runs}, f"{what}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
