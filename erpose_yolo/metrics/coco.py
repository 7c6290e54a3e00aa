"""Keypoint AP as pycocotools computes it, from arrays."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def keypoint_ap(
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    sigmas: np.ndarray,
) -> dict[str, float]:
    """COCO keypoint metrics of one class.

    Args:
        truth: per image, joints (N, K, 3) in pixels with visibility, and areas (N,) in square pixels.
        found: per image, joints (M, K, 2) in pixels and scores (M,). pycocotools keeps the best 20 of an image.
        sigmas: (K,) OKS sigmas.

    Returns:
        The ten figures of pycocotools by name, -1 where undefined.

    Raises:
        ValueError: truth and found are not of the same images.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} images of truth, but {len(found)} of predictions")
    annotations, results = [], []
    for image, ((joints, areas), (poses, scores)) in enumerate(zip(truth, found, strict=True), 1):
        for pose, area in zip(joints, areas, strict=True):
            low, high = pose[:, :2].min(0), pose[:, :2].max(0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(area),
                    "keypoints": pose.reshape(-1).tolist(),
                    "num_keypoints": int((pose[:, 2] > 0).sum()),
                    "iscrowd": 0,
                }
            )
        for pose, score in zip(poses, scores, strict=True):
            flat = np.concatenate((pose[:, :2], np.ones((len(pose), 1))), 1).reshape(-1)
            results.append({"image_id": image, "category_id": 1, "keypoints": flat.tolist(), "score": float(score)})
    if not results:
        return {name: 0.0 for name in STATS}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "keypoints")
        judge.params.kpt_oks_sigmas = np.asarray(sigmas, dtype=np.float64)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(STATS, (float(v) for v in judge.stats), strict=True))
