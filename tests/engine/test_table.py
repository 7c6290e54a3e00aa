"""Tables of tracks: the same rows in each format, whole or not there; bad videos; identities of one source alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_smoothing import FPS, A, Everybody, clip, frame  # noqa: F401  a fixture

from erpose_yolo import ERPose
from erpose_yolo.cli import main
from erpose_yolo.engine import table as tables
from erpose_yolo.engine.table import COLUMNS, TrackTable, read_table, smooth_table

K = 17
OPTIONS = {"predictor": Everybody, "tracker": "bytetrack.yaml", "imgsz": 32, "verbose": False}


def people(track: np.ndarray, ids: list[list[int]]) -> list:
    """Results of the frames of (T, P, K, 2) keypoints."""
    return [frame(points[: len(i)], i) if i else frame(points[:1], None) for points, i in zip(track, ids)]


def two(frames: int = 6) -> list:
    return people(np.stack([np.stack((A, A + 300)) + 2 * t for t in range(frames)]), [[1, 2]] * frames)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
@pytest.mark.parametrize("offline", [False, True])
def test_every_format_holds_the_rows(suffix: str, offline: bool, tmp_path: Path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path / "new" / f"people{suffix}"
    with TrackTable(file, offline) as table:
        for result in two():
            table.add(result, fps=FPS)
        assert not file.exists(), "it appears when it is whole"
    rows = read_table(file)
    assert tuple(rows[0]) == COLUMNS and len(rows) == 6 * 2 * K
    row = next(r for r in rows if (int(r["frame"]), int(r["id"]), r["keypoint"]) == (3, 2, "left_wrist"))
    assert np.allclose([float(row["x"]), float(row["y"])], A[9] + 304, atol=0.05 if not offline else 1)
    assert str(row["filled"]) == "False" and float(row["score"]) == 1 and (row["sigma"] in (None, "")) != offline
    assert [p.name for p in file.parent.iterdir()] == [file.name], "nothing is left beside it"


def test_gaps_are_filled_and_marked_but_long_ones_are_not(tmp_path: Path):
    """Who leaves for longer than half a second and returns is two pieces; a frame without anybody is time."""
    ids = [[1]] * 5 + [[]] * 3 + [[1]] * 5 + [[]] * 20 + [[1]]  # at 30 frames a second
    track = np.stack([A[None] + 3 * t for t in range(len(ids))])
    with TrackTable(tmp_path / "a.csv", offline=True) as table:
        for result in people(track, ids):
            table.add(result, fps=FPS)
    rows = read_table(tmp_path / "a.csv")
    filled = {int(r["frame"]) for r in rows if r["filled"] == "True"}
    assert filled == {6, 7, 8} and {int(r["frame"]) for r in rows} == {*range(1, 14), 34}
    nose = next(r for r in rows if (r["frame"], r["keypoint"]) == ("7", "nose"))
    assert np.allclose([float(nose["x"]), float(nose["y"])], A[0] + 18, atol=0.5) and float(nose["score"]) == 0


def test_sources_of_different_pace_do_not_end_each_others_tracks(tmp_path: Path):
    """Number 1 of one camera waits while another delivers: its own next frames decide, and neither is the other's person."""
    seen, nobody = frame(A[None], [1]), frame(A[None], None)
    with TrackTable(tmp_path / "a.csv", offline=True) as table:
        table.add(seen, "slow", FPS)
        for _ in range(40):
            table.add(frame(A[None] + 300, [1]), "fast", FPS)
        table.add(nobody, "slow", FPS)
        table.add(seen, "slow", FPS)
    rows = [r for r in read_table(tmp_path / "a.csv") if r["source"] == "slow"]
    assert {r["frame"] for r in rows if r["filled"] == "True"} == {"2"} and {r["frame"] for r in rows} == {"1", "2", "3"}
    assert all(float(r["x"]) < 300 for r in rows)


def test_saved_tracks_are_smoothed_as_live_ones(tmp_path: Path):
    ids = [[1, 2]] * 4 + [[2]] * 2 + [[1, 2]] * 4 + [[2]] * 20 + [[1, 2]] * 2
    track = np.stack([np.stack((A, A + 300)) + np.random.default_rng(t).normal(0, 2, (2, K, 2)) for t in range(len(ids))])
    track[:, ::-1] = np.where(np.array([len(i) == 1 for i in ids])[:, None, None, None], track, track[:, ::-1])  # row of id 2
    results = people(track, ids)
    for name, offline in (("raw.csv", False), ("live.json", True)):
        with TrackTable(tmp_path / name, offline) as table:
            for result in results:
                table.add(result, fps=FPS)
    smooth_table(tmp_path / "raw.csv", tmp_path / "saved.json", FPS)
    key = lambda r: (r["id"], r["frame"], r["keypoint"])  # noqa: E731
    live, saved = (sorted(read_table(tmp_path / f"{name}.json"), key=key) for name in ("live", "saved"))
    assert [key(r) for r in live] == [key(r) for r in saved] and any(r["filled"] for r in live)
    assert np.allclose([[r["x"], r["y"], r["sigma"]] for r in live], [[r["x"], r["y"], r["sigma"]] for r in saved], atol=0.01)


def test_an_error_leaves_no_table_and_an_interrupt_leaves_a_whole_one(tmp_path: Path):
    file = tmp_path / "people.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), TrackTable(file) as table:
        table.add(two()[0])
        raise RuntimeError
    assert file.read_text() == "old"
    with pytest.raises(KeyboardInterrupt), TrackTable(file) as table:
        table.add(two()[0])
        raise KeyboardInterrupt
    assert len(json.loads(file.read_text())) == 2 * K
    assert [p.name for p in tmp_path.iterdir()] == ["people.json"]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_video_of_nobody_is_an_empty_table(suffix: str, tmp_path: Path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with TrackTable(tmp_path / f"a{suffix}", offline=True) as table:
        for _ in range(3):
            table.add(frame(A[None], None), fps=FPS)
    assert read_table(tmp_path / f"a{suffix}") == []


def test_memory_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Minutes with one person, minutes with nobody: what waits stays bounded."""
    monkeypatch.setattr(tables, "BATCH", 500)
    monkeypatch.setattr(tables, "LONGEST", 50)
    waiting = []
    with TrackTable(tmp_path / "a.csv", offline=True) as table:
        for number in range(400):
            table.add(frame(A[None], [1]) if number < 200 else frame(A[None], None), fps=FPS)
            waiting.append((sum(map(len, table._open.values())), len(table._rows)))
    assert max(w for w, _ in waiting) < 50 and max(r for _, r in waiting) < 500 + 50 * K and waiting[-1][0] == 0
    assert len(read_table(tmp_path / "a.csv")) == 200 * K


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow, or give out=NAME.csv"):
        TrackTable(tmp_path / "people.parquet")
    with pytest.raises(ValueError, match="ends in .csv, .json, .parquet"):
        TrackTable(tmp_path / "people.xls")


def test_a_table_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="a.csv: a table of tracks has the columns"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("stream", [False, True])
def test_through_the_model(stream: bool, clip: Path, tmp_path: Path):  # noqa: F811
    """The table is there when the call or its loop ends, and a later call without out= writes none."""
    model, file = ERPose("erpose-n.yaml"), tmp_path / "people.csv"
    found = model.track(str(clip), stream=stream, out=file, **OPTIONS)
    assert file.exists() != stream
    results = list(found)
    rows = read_table(file)
    assert len(rows) == 5 * 2 * K and {r["source"] for r in rows} == {str(clip)} and rows[-1]["frame"] == "5"
    assert np.allclose([float(rows[-1]["x"]), float(rows[-1]["y"])], results[-1].keypoints.xy[-1, -1], atol=0.01)
    file.unlink()
    list(model.track(str(clip), stream=stream, **OPTIONS))
    assert not file.exists()


def test_a_loop_that_is_left_early_has_its_table(clip: Path, tmp_path: Path):  # noqa: F811
    for number, _ in enumerate(ERPose("erpose-n.yaml").track(str(clip), stream=True, out=tmp_path / "a.csv", **OPTIONS)):
        if number == 1:
            break
    assert len(read_table(tmp_path / "a.csv")) == 2 * 2 * K


def test_two_videos_share_no_identity(clip: Path, tmp_path: Path):  # noqa: F811
    """Number 1 of one video is another person than number 1 of the next: the source tells them apart, smoothed or not."""
    other = clip.with_name("other.avi")
    other.write_bytes(clip.read_bytes())
    for smooth in (0, "offline"):
        ERPose("erpose-n.yaml").track(str(clip.with_name("*.avi")), out=tmp_path / "a.csv", smooth=smooth, **OPTIONS)
        rows = read_table(tmp_path / "a.csv")
        for source in (clip, other):
            assert {int(r["frame"]) for r in rows if r["source"] == str(source)} == set(range(1, 6))


def test_two_streams_side_by_side(clip: Path, tmp_path: Path):  # noqa: F811
    """Cameras, here two files read as streams, in one call: each its own identities and frames."""
    other = clip.with_name("other.avi")
    other.write_bytes(clip.read_bytes())
    (tmp_path / "cameras.streams").write_text(f"{clip}\n{other}\n")
    ERPose("erpose-n.yaml").track(str(tmp_path / "cameras.streams"), out=tmp_path / "a.csv", stream_buffer=True, **OPTIONS)
    rows = read_table(tmp_path / "a.csv")
    assert {r["source"].rpartition("_")[2] for r in rows} == {"clip.avi", "other.avi"}  # streams go by their cleaned names
    assert {int(r["id"]) for r in rows} == {1, 2}


def test_a_video_that_ends_in_the_middle(clip: Path, tmp_path: Path):  # noqa: F811
    """Half of the bytes are gone: the frames that can be read are in the table."""
    cut = tmp_path / "cut.avi"
    content = clip.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    results = ERPose("erpose-n.yaml").track(str(cut), out=tmp_path / "a.csv", smooth="offline", **OPTIONS)
    assert 0 < len(results) < 5
    assert {int(r["frame"]) for r in read_table(tmp_path / "a.csv")} == set(range(1, len(results) + 1))


def test_what_does_not_go_together_is_refused(clip: Path, tmp_path: Path):  # noqa: F811
    model = ERPose("erpose-n.yaml")
    with pytest.raises(ValueError, match="give the table they go to"):
        model.track(str(clip), smooth="offline", **OPTIONS)
    with pytest.raises(ValueError, match="out= is the table of one call"):
        model.track(str(clip), persist=True, out=tmp_path / "a.csv", **OPTIONS)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="images have none"):
        model.track(str(tmp_path / "a.png"), smooth="offline", out=tmp_path / "a.csv", **OPTIONS)
    assert not (tmp_path / "a.csv").exists()


def test_the_command_writes_it(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr(sys, "argv", ["erpose"])
    words = ["track", "model=erpose-n.pt", f"source={clip}", "imgsz=32", f"out={tmp_path / 'a.json'}", "smooth=offline", "conf=0.9"]
    assert main([*words, f"project={tmp_path}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == []
