"""Does it learn? A handful of pictures by heart, every contestant with the same pictures, budget and optimiser.

    python benchmarks/learn.py --data path/to/coco-mini/data.yaml
    python benchmarks/learn.py --data path/to/crowd/data.yaml --name learn-crowd
    python benchmarks/learn.py --data path/to/coco-mini/data.yaml --passes 3000 --ablation --name ablation

Nano models from random weights, no augmentation; AP (OKS .50:.95, pycocotools) on the training pictures themselves, taken
from what is deployed: one-to-one scores where a model has them, box NMS elsewhere, YOLO26 in both of its modes. It shows
how fast and how well a method fits, not how it generalises: that is compare.py, for machines that can train for hours.
A finished contestant is not run again: delete its entry in results/NAME.json to repeat it.
"""

from __future__ import annotations

import argparse
import json
import time

import common
import numpy as np
import torch
from compare import ABLATION, OURS, PEERS, modes
from ultralytics.utils import TQDM
from ultralytics.utils.nms import non_max_suppression

from erpose_yolo.metrics.coco import from_arrays, keypoint_ap
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


def run(
    name: str, seed: int, args: argparse.Namespace, samples: list, truth: list | None = None, settings: dict | None = None
) -> dict:
    """Train one contestant; figures at each quarter of the budget, judged by the labels unless other truth is given."""
    per_epoch, steps = len(samples) // args.batch, args.passes // args.batch
    settings = {**args.settings, **(settings or {})}
    model = common.build(name, seed, epochs=steps // per_epoch, settings=settings).to(args.device).train()
    model.to(memory_format=torch.channels_last)  # a fifth faster on this CPU, for all
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    order = torch.Generator().manual_seed(seed)
    truth = truth or [(joints, common.areas(boxes)) for _, boxes, joints in samples]
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
        batch = common.collate([samples[i] for i in shuffled[first : first + args.batch]], args.device)
        loss = model(batch)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if (step + 1) % (steps // QUARTERS) == 0:
            for mode, nms in modes(name).items():
                curve[mode].append(judge(model, samples, truth, nms, args.device))
                bar.set_postfix(AP=f"{curve[mode][-1]['AP']:.3f}")
    return {"seed": seed, "curves": curve, "seconds": round(time.perf_counter() - start)}


def table(runs: list[dict]) -> str:
    """One row per contestant and way of deploying it."""
    rows = []
    for model in dict.fromkeys(r["model"] for r in runs):
        of = [r for r in runs if r["model"] == model]
        for mode in of[0]["curves"]:
            quarters = list(zip(*(r["curves"][mode] for r in of)))
            early = [f"{np.mean([v['AP'] for v in q]):.3f}" for q in quarters[:-1]]
            last, ap = quarters[-1], [v["AP"] for v in quarters[-1]]
            rates = [f"{np.mean([v[k] for v in last]):.3f}" for k in ("AP50", "AP75", "duplicates", "misses")]
            rows.append([model + mode, len(of), *early, f"{np.mean(ap):.3f} ({min(ap):.3f} to {max(ap):.3f})", *rates])
    header = ["model", "seeds", "AP at 25 %", "50 %", "75 %", "AP at 100 % (range)", "AP50", "AP75"]
    return common.markdown([*header, "duplicates per person", "missed persons"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data YAML of COCO-17 YOLO-pose labels")
    parser.add_argument("--models", nargs="*", default=[OURS[0], *PEERS])
    parser.add_argument("--ablation", action="store_true", help="erpose-n with each part off or swapped, instead of --models")
    parser.add_argument("--only", nargs="+", help="some rows of the ablation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
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

    low, high = args.people
    samples = common.load_split(args.data, "train", args.size, lambda rows: low <= len(rows) <= high)[: args.images]
    budget = {k: getattr(args, k) for k in ("images", "people", "passes", "size", "batch", "lr", "settings")}
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
            runs.append({"model": label, **run(name, seed, args, samples, settings=settings)})
            what = f"{budget['images']} pictures, {budget['persons']} persons, {args.size} px, {args.passes} image passes"
            common.write(args.name, {"budget": budget, "runs": runs}, f"{what}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
