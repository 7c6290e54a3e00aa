"""Benchmarks: every figure of README.md, and the scripts that measure it. Run them from the root of the repository.

    python -m benchmarks.accuracy.compare --help

accuracy/    training runs and what they find: compare, ablation, video, graft, ...
speed/       size, latency, step, evaluate, import_cost
robustness/  crash, endurance, export
results/     one JSON per table, and the plots
report.py    renders README.md's tables from results/
"""

import os

# Ultralytics reads both while it is imported. Measurements use all cores unless told otherwise, and install nothing.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
