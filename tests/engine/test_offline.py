"""Smoothing after the fact: nearer to the truth than what it is given, without lag; gaps are filled, outliers are not followed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from test_smoothing import FPS, body, smoothed

from erpose_yolo.engine.offline import smooth_track

T, K = 90, 17


@pytest.fixture
def walk() -> np.ndarray:
    """(T, K, 2) a person who walks to and fro, each keypoint with a swing of its own."""
    t, k = np.arange(T)[:, None] / FPS, np.arange(K)
    swing = np.stack((60 * np.sin(2 * t + 0 * k) + 8 * np.sin(6 * t + k), 4 * np.cos(5 * t + k)), 2)
    return body(np.random.default_rng(0)) + swing


def off(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - truth).sum(2).mean()))


def test_nearer_than_the_filter_and_without_lag(walk):
    noisy = walk + np.random.default_rng(1).normal(0, 2, walk.shape)
    out, spread = smooth_track(noisy, FPS, np.full((T, K), 2.0))
    assert off(out, walk) < 0.75 * off(smoothed(noisy), walk) and off(out, walk) < 0.65 * off(noisy, walk)
    assert np.diff(out - walk, 2, axis=0).std() < 0.2 * np.diff(noisy - walk, 2, axis=0).std()
    inner = slice(5, -5)
    costs = [off(out[inner], walk[5 - s : T - 5 - s]) for s in (-1, 0, 1)]
    assert costs[1] == min(costs)
    share = (np.linalg.norm(out - walk, axis=2) < 2 * spread).mean()  # 86 % of a round Gaussian
    assert 0.7 < share < 0.97


def test_error_bars_decide_whom_to_trust(walk):
    rng = np.random.default_rng(2)
    sigma = np.exp(rng.normal(0.5, 1, (T, K)))
    noisy = walk + rng.normal(0, 1, walk.shape) * sigma[..., None]
    assert off(smooth_track(noisy, FPS, sigma)[0], walk) < 0.8 * off(smooth_track(noisy, FPS, np.full((T, K), 2.5))[0], walk)


def test_gaps_are_filled_along_the_motion(walk):
    seen = walk.copy()
    seen[40:50] = np.nan
    seen[20:24, 3] = np.nan  # one keypoint alone
    out, spread = smooth_track(seen, FPS)
    assert np.linalg.norm(out[40:50] - walk[40:50], axis=2).max() < 12
    assert np.linalg.norm(out[20:24, 3] - walk[20:24, 3], axis=1).max() < 3
    assert spread[45].min() > 3 * spread[30].max(), "what is filled in is less sure"


def test_an_outlier_is_not_followed(walk):
    wrong = walk + np.random.default_rng(3).normal(0, 1, walk.shape)
    wrong[30, 5] += 40
    assert np.linalg.norm(smooth_track(wrong, FPS, np.ones((T, K)))[0][30, 5] - walk[30, 5]) < 4


def test_size_sets_the_scale(walk):
    noisy = walk + np.random.default_rng(4).normal(0, 2, walk.shape)
    assert np.allclose(smooth_track(3 * noisy, FPS)[0], 3 * smooth_track(noisy, FPS)[0], atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_track_of_a_frame_is_what_it_is(frames: int):
    xy = np.repeat(body(np.random.default_rng(5))[None], frames, 0)
    assert np.allclose(smooth_track(xy, FPS)[0], xy)


def test_a_keypoint_that_is_never_seen_stays_unknown(walk):
    walk[:, 4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, spread = smooth_track(walk, FPS)
        nobody, _ = smooth_track(np.full((3, K, 2), np.nan), FPS)
    assert np.isnan(out[:, 4]).all() and np.isnan(spread[:, 4]).all() and np.isfinite(np.delete(out, 4, 1)).all()
    assert np.isnan(nobody).all()


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_wrong_frame_rate_is_refused(fps: float, walk):
    with pytest.raises(ValueError, match="fps must be positive"):
        smooth_track(walk, fps)
