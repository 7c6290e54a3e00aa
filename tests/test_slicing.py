"""Sliced prediction: tiles cover, everybody is kept once, and the picture's size costs no memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from erpose_yolo.oks import sigmas_for
from erpose_yolo.slicing import Poses, is_cut, merge, predict_slices, tiles

K = 17
SIGMAS = sigmas_for(K)


def person(x: float, y: float, height: float, seed: int = 0) -> torch.Tensor:
    """(K, 3) joints of a person whose box has the top left corner (x, y) and is half as wide as high."""
    shape = torch.rand(K, 2, generator=torch.Generator().manual_seed(seed))
    shape[0], shape[1] = torch.zeros(2), torch.ones(2)  # the box is tight
    return torch.cat((shape * torch.tensor([height / 2, height]) + torch.tensor([x, y]), torch.ones(K, 1)), 1)


def perfect(picture_persons: list[torch.Tensor], least: float = 0.0):
    """A detector that knows everybody: it reports whoever has a joint in the view, cut at the view's border.

    A tile carries its own place in its first pixel, as a real detector reads its place from nowhere.
    """

    def predict(parts: list[np.ndarray]) -> list[Results]:
        results = []
        for part in parts:
            height, width = part.shape[:2]
            x0, y0 = int(part[0, 0, 0]) * 100, int(part[0, 0, 1]) * 100
            rows, joints = [], []
            for number, joint in enumerate(picture_persons):
                local = joint.clone()
                local[:, :2] -= torch.tensor([x0, y0], dtype=torch.float32)
                inside = ((local[:, :2] >= 0) & (local[:, :2] < torch.tensor([width, height]))).all(1)
                if inside.sum() < 3 or float(joint[:, 1].max() - joint[:, 1].min()) < least * max(height, width):
                    continue
                local[~inside, 2] = 0.1
                seen = local[inside, :2]
                whole = bool(inside.all())
                low, high = seen.amin(0), seen.amax(0)
                if not whole:  # reaches the border that cuts it
                    low = torch.where(local[:, :2].amin(0) < 0, torch.zeros(2), low)
                    limit = torch.tensor([width, height], dtype=torch.float32)
                    high = torch.where(local[:, :2].amax(0) >= limit, limit, high)
                    local[~inside, :2] = seen.mean(0)  # joints it cannot see are guessed, badly
                score = 0.9 - 0.01 * number + 0.05 * (not whole)  # surest of the pieces, as detectors may well be
                rows.append([*low.tolist(), *high.tolist(), score, 0.0])
                joints.append(local)
            boxes = torch.tensor(rows).reshape(-1, 6)
            poses = torch.stack(joints) if joints else torch.zeros(0, K, 3)
            results.append(Results(part, "", {0: "person"}, boxes=boxes, keypoints=poses))
        return results

    return predict


def canvas(height: int, width: int) -> np.ndarray:
    """A picture whose every 100th pixel says where it is."""
    image = np.zeros((height, width, 3), np.uint8)
    image[::100, ::100, 0] = np.arange(0, width, 100)[None] // 100
    image[::100, ::100, 1] = np.arange(0, height, 100)[:, None] // 100
    return image


def run(persons, height, width, sides, overlap, **kwargs):
    picture = canvas(height, width)
    return next(predict_slices(perfect(persons, **kwargs), iter([("a.png", picture)]), sides, 640, None, overlap))


@pytest.mark.parametrize("height, width, side, overlap", [(1000, 1500, 400, 0.2), (500, 2000, 640, 0.0), (333, 777, 100, 0.5)])
def test_tiles_cover_the_picture_and_overlap(height, width, side, overlap):
    seen = np.zeros((height, width), int)
    views = tiles(height, width, side, overlap)
    for x1, y1, x2, y2 in views:
        assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    columns = sorted({v[0] for v in views})
    assert all(b - a <= side * (1 - overlap) + 1 for a, b in zip(columns, columns[1:]))


@pytest.mark.parametrize("side, overlap", [(10, 0.2), (640, 1.0), (640, -0.1)])
def test_tiles_refuse_nonsense(side, overlap):
    with pytest.raises(ValueError, match="slices must be at least 32 px and overlap lie in"):
        tiles(1000, 1000, side, overlap)


def test_small_picture_is_seen_once():
    result = run([person(50, 60, 200)], 400, 500, [640], 0.25)
    assert len(result) == 1


def test_everybody_once_also_those_that_a_border_cuts():
    # tiles of 400 px, a step of 300: the borders lie at 300, 400, 600, 700 ...
    places = [(40, 30), (330, 100), (290, 500), (620, 380), (700, 640), (870, 120), (380, 820)]
    persons = [person(x, y, 80, seed) for seed, (x, y) in enumerate(places)]
    result = run(persons, 1000, 1000, [400], 0.25)
    assert len(result) == len(persons)
    found = result.keypoints.data
    for joints in persons:  # and it is the whole person that is kept, not the piece with guessed joints
        assert (found[:, :, :2] - joints[:, :2]).abs().amax((1, 2)).min() < 1e-3


def test_a_person_larger_than_any_tile_comes_from_the_whole_picture():
    result = run([person(100, 100, 800)], 1000, 1000, [300], 0.25)
    assert len(result) == 1
    assert (result.keypoints.data[0, :, :2] - person(100, 100, 800)[:, :2]).abs().max() < 1e-3


def test_a_person_too_small_for_the_whole_picture_comes_from_a_tile():
    persons = [person(430, 430, 20)]
    alone = run(persons, 1000, 1000, [], 0.25, least=0.05)
    sliced = run(persons, 1000, 1000, [200], 0.25, least=0.05)
    assert (len(alone), len(sliced)) == (0, 1)


def test_two_people_close_together_stay_two():
    persons = [person(330, 100, 80, 1), person(345, 104, 80, 2)]
    assert len(run(persons, 1000, 1000, [400], 0.25)) == 2


def test_classes_and_views_are_kept_apart():
    joints = person(100, 100, 80)[None].repeat(3, 1, 1)
    view = torch.tensor([[0, 0, 400, 400], [0, 0, 400, 400], [50, 50, 450, 450]], dtype=torch.float32)
    box = torch.tensor([[100, 100, 140, 180]], dtype=torch.float32).repeat(3, 1)
    score = torch.tensor([0.9, 0.8, 0.7])

    def kept(category):
        poses = Poses(joints, box, score, torch.tensor(category), view, torch.ones(3))
        return merge(poses, 1000, 1000, SIGMAS).tolist()

    assert kept([0.0, 0.0, 0.0]) == [0, 1]  # the head's own two rows of one view are not ours to judge
    assert kept([0.0, 0.0, 1.0]) == [0, 1, 2]


@pytest.mark.parametrize("grain, kept", [(10.0, [0]), (1.0, [0, 1])])
def test_a_coarse_view_is_forgiven_its_coarseness(grain, kept):
    """Seen at a tenth of the size, a pose 15 px beside is the same person; seen as sharply, it is another one."""
    fine = person(500, 500, 80)
    coarse = fine + torch.tensor([15.0, 0.0, 0.0])
    view = torch.tensor([[400, 400, 800, 800], [0, 0, 4000, 4000]], dtype=torch.float32)
    box = torch.tensor([[500, 500, 540, 580], [515, 500, 555, 580]], dtype=torch.float32)
    score = torch.tensor([0.9, 0.8])
    poses = Poses(torch.stack((fine, coarse)), box, score, torch.zeros(2), view, torch.tensor([1.0, grain]))
    assert merge(poses, 4000, 4000, SIGMAS).tolist() == kept


def test_a_border_of_the_picture_cuts_nobody():
    view = torch.tensor([[0, 0, 400, 400], [0, 0, 400, 400], [300, 0, 700, 400]], dtype=torch.float32)
    box = torch.tensor([[0, 10, 50, 90], [350, 10, 400, 90], [300, 10, 350, 90]], dtype=torch.float32)
    poses = Poses(torch.zeros(3, K, 3), box, torch.ones(3), torch.zeros(3), view, torch.ones(3))
    assert is_cut(poses, 1000, 1000).tolist() == [False, True, True]


def test_tiles_are_predicted_a_batch_at_a_time():
    sizes = []
    detector = perfect([])

    def counting(parts):
        sizes.append(len(parts))
        return detector(parts)

    result = next(predict_slices(counting, iter([("a.png", canvas(2000, 2000))]), [300], 640, None, 0.2, batch=4))
    assert max(sizes) == 4 and sum(sizes) == 1 + len(tiles(2000, 2000, 300, 0.2))
    assert len(result) == 0 and result.orig_shape == (2000, 2000)


def test_through_the_model(tmp_path, monkeypatch):
    """The argument of predict: same layout of Results, a picture saved, errors before any work."""
    from erpose_yolo import ERPose

    monkeypatch.chdir(tmp_path)
    model = ERPose("erpose-n.yaml")
    picture = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    options = {"imgsz": 64, "conf": 1e-6, "max_det": 5, "verbose": False}
    results = model.predict([picture, picture], slices=[128, 160], overlap=0.1, save=True, project=str(tmp_path), **options)
    assert len(results) == 2
    assert results[0].keypoints.data.shape[1:] == (K, 3) and results[0].boxes.data.shape[1] == 6
    assert 5 < len(results[0]) and list(tmp_path.rglob("*.jpg"))
    whole = model.predict(picture, slices=640, **options)[0]  # no slice fits: the plain prediction
    plain = model.predict(picture, **options)[0]
    assert torch.allclose(whole.keypoints.data, plain.keypoints.data, atol=1e-3)
    with pytest.raises(ValueError, match="slices must be"):
        model.predict(picture, slices=8)
