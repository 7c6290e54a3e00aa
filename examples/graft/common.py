"""What the grafts share: a pose head in plain torch, synthetic people, the training loop and the evaluation. No ultralytics.

An example brings a Backbone; everything of the method itself comes from erpose_yolo's torch-only modules.

Shapes: B images, A cells of all levels in a row (finest first), K keypoints. Units: pixels of the network input.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from erpose_yolo.data.skeletons import COCO_17, flip_from_names
from erpose_yolo.data.synth import SynthConfig
from erpose_yolo.data.synth.dataset import draw_image
from erpose_yolo.method.boxes import decode_boxes, default_margins, derive_boxes
from erpose_yolo.method.decode import (
    HeadOutputs,
    PoseOutputs,
    assemble_rows,
    confidence,
    decode_keypoints,
    expected_oks,
    make_cells,
    select_rows,
)
from erpose_yolo.method.losses import BatchContext, ERPoseLoss, Side, Targets, box_overlap, plain_oks_loss
from erpose_yolo.method.oks import mean_over_labelled, object_area, sigmas_for
from erpose_yolo.metrics.coco import keypoint_ap

STYLES = ("erpose", "stock")
SIZE = 96  # pixels, the side of an image
TRAIN_IMAGES, VAL_IMAGES = 6000, 200
NMS_IOU = 0.7  # Ultralytics' default
MAX_PERSONS = 20  # what pycocotools counts in an image
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


class StockLoss(ERPoseLoss):
    """The style of YOLOv8-pose: a box branch, cells ranked by score^0.5 * IoU^6 of boxes, one-to-many scores alone (and NMS),
    1 - exp(-e) for the keypoints; gains in the proportions that Ultralytics has. Candidate cells are those of ER-Pose."""

    score_floor = (1.0, 1.0)

    def __init__(self, sigmas: Tensor, strides: Sequence[float]) -> None:
        gains = {"pose_gain": 24.0, "visibility_gain": 2.0, "box_gain": 15.0}
        super().__init__(sigmas, strides, beta=6.0, one2many_weight=(1.0, 1.0), heatmap_gain=0.0, **gains)

    def pose_loss(self, error: Tensor, log_spread: Tensor, labelled: Tensor) -> Tensor:
        return mean_over_labelled(plain_oks_loss(error), labelled)

    def pose_quality(
        self, side: Side, similarity: Tensor, keypoints: Tensor, person: Tensor, cell: Tensor, scene: BatchContext
    ) -> Tensor:
        assert side.box is not None
        sides = side.box[scene.targets.image[person], :, cell]  # (D, 4)
        boxes = decode_boxes(sides.T[None], scene.centres.T[cell].T, scene.strides.T[cell].T)[0].T
        return box_overlap(boxes, scene.targets.box[person])[0].clamp(min=0)


class Backbone(nn.Module):
    """Turns (B, 3, S, S) images into a list of feature maps, finest first.

    Attributes:
        channels: of the maps.
        strides: pixels per cell of the maps.
    """

    channels: Sequence[int]
    strides: Sequence[int]


def block(c1: int, c2: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c1, c2, 3, padding=1, bias=False), nn.BatchNorm2d(c2), nn.SiLU(inplace=True))


def last(c1: int, c2: int, bias: float | None) -> nn.Conv2d:
    conv = nn.Conv2d(c1, c2, 1)
    if bias is not None and conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv


class PoseHead(nn.Module):
    """The outputs that ERPoseLoss reads, from towers of plain 3 x 3 convolutions, per level.

    Args:
        channels: of the feature maps, finest first.
        num_keypoints: K.
        style: "erpose" has scores for both assignments, that share the poses, and heatmaps on the finest level; "stock" has
            one-to-many scores and boxes.
        width: channels of the towers.
    """

    def __init__(self, channels: Sequence[int], num_keypoints: int, style: str, width: int = 64) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        scores = ("one2many", "one2one") if style == "erpose" else ("one2many",)
        pose = {"offsets": 2 * num_keypoints, "visibility": num_keypoints, "spread": num_keypoints}
        towers = {"pose": pose, **{name: {name: 1} for name in scores}}
        if style == "stock":
            towers["box"] = {"box": 4}
        self.towers: Any = nn.ModuleDict(  # the values of a ModuleDict are typed as bare modules
            {name: nn.ModuleList(nn.Sequential(block(c, width), block(width, width)) for c in channels) for name in towers}
        )
        few = -math.log(99)  # one cell in a hundred holds a person, or a keypoint
        start = {"one2many": few, "one2one": few, "spread": 1.0}  # keypoints of an untrained head miss by e tolerances
        sizes = {out: n for outs in towers.values() for out, n in outs.items()}
        self.outs: Any = nn.ModuleDict(
            {out: nn.ModuleList(last(width, n, start.get(out)) for _ in channels) for out, n in sizes.items()}
        )
        self.tower_of = {out: name for name, outs in towers.items() for out in outs}
        self.heatmap = last(width, num_keypoints, few) if style == "erpose" else None

    def forward(self, x: Sequence[Tensor]) -> HeadOutputs:
        """Raw outputs of (B, channels, H, W) maps, finest first."""
        features = {name: [tower(level) for tower, level in zip(towers, x)] for name, towers in self.towers.items()}
        out = {
            name: torch.cat([conv(f).flatten(2) for conv, f in zip(convs, features[self.tower_of[name]])], 2)
            for name, convs in self.outs.items()
        }
        offsets = out["offsets"].unflatten(1, (self.num_keypoints, 2))
        pose = PoseOutputs(offsets, out["visibility"], out["spread"], box=out.get("box"))
        heatmaps = None if self.heatmap is None else self.heatmap(features["pose"][0]).flatten(2)
        shapes = [(f.shape[2], f.shape[3]) for f in x]
        return HeadOutputs(pose, pose, out["one2many"], out.get("one2one"), heatmaps, shapes)


class Graft(nn.Module):
    """A backbone with the pose head on it.

    Args:
        backbone: its weights are trained from what they are.
        style: key of STYLES.
    """

    def __init__(self, backbone: Backbone, style: str) -> None:
        super().__init__()
        self.backbone, self.strides = backbone, [float(s) for s in backbone.strides]
        self.head = PoseHead(backbone.channels, len(COCO_17.names), style)
        for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.1  # SSDLite has 0.03 and D0 0.01: running statistics would lag behind short trainings
        self.criterion = (ERPoseLoss if style == "erpose" else StockLoss)(sigmas_for(len(COCO_17.names)), self.strides)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Raw outputs from (B, 3, S, S) uint8 RGB."""
        return self.head(self.backbone((images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)))

    def loss(self, images: Tensor, targets: Targets, progress: float) -> Tensor:
        return self.criterion(self(images), targets, progress)[0]

    @torch.no_grad()
    def predict(self, images: Tensor, conf: float = 0.001) -> list[Tensor]:
        """Rows (n, 6 + 3K) per image, best first: x1 y1 x2 y2 score class, then x y visibility per keypoint."""
        out = self(images)
        pose = out.one2one
        centres, strides = make_cells(out.shapes, self.strides, pose.offsets)
        keypoints, visibility = decode_keypoints(pose.offsets, centres, strides), pose.visibility.sigmoid()
        if out.one2one_scores is None:
            scores, boxes = out.one2many_scores.sigmoid(), decode_boxes(pose.box, centres, strides)
        else:
            scores = confidence(out.one2one_scores.sigmoid(), expected_oks(pose.log_spread, visibility))
            boxes = derive_boxes(keypoints, visibility, default_margins(self.head.num_keypoints))
        rows = assemble_rows(boxes, torch.cat((scores, scores * 0), 1), keypoints, visibility).transpose(1, 2)  # class 0
        if out.one2one_scores is not None:
            return select_rows(rows, conf, MAX_PERSONS)
        found = select_rows(rows, conf, rows.shape[1])
        return [r[nms(r[:, :4], r[:, 4], NMS_IOU)[:MAX_PERSONS]] for r in found]


def draw(split: str, count: int) -> list[Sample]:
    """``count`` images of one or two synthetic people who stand or walk, each at least a quarter of the side tall and wide on
    average, before even backgrounds: what a backbone learns from random weights on a CPU.

    Returns:
        (image (3, S, S) uint8 RGB, boxes (N, 4) corners in pixels, keypoints (N, 17, 3) pixels and visibility).
    """
    cfg, index = SynthConfig(size=SIZE, people=(1, 2), empty=0.0, plain=True, activities=("stand", "walk")), 0
    out: list[Sample] = []
    while len(out) < count:
        image, boxes, keypoints = draw_image(cfg, split, index)
        index += 1
        if len(boxes) and (boxes[:, 2:] - boxes[:, :2]).prod(1).min() >= (SIZE / 4) ** 2 and (keypoints[..., 2] > 0).any(1).all():
            out.append((np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)), boxes, keypoints))
    return out


def images(file: Path | None) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out images, drawn once where a file is named."""
    if file and file.exists():
        return pickle.loads(file.read_bytes())
    sets = draw("train", TRAIN_IMAGES), draw("val", VAL_IMAGES)
    if file:
        file.write_bytes(pickle.dumps(sets))
    return sets


def flipped(sample: Sample) -> Sample:
    image, boxes, keypoints = sample
    width = image.shape[2]
    keypoints = keypoints[:, flip_from_names(COCO_17.names)[0]] * (-1, 1, 1) + (width, 0, 0)
    return image[..., ::-1], (boxes * (-1, 1, -1, 1) + (width, 0, width, 0))[:, [2, 1, 0, 3]], keypoints


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Targets]:
    """A batch: images (B, 3, S, S) and the persons in them."""
    box = torch.tensor(np.concatenate([s[1] for s in samples]), dtype=torch.float32)
    targets = Targets(
        image=torch.repeat_interleave(torch.tensor([len(s[1]) for s in samples])),
        keypoints=torch.tensor(np.concatenate([s[2] for s in samples]), dtype=torch.float32),
        box=box,
        area=object_area(box),
        category=torch.zeros(len(box), dtype=torch.long),
        ignore_image=torch.zeros(0, dtype=torch.long),
        ignore_box=torch.zeros(0, 4),
    )
    return torch.tensor(np.stack([s[0] for s in samples])), targets


def evaluate(model: Graft, samples: Sequence[Sample]) -> dict[str, float]:
    """pycocotools' figures on held-out images."""
    model.eval()
    rows = [r for i in range(0, len(samples), 25) for r in model.predict(collate(samples[i : i + 25])[0])]
    model.train()
    truth = [(keypoints, object_area(torch.tensor(boxes)).numpy()) for _, boxes, keypoints in samples]
    found = [(r[:, 6:].unflatten(1, (-1, 3)).numpy(), r[:, 4].numpy()) for r in rows]
    return keypoint_ap(truth, found, sigmas_for(len(COCO_17.names)).numpy())


def train(
    backbone: Backbone, style: str, train_set: Sequence[Sample], val_set: Sequence[Sample], images_seen: int, batch: int = 8,
    lr: float = 2e-3, points: int = 6, log: Callable[[str], object] = print,
) -> tuple[Graft, list[dict[str, float]]]:  # fmt: skip
    """Train from the backbone's present weights.

    Args:
        images_seen: image images_seen in all, the budget.
        points: how often to evaluate, evenly spaced, the last at the end.

    Returns:
        The model, and its curve: images_seen, core seconds of training, and pycocotools' figures.
    """
    model = Graft(backbone, style).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    steps, rng = images_seen // batch, np.random.default_rng(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    curve: list[dict[str, float]] = []
    order: list[int] = []
    spent, begun = 0.0, time.process_time()
    for step in range(steps):
        while len(order) < batch:
            order += rng.permutation(len(train_set)).tolist()
        chosen, order = [train_set[i] for i in order[:batch]], order[batch:]
        images, targets = collate([flipped(s) if rng.random() < 0.5 else s for s in chosen])
        loss = model.loss(images, targets, step / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if (step + 1) * points // steps > step * points // steps:
            spent += time.process_time() - begun
            point = {"images_seen": (step + 1) * batch, "core_seconds": round(spent, 1), **evaluate(model, val_set)}
            curve.append(point)
            log(
                f"{point['images_seen']:6d} images seen, {spent:5.0f} core s: "
                f"AP {point['AP']:.3f}, AP50 {point['AP50']:.3f}, loss {loss:.2f}"
            )
            begun = time.process_time()
    return model, curve


def main(backbone: Callable[[], Backbone], about: str | None) -> None:
    """Command line of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=STYLES, default="erpose")
    parser.add_argument("--images-seen", type=int, default=24000, help="image images_seen, the budget")
    parser.add_argument("--images", type=Path, help="keep the drawn images in this file, and take them from it the next time")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--overfit", type=int, metavar="N", help="train and evaluate on the same N images: a quick check, no more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="write the curve here, as JSON")
    parser.add_argument("--save", type=Path, help="write the trained weights here")
    args = parser.parse_args()
    train_set, val_set = images(args.images)
    if args.overfit:
        train_set = val_set = train_set[: args.overfit]
    torch.manual_seed(args.seed)
    model, curve = train(backbone(), args.style, train_set, val_set, args.images_seen, args.batch, args.lr)
    if args.out:
        record = {"style": args.style, "parameters": sum(p.numel() for p in model.parameters()), "curve": curve}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.save:
        torch.save(model.state_dict(), args.save)
