"""Evaluation: COCO and CrowdPose keypoint AP, what crowds cost, keypoints, plots, and ``erpose eval``.

truth.py, predictions.py   what is compared, as flat arrays
matching.py                who is matched with whom, and average precision: pycocotools' rules, vectorised
coco.py, crowdpose.py      the two protocols
crowding.py, keypoints.py  duplicates and misses; OKS and PCK per keypoint
errorbars.py               errors in standard deviations
plots.py                   images of precision and recall, calibration, crowding
exact.py                   the part that rides along in an Ultralytics validator
evaluate.py                the ``erpose eval`` command
"""
