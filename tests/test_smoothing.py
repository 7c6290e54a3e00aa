"""One-Euro smoothing: steadier at rest, no lag in motion, one filter per track."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from erpose_yolo.smoothing import OneEuro, PoseSmoother

K, FPS = 17, 30.0


def frame(joints: np.ndarray, ids: list[int] | None) -> Results:
    """Results with (P, K, 2) joints and track ids."""
    low, high = joints.min(1), joints.max(1)
    rest = np.array([[i, 0.9, 0] if ids else [0.9, 0] for i in (ids or range(len(joints)))], np.float32)
    boxes = torch.tensor(np.concatenate((low, high, rest), 1), dtype=torch.float32)
    points = torch.tensor(np.concatenate((joints, np.ones((*joints.shape[:2], 1))), 2), dtype=torch.float32)
    return Results(np.zeros((480, 640, 3), np.uint8), "a.mp4", {0: "person"}, boxes=boxes, keypoints=points)


def body(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((100, 100), (160, 220), (K, 2))


def smoothed(track: np.ndarray, **settings) -> np.ndarray:
    """(T, K, 2) joints of one track, filtered."""
    smooth = PoseSmoother(FPS, **settings)
    return np.stack([smooth(frame(joints[None], [7])).keypoints.xy[0].numpy() for joints in track])


def test_a_person_at_rest_trembles_less():
    rng = np.random.default_rng(0)
    truth = np.repeat(body(rng)[None], 90, 0)
    noisy = truth + rng.normal(0, 2, truth.shape)
    tremble = np.diff(noisy[15:], axis=0).std()
    assert np.diff(smoothed(noisy)[15:], axis=0).std() < 0.4 * tremble
    after = smoothed(noisy, min_cutoff=1.0, beta=4.0)[15:]
    assert np.diff(after, axis=0).std() < 0.3 * tremble
    assert np.abs(after - truth[15:]).mean() < 0.6 * np.abs(noisy[15:] - truth[15:]).mean()


def test_a_moving_person_does_not_lag():
    truth = body(np.random.default_rng(0)) + np.arange(90)[:, None, None] * [5.0, 0.0]  # 150 px a second

    def lag(**settings):  # frames
        return float((truth[60:, :, 0] - smoothed(truth, **settings)[60:, :, 0]).mean()) / 5

    assert lag() < 0.4
    assert lag(min_cutoff=1.0, beta=4.0) < 1.5 < 4.0 < lag(min_cutoff=1.0, beta=0.0)  # the rise of the cut-off removes it


def test_first_value_and_constant_pass_unchanged():
    euro, xy = OneEuro(), body(np.random.default_rng(1))
    for _ in range(5):
        assert np.allclose(euro(xy, 100.0, 1 / FPS), xy)


def test_size_sets_the_scale():
    """The same motion, twice as large, is filtered the same way."""
    small = np.cumsum(np.random.default_rng(2).normal(0, 1, (40, K, 2)), 0) + body(np.random.default_rng(3))
    assert np.allclose(smoothed(2 * small), 2 * smoothed(small), atol=1e-2)


def test_tracks_do_not_mix_and_lost_ones_start_afresh():
    rng = np.random.default_rng(4)
    a, b = body(rng), body(rng) + 200
    smooth = PoseSmoother(FPS, forget=0.5)
    for _ in range(10):
        out = smooth(frame(np.stack((a, b)), [1, 2])).keypoints.xy.numpy()
        assert np.allclose(out, [a, b], atol=1e-3)
    swapped = smooth(frame(np.stack((b, a)), [2, 1])).keypoints.xy.numpy()  # the rows change places, the ids with them
    assert np.allclose(swapped, [b, a], atol=1e-3)
    for _ in range(20):
        smooth(frame(b[None], [2]))
    back = smooth(frame((a + 50)[None], [1])).keypoints.xy.numpy()[0]
    assert np.allclose(back, a + 50, atol=1e-3) and set(smooth.tracks) == {1, 2}


def test_a_short_gap_counts_as_time():
    a = body(np.random.default_rng(5))
    for missing, share in ((1, 0.3), (10, 0.6)):
        smooth = PoseSmoother(FPS, min_cutoff=2.0, beta=0.0)
        smooth(frame(a[None], [1]))
        for _ in range(missing - 1):
            smooth(frame(a[None] + 300, [9]))
        moved = smooth(frame(a[None] + 10, [1])).keypoints.xy.numpy()[0] - a
        assert np.allclose(moved, moved.flat[0], atol=1e-2)
        assert (moved.mean() / 10 > share) == (missing == 10)


def test_untracked_results_pass():
    result = frame(body(np.random.default_rng(6))[None], None)
    assert PoseSmoother(FPS)(result) is result


def test_input_is_not_changed():
    smooth, a = PoseSmoother(FPS), body(np.random.default_rng(7))
    smooth(frame(a[None], [1]))
    result = frame(a[None] + 20, [1])
    before = result.keypoints.data.clone()
    out = smooth(result)
    assert torch.equal(result.keypoints.data, before) and not torch.equal(out.keypoints.data, before)
    assert out.boxes.id.tolist() == [1]


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_fps_must_be_positive(fps):
    with pytest.raises(ValueError, match="fps must be positive"):
        PoseSmoother(fps)
