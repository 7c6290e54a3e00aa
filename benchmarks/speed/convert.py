"""Time and memory of ``erpose convert coco`` on a made-up JSON as large as COCO's person_keypoints_train2017.json.

118,287 images, 262,465 annotations with polygons like COCO's (237 MB there, more here), crowd regions and persons without
keypoints in COCO's shares. The images are empty files, since the converter reads nothing but their names. The conversion runs
in a process of its own, which says its peak resident memory (Linux).

    python -m benchmarks.speed.convert [--images 118287] [--annotations 262465] [--folder DIR]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import common
from erpose_yolo.data.skeletons import COCO_17

LIMIT_S, LIMIT_GIB = 60.0, 1.5


def make(file: Path, folder: Path, images: int, annotations: int, seed: int = 0) -> int:
    """Write the JSON and empty image files; return the size of the JSON in bytes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    limbs = [[a + 1, b + 1] for a, b in COCO_17.limbs]
    names = ",".join(f'"{name}"' for name in COCO_17.names)
    with file.open("w") as out:
        out.write('{"info":{"description":"made up"},"licenses":[],"images":[')
        for i in range(images):
            name = f"{i:012d}.jpg"
            os.close(os.open(folder / name, os.O_CREAT))
            out.write(
                f'{"," if i else ""}{{"license":4,"file_name":"{name}","coco_url":"http://images.example.org/train2017/'
                f'{name}","height":480,"width":640,"date_captured":"2013-11-15 02:41:42","flickr_url":'
                f'"http://farm5.example.org/4065/4606131023_13862befe0_z.jpg","id":{i}}}'
            )
        out.write('],"annotations":[')
        owners = np.sort(rng.integers(0, images, annotations))
        for n, owner in enumerate(owners.tolist()):
            w, h = rng.uniform(20, 300), rng.uniform(30, 400)
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            crowd = n % 32 == 0  # COCO: a few per cent of the regions
            if crowd:
                counts = ",".join(map(str, rng.integers(1, 400, 500)))
                segment = f'{{"counts":[{counts}],"size":[480,640]}}'
            else:
                outline = np.round(rng.uniform((x, y), (x + w, y + h), (rng.integers(20, 90), 2)), 2).ravel()
                segment = f"[[{','.join(map(str, outline.tolist()))}]]"
            points = rng.uniform((x, y), (x + w, y + h), (17, 2)).astype(int)
            seen = np.zeros(17, int) if crowd or n % 5 < 2 else rng.integers(0, 3, 17)  # 2 of 5 have no keypoints
            keypoints = np.concatenate((points, seen[:, None]), 1) * (seen[:, None] > 0)
            out.write(
                f'{"," if n else ""}{{"segmentation":{segment},"num_keypoints":{(seen > 0).sum()},"area":{w * h / 2:.4f},'
                f'"iscrowd":{int(crowd)},"keypoints":[{",".join(map(str, keypoints.ravel().tolist()))}],"image_id":{owner},'
                f'"bbox":[{x:.2f},{y:.2f},{w:.2f},{h:.2f}],"category_id":1,"id":{n}}}'
            )
        out.write(
            f'],"categories":[{{"supercategory":"person","id":1,"name":"person","keypoints":[{names}],"skeleton":{limbs}}}]}}'
        )
    return file.stat().st_size


def summary(record: common.Record) -> str:
    """What was converted, time and memory."""
    return (
        f"{record['seconds']:.1f} s and {record['peak']:.2f} GiB for {record['bytes'] / 1e6:.0f} MB of JSON, "
        f"{record['images']:,} images, {record['annotations']:,} annotations"
    )


def main() -> int:
    """Make, convert, save; 1 if a limit is exceeded."""
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=262_465)
    parser.add_argument("--folder", type=Path, help="where the made-up files go; default: a temporary folder")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        root = Path(scratch)
        size = make(root / "made-up.json", root / "images", args.images, args.annotations)
        command = ["coco", "made-up.json", "--images", "images", "--out", "set"]
        said = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
        code = f"from erpose_yolo.data.convert import main; assert not main({command!r}); {said}"
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        peak = int(done.stdout.split()[-2]) / 2**20  # of that process alone: what the kernel says of children includes this one
        labels = sum(1 for entry in os.scandir(root / "set" / "labels" / "train") if entry.name.endswith(".txt"))
        assert labels == args.images, (labels, args.images)

    record = {"bytes": size, "images": args.images, "annotations": args.annotations, "seconds": seconds, "peak": peak}
    common.save("convert", record, summary)
    return int(seconds > LIMIT_S or peak > LIMIT_GIB)


if __name__ == "__main__":
    raise SystemExit(main())
