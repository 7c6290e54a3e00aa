"""Tracking by keypoints: people who cross keep their numbers, sources share none, bad input ends nothing, memory stays bounded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_smoothing import Everybody, clip  # noqa: F401  a fixture
from ultralytics.engine.results import Results
from ultralytics.trackers.track import TRACKER_MAP, on_predict_postprocess_end
from ultralytics.utils import YAML, IterableSimpleNamespace

from erpose_yolo import ERPose, catalog
from erpose_yolo.engine.oks_tracker import NAME, OKSTracker

K = 17
IMAGE = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)


def made(**settings: Any) -> OKSTracker:
    file = catalog.resolve_tracker(f"{NAME}.yaml")
    return OKSTracker(IterableSimpleNamespace(**{**YAML.load(file), "gmc_method": "none", "device": "cpu", **settings}))


def seen(keypoints: np.ndarray, score: Any = 0.9, visible: Any = 1.0) -> Results:
    """Results of (P, K, 2) keypoints."""
    count = len(keypoints)
    box = np.concatenate((keypoints.min(1), keypoints.max(1)), 1) if count else np.zeros((0, 4))
    rows = np.column_stack((box, np.broadcast_to(score, count), np.zeros(count)))
    points = np.concatenate((keypoints, np.broadcast_to(visible, keypoints.shape[:2])[..., None]), 2)
    tensors = {"boxes": torch.tensor(rows, dtype=torch.float32), "keypoints": torch.tensor(points, dtype=torch.float32)}
    return Results(IMAGE, "a.mp4", {0: "person"}, **tensors)


def follow(tracker: Any, results: list[Results], sigmas: Any = None) -> list[Results]:
    """Track by the stock callback; with ``persist``, which never resets."""
    out = []
    for result in results:
        step = SimpleNamespace(args=SimpleNamespace(mode="track", task="pose"), dataset=SimpleNamespace(mode="image"), sigmas=sigmas)
        step.trackers, step.results = [tracker], [result]
        on_predict_postprocess_end(step, persist=True)
        out += step.results
    return out


def ids(results: list[Results]) -> list[list[int]]:
    return [[] if r.boxes.id is None else r.boxes.id.int().tolist() for r in results]


def pose(seed: int, k: int = K) -> np.ndarray:
    return np.random.default_rng(seed).uniform((0, 0), (40, 90), (k, 2))


def crossing(frames: int = 41) -> list[Results]:
    """Two people of equal boxes who walk through one another; the first is always the one who goes right."""
    a, b = pose(0), pose(1)
    for extreme in (a, b):
        extreme[:2] = (0, 0), (40, 90)
    return [seen(np.stack((a + (100 + 4 * t, 50), b + (260 - 4 * t, 50)))) for t in range(frames)]


def by_row(results: list[Results]) -> list[tuple[int, ...]]:
    """Number of the one who goes right and of the one who goes left, in each frame, told by where the sixth keypoint is."""
    out = []
    for t, result in enumerate(results):
        where = pose(0)[5, 0] + 100 + 4 * t
        number = {abs(float(x) - where) < 0.1: int(n) for x, n in zip(result.keypoints.xy[:, 5, 0], result.boxes.id)}
        out.append((number[True], number[False]))
    return out


def test_people_who_cross_keep_their_numbers():
    """Their boxes are one where they meet, and their keypoints are not."""
    assert set(by_row(follow(made(), crossing()))) == {(1, 2)}


def test_each_is_the_row_of_its_detection():
    out = follow(made(), crossing(3))
    assert len(out[-1]) == 2 and torch.equal(out[-1].keypoints.xy, crossing(3)[-1].keypoints.xy[out[-1].boxes.id.long() - 1])
    assert torch.allclose(out[-1].boxes.xyxy, crossing(3)[-1].boxes.xyxy[out[-1].boxes.id.long() - 1]), "boxes as found"


def test_a_number_survives_a_gap_in_motion_and_not_a_long_one():
    walk = [seen(pose(0)[None] + (5 * t, 0)) for t in range(60)]
    nobody = seen(np.zeros((0, K, 2)))
    out = ids(follow(made(), [*walk[:15], *[nobody] * 20, *walk[35:40]]))
    assert out[:15] == [[1]] * 15 and out[35:] == [[1]] * 5
    out = ids(follow(made(), [*walk[:15], *[nobody] * 35, *walk[50:]]))
    assert out[-1] == [2] and [] in out[50:52], "it is new, and shown from its second frame on"


def test_a_track_of_a_frame_is_not_shown_and_takes_no_number():
    flash = seen(np.stack((pose(0), pose(1) + 300)))
    alone = [seen(pose(0)[None])] * 3
    out = ids(follow(made(), [*alone, flash, *alone, flash, flash, flash]))
    assert out == [[1]] * 8 + [[1, 2]] * 2


def test_a_second_pose_of_a_person_starts_no_track():
    twice = [seen(np.stack((pose(0), pose(0) + 1)), (0.9, 0.4)) for _ in range(5)]
    assert ids(follow(made(), [seen(pose(0)[None])] + twice)) == [[1]] * 6


def test_hidden_keypoints_do_not_count():
    """Legs that are nowhere, known to be hidden, lose nobody; the same legs taken for seen do."""
    wild = pose(0)
    out = {}
    for confidence in (0.05, 1.0):
        visible = np.ones((1, K))
        visible[:, 8:] = confidence
        rng = np.random.default_rng(3)
        film = []
        for _ in range(12):
            points = wild.copy()
            points[8:] = rng.uniform(0, 400, (K - 8, 2))
            result = seen(points[None], visible=visible)
            result.boxes.data[:, :4] = torch.tensor((0.0, 0, 40, 90))
            film.append(result)
        made_of = made(match_thresh=0.5)
        out[confidence] = ids(follow(made_of, film))
    assert out[0.05] == [[1]] * 12 and out[1.0] != out[0.05]


def test_error_bars_widen_the_tolerance():
    def distance(sigma: float | None) -> float:
        tracker = made()
        first, second = seen(pose(0)[None]), seen(pose(0)[None] + 15)
        if sigma is not None:
            second.erpose = SimpleNamespace(sigma=torch.full((1, K), sigma))
        extras = [tracker.compute_frame_extras(SimpleNamespace(results=[r]))[0] for r in (first, second)]
        rows = [tracker._detections(r.boxes.cpu().numpy(), *e) for r, e in zip((first, second), extras)]
        return float(tracker._similarity(*rows, 1.0)[0, 0])

    assert distance(None) == distance(0.0) < distance(10.0) - 0.1


def test_own_keypoints_and_sigmas_are_honoured():
    """Five keypoints, and tolerances so tight that a step of a pixel is another person."""
    film = [seen(pose(0, 5)[None] + 6 * (t % 2)) for t in range(6)]
    assert ids(follow(made(match_thresh=0.5), film, [0.3] * 5))[1:] == [[1]] * 5
    assert ids(follow(made(match_thresh=0.5), film, [0.001] * 5))[1:] != [[1]] * 5
    with pytest.raises(ValueError, match="kpt_oks_sigmas must hold 5"):
        follow(made(), film, [0.1] * 4)


def test_the_camera_carries_those_who_are_lost():
    """The camera turns by 12 px a frame while a person is hidden: found again where the ground says, not where it was."""
    ground = np.random.default_rng(5).integers(0, 255, (60, 200, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    film = []
    for t in range(24):
        result = seen(pose(0)[None] + (400 - 12 * t, 60)) if t < 8 or t > 18 else seen(np.zeros((0, K, 2)))
        result.orig_img = np.ascontiguousarray(ground[:, 12 * t : 12 * t + 400])
        film.append(result)
    assert ids(follow(made(gmc_method="sparseOptFlow"), film))[-1] == [1]
    film[12].orig_img = film[12].orig_img[::2, ::2]  # frames that change their size end nothing
    follow(made(gmc_method="sparseOptFlow"), film)


def test_minutes_with_nobody_and_many_who_pass_leave_nothing():
    tracker = made()
    rng = np.random.default_rng(6)
    most = 0
    for t in range(2000):
        people = np.stack([pose(int(i)) + rng.uniform(0, 4000, 2) for i in rng.integers(0, 99, 3)]) if t < 1000 else np.zeros((0, K, 2))
        follow(tracker, [seen(people)])
        most = max(most, len(tracker.tracks))
    assert most < 3 * 33 and len(tracker.tracks) == len(tracker.tracked_stracks) == len(tracker.lost_stracks) == 0
    assert not tracker.removed_stracks


def test_strange_detections_end_nothing():
    """No area, keypoints of another number, no keypoint seen, NaN scores filtered by nobody."""
    flat = seen(np.repeat([[[5.0, 5.0]]], K, 1).repeat(2, 0))
    tracker = made()
    out = follow(tracker, [flat, seen(pose(0, 5)[None]), seen(pose(0)[None], visible=0.0), flat, seen(np.zeros((0, K, 2)))])
    assert len(out) == 5 and all(torch.isfinite(r.boxes.data).all() for r in out)


def test_a_model_without_keypoints_is_told():
    boxes = Results(IMAGE, "a", {0: "person"}, boxes=torch.tensor([[0.0, 0, 9, 9, 0.9, 0]]))
    with pytest.raises(ValueError, match="compares keypoints, and this model finds none"):
        follow(made(), [boxes])


def test_found_by_name_and_streams_share_nothing(clip: Path, tmp_path: Path):  # noqa: F811
    """Side by side each stream has a tracker of its own, whose numbers begin at 1; a later video begins anew."""
    other = clip.with_name("other.avi")
    other.write_bytes(clip.read_bytes())
    (tmp_path / "cameras.streams").write_text(f"{clip}\n{other}\n")
    model = ERPose("erpose-n.yaml")
    options = {"predictor": Everybody, "tracker": f"{NAME}.yaml", "imgsz": 32, "verbose": False}
    results = model.track(str(tmp_path / "cameras.streams"), stream_buffer=True, **options)
    assert [type(t) for t in model.predictor.trackers] == [OKSTracker] * 2 and model.predictor.trackers[0].tracks is not None
    assert {tuple(r.boxes.id.int().tolist()) for r in results if r.boxes.id is not None} <= {(1, 2), (1,), (2,), (2, 1)}
    for _ in range(2):
        assert ids(model.track(str(clip), **options)) == [[1, 2]] * 5
    image = np.zeros((480, 640, 3), np.uint8)
    model.predictor = None
    kept = [model.track(image, persist=True, **options)[0] for _ in range(4)]
    assert ids(kept) == [[1, 2]] * 4 and TRACKER_MAP[NAME] is OKSTracker
