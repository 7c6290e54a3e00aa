"""Does it learn? A handful of pictures by heart, every contestant with the same pictures, budget and optimiser.

    python benchmarks/learn.py --data path/to/coco-mini/data.yaml

Nano models from random weights, no augmentation; AP (OKS .50:.95, pycocotools) on the training pictures themselves, taken
from what is deployed: one-to-one scores without NMS where a model has them. A finished contestant is not run again:
delete its entry in results/learn.json to repeat it.
"""

from __future__ import annotations

import argparse
import json
import time

import common
import numpy as np
import torch
from ultralytics.utils import TQDM
from ultralytics.utils.nms import non_max_suppression

from erpose_yolo.metrics.coco import keypoint_ap
from erpose_yolo.oks import sigmas_for


@torch.no_grad()
def poses(model: torch.nn.Module, samples: list, nms: bool, device: str) -> list:
    """Joints and scores per picture, the best 20."""
    model.eval()
    out = []
    for sample in samples:
        rows = model(common.collate([sample], device)["img"])
        rows = rows[0] if isinstance(rows, tuple) else rows
        rows = non_max_suppression(rows, 0.001, 0.65, nc=1, max_det=20)[0] if nms else rows[0][:20]
        rows = rows.cpu().numpy()
        out.append((rows[:, 6:].reshape(-1, 17, 3), rows[:, 4]))
    model.train()
    return out


def run(name: str, seed: int, args: argparse.Namespace, samples: list, truth: list | None = None) -> dict:
    """Train one contestant; AP at each quarter of the budget, judged by the labels unless other truth is given."""
    per_epoch, steps = len(samples) // args.batch, args.passes // args.batch
    model = common.build(name, seed, epochs=steps // per_epoch, settings=args.settings).to(args.device).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    order = torch.Generator().manual_seed(seed)
    truth = truth or [(joints, common.areas(boxes)) for _, boxes, joints in samples]
    nms = not getattr(model, "end2end", False)
    curve, start = [], time.perf_counter()
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
        if (step + 1) % (steps // 4) == 0:
            found = poses(model, samples, nms, args.device)
            curve.append(keypoint_ap(truth, found, sigmas_for(17).numpy()))
            bar.set_postfix(AP=f"{curve[-1]['AP']:.3f}")
    return {"model": name, "seed": seed, "curve": curve, "seconds": round(time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data YAML of COCO-17 YOLO-pose labels")
    parser.add_argument("--models", nargs="+", default=["erpose-n", "yolo26n-pose", "yolo11n-pose"])
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
    for seed in args.seeds:
        for name in args.models:
            if not any(r["model"] == name and r["seed"] == seed for r in runs):
                runs.append(run(name, seed, args, samples))
            rows = []
            for model in dict.fromkeys(r["model"] for r in runs):
                of = [r for r in runs if r["model"] == model]
                quarters = [np.mean([r["curve"][q]["AP"] for r in of]) for q in range(4)]
                final = [r["curve"][3]["AP"] for r in of]
                ap50 = np.mean([r["curve"][3]["AP50"] for r in of])
                shares = [f"{q:.3f}" for q in quarters[:3]]
                seeds, lowest, highest = len(of), min(final), max(final)
                rows.append([model, seeds, *shares, f"{quarters[3]:.3f} ({lowest:.3f} to {highest:.3f})", f"{ap50:.3f}"])
            header = ["model", "seeds", "AP at 25 %", "50 %", "75 %", "AP at 100 % (range)", "AP50"]
            what = f"{budget['images']} pictures, {budget['persons']} persons, {args.size} px, {args.passes} image passes"
            common.write(args.name, {"budget": budget, "runs": runs}, f"{what}\n\n{common.markdown(header, rows)}")


if __name__ == "__main__":
    main()
