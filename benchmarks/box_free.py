"""Do labels need boxes? The same pictures learnt with the box columns and without them.

    python benchmarks/box_free.py --data path/to/coco-mini/data.yaml

As learn.py: pictures by heart, AP on these pictures. Without boxes the loss takes its areas from boxes derived from the
joints, as the label reader makes them; both are judged with the areas of the labelled boxes.
"""

from __future__ import annotations

import argparse

import common
import learn
import numpy as np

from erpose_yolo.data.labels import complete_boxes


def without_boxes(sample: tuple) -> tuple:
    """The sample as the reader of a row without a box gives it."""
    image, boxes, joints = sample
    size = image.shape[-1]
    derived = complete_boxes(np.full_like(boxes, np.nan), joints / [size, size, 1], (size, size))
    return image, derived * size, joints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="erpose-n")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--passes", type=int, default=4000)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    args.batch, args.lr, args.device, args.settings = 4, 2e-3, "cpu", {}

    samples = common.load_split(args.data, "train", args.size, lambda rows: 3 <= len(rows) <= 8)[: args.images]
    truth = [(joints, common.areas(boxes)) for _, boxes, joints in samples]
    rows, record = [], {}
    for labels, chosen in (("with boxes", samples), ("without boxes", [without_boxes(s) for s in samples])):
        runs = [learn.run(args.model, seed, args, chosen, truth) for seed in args.seeds]
        final = [r["curves"][""][-1]["AP"] for r in runs]
        record[labels] = runs
        rows.append([labels, *(f"{ap:.3f}" for ap in final), f"{np.mean(final):.3f}"])
    header = ["labels", *(f"AP, seed {seed}" for seed in args.seeds), "mean"]
    what = f"{args.images} pictures, {args.size} px, {args.passes} image passes"
    common.write("box_free", {"runs": record, "passes": args.passes}, f"{what}\n\n{common.markdown(header, rows)}")


if __name__ == "__main__":
    main()
