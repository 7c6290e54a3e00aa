"""Extra peak memory of assignment and loss: python benchmarks/memory.py (Linux)

Head outputs of a full batch are made up first; then the peak of the resident memory over assignment, loss and its backward
pass to those outputs is read from /proc, less what was resident before.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import common
import torch

from erpose_yolo.network import to_targets


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--persons", type=int, default=100, help="in a picture")
    parser.add_argument("--size", type=int, default=640)
    args = parser.parse_args()

    model = common.build("erpose-n").train()
    batch = common.random_batch(32, args.images, args.persons)
    batch["img"] = torch.empty(args.images, 3, args.size, args.size)
    criterion, k = model.init_criterion(), 17
    shapes = [(args.size // s, args.size // s) for s in (8, 16, 32)]
    cells = sum(h * w for h, w in shapes)
    channels = {"offsets": (k, 2, cells), "spread": (k, cells), "visibility": (k, cells), "field": (3 * k, cells)}
    channels |= {"one2many": (1, cells), "one2one": (1, cells), "heatmaps": (k, shapes[0][0] * shapes[0][1])}
    outputs = {name: torch.randn(args.images, *shape, requires_grad=True) for name, shape in channels.items()}
    grads = [torch.zeros_like(v) for v in outputs.values()]
    for value, grad in zip(outputs.values(), grads):
        value.grad = grad  # gradients are the network's memory, not the loss's
    targets = to_targets(batch, torch.device("cpu"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    loss, _ = criterion.loss(outputs, targets, shapes, 0.5)
    forward = resident("VmHWM") - before
    loss.backward()
    total = resident("VmHWM") - before
    naive = args.images * args.persons * cells * k * 4
    rows = [
        ["assignment and loss", f"{forward / 2**30:.2f}"],
        ["and backward to the head's outputs", f"{total / 2**30:.2f}"],
        ["one (batch, persons, cells, joints) float tensor would be", f"{naive / 2**30:.2f}"],
    ]
    what = f"{args.images} pictures of {args.size} px, {args.persons} persons each"
    table = f"{what}\n\n{common.markdown(['extra peak memory', 'GiB'], rows)}"
    common.write("memory", {"forward": forward, "total": total, "naive": naive, **vars(args)}, table)


if __name__ == "__main__":
    main()
