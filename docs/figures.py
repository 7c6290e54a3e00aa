"""Figures of the documentation.

    python -m docs.figures            # writes docs/assets/*.png and *.jpg

``photos`` shows what erpose-n.pt finds in the two photos of the ultralytics package; ``head`` is drawn from the layers of erpose-n;
``assignment`` shows what the assigner of training does on a photo, with the poses that erpose-n.pt finds there as labels; ``loss``
the loss of one keypoint and its gradient against the distance, with the spread that is best there, to which training converges.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from ultralytics.utils import ASSETS

from erpose_yolo import ERPose
from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.method.assigner import Candidates, alignment, one_to_many, one_to_one
from erpose_yolo.method.losses import (
    MIN_LOG_SPREAD,
    BatchContext,
    ERPoseLoss,
    Side,
    Targets,
    plain_oks_loss,
    smooth_oks_loss,
)
from erpose_yolo.method.oks import object_area

HOME = Path(__file__).resolve().parent / "assets"
COLOURS = ("magenta", "tab:orange", "tab:green")
INK = [patheffects.withStroke(linewidth=2.5, foreground="white")]


class WatchedLoss(ERPoseLoss):
    """The loss of training; keeps the ranks that each assignment was made from."""

    def __init__(self, model: ERPose) -> None:
        s, net = model.model.settings, model.model
        super().__init__(
            torch.tensor(COCO_17.sigmas),
            net.stride.tolist(),
            topk=s.topk,
            alpha=s.alpha,
            beta=s.beta,
            center_sampling_window=s.center_sampling_window,
            size_range=s.size_range,
        )
        self.quality: dict[int, Tensor] = {}
        self.context: BatchContext | None = None

    def pose_quality(
        self, side: Side, similarity: Tensor, keypoints: Tensor, person: Tensor, cell: Tensor, context: BatchContext
    ) -> Tensor:
        """Keep the ranks as a table of persons and candidates."""
        found = context.found
        score = side.scores[context.targets.image[person], context.targets.category[person], cell].sigmoid()
        rank = alignment(score, similarity, self.alpha, self.beta)
        self.quality[len(self.quality)] = similarity.new_zeros(found.cell.shape).masked_scatter(found.valid, rank)
        self.context = context
        return similarity


class Assigned(NamedTuple):
    """What training would do on a photo at the end of a run: persons N, candidates C.

    Attributes:
        image: letterboxed, (size, size, 3) RGB.
        targets: the persons.
        found: their candidates, (N, C).
        rank: of the one-to-many side, (N, C).
        many: its cells, (N, C) bool.
        one: column of the one-to-one side's cell, (N,).
    """

    image: np.ndarray
    targets: Targets
    found: Candidates
    rank: Tensor
    many: Tensor
    one: Tensor


def assigned(photo: Path, size: int = 640) -> Assigned:
    """Assign the persons that erpose-n.pt finds in a photo to cells, by its own predictions."""
    model = ERPose("erpose-n.pt")
    image = cv2.imread(str(photo))
    scale = size / max(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas = np.full((size, size, 3), 114, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    rgb = canvas[..., ::-1].copy()
    net = model.model.float().eval()
    with torch.no_grad():
        rows, raw = net(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255)
        rows = rows[0][rows[0, :, 4] >= 0.25]
        rows = rows[(rows[:, 8::3] > 0.5).any(1)]  # a label has keypoints
        keypoints = rows[:, 6:].reshape(len(rows), -1, 3).clone()
        keypoints[..., 2] = (keypoints[..., 2] > 0.5).float() * 2
        zeros = torch.zeros(len(rows), dtype=torch.long)
        targets = Targets(zeros, keypoints, rows[:, :4], object_area(rows[:, :4]), zeros, zeros[:0], rows[:0, :4])
        loss = WatchedLoss(model)
        loss(raw, targets, progress=1.0)
    assert loss.context is not None
    found, cells = loss.context.found, loss.context.centres.shape[1]
    many = one_to_many(loss.quality[0], found, targets.image, cells, loss.topk)
    one = one_to_one(loss.quality[1], found, targets.image, cells)
    return Assigned(rgb, targets, found, loss.quality[0], many, one)


def draw_person(axes: Axes, person: int, made: Assigned, numbers: bool) -> None:
    """A person's keypoints, candidates of each level, the cells of both assignments, and their ranks if wanted."""
    _, targets, found, rank, many, one = made
    keypoints = targets.keypoints[person].numpy()
    for a, b in COCO_17.limbs:
        if keypoints[a, 2] and keypoints[b, 2]:
            axes.plot(*keypoints[[a, b], :2].T, color="white", lw=1.2, alpha=0.8)
    strides = sorted(set(found.stride[person].tolist()))
    valid = found.valid[person]
    for colour, stride in zip(COLOURS, strides, strict=False):
        on = valid & (found.stride[person] == stride)
        axes.scatter(*found.centre[person][on].T, s=2.2 * stride, c=colour, marker="s", alpha=0.55, lw=0)
    chosen = many[person].nonzero().flatten()
    axes.scatter(*found.centre[person][chosen].T, s=70, facecolors="none", edgecolors="white", lw=1.6)
    if one[person] >= 0:
        axes.scatter(*found.centre[person][one[person]], s=190, c="red", marker="*", edgecolors="white", lw=0.8, zorder=5)
    if numbers:
        order = chosen[rank[person][chosen].argsort(descending=True)]
        for place, column in enumerate(order.tolist(), 1):
            x, y = found.centre[person][column].tolist()
            axes.annotate(str(place), (x, y), (5, 5), textcoords="offset points", fontsize=10, path_effects=INK, zorder=6)


def assignment(folder: Path) -> None:
    """Candidates and ranks of the persons of a photo, and one of them from near by."""
    made = assigned(ASSETS / "bus.jpg")
    rgb, targets = made.image, made.targets
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 6.6))
    for person in range(len(targets.image)):
        draw_person(axes[0], person, made, numbers=False)
    near = int(targets.area.argmax())
    draw_person(axes[1], near, made, numbers=True)
    for each in axes:
        each.imshow(rgb, alpha=0.75)
        each.axis("off")
    width = round(640 * 810 / 1080)
    axes[0].set(xlim=(0, width), ylim=(640, 0), title="Candidates of every person")
    x1, y1, x2, y2 = targets.box[near].tolist()
    axes[1].set(xlim=(x1 - 20, x2 + 20), ylim=(y2 + 10, y1 - 10), title="One of them: ranks 1 to 10")
    strides = made.found.stride[0].unique().tolist()
    for colour, stride in zip(COLOURS, strides, strict=True):
        if (made.found.valid & (made.found.stride == stride)).any():
            axes[0].scatter([], [], c=colour, marker="s", label=f"candidate, stride {stride:g} px")
    axes[0].scatter([], [], facecolors="none", edgecolors="black", label="one-to-many: up to 10 cells")
    axes[0].scatter([], [], c="red", marker="*", s=120, label="one-to-one: one cell")
    axes[0].legend(loc="lower center", ncol=2, fontsize=9, bbox_to_anchor=(0.5, -0.2))
    figure.tight_layout()
    figure.savefig(folder / "assignment.jpg", dpi=100, bbox_inches="tight", pil_kwargs={"quality": 85})
    plt.close(figure)


def head(folder: Path) -> None:
    """The head as a diagram, with the channels of erpose-n."""
    layers = ERPose("erpose-n.yaml").model.model[-1]
    branch = layers.pose
    levels = [tower[0].conv.in_channels for tower in branch.tower]
    width = branch.tower[0][0].conv.out_channels
    k = branch.num_keypoints
    outputs = [
        (f"offsets, visibility\n{branch.keypoints[0].out_channels} channels", "tab:blue"),
        (f"spread\n{branch.spread[0].out_channels}", "tab:blue"),
        (f"refinement maps\n{branch.refinement[0].out_channels}", "tab:blue"),
        (f"heatmaps\n{branch.heatmap[0].out_channels}", "tab:grey"),
    ]
    figure, axes = plt.subplots(figsize=(12, 6.2))

    def block(x: float, y: float, w: float, h: float, text: str, colour: str, style: str = "-") -> None:
        axes.add_patch(plt.Rectangle((x, y), w, h, facecolor=colour, alpha=0.22, edgecolor="none"))
        axes.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor=colour, ls=style, lw=1.6))
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=10)

    def arrow(x1: float, y1: float, x2: float, y2: float) -> None:
        axes.annotate("", (x2, y2), (x1, y1), arrowprops={"arrowstyle": "->", "color": "0.3"})

    for i, channels in enumerate(levels):
        block(0, 5.4 - 1.9 * i, 1.7, 1.2, f"level P{i + 3}\nstride {8 * 2**i} px\n{channels} channels", "tab:green")
    for top, name, style, used in ((7.1, "one-to-many", "--", "training only"), (2.4, "one-to-one", "-", "deployed")):
        axes.text(2.9, top + 0.1, f"{name}: {used}", fontsize=11, weight="bold")
        block(2.9, top - 1.3, 2.2, 1.1, f"pose tower\n{width} channels", "tab:blue", style)
        block(2.9, top - 2.9, 2.2, 1.1, f"score tower\n{width} channels", "tab:orange", style)
        shown = outputs if name == "one-to-many" else outputs[:3]
        for j, (text, colour) in enumerate(shown):
            block(5.9 + 2.15 * j, top - 1.3, 2.0, 1.1, text, colour, style)
        arrow(5.1, top - 0.75, 5.9, top - 0.75)
        block(5.9, top - 2.9, 2.0, 1.1, "score of each class\n1", "tab:orange", style)
        arrow(5.1, top - 2.35, 5.9, top - 2.35)
        for down in (0.75, 2.35):
            arrow(2.3, top - down, 2.9, top - down)
    for i in range(len(levels)):
        axes.plot((1.7, 2.3), (6.0 - 1.9 * i,) * 2, color="0.3", lw=1)
    axes.plot((2.3, 2.3), (0.05, 6.35), color="0.3", lw=1)
    block(8.7, -0.5, 5.8, 1.1, f"best cells, decode, refine\nrows: x1 y1 x2 y2 score class, {k} x (x, y, v)", "tab:red")
    arrow(7.9, 0.05, 8.7, 0.05)
    axes.set(xlim=(-0.3, 14.8), ylim=(-0.9, 7.8))
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(folder / "head.png", dpi=80)
    plt.close(figure)


def photos(folder: Path, height: int = 480) -> None:
    """Poses that erpose-n.pt finds at the default threshold, drawn by ``Results.plot`` without boxes, side by side."""
    drawn = [r.plot(boxes=False) for r in ERPose("erpose-n.pt").predict([ASSETS / "bus.jpg", ASSETS / "zidane.jpg"], verbose=False)]
    small = [cv2.resize(i, (round(i.shape[1] * height / i.shape[0]), height), interpolation=cv2.INTER_AREA) for i in drawn]
    cv2.imwrite(str(folder / "photos.jpg"), np.hstack(small), [cv2.IMWRITE_JPEG_QUALITY, 88])


def loss(folder: Path, sigma: float = 0.072) -> None:
    """Loss of one keypoint, an elbow, and its gradient against the distance, for small, medium and large persons."""
    distance = torch.from_numpy(np.geomspace(0.05, 500, 300)).requires_grad_()
    spreads = torch.linspace(MIN_LOG_SPREAD, 5, 400, dtype=torch.float64)[:, None]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex=True)
    for (high, low), (person, size) in zip(axes.T, (("small", 24.0), ("medium", 64.0), ("large", 256.0))):
        error = (distance / (size * 2 * sigma)).square() / 2
        best = spreads[smooth_oks_loss(error.detach(), spreads.expand(-1, len(error))).argmin(0), 0]
        x = distance.detach()
        for label, values, style in (("plain", plain_oks_loss(error), "C1"), ("smooth", smooth_oks_loss(error, best), "C0")):
            (slope,) = torch.autograd.grad(values.sum(), distance, retain_graph=True)
            high.plot(x, (values - values[0]).detach(), style, label=f"{label} OKS loss")
            low.plot(x, slope.abs() + 1e-12, style)
        high.set(xscale="log", title=f"{person}, {size:.0f} px", ylabel="loss above its value at the keypoint")
        low.set(xscale="log", yscale="log", xlabel="distance, px", ylabel="|gradient|, 1/px", ylim=(1e-6, 20))
        low.axvline(size * 2 * sigma, color="grey", lw=0.8)
    axes[0, 0].legend()
    figure.suptitle(f"One keypoint (sigma {sigma}); grey line: one OKS tolerance")
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=80)
    plt.close(figure)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HOME, help="folder (docs/assets)")
    folder = parser.parse_args(words).out
    folder.mkdir(parents=True, exist_ok=True)
    photos(folder)
    head(folder)
    assignment(folder)
    loss(folder)


if __name__ == "__main__":
    main()
