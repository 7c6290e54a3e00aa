"""Converters: nothing that training uses is lost, errors say what and where, and nothing half-made is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from erpose_yolo.data.convert import from_coco, generate_box_free, main, strip_boxes, to_coco
from erpose_yolo.data.convert.files import safe_relative
from erpose_yolo.data.data_yaml import DataError
from erpose_yolo.data.skeletons import COCO_17, CROWDPOSE_14

# -- JSON -> labels -> JSON ------------------------------------------------------------------------------------------


def made_up(keypoints: int = 17, images: int = 12, seed: int = 0, **of_image: Any) -> dict[str, Any]:
    """A COCO-format document with every kind of annotation: persons, crowds, persons without keypoints."""
    rng = np.random.default_rng(seed)
    names = list({17: COCO_17, 14: CROWDPOSE_14}[keypoints].names) if keypoints in (14, 17) else [f"p{k}" for k in range(keypoints)]
    doc: dict[str, Any] = {"info": {}, "images": [], "annotations": []}
    for i in range(images):
        width, height = int(rng.integers(80, 5000)), int(rng.integers(80, 5000))
        doc["images"].append({"id": 7 * i + 3, "file_name": f"{i:04d}.jpg", "width": width, "height": height, **of_image})
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.uniform(0, width * 0.6), rng.uniform(0, height * 0.6)
            w, h = rng.uniform(5, width - x), rng.uniform(5, height - y)
            crowd = rng.random() < 0.15
            seen = np.zeros(keypoints, int) if crowd or rng.random() < 0.2 else rng.integers(0, 3, keypoints)
            points = np.round(rng.uniform((0, 0), (width, height), (keypoints, 2)), int(rng.integers(0, 3)))
            pose = np.concatenate((points, seen[:, None]), 1) * (seen[:, None] > 0)
            doc["annotations"].append(
                {
                    "id": 1000 + 3 * len(doc["annotations"]),
                    "image_id": 7 * i + 3,
                    "category_id": 5,
                    "bbox": [round(v, 2) for v in (x, y, w, h)],
                    "area": round(w * h * 0.4, 3),
                    "iscrowd": int(crowd),
                    "keypoints": pose.ravel().tolist(),
                    "num_keypoints": int((seen > 0).sum()),
                    "segmentation": [[x, y, x + w, y, x + w, y + h]],
                }
            )
    rng.shuffle(doc["annotations"])
    doc["categories"] = [{"id": 5, "name": "person", "keypoints": names, "skeleton": [[1, 2], [2, 3]]}]
    return doc


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes a document and (empty) images for it; returns the arguments of the command."""

    def write(document: dict[str, Any], name: str = "in.json") -> list[str]:
        (tmp_path / name).write_text(json.dumps(document))
        for image in document.get("images", []):
            file = tmp_path / "images" / str(image.get("file_name"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return [str(tmp_path / name), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "set")]

    return write


def rows_of(root: Path, split: str, stem: str) -> np.ndarray:
    text = (root / "labels" / split / f"{stem}.txt").read_text()
    return np.array([line.split() for line in text.splitlines()], float)


@pytest.mark.parametrize(("keypoints", "seed"), [(17, 0), (17, 1), (14, 2), (1, 3), (5, 4), (33, 5)])
def test_round_trip_keeps_what_training_uses(tmp_path: Path, source: Any, keypoints: int, seed: int) -> None:
    doc = made_up(keypoints, seed=seed)
    assert main(["coco", *source(doc), "--split", "val"]) == 0
    for sidecar in (True, False):
        data = tmp_path / "set" / "data.yaml"
        if not sidecar:  # sizes then come from the images themselves
            text = yaml.safe_load(data.read_text())
            del text["annotations"]
            data.write_text(yaml.safe_dump(text))
            for image in doc["images"]:
                (tmp_path / "set/images/val" / image["file_name"]).unlink()
                canvas = np.zeros((image["height"], image["width"]), np.uint8)
                cv2.imwrite(str(tmp_path / "set/images/val" / image["file_name"]), canvas)
        out = tmp_path / f"back-{sidecar}.json"
        assert main(["labels", str(data), "--split", "val", "--out", str(out)]) == 0
        back = json.loads(out.read_text())
        name_of = {image["id"]: image["file_name"] for image in back["images"]}
        assert sorted(name_of.values()) == sorted(image["file_name"] for image in doc["images"])
        size_of = {image["file_name"]: (image["width"], image["height"]) for image in back["images"]}
        assert size_of == {image["file_name"]: (image["width"], image["height"]) for image in doc["images"]}
        theirs: dict[str, list] = {}
        for annotation in back["annotations"]:
            theirs.setdefault(name_of[annotation["image_id"]], []).append(annotation)
        assert len(back["annotations"]) == len(doc["annotations"])
        original = {image["id"]: image["file_name"] for image in doc["images"]}
        for wanted in doc["annotations"]:
            got = min(theirs[original[wanted["image_id"]]], key=lambda a: np.abs(np.subtract(a["bbox"], wanted["bbox"])).max())
            assert np.abs(np.subtract(got["bbox"], wanted["bbox"])).max() < 1e-3
            assert np.abs(np.subtract(got["keypoints"], wanted["keypoints"])).max() < 1e-3
            assert got["keypoints"][2::3] == wanted["keypoints"][2::3]
            assert got["num_keypoints"] == wanted["num_keypoints"]
            if sidecar:
                assert [got[k] for k in ("id", "image_id", "area", "iscrowd")] == [
                    wanted[k] for k in ("id", "image_id", "area", "iscrowd")
                ]
            else:
                w, h = wanted["bbox"][2:]
                long = max(w, h)
                assert got["area"] == pytest.approx(max(16, 0.53 * max(w, long / 4) * max(h, long / 4)), abs=0.1)


def test_rows_and_ignore_regions(tmp_path: Path, source: Any) -> None:
    keypoints = [10.0, 20.0, 2, 0, 0, 0, 33.5, 44.25, 1]
    base = {"image_id": 1, "category_id": 1, "area": 9, "bbox": [10, 20, 40, 60]}
    doc = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 200},
            {"id": 2, "file_name": "b.png", "width": 9, "height": 9},
        ],
        "annotations": [
            {**base, "id": 1, "iscrowd": 0, "keypoints": keypoints},
            {**base, "id": 2, "iscrowd": 1, "keypoints": keypoints},  # a crowd's keypoints say nothing
            {**base, "id": 3, "iscrowd": 0, "keypoints": [0] * 9},
            {**base, "id": 4, "iscrowd": 1},
            {**base, "id": 5, "iscrowd": 0, "keypoints": [5, 5, 0, 6, 6, 0, 7, 7, 0]},
        ],
        "categories": [{"id": 1, "name": "crab", "keypoints": ["nose", "left_claw", "right_claw"]}],
    }  # fmt: skip
    assert main(["coco", *source(doc)]) == 0
    lines = (tmp_path / "set/labels/train/a.txt").read_text().splitlines()
    assert lines[0] == "0 0.3 0.25 0.4 0.3 0.1 0.1 2 0 0 0 0.335 0.22125 1"
    assert lines[1:] == ["0 0.3 0.25 0.4 0.3" + " 0 0 0" * 3] * 4
    assert (tmp_path / "set/labels/train/b.txt").read_text() == ""  # known to be background
    data = yaml.safe_load((tmp_path / "set/data.yaml").read_text())
    assert data == {
        "train": "images/train",
        "annotations": {"train": "annotations/train.json"},
        "kpt_shape": [3, 3],
        "names": {0: "crab"},
        "kpt_names": {0: ["nose", "left_claw", "right_claw"]},
        "flip_idx": [0, 2, 1],
    }
    side = json.loads((tmp_path / "set/annotations/train.json").read_text())
    assert [a["iscrowd"] for a in side["annotations"]] == [0, 1, 0, 1, 0]
    assert side["annotations"][0]["keypoints"] == keypoints


def test_training_ignores_what_the_converter_marks(tmp_path: Path, source: Any) -> None:
    """The rows, read by the package's own loader, end up as persons and ignore regions of the loss."""
    import torch

    from erpose_yolo.nn.network import to_targets

    doc = made_up(seed=3)
    assert main(["coco", *source(doc)]) == 0
    rows = np.concatenate([rows_of(tmp_path / "set", "train", f"{i:04d}").reshape(-1, 56) for i in range(12)])
    batch = {
        "img": torch.zeros(1, 3, 64, 64),
        "batch_idx": torch.zeros(len(rows)),
        "cls": torch.zeros(len(rows), 1),
        "bboxes": torch.tensor(rows[:, 1:5]),
        "keypoints": torch.tensor(rows[:, 5:].reshape(-1, 17, 3)),
    }
    targets = to_targets(batch, torch.device("cpu"))
    persons = sum(a["num_keypoints"] > 0 and not a["iscrowd"] for a in doc["annotations"])
    assert len(targets.keypoints) == persons and len(targets.ignore_box) == len(doc["annotations"]) - persons > 0


def test_keypoints_and_boxes_outside_the_image(tmp_path: Path, source: Any) -> None:
    base = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    doc = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [
            {**base, "id": 1, "bbox": [-10, 50, 60, 80], "keypoints": [-0.5, 60, 2, 50, 100.9, 1, 20, 130, 2]},
            {**base, "id": 2, "keypoints": [20, 30, 2, 60, 30, 2, 0, 0, 0]},  # no box: the keypoints' own
            {**base, "id": 3, "bbox": [10, 10, 0, 50], "keypoints": [20, 30, 2, 60, 90, 2, 0, 0, 0]},
            {**base, "id": 4, "bbox": [200, 200, 10, 10], "keypoints": [0] * 9},  # nowhere
        ],
        "categories": [{"id": 1, "name": "crab", "keypoints": ["a", "b", "c"]}],
    }
    out = tmp_path / "set"
    done = from_coco.convert(Path(source(doc)[0]), out, tmp_path / "images")
    assert (done.keypoints_moved, done.keypoints_outside, done.boxes_clipped, done.boxes_derived) == (2, 1, 1, 2)
    rows = rows_of(out, "train", "a")
    assert rows[0].tolist() == pytest.approx([0, 0.25, 0.75, 0.5, 0.5, 0, 0.6, 2, 0.5, 1, 1, 0, 0, 0])
    assert rows[1, 1:5].tolist() == pytest.approx([0.4, 0.3, 0.4, 0.1])  # a quarter of the long side at least
    assert rows[2, 1:5].tolist() == pytest.approx([0.4, 0.6, 0.4, 0.6])
    assert len(rows) == 3
    side = json.loads((out / "annotations/train.json").read_text())["annotations"]
    assert side[0]["bbox"] == [-10, 50, 60, 80] and side[0]["keypoints"][:2] == [-0.5, 60]  # as it was
    assert side[1]["bbox"] == [20, 30, 40, 0]


@pytest.mark.parametrize(
    "order", ["images annotations categories", "categories annotations images", "annotations images categories"]
)
def test_the_order_of_members_does_not_matter(tmp_path: Path, source: Any, order: str) -> None:
    doc = made_up(seed=1)
    doc["licenses"] = [{"id": 1}]
    doc = {key: doc[key] for key in [*order.split(), "licenses"]}
    assert main(["coco", *source(doc)]) == 0
    rows = sum(len(p.read_text().splitlines()) for p in (tmp_path / "set/labels/train").iterdir())
    assert rows == len(doc["annotations"])


def test_known_skeletons_bring_sigmas_limbs_and_pairs(tmp_path: Path, source: Any) -> None:
    doc = made_up(14, crowdIndex=0.25)
    doc["categories"][0]["skeleton"] = [[16, 14], [14, 12]]  # COCO's, as in CrowdPose's own files: past 14 keypoints
    for annotation in doc["annotations"]:
        del annotation["area"]
    assert main(["crowdpose", *source(doc), "--split", "val"]) == 0
    data = yaml.safe_load((tmp_path / "set/data.yaml").read_text())
    assert data["kpt_oks_sigmas"] == list(CROWDPOSE_14.sigmas)
    assert data["flip_idx"] == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13]
    assert [tuple(pair) for pair in data["skeleton"]] == list(CROWDPOSE_14.limbs)
    side = json.loads((tmp_path / "set/annotations/val.json").read_text())
    assert all(image["crowdIndex"] == 0.25 for image in side["images"])
    assert not any("area" in a or "segmentation" in a for a in side["annotations"])


def test_evaluation_judges_the_sidecar_as_it_would_the_original(tmp_path: Path, source: Any) -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    doc = made_up(seed=6, images=20)
    file = source(doc)[0]
    assert main(["coco", *source(doc), "--split", "val"]) == 0
    rng = np.random.default_rng(0)
    results = []
    for a in doc["annotations"]:
        pose = np.array(a["keypoints"], float).reshape(-1, 3) + rng.normal(0, 20, (17, 3))
        results.append({"image_id": a["image_id"], "category_id": 5, "keypoints": pose.ravel().tolist(), "score": rng.random()})
    stats = []
    with contextlib.redirect_stdout(io.StringIO()):
        for judge_file in (file, tmp_path / "set/annotations/val.json"):
            truth = COCO(str(judge_file))
            judge = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "keypoints")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            stats.append(judge.stats.tolist())
    assert stats[0] == stats[1] and 0 < stats[0][0] < 1


# -- the set on disk -------------------------------------------------------------------------------------------------


def test_a_second_split_joins_and_ultralytics_reads_both(tmp_path: Path, source: Any) -> None:
    from ultralytics.data.utils import check_det_dataset

    doc = made_up(images=4)
    assert main(["coco", *source(doc)]) == 0
    file = tmp_path / "set/data.yaml"
    file.write_text(file.read_text() + "mine: kept\n")
    assert main(["coco", *source(made_up(images=3, seed=9), "b.json"), "--split", "val"]) == 0
    data = check_det_dataset(str(file), autodownload=False)
    assert Path(data["train"]) == tmp_path / "set/images/train" and Path(data["val"]) == tmp_path / "set/images/val"
    assert data["mine"] == "kept" and data["kpt_shape"] == [17, 3] and data["nc"] == 1
    assert data["annotations"] == {"train": "annotations/train.json", "val": "annotations/val.json"}
    assert (tmp_path / "set/images/train/0001.jpg").is_symlink()
    assert not [p for p in (tmp_path / "set").iterdir() if p.name.startswith(".")]  # no temporary folder is left


def test_copy_and_list(tmp_path: Path, source: Any) -> None:
    from erpose_yolo.data.data_yaml import load_data_yaml
    from erpose_yolo.data.images import images_of, label_of

    doc = made_up(images=4)
    arguments = source(doc)
    assert main(["coco", *arguments, "--copy"]) == 0
    copy = tmp_path / "set/images/train/0001.jpg"
    assert copy.is_file() and not copy.is_symlink()
    doc["images"].pop()
    doc["annotations"] = [a for a in doc["annotations"] if a["image_id"] != 24]
    assert main(["coco", *source(doc), "--none", "--split", "val"]) == 0
    data = load_data_yaml(tmp_path / "set/data.yaml")
    images = images_of(data.entries("val"))
    assert [p.name for p in images] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert all(label_of(p).is_file() for p in images)
    assert not (tmp_path / "set/images/val").exists()


def test_folders_in_names(tmp_path: Path, source: Any) -> None:
    doc = made_up(images=3)
    for image, name in zip(doc["images"], ("images/a/0.jpg", "b/1.jpg", "images/2.x.jpg")):
        image["file_name"] = name
    assert main(["coco", *source(doc)]) == 0
    found = sorted(str(p.relative_to(tmp_path / "set")) for p in (tmp_path / "set").rglob("*.*") if p.suffix in (".jpg", ".txt"))
    assert found == [
        "images/train/2.x.jpg", "images/train/a/0.jpg", "images/train/b/1.jpg",
        "labels/train/2.x.txt", "labels/train/a/0.txt", "labels/train/b/1.txt",
    ]  # fmt: skip
    side = json.loads((tmp_path / "set/annotations/train.json").read_text())
    assert [image["file_name"] for image in side["images"]] == ["a/0.jpg", "b/1.jpg", "2.x.jpg"]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:/x.jpg", "a\0.jpg", "", ".jpg", "x", "\ud800.jpg", 5, None]
)
def test_names_that_lead_out_of_the_folder(name: object) -> None:
    assert safe_relative(name) is None


def test_overwrite_replaces_and_drops_the_stale_cache(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture) -> None:
    arguments = source(made_up(images=2))
    assert main(["coco", *arguments]) == 0
    cache = tmp_path / "set/labels/train.cache"
    cache.write_text("old")
    before = {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    assert main(["coco", *source(made_up(images=5, seed=8))]) == 1
    assert "exists" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    assert main(["coco", *source(made_up(images=5, seed=8)), "--overwrite"]) == 0
    assert len(list((tmp_path / "set/labels/train").iterdir())) == 5 and not cache.exists()


def test_a_failing_rename_leaves_everything_as_it_was(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    assert main(["coco", *source(made_up(images=2))]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    real = os.rename

    def rename(a: Any, b: Any) -> None:
        if Path(b).name == "data.yaml" and "trash" not in str(b) and ".convert" in str(a):
            if not str(a).endswith("old-3"):
                raise OSError("no space left")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    assert main(["coco", *source(made_up(images=5, seed=8)), "--overwrite"]) == 1
    monkeypatch.undo()
    assert before == {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    assert not [p for p in (tmp_path / "set").iterdir() if p.name.startswith(".")]


def test_skip_empty_and_skip_missing(tmp_path: Path, source: Any) -> None:
    doc = made_up(images=8, seed=2)
    arguments = source(doc)
    (tmp_path / "images/0000.jpg").unlink()
    assert main(["coco", *arguments, "--skip-missing", "--skip-empty"]) == 0
    posed = {a["image_id"] for a in doc["annotations"] if a["num_keypoints"] and not a["iscrowd"]}
    wanted = {i["file_name"][:-4] for i in doc["images"] if i["id"] in posed} - {"0000"}
    assert {p.stem for p in (tmp_path / "set/labels/train").iterdir()} == wanted and 0 < len(wanted) < 7
    side = json.loads((tmp_path / "set/annotations/train.json").read_text())
    assert {image["file_name"][:-4] for image in side["images"]} == wanted
    assert {a["image_id"] for a in side["annotations"]} <= {image["id"] for image in side["images"]}


# -- bad input -------------------------------------------------------------------------------------------------------


def first(doc: dict[str, Any]) -> dict[str, Any]:
    return next(a for a in doc["annotations"] if a["num_keypoints"])


def spoil(path: str, value: Any = ...) -> Any:
    """An edit of the document: set, or delete, what the path names; `annotation` is the first with keypoints."""

    def edit(doc: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = doc
        for step in way:
            place = first(doc) if step == "annotation" else place[int(step) if isinstance(place, list) else step]
        last = int(last) if isinstance(place, list) else last  # type: ignore[assignment]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return edit


BAD = {
    "no annotations": (spoil("annotations"), "`annotations` is missing"),
    "no images": (spoil("images"), "`images` is missing"),
    "no categories": (spoil("categories"), "`categories` is missing"),
    "images is no list": (spoil("images", {"a": 1}), "`images` is no list"),
    "empty images": (spoil("images", []), "`images` is empty"),
    "image without width": (spoil("images.1.width"), "image 10: the key 'width' is missing"),
    "image of no size": (spoil("images.1.height", 0), "image 10: height is 0"),
    "image is a string": (spoil("images.1", "x.jpg"), "must be an object"),
    "path out of the folder": (spoil("images.1.file_name", "../../x.jpg"), "file_name is '../../x.jpg'"),
    "image id twice": (spoil("images.1.id", 3), "image id 3 is used 2 times"),
    "image id as text": (spoil("images.1.id", "10"), "id is '10', it must be an integer"),
    "annotation id twice": (lambda d: d["annotations"].append(dict(d["annotations"][0])), "is used 2 times"),
    "annotation without image": (spoil("annotation.image_id", 999), "image_id 999 is not among `images`"),
    "annotation without id": (spoil("annotation.id"), "the key 'id' is missing"),
    "unknown category": (spoil("annotation.category_id", 77), "category_id 77 is not among `categories`"),
    "no keypoint category": (spoil("categories.0.keypoints"), "no category has `keypoints`"),
    "two keypoint categories": (
        lambda d: d["categories"].append({"id": 6, "name": "dog", "keypoints": ["a"]}),
        "several categories have keypoints: `person`, `dog`",
    ),
    "keypoints too short": (lambda d: first(d)["keypoints"].pop(), "keypoints has 50 numbers, 51 are needed"),
    "keypoints missing": (spoil("annotation.keypoints"), "the key 'keypoints' is missing, 51 are needed"),
    "keypoints of text": (spoil("annotation.keypoints", ["a"] * 51), "keypoints must be a list of numbers"),
    "keypoint NaN": (spoil("annotation.keypoints.0", math.nan), "a keypoint is NaN or infinite"),
    "keypoint infinite": (spoil("annotation.keypoints.3", math.inf), "a keypoint is NaN or infinite"),
    "visibility 3": (spoil("annotation.keypoints.2", 3), "a visibility is not 0, 1 or 2"),
    "bbox NaN": (spoil("annotation.bbox.1", math.nan), "bbox is NaN or infinite"),
    "bbox of three": (spoil("annotation.bbox", [1, 2, 3]), "bbox has 3 numbers"),
    "bbox negative": (spoil("annotation.bbox.2", -5), "bbox has a negative width"),
    "area NaN": (spoil("annotation.area", math.nan), "area is nan"),
    "neither box nor keypoints": (
        lambda d: first(d).update(bbox=None, keypoints=[0] * 51),
        "has neither a bbox nor a labelled keypoint",
    ),
    "one label file for two": (spoil("images.1.file_name", "0000.png"), "would share one label file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_documents(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture, case: str) -> None:
    edit, message = BAD[case]
    doc = made_up()
    arguments = source(doc)
    edit(doc)
    (tmp_path / "in.json").write_text(json.dumps(doc))
    assert main(["coco", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "in.json" in error and "Fix" in error, error
    if case.startswith(("keypoints ", "keypoint ", "bbox", "visib", "area", "annotation without image")):
        assert f"annotation {first(doc)['id']}: " in error
    assert not (tmp_path / "set").exists()  # nothing is left


def test_truncated_file(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture) -> None:
    arguments = source(made_up())
    data = (tmp_path / "in.json").read_bytes()
    (tmp_path / "in.json").write_bytes(data[: len(data) // 2])
    assert main(["coco", *arguments]) == 1
    error = capsys.readouterr().err
    assert "in.json is truncated or not JSON" in error and f"(char {len(data) // 2})" in error
    assert not (tmp_path / "set").exists()


def test_absent_images(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture) -> None:
    arguments = source(made_up())
    (tmp_path / "images/0003.jpg").unlink()
    assert main(["coco", *arguments]) == 1
    assert "1 of 12 images are not in" in (error := capsys.readouterr().err) and "0003.jpg" in error
    assert main(["coco", arguments[0], "--images", str(tmp_path / "nowhere"), "--out", str(tmp_path / "set")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["coco", arguments[0], "--out", str(tmp_path / "set")]) == 1
    assert "--images DIR" in capsys.readouterr().err
    assert main(["coco", str(tmp_path / "none.json"), *arguments[1:]]) == 1
    assert "none.json is no file" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_other_keypoints_than_the_data_yaml(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture) -> None:
    assert main(["coco", *source(made_up(17))]) == 0
    capsys.readouterr()
    assert main(["coco", *source(made_up(14), "b.json"), "--split", "val"]) == 1
    assert "data.yaml:4: kpt_shape is [17, 3], but the file to convert has 14 keypoints" in capsys.readouterr().err
    doc = made_up(17)
    names = doc["categories"][0]["keypoints"]
    names[1], names[2] = names[2], names[1]
    assert main(["coco", *source(doc, "c.json"), "--split", "val"]) == 1
    assert "keypoint 1 is 'left_eye', but 'right_eye'" in capsys.readouterr().err
    assert not (tmp_path / "set/labels/val").exists() and not (tmp_path / "set/annotations/val.json").exists()


def test_crowdpose_wants_its_keypoints_and_crowd_index(source: Any, capsys: pytest.CaptureFixture) -> None:
    assert main(["crowdpose", *source(made_up(17))]) == 1
    assert "has 17 keypoints" in capsys.readouterr().err
    assert main(["crowdpose", *source(made_up(14))]) == 1
    assert "12 of 12 images have no crowdIndex" in capsys.readouterr().err


def test_category_is_chosen_by_name(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture) -> None:
    doc = made_up()
    doc["categories"] += [{"id": 6, "name": "dog", "keypoints": ["a"]}, {"id": 8, "name": "car"}]
    doc["annotations"].append({"id": 1, "image_id": 3, "category_id": 6, "bbox": [1, 1, 5, 5], "keypoints": [1, 1, 2]})
    doc["annotations"].append({"id": 2, "image_id": 3, "category_id": 8, "bbox": [1, 1, 5, 5]})
    assert main(["coco", *source(doc), "--category", "cat"]) == 1
    assert "0 keypoint categories are named 'cat'" in capsys.readouterr().err
    assert main(["coco", *source(doc), "--category", "person"]) == 0
    assert "2 annotations of other categories left out" in capsys.readouterr().out
    side = json.loads((tmp_path / "set/annotations/train.json").read_text())
    assert {a["category_id"] for a in side["annotations"]} == {5} and [c["id"] for c in side["categories"]] == [5]


def test_usage_errors_are_2(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == main(["voc", "x"]) == main(["coco", "x.json"]) == main(["coco", "x", "--out", "y", "--split", "z"]) == 2
    assert main(["--help"]) == 0


# -- labels -> JSON --------------------------------------------------------------------------------------------------


def small_set(root: Path, rows: str, shape: str = "[3, 3]") -> Path:
    (root / "images/val").mkdir(parents=True)
    (root / "labels/val").mkdir(parents=True)
    cv2.imwrite(str(root / "images/val/000042.png"), np.zeros((50, 100, 3), np.uint8))
    (root / "labels/val/000042.txt").write_text(rows)
    (root / "data.yaml").write_text(f"train: images/val\nval: images/val\nkpt_shape: {shape}\nnames: [crab]\n")
    return root / "data.yaml"


def test_rows_without_boxes_and_without_sidecar(tmp_path: Path) -> None:
    data = small_set(tmp_path / "s", "0 .1 .2 2 .5 .6 1 0 0 0\n0 .5 .5 .4 .8 .1 .2 2 0 0 0 0 0 0\n")
    assert main(["labels", str(data), "--out", str(tmp_path / "o.json")]) == 0
    doc = json.loads((tmp_path / "o.json").read_text())
    assert doc["images"] == [{"id": 42, "file_name": "000042.png", "width": 100, "height": 50}]
    free, boxed = doc["annotations"]
    assert free["bbox"] == [10, 10, 40, 20] and free["area"] == pytest.approx(0.53 * 800)
    assert free["keypoints"] == [10, 10, 2, 50, 30, 1, 0, 0, 0] and free["num_keypoints"] == 2
    assert boxed["bbox"] == [30, 5, 40, 40] and boxed["area"] == pytest.approx(0.53 * 1600)
    assert doc["categories"][0]["keypoints"] == ["keypoint_0", "keypoint_1", "keypoint_2"]


def test_two_values_a_keypoint(tmp_path: Path) -> None:
    data = small_set(tmp_path / "s", "0 .5 .5 .4 .8 .1 .2 -1 -1 .5 .6\n", "[3, 2]")
    to_coco.convert(data, "val", tmp_path / "o.json")
    doc = json.loads((tmp_path / "o.json").read_text())
    assert doc["annotations"][0]["keypoints"] == [10, 10, 2, 0, 0, 0, 50, 30, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 .5 .5 .4\n", r"000042\.txt:1: 4 columns"),
        ("\n0 .5 .5 .4 .8 .1 .2 2 0 0 0 0 0 x\n", r"000042\.txt:2: column 14 is 'x'"),
        ("1 .5 .5 .4 .8 .1 .2 2 0 0 0 0 0 0\n", r"000042\.txt:1: class 1 is not among"),
        ("0 .5 .5 .4 .8 nan .2 2 0 0 0 0 0 0\n", r"000042\.txt:1: a value is NaN"),
    ],
)
def test_bad_labels(tmp_path: Path, rows: str, message: str) -> None:
    data = small_set(tmp_path / "s", rows)
    with pytest.raises(DataError, match=message):
        to_coco.convert(data, "val", tmp_path / "o.json")
    assert not [p for p in tmp_path.iterdir() if "o.json" in p.name]


def test_labels_to_json_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = small_set(tmp_path / "s", "")
    out = ["--out", str(tmp_path / "o.json")]
    assert main(["labels", str(data), "--split", "test", *out]) == 1
    assert "no split 'test'" in capsys.readouterr().err
    (tmp_path / "o.json").touch()
    assert main(["labels", str(data), *out]) == 1
    assert "exists" in capsys.readouterr().err
    data.write_text(data.read_text().replace("[3, 3]", "3"))
    assert main(["labels", str(data), *out, "--overwrite"]) == 1
    assert "data.yaml:3: kpt_shape is 3" in capsys.readouterr().err
    data.write_text("a: [\n")
    assert main(["labels", str(data), *out, "--overwrite"]) == 1
    assert "data.yaml:2: not YAML" in capsys.readouterr().err


# -- box-free --------------------------------------------------------------------------------------------------------


def test_strip_boxes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 .5 .5 .4 .8 .1 .2 2\n0 .1 .2 2\n")
    assert strip_boxes(tmp_path, keypoints=1) == 1
    assert file.read_text() == "0 .1 .2 2\n0 .1 .2 2\n"
    file.write_text("0 .1\n")
    with pytest.raises(DataError, match=r"a\.txt:1: 2 columns"):
        strip_boxes(tmp_path, keypoints=1)


def test_generate_box_free(tmp_path: Path) -> None:
    root = generate_box_free(tmp_path / "set", {"images": 2, "val_images": 1, "size": 64})
    files = sorted(root.rglob("*.txt"))
    assert len(files) == 3
    assert {len(line.split()) for f in files for line in f.read_text().splitlines()} <= {52}
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    with pytest.raises(FileExistsError):
        generate_box_free(tmp_path / "set", {})
