"""Skeletons drawn: of batches, with scores and no boxes, and of results, with the limbs of any data set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.engine.results import Results
from ultralytics.utils.plotting import Annotator, colors

from erpose_yolo.data.painting import draw_skeleton

LIMB_CONFIDENCE = 0.25  # visibility below which Ultralytics draws neither a keypoint nor its limbs


def plot_skeletons(
    batch: dict[str, Any],
    paths: Sequence[str],
    file: Path,
    limbs: Sequence[tuple[int, int]],
    persons: dict[str, Any] | None = None,
    min_score: float = 0.25,
    on_plot: Callable[[Path], None] | None = None,
    max_images: int = 16,
    max_size: int = 1920,
) -> None:
    """Save a grid of a batch with its persons drawn.

    Args:
        batch: collated batch; its ``img`` is drawn on, and its own labels are drawn where ``persons`` is None.
        paths: image files, for the captions.
        file: where the image goes.
        limbs: pairs of keypoint indices (data.skeletons.limbs_of).
        persons: predictions with ``keypoints`` (N, K, D) in pixels, ``conf`` (N,) and ``batch_idx`` (N,).
        min_score: predictions below it are not drawn.
        on_plot: told of the saved file.
        max_images: most images in the grid.
        max_size: longest side of the grid in pixels.
    """
    images = batch["img"][:max_images].detach().float().cpu().numpy()
    images = images * 255 if images.max(initial=0) <= 1 else images
    n, c, h, w = images.shape
    side = math.ceil(math.sqrt(n))
    scale = min(max_size / (side * max(h, w)), max(1.0, 320 / max(h, w)))  # small inputs are drawn larger
    th, tw = max(1, round(h * scale)), max(1, round(w * scale))
    grid = np.full((side * th, side * tw, 3), 255, np.uint8)

    source = batch if persons is None else persons
    keypoints = source["keypoints"].detach().float().cpu().numpy().copy()
    if persons is None:  # labels are normalised
        keypoints[..., :2] *= [w, h]
    keypoints[..., :2] *= scale
    image_of = source["batch_idx"].detach().cpu().numpy().reshape(-1)
    scores = None if persons is None else persons["conf"].detach().float().cpu().numpy()

    for i in range(n):
        tile = np.ascontiguousarray(images[i][[0, 0, 0] if c < 3 else [0, 1, 2]].transpose(1, 2, 0), np.uint8)
        tile = cv2.resize(tile, (tw, th), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
        annotator = Annotator(tile, line_width=max(1, round(min(tw, th) / 250)))
        for count, j in enumerate(np.flatnonzero(image_of == i)):
            if scores is not None and scores[j] < min_score:
                continue
            colour = colors(count, True)
            visible = keypoints[j, :, 2] if keypoints.shape[2] == 3 else np.full(keypoints.shape[1], 2.0)
            # labels say 0, 1, 2: labelled but occluded keypoints are rings
            rings = np.where((visible == 1) & (visible.max(initial=0) > 1), annotator.lw, -1).tolist()
            draw_skeleton(
                annotator.im, keypoints[j, :, :2], visible >= 0.5, limbs, [colour] * len(limbs), annotator.lw,
                [colour] * len(visible), rings,
            )  # fmt: skip
            if scores is not None:
                x, y = keypoints[j, :, 0].mean(), keypoints[j, :, 1].min()
                annotator.text([int(np.clip(x, 0, tw - 30)), int(np.clip(y, 14, th - 4))], f"{scores[j]:.2f}", colour)
        if i < len(paths):
            annotator.text([4, 14], Path(paths[i]).name[:40], (220, 220, 220))
        row, column = divmod(i, side)
        grid[row * th : (row + 1) * th, column * tw : (column + 1) * tw] = annotator.result()
    cv2.imwrite(str(file), grid)
    if on_plot is not None:
        on_plot(file)


class PoseResults(Results):
    """Results whose drawings have the limbs of their data set.

    Stock results draw COCO's limbs for 17 keypoints, whatever these are, and none for any other number.

    Attributes:
        limbs: pairs of keypoint indices from 0; None leaves the choice to Ultralytics.
    """

    limbs: Sequence[tuple[int, int]] | None = None

    @classmethod
    def of(cls, result: Results, limbs: Sequence[tuple[int, int]] | None) -> PoseResults:
        """Results with the content of others."""
        ours = cls(result.orig_img, result.path, result.names)
        ours.__dict__.update(vars(result))
        ours.limbs = limbs
        return ours

    def new(self) -> PoseResults:
        """Empty results of the same image, with the same limbs."""
        return self.of(super().new(), self.limbs)

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the results, see ``ultralytics.engine.results.Results.plot``."""
        options = inspect.signature(Results.plot).bind(self, *args, **kwargs)
        options.apply_defaults()
        chosen = {name: value for name, value in options.arguments.items() if name != "self"}
        if self.limbs is None or self.keypoints is None or not chosen["kpt_line"]:
            return super().plot(**chosen)
        show, save, pil = chosen["show"], chosen["save"], chosen["pil"]
        canvas = super().plot(**{**chosen, "kpt_line": False, "show": False, "save": False, "pil": False})
        annotator = Annotator(np.ascontiguousarray(canvas), chosen["line_width"])
        ids = self.boxes.id.tolist() if self.boxes is not None and self.boxes.is_track else None
        poses = self.keypoints.cpu().numpy().data
        for person, pose in enumerate(poses):
            one = colors(ids[person] if ids else len(poses) - 1 - person, True)  # as stock colours its keypoints
            each = [one if chosen["color_mode"] == "instance" else colors(number, True) for number in range(len(self.limbs))]
            # without visibility, (0, 0) marks a missing keypoint
            seen = pose[:, 2] >= LIMB_CONFIDENCE if pose.shape[1] == 3 else pose.any(1)
            draw_skeleton(annotator.im, np.trunc(pose[:, :2]), seen, self.limbs, each, math.ceil(annotator.lw / 2))
        if show:
            annotator.show(self.path)
        if save:
            annotator.save(chosen["filename"] or f"results_{Path(self.path).name}")
        return annotator.result(pil)
