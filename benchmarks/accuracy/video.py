"""Video: identities kept and keypoints steadied, on clips whose truth is known: moving synthetic people, and photos.

    pip install trackeval
    python -m benchmarks.accuracy.video                             # true keypoints with noise, no weights
    python -m benchmarks.accuracy.video --seeds 0 1 --weights "erpose-n=runs/compare/compare-synth/erpose-n-{seed}/weights/last.pt"
    python -m benchmarks.accuracy.video --stock --clips 2 --photos coco-people/data.yaml --cutouts coco-mini --photo-clips 12 \\
        --frames 60 --size 384 --imgsz 384 --mode NMS --cache detections --weights erpose-n=erpose-n.pt \\
        --trackers botsort tracktrack bytetrack --name video-trackers   # the trackers as ``yolo pose track`` runs them

Tracking: every model runs on every frame once. The --trackers then follow its persons through Ultralytics' own tracking
callback, as ``model.track(frame, persist=True)`` does, with a fresh tracker for each clip; YOLO26 in both modes. A track
starts at a score of --conf and continues down to 0.4 of it, which at 0.25 are the own settings of ByteTrack and BoT-SORT. With
--stock each tracker keeps all scores of its YAML, and gets the detections that ``model.track`` gives it. The rows of true
keypoints show what the trackers themselves lose; their scores are made up, so --stock leaves them out.

With --photo-clips, people who are cut out of photos walk through photos under a moving camera (moving_photos.py). --cache keeps
detections, so that another run of the same frames and weights compares trackers alone.

IDF1, HOTA, ID switches and recall come from TrackEval. A track matches a person where the OKS of its keypoints is 0.5 or more, by
COCO's sigmas and the area of the visible box: the same rule for all, and it does not depend on boxes. IDF1 by box IoU of 0.5
stands beside it; that evaluates the trackers' boxes, and ours are derived from keypoints. Recall is the first tracker's.

Smoothing: raw keypoints, the One-Euro filter of ``track(smooth=True)`` and ``smooth=offline``, on true keypoints with Gaussian
noise and on each model's tracks by the first tracker. The error is that of labelled keypoints of tracks matched to a person
(OKS 0.5, unsmoothed); a keypoint that leaves the image while its track lives is left out. Jitter: rms of the error's second
difference. Lag: the shift in time at which the keypoints fit the truth best, from a parabola through the squared error of
whole-frame shifts. Models' own errors last longer than a frame, unlike the noise, and no low pass removes those.

A finished run is not repeated; other weights are another run.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from ultralytics import YOLO
from ultralytics.engine.results import Results
from ultralytics.trackers.track import TRACKER_MAP, on_predict_postprocess_end
from ultralytics.utils import TQDM, YAML, IterableSimpleNamespace
from ultralytics.utils.checks import check_yaml

from benchmarks import common
from benchmarks.accuracy import moving_people, moving_photos
from benchmarks.common import modes
from erpose_yolo import ERPose
from erpose_yolo.data.drawing import PoseResults
from erpose_yolo.data.synth.scene import box_iou
from erpose_yolo.engine.offline import GAP, smooth_track
from erpose_yolo.engine.smoothing import PoseSmoother, error_bars
from erpose_yolo.method.oks import object_area, oks, sigmas_for

Clip = list[moving_people.Frame]
Detector = Callable[[Clip], list[Results]]
TRACKERS = ("bytetrack", "botsort")
GIVEN = 0.1  # score from which ``model.track`` gives detections to its tracker
LOW = 0.4  # of the starting score: 0.1 / 0.25, as in bytetrack.yaml and botsort.yaml
MATCH = 0.5  # OKS or IoU from which a track is a person
# made-up detectors: noise in px and share of missed persons
ORACLES = {"true keypoints": (0.0, 0.0), "1 px off": (1.0, 0.0), "2 px off, 10 % missed": (2.0, 0.1)}
SHIFTS = range(-6, 13)  # frames


def from_truth(clip: Clip, noise: float, missed: float) -> list[Results]:
    """Results of a made-up detector.

    Args:
        clip: the truth.
        noise: deviation of keypoints and box corners in px.
        missed: share of the persons left out, in each frame anew.
    """
    rng, out = np.random.default_rng(0), []
    for frame in clip:
        kept = rng.random(len(frame.ids)) >= missed
        keypoints, corners = frame.keypoints[kept].copy(), frame.boxes[kept]
        keypoints[..., :2] += rng.normal(0, noise, keypoints[..., :2].shape)
        keypoints[..., 2] = 1
        rows = np.concatenate((corners + rng.normal(0, noise, corners.shape), np.tile((0.9, 0), (len(corners), 1))), 1)
        tensors = {"boxes": torch.tensor(rows, dtype=torch.float32), "keypoints": torch.tensor(keypoints)}
        out.append(Results(frame.image, "", {0: "person"}, **tensors))
    return out


def lowest(start: float | None) -> float:
    """Score from which a tracker gets detections, by the score at which a track starts; None: as ``model.track``."""
    return GIVEN if start is None else LOW * start


def detector(name: str, path: Path, nms: bool | None, args: argparse.Namespace) -> Detector:
    """A trained model that finds the persons in every frame of a clip; what --cache holds of a frame is not computed again."""
    options = {"conf": lowest(args.conf), "imgsz": args.imgsz, "device": args.device, "verbose": False}
    options |= {} if nms is None else {"nms": nms}
    model = (ERPose if name.startswith("erpose") else YOLO)(str(path))
    weights = hashlib.sha256(path.read_bytes() + repr(sorted(options.items())).encode()).hexdigest()[:16]

    def find(image: np.ndarray) -> Results:
        stored = args.cache and Path(args.cache) / weights / f"{hashlib.sha256(image.tobytes()).hexdigest()[:32]}.pt"
        if not stored or not stored.is_file():
            found = model.predict(image, **options)[0].cpu()
            if not stored:
                return found
            stored.parent.mkdir(parents=True, exist_ok=True)
            bars = getattr(getattr(found, "erpose", None), "data", None)
            torch.save({"boxes": found.boxes.data, "keypoints": found.keypoints.data, "bars": bars}, stored)
        rows = torch.load(stored)
        result = Results(image, "", {0: "person"}, boxes=rows["boxes"], keypoints=rows["keypoints"])
        return result if rows["bars"] is None else PoseResults.of(result, None, rows["bars"])

    return lambda clip: [find(frame.image) for frame in clip]


def follow(found: list[Results], tracker: str, start: float | None) -> list[Results]:
    """Track what was found in the frames of a clip, as ``YOLO.track`` does.

    Args:
        found: Results of every frame, on the CPU.
        tracker: stem of a tracker YAML of Ultralytics.
        start: score at which a track starts; None leaves all scores to the YAML.
    """
    scores = {} if start is None else {"track_high_thresh": start, "new_track_thresh": start, "track_low_thresh": lowest(start)}
    settings = {**YAML.load(check_yaml(f"{tracker}.yaml")), **scores, "device": "cpu"}
    trackers = [TRACKER_MAP[tracker](args=IterableSimpleNamespace(**settings))]
    least = lowest(start)
    mode, dataset = SimpleNamespace(mode="track", task="pose"), SimpleNamespace(mode="image")
    out = []
    for result in found:
        step = SimpleNamespace(args=mode, dataset=dataset, trackers=trackers, results=[result[result.boxes.conf >= least]])
        on_predict_postprocess_end(step, persist=True)
        out += step.results
    return out


def persons(result: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Track ids (N,), boxes (N, 4) and keypoints (N, 17, 2) in px of a frame; none where nothing is tracked."""
    if result.boxes.id is None:
        return np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, 17, 2))
    return result.boxes.id.numpy().astype(np.int64), result.boxes.xyxy.numpy(), result.keypoints.xy.numpy()


def similarity(frame: moving_people.Frame, result: Results, by: str = "OKS") -> np.ndarray:
    """(M, N) OKS or box IoU of the true persons with the tracked ones."""
    _, boxes, keypoints = persons(result)
    if by == "IoU":
        return box_iou(frame.boxes, boxes)
    truth, found, corners = (torch.tensor(a, dtype=torch.float64) for a in (frame.keypoints, keypoints, frame.boxes))
    return oks(found[None], truth[:, None], object_area(corners)[:, None], sigmas_for(17)).numpy()


def score(clip: Clip, tracks: list[Results], by: str = "OKS") -> dict[str, float]:
    """TrackEval's figures of a clip, and the share of frames with identities."""
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise SystemExit(f"The tracking figures are TrackEval's: pip install trackeval ({error})") from None
    data: dict[str, Any] = {"num_timesteps": len(clip)}
    for kind, ids in (("gt", [f.ids for f in clip]), ("tracker", [persons(r)[0] for r in tracks])):
        known, index = np.unique(np.concatenate(ids), return_inverse=True)  # it wants them numbered from 0 on
        data[f"{kind}_ids"] = np.split(index, np.cumsum([len(i) for i in ids])[:-1])
        data |= {f"num_{kind}_ids": len(known), f"num_{kind}_dets": len(index)}
    data["similarity_scores"] = [similarity(frame, result, by) for frame, result in zip(clip, tracks)]
    quiet = {"THRESHOLD": MATCH, "PRINT_CONFIG": False}
    clear, identity = (m.eval_sequence(data) for m in (CLEAR(quiet), Identity(quiet)))
    kept = float(np.mean([result.boxes.is_track for result in tracks]))
    figures = {"IDF1": identity["IDF1"], "switches": clear["IDSW"], "recall": clear["CLR_Re"]}
    if by == "OKS":
        figures["HOTA"] = HOTA({"PRINT_CONFIG": False}).eval_sequence(data)["HOTA"].mean()
    return {**{k: float(v) for k, v in figures.items()}, "frames with ids": kept}


def matches(clip: Clip, tracks: list[Results]) -> list[list[tuple[int, int]]]:
    """For each frame the (row of a person, row of its track)."""
    out = []
    for frame, result in zip(clip, tracks):
        values = similarity(frame, result)
        pairs = zip(*linear_sum_assignment(np.where(values >= MATCH, values, 0), maximize=True))
        out.append([(int(p), int(r)) for p, r in pairs if values[p, r] >= MATCH])
    return out


def steadiness(clip: Clip, tracks: list[Results], pairs: list[list[tuple[int, int]]]) -> dict[str, float | None] | None:
    """Jitter (px per frame^2), rms error (px) and lag (frames) of tracked keypoints; None where too little is tracked; the lag is
    None where no shift fits the truth best.

    Args:
        clip: the truth.
        tracks: Results of every frame.
        pairs: what :func:`matches` says of the tracks before smoothing.
    """
    series: dict[tuple[int, int], np.ndarray] = defaultdict(np.full((2, len(clip), 17, 2), np.nan).copy)  # found, true
    for t, (frame, result) in enumerate(zip(clip, tracks)):
        ids, _, keypoints = persons(result)
        for p, r in pairs[t]:
            true = np.where(frame.keypoints[p, :, 2:] > 0, frame.keypoints[p, :, :2], np.inf)
            series[int(frame.ids[p]), int(ids[r])][:, t] = keypoints[r], true
    second, first, shifted = [], [], []
    for found, truth in series.values():
        truth = np.where(np.isinf(truth).any(0), np.nan, truth)  # a keypoint that leaves the image
        first.append(found - truth)
        second.append(np.diff(found - truth, 2, axis=0))
        now = range(SHIFTS[-1], len(clip) + SHIFTS[0])  # frames that have all shifts
        late = np.stack([found[now] - truth[[t - s for t in now]] for s in SHIFTS])
        shifted.append(late[:, ~np.isnan(late).any(0)])
    if not sum(s.size for s in shifted):
        return None
    cost = np.square(np.concatenate(shifted, 1)).mean(1)
    best, lag = int(cost.argmin()), None
    if 0 < best < len(SHIFTS) - 1:
        before, least, after = cost[best - 1 : best + 2]
        if before + after > 2 * least:
            lag = float(SHIFTS[best] + (before - after) / (2 * (before - 2 * least + after)))
    # of distances, so both coordinates count
    jitter, error = (math.sqrt(2 * np.nanmean(np.concatenate(parts) ** 2)) for parts in (second, first))
    return {"jitter": jitter, "error": error, "lag": lag}


def smoothed_offline(tracks: list[Results]) -> list[Results]:
    """Tracks of a clip smoothed by offline.smooth_track; gaps are not filled, so that all views have the same frames."""
    spots: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # id and piece: frame and row
    latest: dict[int, tuple[int, int]] = {}  # id: frame and piece
    for t, result in enumerate(tracks):
        for row, track in enumerate(persons(result)[0].tolist()):
            before, piece = latest.get(track, (t, 0))
            latest[track] = t, piece + (t - before > GAP * moving_people.FPS)
            spots[track, latest[track][1]].append((t, row))
    moved = [result.keypoints.data.clone() for result in tracks]
    for where in spots.values():
        first, last = where[0][0], where[-1][0]
        xy = np.full((last - first + 1, 17, 2), np.nan)
        sigma = np.full(xy.shape[:2], np.nan)
        for t, row in where:
            xy[t - first] = tracks[t].keypoints.xy[row].numpy()
            bars = error_bars(tracks[t])
            sigma[t - first] = np.nan if bars is None else bars[row]
        smooth, _ = smooth_track(xy, moving_people.FPS, sigma)
        for t, row in where:
            moved[t][row, :, :2] = torch.from_numpy(smooth[t - first])
    out = []
    for result, keypoints in zip(tracks, moved):
        out.append(result.new())
        out[-1].boxes = result.boxes
        out[-1].update(keypoints=keypoints)
    return out


def figures(clip: Clip, found: list[Results], start: float | None, trackers: Sequence[str] = TRACKERS) -> common.Record:
    """All figures of what was found in a clip: by tracker, and of the first one's tracks before and after the filter."""
    tracks = {tracker: follow(found, tracker, start) for tracker in trackers}
    scores = {k: {**score(clip, v), "IDF1 by IoU": score(clip, v, "IoU")["IDF1"]} for k, v in tracks.items()}
    raw = tracks[trackers[0]]
    pairs, smoother = matches(clip, raw), PoseSmoother(moving_people.FPS)
    smooth = [smoother(result) for result in raw]
    views = {"raw": raw, "smooth": smooth, "offline": smoothed_offline(raw)}
    return {"tracking": scores, **{name: steadiness(clip, view, pairs) for name, view in views.items()}}


def table(record: common.Record) -> str:
    """Tracking in per cent and switches in a clip, smoothing as raw, One-Euro, offline: means over clips and seeds."""
    rows, trackers = [], record["setup"]["trackers"]
    for name, of in common.grouped(record["runs"]).items():
        kinds: dict[str, list[common.Record]] = defaultdict(list)
        for clip in (clip for r in of for clip in r["clips"]):
            kinds[clip.get("kind", "")].append(clip)
        for kind, clips in kinds.items():

            def mean(view: str, key: str, clips: list[common.Record] = clips) -> str:
                values = [clip[view][key] for clip in clips if clip.get(view) and clip[view][key] is not None]
                return f"{np.mean(values):.2f}" if values else "-"

            def tracked(key: str, tracker: str, scale: float = 100, clips: list[common.Record] = clips) -> str:
                values = [clip["tracking"][tracker].get(key) for clip in clips]
                return "-" if None in values else f"{scale * np.mean(values):.1f}"

            cells = [
                ", ".join((*(tracked(key, t) for key in ("IDF1", "IDF1 by IoU", "HOTA")), tracked("switches", t, 1)))
                for t in trackers
            ]
            steady = [" / ".join(mean(view, key) for view in ("raw", "smooth", "offline")) for key in ("jitter", "error", "lag")]
            rows.append([f"{name}{kind and ', '}{kind}", *cells, tracked("recall", trackers[0]), *steady])
    header = ["IDF1, by box, HOTA, switches", *trackers, "recall", "jitter, px/frame^2", "error, px", "lag, frames"]
    return common.markdown(header, rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="NAME as in compare.py; {seed} is filled in")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    starts = parser.add_mutually_exclusive_group()
    starts.add_argument("--conf", type=float, default=0.25, help="score at which a track starts")
    starts.add_argument("--stock", dest="conf", action="store_const", const=None, help="leave all scores to the trackers' YAMLs")
    parser.add_argument("--trackers", nargs="+", default=list(TRACKERS), choices=list(TRACKER_MAP), help="first the smoothed one")
    parser.add_argument("--photos", metavar="DATA", help="data YAML with 17 keypoints: clips of its photos, moving_photos.py")
    parser.add_argument("--cutouts", metavar="FOLDER", help="of people to paste, with images/train, labels/train, masks/train")
    parser.add_argument("--split", default="val", choices=["train", "val"], help="of the photos: tune on train, judge on val")
    parser.add_argument("--photo-clips", type=int, default=0, help="clips of photos, beside the drawn ones")
    parser.add_argument("--mode", choices=["one-to-one", "NMS"], help="of stock models; both where they have both")
    parser.add_argument("--cache", metavar="FOLDER", help="keeps the detections of each frame")
    parser.add_argument("--imgsz", type=int, default=320, help="input of the networks in px")
    parser.add_argument("--size", type=int, default=320, help="side of the images in px")
    parser.add_argument("--clips", type=int, default=4, help="drawn clips")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--people", nargs=2, type=int, default=[5, 8], help="persons in a clip, fewest and most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="video", help="of the result file")
    args = parser.parse_args()
    detectors: dict[tuple[str, int, str], Callable[[], Detector]] = {}  # model and mode, seed, what decides the figures
    for name, (noise, missed) in (ORACLES if args.conf is not None else {}).items():
        detectors[name, 0, "truth"] = partial(partial, from_truth, noise=noise, missed=missed)
    for text in args.weights:
        name, _, file = text.partition("=")
        for seed in args.seeds if "{seed}" in file else args.seeds[:1]:
            path = Path(file.replace("{seed}", str(seed)))
            if not path.is_file():
                parser.error(f"--weights {text}: there is no file {path}. Give NAME=FILE of a trained .pt.")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for mode, nms in modes(name).items():
                if args.mode and mode and mode.strip() != args.mode:
                    continue
                detectors[name + mode, seed, digest] = partial(detector, name, path, nms, args)

    if not detectors:
        parser.error("--stock leaves out made-up detections, so nothing is left to track. Fix: give --weights NAME=FILE.")
    setup = {k: getattr(args, k) for k in ("conf", "imgsz", "size", "clips", "frames", "people", "trackers")}
    if args.photo_clips:
        if not args.photos or not args.cutouts:
            parser.error("--photo-clips takes --photos DATA and --cutouts FOLDER.")
        setup |= {"photos": "/".join(Path(args.photos).parts[-2:]), "split": args.split, "photo clips": args.photo_clips}
    people = tuple(args.people)
    drawn = [moving_people.clip(s, args.size, args.frames, people) for s in TQDM(range(args.clips), desc="clips", disable=False)]
    clips = [("drawn", clip) for clip in drawn]
    if args.photo_clips:
        made = moving_photos.clips(args.photos, args.cutouts, args.split, args.photo_clips, args.frames, args.size)
        clips += [("photos", clip) for clip in made]

    def run(model: str, seed: int, source: str) -> list[dict[str, Any]]:
        find = detectors[model, seed, source]()
        return [{"clips": [{"kind": kind, **figures(clip, find(clip), args.conf, args.trackers)} for kind, clip in clips]}]

    todo = [dict(zip(("model", "seed", "source"), key)) for key in detectors]
    common.complete(args.name, setup, todo, run, table)


if __name__ == "__main__":
    main()
