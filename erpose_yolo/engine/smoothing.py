"""Steadier keypoints in video: a One-Euro filter per track and keypoint.

The filter (Casiez, Roussel, Vogel: 1 Euro Filter, CHI 2012) is a low pass whose cut-off rises with speed: a keypoint at rest
does not tremble, and one in motion does not lag.

Shapes: P persons, K keypoints. Units: pixels and seconds; speeds are in person sizes per second, so that one setting serves
people near and far.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER

# On walking people whose keypoints are off by 1 px this lowers jitter and error at a lag of a third of a frame; a lower cut-off
# (1 Hz, 4) is steadier, but lags by half a frame, which costs all that is gained in error (benchmarks/accuracy/video.py).
MIN_CUTOFF, BETA = 2.0, 8.0
ERROR = 0.03  # person sizes, the standard deviation at which the error bar leaves the cut-off as it is
NONSENSE, USUAL = 1000.0, 30.0  # frames per second from which a rate is none, and what is assumed then
UNEVEN, ODD = 1.5, 5  # a frame that comes so many times too early or late is odd, and so many of fifty are told


def alpha(cutoff: np.ndarray | float, interval: float) -> np.ndarray | float:
    """Weight of the newest value in an exponential low pass: 1 / (1 + tau / T) with tau = 1 / (2 pi f).

    Args:
        cutoff: f in Hz.
        interval: T in seconds.
    """
    return 1 / (1 + 1 / (2 * math.pi * cutoff * interval))


class OneEuro:
    """One-Euro filter of the keypoints of one person.

    Args:
        min_cutoff: cut-off at rest, Hz. Lower: steadier.
        beta: rise of the cut-off, Hz per person size per second. Higher: less lag.
        speed_cutoff: cut-off of the speed estimate, Hz.
    """

    def __init__(self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA, speed_cutoff: float = 1.0) -> None:
        self.min_cutoff, self.beta, self.speed_cutoff = min_cutoff, beta, speed_cutoff
        self.value: np.ndarray | None = None
        self.speed: np.ndarray | None = None

    def __call__(self, xy: np.ndarray, size: float, interval: float, sigma: np.ndarray | None = None) -> np.ndarray:
        """Filter the keypoints of a frame.

        Args:
            xy: (K, 2) pixels.
            size: of the person, pixels.
            interval: seconds since the last call.
            sigma: (K,) standard deviations in pixels: cut-offs are lower for a keypoint that is less sure than ERROR person sizes,
                and higher for one that is surer.

        Returns:
            (K, 2) pixels.
        """
        if self.value is None or self.speed is None:
            self.value, self.speed = xy.astype(np.float64), np.zeros_like(xy, np.float64)
            return self.value
        speed = (xy - self.value) / (interval * max(size, 1.0))
        self.speed = self.speed + alpha(self.speed_cutoff, interval) * (speed - self.speed)
        cutoff = self.min_cutoff + self.beta * np.linalg.norm(self.speed, axis=1, keepdims=True)
        if sigma is not None:
            cutoff = cutoff * (ERROR * max(size, 1.0) / np.maximum(sigma, 1e-9)).clip(0.25, 4)[:, None]
        self.value = self.value + alpha(cutoff, interval) * (xy - self.value)
        return self.value


class PoseSmoother:
    """Filters the keypoints of tracked Results, each track by itself.

    Args:
        fps: frames per second of the video.
        forget: seconds after which a track that was lost starts afresh.
        min_cutoff, beta: see :class:`OneEuro`.

    Raises:
        ValueError: fps is not positive.

    Examples:
        >>> smooth = PoseSmoother(fps=30)
        >>> for result in model.track("street.mp4", stream=True):
        ...     result = smooth(result)
    """

    def __init__(self, fps: float, forget: float = 1.0, min_cutoff: float = MIN_CUTOFF, beta: float = BETA) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}.")
        self.fps, self.forget, self.min_cutoff, self.beta = fps, forget, min_cutoff, beta
        self.frame = 0
        self.tracks: dict[int, tuple[OneEuro, int]] = {}  # id: filter, frame of its last call

    def __call__(self, result: Results) -> Results:
        """Results with filtered keypoints; persons without a track id stay as they are. Boxes are not touched."""
        self.frame += 1
        self.tracks = {k: v for k, v in self.tracks.items() if (self.frame - v[1]) / self.fps <= self.forget}
        ids = None if result.boxes is None else result.boxes.id
        if ids is None or result.keypoints is None:
            return result
        keypoints = result.keypoints.data.clone()
        sizes = (result.boxes.xywh[:, 2:].prod(1).sqrt()).tolist()
        sigma = error_bars(result)
        sigmas = [None] * len(sizes) if sigma is None else list(sigma)
        for row, (track, size) in enumerate(zip(ids.int().tolist(), sizes)):
            euro, last = self.tracks.get(track) or (OneEuro(self.min_cutoff, self.beta), self.frame - 1)
            filtered = euro(keypoints[row, :, :2].cpu().numpy(), size, (self.frame - last) / self.fps, sigmas[row])
            keypoints[row, :, :2] = torch.as_tensor(filtered, dtype=keypoints.dtype, device=keypoints.device)
            self.tracks[track] = (euro, self.frame)
        out = result.new()
        out.boxes, out.speed = result.boxes, result.speed
        if sigma is not None:
            out.erpose = result.erpose
        out.update(keypoints=keypoints)
        return out


class TrackSmoother:
    """Callback of a predictor that smooths what its trackers have just identified, before anything is drawn or saved.

    A filter belongs to one tracker and one source: streams side by side, two videos, and frames of different size never share
    one. Frames that are fed one by one as arrays have no name; who feeds those of several cameras takes a model for each, as
    for tracking itself.

    Args:
        smooth: frames per second, or True to ask the source.
        persist: the tracker goes on where the last call ended, and so do the filters.
    """

    EVENT = "on_predict_postprocess_end"

    def __init__(self, smooth: float | bool, persist: bool) -> None:
        self.smooth, self.persist = smooth, persist
        self.filters: WeakKeyDictionary[Any, dict[Any, PoseSmoother]] = WeakKeyDictionary()  # tracker: source: filter
        self.frames: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # tracker: its last frame

    @classmethod
    def register(cls, model: Any, smooth: float | bool, persist: bool) -> None:
        """Put a model's smoother behind its tracker, in the place of an earlier one; none where ``smooth`` is 0 or False.

        A call with the same ``smooth`` and ``persist`` goes on with the filters of the last.

        Raises:
            ValueError: smooth is not a positive number.
        """
        if not isinstance(smooth, (bool, int, float)) or not 0 <= smooth < math.inf:
            raise ValueError(f"smooth must be frames per second, or True for a video that knows them; got {smooth!r}.")
        callbacks = model.callbacks[cls.EVENT]
        old = next((callback for callback in callbacks if isinstance(callback, cls)), None)
        goes_on = persist and old is not None and old.persist and (old.smooth, type(old.smooth)) == (smooth, type(smooth))
        if goes_on:
            return
        if old is not None:
            callbacks.remove(old)
        if smooth:
            callbacks.append(cls(smooth, persist))

    def __call__(self, predictor: Any) -> None:
        """Replace the predictor's results by smoothed ones."""
        if predictor.args.mode != "track":
            return
        streams = predictor.dataset.mode == "stream"
        if self.smooth is True:
            check_pace(predictor)
        for i, result in enumerate(predictor.results):
            tracker = predictor.trackers[i if streams else 0]
            if i == 0 or streams:
                if tracker.frame_id <= self.frames.get(tracker, 0):  # it was reset, and its identities begin again
                    self.filters.pop(tracker, None)
                self.frames[tracker] = tracker.frame_id
            path = "" if self.persist and predictor.dataset.mode == "image" else result.path  # frames as files or arrays
            sources = self.filters.setdefault(tracker, {})
            if (path, result.orig_shape) not in sources:
                if not self.persist:
                    sources.clear()
                sources[path, result.orig_shape] = PoseSmoother(frame_rate(predictor, i, self.smooth))
            predictor.results[i] = sources[path, result.orig_shape](result)


def error_bars(result: Any) -> np.ndarray | None:
    """(P, K) standard deviations of keypoints in pixels; None where results carry none (``result.erpose.sigma``)."""
    sigma = getattr(getattr(result, "erpose", None), "sigma", None)
    return None if sigma is None else torch.as_tensor(sigma).detach().cpu().double().numpy()


def frame_rate(predictor: Any, i: int, given: float | bool = True) -> float:
    """Frames per second that are seen of source i; a video's where ``given`` is True.

    A video or camera whose file says nothing, or nonsense (containers write 1000 or 90000 where they do not know), is taken
    to have USUAL frames per second, as Ultralytics takes streams, and that is said once per source.

    Raises:
        ValueError: the source is no video, and no rate is given.
    """
    if given is not True:
        return float(given)
    dataset = predictor.dataset
    if dataset.mode not in ("video", "stream"):
        raise ValueError("smooth needs a source that knows its frame rate, and images have none; give it, for example smooth=30.")
    rate = getattr(dataset, "fps", None)
    rate = rate[i] if isinstance(rate, (list, tuple)) else rate
    if rate is None or not 0 < rate < NONSENSE:
        source = str(predictor.results[i].path)
        if getattr(predictor, "told", None) != source:
            predictor.told = source
            LOGGER.warning(f"{source}: {rate} frames per second cannot be, {USUAL:g} are assumed. Give smooth=RATE if you know it.")
        rate = USUAL
    return float(rate) / max(int(predictor.args.vid_stride), 1)


def check_pace(predictor: Any) -> None:
    """Read the time stamps of a video, and say once where its frames do not come at the rate that smoothing takes them to have.

    Stamps do not replace the rate: where Ultralytics reads ahead, or several frames at once, they are those of later frames. That
    is good enough to tell even frames from uneven ones.
    """
    dataset = predictor.dataset
    cap = getattr(dataset, "cap", None)
    if dataset.mode != "video" or cap is None:
        return
    source, now = str(predictor.results[0].path), cap.get(cv2.CAP_PROP_POS_MSEC) / 1000
    known, before, seen, odd = getattr(predictor, "pace", ("", 0.0, 0, 0))
    if known != source:
        seen = odd = 0
    elif now > before:  # a capture that is closed after its last frame says -1
        rate = frame_rate(predictor, 0)
        seen += 1
        if not 1 / UNEVEN < (now - before) / len(predictor.results) * rate < UNEVEN:
            odd += 1
            if odd == ODD and seen <= 10 * ODD:
                LOGGER.warning(
                    f"{source}: its frames are not {1 / rate:.3f} s apart, as its rate says and as they are smoothed. Make them "
                    f"even before: ffmpeg -i {Path(source).name} -vf fps={rate:.0f} even.mp4"
                )
    predictor.pace = (source, now, seen, odd)
