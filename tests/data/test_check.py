"""The linter: every kind of mistake is found with its file, line and fix, and a clean set is clean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from erpose_yolo.data.check import check, contact_sheet, main
from erpose_yolo.data.data_yaml import DataError, load_data_yaml
from erpose_yolo.data.skeletons import (
    COCO_17,
    CROWDPOSE_14,
    KNOWN,
    flip_from_names,
    keypoint_names,
    known_skeleton,
    side_of,
    sides_of,
)

# -- skeletons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "rest"),
    [
        ("left_eye", "left", "eye"),
        ("L_Eye", "left", "eye"),
        ("leftEye", "left", "eye"),
        ("LEye", "left", "eye"),
        ("LEFT EYE", "left", "eye"),
        ("eye.r", "right", "eye"),
        ("eye-right", "right", "eye"),
        ("RShoulder", "right", "shoulder"),
        ("rightshoulder", "right", "shoulder"),
        ("EarLeft", "left", "ear"),
        ("upper_left_corner", "left", "upper corner"),
        ("thumb1_R", "right", "thumb 1"),
        ("nose", "", "nose"),
        ("lip", "", "lip"),
        ("tail", "", "tail"),
        ("left_right", "", "left right"),
    ],
)
def test_sides_are_read_from_names(name: str, side: str, rest: str) -> None:
    assert side_of(name) == (side, rest)


def test_glued_letters_count_in_pairs_only() -> None:
    assert [side for side, _ in sides_of(["lknee", "rknee", "lip", "rib", "nose"])] == ["left", "right", "", "", ""]
    assert flip_from_names(["lknee", "nose", "rknee"]) == ([2, 1, 0], [])


def test_flip_from_names() -> None:
    assert flip_from_names(["a", "left_b", "right_b", "left_c"]) == ([0, 2, 1, 3], ["left_c"])
    for skeleton in KNOWN:
        k = len(skeleton.names)
        assert len(skeleton.sigmas) == k and {j for limb in skeleton.limbs for j in limb} == set(range(k))
        assert [skeleton.flip[i] for i in skeleton.flip] == list(range(k)) and skeleton.flip != list(range(k))
        mirrored = {frozenset((skeleton.flip[a], skeleton.flip[b])) for a, b in skeleton.limbs}
        assert mirrored == {frozenset(limb) for limb in skeleton.limbs}


def test_known_skeletons() -> None:
    from erpose_yolo.method.oks import COCO_SIGMAS

    assert COCO_17.sigmas == COCO_SIGMAS
    shared = [COCO_17.names.index(name) for name in CROWDPOSE_14.names[:12]]
    assert CROWDPOSE_14.sigmas[:12] == tuple(COCO_SIGMAS[i] for i in shared)
    assert known_skeleton([n.replace("left", "L").replace("right", "R") for n in COCO_17.names]) is COCO_17
    assert known_skeleton([*CROWDPOSE_14.names[:12], "top_head", "neck"]) is CROWDPOSE_14
    assert known_skeleton(COCO_17.names[::-1]) is None and known_skeleton(None, 14) is CROWDPOSE_14
    assert keypoint_names({0: ["a", "b"]}, 2) == keypoint_names(["a", "b"], 2) == ["a", "b"]
    assert keypoint_names({0: ["a"]}, 2) is keypoint_names(None, 2) is keypoint_names({}, 2) is None
    assert keypoint_names({0: ["0", "1"]}, 2) is None and keypoint_names(["1", "b"], 2) == ["1", "b"]


# -- a clean set, and one mistake at a time --------------------------------------------------------------------------

Change = Callable[[Path], None]


@pytest.fixture
def people(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set with names, to be spoilt."""
    root = tmp_path / "people"
    shutil.copytree(tiny_dataset.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    edit(root, path=None, kpt_names={0: list(COCO_17.names)}, kpt_oks_sigmas=list(COCO_17.sigmas))
    return root


def edit(root: Path, **keys: Any) -> None:
    data = yaml.safe_load((root / "data.yaml").read_text())
    data.update(keys)
    data = {key: value for key, value in data.items() if value is not None}
    (root / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=1000))


def rewrite(root: Path, line: int, column: int | slice, value: Any, name: str = "train/0.txt") -> None:
    """Change a word (or words) of a line of a label file."""
    file = root / "labels" / name
    lines = [text.split() for text in file.read_text().splitlines()]
    lines[line - 1][column] = value
    file.write_text("\n".join(" ".join(words) for words in lines) + "\n")


def append(root: Path, text: str, name: str = "train/0.txt") -> None:
    with (root / "labels" / name).open("a") as file:
        file.write(text)


def found(root: Path, **options: Any) -> list[tuple[str, str, int, bool]]:
    report = check(root / "data.yaml", **options)
    for finding in report.findings:
        assert finding.what and finding.fix and str(finding.file) in str(finding)
    return [(f.kind, f.file.name, f.line, f.error) for f in report.findings]


def test_a_clean_set_is_clean(people: Path, capsys: pytest.CaptureFixture) -> None:
    assert found(people) == [] == found(people, deep=True)
    assert main([str(people / "data.yaml")]) == 0
    assert main([f"data={people / 'data.yaml'}"]) == 0  # as yolo takes it
    assert "train: 8 images, 16 persons, val: 4 images, 8 persons; 0 errors, 0 notes" in capsys.readouterr().out


SWAPPED = [0, 2, 1, 4, 3, 5, 6, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
YAML_MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, int, bool], str]] = {
    "flip_idx identity": ({"flip_idx": list(range(17))}, ("flip_idx", 4, True), "contradicts kpt_names for 16 keypoints"),
    "flip_idx misses a pair": ({"flip_idx": SWAPPED}, ("flip_idx", 4, True), "left_shoulder -> left_shoulder"),
    "flip_idx too short": ({"flip_idx": COCO_17.flip[:16]}, ("flip_idx", 4, True), "16 entries for 17 keypoints"),
    "flip_idx out of range": ({"flip_idx": [*COCO_17.flip[:16], 17]}, ("flip_idx", 4, True), "names keypoint 17"),
    "flip_idx no involution": ({"flip_idx": [1, 2, 0, *range(3, 17)]}, ("flip_idx", 4, True), "does not mirror back"),
    "flip_idx of text": ({"flip_idx": ["a"] * 17}, ("flip_idx", 4, True), "flip_idx is"),
    "no flip_idx": ({"flip_idx": None}, ("flip_idx", 3, False), "no flip_idx"),
    "names swapped": (
        {"kpt_names": {0: ["nose", "left_eye", "left_ear", "right_eye", *COCO_17.names[4:]]}},
        ("flip_idx", 4, True),
        "left_eye -> left_ear",
    ),
    "names as a list": ({"kpt_names": list(COCO_17.names), "flip_idx": SWAPPED}, ("flip_idx", 4, True), "for 2 keypoints"),
    "too few names": ({"kpt_names": {0: ["nose"]}}, ("kpt_names", 6, True), "1 names for 17 keypoints"),
    "name twice": ({"kpt_names": {0: ["nose"] * 2 + list(COCO_17.names[2:])}}, ("kpt_names", 6, True), "'nose' twice"),
    "names no list": ({"kpt_names": {0: "nose"}}, ("kpt_names", 6, True), "no list of names"),
    "too few sigmas": ({"kpt_oks_sigmas": [0.1] * 16}, ("sigmas", 8, True), "16 sigmas for 17 keypoints"),
    "sigma zero": ({"kpt_oks_sigmas": [0.1] * 16 + [0]}, ("sigmas", 8, True), "sigma 16 is 0"),
    "sigma NaN": ({"kpt_oks_sigmas": [float("nan")] + [0.1] * 16}, ("sigmas", 8, True), "sigma 0 is nan"),
    "sigmas of text": ({"kpt_oks_sigmas": "coco"}, ("sigmas", 8, True), "kpt_oks_sigmas is 'coco'"),
    "kpt_shape": ({"kpt_shape": [17, 4]}, ("kpt_shape", 3, True), "kpt_shape is [17, 4]"),
    "no kpt_shape": ({"kpt_shape": None}, ("kpt_shape", 1, True), "kpt_shape is None"),
    "skeleton": ({"skeleton": [[16, 17]]}, ("skeleton", 9, True), "pairs of keypoints from 0 to 16"),
    "no names": ({"names": None}, ("names", 1, True), "neither names nor nc"),
    "nc": ({"nc": 3}, ("names", 9, True), "nc is 3, but names has 1"),
    "names with a gap": ({"names": {0: "a", 2: "b"}}, ("names", 5, True), "classes [0, 2]"),
    "no val": ({"val": None}, ("yaml", 1, True), "no val"),
    "split absent": ({"val": "images/vall"}, ("split", 2, True), "does not exist"),
}


@pytest.mark.parametrize("case", YAML_MISTAKES)
def test_mistakes_in_the_yaml(people: Path, case: str) -> None:
    keys, (kind, line, error), words = YAML_MISTAKES[case]
    edit(people, **keys)
    report = check(people / "data.yaml")
    first = report.findings[0]
    assert (first.kind, first.file.name, first.line, first.error) == (kind, "data.yaml", line, error), first
    assert words in first.what
    assert main([str(people / "data.yaml")]) == int(error)


def test_the_fix_of_flip_idx_is_right(people: Path) -> None:
    edit(people, flip_idx=list(range(17)))
    assert f"flip_idx: {COCO_17.flip}" in check(people / "data.yaml").findings[0].fix


def test_flip_idx_without_names(people: Path) -> None:
    edit(people, kpt_names=None, flip_idx=list(range(17)))
    assert found(people) == [("flip_idx", "data.yaml", 4, False)]  # only a guess: 17 keypoints may be others than COCO's


def test_keypoint_without_a_partner_is_noted(people: Path) -> None:
    names = ["nose", "left_eye", "right_eye", "left_ear", "rigth_ear", *COCO_17.names[5:]]
    edit(people, kpt_names={0: names})
    kinds = found(people)
    assert ("kpt_names", "data.yaml", 6, False) in kinds


ROW = "0 .5 .5 .4 .8" + " .5 .5 2" * 17
LABEL_MISTAKES: dict[str, tuple[Change, tuple[str, str, int]]] = {
    "one column less": (lambda r: append(r, ROW.rsplit(" ", 1)[0]), ("columns", "0.txt", 3)),
    "a word": (lambda r: rewrite(r, 2, 7, "two"), ("number", "0.txt", 2)),
    "NaN": (lambda r: rewrite(r, 2, 5, "nan"), ("number", "0.txt", 2)),
    "infinite box": (lambda r: rewrite(r, 1, 3, "inf"), ("number", "0.txt", 1)),
    "class too high": (lambda r: rewrite(r, 2, 0, "1"), ("class", "0.txt", 2)),
    "class negative": (lambda r: rewrite(r, 2, 0, "-1"), ("class", "0.txt", 2)),
    "class broken": (lambda r: rewrite(r, 2, 0, "0.5"), ("class", "0.txt", 2)),
    "visibility 3": (lambda r: rewrite(r, 1, 7, "3"), ("visibility", "0.txt", 1)),
    "visibility a half": (lambda r: rewrite(r, 1, 7, "0.5"), ("visibility", "0.txt", 1)),
    "keypoint outside": (lambda r: rewrite(r, 2, 5, "1.02"), ("outside", "0.txt", 2)),
    "keypoint negative": (lambda r: rewrite(r, 2, 6, "-0.001"), ("outside", "0.txt", 2)),
    "box outside": (lambda r: rewrite(r, 2, 3, "1.4"), ("outside", "0.txt", 2)),
    "box flat": (lambda r: rewrite(r, 2, 4, "0"), ("box", "0.txt", 2)),
    "keypoint far from its box": (lambda r: rewrite(r, 1, slice(1, 5), "0.9 0.9 0.1 0.1".split()), ("far", "0.txt", 1)),
    "row twice": (lambda r: append(r, (r / "labels/train/0.txt").read_text().splitlines()[0]), ("duplicate", "0.txt", 3)),
    "neither box nor keypoint": (lambda r: append(r, "0" + " 0 0 0" * 17), ("nothing", "0.txt", 3)),
    "not text": (lambda r: (r / "labels/train/0.txt").write_bytes(b"0 1\n\xff\xfe"), ("encoding", "0.txt", 2)),
    "no label": (lambda r: (r / "labels/train/3.txt").unlink(), ("no label", "3.png", 0)),
    "no image": (lambda r: (r / "labels/train/x.txt").write_text(""), ("no image", "x.txt", 0)),
    "empty image": (lambda r: (r / "images/train/3.png").write_bytes(b""), ("image", "3.png", 0)),
    "cut image": (
        lambda r: (r / "images/train/3.png").write_bytes((r / "images/train/3.png").read_bytes()[:-50]),
        ("image", "3.png", 0),
    ),
    "no image but its name": (lambda r: (r / "images/train/3.png").write_text("hello"), ("image", "3.png", 0)),
    "dangling link": (
        lambda r: ((r / "images/train/3.png").unlink(), (r / "images/train/3.png").symlink_to("nowhere.png"))[0],
        ("image", "3.png", 0),
    ),
    "tiny image": (
        lambda r: cv2.imwrite(str(r / "images/train/3.png"), np.zeros((9, 64, 3), np.uint8)) and None,
        ("image", "3.png", 0),
    ),
    "two images for a label": (
        lambda r: cv2.imwrite(str(r / "images/train/3.jpg"), np.zeros((64, 64, 3), np.uint8)) and None,
        ("shared label", "3.txt", 0),
    ),
    "leak": (lambda r: shutil.copy(r / "images/train/5.png", r / "images/val/2.png") and None, ("leak", "2.png", 0)),
}


@pytest.mark.parametrize("case", LABEL_MISTAKES)
def test_mistakes_in_labels_and_images(people: Path, case: str, capsys: pytest.CaptureFixture) -> None:
    change, (kind, name, line) = LABEL_MISTAKES[case]
    change(people)
    findings = [entry for entry in found(people) if entry[3]]
    assert findings[0] == (kind, name, line, True)
    assert len({entry[0] for entry in findings}) == 1, findings  # and nothing else is blamed for it
    assert main([str(people / "data.yaml")]) == 1
    out = capsys.readouterr().out
    assert (f"{name}:{line}: error: " if line else f"{name}: error: ") in out and "Fix: " in out


def test_near_duplicates_and_neighbours(people: Path) -> None:
    words = (people / "labels/train/0.txt").read_text().splitlines()[0].split()
    moved = [w if (i < 5 or (i - 5) % 3 == 2 or float(w) == 0) else f"{float(w) + 0.002:.6f}" for i, w in enumerate(words)]
    append(people, " ".join(moved) + "\n")
    assert found(people) == [("duplicate", "0.txt", 3, True)]
    moved = [w if (i < 5 or (i - 5) % 3 == 2 or float(w) == 0) else f"{float(w) + 0.05:.6f}" for i, w in enumerate(words)]
    rewrite(people, 3, slice(0, None), moved)
    assert found(people) == []  # close together, but two


def test_hidden_keypoints_may_leave_the_box(people: Path) -> None:
    rewrite(people, 1, slice(1, 5), "0.25 0.5 0.4 0.3".split())
    row = (people / "labels/train/0.txt").read_text().splitlines()[0].split()
    row[5:] = ["0.25 0.5 2"] * 16 + ["0.25 0.95 1"]
    rewrite(people, 1, slice(0, None), row)
    assert found(people) == []
    row[-1] = "0.25 0.95 2"
    rewrite(people, 1, slice(0, None), row)
    assert found(people) == [("far", "0.txt", 1, True)]


def test_backgrounds_may_be_meant(people: Path) -> None:
    (people / "labels/train/3.txt").unlink()
    assert found(people, backgrounds=True) == []
    (people / "labels/train/3.txt").touch()
    assert found(people) == []


def test_rows_without_boxes_are_legal_and_mixed_too(people: Path) -> None:
    for file in (people / "labels/train").iterdir():
        first, second = file.read_text().splitlines()
        words = first.split()
        file.write_text(" ".join(words[:1] + words[5:]) + "\n" + second + "\n")
    report = check(people / "data.yaml")
    assert report.errors == 0 and [f.kind for f in report.findings] == ["no boxes"]
    assert "8 rows of train have no box (8 have one)" in report.findings[0].what
    rewrite(people, 1, 1, "1.5")
    assert ("outside", "0.txt", 1, True) in found(people)


def test_persons_without_keypoints_are_a_note(people: Path) -> None:
    rewrite(people, 2, slice(5, None), ["0"] * 51, name="val/1.txt")
    assert found(people) == [("no keypoints", "1.txt", 2, False)]


def test_two_values_a_keypoint(people: Path) -> None:
    for file in (people / "labels").rglob("*.txt"):
        rows = [line.split() for line in file.read_text().splitlines()]
        file.write_text("\n".join(" ".join(w for i, w in enumerate(r) if i < 5 or (i - 5) % 3 < 2) for r in rows))
    edit(people, kpt_shape=[17, 2])
    kinds = {kind for kind, _, _, error in found(people) if error}
    assert kinds <= {"far"}  # what was not labelled lies at 0 0 now, which counts as labelled
    rewrite(people, 1, slice(5, 7), ["-1", "-1"])
    assert ("outside", "0.txt", 1, True) not in found(people)
    rewrite(people, 1, slice(5, 7), ["0.5", "1.2"])
    assert ("outside", "0.txt", 1, True) in found(people)


def test_deep_finds_damage_behind_the_header(people: Path) -> None:
    file = people / "images/train/2.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    file.write_bytes(data)
    assert found(people) == []
    assert found(people, deep=True) == [("image", "2.png", 0, True)]


def test_a_broken_image_installs_nothing(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics replaces PIL.Image.open by one that runs pip for what it does not know: not ours to do."""
    from PIL import Image

    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("PIL.Image.open was called"))
    assert found(people) == []
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\nhello", b"\xff\xd8\xff\xe0"):
        (people / "images/train/3.png").write_bytes(content)
        assert found(people) == [("image", "3.png", 0, True)]


def test_turned_images_are_measured_as_shown(people: Path) -> None:
    from PIL import Image

    from erpose_yolo.data.images import image_size

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(people / "a.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(people / "b.jpg")
    assert image_size(people / "a.jpg") == (20, 40) and image_size(people / "b.jpg") == (40, 20)
    for suffix in ("bmp", "webp", "tif", "png", "jp2"):
        Image.new("RGB", (40, 20)).save(people / f"c.{suffix}")
        assert image_size(people / f"c.{suffix}", deep=True) == (40, 20)


def test_cut_jpeg(people: Path) -> None:
    image = cv2.imread(str(people / "images/train/3.png"))
    (people / "images/train/3.png").unlink()
    file = people / "images/train/3.jpg"
    cv2.imwrite(str(file), image)
    assert found(people) == []
    file.write_bytes(file.read_bytes() + b"vendor data")  # after the end mark: harmless
    assert found(people) == []
    file.write_bytes(file.read_bytes()[:-100])
    assert found(people) == [("image", "3.jpg", 0, True)]


def test_leaks_are_by_content_and_say_which(people: Path) -> None:
    shutil.copy(people / "images/train/5.png", people / "images/val/2.png")
    report = check(people / "data.yaml")
    leak = next(f for f in report.findings if f.kind == "leak")
    assert leak.file == people / "images/val/2.png" and str(people / "images/train/5.png") in leak.what
    data = bytearray((people / "images/val/2.png").read_bytes())
    data[len(data) // 2] ^= 1  # same size, same ends
    (people / "images/val/2.png").write_bytes(data)
    assert found(people) == []
    edit(people, val="images/train")
    assert [kind for kind, *_ in found(people)] == ["leak"] * 8


def test_lists_of_images(people: Path) -> None:
    (people / "train.txt").write_text("./images/train/0.png\n./images/train/1.png\n")
    edit(people, train="train.txt")
    report = check(people / "data.yaml")
    assert report.findings == [] and report.images["train"] == 2  # the other labels belong to images that exist
    (people / "train.txt").write_text("./images/train/0.png\n./images/train/gone.png\n")
    assert ("image", "gone.png", 0, True) in found(people)


def test_splits_are_chosen(people: Path, capsys: pytest.CaptureFixture) -> None:
    rewrite(people, 1, 7, "3")
    assert main([str(people / "data.yaml"), "--split", "val"]) == 0
    assert main([str(people / "data.yaml"), "--split", "val", "train"]) == 1
    assert main([str(people / "data.yaml"), "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err


def test_usage_errors_are_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([]) == main(["nothing.yaml"]) == main(["a", "--images", "0"]) == 2
    assert "nothing.yaml is no file" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "line"), [("train: [\n", 2), ("a: b: c\n", 1), ("- 1\n", 1), ("", 1)])
def test_broken_yaml(tmp_path: Path, text: str, line: int, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "d.yaml").write_text(text)
    assert main([str(tmp_path / "d.yaml")]) == 1
    assert f"d.yaml:{line}: error: " in capsys.readouterr().out


def test_many_findings_of_a_kind_are_counted(people: Path, capsys: pytest.CaptureFixture) -> None:
    append(people, "".join(f"0 {i}\n" for i in range(30)))
    assert main([str(people / "data.yaml")]) == 1
    out = capsys.readouterr().out
    assert out.count("2 columns") == 20 and "and 10 more of the kind 'columns'" in out and "30 errors" in out
    assert main([str(people / "data.yaml"), "--all"]) == 1
    assert capsys.readouterr().out.count("2 columns") == 30


def test_labels_and_images_are_not_touched(people: Path) -> None:
    before = {p: (p.read_bytes(), os.stat(p).st_mtime_ns) for p in people.rglob("*") if p.is_file()}
    check(people / "data.yaml", deep=True)
    assert before == {p: (p.read_bytes(), os.stat(p).st_mtime_ns) for p in people.rglob("*") if p.is_file()}


def test_suffixes_are_those_of_ultralytics() -> None:
    from ultralytics.data.utils import IMG_FORMATS, img2label_paths

    from erpose_yolo.data.images import IMAGE_SUFFIXES, label_of

    assert {suffix[1:] for suffix in IMAGE_SUFFIXES} == IMG_FORMATS
    for path in ("/a/images/b.jpg", "/a/images/images/b.c.png", "/a/images/b.jpg", "/images/x/images.y/b.jpg"):
        assert [str(label_of(Path(path)))] == img2label_paths([path])


# -- the sheet -------------------------------------------------------------------------------------------------------


def sides_seen(sheet: np.ndarray, top: int, bottom: int) -> tuple[float, float]:
    """Mean column, within its tile, of orange and of blue pixels in a band of a sheet with one tile."""
    band = sheet[top:bottom].astype(int)
    orange = (abs(band - (0, 140, 255)) < 25).all(2)
    blue = (abs(band - (255, 120, 0)) < 25).all(2)
    assert orange.any() and blue.any()
    return float(np.nonzero(orange)[1].mean()), float(np.nonzero(blue)[1].mean())


@pytest.mark.parametrize("flip", ["right", "wrong"])
def test_a_wrong_flip_idx_is_seen_on_the_sheet(tmp_path: Path, flip: str) -> None:
    root = tmp_path / "one"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    cv2.imwrite(str(root / "images/train/0.png"), np.full((200, 200, 3), 90, np.uint8))
    # who faces the camera: the left side of the body on the right of the image
    xs = [0.5] + [0.5 + (0.2 if k % 2 else -0.2) for k in range(1, 17)]
    row = " ".join(f"{x:.3f} {0.1 + 0.05 * k:.3f} 2" for k, x in enumerate(xs))
    (root / "labels/train/0.txt").write_text(f"0 .5 .5 .5 .9 {row}\n")
    keys = {
        "train": "images/train",
        "val": "images/train",
        "kpt_shape": [17, 3],
        "flip_idx": COCO_17.flip if flip == "right" else list(range(17)),
        "names": ["person"],
        "kpt_names": {0: list(COCO_17.names)},
    }
    (root / "data.yaml").write_text(yaml.safe_dump(keys))
    out = tmp_path / "new" / "sheet.png"
    assert main([str(root / "data.yaml"), "--split", "train", "--show", str(out)]) == int(flip == "wrong")
    sheet = cv2.imread(str(out))
    half = 26 + 22 + 300
    orange, blue = sides_seen(sheet, 48, half)
    assert orange > blue + 50
    orange, blue = sides_seen(sheet, half + 22, sheet.shape[0])
    assert (orange > blue + 50) if flip == "right" else (orange < blue - 50)


def test_the_sheet_needs_somebody_to_show(people: Path, tmp_path: Path) -> None:
    source = load_data_yaml(people / "data.yaml")
    report = check(people / "data.yaml", show=3)
    assert len(report.gallery) == 3
    with pytest.raises(DataError, match="cannot be written"):
        contact_sheet(source, report, tmp_path / "sheet.xyz")
    edit(people, flip_idx=None)
    contact_sheet(load_data_yaml(people / "data.yaml"), report, tmp_path / "sheet.jpg")  # top row only
    for file in (people / "labels").rglob("*.txt"):
        file.write_text("")
    with pytest.raises(DataError, match="no image with a labelled person"):
        contact_sheet(source, check(people / "data.yaml", show=3), tmp_path / "sheet.jpg")
    assert main([str(people / "data.yaml"), "--show", str(tmp_path / "s.jpg")]) == 1
