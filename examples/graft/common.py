"""What the grafts share: a pose head in plain torch, a reader of labels, the training loop and the evaluation. No ultralytics.

An example brings a Backbone; everything of the method itself comes from erpose_yolo.method, and nothing from the rest.

Shapes: B images, A cells of all levels in a row (finest first), K = 17 keypoints. Units: pixels of the network input.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.io import ImageReadMode, read_image
from torchvision.ops import nms

from erpose_yolo.method.boxes import decode_boxes, default_margins
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs, make_cells, select_rows
from erpose_yolo.method.losses import BatchContext, ERPoseLoss, Side, Targets, box_overlap, plain_oks_loss
from erpose_yolo.method.oks import mean_over_labelled, object_area, sigmas_for
from erpose_yolo.method.rows import make_rows

STYLES = ("erpose", "stock")
SIZE = 96  # pixels, the side of an image
TRAIN_IMAGES, VAL_IMAGES = 6000, 200
NMS_IOU = 0.7  # Ultralytics' default
MAX_PERSONS = 20  # what pycocotools counts in an image
K = 17  # COCO's keypoints: the nose, then left and right in turn
FLIP = [0, *(k + 1 if k % 2 else k - 1 for k in range(1, K))]
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


class StockLoss(ERPoseLoss):
    """The style of YOLOv8-pose: a box branch, cells ranked by score^0.5 * IoU^6 of boxes, one-to-many scores alone (and NMS),
    1 - exp(-e) for the keypoints; gains in the proportions that Ultralytics has. Candidate cells are those of ER-Pose."""

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
        style: "erpose" has scores for both assignments, that share the poses, and heatmaps on the finest level; "stock" has
            one-to-many scores and boxes.
        width: channels of the towers.
    """

    def __init__(self, channels: Sequence[int], style: str, width: int = 64) -> None:
        super().__init__()
        scores = ("one2many", "one2one") if style == "erpose" else ("one2many",)
        pose = {"offsets": 2 * K, "visibility": K, "spread": K}
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
        self.heatmap = last(width, K, few) if style == "erpose" else None

    def forward(self, x: Sequence[Tensor]) -> HeadOutputs:
        """Raw outputs of (B, channels, H, W) maps, finest first."""
        features = {name: [tower(level) for tower, level in zip(towers, x)] for name, towers in self.towers.items()}
        out = {
            name: torch.cat([conv(f).flatten(2) for conv, f in zip(convs, features[self.tower_of[name]])], 2)
            for name, convs in self.outs.items()
        }
        offsets = out["offsets"].unflatten(1, (K, 2))
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
        self.head = PoseHead(backbone.channels, style)
        for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.1  # SSDLite has 0.03 and D0 0.01: running statistics would lag behind short trainings
        self.criterion = (ERPoseLoss if style == "erpose" else StockLoss)(sigmas_for(K), self.strides)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Raw outputs from (B, 3, S, S) uint8 RGB."""
        return self.head(self.backbone((images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)))

    def loss(self, images: Tensor, targets: Targets, progress: float) -> Tensor:
        return self.criterion(self(images), targets, progress)[0]

    @torch.no_grad()
    def predict(self, images: Tensor, conf: float = 0.001) -> list[Tensor]:
        """Rows (n, 6 + 3K) per image, best first: x1 y1 x2 y2 score class, then x y visibility per keypoint."""
        out = self(images)
        pose, end_to_end = out.one2one, out.one2one_scores is not None
        part = {"offsets": pose.offsets, "visibility": pose.visibility, "log_spread": pose.log_spread}
        part["scores"] = (out.one2one_scores if end_to_end else out.one2many_scores).sigmoid()
        part |= {} if end_to_end else {"box": pose.box}
        cells = make_cells(out.shapes, self.strides, pose.offsets)
        rows = make_rows(part, *cells, None, default_margins(K), "expected_oks" if end_to_end else "score").transpose(1, 2)
        found = select_rows(rows, conf, rows.shape[1])
        return [(r if end_to_end else r[nms(r[:, :4], r[:, 4], NMS_IOU)])[:MAX_PERSONS] for r in found]


def read(data: Path, split: str, count: int) -> list[Sample]:
    """The first ``count`` images of a split whose persons are all at least a quarter of the side tall and wide on average: what
    a backbone learns from random weights on a CPU.

    Args:
        data: folder of images/SPLIT/*.jpg and labels/SPLIT/*.txt, rows of ``class cx cy w h`` and 17 times ``x y visibility``.

    Returns:
        (image (3, S, S) uint8 RGB, boxes (N, 4) corners in pixels, keypoints (N, 17, 3) pixels and visibility).

    Raises:
        ValueError: there are fewer such images, or they are not SIZE px.
    """
    out: list[Sample] = []
    for file in sorted((data / "labels" / split).glob("*.txt")):
        rows = np.array([line.split() for line in file.read_text().splitlines()], np.float64).reshape(-1, 5 + 3 * K)
        centre, side, keypoints = rows[:, 1:3] * SIZE, rows[:, 3:5] * SIZE, rows[:, 5:].reshape(-1, K, 3) * (SIZE, SIZE, 1)
        if not len(rows) or side.prod(1).min() < (SIZE / 4) ** 2 or not (keypoints[..., 2] > 0).any(1).all():
            continue
        image = read_image(str(data / "images" / split / f"{file.stem}.jpg"), ImageReadMode.RGB).numpy()
        if image.shape[1:] != (SIZE, SIZE):
            raise ValueError(f"{data}: {file.stem}.jpg is {image.shape[2]} x {image.shape[1]} px. Fix: images of {SIZE} px.")
        out.append((image, np.concatenate((centre - side / 2, centre + side / 2), 1), keypoints))
        if len(out) == count:
            return out
    raise ValueError(f"{data}: {len(out)} images of {split} show large persons alone, {count} are needed. Fix: a larger set.")


def flipped(sample: Sample) -> Sample:
    image, boxes, keypoints = sample
    width = image.shape[2]
    keypoints = keypoints[:, FLIP] * (-1, 1, 1) + (width, 0, 0)
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


def in_coco(images: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> COCO:
    """Persons in pycocotools' form, of images with boxes (N, 4), keypoints (N, 17, 3) and scores (N,)."""
    coco, persons = COCO(), []
    for n, image in enumerate(images):
        for box, pose, score in zip(*image):
            person = {"id": len(persons) + 1, "image_id": n, "category_id": 1, "iscrowd": 0, "score": score}
            person |= {"bbox": [*box[:2], *box[2:] - box[:2]], "area": float(object_area(torch.tensor(box)))}
            persons.append({**person, "keypoints": pose.ravel(), "num_keypoints": (pose[:, 2] > 0).sum()})
    coco.dataset = {"images": [{"id": n} for n in range(len(images))], "categories": [{"id": 1}], "annotations": persons}
    coco.createIndex()
    return coco


def evaluate(model: Graft, samples: Sequence[Sample]) -> dict[str, float]:
    """pycocotools' AP and AP50 on held-out images."""
    model.eval()
    rows = [r.double() for i in range(0, len(samples), 25) for r in model.predict(collate(samples[i : i + 25])[0])]
    model.train()
    truth = [(boxes, keypoints, np.ones(len(boxes))) for _, boxes, keypoints in samples]
    found = [(r[:, :4].numpy(), r[:, 6:].unflatten(1, (K, 3)).numpy(), r[:, 4].numpy()) for r in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(in_coco(truth), in_coco(found), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"AP": float(judge.stats[0]), "AP50": float(judge.stats[1])}


def train(
    backbone: Backbone, style: str, train_set: Sequence[Sample], val_set: Sequence[Sample], images_seen: int, batch: int = 8,
    lr: float = 2e-3, points: int = 6, log: Callable[[str], object] = print,
) -> tuple[Graft, list[dict[str, float]]]:  # fmt: skip
    """Train from the backbone's present weights.

    Args:
        images_seen: images in all, the budget.
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
            log(f"{point['images_seen']:6d} images seen, {spent:5.0f} core s: AP {point['AP']:.3f}, AP50 {point['AP50']:.3f}")
            begun = time.process_time()
    return model, curve


def main(backbone: Callable[[], Backbone], about: str | None) -> None:
    """Command line of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=STYLES, default="erpose")
    parser.add_argument("--images-seen", type=int, default=24000, help="the budget, in images")
    parser.add_argument("--data", type=Path, default=Path("people"), help="folder of images and labels (people)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="write the curve here, as JSON")
    parser.add_argument("--save", type=Path, help="write the trained weights here")
    args = parser.parse_args()
    train_set, val_set = read(args.data, "train", TRAIN_IMAGES), read(args.data, "val", VAL_IMAGES)
    torch.manual_seed(args.seed)
    model, curve = train(backbone(), args.style, train_set, val_set, args.images_seen, args.batch, args.lr)
    if args.out:
        record = {"style": args.style, "parameters": sum(p.numel() for p in model.parameters()), "curve": curve}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.save:
        torch.save(model.state_dict(), args.save)
