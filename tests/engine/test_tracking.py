"""Tracking: whoever predict shows is followed by default, and a run that a tracker's threshold leaves empty says so once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from erpose_yolo import ERPose
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.engine.tracking import PATIENCE, TRACKER
from erpose_yolo.upstream import compat

FRAMES = 8
SMALL: dict[str, Any] = {"imgsz": 32, "device": "cpu", "verbose": False}


def seeing(score: float | None) -> type[ERPosePredictor]:
    """A predictor that sees two people who stand still, with a score and slightly less; nobody where that is None."""

    class Seeing(ERPosePredictor):
        def postprocess(self, preds: Any, img: Any, orig_imgs: Any, **kwargs: Any) -> list[Any]:
            rows = torch.zeros(0 if score is None else 2, 6 + 51)
            for row, left in zip(rows, (2.0, 18.0)):
                row[:5] = torch.tensor((left, 4.0, left + 10, 28.0, score - left / 1e4))
                row[6:].view(17, 3)[:] = torch.tensor((left + 5, 16.0, 0.9))
            rows = rows[rows[:, 4] > self.args.conf]
            return self.construct_results([rows] * len(img), img, orig_imgs)

    return Seeing


def film(folder: Path, frames: int) -> Path:
    """A video of a still, 32 x 32 px: cameras and people do not move."""
    writer = cv2.VideoWriter(str(folder / "still.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for _ in range(frames):
        writer.write(image)
    writer.release()
    return folder / "still.avi"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clip"), FRAMES)


def warnings(log: list[str]) -> list[str]:
    return [message for message in log if "No identities" in message]


def stock_trackers() -> list[str]:
    return [f"{name}.yaml" for name in TRACKER_MAP]


def test_shown_people_are_followed_by_default(clip: Path, log: list[str]) -> None:
    """0.27 is shown by predict, and far below what TrackTrack, Ultralytics' default, asks of a new track."""
    results = ERPose("erpose-n.yaml").track(clip, predictor=seeing(0.27), **SMALL)
    assert len(results) == FRAMES and not warnings(log)
    assert [result.boxes.id.tolist() for result in results if len(result)] == [[1, 2]] * FRAMES


@pytest.mark.parametrize("words", [[], ["tracker=tracktrack.yaml"]])
def test_the_command_line_follows_them_too(clip: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """``yolo track`` has the same default, and whoever names a tracker gets it."""
    from ultralytics import cfg

    asked: list[str] = []
    monkeypatch.setattr(ERPose, "predict", lambda self, **kwargs: asked.append(kwargs["tracker"]))
    monkeypatch.setattr(cfg, "ARGV", ["yolo", "pose", "track", "model=erpose-n.yaml", f"source={clip}", *words])
    compat.install()
    cfg.entrypoint()
    assert asked == ["tracktrack.yaml" if words else TRACKER]


def test_overrides_of_the_model_win(clip: Path) -> None:
    model = ERPose("erpose-n.yaml")
    model.overrides["tracker"] = "ocsort.yaml"
    model.track(clip, predictor=seeing(0.9), **SMALL)
    assert model.predictor.args.tracker == "ocsort.yaml"


def test_people_below_the_threshold_are_told_of_once(clip: Path, log: list[str]) -> None:
    model = ERPose("erpose-n.yaml")
    results = model.track(clip, predictor=seeing(0.43), tracker="tracktrack.yaml", **SMALL)
    assert all(len(result) == 2 and result.boxes.id is None for result in results)
    (message,) = warnings(log)
    file = check_yaml("tracktrack.yaml")
    settings = YAML.load(file)
    assert f"in {FRAMES} frames scores 0.43" in message and f"from {settings['new_track_thresh']} on" in message
    assert "new_track_thresh and track_high_thresh" in message and str(file) in message
    model.track(clip, tracker="tracktrack.yaml", **SMALL)
    assert len(warnings(log)) == 2  # another run


def test_remedy_names_the_keys_that_are_too_high(clip: Path, log: list[str]) -> None:
    """0.65 passes the first threshold of TrackTrack, so it is the other alone that is to be lowered."""
    ERPose("erpose-n.yaml").track(clip, predictor=seeing(0.65), tracker="tracktrack.yaml", **SMALL)
    assert "Lower new_track_thresh in" in warnings(log)[0]


@pytest.mark.parametrize(("score", "tracker"), [(None, "tracktrack.yaml"), (0.9, "tracktrack.yaml"), (0.43, "bytetrack.yaml")])
def test_no_warning_where_nobody_is_seen_or_tracks_exist(clip: Path, log: list[str], score: float | None, tracker: str) -> None:
    results = ERPose("erpose-n.yaml").track(clip, predictor=seeing(score), tracker=tracker, **SMALL)
    assert any(result.boxes.is_track for result in results) == (score is not None)
    assert not warnings(log)


def test_predict_does_not_warn(clip: Path, log: list[str]) -> None:
    """The callbacks stay on the model."""
    model = ERPose("erpose-n.yaml")
    model.track(clip, predictor=seeing(0.9), tracker="tracktrack.yaml", **SMALL)
    model.predict(clip, predictor=seeing(0.43), **SMALL)
    assert not warnings(log)


@pytest.mark.parametrize("persist", [False, True])
def test_a_stream_that_goes_on_is_told_in_time(tmp_path: Path, log: list[str], persist: bool) -> None:
    """Fed frame by frame, or endless: the warning comes after PATIENCE frames, and once."""
    model, predictor = ERPose("erpose-n.yaml"), seeing(0.43)
    if persist:
        frames = (
            model.track(np.zeros((32, 32, 3), np.uint8), persist=True, predictor=predictor, tracker="tracktrack.yaml", **SMALL)[0]
            for _ in range(2 * PATIENCE + 5)
        )
    else:
        video = film(tmp_path, 2 * PATIENCE + 5)
        frames = model.track(video, stream=True, predictor=predictor, tracker="tracktrack.yaml", **SMALL)
    for _ in range(PATIENCE - 1):
        next(frames)
    assert not warnings(log)
    assert all(result.boxes.id is None for result in frames)
    assert len(warnings(log)) == 1


@pytest.mark.parametrize("tracker", stock_trackers())
def test_stock_trackers_follow(clip: Path, tracker: str) -> None:
    model = ERPose("erpose-n.yaml")
    results = model.track(clip, predictor=seeing(0.9), tracker=tracker, **SMALL)
    assert model.predictor.args.tracker == tracker
    ids = [set(result.boxes.id.tolist()) for result in results if result.boxes.is_track]
    assert len(ids) >= FRAMES - 3 and set.union(*ids) == {1, 2}
