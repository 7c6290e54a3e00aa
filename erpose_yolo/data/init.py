"""A data YAML to start from, for keypoints of one's own: ``erpose init``.

    erpose init my-keypoints.yaml --names nose,left_hand,right_hand,left_foot,right_foot
    erpose init my-keypoints.yaml --keypoints 5

Images and labels go beside the file. What can be read from the names is filled in (``flip_idx``; limbs and sigmas of a
published skeleton), the rest is a placeholder that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from erpose_yolo.data.skeletons import flip_from_names, known_skeleton, sides_of
from erpose_yolo.method.sigmas import DEFAULT_SIGMA

MOST = 1000  # more keypoints than any network of this package is meant for: a typing error


def template(file_name: str, names: Sequence[str]) -> str:
    """Text of a data YAML with comments.

    Args:
        file_name: of the YAML, for the commands in its comments.
        names: K names of keypoints, all different.
    """
    k = len(names)
    known = known_skeleton(names)
    flip, alone = flip_from_names(names)
    if alone:
        mirror = f"CHECK: {', '.join(alone)} has a side and no partner, and stays in its place here"
    elif any(side for side, _ in sides_of(names)):
        mirror = "read from left and right in kpt_names"
    else:
        mirror = "CHECK: no name says left or right, so every keypoint stays; pair them here if they have sides"
    limbs = known.limbs if known else tuple((0, j) for j in range(1, k))
    drawn = f"of {known.title}" if known else "CHECK: a placeholder, the first keypoint joined to every other"
    sigmas = known.sigmas if known else (DEFAULT_SIGMA,) * k
    source = f"those of {known.title}" if known else f"{DEFAULT_SIGMA} for each, about the mean of COCO's"
    return f"""\
# Persons with {k} keypoints. Lines marked CHECK hold a guess.
#
# Images: images/train and images/val beside this file. Labels: labels/train and labels/val, a text file for each image, of
# the same name, with a row for each person:
#   class  box: centre x, centre y, width, height  keypoints: x y v, x y v, ...
# All coordinates are shares of the image's width and height, 0 to 1. v: 0 not labelled (write 0 0 0), 1 hidden, 2 visible.
# Rows without the four numbers of the box are fine: the box then follows from the keypoints.
#
#   erpose check {file_name} --show sheet.jpg
#   yolo pose train model=erpose-n.pt data={file_name}
train: images/train
val: images/val

names: # classes
  0: person

# Number of keypoints, and values of each: 3 for x y v, 2 for x y (a negative coordinate then means not labelled).
kpt_shape: [{k}, 3]

# Names of the keypoints, in the order of the label rows, for each class.
kpt_names:
  0: {_flow(list(names), 5)}

# Which keypoint takes the place of each in a mirrored image: half of the training images are mirrored (fliplr=0.5).
# {mirror}
flip_idx: {_flow(flip, 10)}

# Lines between keypoints, counted from 0, for drawings alone.
# {drawn}
skeleton: {_flow([list(limb) for limb in limbs], 10)}

# How exactly each keypoint is to be found. A keypoint that is 2 * sigma * sqrt(area of the person) off scores 0.61. COCO
# has 0.025 for eyes, 0.062 for wrists, 0.107 for hips. Smaller is stricter, in the metric and in training.
# {source}
kpt_oks_sigmas: {_flow(list(sigmas), 16)}
"""


def _flow(value: Any, indent: int) -> str:
    """A list in YAML's flow style, its lines after the first one indented."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=120 - indent, allow_unicode=True)
    return text.strip().replace("\n", "\n  ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``erpose init``.

    Returns:
        0 where the file was written, 2 on wrong usage, with a message.
    """
    parser = argparse.ArgumentParser("erpose init", description="Write a data YAML for keypoints of your own.")
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="data YAML to write; images and labels go beside it")
    parser.add_argument("--keypoints", type=int, metavar="K", help="number of keypoints of a person")
    parser.add_argument("--names", metavar="A,B,...", help="their names, with left and right in them where they have sides")
    try:
        args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        names = [name.strip() for name in args.names.split(",")] if args.names is not None else None
        if args.file.suffix not in (".yaml", ".yml"):
            parser.error(f"{args.file}: give it a name that ends in .yaml, which Ultralytics asks for")
        if names is None and args.keypoints is None:
            parser.error("give --keypoints 5, or --names nose,left_hand,...")
        if names is None:
            if not 1 <= args.keypoints <= MOST:
                parser.error(f"--keypoints {args.keypoints}: give a number from 1 to {MOST}")
            names = [f"keypoint_{i}" for i in range(args.keypoints)]
        if args.keypoints not in (None, len(names)):
            parser.error(f"--keypoints {args.keypoints}, but --names has {len(names)}: leave --keypoints out")
        if not all(names) or len(set(names)) < len(names):
            parser.error(f"--names {args.names}: every keypoint needs a name of its own")
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        with args.file.open("x", encoding="utf-8") as file:
            file.write(template(str(args.file), names))
    except FileExistsError:
        print(f"error: {args.file} is there already and stays as it is. Give another name, or remove it.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {args.file} cannot be written: {error.strerror}. Make its folder first.", file=sys.stderr)
        return 2
    print(
        f"{args.file}: {len(names)} keypoints. Look at the lines marked CHECK, and put images and labels where it says. Then:\n"
        f"  erpose check {args.file} --show sheet.jpg\n"
        f"  yolo pose train model=erpose-n.pt data={args.file}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
