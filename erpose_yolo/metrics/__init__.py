"""Evaluation: COCO and CrowdPose key point AP, what crowds cost, joints, plots, and ``erpose eval``.

truth.py, predictions.py   what is compared, as flat arrays
matching.py                who is matched with whom, and average precision: pycocotools' rules, vectorised
coco.py, crowdpose.py      the two protocols
crowding.py, joints.py     duplicates and misses; OKS and PCK per joint
plots.py                   pictures of these
validation.py              the part that rides along in an Ultralytics validator
evaluate.py                the ``erpose eval`` command
"""
