"""A tracker that tells people apart by their keypoints: BYTETracker with OKS in the place of the boxes' IoU.

Two people who cross share most of their boxes and few of their keypoints. Each track carries the pose along with a Kalman filter of
its place and scale; a detection is compared with it keypoint by keypoint. Keypoints that either of them takes to be hidden
count for little. The tolerance is that of OKS, widened by what the motion of a frame and the filter's doubt add, and by the error
bars of the keypoints where results carry them (``result.erpose.sigma``).

All tracks are rows of one array, so a frame costs a few operations however many people it shows.

Shapes: T tracks, D detections, K keypoints. Units: pixels and frames.
"""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ultralytics.trackers.byte_tracker import BYTETracker
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.trackers.utils.gmc import GMC
from ultralytics.trackers.utils.matching import linear_assignment

from erpose_yolo.method.oks import object_area, sigmas_for

NAME = "erpose-oks"
T = SimpleNamespace(slack=2.0, dof=2.0, box=0.3, t1=0.2, t2=0.3, t3=0.3, q=0.03, r=0.02, damp=0.95, dup=0.6, fuse=0.0, fuse3=1.0, gmcside=160, lostlow=False, posvar=1.0, follow=1.0, wfloor=0.05)


class OKSTracker(BYTETracker):
    sigmas: np.ndarray | None = None

    @classmethod
    def compute_frame_extras(cls, predictor: Any) -> list[tuple[Any, Any, Any]]:
        """What the stock callback hands to :meth:`update` beside boxes, for each result."""
        network = getattr(getattr(predictor, "model", None), "model", None)
        sigmas = getattr(network, "kpt_oks_sigmas", None)
        return [(r.keypoints, getattr(getattr(r, "erpose", None), "sigma", None), sigmas) for r in predictor.results]

    def __init__(self, args: Any) -> None:
        self.tracks: Any = None
        super().__init__(args)
        self.gmc = GMC("sparseOptFlow") if args.gmc_method == "sparseOptFlow" else None
        if self.gmc: self.gmc.feature_params["maxCorners"] = 100

    def reset(self) -> None:
        super().reset()
        self.tracks = None
        self.gmc = self.gmc and GMC("sparseOptFlow")

    def reset_id(self) -> None:
        self.ids = count(1)

    def _found(self, results, extras) -> np.recarray:
        keypoints, errors, sigmas = extras
        data = keypoints.data.cpu().numpy().astype(float)
        n, k = data.shape[:2]
        if self.sigmas is None:
            self.sigmas = sigmas_for(k, sigmas).numpy().astype(float)
        dtype = [("id", "i8"), ("is_activated", "?"), ("lost", "?"), ("last", "i8"), ("score", "f8"), ("cls", "f8"), ("idx", "i8"),
                 ("box", "f8", 4), ("xy", "f8", (k, 2)), ("seen", "f8", k), ("error", "f8", k), ("v", "f8", 3), ("cov", "f8", 3)]
        rows = np.zeros(n, dtype).view(np.recarray)
        rows.box, rows.score, rows.cls, rows.idx = results.xyxy, results.conf, results.cls, np.arange(n)
        rows.xy = data[..., :2]
        rows.seen = data[..., 2].clip(T.wfloor, 1) if data.shape[2] == 3 else 1
        rows.error = 0 if errors is None else np.asarray(errors)
        rows.last = self.frame_id
        rows.cov = T.r**2, 0, (2 * T.r) ** 2
        return rows

    @staticmethod
    def _move(tracks):
        if not len(tracks):
            return
        tracks.v[tracks.lost] *= T.damp
        grow = np.exp(tracks.v[:, 2]).clip(0.9, 1.1)[:, None]
        weight = tracks.seen / tracks.seen.sum(1, keepdims=True)
        centre = (tracks.xy * weight[..., None]).sum(1)
        shift = tracks.v[:, :2]
        tracks.xy = (centre + shift)[:, None] + (tracks.xy - centre[:, None]) * grow[..., None]
        tracks.box = np.tile(centre + shift, 2) + (tracks.box - np.tile(centre, 2)) * grow
        pp, pv, vv = tracks.cov.T
        tracks.cov = np.stack((pp + 2 * pv + vv + T.q**2 / 4, pv + vv + T.q**2 / 2, vv + T.q**2), 1)

    @staticmethod
    def _warp(tracks, h):
        if not len(tracks):
            return
        r, t = h[:, :2].T, h[:, 2]
        tracks.xy = tracks.xy @ r + t
        s = float(np.sqrt(abs(np.linalg.det(r))))
        c = (tracks.box[:, :2] + tracks.box[:, 2:]) / 2
        half = (tracks.box[:, 2:] - c) * s
        c = c @ r + t
        tracks.box = np.concatenate((c - half, c + half), 1)
        tracks.v[:, :2] = tracks.v[:, :2] @ r

    def similarity(self, a, b, slack):
        area_a, area_b = (object_area(torch.from_numpy(np.ascontiguousarray(x.box))).numpy() for x in (a, b))
        area = np.sqrt(area_a[:, None] * area_b)[..., None]
        tol = area * ((2 * slack * self.sigmas) ** 2 + T.posvar * a.cov[:, None, :1]) + b.error**2
        e = ((a.xy[:, None] - b.xy) ** 2).sum(-1) / (2 * tol)
        w = a.seen[:, None] * b.seen
        k = np.exp(-e) if T.dof == 0 else (1 + e / T.dof) ** -T.dof
        s = (w * k).sum(-1) / w.sum(-1)
        if T.box:
            lo, hi = np.maximum(a.box[:, None, :2], b.box[:, :2]), np.minimum(a.box[:, None, 2:], b.box[:, 2:])
            inter = (hi - lo).clip(0).prod(-1)
            aa, bb = ((x.box[:, 2:] - x.box[:, :2]).prod(1) for x in (a, b))
            s = (1 - T.box) * s + T.box * inter / (aa[:, None] + bb - inter)
        return s

    def _take(self, tracks, found):
        """Matched tracks take over their detections."""
        w = tracks.seen * found.seen
        w = (w / w.sum(1, keepdims=True))[..., None]
        gap = found.xy - tracks.xy
        shift = (w * gap).sum(1)
        p = tracks.xy - (w * tracks.xy).sum(1, keepdims=True)
        d = found.xy - (w * found.xy).sum(1, keepdims=True)
        size = np.sqrt(object_area(torch.from_numpy(np.ascontiguousarray(found.box))).numpy())
        scale = ((w * p * d).sum((1, 2)) + 0.01 * size**2) / ((w * p * p).sum((1, 2)) + 0.01 * size**2)
        pp, pv, vv = tracks.cov.T
        s = pp + T.r**2
        gain = pv / s
        tracks.v += gain[:, None] * np.column_stack((shift, np.log(scale.clip(0.8, 1.25))))
        tracks.cov = np.stack((pp - pp * pp / s, pv - pp * pv / s, vv - pv * pv / s), 1)
        u = (T.follow * (found.seen / (found.seen + 0.25 * tracks.seen)))[..., None].clip(0, 1)
        tracks.xy = tracks.xy + shift[:, None] + u * (gap - shift[:, None])
        tracks.seen = np.maximum(found.seen, 0.9 * tracks.seen)
        for name in ("box", "score", "cls", "idx", "error", "last"):
            tracks[name] = found[name]
        tracks.lost = False
        return tracks

    def update(self, results, img=None, feats=None, dets_del=None, **kwargs):
        self.frame_id += 1
        found = self._found(results, dets_del)
        tracks = found[:0].copy() if self.tracks is None else self.tracks
        self._move(tracks)
        if self.gmc is not None and img is not None:
            self.gmc.downscale = max(1, round(min(img.shape[:2]) / T.gmcside))
            try:
                self._warp(tracks, self.gmc.apply(img))
            except Exception as e:
                print("gmc", e)
        high = found.score >= self.args.track_high_thresh
        low = (found.score > self.args.track_low_thresh) & ~high
        sure = tracks.is_activated
        sim = self.similarity(tracks, found, T.slack)
        fused = sim * found.score ** T.fuse
        sure3 = sim * found.score ** T.fuse3
        pair = np.full(len(tracks), -1)
        taken = np.zeros(len(found), bool)
        for group, dets, thr, f in ((sure, high, T.t1, fused), (sure if T.lostlow else sure & ~tracks.lost, low, T.t2, sim), (~sure, high, T.t3, sure3)):
            rows, cols = np.flatnonzero(group & (pair < 0)), np.flatnonzero(dets & ~taken)
            matches, _, _ = linear_assignment(1 - f[np.ix_(rows, cols)], 1 - thr)
            for i, j in matches:
                pair[rows[i]] = cols[j]
                taken[cols[j]] = True
        hit = np.flatnonzero(pair >= 0)
        mine = found[pair[hit]]
        tracks[hit] = self._take(tracks[hit], mine)
        fresh = tracks[hit].is_activated
        new_ids = hit[~fresh]
        tracks.is_activated[hit] = True
        tracks.lost[pair < 0] = True
        start = high & ~taken & (found.score >= self.args.new_track_thresh)
        if T.dup and start.any() and taken.any():
            start &= ~((self.similarity(found, found[taken], 1.0) > T.dup).any(1))
        new = found[start]
        new.is_activated = self.frame_id == 1
        keep = (self.frame_id - tracks.last <= self.max_frames_lost) & (tracks.is_activated)
        out = np.concatenate((tracks[keep], new)).view(np.recarray)
        unnamed = out.is_activated & (out.id == 0)
        out.id[unnamed] = [next(self.ids) for _ in range(unnamed.sum())]
        self.tracks = out
        self.tracked_stracks = out[~out.lost]
        now = out[out.is_activated & ~out.lost]
        return np.column_stack((now.box, now.id, now.score, now.cls, now.idx)).astype(np.float32)


TRACKER_MAP[NAME] = OKSTracker
