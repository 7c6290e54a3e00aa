"""Make the scores of weights mean what another model's mean: 0.25, 0.5 and 0.7 pass as many persons as they do there.

    python -m benchmarks.accuracy.calibrate --weights best.pt --reference yolo26n-pose.pt --data coco-people.yaml

Persons are sorted by the root of the score times the expected OKS (decode.confidence). Thresholds that people
know from other models need not fit that: the root lifts the neighbours of a person's best cell, the OKS lowers everybody. An
affine map of the score's logit, ``a * logit + b``, is fitted so that both models pass equally many persons at these thresholds, on
a sample of **training** photos, and folded into the last convolutions of the score towers: no operation is added, and every export
has it. Without --reference the weights' own scores stand for it, which is right where their score towers are copies of a teacher's.
The order changes only where score and expected OKS disagree; judge that with ``erpose eval`` on other photos.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset
from ultralytics.utils import TQDM

from benchmarks import common
from erpose_yolo import ERPose, catalog

THRESHOLDS = (0.25, 0.5, 0.7)  # of predict; of visible keypoints and much user code; of TrackTrack
LEAST = -8.0  # logit below which a cell is nobody's under any sensible map
SLACK = 0.02  # relative difference of the numbers that is let be; chosen with erpose-n.pt, on the photos that judge it
FACTORS, SHIFTS = np.geomspace(0.25, 4, 81), np.linspace(-6, 6, 241)  # candidates of a and b


def training_photos(data: str) -> list[str]:
    """Files of the training folders of a data YAML, sorted."""
    folders = check_det_dataset(str(catalog.resolve_data(data)))["train"]
    return [
        str(file)
        for folder in ([folders] if isinstance(folders, str) else folders)
        for file in sorted(Path(folder).iterdir())
        if file.suffix[1:].lower() in IMG_FORMATS
    ]


def sample(data: str, count: int, seed: int = 0) -> list[str]:
    """Training photos of a data YAML, ``count`` at random, the same each time."""
    files = training_photos(data)
    return random.Random(seed).sample(files, min(count, len(files)))


def measure(weights: str | Path, photos: Sequence[str], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the scores, and the expected OKS, of all cells that may pass a threshold.

    Args:
        weights: a checkpoint with spreads.
        photos: files.
        **options: of predict.

    Returns:
        logits (N,) and expected OKS (N,).

    Raises:
        ValueError: persons are sorted by the score alone.
    """
    model = ERPose(str(weights))
    head = model.model.model[-1]
    if head.confidence != "expected_oks":
        raise ValueError(f"{weights} sorts persons by the score alone, which a map of it cannot calibrate against an OKS.")
    logits, quality = [], []

    def look(head: nn.Module, _: Any, output: Any) -> None:
        """Score and confidence of every cell of the pyramid."""
        head.layout = "cells"
        sorted_by = head.rows(output[1])[..., 4].double()
        head.layout = "rows"
        logit = output[1].one2one_scores.double().amax(1)
        some = logit > LEAST
        logits.append(logit[some].cpu().numpy())
        quality.append((sorted_by / logit.sigmoid().sqrt())[some].cpu().numpy())

    hook = head.register_forward_hook(look)
    for photo in TQDM(photos, desc="weights", disable=False):
        model.predict(photo, verbose=False, **options)
    hook.remove()
    return np.concatenate(logits), np.concatenate(quality)


def reference_scores(weights: str | Path, photos: Sequence[str], **options: Any) -> np.ndarray:
    """Scores (N,) of a pose model of Ultralytics, of YOLO26 in its one-to-one mode."""
    model = YOLO(str(weights))
    options |= {"nms": False} if hasattr(model.model.model[-1], "one2one_cv2") else {}
    scores = []
    for photo in TQDM(photos, desc="reference", disable=False):
        scores.append(model.predict(photo, conf=min(THRESHOLDS), verbose=False, **options)[0].boxes.conf.cpu().numpy())
    return np.concatenate(scores)


def confidences(logits: np.ndarray, quality: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """What persons are sorted by (N,) with the map in place: decode.confidence of the mapped score."""
    return np.sqrt(1 / (1 + np.exp(-factor * logits - shift))) * quality


def fit(
    logits: np.ndarray, quality: np.ndarray, wanted: Sequence[int], thresholds: Sequence[float] = THRESHOLDS
) -> tuple[float, float]:
    """The map nearest to none after which as many persons pass each threshold as are wanted, within SLACK.

    If there is none, the one with the least squares of the logarithms of the ratios.

    Args:
        logits, quality: (N,) of :func:`measure`.
        wanted: numbers of persons.
        thresholds: of the confidence.

    Returns:
        a and b of ``a * logit + b``, a > 0.
    """
    cost = np.zeros((len(FACTORS), len(SHIFTS)))
    for number, threshold in zip(wanted, thresholds, strict=True):
        passable = quality > threshold  # the root is at most 1
        root = (threshold / quality[passable]) ** 2
        needed = np.log(root / (1 - root))  # mapped logit that passes
        for row, factor in enumerate(FACTORS):
            least = np.sort(needed - factor * logits[passable])  # shifts that pass each
            passed = np.searchsorted(least, SHIFTS)
            cost[row] += np.log((passed + 1) / (number + 1)) ** 2
    rows, columns = np.nonzero(cost <= max(cost.min(), len(thresholds) * SLACK**2) + 1e-9)
    nearest = np.argmin(np.abs(np.log(FACTORS[rows])) + np.abs(SHIFTS[columns]))
    return float(FACTORS[rows[nearest]]), float(SHIFTS[columns[nearest]])


def fold(head: nn.Module, factor: float, shift: float) -> None:
    """Put the map into the last convolutions of the head's score towers, of both assignments that are there."""
    with torch.no_grad():
        for towers in (head.one2many_score, head.one2one_score):
            for tower in towers or ():
                tower[-1].weight.mul_(factor)
                tower[-1].bias.mul_(factor).add_(shift)


def calibrate(weights: str | Path, reference: str | Path | None, photos: Sequence[str], **options: Any) -> tuple[float, float, str]:
    """Fit a map on photos.

    Args:
        weights: a checkpoint with spreads.
        reference: weights of a pose model; None for the scores of ``weights`` themselves.
        photos: files.
        **options: of predict.

    Returns:
        a, b, and a table of how many persons pass each threshold.
    """
    logits, quality = measure(weights, photos, **options)
    scores = 1 / (1 + np.exp(-logits)) if reference is None else reference_scores(reference, photos, **options)

    def passed(values: np.ndarray) -> list[int]:
        return [int((values > threshold).sum()) for threshold in THRESHOLDS]

    factor, shift = fit(logits, quality, passed(scores))
    rows = [["reference", *passed(scores)], ["as trained", *passed(confidences(logits, quality))]]
    rows.append([f"{factor:.2f} * logit {shift:+.2f}", *passed(confidences(logits, quality, factor, shift))])
    return factor, shift, common.markdown(["persons shown from", *THRESHOLDS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of an ER-Pose model")
    parser.add_argument("--reference", help="pose model whose scores people know; without it the scores of --weights alone")
    parser.add_argument("--data", required=True, help="data YAML; photos of its training split are taken")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file of the calibrated weights; without it the fit is only printed")
    args = parser.parse_args()
    photos = sample(args.data, args.photos)
    factor, shift, table = calibrate(args.weights, args.reference, photos, imgsz=args.imgsz, device=args.device)
    print(table)
    if args.out:
        model = ERPose(args.weights)
        fold(model.model.model[-1], factor, shift)
        model.save(args.out)


if __name__ == "__main__":
    main()
