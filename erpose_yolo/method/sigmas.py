"""Published OKS sigmas, and the one for keypoints without any. Standard library only: command line tools start without torch."""

from __future__ import annotations

# COCO's per-keypoint standard deviations (pycocotools.cocoeval.Params), nose to right ankle.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip

# CrowdPose's evaluation (xtcocotools.cocoeval): COCO's for the keypoints that both have, left shoulder to neck.
CROWDPOSE_SIGMAS = (0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079)

# Sigma of each keypoint of a data set that names none and is not COCO's: about COCO's mean (0.066), whatever K is. The
# 1/K of Ultralytics lets a keypoint of five lie 33 px off on a person of 80 x 160 px at a score of 0.61.
DEFAULT_SIGMA = 0.07
