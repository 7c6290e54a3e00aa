"""Converters between COCO-format keypoint annotations and YOLO-pose labels: ``erpose convert``.

    erpose convert coco      FILE.json --images DIR --out DIR [--split NAME] [--link | --copy | --none]
    erpose convert crowdpose FILE.json --images DIR --out DIR [--split NAME] [--link | --copy | --none]
    erpose convert labels    data.yaml --split NAME --out FILE.json

The first two write, for any number of keypoints K:

    OUT/labels/SPLIT/*.txt         a row a person: `cls cx cy w h` and K times `x y v`, as shares of the image
    OUT/images/SPLIT/*             symbolic links to the images, or copies; with --none a list OUT/SPLIT.txt instead
    OUT/annotations/SPLIT.json     the sidecar: the original annotations without polygons
    OUT/data.yaml                  a second run with another --split adds that split

How the annotations become rows:

* Visibility stays 0, 1, 2. A keypoint with 0 is written `0 0 0`, wherever it was.
* **Ignore regions.** A crowd region (`iscrowd: 1`) and a person without a labelled keypoint become an ordinary row with
  their box and all keypoints `0 0 0`. Training in this package makes an ignore region of such a row: what is found there is
  neither a hit nor background (``erpose_yolo.nn.network.to_targets``). Stock Ultralytics accepts the row too.
* Boxes are clipped to the image. Keypoints outside of it are moved onto its edge if within 1 px, else they become
  unlabelled, as they are in augmented images in any case. A person with keypoints and without a box gets the keypoints' box.
* An image without annotations gets an empty label file: it is background, and known to be.
* Rows have 8 digits, so nothing that training uses moves by 1e-3 px.

What rows cannot say: the segment's area, `iscrowd`, the crowd index, ids, and what was clipped. That is what the sidecar
is for; `annotations:` in data.yaml names it, and exact evaluation reads it. ``erpose convert labels`` uses it to give each
row its area and ids back.

Everything is written into a temporary folder inside OUT and renamed at the end; after an error nothing is left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from erpose_yolo.data.convert.box_free import generate_box_free, strip_boxes
from erpose_yolo.data.data_yaml import SPLITS, DataError

__all__ = ["DataError", "generate_box_free", "main", "strip_boxes"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``erpose convert``.

    Returns:
        0, 1 where the files cannot be converted, 2 on wrong usage.
    """
    try:
        args = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        return _to_json(args) if args.format == "labels" else _to_labels(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "erpose convert", description="COCO-format keypoint annotations to YOLO-pose labels, and back."
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="coco | crowdpose | labels")
    for name, text in (
        ("coco", "COCO-format keypoint JSON, any keypoints, to labels"),
        ("crowdpose", "CrowdPose JSON (14 keypoints, crowd index) to labels"),
    ):
        one = formats.add_parser(name, help=text, description=f"{text}.")
        one.add_argument("file", type=Path, metavar="FILE.json")
        one.add_argument("--images", type=Path, metavar="DIR", help="folder of the images")
        one.add_argument("--out", type=Path, required=True, metavar="DIR", help="root of the data set")
        one.add_argument("--split", choices=SPLITS, default="train", help="default: train")
        how = one.add_mutually_exclusive_group()
        how.add_argument("--link", dest="how", action="store_const", const="link", help="link the images (default)")
        how.add_argument("--copy", dest="how", action="store_const", const="copy", help="copy the images")
        how.add_argument("--none", dest="how", action="store_const", const="none", help="only list the images, in OUT/SPLIT.txt")
        one.set_defaults(how="link")
        one.add_argument("--category", metavar="NAME", help="the keypoint category, where there are several")
        one.add_argument("--skip-empty", action="store_true", help="leave out images without a labelled keypoint")
        one.add_argument("--skip-missing", action="store_true", help="leave out images whose file is absent")
        one.add_argument("--overwrite", action="store_true", help="replace this split")
    back = formats.add_parser("labels", help="labels to COCO-format keypoint JSON", description="Labels to COCO JSON.")
    back.add_argument("data", type=Path, metavar="data.yaml")
    back.add_argument("--split", choices=SPLITS, default="val", help="default: val")
    back.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    back.add_argument("--overwrite", action="store_true", help="replace the file")
    return parser


def _to_labels(args: argparse.Namespace) -> int:
    from erpose_yolo.data.convert.from_coco import convert
    from erpose_yolo.data.data_yaml import load_data_yaml

    done = convert(
        file=args.file,
        out=args.out,
        images=args.images,
        split=args.split,
        how=args.how,
        crowdpose=args.format == "crowdpose",
        category=args.category,
        skip_empty=args.skip_empty,
        skip_missing=args.skip_missing,
        overwrite=args.overwrite,
    )
    counts = (
        (done.crowds, "of all annotations are crowd regions: ignore regions in training"),
        (done.other_category, "annotations of other categories left out"),
        (done.left_out, "images without a labelled keypoint left out"),
        (done.missing, "images left out, their files are absent"),
        (done.boxes_clipped, "boxes clipped to the image"),
        (done.boxes_derived, "boxes made from the keypoints, there was none"),
        (done.keypoints_moved, "keypoints moved onto the image's edge, at most 1 px"),
        (done.keypoints_outside, "keypoints outside the image, now unlabelled"),
        (done.without_area, "annotations have no area: evaluation takes 0.53 of their box, and says so"),
    )
    print(f"{args.out}: {args.split}: {done.images} images, {done.persons} persons, {done.regions} ignore regions")
    for count, text in counts:
        if count:
            print(f"  {count} {text}")
    for note in done.notes:
        print(f"  {note}")
    print(f"  area, crowd and ids are not in the rows: they are in {args.out / 'annotations' / args.split}.json")
    if args.how == "none":
        print(f"  put the images at {args.out / 'images' / args.split}")
    data = load_data_yaml(args.out / "data.yaml").data
    for split in ("train", "val"):
        if not data.get(split):
            print(f"  next: the same with --split {split}; Ultralytics asks for train and val")
    return 0


def _to_json(args: argparse.Namespace) -> int:
    from erpose_yolo.data.convert.to_coco import convert

    done = convert(args.data, args.split, args.out, args.overwrite)
    print(f"{args.out}: {done.images} images, {done.annotations} annotations")
    if done.matched < done.annotations:
        print(f"  {done.annotations - done.matched} annotations with the area rule, 0.53 of the box: not in a sidecar")
    return 0
