"""Smoothing after the fact: finished tracks without lag, gaps of up to half a second filled.

A Rauch-Tung-Striebel smoother runs a Kalman filter of place and velocity forth and back over each keypoint, so a frame is judged
by what comes after it as well. Keypoints that are off by more than their error bar says count for less (a Student-t law, by
reweighting).

Shapes: T frames, K keypoints. Units: pixels and seconds; accelerations and default error bars are in person sizes, so that one
setting serves people near and far. The size is the median diagonal of the keypoints' extent.
"""

from __future__ import annotations

import math

import numpy as np

GAP = 0.5  # seconds that are filled
ACCELERATION = 1.0  # person sizes per second^1.5, density of the random acceleration
NOISE = 0.02  # person sizes, error of a keypoint without an error bar
DOF = 4.0  # of the Student-t law of errors
PASSES = 3


def smooth_track(xy: np.ndarray, fps: float, sigma: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Smooth a track, without lag.

    Args:
        xy: (T, K, 2) pixels, one row per frame; NaN where a keypoint was not seen.
        fps: frames per second.
        sigma: (T, K) standard deviations in pixels; None: NOISE person sizes.

    Returns:
        Keypoints (T, K, 2) and their standard deviations (T, K), in pixels; NaN for a keypoint that was never seen.

    Raises:
        ValueError: fps is not positive, or shapes do not fit.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive, got {fps}.")
    xy = np.asarray(xy, np.float64)
    if xy.ndim != 3 or xy.shape[2] != 2 or (sigma is not None and sigma.shape != xy.shape[:2]):
        raise ValueError(f"xy must be (T, K, 2) and sigma (T, K), got {xy.shape} and {sigma is not None and sigma.shape}.")
    seen = np.isfinite(xy).all(2)
    known = seen.any(0)
    out, spread = np.full(xy.shape, np.nan), np.full(xy.shape[:2], np.nan)
    if not known.any():
        return out, spread
    xy, seen = xy[:, known], seen[:, known]
    size = person_size(xy)
    error = np.full(seen.shape, NOISE * size) if sigma is None else np.asarray(sigma, np.float64)[:, known]
    error = np.where(np.isfinite(error), error, NOISE * size).clip(1e-3 * size)
    variance = error**2
    for _ in range(PASSES):
        smooth, covariance = _rts(xy, seen, variance, ACCELERATION * size, 1 / fps)
        off = np.where(seen, np.square(xy - smooth).sum(2), 0) / error**2
        variance = error**2 * (DOF + off) / (DOF + 2)
    out[:, known], spread[:, known] = smooth, np.sqrt(covariance)
    return out, spread


def person_size(xy: np.ndarray) -> float:
    """Median diagonal in pixels of the extent of keypoints (T, K, 2), at least 1; NaN are passed over."""
    seen = xy[np.isfinite(xy).all((1, 2))] if np.isfinite(xy).all((1, 2)).any() else xy[np.isfinite(xy).any((1, 2))]
    return max(float(np.median(np.linalg.norm(np.nanmax(seen, 1) - np.nanmin(seen, 1), axis=1))), 1.0)


def _rts(xy: np.ndarray, seen: np.ndarray, variance: np.ndarray, density: float, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Kalman filter forth, Rauch-Tung-Striebel smoother back; both coordinates share a covariance.

    Args:
        xy: (T, K, 2) pixels.
        seen: (T, K) bool; what is not seen is not read.
        variance: (T, K) of the measurements, px^2.
        density: of the random acceleration, px/s^1.5.
        dt: seconds between frames.

    Returns:
        (T, K, 2) pixels and (T, K) variances, px^2.
    """
    frames, keypoints = seen.shape
    step = np.array([[1, dt], [0, 1]])
    drift = density**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
    first = xy[seen.argmax(0), np.arange(keypoints)]
    mean = np.stack((first, np.zeros_like(first)), 1)  # (K, 2 of place and velocity, 2 of x and y)
    cov = np.tile(np.diag([variance.max() * 1e2, density**2]), (keypoints, 1, 1))
    means, before = np.empty((2, frames, *mean.shape))
    covs, unsure = np.empty((2, frames, *cov.shape))
    for t in range(frames):
        if t:
            mean, cov = step @ mean, step @ cov @ step.T + drift
        before[t], unsure[t] = mean, cov
        gain = (seen[t] / (cov[:, 0, 0] + variance[t]))[:, None] * cov[:, :, 0]  # (K, 2)
        off = np.where(seen[t][:, None], xy[t] - mean[:, 0], 0)
        mean, cov = mean + gain[:, :, None] * off[:, None], cov - gain[:, :, None] * cov[:, :1]
        means[t], covs[t] = mean, cov
    places, variances = np.empty((frames, keypoints, 2)), np.empty((frames, keypoints))
    for t in range(frames - 1, -1, -1):
        if t < frames - 1:
            back = covs[t] @ step.T @ np.linalg.inv(unsure[t + 1])
            mean = means[t] + back @ (mean - before[t + 1])
            cov = covs[t] + back @ (cov - unsure[t + 1]) @ back.transpose(0, 2, 1)
        places[t], variances[t] = mean[:, 0], cov[:, 0, 0]
    return places, variances.clip(0)
