"""Training images cached on the GPU and augmented there, for a GPU that the CPU cannot feed.

A nano model on small images takes more images a second than loader processes make. :func:`cache_images` puts those of a run
into the GPU's memory, and every epoch draws from there: flipped, translated, scaled and recoloured as the run's own
``fliplr``, ``translate``, ``scale``, ``hsv_s`` and ``hsv_v`` say. The rest of Ultralytics' augmentation is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GREY = 114  # letterbox
MISSING = ("mosaic", "mixup", "cutmix", "copy_paste", "degrees", "shear", "perspective", "flipud", "bgr", "multi_scale")


class CachedLoader:
    """Stands in for the loader of a trainer: as many batches, in an order that follows from seed and epoch alone.

    Args:
        dataset: Ultralytics' data set of the training split.
        batch_size: images in a batch; the last one of an epoch may have fewer.
        args: configuration of the run.
        device: where the images are kept.
        epoch: epochs that are over, of a run that continues.

    Raises:
        ValueError: the run asks for augmentation that is not done here.
    """

    num_workers = 0

    def __init__(self, dataset: Any, batch_size: int, args: Any, device: torch.device, epoch: int = 0) -> None:
        asked = [name for name in MISSING if getattr(args, name, 0)]
        if asked:
            raise ValueError(f"cached images know no {', '.join(asked)}. Fix: set them to 0.")
        self.dataset, self.batch_size, self.args, self.device = dataset, batch_size, args, device
        self.generator = torch.Generator()  # trainers that seed it by epoch may
        self.epoch = epoch
        size, most = args.imgsz, max(1, max(len(label["cls"]) for label in dataset.labels))
        k, d = dataset.data["kpt_shape"]
        n = len(dataset.labels)
        images = np.full((n, size, size, 3), GREY, np.uint8)
        self.cls = torch.full((n, most), -1.0)  # -1: no person
        self.boxes, self.keypoints = torch.zeros(n, most, 2, 2), torch.zeros(n, most, k, 3)  # corners and keypoints in pixels
        for i, label in enumerate(dataset.labels):
            image = dataset.load_image(i)[0]
            h, w = image.shape[:2]
            top, left = (size - h) // 2, (size - w) // 2
            images[i, top : top + h, left : left + w] = image[..., ::-1]
            side, corner, m = torch.tensor([w, h]), torch.tensor([left, top]), len(label["cls"])
            box, points = torch.as_tensor(label["bboxes"]), torch.as_tensor(label["keypoints"])
            self.cls[i, :m] = torch.as_tensor(label["cls"])[:, 0]
            self.boxes[i, :m] = torch.stack((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1) * side + corner
            self.keypoints[i, :m, :, :2] = points[..., :2] * side + corner
            self.keypoints[i, :m, :, 2] = points[..., 2] if d == 3 else (points != 0).any(-1) * 2.0
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        swapped = torch.as_tensor(dataset.data.get("flip_idx") or list(range(k)))
        self.images, self.cls, self.boxes, self.keypoints, self.swapped = (
            x.to(device) for x in (self.images, self.cls, self.boxes, self.keypoints, swapped)
        )

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def reset(self) -> None:
        """Nothing is kept from epoch to epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.epoch += 1
        draw = torch.Generator(self.device).manual_seed(self.args.seed * 100_003 + self.epoch)
        for index in torch.randperm(len(self.images), generator=draw, device=self.device).split(self.batch_size):
            yield self.batch(index, draw)

    def batch(self, index: Tensor, draw: torch.Generator) -> dict[str, Any]:
        """Augmented batch, in the layout of Ultralytics.

        Args:
            index: (B,) images.
            draw: source of randomness.
        """
        b, size, args = len(index), self.images.shape[-1], self.args

        def chance(*shape: int) -> Tensor:
            return torch.rand(shape, generator=draw, device=self.device)

        mirror = torch.where(chance(b) < args.fliplr, -1.0, 1.0)
        scale = 1 + args.scale * (2 * chance(b) - 1)
        shift = args.translate * (2 * chance(b, 2) - 1) * size  # pixels
        images = recolour(self.images[index].float(), *(1 + (2 * chance(b) - 1) * g for g in (args.hsv_s, args.hsv_v)))
        zero = torch.zeros_like(scale)
        back = torch.stack(  # from places in the new image to those in the old, both in halves of a side from its centre
            (
                torch.stack((mirror / scale, zero, -mirror / scale * shift[:, 0] * 2 / size), 1),
                torch.stack((zero, 1 / scale, -1 / scale * shift[:, 1] * 2 / size), 1),
            ),
            1,
        )
        grid = F.affine_grid(back, list(images.shape), align_corners=False)
        images = (F.grid_sample(images - GREY, grid, align_corners=False) + GREY).clamp(0, 255)

        factor = torch.stack((mirror * scale, scale), 1)[:, None, None]  # (B, 1, 1, 2)
        offset = shift[:, None, None] + size / 2
        boxes = (self.boxes[index] - size / 2) * factor + offset
        boxes = torch.stack((boxes.amin(2), boxes.amax(2)), 2)
        before = (boxes[:, :, 1] - boxes[:, :, 0]).prod(-1)
        boxes = boxes.clamp(0, size)
        sides = boxes[:, :, 1] - boxes[:, :, 0]
        keypoints = self.keypoints[index]
        keypoints = torch.where(mirror[:, None, None, None] < 0, keypoints[:, :, self.swapped], keypoints)
        places = (keypoints[..., :2] - size / 2) * factor + offset
        inside = ((places >= 0) & (places <= size)).all(-1) & (keypoints[..., 2] > 0)
        keypoints = torch.cat((places, keypoints[..., 2:]), -1) * inside[..., None]
        # who is left: as Ultralytics' box_candidates, two pixels and a tenth of the box
        kept = (self.cls[index] >= 0) & (sides > 2).all(-1) & (sides.prod(-1) > 0.1 * before)
        image, person = kept.nonzero(as_tuple=True)
        sides, boxes, keypoints = sides[image, person], boxes[image, person], keypoints[image, person]
        return {
            "img": images,
            "batch_idx": image.float(),
            "cls": self.cls[index][image, person][:, None],
            "bboxes": torch.cat((boxes.mean(1), sides), 1) / size,
            "keypoints": torch.cat((keypoints[..., :2] / size, keypoints[..., 2:]), -1),
        }


def recolour(images: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Multiply saturation and value of HSV, each clamped to its range.

    Args:
        images: (B, 3, H, W) RGB, 0 to 255.
        saturation: (B,) factor.
        value: (B,) factor.
    """
    bright = images.amax(1, keepdim=True).clamp(min=1e-3)
    away = 1 - images / bright  # of each colour from the brightest; the largest of the three is the saturation
    pure = away.amax(1, keepdim=True).clamp(min=1e-3)
    more = torch.minimum(saturation[:, None, None, None], 1 / pure)
    return (bright * value[:, None, None, None]).clamp(max=255) * (1 - away * more)


def cache_images(trainer: Any) -> None:
    """Callback ``on_pretrain_routine_end``: replace the trainer's loader."""
    over = trainer.start_epoch  # known by now where a run continues
    trainer.train_loader = CachedLoader(trainer.train_loader.dataset, trainer.batch_size, trainer.args, trainer.device, over)
