"""Time of a training step (forward, assignment, loss, backward) against YOLO26n-pose: python benchmarks/step.py

Contestants take turns on the same batch, so that a busy machine slows all alike; figures are ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common
import torch


def step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one step."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    model({**batch})[0].sum().backward()
    if batch["img"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["erpose-n", "yolo11n-pose", "yolov8n-pose"])
    parser.add_argument("--against", default="yolo26n-pose")
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--persons", type=int, default=5, help="in a picture")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows, record = [], {}
    for size in args.sizes:
        batch = {k: v.to(args.device) for k, v in common.random_batch(size, args.batch, args.persons).items()}
        models = {name: common.build(name).to(args.device).train() for name in [args.against, *args.models]}
        ratios: dict[str, list[float]] = {name: [] for name in args.models}
        for turn in range(args.rounds + 1):
            seconds = {name: step(model, batch) for name, model in models.items()}
            if turn:  # the first turn warms up
                for name in args.models:
                    ratios[name].append(seconds[name] / seconds[args.against])
        for name, values in ratios.items():
            record[f"{name}@{size}"] = values
            rows.append([name, size, common.spread(values, 2)])
        print(size, {k: round(statistics.median(v), 3) for k, v in ratios.items()}, flush=True)
    header = ["model", "size, px", f"step time / {args.against}: median (range)"]
    what = f"batch {args.batch}, {args.persons} persons a picture, {args.rounds} rounds"
    common.write("step", {"ratios": record}, f"{what}\n\n{common.markdown(header, rows)}")


if __name__ == "__main__":
    main()
