"""How good are boxes that nobody predicts? IoU of boxes derived from labelled keypoints with the labelled boxes.

    python -m benchmarks.accuracy.derived_boxes --data path/to/coco-mini/data.yaml

Margins are fitted on the train split and evaluated on val.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import common
from erpose_yolo.method.boxes import default_margins, derive_boxes, fit_margins
from erpose_yolo.method.losses import box_overlap


def people(data: str, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keypoints (N, 17, 3) and corner boxes (N, 4) of a split, in pixels of the letterboxed image."""
    samples = common.load_split(data, split, size, lambda rows: len(rows) > 0)
    return torch.tensor(np.concatenate([s[2] for s in samples])), common.corners(np.concatenate([s[1] for s in samples]))


def summary(record: common.Record) -> str:
    """Mean IoU for all persons, and by the number of labelled keypoints."""
    iou, persons = record["iou"], {k: n for k, n in record["persons"].items() if k != "all"}
    parts = ", ".join(f"{iou['fitted'][label]:.3f} with {label} of 17 ({n} persons)" for label, n in persons.items())
    all_of = {margins: f"{of['all']:.3f}" for margins, of in iou.items()}
    return f"mean IoU {all_of['fitted']}: {parts}; {all_of['default']} with default margins, {all_of['none']} with none"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=640)
    args = parser.parse_args()
    keypoints, boxes = people(args.data, "val", args.size)
    count = (keypoints[..., 2] > 0).sum(1)
    groups = [("all", count > 0), ("12 to 17", count >= 12), ("6 to 11", (count >= 6) & (count < 12)), ("1 to 5", count < 6)]
    record: dict[str, dict[str, float]] = {}
    fitted = fit_margins(*people(args.data, "train", args.size))
    for name, margins in (("fitted", fitted), ("default", default_margins(17)), ("none", torch.zeros(4, 20))):
        visible = (keypoints[..., 2] > 0).double().T[None]
        derived = derive_boxes(keypoints[..., :2].permute(1, 2, 0)[None], visible, margins)[0].T
        iou = box_overlap(derived, boxes)[0]
        record[name] = {label: float(iou[group].mean()) for label, group in groups}
    persons = {label: int(group.sum()) for label, group in groups}
    common.save("derived-boxes", {"iou": record, "persons": persons}, summary)


if __name__ == "__main__":
    main()
