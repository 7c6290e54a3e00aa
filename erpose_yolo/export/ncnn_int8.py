"""Eight-bit convolutions for NCNN files, whose own quantiser is a program that no pip package holds.

A convolution's weights get a scale per output channel, and its input one scale, as ncnn's ``ncnn2table`` and ``ncnn2int8`` give
them; the input's scale is the one of the least squared error on calibration images. Convolutions stay in float where the
weights that ship lose accuracy by it: the head, the first blocks, and those whose input loses more than KEEP of its squared values.

The format: docs of ncnn, "param and model file structure", and its layers' ``load_model``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

FLOAT16, INT8 = 0x01306B47, 0x000D4B38  # tags of weights; 0 is float32
KEEP = 0.002
SAMPLES = 4096  # values of an input that are kept per image, about
WEIGHTED = ("Convolution", "ConvolutionDepthWise")  # layers with data in the .bin file, as exports of this package have them
Array = NDArray[np.float32]


@dataclass
class Layer:
    """A line of a .param file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    options: dict[int, str]

    def line(self) -> str:
        blobs = " ".join([*self.inputs, *self.outputs])
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind:<24} {self.name:<24} {len(self.inputs)} {len(self.outputs)} {blobs} {options}".rstrip()


def quantize_folder(folder: Path, images: Iterable[Array], first: int = 1) -> dict[str, float]:
    """Put the convolutions of an exported folder into 8 bits, in place.

    Args:
        folder: ``*_ncnn_model`` of raw maps, with model.ncnn.param and model.ncnn.bin.
        images: network inputs (3, H, W) in [0, 1].
        first: convolutions at the start that stay in float.

    Returns:
        Share of the squared values of each convolution's input that rounding to 8 bits loses, by name of the layer.

    Raises:
        ValueError: a layer that this module does not know, or no images.
    """
    param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    magic, counts, layers = read_param(param)
    possible = quantizable(layers, first)
    scales, errors = input_scales(param, weights, {layer.inputs[0] for layer in possible}, images)
    names = {layer.name for layer in possible if errors[layer.inputs[0]] < KEEP}
    parts: list[bytes] = []
    with weights.open("rb") as file:
        for layer in layers:
            if layer.kind not in WEIGHTED:
                continue
            data, raw = read_weights(file, int(layer.options[6]))
            outputs = int(layer.options[0])
            bias = file.read(4 * outputs) if layer.options.get(5) == "1" else b""
            if layer.name in names:
                rounded, factors = round_weights(data.reshape(outputs, -1))
                layer.options[8] = "2"
                raw = struct.pack("<I", INT8) + rounded.tobytes() + bytes(-rounded.size % 4)
                bias += factors.tobytes() + np.float32(scales[layer.inputs[0]]).tobytes()
            parts += [raw, bias]
        if file.read(1):
            raise ValueError(f"{weights} holds weights of layers other than {', '.join(WEIGHTED)}: they cannot be put into 8 bits.")
    weights.write_bytes(b"".join(parts))
    param.write_text("\n".join([magic, counts, *(layer.line() for layer in layers)]) + "\n")
    return {layer.name: errors[layer.inputs[0]] for layer in possible}


def read_param(path: Path) -> tuple[str, str, list[Layer]]:
    """Magic number, counts and layers of a .param file."""
    magic, counts, *lines = path.read_text().splitlines()
    layers = []
    for line in lines:
        kind, name, inputs, outputs, *rest = line.split()
        split, end = int(inputs), int(inputs) + int(outputs)
        options = {int(key): value for key, value in (pair.split("=", 1) for pair in rest[end:])}
        layers.append(Layer(kind, name, rest[:split], rest[split:end], options))
    return magic, counts, layers


def quantizable(layers: list[Layer], first: int) -> list[Layer]:
    """Convolutions that may go into 8 bits: not the first, and not the head, which is all from the last fork to an output."""
    makers = {blob: layer for layer in layers for blob in layer.outputs}
    used = {blob for layer in layers for blob in layer.inputs}
    head = set()
    for blob in makers.keys() - used:
        maker = makers[blob]
        while maker.kind != "Split" and len(maker.inputs) == 1:
            head.add(maker.name)
            maker = makers[maker.inputs[0]]
    convolutions = [layer for layer in layers if layer.kind == "Convolution"]
    return [layer for layer in convolutions[first:] if layer.name not in head]


def input_scales(param: Path, weights: Path, blobs: set[str], images: Iterable[Array]) -> tuple[dict[str, float], dict[str, float]]:
    """Steps per unit of each blob in 8 bits, and the share of its squared values that rounding loses."""
    import ncnn

    net = ncnn.Net()
    net.opt.lightmode = False  # keep what layers give
    net.load_param(str(param))
    net.load_model(str(weights))
    seen: dict[str, list[Array]] = {blob: [] for blob in sorted(blobs)}
    for image in images:
        with net.create_extractor() as extractor:
            extractor.input(net.input_names()[0], ncnn.Mat(np.ascontiguousarray(image)))
            for blob, values in seen.items():
                found = np.abs(np.array(extractor.extract(blob)[1]), dtype=np.float32).ravel()
                values += [found[:: max(1, found.size // SAMPLES)], found.max(keepdims=True)]
    if not all(seen.values()):
        raise ValueError("8 bits need at least one image to calibrate on.")
    best = {blob: best_limit(np.concatenate(values)) for blob, values in seen.items()}
    return {blob: 127 / limit for blob, (limit, _) in best.items()}, {blob: error for blob, (_, error) in best.items()}


def best_limit(values: Array) -> tuple[float, float]:
    """What to clip absolute values at so that 127 steps lose least, and the share of their squares that is lost then."""
    limits = float(values.max()) * np.linspace(0.2, 1, 33) + 1e-9
    lost = [float(np.square(values - np.minimum(np.rint(values * 127 / a), 127) * a / 127).sum()) for a in limits]
    first = int(np.argmin(lost))
    return float(limits[first]), lost[first] / float(np.square(values).sum() + 1e-12)


def read_weights(file: BinaryIO, count: int) -> tuple[Array, bytes]:
    """The next weights of a .bin file as numbers, and as they stand there."""
    tag = file.read(4)
    kind = struct.unpack("<I", tag)[0]
    if kind not in (0, FLOAT16):
        raise ValueError(f"weights of an unknown type {kind:#x}. Export the model again.")
    size = 4 * count if kind == 0 else -(-2 * count // 4) * 4
    raw = file.read(size)
    return np.frombuffer(raw, "<f4" if kind == 0 else "<f2")[:count].astype(np.float32), tag + raw


def round_weights(weights: Array) -> tuple[NDArray[np.int8], Array]:
    """Weights (outputs, n) in 8 bits, and the steps per unit of each output."""
    factors = np.float32(127) / np.maximum(np.abs(weights).max(1), 1e-9).astype(np.float32)
    return np.clip(np.rint(weights * factors[:, None]), -127, 127).astype(np.int8), factors


def describe(errors: dict[str, float]) -> str:
    """The convolutions whose input loses most, for the log."""
    worst = sorted(errors.items(), key=lambda pair: -pair[1])[:3]
    return ", ".join(f"{name} {100 * error:.2f} %" for name, error in worst)
