"""Label rows with and without boxes: what is read, what survives augmentation, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg

from erpose_yolo.data.dataset import build_dataset
from erpose_yolo.data.labels import POINT_SIDE, ColumnError, LabelError, complete_boxes, parse_labels, read_rows
from erpose_yolo.method.boxes import default_margins, derive_boxes
from erpose_yolo.method.oks import object_area

K = 5
BOX = [0.5, 0.5, 0.4, 0.6]
KEYPOINTS = [0.4, 0.3, 2, 0.6, 0.3, 2, 0.5, 0.5, 1, 0.45, 0.7, 2, 0, 0, 0]


def write(path: Path, *rows: list[float]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows) + "\n")
    return path


def test_rows_with_and_without_boxes_stand_in_one_file(tmp_path: Path) -> None:
    """A data set that is half converted must not need a second pass."""
    file = write(tmp_path / "a.txt", [0, *BOX, *KEYPOINTS], [0, *KEYPOINTS])
    classes, boxes, keypoints = parse_labels(file, (K, 3), 1, (640, 480))
    assert classes.shape == (2, 1) and boxes.shape == (2, 4) and keypoints.shape == (2, K, 3)
    np.testing.assert_allclose(boxes[0], BOX, atol=1e-6)
    np.testing.assert_allclose(keypoints[0], keypoints[1])
    low, high = boxes[1, :2] - boxes[1, 2:] / 2, boxes[1, :2] + boxes[1, 2:] / 2
    seen = keypoints[1][keypoints[1, :, 2] > 0, :2]
    assert (low < seen.min(0)).all() and (high > seen.max(0)).all(), "a derived box holds the labelled keypoints"
    assert (boxes[1, 2:] < 1.0).all(), "and not the whole image"


@pytest.mark.parametrize("keypoints", [[0.5, 0.5, 2] + [0, 0, 0] * 4, [0.2, 0.5, 2, 0.4, 0.5, 2, 0.6, 0.5, 1] + [0, 0, 0] * 2])
def test_a_person_on_one_point_or_one_line_has_a_box(tmp_path: Path, keypoints: list[float]) -> None:
    """Augmentation drops objects whose box has no size: such a person would never be learnt."""
    _, boxes, _ = parse_labels(write(tmp_path / "a.txt", [0, *keypoints]), (K, 3), 1, (640, 480))
    assert (boxes[0, 2:] * [640, 480] >= POINT_SIDE * 640 - 1e-3).all()


def test_a_small_person_of_a_large_image_keeps_its_area() -> None:
    """Only a person without extent needs a least side. A least side of 100 px in 4,000 for all made this person's OKS area 2.5
    times too large, and its keypoints were scored as if the person were 1.6 times as large."""
    size = (4000, 3000)
    place, tall, wide = np.array([2000.0, 1500.0]), 60.0, 40.0
    keypoints = np.array([[0, 0, 2], [wide, 0.2 * tall, 2], [0.3 * wide, tall, 1], [wide, 0.7 * tall, 2], [0, 0, 0]])
    keypoints[:4, :2] += place
    xy, seen = torch.from_numpy(keypoints[:, :2]).T[None].transpose(1, 2)[..., None], torch.from_numpy(keypoints[:, 2] > 0).double()
    true = derive_boxes(xy, seen[None, :, None], default_margins(K))[0].T
    found = complete_boxes(np.full((1, 4), np.nan), (keypoints / [*size, 1])[None], size)[0] * np.tile(size, 2)
    box = torch.tensor([[*(found[:2] - found[2:] / 2), *(found[:2] + found[2:] / 2)]])
    torch.testing.assert_close(box, true, atol=1e-6, rtol=0)
    before = torch.cat((true[:, :2], true[:, :2] + (true[:, 2:] - true[:, :2]).clamp(min=100)), 1)
    assert float(object_area(before) / object_area(box)) == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("far", [[8.0, 0.0], [0.0, 8.0], [8.0, 0.1]])
def test_a_line_is_as_wide_as_its_length_says(far: list[float]) -> None:
    """Two shoulders of a small person in a large image: their box grows with them, and not with the image."""
    size = (4000, 3000)
    keypoints = np.zeros((1, K, 3))
    keypoints[0, :2, :2], keypoints[0, :2, 2] = np.array([[100.0, 200.0], np.add([100.0, 200.0], far)]) / size, 2
    sides = complete_boxes(np.full((1, 4), np.nan), keypoints, size)[0, 2:] * size
    assert sides.max() == pytest.approx(10.4, abs=0.4) and sides.min() == pytest.approx(sides.max() / 4)


def test_two_columns_per_keypoint(tmp_path: Path) -> None:
    """With D=2 a negative coordinate means that the keypoint is not labelled."""
    file = write(tmp_path / "a.txt", [0, 0.1, 0.2, 0.3, 0.4, -1, -1, 0.5, 0.5, 0.6, 0.6])
    _, _, keypoints = parse_labels(file, (K, 2), 1, (100, 100))
    assert keypoints[0, :, 2].tolist() == [2, 2, 0, 2, 2] and keypoints[0, 2, :2].tolist() == [0, 0]
    assert (keypoints[..., 2] == read_rows(file, K, 2).posed()[..., 2]).all()  # what linter and converters see


def test_bom_crlf_blank_lines_and_duplicates(tmp_path: Path) -> None:
    """Files from Windows tools are read; a row that stands twice is one person."""
    row = " ".join(map(str, [0, *BOX, *KEYPOINTS]))
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{row}\r\n".encode())
    assert len(parse_labels(file, (K, 3), 1, (10, 10))[0]) == 1


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ([0, *BOX, *KEYPOINTS, 1], ColumnError, r"a\.txt:2: 21 columns.*20 .*16 .*kpt_shape \[5, 3\]"),
        ([0, *BOX], ColumnError, r"a\.txt:2: 5 columns"),
        ([0, *BOX, "nan", *KEYPOINTS[1:]], LabelError, r"a\.txt:2: column 6 is not finite"),
        ([0, *BOX, "x1", *KEYPOINTS[1:]], LabelError, r"a\.txt:2: .*'x1'"),
        ([1, *BOX, *KEYPOINTS], LabelError, r"a\.txt:2: class 1 is not one of 0 to 0"),
        ([0, *BOX, 320, *KEYPOINTS[1:]], LabelError, r"a\.txt:2: coordinate 320 lies outside"),
        ([0, 0.5, 0.5, -0.1, 0.2, *KEYPOINTS], LabelError, r"a\.txt:2: "),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: list[float], kind: type[Exception], says: str) -> None:
    """The message must lead to the line and to the fix."""
    file = write(tmp_path / "a.txt", [0, *BOX, *KEYPOINTS], row)
    with pytest.raises(kind, match=says):
        parse_labels(file, (K, 3), 1, (10, 10))


@pytest.fixture
def box_free(tmp_path: Path) -> Path:
    """Four images with a person of five keypoints, one of one keypoint and one of a line of keypoints, no boxes."""
    rng = np.random.default_rng(0)
    line = [0.2, 0.8, 2, 0.3, 0.8, 2, 0.4, 0.8, 2] + [0, 0, 0] * 2
    point = [0.8, 0.8, 2] + [0, 0, 0] * 4
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.jpg"), rng.integers(0, 255, (160, 160, 3), dtype=np.uint8))
        write(tmp_path / "labels" / f"{i}.txt", [0, *KEYPOINTS], [0, *point], [0, *line])
    return tmp_path


def load(root: Path, mode: str, **changes: object) -> torch.utils.data.Dataset:
    data = {"kpt_shape": [K, 3], "names": {0: "p"}, "flip_idx": list(range(K)), "channels": 3, "nc": 1}
    args = get_cfg(overrides={"task": "pose", "imgsz": 160, **changes})
    return build_dataset(args, str(root / "images"), 2, data, mode, False, 32, 1.0)


def test_persons_without_boxes_survive_the_loader(box_free: Path) -> None:
    """Every person of every image comes out of the validation loader with its keypoints."""
    for sample in load(box_free, "val"):
        assert len(sample["keypoints"]) == 3 and sorted((sample["keypoints"][..., 2] > 0).sum(1).tolist()) == [1, 3, 4]


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_persons_without_boxes_survive_augmentation(box_free: Path, mosaic: float) -> None:
    """Flip, scale and mosaic keep one-point and one-line persons wherever their keypoints stay in the image."""
    data = load(box_free, "train", mosaic=mosaic, scale=0.3, fliplr=0.5, degrees=0.0, translate=0.1)
    kinds: set[int] = set()
    for _ in range(6):
        for i in range(len(data)):
            keypoints = data[i]["keypoints"]
            assert torch.isfinite(keypoints).all()
            kinds |= set((keypoints[..., 2] > 0).sum(1).tolist())
    assert {1, 3, 4} <= kinds


def test_a_broken_image_is_left_out_and_named(box_free: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One bad row must not end a run, nor pass in silence."""
    write(box_free / "labels" / "2.txt", [0, *["nan"] * 3, *KEYPOINTS[3:]])
    data = load(box_free, "val")
    assert len(data) == 3
    assert "2.txt:1: column 2 is not finite" in caplog.text


def test_stock_and_our_caches_are_told_apart(box_free: Path) -> None:
    """A cache that stock Ultralytics wrote (boxes required) must not be read as ours."""
    from ultralytics.data.dataset import YOLODataset

    data = load(box_free, "val")
    assert data.get_cache_hash() != YOLODataset.get_cache_hash(data)
