"""benchmarks/accuracy/copy_paste.py: sources apart, labels true to the pixels, the same bytes for the same seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.accuracy import copy_paste
from erpose_yolo.data.data_yaml import load_data_yaml
from erpose_yolo.data.skeletons import COCO_17
from erpose_yolo.metrics.crowdpose import crowd_index
from erpose_yolo.metrics.truth import from_annotations

W, H = 40, 120  # of a made-up person
POSE = np.array(
    [
        (20, 10), (23, 7), (17, 7), (26, 9), (14, 9), (30, 24), (10, 24), (35, 42), (5, 42), (36, 58), (4, 58), (26, 62),
        (14, 62), (27, 88), (13, 88), (28, 113), (12, 113),
    ],
    float,
)  # fmt: skip


def _silhouette() -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    cv2.ellipse(mask, (20, 10), (9, 10), 0, 0, 360, 255, -1)
    cv2.rectangle(mask, (8, 18), (32, 66), 255, -1)
    for a, b in COCO_17.limbs:
        if min(a, b) >= 5:
            cv2.line(mask, POSE[a].astype(int).tolist(), POSE[b].astype(int).tolist(), 255, 8)
    return mask > 0


def _row(left: int, top: int, shape: tuple[int, int], visible: int = 2) -> np.ndarray:
    ys, xs = np.nonzero(_silhouette())
    low, high = np.array((xs.min() + left, ys.min() + top)), np.array((xs.max() + 1 + left, ys.max() + 1 + top))
    keypoints = np.concatenate((POSE + (left, top), np.full((17, 1), visible)), 1) / [shape[1], shape[0], 1]
    return np.r_[0, (low + high) / 2 / shape[::-1], (high - low) / shape[::-1], keypoints.ravel()]


def _scene(spots: list[tuple[int, int]], colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of persons, its mask and its rows."""
    shape = (150, 200)
    image, mask = np.full((*shape, 3), 90, np.uint8), np.zeros(shape, bool)
    for left, top in spots:
        mask[top : top + H, left : left + W] |= _silhouette()
    image[mask] = colour
    return image, mask, np.array([_row(*spot, shape) for spot in spots])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of two persons each, and five backgrounds."""
    root = tmp_path_factory.mktemp("sources")
    for folder in ("images/train", "labels/train", "masks/train", "backgrounds"):
        (root / folder).mkdir(parents=True)
    for n in range(10):
        image, mask, rows = _scene([(20, 15), (120, 20)], (10 + 20 * n, 240 - 20 * n, 200))
        cv2.imwrite(str(root / f"images/train/{n}.png"), image)
        cv2.imwrite(str(root / f"masks/train/{n}.png"), mask.astype(np.uint8) * 255)
        (root / f"labels/train/{n}.txt").write_text("\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows))
    for n in range(5):
        cv2.imwrite(str(root / f"backgrounds/{n}.png"), np.full((100, 130, 3), 40 * n, np.uint8))
    return root


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, copy_paste.Settings]:
    out = tmp_path_factory.mktemp("made") / "set"
    settings = copy_paste.Settings(str(sources), images=12, val_images=5, size=128, people=(2, 4), seed=3)
    copy_paste.generate(out, settings)
    return out, settings


def _person():
    image, mask, rows = _scene([(20, 15)], (0, 0, 255))
    (person,) = copy_paste.cut(image, mask, rows, "a")
    return person


def _at(person, x: float, y: float, mirror: bool = False) -> np.ndarray:
    """The map that lays the upper left corner of a person at x, y."""
    return np.array([[-1, 0, x + person.levels[0].shape[1]], [0, 1, y]] if mirror else [[1, 0, x], [0, 1, y]], float)


def test_a_cutout_holds_one_person_and_its_keypoints() -> None:
    image, mask, rows = _scene([(20, 15), (120, 20)], (0, 0, 255))
    people = copy_paste.cut(image, mask, rows, "a")
    assert len(people) == 2
    for person in people:
        alpha = person.levels[0][..., 3]
        assert (person.keypoints[:, 2] == 2).all() and person.whole
        x, y = person.keypoints[:, :2].astype(int).T
        assert (alpha[y, x] > 127).all()
        assert 0.75 * _silhouette().sum() < person.area <= _silhouette().sum()  # a rim is taken off
        solid = alpha == 255
        assert (person.levels[0][solid][:, :3] == (0, 0, 255)).all()


def test_persons_that_touch_are_not_cut_out() -> None:
    assert copy_paste.cut(*_scene([(20, 15), (45, 20)], (0, 0, 255)), "a") == []
    image, mask, rows = _scene([(20, 15), (45, 20)], (0, 0, 255))
    assert copy_paste.cut(image, mask, rows[:1], "a") == []  # the other has no label: the mask is wider than the box


def test_somebody_inside_the_box_without_a_label_spoils_the_cutout() -> None:
    image, mask, rows = _scene([(60, 15)], (0, 0, 255))
    assert len(copy_paste.cut(image, mask, rows, "a")) == 1
    rows[0, 1], rows[0, 3] = (60 + W) / 200, 2 * W / 200  # a box of both
    mask[40:135, 95:140] = True  # somebody without keypoints, touching
    assert copy_paste.cut(image, mask, rows, "a") == []


def test_keypoints_off_the_mask_are_not_labelled() -> None:
    image, mask, rows = _scene([(20, 15)], (0, 0, 255))
    keypoints = rows[0, 5:].reshape(17, 3)
    keypoints[9] = (5 / 200, 5 / 150, 1)  # the wrist, behind something far from the mask
    (person,) = copy_paste.cut(image, mask, rows, "a")
    assert person.keypoints[9].tolist() == [0, 0, 0] and (np.delete(person.keypoints, 9, 0)[:, 2] == 2).all()


def test_warped_pixels_and_keypoints_stay_together() -> None:
    person = _person()
    area, pixels = copy_paste.warp(person, _at(person, 30, 20), 200)
    still = np.zeros((200, 200, 4), np.uint8)
    still[area] = pixels
    h, w = person.levels[0].shape[:2]
    assert (still[20 : 20 + h, 30 : 30 + w] == person.levels[0]).all()  # a shift by whole pixels changes none
    for scale in (0.9, 0.45, 0.24):
        area, pixels = copy_paste.warp(person, np.array([[scale, 0, 30], [0, scale, 20]]), 200)
        ys, xs = np.nonzero(pixels[..., 3] > 127)
        body = np.nonzero(person.levels[0][..., 3] > 127)
        centre = np.array([xs.mean() + area[1].start + 0.5, ys.mean() + area[0].start + 0.5])
        wanted = (np.array([body[1].mean(), body[0].mean()]) + 0.5) * scale + (30, 20)
        assert np.abs(centre - wanted).max() < 0.35


def test_a_mirrored_person_changes_left_and_right() -> None:
    person = _person()
    plain, turned = (copy_paste.place(person.keypoints, _at(person, 0, 0, mirror)) for mirror in (False, True))
    width = person.levels[0].shape[1]
    assert np.allclose(turned[5, :2], (width - plain[6, 0], plain[6, 1]))
    assert np.allclose(turned[0, :2], (width - plain[0, 0], plain[0, 1]))
    _, pixels = copy_paste.warp(person, _at(person, 0, 0, True), 200)
    assert (pixels == person.levels[0][:, ::-1]).all()


def test_visibility_boxes_and_areas_are_those_of_the_pixels() -> None:
    person = _person()
    matrices = [_at(person, 20, 20), _at(person, 40, 40), _at(person, 150, -70)]
    seen = copy_paste.arrange([person] * 3, matrices, 200)
    assert seen.chosen == [0, 1, 2]
    owner = np.full((200, 200), -1)
    for i, matrix in enumerate(matrices):
        area, pixels = copy_paste.warp(person, matrix, 200)
        owner[area][pixels[..., 3] > 127] = i
    for i in range(3):
        ys, xs = np.nonzero(owner == i)
        assert seen.areas[i] == len(ys)
        assert seen.boxes[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    x, y = seen.keypoints[0, :, :2].astype(int).T
    covered = owner[y, x] == 1
    assert 2 <= covered.sum() < 15
    assert (seen.keypoints[0, :, 2] == np.where(covered, 1, 2)).all()
    assert (seen.keypoints[1, :, 2] == 2).all()
    outside = person.keypoints[:, 1] - 70 < 0
    assert (seen.keypoints[2, :, 2] == np.where(outside, 0, 2)).all() and (seen.keypoints[2, outside] == 0).all()


def test_who_is_hidden_is_taken_out() -> None:
    person = _person()
    seen = copy_paste.arrange([person] * 4, [_at(person, 61, 60), _at(person, 60, 60), _at(person, 0, 0), _at(person, 300, 0)], 200)
    assert seen.chosen == [1, 2]
    assert (seen.keypoints[..., 2] == 2).all() and seen.index == 0
    # the first stands right behind the second, the last beside the image; the second loses nothing to either
    assert copy_paste.arrange([person], [_at(person, 60, 60)], 200).areas[0] == seen.areas[0]


def test_no_source_is_in_both_splits(sources: Path) -> None:
    loaded = [copy_paste.load(sources, split, 3) for split in ("train", "val")]
    train, val = ({cutout.source for cutout in cutouts} for cutouts, _ in loaded)
    assert not train & val and train | val == {str(n) for n in range(10)}
    assert [len(cutouts) for cutouts, _ in loaded] == [16, 4]
    shades = [{int(image[0, 0, 0]) for image in backgrounds} for _, backgrounds in loaded]
    assert not shades[0] & shades[1] and shades[0] | shades[1] == {0, 40, 80, 120, 160}


def test_rows_and_annotations_agree(made: tuple) -> None:
    out = made[0]
    data = load_data_yaml(out / "data.yaml").data
    assert data["kpt_shape"] == [17, 3] and data["flip_idx"] == COCO_17.flip
    for split, images in (("train", 12), ("val", 5)):
        truth = from_annotations(out / data["annotations"][split], 17)
        assert len(truth.ids) == images
        assert truth.crowd_index is not None and np.allclose(truth.crowd_index, crowd_index(truth), atol=0.02)
        for n, name in enumerate(truth.names):
            assert cv2.imread(str(out / "images" / split / name)).shape == (128, 128, 3)
            rows = np.loadtxt(out / "labels" / split / f"{Path(name).stem}.txt", ndmin=2)
            own = truth.image == n
            assert 2 <= len(rows) == own.sum() <= 4
            assert rows.shape[1] == 56 and rows[:, 1:].min() >= 0 and rows[:, 1:5].max() <= 1
            keypoints = rows[:, 5:].reshape(-1, 17, 3)
            assert np.allclose(keypoints * [128, 128, 1], truth.keypoints[own], atol=0.01)
            assert (keypoints[keypoints[..., 2] == 0] == 0).all()
            sides = truth.box[own][:, 2:]
            assert np.allclose(rows[:, 3:5] * 128, sides, atol=0.01)
            assert (truth.area[own] <= sides.prod(1)).all() and (truth.area[own] >= 40).all()


def test_the_same_settings_give_the_same_bytes(made: tuple, tmp_path: Path) -> None:
    out, settings = made

    def content(root: Path) -> dict:
        kinds = ("*.jpg", "*.txt", "train.json", "val.json")
        return {str(f.relative_to(root)): f.read_bytes() for kind in kinds for f in root.rglob(kind)}

    copy_paste.generate(tmp_path / "again", settings)
    assert content(tmp_path / "again") == content(out)
    other = copy_paste.Settings(**{**settings.__dict__, "seed": 4})
    copy_paste.generate(tmp_path / "other", other)
    assert content(tmp_path / "other") != content(out)


def test_nothing_is_overwritten(made: tuple) -> None:
    with pytest.raises(FileExistsError, match="another --out"):
        copy_paste.generate(*made)


def test_an_interrupted_run_leaves_nothing(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copy_paste.yaml, "safe_dump", interrupted)  # all images are there by then
    with pytest.raises(KeyboardInterrupt):
        copy_paste.generate(
            tmp_path / "sets" / "a", copy_paste.Settings(str(sources), images=1, val_images=1, size=96, people=(2, 2))
        )
    assert list((tmp_path / "sets").iterdir()) == []


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="masks/train"):
        copy_paste.generate(tmp_path / "out", copy_paste.Settings(str(tmp_path)))
