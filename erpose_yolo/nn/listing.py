"""What models there are, with size, cost and accuracy: ``erpose models``.

Parameters and operations are those of the deployed (fused) network, counted on the network itself; AP is read from the model
card beside the weights, or is what Ultralytics publishes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from erpose_yolo import catalog
from erpose_yolo.errors import is_input_error, one_line

# mAP pose 50-95 (e2e) of Ultralytics' table
PUBLISHED = {f"yolo26{scale}-pose.pt": ap for scale, ap in zip(catalog.SCALES, (57.2, 63.0, 68.8, 70.4, 71.6))}
PUBLISHER = "COCO val2017, as docs.ultralytics.com/tasks/pose has it"
SIZE = 640  # px
COLUMNS = "{:<22} {:>7} {:>13} {:>8} {:>6}  {}"


def cost(network: Any) -> tuple[float, float]:
    """Millions of parameters, and GFLOPs (two per multiply-add) of one image of 640 x 640 px; the network is fused by it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = network.float().eval().fuse(verbose=False)
    parameters = list(network.parameters())
    image = torch.empty(1, 3, SIZE, SIZE, device=parameters[0].device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return sum(p.numel() for p in parameters) / 1e6, counter.get_total_flops() / 1e9


def measure(name: str) -> tuple[float, float]:
    """:func:`cost` of a model YAML, of weights, or of a stock YOLO26-pose file, which need not be there.

    Raises:
        FileNotFoundError, ValueError: see network.load_model_yaml.
        TypeError: weights of another kind.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from ultralytics.nn.tasks import PoseModel, load_checkpoint

    from erpose_yolo.nn.network import ERPoseModel
    from erpose_yolo.nn.yolo26 import from_yolo26_pose, is_yolo26_pose

    class Shapes(TorchFunctionMode):
        """Tensors that are made by their shape have no storage: the largest network takes no memory, and no random numbers."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            shaped = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
            return func(*args, **{**(kwargs or {}), **shaped})

    found = file_of(name)
    if found is not None:
        network = load_checkpoint(str(found))[0]
        network = from_yolo26_pose(network) if is_yolo26_pose(network) else network
        if not isinstance(network, ERPoseModel):
            raise TypeError(f"{name} is a {type(network).__name__}, not an ER-Pose model.")
        return cost(network)
    with Shapes():
        if name in PUBLISHED:
            return cost(from_yolo26_pose(PoseModel(name.replace(".pt", ".yaml"), verbose=False)))
        return cost(ERPoseModel(name, verbose=False))


def file_of(name: str) -> Path | None:
    """Weights by name: of the user, in Ultralytics' folder of weights, or shipped; None where there are none."""
    if not name.endswith(".pt"):
        return None
    from ultralytics.utils import SETTINGS

    folder = SETTINGS["weights_dir"]
    places = (Path(name), Path(folder) / name, Path(catalog.resolve_weights(name, folder)))
    return next((place for place in places if place.is_file()), None)


def accuracy(name: str) -> tuple[str, str]:
    """AP of a model and where it was measured; empty where nothing is known.

    Read from the front block of the card beside shipped weights (``AP`` and ``measured``), or published by Ultralytics.
    """
    if name in PUBLISHED:
        return f"{PUBLISHED[name]:.1f}", PUBLISHER
    card = catalog.cfg_root() / "weights" / Path(name).with_suffix(".md").name
    if name not in catalog.list_weights() or not card.is_file():
        return "", "random weights" if name.endswith((".yaml", ".yml")) else ""
    opening, _, rest = card.read_text(encoding="utf-8").partition("---\n")
    front = yaml.safe_load(rest.partition("\n---\n")[0]) if not opening else None
    about = front if isinstance(front, dict) else {}
    return (f"{about['AP']:.1f}", str(about.get("measured", ""))) if "AP" in about else ("", "")


def row(name: str) -> str:
    """A line of the table."""
    parameters, gflops = measure(name)
    file = file_of(name)
    size = f"{file.stat().st_size / 1e6:.1f}" if file else "-"
    points, source = accuracy(name)
    return COLUMNS.format(name, size, f"{parameters:.2f}", f"{gflops:.2f}", points or "-", source).rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``erpose models``.

    Returns:
        0, 1 where a model cannot be read, 2 on wrong usage.
    """
    parser = argparse.ArgumentParser("erpose models", description="List models and weights, with size, cost and accuracy.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone: model YAMLs, or weights that are here")
    try:
        args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    smallest = [name for name in catalog.list_models() if catalog.find_model(name)[1] == catalog.SCALES[0]]  # type: ignore[index]
    print(COLUMNS.format("model", "MB", "parameters, M", "GFLOPs", "AP", "measured on"), flush=True)
    try:
        for name in args.names or [*catalog.list_weights(), *PUBLISHED, *smallest]:
            print(row(name), flush=True)
    except Exception as error:
        if not is_input_error(error):
            raise
        print(f"erpose models: {one_line(error)}", file=sys.stderr)
        return 1
    if not args.names:
        print(
            f"\nDeployed networks at {SIZE} px. yolo26*-pose.pt: Ultralytics' files, which are downloaded when first opened and "
            "converted by ERPose.\nThe last ones have random weights and the scales s, m, l and x, too: erpose models "
            f"{smallest[0].replace('-n', '-s')}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
