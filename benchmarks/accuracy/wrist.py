"""Plots the wrist of a synthetic walker over time: as found, through the One-Euro filter, and smoothed offline, with the truth.

python -m benchmarks.accuracy.wrist      # writes docs/wrist.png
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from benchmarks import common
from benchmarks.accuracy import moving_people
from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.data.synth.skeleton import coco_keypoints, sample_proportions, solve
from erpose_yolo.engine.offline import smooth_track
from erpose_yolo.engine.smoothing import OneEuro

SECONDS, NOISE, TALL = 2.4, 3.0, 240.0  # s, px, px
HIDDEN = slice(32, 40)  # frames


def walker(frames: int, seed: int = 3) -> np.ndarray:
    """(frames, 17, 2) keypoints in px of somebody who walks across the view."""
    rng = np.random.default_rng(seed)
    body = sample_proportions(rng)
    times, speed = np.arange(frames) / moving_people.FPS, 0.8 * body.height
    places = np.stack((speed * times, 0 * times, 0 * times), 1)
    person = moving_people.Person(rng, body, places, np.full(frames, 90.0), speed)
    person.swing = 25.0  # degrees
    out = []
    for t in range(frames):
        points, turned = solve(body, person.pose(t))
        keypoints, _ = coco_keypoints(body, points, turned)
        out.append((keypoints + places[t])[:, :2] * (TALL / body.height, -TALL / body.height))
    return np.array(out)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", default=str(common.RESULTS.parents[1] / "docs" / "wrist.png"))
    args = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    frames = round(SECONDS * moving_people.FPS)
    truth = walker(frames)
    found = truth + np.random.default_rng(0).normal(0, NOISE, truth.shape)
    found[HIDDEN] = np.nan
    offline, _ = smooth_track(found, moving_people.FPS, np.full(truth.shape[:2], NOISE))
    euro, online, waited = OneEuro(), np.full(truth.shape, np.nan), 0
    for t in range(frames):
        waited += 1
        if np.isfinite(found[t]).all():
            online[t] = euro(found[t], TALL / 2, waited / moving_people.FPS)
            waited = 0
    time, wrist = np.arange(frames) / moving_people.FPS, COCO_17.names.index("left_wrist")
    figure, axes = plt.subplots(figsize=(8, 3.2), dpi=110)
    height = {name: -xy[:, wrist, 1] for name, xy in (("truth", truth), ("raw", found), ("One-Euro", online), ("offline", offline))}
    axes.plot(time, height["truth"], color="0.75", lw=5, label="truth")
    axes.plot(time, height["raw"], ".", color="tab:red", ms=5, label="raw")
    axes.plot(time, height["One-Euro"], color="tab:orange", lw=1.4, label="One-Euro")
    axes.plot(time, height["offline"], color="tab:blue", lw=1.4, label="offline")
    axes.axvspan(time[HIDDEN.start], time[HIDDEN.stop - 1], color="0.93", label="hidden")
    axes.set_xlabel("seconds")
    axes.set_ylabel("height of the left wrist, px")
    axes.legend(ncols=5, loc="upper center", fontsize=8, frameon=False)
    axes.margins(y=0.2)
    figure.tight_layout()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    for name, xy in (("raw", found), ("One-Euro", online), ("offline", offline)):
        print(f"{name}: rms error {np.sqrt(np.nanmean(np.square(xy - truth).sum(2))):.2f} px")


if __name__ == "__main__":
    main()
