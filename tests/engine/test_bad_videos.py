"""Videos that are not as they should be: smoothing and tables go through, say what they assume, and hold no more than they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_smoothing import FPS, A, Predictor, body, frame

from erpose_yolo import ERPose
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.engine.smoothing import TrackSmoother
from erpose_yolo.engine.table import TrackTable, read_table

K, RATE = 17, 10.0
WAYS: dict[str, dict[str, Any]] = {
    "smooth": {"smooth": True},
    "table": {"out": "people.csv"},
    "smooth and table": {"smooth": True, "out": "people.json"},
    "offline": {"smooth": "offline", "out": "people.csv"},
}
ways = pytest.mark.parametrize("way", list(WAYS))


def film(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (96, 64))
    for number in range(frames):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    return path


def seeing(people: Callable[[int], int], at: np.ndarray = A) -> type[ERPosePredictor]:
    """A predictor that sees so many people in each frame, counted from 0; they move by 2 px a frame."""

    class Seeing(ERPosePredictor):
        step = -1

        def postprocess(self, preds: Any, img: Any, orig_imgs: Any, **kwargs: Any) -> list[Any]:
            found = []
            for path in self.batch[0]:
                self.step += 1
                poses = np.stack([at + 150 * p + 2 * self.step for p in range(2)])
                found.append(frame(poses, None)[: people(self.step)])
                found[-1].path = path
            return found

    return Seeing


def go(video: Path, people: Callable[[int], int], way: str, **kwargs: Any) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Results of a video and the rows of its table, None where no table was asked for."""
    options = {"predictor": seeing(people), "tracker": "bytetrack.yaml", "imgsz": 32, "device": "cpu", "verbose": False}
    results = ERPose("erpose-n.yaml").track(str(video), **options, **WAYS[way], **kwargs)
    for result in results:
        assert torch.isfinite(result.keypoints.data).all()
    rows = read_table(WAYS[way]["out"]) if "out" in WAYS[way] else None
    assert rows is None or all(np.isfinite([float(row["x"]), float(row["y"])]).all() for row in rows)
    return results, rows


def frames_of(rows: list[dict[str, Any]], filled: bool = False) -> set[int]:
    return {int(row["frame"]) for row in rows if str(row["filled"]) == str(filled)}


def opened(monkeypatch: pytest.MonkeyPatch, rate: float | None = None, stamps: list[float] | None = None) -> None:
    """Let videos say another frame rate, or other time stamps in seconds, than they have."""

    real = cv2.VideoCapture

    class Capture:
        """Around a capture: OpenCV's own class crashes where it is inherited from."""

        def __init__(self, *args: Any) -> None:
            self.real, self.grabbed = real(*args), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def grab(self) -> bool:
            self.grabbed += 1
            return self.real.grab()

        def get(self, prop: int) -> float:
            if prop == cv2.CAP_PROP_FPS and rate is not None:
                return rate
            if prop == cv2.CAP_PROP_POS_MSEC and stamps is not None and self.real.isOpened():
                return 1000 * stamps[self.grabbed - 1]
            return self.real.get(prop)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)


@ways
@pytest.mark.parametrize("rate", [0.0, float("nan"), 1000.0])
def test_a_wrong_frame_rate(rate: float, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    opened(monkeypatch, rate)
    results, rows = go(film(tmp_path / "a.avi", 6), lambda step: 2, way)
    assert [result.boxes.id.tolist() for result in results] == [[1, 2]] * 6
    assert rows is None or frames_of(rows) == set(range(1, 7))
    told = sum("frames per second cannot be, 30 are assumed" in line for line in log)
    assert told == (way != "table"), "a table of raw keypoints needs no rate"


@ways
@pytest.mark.parametrize("uneven", [True, False])
def test_frames_that_come_unevenly(uneven: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """A rate that varies is told once, with the command that makes it even; a dropped frame now and then is not."""
    gaps = np.tile([0.05, 0.15] if uneven else [0.1, 0.1, 0.1, 0.1, 0.2], 20)
    opened(monkeypatch, stamps=np.cumsum(gaps).tolist())
    results, rows = go(film(tmp_path / "a.avi", 12), lambda step: 2, way)
    assert len(results) == 12 and (rows is None or frames_of(rows) == set(range(1, 13)))
    told = [line for line in log if "a.avi: its frames are not 0.100 s apart" in line]
    assert len(told) == (uneven and way != "table") and all("ffmpeg -i a.avi -vf fps=10" in line for line in told)


def test_several_frames_at_once_are_still_even(tmp_path: Path, log: list[str]) -> None:
    """Time stamps are those of the last frame of a batch."""
    results, _ = go(film(tmp_path / "a.avi", 30), lambda step: 2, "smooth", batch=4)
    assert len(results) == 30 and not [line for line in log if "frames are not" in line]


@ways
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_video_that_ends_in_the_middle(share: float, way: str, tmp_path: Path) -> None:
    content = film(tmp_path / "whole.avi", 10).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: int(share * len(content))])
    results, rows = go(tmp_path / "cut.avi", lambda step: 2, way)
    assert 0 < len(results) < 10
    assert rows is None or frames_of(rows) == set(range(1, len(results) + 1))


@ways
def test_a_video_without_its_header_leaves_no_table(way: str, tmp_path: Path) -> None:
    content = film(tmp_path / "whole.avi", 10).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[:20])
    with pytest.raises(FileNotFoundError, match="Failed to open video"):
        go(tmp_path / "cut.avi", lambda step: 2, way)
    assert not list(tmp_path.glob("people*"))


@ways
@pytest.mark.parametrize("frames", [1, 12])
def test_a_track_of_one_frame(frames: int, way: str, tmp_path: Path) -> None:
    """A film of one frame, and somebody who is gone after the first: where they were seen is where they are."""
    results, rows = go(film(tmp_path / "a.avi", frames), lambda step: 2 if step == 0 else 1, way)
    assert len(results) == frames
    if rows is not None:
        second = [row for row in rows if int(row["id"]) == 2]
        assert frames_of(second) == {1} and not frames_of(second, filled=True)
        assert np.allclose([[float(row["x"]), float(row["y"])] for row in second], A + 150, atol=0.01)


@ways
def test_people_who_leave_and_return(way: str, tmp_path: Path) -> None:
    """Two seconds away: nothing is made up for them, and a smoother begins afresh."""
    here = {*range(5), *range(25, 30)}
    results, rows = go(film(tmp_path / "a.avi", 30), lambda step: step in here, way)
    there = [len(result) for result in results]
    back = 1 + max(i for i, n in enumerate(there) if n == 0)
    assert sum(there[:5]) == 5 and not any(there[5:25]) and back < 29
    if rows is not None:
        assert frames_of(rows) == {i + 1 for i, n in enumerate(there) if n} and not frames_of(rows, filled=True)
    if "smooth" in way:
        assert np.allclose(results[back].keypoints.xy[0].numpy(), A + 2 * back, atol=0.01)


def test_two_streams_in_one_process(tmp_path: Path) -> None:
    """Models side by side, frame by frame: each result and each table is what it is alone."""
    videos = [film(tmp_path / "a.avi", 8), film(tmp_path / "b.avi", 8)]
    far = body(np.random.default_rng(1)) + 200
    makers = [seeing(lambda step: 1 + (step > 3)), seeing(lambda step: 2, far)]

    def start(i: int, name: str) -> Any:
        options = {"predictor": makers[i], "tracker": "bytetrack.yaml", "imgsz": 32, "device": "cpu", "verbose": False}
        return ERPose("erpose-n.yaml").track(str(videos[i]), stream=True, smooth=True, out=tmp_path / f"{name}{i}.csv", **options)

    alone = [list(start(i, "alone")) for i in (0, 1)]
    together = list(zip(*(start(i, "together") for i in (0, 1)), strict=True))
    for i in (0, 1):
        for one, both in zip(alone[i], together, strict=True):
            assert one.boxes.is_track == both[i].boxes.is_track and torch.equal(one.boxes.data, both[i].boxes.data)
            assert torch.equal(one.keypoints.data, both[i].keypoints.data)
        assert read_table(tmp_path / f"alone{i}.csv") == read_table(tmp_path / f"together{i}.csv")
    assert {int(row["id"]) for row in read_table(tmp_path / "together0.csv")} == {1, 2}


def test_nobody_for_minutes_and_people_who_come_and_go(tmp_path: Path) -> None:
    """What is held is what is in sight: two minutes of one passer-by after another, then two minutes of nobody."""
    minutes = int(2 * 60 * FPS)
    predictor, smoother = Predictor("video", fps=FPS), TrackSmoother(True, False)
    predictor.model, held = None, []
    with TrackTable(tmp_path / "a.csv", offline=True) as table:
        for number in range(2 * minutes):
            result = frame(A[None], [1 + number // 60] if number < minutes and number % 60 < 4 else None)
            result.path = "a.mp4"
            predictor.results = [result]
            predictor.trackers[0].frame_id += 1
            smoother(predictor)
            table(predictor)
            (sources,) = smoother.filters.values()
            (filters,) = (one.tracks for one in sources.values())
            held.append((len(filters), sum(map(len, table._open.values())), len(table._rows)))
    filters, waiting, rows = np.array(held).max(0)
    assert filters <= 2 and waiting <= 5 and rows < 20_000 + 60 * K and held[-1][:2] == (0, 0)
    assert len({row["id"] for row in read_table(tmp_path / "a.csv")}) == minutes // 60
