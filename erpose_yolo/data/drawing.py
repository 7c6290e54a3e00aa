"""Skeletons drawn: of batches, with scores and no boxes, and of results, with the limbs of any data set."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.engine.results import BaseTensor, Results
from ultralytics.utils.plotting import Annotator, colors

from erpose_yolo.data.painting import draw_circles, draw_skeleton

LIMB_CONFIDENCE = 0.25  # visibility below which Ultralytics draws neither a keypoint nor its limbs
SHOWN = 0.25  # least score of a prediction in a grid
MOST, LONGEST = 16, 1920  # images in a grid, and its longest side in pixels


def plot_skeletons(
    batch: dict[str, Any],
    paths: Sequence[str],
    file: Path,
    limbs: Sequence[tuple[int, int]],
    persons: dict[str, Any] | None = None,
    on_plot: Callable[[Path], None] | None = None,
) -> None:
    """Save a grid of a batch with its persons drawn.

    Args:
        batch: collated batch; its ``img`` is drawn on, and its own labels are drawn where ``persons`` is None.
        paths: image files, for the captions.
        file: where the image goes.
        limbs: pairs of keypoint indices (data.skeletons.limbs_of).
        persons: predictions with ``keypoints`` (N, K, D) in pixels, ``conf`` (N,) and ``batch_idx`` (N,).
        on_plot: told of the saved file.
    """
    images = batch["img"][:MOST].detach().float().cpu().numpy()
    images = images * 255 if images.max(initial=0) <= 1 else images
    n, c, h, w = images.shape
    side = math.ceil(math.sqrt(n))
    scale = min(LONGEST / (side * max(h, w)), max(1.0, 320 / max(h, w)))  # small inputs are drawn larger
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
            if scores is not None and scores[j] < SHOWN:
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


class ErrorBars(BaseTensor):
    """What ER-Pose knows of a result beside the stock fields: ``result.erpose``.

    It is indexed, sliced and moved with the result that it belongs to.

    Attributes:
        data: (P, K + 1), ``sigma`` and ``oks``.
    """

    def __init__(self, data: torch.Tensor | np.ndarray, orig_shape: tuple[int, int]) -> None:
        super().__init__(data[None] if data.ndim == 1 else data, orig_shape)

    @property
    def sigma(self) -> torch.Tensor | np.ndarray:
        """(P, K) standard deviation of each keypoint along one axis, in pixels of the original image (method.errorbars)."""
        return self.data[:, :-1]

    @property
    def oks(self) -> torch.Tensor | np.ndarray:
        """(P,) OKS that each person may be expected to have with its label (method.errorbars.pose_oks)."""
        return self.data[:, -1]

    @property
    def covariance(self) -> torch.Tensor | np.ndarray:
        """(P, K, 2, 2) the same as covariance matrices, square pixels: ``supervision.KeyPoints`` takes them."""
        unit = np.eye(2, dtype=np.float32) if isinstance(self.data, np.ndarray) else torch.eye(2).to(self.data)
        return self.sigma[..., None, None] ** 2 * unit


class PoseResults(Results):
    """Results with error bars, whose drawings have the limbs of their data set.

    Stock results draw COCO's limbs for 17 keypoints, whatever these are, and none for any other number.

    Attributes:
        erpose: error bars; None where the network has none (``ERPoseHead.has_error_bars``).
        limbs: pairs of keypoint indices from 0; None leaves the choice to Ultralytics.
        show_sigma: default of ``plot(sigma=)``.
        save_sigma: default of ``save_txt(save_sigma=)``.
    """

    erpose: ErrorBars | None = None
    limbs: Sequence[tuple[int, int]] | None = None
    show_sigma = save_sigma = False

    @classmethod
    def of(cls, result: Results, limbs: Sequence[tuple[int, int]] | None, bars: torch.Tensor | None = None) -> PoseResults:
        """Results with the content of others.

        Args:
            result: any.
            limbs: see the class.
            bars: (P, K + 1) of :class:`ErrorBars`.
        """
        ours = cls(result.orig_img, result.path, result.names)
        ours.__dict__.update(vars(result))
        ours.limbs = limbs
        ours._keys = tuple(dict.fromkeys((*ours._keys, "erpose")))
        if bars is not None:
            ours.erpose = ErrorBars(bars, ours.orig_shape)
        return ours

    def new(self) -> PoseResults:
        """Empty results of the same image, which are drawn and saved alike."""
        empty = self.of(super().new(), self.limbs)
        empty.show_sigma, empty.save_sigma = self.show_sigma, self.save_sigma
        return empty

    def plot(self, *args: Any, sigma: bool | None = None, **kwargs: Any) -> Any:
        """Draw the results.

        Args:
            *args, **kwargs: as ``ultralytics.engine.results.Results.plot`` takes them.
            sigma: circles of two standard deviations around keypoints, 86 % of which lie that near; None for ``show_sigma``.

        Raises:
            ValueError: there are no error bars to be drawn.
        """
        options = inspect.signature(Results.plot).bind(self, *args, **kwargs)
        options.apply_defaults()
        chosen = {name: value for name, value in options.arguments.items() if name != "self"}
        bars = self._sigma(self.show_sigma if sigma is None else sigma)
        limbs = self.limbs if chosen["kpt_line"] else None
        if self.keypoints is None or (limbs is None and bars is None):
            return super().plot(**chosen)
        show, save, pil = chosen["show"], chosen["save"], chosen["pil"]
        kpt_line = chosen["kpt_line"] and self.limbs is None
        canvas = super().plot(**{**chosen, "kpt_line": kpt_line, "show": False, "save": False, "pil": False})
        annotator = Annotator(np.ascontiguousarray(canvas), chosen["line_width"])
        ids = self.boxes.id.tolist() if self.boxes is not None and self.boxes.is_track else None
        poses = self.keypoints.cpu().numpy().data
        for person, pose in enumerate(poses):
            one = colors(ids[person] if ids else len(poses) - 1 - person, True)  # as stock colours its keypoints
            # without visibility, (0, 0) marks a missing keypoint
            seen = pose[:, 2] >= LIMB_CONFIDENCE if pose.shape[1] == 3 else pose.any(1)
            if limbs is not None:
                each = [one if chosen["color_mode"] == "instance" else colors(number, True) for number in range(len(limbs))]
                draw_skeleton(annotator.im, np.trunc(pose[:, :2]), seen, limbs, each, math.ceil(annotator.lw / 2))
            if bars is not None:
                draw_circles(annotator.im, pose[seen, :2], 2 * bars[person, seen], one)
        if show:
            annotator.show(self.path)
        if save:
            annotator.save(chosen["filename"] or f"results_{Path(self.path).name}")
        return annotator.result(pil)

    def save_txt(self, txt_file: str | Path, save_conf: bool = False, save_sigma: bool | None = None) -> str:
        """Append the results to a text file.

        Args:
            txt_file, save_conf: as ``ultralytics.engine.results.Results.save_txt`` takes them.
            save_sigma: the K error bars at the end of each line, in pixels of the original image; None for the attribute.

        Returns:
            Path of the file.

        Raises:
            ValueError: there are no error bars to be saved.
        """
        bars = self._sigma(self.save_sigma if save_sigma is None else save_sigma)
        if bars is None:
            return str(super().save_txt(txt_file, save_conf))
        with TemporaryDirectory() as folder:
            rows = Path(super().save_txt(Path(folder) / "rows.txt", save_conf))
            lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        if lines:
            Path(txt_file).parent.mkdir(parents=True, exist_ok=True)
            with open(txt_file, "a", encoding="utf-8") as file:
                file.writelines(f"{line} {' '.join(f'{x:g}' for x in bar)}\n" for line, bar in zip(lines, bars, strict=True))
        return str(txt_file)

    def summary(self, normalize: bool = False, decimals: int = 5, sigma: bool = False) -> list[dict[str, Any]]:
        """One dictionary per person.

        Args:
            normalize, decimals: as ``ultralytics.engine.results.Results.summary`` takes them.
            sigma: add ``sigma`` to ``keypoints``, in pixels of the original image whatever ``normalize`` is.

        Raises:
            ValueError: there are no error bars.
        """
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        bars = self._sigma(sigma)
        for row, bar in zip(rows, () if bars is None else bars):
            row["keypoints"]["sigma"] = bar.astype(float).round(decimals).tolist()
        return rows

    def to_df(self, *args: Any, sigma: bool = False, **kwargs: Any) -> Any:
        """Stock Polars data frame of :meth:`summary`, with error bars if wanted."""
        return super(PoseResults, self._summed_up(sigma)).to_df(*args, **kwargs)

    def to_csv(self, *args: Any, sigma: bool = False, **kwargs: Any) -> str:
        """Stock CSV of :meth:`summary`, with error bars if wanted."""
        return str(super(PoseResults, self._summed_up(sigma)).to_csv(*args, **kwargs))

    def to_json(self, *args: Any, sigma: bool = False, **kwargs: Any) -> str:
        """Stock JSON of :meth:`summary`, with error bars if wanted."""
        return str(super(PoseResults, self._summed_up(sigma)).to_json(*args, **kwargs))

    def _summed_up(self, sigma: bool) -> PoseResults:
        """These results, whose summary has error bars without being asked: the stock tables do not ask."""
        if not sigma:
            return self
        asked = copy(self)
        asked.summary = functools.partial(self.summary, sigma=True)  # type: ignore[method-assign]
        return asked

    def _sigma(self, wanted: bool) -> np.ndarray | None:
        """(P, K) error bars where they are wanted.

        Raises:
            ValueError: there are none.
        """
        if not wanted:
            return None
        if self.erpose is None:
            raise ValueError(
                "These results have no error bars: their network has no trained spreads (ERPose.calibrate fits them), or "
                "is an export without them (export it with sigma=True)."
            )
        return np.asarray(self.erpose.cpu().numpy().sigma)
