"""The synthetic people: labels agree with the image, the set is reproducible and never half made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from erpose_yolo.data.check import FAR_HIDDEN
from erpose_yolo.data.synth import SynthConfig, contact_sheet, generate, render_scene
from erpose_yolo.data.synth import dataset as dataset_module
from erpose_yolo.data.synth import scene as scene_module
from erpose_yolo.data.synth.body import Outfit
from erpose_yolo.data.synth.camera import Camera
from erpose_yolo.data.synth.pose import ACTIVITIES, draw_activity, sample_pose
from erpose_yolo.data.synth.scene import box_iou, compose, make_actor, max_iou, photograph
from erpose_yolo.data.synth.skeleton import COCO, FRAME, LIMITS, POINT, Proportions, sample_proportions, solve

SMALL = SynthConfig(images=6, val_images=3, size=96, seed=5)
PLAIN = Outfit(hair="short", hat="none", hood=False)


def _camera(size: int = 200, height: float = 1.0) -> Camera:
    return Camera(focal=1.2 * size, centre=(size / 2, size / 2), height=height)


def _shot(actors, camera=None, size: int = 200):
    return compose(np.random.default_rng(0), actors, camera or _camera(size), (size, size), props=False)


def _standing(seed: int, yaw: float, at: tuple[float, float, float], body: Proportions | None = None):
    actor = make_actor(np.random.default_rng(seed), "stand", yaw, body or Proportions(), PLAIN)
    return actor.moved(np.array(at))


def _tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# --- configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("people", (4, 2)), ("people", (-1, 2)), ("people", 3), ("size", 31), ("crowding", -0.1), ("crowding", 0.81),
        ("images", -1), ("val_images", -2), ("empty", 1.5), ("seed", -1), ("images", 2.5), ("aspect", 0.0),
        ("crowding", float("nan")), ("size", True), ("activities", ("stand", "swim")), ("activities", "stand"), ("plain", 1),
    ],
)  # fmt: skip
def test_wrong_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SynthConfig(**{field: value})


def test_crowding_needs_two_people() -> None:
    with pytest.raises(ValueError, match="crowding"):
        SynthConfig(people=(1, 1), crowding=0.3)


def test_aspect_gives_the_shape() -> None:
    assert SynthConfig(size=320).shape == (320, 320)
    assert SynthConfig(size=320, aspect=2.0).shape == (160, 320)
    assert SynthConfig(size=320, aspect=0.5).shape == (320, 160)


def test_import_is_light() -> None:
    loaded = "print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    code = f"import sys, erpose_yolo.data.synth; {loaded}"
    probe = f"import sys, erpose_yolo.data; {loaded}"
    root = Path(__file__).parents[2]
    without, with_synth = (
        subprocess.run([sys.executable, "-c", c], cwd=root, capture_output=True, text=True, check=True).stdout
        for c in (probe, code)
    )
    assert with_synth == without  # whatever the parent packages do, the generator adds nothing


# --- bodies and poses


def test_keypoints_never_bend_backwards() -> None:
    rng = np.random.default_rng(0)
    for k in range(26 * 8):
        pose, _ = sample_pose(rng, ACTIVITIES[k % len(ACTIVITIES)])
        assert set(pose) == set(LIMITS)
        for name, (low, high) in LIMITS.items():
            assert low <= pose[name] <= high, name
        points, frames = solve(sample_proportions(rng), pose)
        for side in "lr":
            shin = points[POINT[f"{side}_ankle"]] - points[POINT[f"{side}_knee"]]
            shin = frames[FRAME[f"{side}_thigh"]].T @ (shin / np.linalg.norm(shin))
            assert shin[2] <= 1e-9 and abs(shin[0]) < 1e-9  # backwards only, in the hinge's plane
            fore = points[POINT[f"{side}_wrist"]] - points[POINT[f"{side}_elbow"]]
            fore = frames[FRAME[f"{side}_upper"]].T @ (fore / np.linalg.norm(fore))
            assert fore[2] >= -1e-9 and abs(fore[0]) < 1e-9  # forwards only


def test_limits_hold_for_any_angles() -> None:
    points, frames = solve(Proportions(), dict.fromkeys(LIMITS, -500.0))
    for side in "lr":  # hyperextension is clipped to a straight limb
        for frame, a, b in (("thigh", "knee", "ankle"), ("upper", "elbow", "wrist")):
            bone = points[POINT[f"{side}_{b}"]] - points[POINT[f"{side}_{a}"]]
            assert (frames[FRAME[f"{side}_{frame}"]].T @ bone)[1] == pytest.approx(-np.linalg.norm(bone))


def test_rotations_are_proper_and_bones_keep_their_length() -> None:
    rng = np.random.default_rng(1)
    body = Proportions()
    for _ in range(20):
        points, frames = solve(body, {**sample_pose(rng)[0], "yaw": rng.uniform(-180, 180)})
        assert np.allclose(frames @ frames.transpose(0, 2, 1), np.eye(3), atol=1e-9)
        assert np.allclose(np.linalg.det(frames), 1)
        thigh = np.linalg.norm(points[POINT["l_knee"]] - points[POINT["l_hip"]])
        assert thigh == pytest.approx(body.leg * body.height)


def test_unknown_activity() -> None:
    with pytest.raises(ValueError, match="activity"):
        sample_pose(np.random.default_rng(0), "swim")


# --- labels


@pytest.mark.parametrize(("yaw", "sign"), [(180.0, 1), (0.0, -1)])
def test_left_and_right(yaw: float, sign: int) -> None:
    """Facing the camera, the anatomical left is on the image's right; from behind it is on the left."""
    for seed in range(4):
        _, _, keypoints, _ = _shot([_standing(seed, yaw, (0, 0, 4.0))])
        for left, right in ((1, 2), (3, 4), (5, 6), (11, 12), (15, 16)):
            assert COCO[left].startswith("left") and COCO[right].startswith("right")
            assert sign * (keypoints[0, left, 0] - keypoints[0, right, 0]) > 0


def test_upright_order() -> None:
    _, boxes, keypoints, _ = _shot([_standing(0, 180.0, (0, 0, 4.0))])
    nose, shoulder, hip, knee, ankle = (keypoints[0, j, 1] for j in (0, 5, 11, 13, 15))
    assert boxes[0, 1] < nose < shoulder < hip < knee < ankle < boxes[0, 3]


def test_face_shows_only_from_the_front() -> None:
    for seed in range(4):
        _, _, front, _ = _shot([_standing(seed, 180.0, (0, 0, 3.0))])
        _, _, back, _ = _shot([_standing(seed, 0.0, (0, 0, 3.0))])
        assert (back[0, :3, 2] == 1).all()  # nose and eyes are there, but not seen
        assert (front[0, 5:7, 2] == 2).all() and (back[0, 5:7, 2] == 2).all()
    actor = make_actor(np.random.default_rng(9), "stand", 90.0, Proportions(), Outfit(hair="none"))
    facing = actor.facing[:, 0]  # yaw 90: the person looks along +x, which is the image's left
    _, _, side, _ = _shot([actor.moved(np.array((0, 0, 3.0)))])
    near, far = (3, 4) if actor.facing[3, 2] < actor.facing[4, 2] else (4, 3)
    assert side[0, near, 2] == 2 and side[0, far, 2] == 1 and facing[0] > 0.2


def test_people_looking_away_never_show_their_eyes() -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        actor = make_actor(rng, "walk", rng.uniform(-35, 35)).moved(np.array((0, 0, 4.0)))
        towards_lens = -actor.keypoints[:5] + np.array((0, 1.0, 0))
        away = np.einsum("ij,ij->i", actor.facing, towards_lens) < 0
        _, _, keypoints, _ = _shot([actor])
        assert not (keypoints[0, :5, 2] == 2)[away].any()


def test_the_hidden_behind_another_person_are_marked() -> None:
    wide = Proportions(height=1.9, girth=1.5)
    front = _standing(0, 180.0, (0, 0, 2.5), wide)
    behind = _standing(1, 180.0, (0.22, 0, 3.1))
    _, boxes, keypoints, raster = _shot([front, behind])
    assert len(boxes) == 2
    alone = _shot([behind])[2][0]
    hidden, labelled = keypoints[1], 0
    for j in range(17):
        x, y = int(hidden[j, 0]), int(hidden[j, 1])
        if hidden[j, 2] and raster.owner[y, x] == 0:
            assert hidden[j, 2] == 1
            labelled += alone[j, 2] == 2
    assert labelled >= 4  # some of which would be seen without the one in front
    assert (keypoints[0] == _shot([front])[2][0]).all()  # the one in front is not changed by the one behind


def test_exactly_behind_is_hidden_or_left_out() -> None:
    front = _standing(0, 180.0, (0, 0, 2.2), Proportions(height=1.9, girth=1.5))
    behind = _standing(0, 180.0, (0, 0, 5.0), Proportions(height=1.0))
    _, boxes, keypoints, raster = _shot([front, behind])
    shown = int((raster.owner == 1).sum())
    if shown < max(12, 0.1 * raster.own_area[1]):
        assert len(boxes) == 1
    else:
        covered = [j for j in range(17) if raster.owner[int(keypoints[1, j, 1]), int(keypoints[1, j, 0])] == 0]
        assert len(covered) > 8 and (keypoints[1, covered, 2] == 1).all()


def test_own_limbs_hide_keypoints_too() -> None:
    """From the side, the far shoulder and hip lie behind the trunk."""
    _, _, keypoints, _ = _shot([_standing(2, 90.0, (0, 0, 3.0))])
    near, far = (6, 5) if keypoints[0, 5, 2] == 1 else (5, 6)
    assert keypoints[0, far, 2] == 1 and keypoints[0, near, 2] == 2


def test_v_is_zero_exactly_outside() -> None:
    camera = Camera(focal=420, centre=(100, 100), height=1.4)
    actors = [_standing(0, 180.0, (0.1, 0, 1.7)), _standing(1, 200.0, (-0.6, 0, 2.4))]
    _, boxes, keypoints, _ = _shot(actors, camera)
    assert len(boxes) == 2
    zeros = 0
    for actor, points in zip(actors, keypoints, strict=True):
        pixels, _ = camera.project(actor.keypoints)
        inside = (pixels >= 0).all(1) & (pixels < 200).all(1)
        assert ((points[:, 2] > 0) == inside).all()
        assert (points[~inside] == 0).all()
        assert np.allclose(points[inside, :2], pixels[inside], atol=1e-3)
        zeros += int((~inside).sum())
    assert zeros > 4


def test_no_guesses_far_from_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a person behind others little is seen; `erpose check` takes a keypoint far from that for another person's."""

    def farthest() -> float:
        """Largest distance of a hidden keypoint from its box, over the longer side, in an image that has such a person."""
        _, boxes, keypoints = dataset_module.draw_image(SynthConfig(), "train", 140)
        outside = np.maximum(boxes[:, None, :2] - keypoints[..., :2], keypoints[..., :2] - boxes[:, None, 2:]).max(2)
        return float((outside / (boxes[:, 2:] - boxes[:, :2]).max(1)[:, None])[keypoints[..., 2] == 1].max())

    assert 1 < farthest() <= FAR_HIDDEN
    monkeypatch.setattr(scene_module, "FARTHEST_GUESS", np.inf)
    assert farthest() > FAR_HIDDEN


def test_scenes_are_consistent() -> None:
    persons = 0
    for people, aspect in (((1, 6), 1.0), ((3, 8), 1.5)):
        cfg = SynthConfig(size=160, people=people, aspect=aspect)
        height, width = cfg.shape
        for i in range(25):
            image, boxes, keypoints = render_scene(np.random.default_rng((2, i)), cfg)
            assert image.shape == (height, width, 3) and image.dtype == np.uint8
            assert boxes.shape == (len(boxes), 4) and keypoints.shape == (len(boxes), 17, 3)
            persons += len(boxes)
            if not len(boxes):
                continue
            assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert np.isin(keypoints[..., 2], (0, 1, 2)).all() and keypoints[..., 2].any(1).all()
            assert (keypoints[keypoints[..., 2] == 0] == 0).all()
            inside = keypoints[keypoints[..., 2] > 0]
            assert (inside[:, :2] >= 0).all() and (inside[:, 0] < width).all() and (inside[:, 1] < height).all()
            for box, points in zip(boxes, keypoints, strict=True):  # a keypoint that is seen lies in the box of what is seen
                seen = points[points[:, 2] == 2, :2]
                assert (seen >= box[:2] - 1.5).all() and (seen <= box[2:] + 1.5).all()
    assert persons > 120


def test_empty_images() -> None:
    image, boxes, keypoints = render_scene(np.random.default_rng(0), SynthConfig(size=64, empty=1.0))
    assert image.shape == (64, 64, 3) and boxes.shape == (0, 4) and keypoints.shape == (0, 17, 3)


def test_plain_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but people on one colour, so whatever stands out is labelled, and nothing hides a person but persons."""
    shades = set()
    for i in range(20):
        image, _, _ = render_scene(np.random.default_rng((7, i)), SynthConfig(size=64, plain=True, empty=1.0))
        assert (image == image[:, :1]).all()  # a shade from top to bottom
        assert np.ptp(image.astype(int), 0).max() < 90
        shades.add(tuple(image[0, 0]))
    assert len(shades) > 15
    for name in ("_props", "photograph"):  # no chairs, poles or crates, no blur or grain
        monkeypatch.setattr(scene_module, name, lambda *a, **k: pytest.fail("not plain"))
    for i in range(10):
        cfg = SynthConfig(size=64, people=(1, 2), plain=True, empty=0.0, activities=("sit", "stand"))
        assert render_scene(np.random.default_rng((8, i)), cfg)[0].std() > 1


def test_activities_are_kept_to() -> None:
    """Who asks for people who lie gets no one who stands."""
    rng = np.random.default_rng(0)
    assert {draw_activity(rng, ("walk", "lie")) for _ in range(60)} == {"walk", "lie"}
    assert {draw_activity(rng) for _ in range(600)} == set(ACTIVITIES)
    tall = {}
    for activity in ("stand", "lie"):
        cfg = SynthConfig(size=96, people=(1, 1), empty=0.0, activities=[activity])
        boxes = np.concatenate([render_scene(np.random.default_rng((9, i)), cfg)[1] for i in range(25)])
        tall[activity] = np.median((boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0]))
    assert tall["stand"] > 1.5 > 1.2 > tall["lie"]


def test_small_and_large_images() -> None:
    for size in (32, 800):
        image, _, _ = render_scene(np.random.default_rng(1), SynthConfig(size=size, people=(2, 2)))
        assert image.shape == (size, size, 3)
    assert photograph(np.random.default_rng(0), np.full((40, 60, 3), 128, np.uint8)).shape == (40, 60, 3)


@pytest.mark.parametrize("target", [0.3, 0.5])
def test_crowding_is_reached(target: float) -> None:
    cfg = SynthConfig(size=160, people=(2, 5), crowding=target, empty=0.0)
    values = [max_iou(render_scene(np.random.default_rng((4, i)), cfg)[1]) for i in range(70)]
    assert np.concatenate(values).mean() == pytest.approx(target, abs=0.08)


def test_max_iou() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], float)
    assert max_iou(boxes).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert box_iou(boxes[:1], boxes)[0].tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert max_iou(boxes[:1]).tolist() == [0.0] and max_iou(boxes[:0]).shape == (0,)


# --- files


def test_files_and_labels(tmp_path: Path) -> None:
    root = generate(tmp_path / "set", SMALL, workers=1)
    assert root == tmp_path / "set" and json.loads((root / "synth.json").read_text()) == SMALL.as_dict()
    for split, count in (("train", 6), ("val", 3)):
        images = sorted((root / "images" / split).glob("*.jpg"))
        labels = sorted((root / "labels" / split).glob("*.txt"))
        assert len(images) == count and [p.stem for p in images] == [p.stem for p in labels]
        for path in labels:
            for line in path.read_text().splitlines():
                numbers = np.array(line.split(), float)
                assert len(numbers) == 5 + 17 * 3 and numbers[0] == 0
                cx, cy, w, h = numbers[1:5]
                assert min(w, h) > 0 and min(cx - w / 2, cy - h / 2) > -1e-5 and max(cx + w / 2, cy + h / 2) < 1 + 1e-5
                keypoints = numbers[5:].reshape(17, 3)
                assert (keypoints[:, :2] >= 0).all() and (keypoints[:, :2] <= 1).all() and set(keypoints[:, 2]) <= {0, 1, 2}
    assert not [p for p in tmp_path.iterdir() if p != root]  # nothing temporary stays


def test_same_seed_same_set_for_any_number_of_workers(tmp_path: Path) -> None:
    cfg = SynthConfig(images=66, val_images=2, size=48, people=(1, 2), seed=5)
    one = _tree(generate(tmp_path / "one", cfg, workers=1))
    two = _tree(generate(tmp_path / "two", cfg, workers=2))
    assert one == two
    other = dataset_module.draw_image(SynthConfig(size=48, people=(1, 2), seed=6), "train", 0)[0]
    assert not np.array_equal(other, dataset_module.draw_image(cfg, "train", 0)[0])
    train, val = (dataset_module.draw_image(cfg, split, 0)[0] for split in ("train", "val"))
    assert not np.array_equal(train, val)


def test_generating_again_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = generate(tmp_path / "set", SMALL, workers=1)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    monkeypatch.setattr(dataset_module, "_write_one", lambda *a, **k: pytest.fail("generated again"))
    generate(root, SMALL, workers=1)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}


def test_sets_of_an_older_release_stay(tmp_path: Path) -> None:
    """A set made before a field existed is the one with that field's default, not one to draw again."""
    root = generate(tmp_path / "set", SMALL, workers=1)
    mark = json.loads((root / "synth.json").read_text())
    (root / "synth.json").write_text(json.dumps({k: v for k, v in mark.items() if k not in ("activities", "plain")}))
    assert dataset_module.is_complete(root, SMALL) and not dataset_module.is_complete(root, replace(SMALL, plain=True))
    (root / "synth.json").write_text(json.dumps({k: v for k, v in mark.items() if k != "version"}))
    assert not dataset_module.is_complete(root, SMALL)


def test_another_config_replaces_the_set(tmp_path: Path) -> None:
    root = generate(tmp_path / "set", SMALL, workers=1)
    other = SynthConfig(images=2, val_images=1, size=64, seed=5)
    generate(root, other, workers=1)
    assert dataset_module.is_complete(root, other) and not dataset_module.is_complete(root, SMALL)
    assert len(list(root.glob("images/*/*.jpg"))) == 3


def test_interruption_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dataset_module._write_one

    def stop(job: tuple[str, int], **kwargs: object) -> None:
        if job == ("train", 4):
            raise KeyboardInterrupt
        real(job, **kwargs)

    monkeypatch.setattr(dataset_module, "_write_one", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", SMALL, workers=1)
    assert not dataset_module.is_complete(tmp_path / "set", SMALL) and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    # a killed process cannot tidy up: a folder without the mark, or with a torn one, is made anew
    root = tmp_path / "set"
    (root / "images" / "train").mkdir(parents=True)
    (root / "images" / "train" / "000000.jpg").write_bytes(b"torn")
    assert not dataset_module.is_complete(root, SMALL)
    generate(root, SMALL, workers=1)
    assert dataset_module.is_complete(root, SMALL) and (root / "images/train/000000.jpg").stat().st_size > 500
    (root / "synth.json").write_text('{"images": 6')
    assert not dataset_module.is_complete(root, SMALL)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine"):
        generate(root, SMALL, workers=1)
    assert (root / "thesis.tex").exists()


def test_two_at_once(tmp_path: Path) -> None:
    root = tmp_path / "set"
    code = (
        "import sys; from pathlib import Path; from erpose_yolo.data.synth import SynthConfig, generate;"
        "generate(Path(sys.argv[1]), SynthConfig(images=12, val_images=2, size=64, seed=5), workers=1)"
    )
    repository = Path(__file__).parents[2]
    both = [subprocess.Popen([sys.executable, "-c", code, str(root)], cwd=repository, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert dataset_module.is_complete(root, SynthConfig(images=12, val_images=2, size=64, seed=5))
    assert len(list(root.glob("images/*/*.jpg"))) == len(list(root.glob("labels/*/*.txt"))) == 14
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_the_command_line_leaves_a_set_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data.yaml that the linter passes and that may move with its folder; the next command is printed."""
    from erpose_yolo.cli import main
    from erpose_yolo.data.check import check

    assert main(["synth", "--out", str(tmp_path / "a"), "--images", "2", "--val", "1", "--size", "100", "--workers", "1"]) == 0
    assert f"yolo pose train model=erpose-n.pt data={tmp_path / 'a' / 'data.yaml'} imgsz=128" in capsys.readouterr().out
    (tmp_path / "a").rename(tmp_path / "b")
    report = check(tmp_path / "b" / "data.yaml")
    assert not report.findings and report.images == {"train": 2, "val": 1}


def test_contact_sheet_and_command_line(tmp_path: Path) -> None:
    from erpose_yolo.data.synth.__main__ import bench, main

    path = contact_sheet(SMALL, 6, tmp_path / "deep" / "sheet.jpg")
    assert path.stat().st_size > 3000
    assert "images/s" in bench(SMALL, 0.05)
    plain = ["--plain", "--activities", "stand", "walk"]
    main(["--out", str(tmp_path / "cli"), "--images", "2", "--val", "1", "--size", "48", "--workers", "1", *plain])
    made = json.loads((tmp_path / "cli" / "synth.json").read_text())
    assert made["plain"] is True and made["activities"] == ["stand", "walk"]
    assert (tmp_path / "cli" / "synth.json").exists()
    for wrong in (["--people", "3", "1", "--bench", "1"], []):
        with pytest.raises(SystemExit):
            main(wrong)


def test_a_failing_worker_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker"):
        dataset_module._write_shared(SMALL, tmp_path / "nowhere", 2, lambda n: None)
