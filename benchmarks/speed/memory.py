"""Extra peak memory of assignment and loss: python -m benchmarks.speed.memory (Linux)

Head outputs of a full batch are made up first; then the peak of the resident memory over assignment, loss and its backward
pass to those outputs is read from /proc, less what was resident before.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import memory_of
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs
from erpose_yolo.nn.network import to_targets


def summary(record: common.Record) -> str:
    """Extra peak memory, and that of a naive tensor."""
    gib = {k: f"{record[k] / 2**30:.2f}" for k in ("forward", "total", "naive")}
    return (
        f"{gib['forward']} GiB, with backward {gib['total']} GiB, for {record['images']} images of {record['size']} px with "
        f"{record['persons']} persons each; one (batch, persons, cells, keypoints) float tensor would be {gib['naive']} GiB"
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--persons", type=int, default=100, help="in an image")
    parser.add_argument("--size", type=int, default=640)
    args = parser.parse_args()

    model = common.build("erpose-n").train()
    batch = common.random_batch(32, args.images, args.persons)
    batch["img"] = torch.empty(args.images, 3, args.size, args.size)
    criterion, k = model.init_criterion(), 17
    shapes = [(args.size // s, args.size // s) for s in (8, 16, 32)]
    cells = sum(h * w for h, w in shapes)

    def draw(*shape: int) -> torch.Tensor:
        value = torch.randn(args.images, *shape, requires_grad=True)
        value.grad = torch.zeros_like(value)  # gradients are the network's memory, not the loss's
        return value

    maps = [draw(3 * k, *shape) for shape in shapes]
    pose = PoseOutputs(draw(k, 2, cells), draw(k, cells), draw(k, cells), maps)
    outputs = HeadOutputs(pose, pose, draw(1, cells), draw(1, cells), draw(k, shapes[0][0] * shapes[0][1]), shapes)
    targets = to_targets(batch, torch.device("cpu"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_of("VmRSS")
    loss, _ = criterion.loss(outputs, targets, 0.5)
    forward = memory_of("VmHWM") - before
    loss.backward()
    total = memory_of("VmHWM") - before
    naive = args.images * args.persons * cells * k * 4
    common.save("memory", {"forward": forward, "total": total, "naive": naive, **vars(args)}, summary)


if __name__ == "__main__":
    main()
