"""benchmarks/accuracy/video.py: clips that are what their labels say, and figures that are right where they are known."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.accuracy import moving_people, moving_photos, video
from benchmarks.accuracy.copy_paste import Cutout
from erpose_yolo import ERPose


@pytest.fixture(scope="module")
def filmed() -> list:
    """Twelve frames; their images are not to be written to."""
    return moving_people.clip(1, size=160, frames=12, people=(5, 5))


@pytest.fixture
def two() -> list:
    """Forty frames of two people who swing to and fro, far from each other, in the pose of a sine."""
    out = []
    for t in range(40):
        k = np.arange(17)
        pose = np.stack((60 + 20 * np.sin(k + t / 6), 40 + 7 * k, np.full(17, 2)), 1)
        keypoints = np.stack((pose, pose + (150, 0, 0))).astype(np.float32)
        boxes = np.concatenate((keypoints[..., :2].min(1), keypoints[..., :2].max(1)), 1)
        out.append(moving_people.Frame(np.zeros((320, 320, 3), np.uint8), np.array([4, 9]), boxes, keypoints))
    return out


def known(clip: list, ids: list[list[int]], shift: np.ndarray | float = 0) -> list:
    """The truth as tracks with these ids in each frame, keypoints and boxes shifted."""
    out = []
    for frame, numbers in zip(clip, ids):
        keypoints, boxes = frame.keypoints.copy(), np.zeros((len(frame.ids), 7))
        keypoints[..., :2] += shift
        boxes[:, :4], boxes[:, 4], boxes[:, 5] = frame.boxes, numbers, 0.9
        tensors = {"boxes": torch.tensor(boxes, dtype=torch.float32), "keypoints": torch.tensor(keypoints)}
        out.append(video.Results(frame.image, "", {0: "person"}, **tensors))
    return out


def test_background_stands_and_people_move(filmed: list):
    frames = np.stack([frame.image for frame in filmed]).astype(float)
    change = np.abs(frames[6:].mean(0) - frames[:6].mean(0)).mean(-1)  # sensor noise averaged away
    away = np.ones(change.shape, bool)
    for frame in filmed:
        for x0, y0, x1, y1 in frame.boxes.astype(int):
            away[max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8] = False  # with shadow and blur
    assert away.mean() > 0.3
    assert np.quantile(change[away], 0.999) < 8 < change[~away].max()
    assert not np.array_equal(frames[0], frames[1])


def test_keypoints_are_smooth_and_on_the_person(filmed: list):
    before: dict[int, np.ndarray] = {}
    steps = []
    for frame in filmed:
        assert len(frame.ids) == len(set(frame.ids.tolist())) == len(frame.boxes) == len(frame.keypoints) >= 2
        for number, box, keypoints in zip(frame.ids.tolist(), frame.boxes, frame.keypoints):
            seen = keypoints[keypoints[:, 2] == 2, :2]
            assert (seen >= box[:2] - 2).all() and (seen <= box[2:] + 2).all()
            if number in before:
                both = (keypoints[:, 2] > 0) & (before[number][:, 2] > 0)
                steps.append(np.linalg.norm(keypoints - before[number], axis=1)[both].max(initial=0))
        before = dict(zip(frame.ids.tolist(), frame.keypoints))
    assert 0.3 < np.median(steps) and max(steps) < 8  # px a frame, of people 30 to 70 px tall


def test_seed_decides_the_clip(filmed: list):
    again, other = (moving_people.clip(seed, size=160, frames=12, people=(5, 5)) for seed in (1, 2))
    assert np.array_equal(again[-1].image, filmed[-1].image) and np.array_equal(again[-1].keypoints, filmed[-1].keypoints)
    assert not np.array_equal(other[-1].image, filmed[-1].image)


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])
def test_perfect_detections_are_tracked_perfectly(two: list, tracker: str):
    pytest.importorskip("trackeval")
    tracks = video.follow(video.from_truth(two, 0, 0), tracker, 0.25)
    for by in ("OKS", "IoU"):
        figures = video.score(two, tracks, by)
        assert figures.pop("HOTA", 1) == pytest.approx(1)
        assert figures == {"IDF1": 1, "switches": 0, "recall": 1, "frames with ids": 1}


def test_trackers_keep_their_own_scores_where_none_is_given(two: list):
    """0.9 is enough for TrackTrack, 0.5 is not, and ByteTrack follows both; a start that is given holds for every tracker."""
    pytest.importorskip("trackeval")
    sure = video.from_truth(two, 0, 0)
    unsure = [result.new() for result in sure]
    for result, old in zip(unsure, sure):
        result.update(boxes=old.boxes.data * torch.tensor((1, 1, 1, 1, 0.5 / 0.9, 1)))
        result.keypoints = old.keypoints

    def share(found: list, tracker: str, start: float | None) -> float:
        return video.score(two, video.follow(found, tracker, start))["frames with ids"]

    assert share(sure, "tracktrack", None) == pytest.approx(1, abs=0.1)  # it confirms a track in the second frame
    assert share(unsure, "tracktrack", None) == 0
    assert share(unsure, "tracktrack", 0.25) == pytest.approx(1, abs=0.1)
    assert share(unsure, "bytetrack", None) == 1
    assert share(unsure, "bytetrack", 0.6) == 0


def bars() -> moving_photos.Scene:
    """A photo of three people: bars of one colour each, with keypoints along their middle."""
    image = np.full((400, 600, 3), 20, np.uint8)
    boxes, keypoints = [], np.zeros((3, 17, 3))
    for i in range(3):
        x = 120 + 150 * i
        image[100:300, x - 12 : x + 12] = 80 + 40 * i
        boxes.append((x - 12, 100, x + 12, 300))
        keypoints[i, :9] = np.stack((np.full(9, x), np.linspace(110, 290, 9), np.full(9, 2)), 1)
    return image, np.array(boxes, float), keypoints


def walker(colour: int = 240) -> Cutout:
    """A cut-out: a bar, too."""
    level = np.full((120, 30, 4), colour, np.uint8)
    level[..., 3] = 255
    keypoints = np.zeros((17, 3))
    keypoints[:10] = np.stack((np.full(10, 15), np.linspace(8, 112, 10), np.full(10, 2)), 1)
    return Cutout([level], keypoints, 3600, True, "a")


def test_a_camera_films_a_photo_and_walkers():
    """Who is where is where the frames show them; the covered are hidden; the camera moves, and the same people walk on."""
    clip = moving_photos.clip(1, bars(), [walker()], size=296, frames=30)
    covered, counts = 0, set()
    for frame in clip:
        assert frame.image.shape == (296, 296, 3) and len(frame.ids) == len(frame.boxes) == len(frame.keypoints)
        for number, box, keypoints in zip(frame.ids, frame.boxes, frame.keypoints):
            spots = keypoints[:, :2].astype(int).clip(0, 295)
            colour = frame.image[spots[:, 1], spots[:, 0], 0].astype(float)
            own = 80 + 40 * number if number < 3 else 240
            nearest = (240 - own) / 2 + 10  # outlines are soft
            assert np.abs(colour[keypoints[:, 2] == 2] - own).max() < max(nearest, 30)
            if number < 3:
                assert np.abs(colour[keypoints[:, 2] == 1] - 240).max(initial=0) < nearest
            covered += (keypoints[:, 2] == 1).sum()
            seen = keypoints[keypoints[:, 2] == 2, :2]
            assert (seen >= box[:2] - 2).all() and (seen <= box[2:] + 2).all()
        counts |= set(frame.ids.tolist())
    assert covered > 5 and len(counts) >= 5
    assert np.array_equal(clip[-1].image, moving_photos.clip(1, bars(), [walker()], size=296, frames=30)[-1].image)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two such photos; the cut-outs are made up."""
    monkeypatch.setattr(moving_photos, "cutouts", lambda folder, half: [walker()])
    image, boxes, keypoints = bars()
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "bars" / kind / split).mkdir(parents=True)
    sides = np.array(image.shape[1::-1])
    rows = [
        np.concatenate(([0], (box[:2] + box[2:]) / 2 / sides, (box[2:] - box[:2]) / sides, (points / [*sides, 1]).ravel()))
        for box, points in zip(boxes, keypoints)
    ]
    for name in "ab":
        cv2.imwrite(str(tmp_path / "bars" / "images" / "val" / f"{name}.png"), image)
        np.savetxt(tmp_path / "bars" / "labels" / "val" / f"{name}.txt", rows)
    data = tmp_path / "bars" / "data.yaml"
    data.write_text(f"path: {tmp_path / 'bars'}\ntrain: images/train\nval: images/val\nkpt_shape: [17, 3]\nnames: {{0: person}}\n")
    return data


def test_too_few_photos_are_an_error(photo: Path):
    with pytest.raises(ValueError, match="2 val photos show three to twelve .* Fix: "):
        moving_photos.clips(str(photo), "", "val", 2, 4, 120)


def test_the_command_fills_a_table_of_the_trackers(
    photo: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One drawn and one panned clip; the result file says which trackers and photos, and where no folder lies."""
    pytest.importorskip("trackeval")
    monkeypatch.setattr(video, "ORACLES", {"true keypoints": (0.0, 0.0)})
    argv = ["video.py", "--photos", str(photo), "--cutouts", "x", "--trackers", "ocsort", "bytetrack", "--clips", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--photo-clips", "1", "--frames", "24", "--size", "120", "--people", "3", "3"])
    video.main()
    text = (results / "video.json").read_text()
    record = json.loads(text)
    assert record["setup"]["trackers"] == ["ocsort", "bytetrack"] and record["setup"]["photos"] == "bars/data.yaml"
    assert str(photo.parent.parent) not in text
    drawn, pan = record["runs"][0]["clips"]
    (clip,) = moving_photos.clips(str(photo), "", "val", 1, 24, 120)
    assert pan == {"kind": "photos", **video.figures(clip, video.from_truth(clip, 0, 0), 0.25, ["ocsort", "bytetrack"])}
    header, _, *rows = (line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert header[1:3] == ["ocsort", "bytetrack"]
    assert [row[0] for row in rows] == ["| true keypoints, drawn", "| true keypoints, photos"]
    for clip_of, row in zip((drawn, pan), rows):
        figures = clip_of["tracking"]["bytetrack"]
        each = [f"{100 * figures[key]:.1f}" for key in ("IDF1", "IDF1 by IoU", "HOTA")]
        assert row[2] == ", ".join((*each, f"{figures['switches']:.1f}"))
        assert row[5].count(" / ") == 2, "raw, One-Euro, offline"


@pytest.mark.parametrize(("more", "word"), [(["--conf", "0.3"], "not allowed with"), ([], "give --weights NAME=FILE")])
def test_stock_takes_weights_and_no_start(
    more: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["video.py", "--stock", *more])
    with pytest.raises(SystemExit):
        video.main()
    assert word in capsys.readouterr().err


def test_swapped_identities_are_counted(two: list):
    pytest.importorskip("trackeval")
    figures = video.score(two, known(two, [[1, 2]] * 20 + [[2, 1]] * 20))
    assert figures["switches"] == 2 and figures["IDF1"] == 0.5  # each track is right half of the time
    assert figures["recall"] == 1


def test_poses_far_off_are_misses_and_false_alarms(two: list):
    pytest.importorskip("trackeval")
    figures = video.score(two, known(two, [[1, 2]] * 40, 60.0))
    assert figures["IDF1"] == figures["recall"] == 0
    assert video.score(two, known(two, [[1, 2]] * 40, 60.0), "IoU")["IDF1"] == 1  # the boxes are right


def test_steadiness_of_known_noise_and_delay(two: list):
    rng, ids = np.random.default_rng(0), [[1, 2]] * 40
    exact = known(two, ids)
    figures = video.steadiness(two, exact, video.matches(two, exact))
    assert figures["jitter"] == figures["error"] == 0 and figures["lag"] == pytest.approx(0, abs=0.01)  # the parabola's own error
    noisy = [known([f], [i], rng.normal(0, 1.5, (2, 17, 2)))[0] for f, i in zip(two, ids)]
    figures = video.steadiness(two, noisy, video.matches(two, noisy))
    assert figures["error"] == pytest.approx(1.5 * 2**0.5, rel=0.05)
    assert figures["jitter"] == pytest.approx(1.5 * 12**0.5, rel=0.05)  # 1 + 4 + 1 variances, two coordinates
    late = known([two[0]] * 3 + two[:-3], ids)
    figures = video.steadiness(two, late, video.matches(two, exact))
    assert figures["lag"] == pytest.approx(3, abs=0.02)


def test_nothing_tracked_has_no_figures(two: list):
    empty = [result[:0] for result in known(two, [[1, 2]] * 40)]
    assert video.steadiness(two, empty, video.matches(two, empty)) is None


@pytest.mark.slow
def test_follow_is_what_track_does(filmed: list, tmp_path: Path):
    """Random weights with a bias towards persons: the same rows and ids from stored detections as from track()."""
    torch.manual_seed(0)
    model, file = ERPose("erpose-n.yaml"), tmp_path / "weights.pt"
    last = model.model.model[-1].one2one_score[-1][-1]
    torch.nn.init.zeros_(last.bias)  # the cells of the coarsest level score 0.5 and about
    for conv in model.model.model[-1].deployed.spread:
        torch.nn.init.constant_(conv.bias, -2.0)  # and are sure of their keypoints
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # unless its normalisation fits, a random network sees next to nothing of its input
        model.model.train()(torch.from_numpy(np.stack([frame.image for frame in filmed])).permute(0, 3, 1, 2) / 255)
    model.save(file)
    found = video.detector("erpose-n", file, None, Namespace(conf=0.25, imgsz=160, device="cpu", cache=None))(filmed)
    options = {"tracker": "bytetrack.yaml", "conf": 0.1, "imgsz": 160, "device": "cpu", "verbose": False}
    model = ERPose(file)
    direct = [model.track(frame.image, persist=t > 0, **options)[0] for t, frame in enumerate(filmed)]
    tracked = [video.persons(result) for result in video.follow(found, "bytetrack", 0.25)]
    for ours, theirs in zip(tracked, direct):
        for a, b in zip(ours, video.persons(theirs)):
            assert np.array_equal(a, b)
    assert len(np.unique(torch.cat([r.boxes.conf for r in found]))) > 20
    assert sum(len(ids) for ids, *_ in tracked) > 50


def test_no_lag_where_no_shift_fits_best() -> None:
    """Somebody who stands still fits the truth at every shift: there is no lag to tell, and the rest is still measured."""
    frame = moving_people.Frame
    keypoints = np.concatenate((np.random.default_rng(0).uniform(100, 200, (1, 17, 2)), np.full((1, 17, 1), 2)), 2)
    image, ids, boxes = np.zeros((8, 8, 3), np.uint8), np.array([3]), np.array([[90.0, 90, 210, 210]])
    clip = [frame(image, ids, boxes, keypoints) for _ in range(40)]
    found = video.follow(video.from_truth(clip, 0.0, 0.0), "bytetrack", 0.25)
    got = video.steadiness(clip, found, video.matches(clip, found))
    assert got["lag"] is None and got["jitter"] == pytest.approx(0, abs=1e-3) and got["error"] == pytest.approx(0, abs=1e-3)
