"""Parameters and operations of the deployed (fused) models, one counter for all: python -m benchmarks.speed.size"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from benchmarks import common

MODELS = [
    *("erpose-n", "erpose11-n", "erpose8-n", "yolo26n-pose", "yolo11n-pose", "yolov8n-pose"),
    *("erpose-n-p2", "erpose-n-p6", "erpose-n with boxes: true"),
    *("erpose-s", "yolo26s-pose", "erpose-m", "yolo26m-pose", "erpose-l", "yolo26l-pose", "erpose-x", "yolo26x-pose"),
]


def cost(model: torch.nn.Module, size: int) -> tuple[int, float]:
    """Parameters, and GFLOPs (two per multiply-add) of one image as ultralytics-thop counts them."""
    import thop

    macs = thop.profile(model, inputs=[torch.zeros(1, 3, size, size)], verbose=False)[0]
    return sum(p.numel() for p in model.parameters()), macs * 2 / 1e9


def build(name: str) -> Any:
    """A model by name; "NAME with KEY: VALUE" has that setting in its erpose: block."""
    name, _, setting = name.partition(" with ")
    key, _, value = setting.partition(": ")
    return common.build(name, settings={key: json.loads(value)} if setting else {})


def table(record: common.Record) -> str:
    """One row per family, one column per scale."""
    cells: dict[str, dict[str, str]] = {}
    for name, m in record["models"].items():
        found = re.fullmatch(r"(erpose\d*-|yolo\w*)([nsmlx])((?:-| ).*)?", name)
        assert found, name
        cells.setdefault(f"{found[1]}*{found[3] or ''}", {})[found[2]] = f"{m['parameters'] / 1e6:.2f}, {m['gflops']:.2f}"
    rows = [[family, *(of.get(scale, "") for scale in "nsmlx")] for family, of in cells.items()]
    return common.markdown([f"parameters, M; GFLOPs at {record['size']} px", *"nsmlx"], rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--models", nargs="+", default=MODELS)
    args = parser.parse_args()
    models = {}
    for name in args.models:
        parameters, flops = cost(build(name).eval().fuse(verbose=False), args.size)
        models[name] = {"parameters": parameters, "gflops": flops}
    common.save("size", {"size": args.size, "models": models}, table)


if __name__ == "__main__":
    main()
