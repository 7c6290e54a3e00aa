"""benchmarks/accuracy/slices.py: images labelled true to their pixels, and the figures of a detector that is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from benchmarks.accuracy import slices
from erpose_yolo.engine import slicing
from erpose_yolo.method.oks import sigmas_for
from erpose_yolo.metrics.predictions import Predictions, extent_area

K = 17
SHAPE = (3000, 4000)
# height, left, top of people; tiles of 640 px start at 0, 480, 960 ... across and at 0, 472, 944 ... down, and some are cut
PEOPLE = [(20, 650, 650), (45, 700, 650), (90, 750, 650), (150, 850, 650)]
PEOPLE += [(20, 635, 300), (45, 470, 1000), (90, 1100, 1200), (300, 1500, 100), (700, 1900, 100), (1500, 3000, 1000)]


def crowd(places: list[tuple[int, int, int]]):
    """People half as wide as high, their keypoints anywhere in their boxes."""
    height = np.array([p[0] for p in places], float)
    corner = np.array([p[1:] for p in places], float)
    shape = np.random.default_rng(0).random((len(places), K, 2))
    shape[:, 0], shape[:, 1] = 0, 1
    side = np.stack((height / 2, height), 1)
    keypoints = np.concatenate((corner[:, None] + shape * side[:, None], np.full((len(places), K, 1), 2)), 2)
    box = np.concatenate((corner, corner + side), 1)
    return slices.Crowd(np.array(SHAPE), box, keypoints, height, np.ones(len(places), bool))


class Oracle:
    """Knows everybody, but reports only who is of 12 to 400 px in the network's input; bad at keypoints outside its view.

    The pixels say where they are: 24 bits for column and row.
    """

    def __init__(self, people) -> None:
        self.people = people

    @staticmethod
    def image() -> np.ndarray:
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.uint32)
        code = x << 12 | y
        return np.stack((code & 255, code >> 8 & 255, code >> 16), -1).astype(np.uint8)

    def see(self, part: np.ndarray, imgsz: int) -> Results:
        low, mid, high = (int(v) for v in part[0, 0])
        code = high << 16 | mid << 8 | low
        start = np.array((code >> 12, code & 4095))
        limit = np.array(part.shape[1::-1])
        boxes, poses = [], []
        for box, keypoints, height in zip(self.people.box, self.people.keypoints, self.people.height):
            local = keypoints[:, :2] - start
            inside = ((local >= 0) & (local < limit)).all(1)
            if inside.sum() < 3 or not 12 <= height * imgsz / max(limit) <= 400:
                continue
            local = np.where(inside[:, None], local, local[inside].mean(0))
            corners = np.clip(box - np.tile(start, 2), 0, np.tile(limit, 2))
            boxes.append([*corners, 0.8 + 0.1 * (not inside.all()), 0])  # surer of pieces than of people
            poses.append(np.concatenate((local, np.where(inside, 0.9, 0.1)[:, None]), 1))
        tensors = (torch.tensor(np.array(v, np.float32)) for v in (boxes, poses))
        boxes, poses = (v.reshape(len(v), *s) for v, s in zip(tensors, ((6,), (K, 3))))
        return Results(part, "", {0: "person"}, boxes=boxes, keypoints=poses)

    def predict(self, source: str, imgsz: int, slices=None, overlap: float = 0.25, **_) -> list[Results]:
        image = cv2.imread(source)
        if slices is None:
            return [self.see(image, imgsz)]
        height, width = image.shape[:2]
        views = [(0, 0, width, height), *(v for side in slices for v in slicing.tiles(height, width, side, overlap))]
        seen = [(self.see(image[y1:y2, x1:x2], imgsz), (x1, y1, x2, y2)) for x1, y1, x2, y2 in views]
        poses = slicing.Poses.join([slicing.Poses.of(r, v, max(v[2] - v[0], v[3] - v[1]) / imgsz) for r, v in seen])
        poses = poses[slicing.merge(poses, height, width, sigmas_for(K))]
        boxes = torch.cat((poses.box, poses.score[:, None], poses.category[:, None]), 1)
        return [Results(image, source, {0: "person"}, boxes=boxes, keypoints=poses.keypoints)]


@pytest.fixture(scope="module")
def coded(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("coded") / "a.png"
    cv2.imwrite(str(file), Oracle.image(), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return file


@pytest.mark.parametrize(
    "mode, found",
    [
        ("640", [0, 0, 2, 1, 1, 1, 1]),  # 75 to 2,500 px; no tile, no border
        ("1280", [0, 2, 2, 1, 1, 1, 0]),  # 37.5 to 1,250 px
        ("640:640,1600", [2, 2, 2, 1, 1, 1, 1]),
    ],
)
def test_recall_has_the_steps_of_a_known_detector(coded, mode, found):
    people = crowd(PEOPLE)
    run = slices.measure(Oracle(people), slices.Mode.parse(mode), [coded], [people], 0.25, 0.25)
    assert run["persons"] == [2, 2, 2, 1, 1, 1, 1]
    assert run["found"] == found
    assert (run["twice"], run["false_positives"]) == (0, 0)


def test_people_kept_twice_are_counted(coded, monkeypatch):
    monkeypatch.setattr(slicing, "merge", lambda poses, *_: torch.arange(len(poses)))
    people = crowd(PEOPLE)
    run = slices.measure(Oracle(people), slices.Mode.parse("640:640"), [coded], [people], 0.25, 0.25)
    assert 2 < run["twice"] <= sum(run["found"])


def test_again_nobody_and_hidden_people(coded):
    people = crowd([(100, 100, 100), (100, 400, 100), (100, 800, 100)])
    people.shown[1] = False
    elsewhere = people.keypoints[0] + (1500, 1500, 0)
    keypoints = np.stack(
        (people.keypoints[0], people.keypoints[0] + (1, 1, 0), elsewhere, people.keypoints[1], people.keypoints[1])
    )
    none = np.zeros(len(keypoints), int)
    truth = slices.truth_of([coded], [people])
    times, false = slices.count(truth, Predictions(none, none, np.linspace(0.9, 0.5, 5), keypoints, extent_area(keypoints)))
    assert times[~truth.ignore].tolist() == [2, 0]
    assert false == 1
    nothing = Predictions(none[:0], none[:0], np.zeros(0), keypoints[:0], np.zeros(0))
    assert slices.count(truth, nothing)[0].tolist() == [0, 0, 0]


def test_images_are_labelled_true_to_their_pixels():
    image, people = slices.render([3, 1], 480, 24, (15, 250))
    again, _ = slices.render([3, 1], 480, 24, (15, 250))
    assert np.array_equal(image, again) and image.shape == (360, 480, 3)
    assert people.height.min() < 20 and 200 < people.height.max() <= 250
    box, keypoints = people.box[people.shown], people.keypoints[people.shown]
    tall, height = box[:, 3] - box[:, 1], people.height[people.shown]
    assert (box >= 0).all() and (box[:, 2:] <= (480, 360)).all()
    assert (tall <= height + 3).all() and np.isclose(tall, height, atol=3).sum() >= 5
    assert (tall < 0.9 * height).any()  # somebody stands behind somebody
    seen = keypoints[..., 2] == 2
    away = np.maximum(box[:, None, :2] - keypoints[..., :2], keypoints[..., :2] - box[:, None, 2:]).max(-1)
    assert away[seen].max() < 2 < away[keypoints[..., 2] == 1].max()
    assert set(np.unique(keypoints[..., 2])) == {1, 2}
