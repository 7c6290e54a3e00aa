"""Sliced prediction: tiles cover, everybody is kept once, and the image's size costs no memory."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from erpose_yolo import ERPose
from erpose_yolo.engine.slicing import (
    COARSE_CELL,
    SEEN,
    Poses,
    SlicedPredictor,
    is_cut,
    merge,
    parse_sides,
    sliced_predictor,
    tiles,
)
from erpose_yolo.method.oks import object_area, oks, sigmas_for

K = 17
SIGMAS = sigmas_for(K)


def person(x: float, y: float, height: float, seed: int = 0) -> torch.Tensor:
    """(K, 3) keypoints of a person whose box has the top left corner (x, y) and is half as wide as high."""
    shape = torch.rand(K, 2, generator=torch.Generator().manual_seed(seed))
    shape[0], shape[1] = torch.zeros(2), torch.ones(2)  # the box is tight
    return torch.cat((shape * torch.tensor([height / 2, height]) + torch.tensor([x, y]), torch.ones(K, 1)), 1)


def perfect(image_persons: list[torch.Tensor], least: float = 0.0):
    """A detector that knows everybody: it reports whoever has a keypoint in the view, cut at the view's border.

    A tile carries its own place in its first pixel, as a real detector reads its place from nowhere.
    """

    def predict(parts: list[np.ndarray]) -> list[Results]:
        results = []
        for part in parts:
            height, width = part.shape[:2]
            x0, y0 = int(part[0, 0, 0]) * 100, int(part[0, 0, 1]) * 100
            rows, keypoints = [], []
            for number, keypoint in enumerate(image_persons):
                local = keypoint.clone()
                local[:, :2] -= torch.tensor([x0, y0], dtype=torch.float32)
                inside = ((local[:, :2] >= 0) & (local[:, :2] < torch.tensor([width, height]))).all(1)
                if inside.sum() < 3 or float(keypoint[:, 1].max() - keypoint[:, 1].min()) < least * max(height, width):
                    continue
                local[~inside, 2] = 0.1
                seen = local[inside, :2]
                whole = bool(inside.all())
                low, high = seen.amin(0), seen.amax(0)
                if not whole:  # reaches the border that cuts it
                    low = torch.where(local[:, :2].amin(0) < 0, torch.zeros(2), low)
                    limit = torch.tensor([width, height], dtype=torch.float32)
                    high = torch.where(local[:, :2].amax(0) >= limit, limit, high)
                    local[~inside, :2] = seen.mean(0)  # keypoints it cannot see are guessed, badly
                score = 0.9 - 0.01 * number + 0.05 * (not whole)  # surest of the pieces, as detectors may well be
                rows.append([*low.tolist(), *high.tolist(), score, 0.0])
                keypoints.append(local)
            boxes = torch.tensor(rows).reshape(-1, 6)
            poses = torch.stack(keypoints) if keypoints else torch.zeros(0, K, 3)
            results.append(Results(part, "", {0: "person"}, boxes=boxes, keypoints=poses))
        return results

    return predict


def canvas(height: int, width: int) -> np.ndarray:
    """An image whose every 100th pixel says where it is."""
    image = np.zeros((height, width, 3), np.uint8)
    image[::100, ::100, 0] = np.arange(0, width, 100)[None] // 100
    image[::100, ::100, 1] = np.arange(0, height, 100)[:, None] // 100
    return image


def sliced(detector, sides, overlap, at_once=8) -> SlicedPredictor:
    """A predictor with a detector in place of its network."""

    class Sliced(sliced_predictor(tuple(sides), overlap, at_once)):
        def detect(self, crops, path, *args, **kwargs):
            return detector(crops), 640

    predictor = Sliced.__new__(Sliced)
    predictor.args = SimpleNamespace(verbose=False, max_det=300, embed=None, visualize=False)
    predictor.model = SimpleNamespace(format="pt", names={0: "person"}, model=None)
    predictor.source_type = SimpleNamespace(tensor=False)
    return predictor


def run(persons, height, width, sides, overlap, **kwargs):
    predictor = sliced(perfect(persons, **kwargs), sides, overlap)
    predictor.batch = ["a.png"], [canvas(height, width)], [""]
    return predictor.postprocess(predictor.inference(None), None, predictor.batch[1])[0]


@pytest.mark.parametrize("height, width, side, overlap", [(1000, 1500, 400, 0.2), (500, 2000, 640, 0.0), (333, 777, 100, 0.5)])
def test_tiles_cover_the_image_and_overlap(height, width, side, overlap):
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


def test_small_image_is_seen_once():
    result = run([person(50, 60, 200)], 400, 500, [640], 0.25)
    assert len(result) == 1


def test_everybody_once_also_those_that_a_border_cuts():
    # tiles of 400 px, a step of 300: the borders lie at 300, 400, 600, 700 ...
    places = [(40, 30), (330, 100), (290, 500), (620, 380), (700, 640), (870, 120), (380, 820)]
    persons = [person(x, y, 80, seed) for seed, (x, y) in enumerate(places)]
    result = run(persons, 1000, 1000, [400], 0.25)
    assert len(result) == len(persons)
    found = result.keypoints.data
    for keypoints in persons:  # and it is the whole person that is kept, not the piece with guessed keypoints
        assert (found[:, :, :2] - keypoints[:, :2]).abs().amax((1, 2)).min() < 1e-3


def test_a_person_larger_than_any_tile_comes_from_the_whole_image():
    result = run([person(100, 100, 800)], 1000, 1000, [300], 0.25)
    assert len(result) == 1
    assert (result.keypoints.data[0, :, :2] - person(100, 100, 800)[:, :2]).abs().max() < 1e-3


def test_a_person_too_small_for_the_whole_image_comes_from_a_tile():
    persons = [person(430, 430, 20)]
    alone = run(persons, 1000, 1000, [], 0.25, least=0.05)
    sliced = run(persons, 1000, 1000, [200], 0.25, least=0.05)
    assert (len(alone), len(sliced)) == (0, 1)


def test_two_people_close_together_stay_two():
    persons = [person(330, 100, 80, 1), person(345, 104, 80, 2)]
    assert len(run(persons, 1000, 1000, [400], 0.25)) == 2


def test_classes_and_views_are_kept_apart():
    keypoints = person(100, 100, 80)[None].repeat(3, 1, 1)
    view = torch.tensor([[0, 0, 400, 400], [0, 0, 400, 400], [50, 50, 450, 450]], dtype=torch.float32)
    box = torch.tensor([[100, 100, 140, 180]], dtype=torch.float32).repeat(3, 1)
    score = torch.tensor([0.9, 0.8, 0.7])

    def kept(category):
        poses = Poses(keypoints, box, score, torch.tensor(category), view, torch.ones(3), torch.zeros(3, 0))
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
    poses = Poses(torch.stack((fine, coarse)), box, score, torch.zeros(2), view, torch.tensor([1.0, grain]), torch.zeros(2, 0))
    assert merge(poses, 4000, 4000, SIGMAS).tolist() == kept


def test_a_border_of_the_image_cuts_nobody():
    view = torch.tensor([[0, 0, 400, 400], [0, 0, 400, 400], [300, 0, 700, 400]], dtype=torch.float32)
    box = torch.tensor([[0, 10, 50, 90], [350, 10, 400, 90], [300, 10, 350, 90]], dtype=torch.float32)
    poses = Poses(torch.zeros(3, K, 3), box, torch.ones(3), torch.zeros(3), view, torch.ones(3), torch.zeros(3, 0))
    assert is_cut(poses, 1000, 1000).tolist() == [False, True, True]


def test_tiles_are_predicted_a_batch_at_a_time():
    sizes = []
    detector = perfect([])

    def counting(parts):
        sizes.append(len(parts))
        return detector(parts)

    predictor = sliced(counting, [300], 0.2, at_once=4)
    predictor.batch = ["a.png"], [canvas(2000, 2000)], [""]
    result = predictor.postprocess(predictor.inference(None), None, predictor.batch[1])[0]
    views = 1 + len(tiles(2000, 2000, 300, 0.2))
    assert max(sizes) == 4 and sum(sizes) == views == predictor.views[0]
    assert len(result) == 0 and result.orig_shape == (2000, 2000)
    predictor.model.format = "onnx"  # of fixed batch
    sizes.clear()
    predictor.inference(None)
    assert set(sizes) == {1}


def per_keypoint_sampling(poses: Poses, height: int, width: int, sigmas: torch.Tensor, threshold: float) -> list[int]:
    """The rule of merge() written down, a pose after the other."""
    cut = is_cut(poses, height, width)
    order = sorted(range(len(poses)), key=lambda i: (bool(cut[i]), -float(poses.score[i])))
    area = object_area(poses.box)
    kept: list[int] = []
    for i in order:
        for j in kept:
            if poses.category[i] != poses.category[j] or bool((poses.view[i] == poses.view[j]).all()):
                continue
            low, high = (
                f(poses.view[i], poses.view[j])[half] for f, half in ((torch.maximum, slice(2)), (torch.minimum, slice(2, 4)))
            )
            xy = poses.keypoints[i, :, :2]
            shared = ((xy >= low) & (xy < high)).all(-1)
            visible = shared & (poses.keypoints[i, :, 2] >= SEEN)
            target = torch.cat((xy, (visible if visible.any() else shared)[:, None].float()), 1)
            tolerated = torch.maximum(area[j], (COARSE_CELL * torch.maximum(poses.grain[i], poses.grain[j])).square())
            if oks(poses.keypoints[j, :, :2], target, tolerated, sigmas) >= threshold:
                break
        else:
            kept.append(i)
    best = torch.tensor(kept, dtype=torch.long)
    return best[poses.score[best].argsort(descending=True, stable=True)].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_the_merge_is_the_rule_of_its_docstring(seed, monkeypatch):
    """Random crowds in random views, with chunks so small that their borders fall among the poses."""
    rng = torch.Generator().manual_seed(seed)
    k, side = (17, 5)[seed % 2], (300, 500)[seed % 3 == 0]
    people, seen = int(torch.randint(2, 15, (1,), generator=rng)), 90
    truth = torch.rand(people, 1, 2, generator=rng) * side + torch.rand(people, k, 2, generator=rng) * (80, 80, 80, 2)[seed % 4]
    who = torch.randint(0, people, (seen,), generator=rng)
    grain = torch.rand(seen, generator=rng) * 4 + 0.2
    xy = truth[who] + torch.randn(seen, k, 2, generator=rng) * (6, 6, 6, 0.1)[seed % 4] * torch.rand(seen, 1, 1, generator=rng)
    xy = xy + torch.randn(seen, 1, 2, generator=rng) * 9 * (seed % 4 == 3)
    corner = (torch.randint(0, 3, (seen, 2), generator=rng) * side / 3).round()
    view = torch.cat((corner, corner + (side * (0.4, 1.0)[seed % 2])), 1)
    box = torch.cat((xy.amin(1), xy.amax(1)), 1)
    keypoints = torch.cat((xy, torch.rand(seen, k, 1, generator=rng)), 2)
    score = (torch.rand(seen, generator=rng) * 20).round() / 20  # with ties
    poses = Poses(keypoints, box, score, torch.randint(0, 2, (seen,), generator=rng).float(), view, grain, torch.zeros(seen, 0))
    sigmas, threshold = sigmas_for(k), (0.5, 0.3, 0.9)[seed % 3]
    wanted = per_keypoint_sampling(poses, side, side, sigmas, threshold)
    assert 0 < len(wanted) < seen
    assert merge(poses, side, side, sigmas, threshold).tolist() == wanted
    monkeypatch.setattr("erpose_yolo.engine.slicing.ROWS", 7)
    monkeypatch.setattr("erpose_yolo.engine.slicing.PAIRS", 5)
    assert merge(poses, side, side, sigmas, threshold).tolist() == wanted


def test_nobody_is_merged_into_nobody():
    nothing = (torch.zeros(0) for _ in range(2))
    empty = Poses(torch.zeros(0, K, 3), torch.zeros(0, 4), *nothing, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 0))
    assert merge(empty, 10, 10, SIGMAS).tolist() == []


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        (640, (640,)),
        ("640", (640,)),
        ("640,1600", (640, 1600)),
        ((640, 1600), (640, 1600)),
        ([64.0], (64,)),
        (" 64 , 32 ", (64, 32)),
    ],
)
def test_sides(given, sides):
    assert parse_sides(given) == sides


@pytest.mark.parametrize(
    "given", ["many", "", True, 64.5, [], [640, None], {640: 1}, math.nan, math.inf, "640;1600", "(640, 1600)"]
)
def test_what_is_no_side_is_refused(given):
    with pytest.raises(ValueError, match="slices must be the side of the tiles in pixels"):
        parse_sides(given)


@pytest.mark.parametrize("overlap", ["much", None, math.nan])
def test_what_is_no_overlap_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap a share such as 0.25"):
        parse_sides(640, overlap)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ERPose("erpose-n.yaml")


OPTIONS = {"imgsz": 64, "conf": 1e-6, "max_det": 5, "verbose": False}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_through_the_model(model):
    """The argument of predict: same layout of Results, errors before any work, and no trace in the next prediction."""
    image = noise(200, 300)
    plain = model.predict(image, **OPTIONS)[0]
    results = model.predict([image, image], slices="128,160", overlap=0.1, **{**OPTIONS, "max_det": 30})
    assert len(results) == 2 and isinstance(model.predictor, SlicedPredictor)
    assert results[0].keypoints.data.shape[1:] == (K, 3) and results[0].boxes.data.shape[1] == 6
    assert 5 < len(results[0]) <= 30 and torch.equal(results[0].keypoints.data, results[1].keypoints.data)
    whole = model.predict(image, slices=640, **OPTIONS)[0]  # no slice fits: the plain prediction
    assert torch.allclose(whole.keypoints.data, plain.keypoints.data, atol=1e-3)
    kept = model.predictor
    model.predict(image, slices=[640], **OPTIONS)
    assert model.predictor is kept, "the same settings build no new predictor"
    again = model.predict(image, **OPTIONS)[0]
    assert not isinstance(model.predictor, SlicedPredictor) and torch.equal(again.keypoints.data, plain.keypoints.data)
    for wrong, message in (
        ({"slices": 8}, "slices must be at least 32"),
        ({"slices": 64, "overlap": 1}, "overlap lie in"),
        ({"slices": 64, "predictor": SlicedPredictor}, "either slices= or predictor="),
        ({"slices": 64, "visualize": True}, "does not go with visualize="),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(image, **OPTIONS, **wrong)
    with pytest.raises(ValueError, match="a tensor as the source"):
        model.predict(torch.zeros(1, 3, 64, 64), slices=32, **OPTIONS)


def video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(frames):
        writer.write(noise(64, 96))
    writer.release()
    return path


def test_saving_overwrites_nothing(model, tmp_path):
    """As plain predict saves: a video stays a video of all its frames, and equal names become two files."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "street.png"), noise(64, 96))
        video(tmp_path / folder / "clip.avi", 3)
    (tmp_path / "list.txt").write_text("\n".join(f"{tmp_path}/{f}/{n}" for f in "ab" for n in ("street.png", "clip.avi")))
    saved = {}
    for name, extra in (("plain", {}), ("sliced", {"slices": 48})):
        model.predict(str(tmp_path / "list.txt"), save=True, save_txt=True, project=str(tmp_path), name=name, **extra, **OPTIONS)
        folder = tmp_path / name
        saved[name] = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert saved["plain"] == saved["sliced"] and len([n for n in saved["sliced"] if "labels" not in n]) == 4
    for name in ("clip.avi", "clip-2.avi"):
        capture = cv2.VideoCapture(str(tmp_path / "sliced" / name))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3


def test_it_shows_how_far_it_is_and_counts(model, tmp_path, log, capsys):
    """Also with few views: a bar over them, and persons and views in the line of each image."""
    cv2.imwrite(str(tmp_path / "a.png"), noise(64, 96))
    found = model.predict(str(tmp_path / "a.png"), slices=64, **{**OPTIONS, "verbose": True})[0]
    line = next(line for line in log if "a.png" in line)
    assert f" {len(found)} " in line and line.rstrip().endswith("3 views")
    shown = capsys.readouterr()
    assert "poses in views" in shown.out + shown.err and "3/3" in shown.out + shown.err
    model.predict(str(tmp_path / "a.png"), slices=64, **OPTIONS)
    assert "views" not in "".join(capsys.readouterr())


def test_random_weights_are_said_once(log, tmp_path):
    model = ERPose("erpose-n.yaml")
    for _ in range(2):
        model.predict(noise(64, 64), **OPTIONS)
    assert sum("random weights" in line for line in log) == 1
    model.save(tmp_path / "random.pt")  # a file does not make them better
    ERPose(tmp_path / "random.pt").predict(noise(64, 64), **OPTIONS)
    assert sum("random weights" in line for line in log) == 2
    trained = ERPose("erpose-n.pt")
    trained.predict(noise(64, 64), **OPTIONS)
    ERPose("erpose-n.yaml").load("erpose-n.pt").predict(noise(64, 64), **OPTIONS)
    assert sum("random weights" in line for line in log) == 2
