"""One-Euro smoothing: steadier at rest, no lag in motion, one filter per track."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from erpose_yolo import ERPose
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.engine.smoothing import OneEuro, PoseSmoother, TrackSmoother

K, FPS = 17, 30.0


def frame(keypoints: np.ndarray, ids: list[int] | None) -> Results:
    """Results with (P, K, 2) keypoints and track ids."""
    low, high = keypoints.min(1), keypoints.max(1)
    rest = np.array([[i, 0.9, 0] if ids else [0.9, 0] for i in (ids or range(len(keypoints)))], np.float32)
    boxes = torch.tensor(np.concatenate((low, high, rest), 1), dtype=torch.float32)
    points = torch.tensor(np.concatenate((keypoints, np.ones((*keypoints.shape[:2], 1))), 2), dtype=torch.float32)
    return Results(np.zeros((480, 640, 3), np.uint8), "a.mp4", {0: "person"}, boxes=boxes, keypoints=points)


def body(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((100, 100), (160, 220), (K, 2))


def smoothed(track: np.ndarray, **settings) -> np.ndarray:
    """(T, K, 2) keypoints of one track, filtered."""
    smooth = PoseSmoother(FPS, **settings)
    return np.stack([smooth(frame(keypoints[None], [7])).keypoints.xy[0].numpy() for keypoints in track])


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


class Tracker:
    """As much of a stock tracker as the callback reads."""

    def __init__(self) -> None:
        self.frame_id = 0


class Predictor:
    """As much of a stock predictor: frames of its sources, one track in each."""

    def __init__(self, mode: str, trackers: int = 1, fps: float | list[float] | None = None) -> None:
        self.args = SimpleNamespace(mode="track", vid_stride=1)
        self.dataset = SimpleNamespace(mode=mode, **({} if fps is None else {"fps": fps}))
        self.trackers = [Tracker() for _ in range(trackers)]

    def see(self, smoother: TrackSmoother | None, *frames: tuple[str, np.ndarray]) -> list[np.ndarray]:
        self.results = []
        for path, keypoints in frames:
            self.results.append(frame(keypoints[None], [1]))
            self.results[-1].path = path
        for i in range(len(frames)):
            self.trackers[i if self.dataset.mode == "stream" else 0].frame_id += 1
        if smoother is not None:
            smoother(self)
        return [result.keypoints.xy[0].numpy() for result in self.results]


A = body(np.random.default_rng(8))
FAR = A + 300


def test_sources_never_share_a_filter():
    """Streams side by side, one video after another under persist, frames of another size: the first value passes unchanged."""
    predictor, smoother = Predictor("stream", trackers=2), TrackSmoother(FPS, True)
    for _ in range(3):
        for got, wanted in zip(predictor.see(smoother, ("rtsp://a", A), ("rtsp://b", FAR)), (A, FAR)):
            assert np.allclose(got, wanted, atol=1e-3)
    predictor, smoother = Predictor("video"), TrackSmoother(FPS, True)
    predictor.see(smoother, ("a.mp4", A))
    assert np.allclose(predictor.see(smoother, ("b.mp4", FAR))[0], FAR, atol=1e-3)
    assert np.abs(predictor.see(smoother, ("a.mp4", A + 30))[0] - A - 30).max() > 1, "a.mp4 goes on where it was"
    predictor, smoother = Predictor("image"), TrackSmoother(FPS, True)
    predictor.see(smoother, ("image0.jpg", A))
    assert np.abs(predictor.see(smoother, ("frame2.jpg", A + 30))[0] - A - 30).max() > 1, "frames one by one are one source"
    predictor.trackers = [Tracker()]
    assert np.allclose(predictor.see(smoother, ("image0.jpg", FAR))[0], FAR, atol=1e-3), "another tracker"
    predictor.trackers[0].frame_id = 0  # reset by the user: its identities begin again
    assert np.allclose(predictor.see(smoother, ("image0.jpg", A))[0], A, atol=1e-3)


def test_a_predictor_that_does_not_track_is_left_alone():
    predictor, smoother = Predictor("video"), TrackSmoother(FPS, True)
    predictor.args.mode = "predict"
    predictor.see(smoother, ("a.mp4", A))
    assert np.allclose(predictor.see(smoother, ("a.mp4", FAR))[0], FAR, atol=1e-3)


def registered(model: SimpleNamespace) -> TrackSmoother | None:
    found = model.callbacks[TrackSmoother.EVENT][1:]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_later_call_sets_it_anew():
    """The same setting goes on, another one starts afresh, none ends it; the tracker's own callback stays the first."""
    model = SimpleNamespace(callbacks={TrackSmoother.EVENT: ["the tracker's"]})
    TrackSmoother.register(model, 30, True)
    first = registered(model)
    TrackSmoother.register(model, 30, True)
    assert registered(model) is first
    TrackSmoother.register(model, 10, True)
    assert registered(model) is not first and registered(model).smooth == 10
    TrackSmoother.register(model, True, True)
    assert registered(model).smooth is True
    TrackSmoother.register(model, 1, True)
    assert registered(model).smooth is not True
    last = registered(model)
    TrackSmoother.register(model, 1, False)
    assert registered(model) is not last
    TrackSmoother.register(model, 0, True)
    assert registered(model) is None and model.callbacks[TrackSmoother.EVENT] == ["the tracker's"]
    for wrong in (-1, "fast", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="smooth must be frames per second"):
            TrackSmoother.register(model, wrong, True)


@pytest.mark.parametrize(("fps", "stride", "rate"), [(25.0, 1, 25.0), (30.0, 3, 10.0), ([15.0], 1, 15.0)])
def test_the_source_knows_its_rate(fps, stride, rate):
    predictor, smoother = Predictor("stream" if isinstance(fps, list) else "video", fps=fps), TrackSmoother(True, False)
    predictor.args.vid_stride = stride
    predictor.see(smoother, ("a", A))
    (sources,) = smoother.filters.values()
    assert [smooth.fps for smooth in sources.values()] == [rate]


@pytest.mark.parametrize("fps", [None, 25.0])
def test_images_have_no_rate(fps):
    with pytest.raises(ValueError, match="smooth needs a source that knows its frame rate, and images have none"):
        Predictor("image", fps=fps).see(TrackSmoother(True, False), ("a", A))


@pytest.mark.parametrize("fps", [None, 0.0, -5.0, float("nan"), 1000.0, 90000.0, [0]])
def test_a_rate_that_cannot_be_is_the_usual_one_and_said_once(fps, log):
    predictor, smoother = Predictor("stream" if isinstance(fps, list) else "video", fps=fps), TrackSmoother(True, False)
    for _ in range(3):
        predictor.see(smoother, ("a.mp4", A))
    (sources,) = smoother.filters.values()
    assert [smooth.fps for smooth in sources.values()] == [30]
    assert sum("a.mp4: " in line and "cannot be, 30 are assumed" in line for line in log) == 1


def test_a_less_sure_keypoint_is_steadier():
    """Error bars set the strength: one large bar, the others small, and the same tremble."""
    rng = np.random.default_rng(9)
    smooth, points = PoseSmoother(FPS), []
    sigma = np.full((1, K), 3.0)
    sigma[0, 4] = 12.0
    for _ in range(60):
        result = frame(A[None] + rng.normal(0, 1, (1, K, 2)), [1])
        result.erpose = SimpleNamespace(sigma=torch.tensor(sigma))
        out = smooth(result)
        assert out.erpose is result.erpose
        points.append(out.keypoints.xy[0].numpy())
    tremble = np.diff(np.array(points)[10:], axis=0).std((0, 2))
    assert tremble[4] < 0.6 * np.delete(tremble, 4).min()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for number in range(5):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    return path


class Everybody(ERPosePredictor):
    """Two people that walk, whatever the image shows."""

    def postprocess(self, preds, img, orig_imgs, **kwargs):
        self.step = getattr(self, "step", 0) + 1
        keypoints = np.stack((A, A + 400)) + self.step * 10
        results = [frame(keypoints, None) for _ in orig_imgs]
        for result, path in zip(results, self.batch[0]):
            result.path = path
        return results


def test_through_the_model(clip: Path, tmp_path: Path):
    """A changed smooth takes effect in a later call of persist; what is saved is what is returned; slices go with it."""
    model = ERPose("erpose-n.yaml")
    options = {"predictor": Everybody, "tracker": "bytetrack.yaml", "imgsz": 32, "verbose": False}
    image = np.zeros((480, 640, 3), np.uint8)

    def step(smooth):
        return model.track(image, persist=True, smooth=smooth, **options)[0].keypoints.xy[0].numpy()

    plain = [step(0) for _ in range(4)]
    assert np.allclose(np.diff(plain, axis=0), 10, atol=1e-2)
    step(1000)  # at 1000 frames a second, a step of a frame says little: it lags
    lagging = step(1000)
    assert np.abs(lagging - plain[-1] - 20).max() > 5
    assert np.allclose(step(0) - plain[-1], 30, atol=1e-2), "turned off"
    lines = tmp_path / "out" / "labels" / "clip_5.txt"
    last = model.track(str(clip), smooth=True, save=True, save_txt=True, project=str(tmp_path), name="out", **options)[-1]
    assert np.allclose(np.array(lines.read_text().split("\n")[0].split()[5:7], float) * (640, 480), last.keypoints.xy[0, 0], atol=1)
    del options["predictor"]
    found = model.track(str(clip), slices=48, conf=1e-6, smooth=True, **options)
    assert len(found) == 5 and type(model.predictor).__name__.startswith("SlicedPredictor")
