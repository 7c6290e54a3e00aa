"""Video: identities kept and joints steadied, on clips of moving synthetic people whose truth is known (moving.py).

    pip install trackeval
    python benchmarks/video.py                                    # true joints with noise, no weights
    python benchmarks/video.py --seeds 0 1 --weights "erpose-n=runs/compare/synth/erpose-n-{seed}/weights/last.pt" ...
    python benchmarks/video.py --stock --trackers tracktrack bytetrack --photos coco-mini/data.yaml --weights erpose-n=erpose-n.pt

Tracking: every model is run on every frame once, and ByteTrack and BoT-SORT then follow its persons through Ultralytics' own
tracking callback, what ``model.track(frame, persist=True)`` does, with a fresh tracker for each clip; YOLO26 in both of its
modes. A track starts at a score of --conf and lives on down to 0.4 of it, which at 0.25 are the trackers' own settings. Models
differ in how high they score: with several --conf the tables are of the first, and the last column is the best of all, chosen
for each model on these very clips. The rows of true joints show what the trackers themselves lose. With
--stock each tracker keeps the settings of its YAML and gets the detections that ``model.track`` gives it. With --photos half of
the clips are a camera that pans to and fro over a real photo of several people.

IDF1, ID switches, MOTA and HOTA come from TrackEval. A track is a person where the OKS of its joints is 0.5 or more (HOTA: .05
to .95), with COCO's sigmas and the area of the visible box: the same rule for all, which asks nothing of boxes. IDF1 by box IoU
of 0.5 stands beside it; there the trackers' boxes are judged, and ours are derived from joints.

Smoothing: the One-Euro filter of ``track(smooth=fps)`` on true joints with Gaussian noise and on each model's ByteTrack tracks.
The error is that of labelled joints of tracks matched to a person (OKS 0.5, unsmoothed); a joint that leaves the picture while
its track lives is left out. Jitter: rms of the error's second difference. Lag: the shift in time at which the joints fit the
truth best, from a parabola through the squared error of whole-frame shifts. Models' own errors last longer than a frame,
unlike the noise, and no low pass removes those.

A finished run is not repeated; other weights are another run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import moving
import numpy as np
import torch
from compare import cell, modes
from scipy.optimize import linear_sum_assignment
from ultralytics import YOLO
from ultralytics.engine.results import Results
from ultralytics.trackers.track import TRACKER_MAP, on_predict_postprocess_end
from ultralytics.utils import TQDM, YAML, IterableSimpleNamespace
from ultralytics.utils.checks import check_yaml

from erpose_yolo import ERPose
from erpose_yolo.data.synth.scene import box_iou
from erpose_yolo.oks import object_area, oks, sigmas_for
from erpose_yolo.smoothing import PoseSmoother

Clip = list[moving.Frame]
Detector = Callable[[Clip], list[Results]]
TRACKERS = ("bytetrack", "botsort")
GIVEN = 0.1  # score from which ``YOLO.track`` gives detections to its tracker
LOW = 0.4  # of the starting score: 0.1 / 0.25, as in bytetrack.yaml and botsort.yaml
MATCH = 0.5  # OKS or IoU from which a track is a person
FILTERS = {"2 Hz, 8 (default)": (2.0, 8.0), "1 Hz, 4": (1.0, 4.0), "0.5 Hz, 2": (0.5, 2.0)}  # min_cutoff, beta
# noise in px and share of missed persons of made-up detectors
ORACLES = {"true joints": (0, 0), "0.5 px off": (0.5, 0), "1 px off": (1, 0), "2 px off": (2, 0), "2 px off, 10 % missed": (2, 0.1)}
SHIFTS = range(-6, 13)  # frames
MAIN = ("IDF1", "switches", "MOTA", "HOTA")  # columns with a range
WINDOW = 0.75  # of the sides of a photo, what a panning camera sees of it


def panned(data: str, count: int, frames: int, size: int) -> list[Clip]:
    """Clips of a window that moves to and fro over validation photos of three to eight persons, those with the largest persons.

    Args:
        data: data YAML with 17-joint rows.
        count: clips.
        frames: of each clip.
        size: side of the frames in px.
    """
    scenes: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
    for image, centred, joints in common.load_split(data, "val", round(size / WINDOW), lambda rows: 3 <= len(rows) <= 8):
        if ((joints[..., 2] > 0).sum(1) >= 8).all():  # the OKS of few joints tells little
            boxes = np.concatenate((centred[:, :2] - centred[:, 2:] / 2, centred[:, :2] + centred[:, 2:] / 2), 1)
            scenes.append((centred[:, 2:].prod(1).min(), image.transpose(1, 2, 0)[..., ::-1], boxes, joints))
    out = []
    for _, image, boxes, joints in sorted(scenes, key=lambda scene: -scene[0])[:count]:
        clip: Clip = []
        for turn in 2 * math.pi * np.arange(frames) / frames:
            along = (1 + np.array((math.sin(turn), 0.5 * math.sin(2 * turn)))) / 2
            x, y = np.round((image.shape[0] - size) * along).astype(int)
            moved, sides = joints - (x, y, 0), np.clip(boxes - (x, y, x, y), 0, size)
            moved[((moved[..., :2] < 0) | (moved[..., :2] >= size)).any(-1) | (joints[..., 2] == 0)] = 0
            ids = np.flatnonzero((moved[..., 2] > 0).sum(1) >= 4)
            frame = np.ascontiguousarray(image[y : y + size, x : x + size])
            clip.append(moving.Frame(frame, ids, sides[ids].astype(np.float32), moved[ids].astype(np.float32)))
        out.append(clip)
    return out


def from_truth(clip: Clip, noise: float, missed: float) -> list[Results]:
    """Results of a made-up detector.

    Args:
        clip: the truth.
        noise: deviation of joints and box corners in px.
        missed: share of the persons left out, in each frame anew.
    """
    rng, out = np.random.default_rng(0), []
    for frame in clip:
        kept = rng.random(len(frame.ids)) >= missed
        joints, corners = frame.joints[kept].copy(), frame.boxes[kept]
        joints[..., :2] += rng.normal(0, noise, joints[..., :2].shape)
        joints[..., 2] = 1
        rows = np.concatenate((corners + rng.normal(0, noise, corners.shape), np.tile((0.9, 0), (len(corners), 1))), 1)
        boxes, keypoints = torch.tensor(rows, dtype=torch.float32), torch.tensor(joints)
        out.append(Results(frame.image, "", {0: "person"}, boxes=boxes, keypoints=keypoints))
    return out


def detector(name: str, path: Path, nms: bool | None, args: argparse.Namespace) -> Detector:
    """A trained model that finds the persons in every frame of a clip."""
    model = (ERPose if name.startswith("erpose") else YOLO)(str(path))
    options = {"conf": GIVEN if args.stock else LOW * min(args.conf), "imgsz": args.imgsz, "device": args.device, "verbose": False}
    options |= {} if nms is None else {"nms": nms}
    return lambda clip: [model.predict(frame.image, **options)[0].cpu() for frame in clip]


def follow(found: list[Results], tracker: str, start: float | None) -> list[Results]:
    """Track what was found in the frames of a clip, as ``YOLO.track`` does.

    Args:
        found: Results of every frame, on the CPU.
        tracker: stem of a tracker YAML.
        start: score at which a track starts; None leaves that to the YAML.
    """
    scores = {} if start is None else {"track_high_thresh": start, "new_track_thresh": start, "track_low_thresh": LOW * start}
    settings = {**YAML.load(check_yaml(f"{tracker}.yaml")), **scores, "device": "cpu"}
    trackers = [TRACKER_MAP[settings["tracker_type"]](args=IterableSimpleNamespace(**settings))]
    least = GIVEN if start is None else LOW * start
    mode, dataset = SimpleNamespace(mode="track", task="pose"), SimpleNamespace(mode="image")
    out = []
    for result in found:
        step = SimpleNamespace(args=mode, dataset=dataset, trackers=trackers, results=[result[result.boxes.conf >= least]])
        on_predict_postprocess_end(step, persist=True)
        out += step.results
    return out


def persons(result: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Track ids (N,), boxes (N, 4) and joints (N, 17, 2) in px of a frame; none where nothing is tracked."""
    if result.boxes.id is None:
        return np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, 17, 2))
    return result.boxes.id.numpy().astype(np.int64), result.boxes.xyxy.numpy(), result.keypoints.xy.numpy()


def similarity(frame: moving.Frame, result: Results, by: str = "OKS") -> np.ndarray:
    """(M, N) OKS or box IoU of the true persons with the tracked ones."""
    _, boxes, joints = persons(result)
    if by == "IoU":
        return box_iou(frame.boxes, boxes)
    truth, found, corners = (torch.tensor(a, dtype=torch.float64) for a in (frame.joints, joints, frame.boxes))
    return oks(found[None], truth[:, None], object_area(corners)[:, None], sigmas_for(17)).numpy()


def score(clip: Clip, tracks: list[Results], by: str = "OKS") -> dict[str, float]:
    """TrackEval's figures of a clip."""
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
    clear, identity, hota = (m.eval_sequence(data) for m in (CLEAR(quiet), Identity(quiet), HOTA()))
    figures = {"IDF1": identity["IDF1"], "switches": clear["IDSW"], "MOTA": clear["MOTA"], "HOTA": np.mean(hota["HOTA"])}
    figures["frames with ids"] = np.mean([result.boxes.is_track for result in tracks])
    return {k: float(v) for k, v in {**figures, "recall": clear["CLR_Re"], "precision": clear["CLR_Pr"]}.items()}


def matches(clip: Clip, tracks: list[Results]) -> list[list[tuple[int, int]]]:
    """For each frame the (row of a person, row of its track)."""
    out = []
    for frame, result in zip(clip, tracks):
        values = similarity(frame, result)
        pairs = zip(*linear_sum_assignment(np.where(values >= MATCH, values, 0), maximize=True))
        out.append([(int(p), int(r)) for p, r in pairs if values[p, r] >= MATCH])
    return out


def steadiness(clip: Clip, tracks: list[Results], pairs: list[list[tuple[int, int]]]) -> dict[str, float | None] | None:
    """Jitter (px per frame^2), rms error (px) and lag (frames) of tracked joints; None where too little is tracked; the lag is
    None where no shift fits the truth best.

    Args:
        clip: the truth.
        tracks: Results of every frame.
        pairs: what :func:`matches` says of the tracks before smoothing.
    """
    series: dict[tuple[int, int], np.ndarray] = defaultdict(np.full((2, len(clip), 17, 2), np.nan).copy)  # found, true
    for t, (frame, result) in enumerate(zip(clip, tracks)):
        ids, _, joints = persons(result)
        for p, r in pairs[t]:
            true = np.where(frame.joints[p, :, 2:] > 0, frame.joints[p, :, :2], np.inf)
            series[int(frame.ids[p]), int(ids[r])][:, t] = joints[r], true
    second, first, shifted = [], [], []
    for found, truth in series.values():
        truth = np.where(np.isinf(truth).any(0), np.nan, truth)  # a joint that leaves the picture
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


def smoothing(clip: Clip, tracks: list[Results]) -> dict[str, dict[str, float | None] | None]:
    """Figures of the tracks as they are and through each filter."""
    pairs = matches(clip, tracks)
    out = {"none": steadiness(clip, tracks, pairs)}
    for name, (cutoff, beta) in FILTERS.items():
        smooth = PoseSmoother(moving.FPS, min_cutoff=cutoff, beta=beta)
        out[name] = steadiness(clip, [smooth(result) for result in tracks], pairs)
    return out


def judge(clip: Clip, found: list[Results], starts: Sequence[float | None], trackers: Sequence[str] = TRACKERS) -> dict[str, Any]:
    """All figures of what was found in a clip, by tracker and starting score."""
    tracking = {}
    for tracker in trackers:
        tracks = {start: follow(found, tracker, start) for start in starts}
        tracking[tracker] = {str(k): {**score(clip, v), "IDF1 by IoU": score(clip, v, "IoU")["IDF1"]} for k, v in tracks.items()}
    return {"tracking": tracking, "smoothing": smoothing(clip, follow(found, trackers[0], starts[0]))}


def tables(runs: list[dict[str, Any]], starts: Sequence[float | None], trackers: Sequence[str] = TRACKERS) -> str:
    """Tracking and smoothing as Markdown: means and ranges over clips and seeds, rates in per cent."""
    tracked, smoothed = [], []
    for name in dict.fromkeys(r["name"] for r in runs):
        clips = [clip for r in runs if r["name"] == name for clip in r["clips"]]
        for tracker in trackers:
            at = {s: [clip["tracking"][tracker][str(s)] for clip in clips] for s in starts}
            main = [cell([f[k] for f in at[starts[0]]], scale=1 if k == "switches" else 100) for k in MAIN]
            kept = [f.get("frames with ids", math.nan) for f in at[starts[0]]]  # older runs have none
            more = [f"{100 * np.mean([f[k] for f in at[starts[0]]]):.1f}" for k in ("recall", "precision", "IDF1 by IoU")]
            more.append(f"{100 * np.mean(kept):.1f}")
            best = max(starts, key=lambda s: np.mean([f["IDF1"] for f in at[s]]))
            more.append(f"{cell([f['IDF1'] for f in at[best]])} at {best or 'its own'}")
            tracked.append([name, tracker, len(clips), *main, *more])
        for label in ("none", *FILTERS):
            seen = [clip["smoothing"][label] for clip in clips if clip["smoothing"][label]]
            known = {k: [f[k] for f in seen if f[k] is not None] for k in ("jitter", "error", "lag")}
            cells = [cell(v, 2, 1) if v else "-" for v in known.values()]
            smoothed.append([name, label, len(seen), *cells])
    header = ["detections", "tracker", "clips", *MAIN, "recall", "precision", "IDF1 by box IoU", "frames with ids", "best IDF1"]
    below = ["joints", "filter: min_cutoff, beta", "clips", "jitter, px/frame^2", "error, px", "lag, frames"]
    return f"{common.markdown(header, tracked)}\n\n{common.markdown(below, smoothed)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="NAME as in compare.py; {seed} is filled in")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--conf", nargs="+", type=float, default=[0.25, 0.1, 0.4], help="scores at which a track starts")
    parser.add_argument("--stock", action="store_true", help="leave all scores to the trackers' YAMLs; --conf is without effect")
    parser.add_argument("--trackers", nargs="+", default=list(TRACKERS), help="stems of tracker YAMLs; the first is smoothed, too")
    parser.add_argument("--photos", help="data YAML: half of the clips pan over its validation photos")
    parser.add_argument("--imgsz", type=int, default=320, help="input of the networks in px")
    parser.add_argument("--size", type=int, default=320, help="side of the pictures in px")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--people", nargs=2, type=int, default=[5, 8], help="persons in a clip, least and most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="video", help="of the result files")
    args = parser.parse_args()
    todo: list[tuple[str, int, str, Callable[[], Detector]]] = []  # name, seed, what decides the figures, how to get it
    for name, (noise, missed) in ({} if args.stock else ORACLES).items():
        todo.append((name, 0, "truth", lambda n=noise, m=missed: lambda clip: from_truth(clip, n, m)))
    for text in args.weights:
        name, _, file = text.partition("=")
        for seed in args.seeds if "{seed}" in file else args.seeds[:1]:
            path = Path(file.replace("{seed}", str(seed)))
            if not path.is_file():
                parser.error(f"--weights {text}: there is no file {path}. Give NAME=FILE of a trained .pt.")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            todo += [(name + mode, seed, digest, partial(detector, name, path, nms, args)) for mode, nms in modes(name).items()]

    budget = {k: getattr(args, k) for k in ("conf", "imgsz", "size", "clips", "frames", "people")}
    starts: list[float | None] = [None] if args.stock else args.conf
    if args.stock or args.photos or args.trackers != list(TRACKERS):
        photos = args.photos and Path(args.photos).parent.name
        budget |= {"stock": args.stock, "trackers": args.trackers, "photos": photos}
    file = common.RESULTS / f"{args.name}.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    runs = old["runs"] if old.get("budget") == budget else []
    what = f"{args.clips} clips of {args.frames / moving.FPS:g} s, {args.size} px, networks at {args.imgsz} px, "
    what += "scores of the trackers' YAMLs" if args.stock else f"conf {args.conf[0]}"
    people = tuple(args.people)
    clips = [moving.clip(s, args.size, args.frames, people) for s in TQDM(range(args.clips), desc="clips", disable=False)]
    if args.photos:
        clips[args.clips // 2 :] = panned(args.photos, args.clips - args.clips // 2, args.frames, args.size)
    for name, seed, source, make in todo:
        same = {"name": name, "seed": seed, "source": source}
        if any(same.items() <= r.items() for r in runs):
            continue
        find = make()
        progress = TQDM(clips, desc=f"{name} seed {seed}", disable=False)
        figures = [judge(clip, find(clip), starts, args.trackers) for clip in progress]
        runs = [r for r in runs if (r["name"], r["seed"]) != (name, seed)] + [{**same, "clips": figures}]
        common.write(args.name, {"budget": budget, "runs": runs}, f"{what}\n\n{tables(runs, starts, args.trackers)}")


if __name__ == "__main__":
    main()
