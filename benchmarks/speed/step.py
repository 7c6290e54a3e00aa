"""Time of a training step (forward, assignment, loss, backward) against YOLO26n-pose: python -m benchmarks.speed.step

Models take turns on the same batch, so that a busy machine slows all alike; figures are ratios within a turn.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks import common


def step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one step."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    model({**batch})[0].sum().backward()
    if batch["img"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(record: common.Record) -> str:
    """Step time over the peer's: one row per model, one column per input size."""
    cells: dict[str, dict[str, str]] = {}
    for name, values in record["ratios"].items():
        model, _, size = name.partition("@")
        cells.setdefault(model, {})[f"{size} px"] = common.median_range(values, 2)
    header = [f"step time / {record['against']}, median (range)", *next(iter(cells.values()))]
    return common.markdown(header, [[model, *of.values()] for model, of in cells.items()])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["erpose-n", "yolo11n-pose", "yolov8n-pose"])
    parser.add_argument("--against", default="yolo26n-pose")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 640])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--persons", type=int, default=5, help="in an image")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    measured: dict[str, list[float]] = {}
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
            measured[f"{name}@{size}"] = values
        print(size, {k: round(statistics.median(v), 3) for k, v in ratios.items()}, flush=True)
    common.save("step", {"against": args.against, "ratios": measured}, table)


if __name__ == "__main__":
    main()
