"""Command line: `erpose synth --out DIR`, or `python -m erpose_yolo.data.synth --out DIR`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .config import SynthConfig
from .dataset import contact_sheet, draw_image, generate, write_data_yaml
from .pose import ACTIVITIES
from .scene import max_iou


def bench(cfg: SynthConfig, seconds: float) -> str:
    """Render and JPEG-encode for a while on one core and say how fast it went and what the people are like."""
    cv2.setNumThreads(1)
    draw_image(cfg, "train", 0)  # fills the noise banks
    start, start_cpu, done, crowd, persons = time.perf_counter(), time.process_time(), 0, [], 0
    while time.perf_counter() - start < seconds:
        image, boxes, _ = draw_image(cfg, "train", done)
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        crowd.append(max_iou(boxes))
        persons += len(boxes)
        done += 1
    rate, rate_cpu = done / (time.perf_counter() - start), done / (time.process_time() - start_cpu)
    mean = float(np.concatenate(crowd).mean()) if persons else 0.0
    return (
        f"{rate:.1f} images/s ({rate_cpu:.1f} per second of CPU time) on one core at {cfg.size} px; "
        f"{persons / done:.2f} persons per image, mean largest box IoU {mean:.3f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and do what they ask."""
    default = SynthConfig()
    parser = argparse.ArgumentParser(prog="python -m erpose_yolo.data.synth", description="Make synthetic images of people.")
    parser.add_argument("--out", type=Path, help="write a data set into this folder")
    parser.add_argument("--images", type=int, default=default.images, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=default.val_images, help="validation images (%(default)s)")
    parser.add_argument("--size", type=int, default=default.size, help="long side in px (%(default)s)")
    parser.add_argument("--people", type=int, nargs=2, default=default.people, metavar=("MIN", "MAX"), help="persons per image")
    parser.add_argument("--crowding", type=float, default=default.crowding, help="wanted mean largest box IoU, 0 to 0.8")
    parser.add_argument("--empty", type=float, default=default.empty, help="fraction of images without people (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--aspect", type=float, default=default.aspect, help="width / height (%(default)s)")
    parser.add_argument("--activities", nargs="+", default=(), choices=ACTIVITIES, metavar="NAME", help="what people do (all)")
    parser.add_argument("--plain", action="store_true", help="even backgrounds, nothing in front of people, no blur or grain")
    parser.add_argument("--workers", type=int, default=None, help="processes (all cores)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of 24 images to this file")
    parser.add_argument("--bench", type=float, metavar="SECONDS", help="print the images per second on one core")
    args = parser.parse_args(argv)
    try:
        cfg = SynthConfig(
            images=args.images,
            val_images=args.val,
            size=args.size,
            people=tuple(args.people),
            crowding=args.crowding,
            empty=args.empty,
            seed=args.seed,
            aspect=args.aspect,
            activities=tuple(args.activities),
            plain=args.plain,
        )
    except ValueError as error:
        parser.error(str(error))
    if not (args.out or args.sheet or args.bench):
        parser.error("nothing to do: give --out, --sheet or --bench")
    if args.bench:
        print(bench(cfg, args.bench))
    if args.sheet:
        print(contact_sheet(cfg, 24, args.sheet))
    if args.out:
        file = write_data_yaml(generate(args.out, cfg, args.workers))
        print(f"{file}: {cfg.images} training and {cfg.val_images} validation images of {cfg.size} px. Next:")
        print(f"  yolo pose train model=erpose-n.pt data={file} imgsz={-(-cfg.size // 32) * 32}")


if __name__ == "__main__":
    main()
