"""Latency from a decoded image to persons in its pixels, side by side, on this CPU: ONNX Runtime, OpenVINO and NCNN.

    python -m benchmarks.speed.latency                                 # needs onnxruntime, openvino, ncnn and pnnx
    python -m benchmarks.speed.latency --runtimes onnx --sizes 320     # a part; what was measured before stays

Compared are erpose-n, erpose8-n and the stock nano models: YOLO26n-pose without NMS (``nms=False``) and as exported by default
(with NMS on the host), YOLO11n-pose and YOLOv8n-pose. NCNN has no TopK, so YOLO26n-pose has one form there, the one with NMS.

A round runs every model with 0, 3 and 60 persons once, in random order; ratios are taken within a round. The time is processor
time of one thread: the latency on a machine with nothing else to do, which other work on this one hardly disturbs. Timed are
letterbox and normalisation (the same function for all), the network, and from its output to keypoints: ``select_persons`` for
ours, which decodes the maps of an NCNN export, Ultralytics' own ``non_max_suppression`` for the others, and its ``scale_boxes``
and ``scale_coords`` for all.

The weights are random, so the number of persons is set, not found. A fixed map of logits is added to the last score convolution
of each model on the finest level: 60 persons on a lattice, three of them sure and 57 likely, and the threshold decides whether
0, 3 or 60 are found; graph, input and the work of TopK are the same for all three. A one-to-one head fires in one cell per
person. A one-to-many head fires in 3 x 3 cells with overlapping boxes (Ultralytics assigns ten cells to a person), of which NMS
has to leave one; a run that does not find exactly the wanted persons is an error.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import torchvision  # noqa: F401  the fast NMS: Ultralytics uses it where it is imported already
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes, scale_coords

from benchmarks import common
from erpose_yolo.data.synth.config import SynthConfig
from erpose_yolo.data.synth.dataset import draw_image
from erpose_yolo.export.exporter import maps_decoder, read_metadata
from erpose_yolo.method.maps import select_persons

OURS = ("erpose-n", "erpose8-n")
MODELS: dict[str, dict[str, Any]] = {
    **{name: {} for name in OURS},
    "yolo26n-pose nms=False": {"nms": False},
    "yolo26n-pose": {},
    "yolo11n-pose": {},
    "yolov8n-pose": {},
}
SURE, LIKELY, EMPTY = 4.0, 1.0, -6.0  # logits
CONF = {0: 0.99, 3: 0.9, 60: 0.5}  # persons: the threshold that finds them
IOU, MAX_DET = 0.7, 300  # Ultralytics' defaults
Infer = Callable[[np.ndarray], list[np.ndarray]]  # (1, 3, size, size) to the outputs
Times = dict[tuple[str, int], list[float]]  # model and persons: times, one per round


def logit_map(cells: int, around: int) -> Tensor:
    """Score logits of 60 persons on a lattice.

    Args:
        cells: side of the finest level.
        around: cells on each side of a person's cell that fire as well.

    Returns:
        (1, 1, cells, cells); a person's own cell has the highest logit.
    """
    step = cells // 8
    out = torch.full((1, 1, cells, cells), EMPTY)
    for person in range(60):
        x, y = (step * i + step // 2 for i in (person % 8, person // 8))
        logit = SURE if person < 3 else LIKELY
        out[..., y - around : y + around + 1, x - around : x + around + 1] = logit
        out[..., y, x] = logit + 0.2
    return out


class Overlay:
    """Forward hook that adds a constant to a convolution's output."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out + self.value


def constant(conv: nn.Module, bias: Tensor) -> None:
    """Let a convolution give (nearly) its bias; its work stays."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    conv.weight.data *= 1e-3
    conv.bias.data[:] = bias


def simulate(head: Any, size: int) -> None:
    """Make the scores, and the boxes that NMS compares, those of 60 persons."""
    ours = hasattr(head, "one2one_score")
    if ours:
        towers = [(head.one2one_score, 0)]
        for spread in head.deployed.spread:
            constant(spread, torch.tensor(-4.0))  # poses that are sure of themselves
        for refinement in head.deployed.refinement:
            nn.init.normal_(refinement.weight, 0, 0.01)  # exports leave out one that is still at zero
    else:
        towers = [(head.cv3, 1), (getattr(head, "one2one_cv3", None), 0)]
        sides = torch.zeros(4, head.reg_max)
        sides[:, 8 % head.reg_max] = 8.0 if head.reg_max == 1 else 20.0  # either way 8 cells from the centre to each side
        for boxes in (head.cv2, getattr(head, "one2one_cv2", None)):
            for tower in boxes or ():
                constant(tower[-1], sides.flatten())
    for levels, around in towers:
        for level, tower in enumerate(levels or ()):
            constant(tower[-1], torch.tensor(0.0 if level == 0 else EMPTY))
            if level == 0:
                logits = logit_map(size // 8, around)
                logits = logits.sigmoid().square().logit() if ours else logits  # our confidence takes the root
                tower[-1].register_forward_hook(Overlay(logits))


@torch.no_grad()
def make(name: str, size: int, folder: Path) -> Any:
    """A YOLO object of random weights whose persons are simulated, ready to be exported."""
    yaml = name.split()[0]
    model: Any = common.build(yaml)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of what is seen
    images = torch.from_numpy(np.stack([cv2.resize(photo(i), (160, 160)) for i in range(4)]))
    model.train()
    model(images.permute(0, 3, 1, 2) / 255)  # without statistics, signals of a random network fade to denormals
    model.eval()
    simulate(model.model[-1], size)
    yolo = YOLO(f"{yaml}.yaml")
    model.args, model.task = yolo.model.args, yolo.task
    yolo.model = model
    model.pt_path = str(folder / f"{name.replace(' ', '-')}-{size}.pt")  # exports are named after it
    return yolo


def photo(index: int) -> np.ndarray:
    """A synthetic image, (720, 1280, 3) BGR."""
    return draw_image(SynthConfig(size=1280, aspect=16 / 9, seed=3), "train", index)[0]


class Letterbox:
    """From a BGR image to (1, 3, size, size) RGB in [0, 1], centred on grey.

    Its buffers are used again: fresh memory of 5 MB for each image costs more than all of its arithmetic.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.canvas = np.full((size, size, 3), 114, np.uint8)
        self.blob = np.empty((1, 3, size, size), np.float32)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        ratio = self.size / max(image.shape[:2])
        height, width = (round(side * ratio) for side in image.shape[:2])
        top, left = (self.size - height) // 2, (self.size - width) // 2
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        self.canvas[top : top + height, left : left + width] = resized
        for channel in range(3):
            np.multiply(self.canvas[..., 2 - channel], np.float32(1 / 255), out=self.blob[0, channel])
        return self.blob


def open_onnx(path: str) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: list(session.run(None, {name: x}))


def open_openvino(path: str, precision: str = "f32") -> Infer:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(next(Path(path).glob("*.xml")), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda x: list(request.infer({0: x}, share_inputs=True, share_outputs=True).values())


def open_ncnn(path: str) -> Infer:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.load_param(str(Path(path) / "model.ncnn.param"))
    net.load_model(str(Path(path) / "model.ncnn.bin"))

    def infer(x: np.ndarray) -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0]))
            return [np.array(extractor.extract(name)[1])[None] for name in net.output_names()]

    return infer


OPEN = {"onnx": open_onnx, "openvino": open_openvino, "ncnn": open_ncnn}
SUFFIX = {"onnx": ".onnx", "openvino": "_openvino_model", "ncnn": "_ncnn_model"}
TITLES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "NCNN"}


def persons(
    fit: Letterbox, infer: Infer, select: Callable[..., list[Tensor]], image: np.ndarray, conf: float
) -> tuple[np.ndarray, np.ndarray]:
    """The whole pipeline: boxes and scores (n, 5) and keypoints (n, 17, 3) in pixels of the image."""
    rows = select([torch.from_numpy(output) for output in infer(fit(image))], conf)[0]
    shape = (fit.size, fit.size)
    boxes = scale_boxes(shape, rows[:, :4], image.shape)
    keypoints = scale_coords(shape, rows[:, 6:].view(-1, 17, 3), image.shape)
    return torch.cat((boxes, rows[:, 4:5]), 1).numpy(), keypoints.numpy()


def pipeline(runtime: str, name: str, path: str, size: int) -> Callable[[np.ndarray, float], int]:
    """A function from image and threshold to the number of persons found."""
    if name in OURS:
        decoder = maps_decoder(SimpleNamespace(**read_metadata(path)))

        def select(outputs: list[Tensor], conf: float) -> list[Tensor]:
            return select_persons(outputs, decoder, conf, MAX_DET)
    else:
        nms = partial(non_max_suppression, iou_thres=IOU, nc=1, max_det=MAX_DET, end2end=MODELS[name].get("nms") is False)

        def select(outputs: list[Tensor], conf: float) -> list[Tensor]:
            return nms(outputs[0], conf)

    fit, infer = Letterbox(size), OPEN[runtime](path)
    return lambda image, conf: len(persons(fit, infer, select, image, conf)[1])


def race(entries: dict[str, Callable[[np.ndarray, float], int]], rounds: int, image: np.ndarray) -> Times:
    """Time every model with every number of persons, once per round.

    Raises:
        RuntimeError: a model does not find the simulated persons.
    """
    order = [(name, wanted) for name in entries for wanted in CONF]
    times: Times = defaultdict(list)
    shuffle = random.Random(0).shuffle
    for turn in range(rounds + 3):  # three to warm up
        shuffle(order)
        for name, wanted in order:
            start = time.process_time()
            found = entries[name](image, CONF[wanted])
            seconds = time.process_time() - start
            if found != wanted:
                raise RuntimeError(f"{name} found {found} persons instead of {wanted}: the simulation does not hold")
            if turn >= 3:
                times[name, wanted].append(seconds)
    return times


def ratio(times: Times, above: tuple[str, int], below: tuple[str, int]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=list(OPEN), default=list(OPEN))
    parser.add_argument("--sizes", nargs="+", type=int, default=[640, 320], help="multiples of 64, in pixels")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--exports", type=Path, help="folder to keep the exported files in, and to find them again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if args.exports:
        args.exports.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, args.exports or Path(scratch))


def export(runtime: str, name: str, size: int, folder: Path) -> Path:
    """The exported model, made unless it is there."""
    path = folder / f"{name.replace(' ', '-')}-{size}{SUFFIX[runtime]}"
    if not path.exists():
        make(name, size, folder).export(format=runtime, imgsz=size, device="cpu", verbose=False, **MODELS[name])
    return path


def table(record: common.Record) -> str:
    """Time over that of each peer, with 60 persons; over the fastest peer, with 0, 3 and 60; and with 60 over none."""
    rows, peers = [], [n for n in MODELS if n not in OURS]
    for result in record["results"]:
        times: Times = {(run["model"], run["persons"]): run["ms"] for run in result["runs"]}
        known = {name for name, _ in times}
        slowest = max(ratio(times, (n, 60), (n, 0)) for n in known if n in peers)
        for ours in (o for o in OURS if o in known):
            against = {n: ratio(times, (ours, 60), (n, 60)) for n in peers if n in known}
            fastest = ", ".join(f"{max(ratio(times, (ours, w), (n, w)) for n in against):.2f}" for w in CONF)
            growth = [f"{ratio(times, (ours, 60), (ours, 0)):.2f}", f"{slowest:.2f}"]
            ms = f"{statistics.median(times[ours, 60]):.1f}"
            cells = [f"{against[n]:.2f}" if n in against else "" for n in peers]
            rows.append([TITLES[result["runtime"]], result["size"], ours, ms, *cells, fastest, *growth])
    header = ["runtime", "px", "model", "ms", *(f"over {n}" for n in peers), "over the fastest peer: 0, 3, 60 persons"]
    return common.markdown([*header, "60 persons / none", "slowest peer's"], rows)


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Export, race, and save after each runtime and size; those of earlier runs are kept."""
    image = photo(0)
    results = common.read("latency").get("results", [])
    for runtime in args.runtimes:
        for size in args.sizes:
            entries = {
                n: pipeline(runtime, n, str(export(runtime, n, size, folder)), size)
                for n, options in MODELS.items()
                if not (runtime == "ncnn" and options)  # exported for NMS all the same
            }
            times = race(entries, args.rounds, image)
            runs = [{"model": n, "persons": p, "ms": [round(t * 1e3, 3) for t in values]} for (n, p), values in times.items()]
            results = [r for r in results if (r["runtime"], r["size"]) != (runtime, size)]
            results.append({"runtime": runtime, "size": size, "rounds": args.rounds, "runs": runs})
            results.sort(key=lambda r: (list(OPEN).index(r["runtime"]), -r["size"]))
            common.save("latency", {"results": results}, table)


if __name__ == "__main__":
    main()
