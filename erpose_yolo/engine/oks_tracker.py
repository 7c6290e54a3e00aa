"""A tracker that tells people apart by their keypoints: BYTETracker with OKS in the place of the boxes' IoU.

Two people who cross share most of their boxes and few of their keypoints. A track carries its pose along with the motion of the
camera and with a Kalman filter of its own place and scale, and a detection is compared with it keypoint by keypoint; those that
either side takes to be hidden count for little. The tolerance is that of OKS, widened by what a frame's motion and the filter's
doubt add, and by the error bars of the keypoints where results carry them. Of two poses of one person the second starts no track.

The tracks are rows of one array, so that a frame costs a few operations however many people it shows.

Shapes: N tracks, D detections, K keypoints. Units: pixels and frames; variances are in person sizes (square root of the area)
squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from ultralytics.trackers.byte_tracker import BYTETracker
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.trackers.utils.gmc import GMC
from ultralytics.trackers.utils.matching import linear_assignment
from ultralytics.utils import LOGGER

from erpose_yolo.engine.smoothing import error_bars
from erpose_yolo.method.oks import object_area, sigmas_for

NAME = "erpose-oks"
# Tuned on clips of training photos (benchmarks/accuracy/video.py)
SLACK = 3.0  # tolerances of OKS that a keypoint may move beside the motion that is foreseen
BOX = 0.3  # weight of the boxes' IoU beside OKS: poses of the hidden say little
SAME = 0.6  # similarity from which a detection is a second pose of somebody who has one
MOTION, ERROR = 0.03, 0.04  # person sizes: deviation of a frame's acceleration and of a measured place
SETTLE = 0.95  # share of its velocity that a lost track keeps in a frame
HIDDEN = 0.05  # least weight of a keypoint
CORNERS, SIDE = 40, 120  # the camera's motion is that of so many corners, in an image whose short side is about so long


class OKSTracker(BYTETracker):
    """Follows people by keypoints.

    Args:
        args: settings of the YAML: ``track_high_thresh``, ``new_track_thresh``, ``track_buffer`` and ``match_thresh`` as for
            ByteTrack, the last being 1 - the least similarity; ``gmc_method`` as for BoT-SORT.

    Attributes:
        tracks: structured array, one row per person: see :meth:`_detections`. None before the first frame.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.reset()

    @classmethod
    def compute_frame_extras(cls, predictor: Any) -> list[tuple[Any, np.ndarray | None, Any]]:
        """What the stock callback hands to :meth:`update` beside boxes: keypoints, error bars and OKS sigmas of each result.

        Raises:
            ValueError: the model finds no keypoints.
        """
        if any(result.keypoints is None for result in predictor.results):
            raise ValueError(f"tracker={NAME}.yaml compares keypoints, and this model finds none. Give tracker=botsort.yaml.")
        sigmas = getattr(predictor, "sigmas", None)
        return [(result.keypoints, error_bars(result), sigmas) for result in predictor.results]

    def reset(self) -> None:
        """Forget everybody; identities begin again."""
        super().reset()
        self.tracks: Any = None
        self.gmc = GMC(self.args.gmc_method)
        if self.args.gmc_method == "sparseOptFlow":
            self.gmc.feature_params["maxCorners"] = CORNERS

    def reset_id(self) -> None:
        """Identities begin at 1 again."""
        self.numbers: Iterator[int] = count(1)

    def update(self, results: Any, img: np.ndarray | None = None, feats: Any = None, dets_del: Any = None, **kwargs: Any) -> np.ndarray:
        """Follow the people of the next frame.

        Args:
            results: boxes of the detections, on the CPU as arrays.
            img: (H, W, 3) the frame, for the motion of the camera.
            feats: not read.
            dets_del: what :meth:`compute_frame_extras` returned; the stock callback calls it so.
            **kwargs: not read.

        Returns:
            (M, 8) float32, a row per person who is followed and seen: x1, y1, x2, y2, identity, score, class, row of the detection.
        """
        self.frame_id += 1
        found = self._detections(results, *dets_del)
        tracks = found[:0] if self.tracks is None or self.tracks.dtype != found.dtype else self.tracks
        _foresee(tracks)
        if img is not None and self.gmc.method is not None:
            _warp(tracks, self._camera(img))
        alike = self._similarity(tracks, found, SLACK)
        detection, free = np.full(len(tracks), -1), found.score >= self.args.track_high_thresh
        known = tracks.is_activated.copy()
        for group in (known, ~known):
            rows, columns = np.flatnonzero(group), np.flatnonzero(free)
            for i, j in linear_assignment(1 - alike[np.ix_(rows, columns)], self.args.match_thresh)[0]:
                detection[rows[i]], free[columns[j]] = columns[j], False
        matched = detection >= 0
        tracks[matched] = self._advanced(tracks[matched], found[detection[matched]])

        new = free & (found.score >= self.args.new_track_thresh)
        if new.any() and matched.any():
            new &= (self._similarity(found, tracks[matched], 1.0) <= SAME).all(1)
        found.is_activated = self.frame_id == 1  # elsewhere, a track is known when it is seen for the second time
        kept = matched | (known & (self.frame_id - tracks.last <= self.max_frames_lost))
        self.tracks = tracks = np.concatenate((tracks[kept], found[new])).view(np.recarray)
        unnamed = tracks.is_activated & (tracks.id == 0)
        tracks.id[unnamed] = [next(self.numbers) for _ in range(unnamed.sum())]
        seen = tracks.last == self.frame_id
        self.tracked_stracks, self.lost_stracks = tracks[seen], tracks[~seen]
        shown = tracks[seen & tracks.is_activated]
        return np.column_stack((shown.box, shown.id, shown.score, shown.cls, shown.idx)).astype(np.float32)

    def _detections(self, boxes: Any, keypoints: Any, errors: np.ndarray | None, sigmas: Any) -> Any:
        """Detections (D,) of a frame, as tracks that begin here.

        Fields: id; is_activated, known by more than one frame; last, the frame of the last detection, and its score, cls and
        idx; box (4); xy (K, 2), seen (K) in [HIDDEN, 1] and error (K) in pixels; motion (3), the change of x, y and of the
        logarithm of the scale in a frame; doubt (3), variance of the place, its covariance with the motion, the motion's variance.
        """
        data = keypoints.data.detach().cpu().double().numpy()
        count, k = data.shape[:2]
        self.sigmas = sigmas_for(k, sigmas).double().numpy()
        numbers = [(name, "f8") for name in ("score", "cls", "idx")]
        parts = [("box", "f8", 4), ("xy", "f8", (k, 2)), ("seen", "f8", k), ("error", "f8", k), ("motion", "f8", 3), ("doubt", "f8", 3)]
        found = np.zeros(count, [("id", "i8"), ("last", "i8"), *numbers, *parts, ("is_activated", "?")]).view(np.recarray)
        found.box, found.score, found.cls, found.idx = boxes.xyxy, boxes.conf, boxes.cls, np.arange(count)
        found.xy, found.last = data[..., :2], self.frame_id
        found.seen = data[..., 2].clip(HIDDEN, 1) if data.shape[2] > 2 else 1
        found.error = 0 if errors is None else errors
        found.doubt = ERROR**2, 0, 4 * ERROR**2
        return found

    def _camera(self, img: np.ndarray) -> np.ndarray:
        """(2, 3) rotation, scale and shift from the last frame to this one."""
        self.gmc.downscale = max(1, round(min(img.shape[:2]) / SIDE))
        try:
            return np.asarray(self.gmc.apply(img))
        except Exception as error:  # OpenCV's, of frames that change their size, say
            LOGGER.debug(f"{NAME}: the camera is taken to stand still: {error}")
            self.gmc.reset_params()
            return np.eye(2, 3)

    def _similarity(self, a: Any, b: Any, slack: float) -> np.ndarray:
        """(len(a), len(b)) OKS with rational kernel and IoU, mixed, in [0, 1]; see method.oks.kernel for the first."""
        area = np.sqrt(_area(a)[:, None] * _area(b))[..., None]
        variance = area * ((2 * slack * self.sigmas) ** 2 + a.doubt[:, None, :1]) + b.error**2
        error = sum(np.square(a.xy[:, None, :, axis] - b.xy[:, :, axis]) for axis in (0, 1)) / (2 * variance)
        oks = np.einsum("nk,dk,ndk->nd", a.seen, b.seen, 1 / (1 + error)) / (a.seen @ b.seen.T)
        low, high = np.maximum(a.box[:, None, :2], b.box[:, :2]), np.minimum(a.box[:, None, 2:], b.box[:, 2:])
        shared = (high - low).clip(0).prod(-1)
        whole = (a.box[:, 2:] - a.box[:, :2]).prod(-1)[:, None] + (b.box[:, 2:] - b.box[:, :2]).prod(-1) - shared
        mixed: np.ndarray = (1 - BOX) * oks + BOX * shared / np.maximum(whole, 1e-9)
        return mixed

    def _advanced(self, tracks: Any, found: Any) -> Any:
        """Tracks (M,) after their detections (M,): the filter's step, and the pose."""
        weight = tracks.seen * found.seen
        weight /= weight.sum(1, keepdims=True)
        gap = found.xy - tracks.xy
        shift = _mean(weight, gap)
        before, after = (xy - _mean(weight, xy)[:, None] for xy in (tracks.xy, found.xy))
        least = 0.01 * _area(found)  # a person of one keypoint has no scale
        scale = (np.einsum("nk,nkc,nkc->n", weight, before, after) + least) / (
            np.einsum("nk,nkc,nkc->n", weight, before, before) + least
        )
        place, both, motion = tracks.doubt.T
        gain = 1 / (place + ERROR**2)
        tracks.motion += (both * gain)[:, None] * np.column_stack((shift, np.log(scale.clip(0.8, 1.25))))
        tracks.doubt = np.column_stack((place - place**2 * gain, both - place * both * gain, motion - both**2 * gain))
        # what the detection sees is taken from it, what it does not see moves with the rest
        trust = (found.seen / (found.seen + 0.25 * tracks.seen))[..., None]
        tracks.xy = tracks.xy + shift[:, None] + trust * (gap - shift[:, None])
        tracks.seen = np.maximum(found.seen, 0.9 * tracks.seen)
        for name in ("box", "score", "cls", "idx", "error", "last"):
            tracks[name] = found[name]
        tracks.is_activated = True
        return tracks


def _area(tracks: Any) -> np.ndarray:
    """(N,) square pixels."""
    area: np.ndarray = object_area(torch.from_numpy(tracks.box.copy())).numpy()
    return area


def _mean(weight: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(N, 2) mean of points (N, K, 2) under weights (N, K) of sum 1."""
    mean: np.ndarray = np.einsum("nk,nkc->nc", weight, xy)
    return mean


def _foresee(tracks: Any) -> None:
    """Move tracks on by a frame, in place."""
    tracks.motion[tracks.last < tracks.last.max(initial=0)] *= SETTLE
    grown = np.exp(tracks.motion[:, 2]).clip(0.9, 1.1)[:, None]
    centre = _mean(tracks.seen / tracks.seen.sum(1, keepdims=True), tracks.xy)
    moved = centre + tracks.motion[:, :2]
    tracks.xy = moved[:, None] + (tracks.xy - centre[:, None]) * grown[..., None]
    tracks.box = np.tile(moved, 2) + (tracks.box - np.tile(centre, 2)) * grown
    place, both, motion = tracks.doubt.T
    q = MOTION**2
    tracks.doubt = np.column_stack((place + 2 * both + motion + q / 4, both + motion + q / 2, motion + q))


def _warp(tracks: Any, camera: np.ndarray) -> None:
    """Move tracks with the camera, in place.

    Args:
        tracks: (N,).
        camera: (2, 3) rotation, scale and shift.
    """
    turn, shift = camera[:, :2].T, camera[:, 2]
    tracks.xy = (tracks.xy.reshape(-1, 2) @ turn + shift).reshape(tracks.xy.shape)
    centre = (tracks.box[:, :2] + tracks.box[:, 2:]) / 2
    half = (tracks.box[:, 2:] - centre) * np.hypot(*turn[0])
    centre = centre @ turn + shift
    tracks.box = np.concatenate((centre - half, centre + half), 1)
    tracks.motion[:, :2] = tracks.motion[:, :2] @ turn


TRACKER_MAP[NAME] = OKSTracker
