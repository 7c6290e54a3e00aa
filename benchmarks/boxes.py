"""How good are boxes that nobody predicts? IoU of boxes derived from labelled joints with the labelled boxes.

    python benchmarks/boxes.py --data path/to/coco-mini/data.yaml

Margins are fitted on the train split and judged on val.
"""

from __future__ import annotations

import argparse

import common
import numpy as np
import torch

from erpose_yolo.decode import default_margins, derive_boxes, fit_margins
from erpose_yolo.losses import box_overlap


def people(data: str, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints (N, 17, 3) and corner boxes (N, 4) of a split, in pixels of the letterboxed picture."""
    samples = common.load_split(data, split, size, lambda rows: len(rows) > 0)
    joints = torch.tensor(np.concatenate([s[2] for s in samples]))
    b = torch.tensor(np.concatenate([s[1] for s in samples]))
    return joints, torch.cat((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=640)
    args = parser.parse_args()
    joints, boxes = people(args.data, "val", args.size)
    count = (joints[..., 2] > 0).sum(1)
    groups = [("all", count > 0), ("12 to 17", count >= 12), ("6 to 11", (count >= 6) & (count < 12)), ("1 to 5", count < 6)]
    rows, record = [], {}
    fitted = fit_margins(*people(args.data, "train", args.size))
    for name, margins in (("fitted", fitted), ("default", default_margins(17)), ("none", torch.zeros(4, 20))):
        visible = (joints[..., 2] > 0).double().T[None]
        derived = derive_boxes(joints[..., :2].permute(1, 2, 0)[None], visible, margins)[0].T
        iou = box_overlap(derived, boxes)[0]
        record[name] = {label: float(iou[group].mean()) for label, group in groups}
        rows.append([name, *(f"{record[name][label]:.3f}" for label, _ in groups)])
    header = ["margins", *(f"{label} joints ({int(group.sum())})" for label, group in groups)]
    table = "mean IoU by labelled joints of the person (persons)\n\n" + common.markdown(header, rows)
    common.write("boxes", {"iou": record}, table)


if __name__ == "__main__":
    main()
