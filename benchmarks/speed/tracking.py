"""Cost of a tracker: milliseconds of one core for a frame of 30 people, detections given.

    python -m benchmarks.speed.tracking

People walk over a textured ground of 640 x 480 px under a camera that sways; keypoints are true with noise. Each tracker has the
settings of its YAML. The time is that of ``update``, as process time; medians over frames, best of --repeats runs. The motion of
the camera, which ByteTrack does not look at, is part of it.
"""

from __future__ import annotations

import statistics
import time

import cv2
import numpy as np
import torch
from ultralytics.engine.results import Boxes, Keypoints
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.utils import YAML, IterableSimpleNamespace
from ultralytics.utils.checks import check_yaml

from benchmarks import common
from erpose_yolo import catalog
from erpose_yolo.engine.oks_tracker import NAME

SIZE = (480, 640)  # px, rows and columns


def frames(people: int, count: int) -> list[tuple[np.ndarray, Boxes, Keypoints]]:
    """Images, boxes and keypoints of a walk."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 255, (SIZE[0] + 80, SIZE[1] + 80, 3), np.uint8), (0, 0), 3)
    place, speed = rng.uniform((0, 0), (560, 380), (people, 2)), rng.normal(0, 3, (people, 2))
    pose = rng.uniform((0, 0), (40, 90), (people, 17, 2))
    out = []
    for t in range(count):
        sway = np.array([40 + 30 * np.sin(t / 9), 40 + 20 * np.sin(t / 7)]).round()
        xy = pose + (place + speed * t - sway + 40)[:, None] + rng.normal(0, 1, pose.shape)
        rows = np.concatenate((xy.min(1), xy.max(1), np.tile((0.9, 0), (people, 1))), 1).astype(np.float32)
        keypoints = torch.tensor(np.concatenate((xy, np.ones((people, 17, 1))), 2), dtype=torch.float32)
        x, y = sway.astype(int)
        image = np.ascontiguousarray(ground[y : y + SIZE[0], x : x + SIZE[1]])
        out.append((image, Boxes(rows, SIZE), Keypoints(keypoints, SIZE)))
    return out


def cost(tracker: str, film: list[tuple[np.ndarray, Boxes, Keypoints]], **settings: object) -> float:
    """Median milliseconds of an update."""
    given = YAML.load(check_yaml(catalog.resolve_tracker(f"{tracker}.yaml")))
    follow = TRACKER_MAP[tracker](args=IterableSimpleNamespace(**{**given, "device": "cpu", **settings}))
    spent = []
    for image, boxes, keypoints in film:
        start = time.process_time()
        follow.update(boxes, image, dets_del=(keypoints, None, None) if tracker == NAME else None)
        spent.append(1e3 * (time.process_time() - start))
    return statistics.median(spent[5:])


def summary(record: common.Record) -> str:
    """One sentence."""
    ms = record["ms"]
    each = ", ".join(f"{name} {value:.1f}" for name, value in ms.items())
    return f"{record['people']} people, ms of a core per frame: {each}; {NAME} is {ms[NAME] / ms['bytetrack']:.2f} of ByteTrack"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    film = frames(args.people, args.frames)
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        NAME: (NAME, {}),
        f"{NAME} without the camera": (NAME, {"gmc_method": "none"}),
        "bytetrack": ("bytetrack", {}),
        "botsort": ("botsort", {}),
    }
    ms = {name: min(cost(tracker, film, **settings) for _ in range(args.repeats)) for name, (tracker, settings) in kinds.items()}
    common.save("tracking-cost", {"people": args.people, "frames": args.frames, "ms": ms}, summary)


if __name__ == "__main__":
    main()
