"""Parameters and operations of the deployed (fused) models, one counter for all: python benchmarks/cost.py"""

from __future__ import annotations

import argparse

import common
import torch


def cost(model: torch.nn.Module, size: int) -> tuple[int, float]:
    """Parameters, and GFLOPs (two per multiply-add) of one picture as ultralytics-thop counts them."""
    import thop

    macs = thop.profile(model, inputs=[torch.zeros(1, 3, size, size)], verbose=False)[0]
    return sum(p.numel() for p in model.parameters()), macs * 2 / 1e9


def build(name: str) -> torch.nn.Module:
    """A model by name; "NAME with KEY: VALUE" has that setting in its erpose: block."""
    name, _, setting = name.partition(" with ")
    key, _, value = setting.partition(": ")
    return common.build(name, settings={key: value} if setting else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[
            *("erpose-n", "erpose11-n", "erpose8-n", "yolo26n-pose", "yolo11n-pose", "yolov8n-pose"),
            *("erpose-n-p2", "erpose-n-p6", "erpose-n with boxes: learned"),
            *("erpose-s", "yolo26s-pose", "erpose-m", "yolo26m-pose", "erpose-l", "yolo26l-pose", "erpose-x", "yolo26x-pose"),
        ],
    )
    args = parser.parse_args()
    rows, record = [], {}
    for name in args.models:
        parameters, flops = cost(build(name).eval().fuse(verbose=False), args.size)
        record[name] = {"parameters": parameters, "gflops": flops}
        rows.append([name, f"{parameters / 1e6:.2f}", f"{flops:.2f}"])
    table = common.markdown(["model", "parameters, M", f"GFLOPs at {args.size} px"], rows)
    common.write("cost", {"size": args.size, "models": record}, table)


if __name__ == "__main__":
    main()
