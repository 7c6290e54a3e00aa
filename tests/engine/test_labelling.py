"""``erpose label``: what becomes of each find, data sets that hold together, runs that are stopped, files that are broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics.engine.results import Results
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import ASSETS

from erpose_yolo.cli import main
from erpose_yolo.data.check import check
from erpose_yolo.data.labels import parse_labels, read_rows
from erpose_yolo.engine import labelling
from erpose_yolo.engine.labelling import Found, decide, doubt, label

BODY = np.array([[0.5, 0.05], [0.2, 0.4], [0.8, 0.4], [0.3, 0.95], [0.7, 0.95]])  # head, hands, feet, as shares of the box
NAMES = ["head", "left_hand", "right_hand", "left_foot", "right_foot"]


def person(left: float, top: float, width: float = 30, height: float = 60) -> tuple[list[float], np.ndarray]:
    """Corners, and keypoints (5, 3) that are all seen."""
    points = BODY * (width, height) + (left, top)
    return [left, top, left + width, top + height], np.column_stack((points, np.ones(5)))


def finds(*people: tuple[list[float], np.ndarray], score: Sequence[float]) -> Found:
    boxes, poses = np.array([p[0] for p in people]), np.stack([p[1] for p in people])
    return Found(np.zeros(len(people)), np.array(score), boxes, poses)


class Model:
    """Stands for an ``ultralytics.YOLO``: finds the same people in each image, and counts the images."""

    task, names, model, ckpt_path = "pose", {0: "person"}, None, "oracle.pt"

    def __init__(self, *people: tuple[Any, ...], columns: int = 3, stop: int = -1, **known: Any) -> None:
        self.people, self.columns, self.stop, self.seen = people, columns, stop, 0
        self.predictor = SimpleNamespace(model=SimpleNamespace(**{"kpt_shape": [5, columns], "kpt_names": {0: NAMES}, **known}))

    def predict(self, image: np.ndarray, conf: float, **_: Any) -> list[Results]:
        if image.shape != (64, 64, 3):  # not the first, empty one
            if self.seen == self.stop:
                raise KeyboardInterrupt
            self.seen += 1
        found = [(box, score, pose) for (box, pose), score in self.people if score >= conf]
        boxes = torch.tensor([[*box, score, 0] for box, score, _ in found]).reshape(-1, 6)
        poses = np.stack([pose[:, : self.columns] for *_, pose in found]) if found else np.zeros((0, 5, self.columns))
        return [Results(image, "", self.names, boxes=boxes, keypoints=torch.from_numpy(poses))]


def photos(folder: Path, *names: str, size: tuple[int, int] = (200, 100)) -> Path:
    """Images of noise, all different; ``size`` is width and height."""
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(n).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the sheet, whose JPEG is of no matter."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "sheet.jpg"}


# -- what becomes of a find


@pytest.mark.parametrize(
    ("second", "score", "merging", "verdict"),
    [
        (person(120, 20), (0.9, 0.8), False, ["person", "person"]),
        (person(120, 20), (0.9, 0.3), False, ["person", "region"]),
        (person(21, 20), (0.9, 0.8), False, ["person", ""]),  # the same person again
        (person(120, 20), (0.9, 0.8), True, ["region", "region"]),
        ((person(20, 20)[0], person(20, 20)[1][::-1]), (0.9, 0.8), False, ["person", "person"]),  # a sure one in another's box
        ((person(20, 20)[0], person(20, 20)[1][::-1]), (0.9, 0.3), False, ["person", ""]),  # an unsure one: a wrong pose
        ((person(120, 20)[0], person(120, 20)[1] * (1, 1, 0.2)), (0.9, 0.8), False, ["person", "region"]),  # nothing of it seen
    ],
)
def test_what_a_find_becomes(second: Any, score: tuple[float, float], merging: bool, verdict: list[str]) -> None:
    nobody = np.zeros((0, 4)), np.zeros((0, 5, 3))
    found = finds(person(20, 20), second, score=score)
    assert decide(found, *nobody, np.full(5, 0.07), 0.5, merging) == verdict


def test_who_matches_a_row_adds_nothing() -> None:
    """By OKS, by the box where the pose is wrong, and by a region that covers many; others become regions, however sure."""
    rows = [person(20, 20), ([100.0, 10.0, 190.0, 90.0], np.zeros((5, 3)))]
    boxes, poses = np.array([r[0] for r in rows], float), np.stack([r[1] for r in rows])
    misposed = person(20, 20)[0], person(20, 20)[1][::-1]
    found = finds(person(21, 20), misposed, person(110, 20), person(150, 20), person(60, 20), score=[0.9, 0.9, 0.9, 0.2, 0.9])
    assert decide(found, boxes, poses, np.full(5, 0.07), 0.5, merging=True) == ["", "", "", "", "region"]


def test_doubt_is_highest_at_the_threshold() -> None:
    score = np.array([1.0, 0.5, 0.3, 0.1])
    assert doubt(score, ["person", "person", "region", "region"], 0.5, 0.1) == pytest.approx(1.5)
    assert doubt(score, ["person", "", "", ""], 0.5, 0.1) == 0.0
    assert doubt(score, ["region", "", "", ""], 0.5, 0.1, merging=True) == 1.0


# -- data sets


def test_a_data_set_of_unlabelled_images(tmp_path: Path) -> None:
    """Rows, keypoint names, skeleton and all; ``erpose check`` finds nothing wrong, and each image is in one split."""
    source = photos(tmp_path / "photos", *(f"{n}.png" for n in range(12)))
    far = person(-10, 20)  # a keypoint outside of the image is not written
    model = Model((person(20, 20), 0.9), (person(100, 20), 0.3), (far, 0.8), (person(150, 20), 0.05), skeleton="[[0, 1]]")
    counts = label(model, source, tmp_path / "out")
    assert counts == {"images": 12, "persons": 24, "regions": 12, "rows": 0, "skipped": 0, "kept": 0}
    report = check(tmp_path / "out/data.yaml")
    assert report.errors == 0, report.findings
    assert report.images["train"] + report.images["val"] == 12 and report.images["val"] >= 1
    about = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert about["kpt_names"] == {0: NAMES} and about["flip_idx"] == [0, 2, 1, 4, 3] and about["skeleton"] == [[0, 1]]
    assert about["kpt_shape"] == [5, 3] and about["kpt_oks_sigmas"] == [0.07] * 5 and about["names"] == {0: "person"}
    rows = read_rows(next((tmp_path / "out/labels").rglob("*.txt")), 5, 3)
    assert rows.box_free.tolist() == [True, True, False] and not rows.problems
    sure, cut, region = rows.posed()
    assert np.allclose(sure[:, :2] * (200, 100), person(20, 20)[1][:, :2], atol=1e-3) and (sure[:, 2] == 2).all()
    assert cut[:, 2].tolist() == [2, 0, 2, 0, 2] and (cut[[1, 3]] == 0).all() and (region == 0).all()
    assert np.allclose(rows.boxes[2] * (200, 100, 200, 100), (115, 50, 30, 60), atol=1e-3)
    assert cv2.imread(str(tmp_path / "out/sheet.jpg")).shape[2] == 3


def test_keypoints_without_visibility(tmp_path: Path) -> None:
    """D is 2: keypoints outside of the image and those of regions are negative, which means unlabelled, in stock readers, too."""
    source = photos(tmp_path / "photos", "a.png", "b.png")
    label(Model((person(-10, 20), 0.9), (person(100, 20), 0.3), columns=2), source, tmp_path / "out")
    assert check(tmp_path / "out/data.yaml").errors == 0
    file = next((tmp_path / "out/labels").rglob("*.txt"))
    _, _, poses = parse_labels(file, (5, 2), 1, (200, 100))
    assert poses[..., 2].tolist() == [[2, 0, 2, 0, 2], [0] * 5]
    assert min(float(word) for word in file.read_text().split()) >= -0.01


def test_the_sheet_shows_the_most_doubtful_images_first(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, grey in (("a.png", 200), ("b.png", 50), ("c.png", 200)):
        cv2.imwrite(str(tmp_path / "photos" / name), np.full((100, 200, 3), grey, np.uint8))

    class Afraid(Model):
        def predict(self, image: np.ndarray, **options: Any) -> list[Results]:
            self.people = ((person(20, 20), 0.9), (person(100, 20), 0.45)) if image.mean() < 100 else ()
            return super().predict(image, **options)

    label(Afraid(skeleton=[[1, 3]]), tmp_path / "photos", tmp_path / "out", sheet=2)
    sheet = cv2.imread(str(tmp_path / "out/sheet.jpg")).astype(int)
    first, second = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
    for colour in ((0, 255, 255), (0, 140, 255)):  # the ignore region, left limbs
        assert (np.abs(first - colour) < 60).all(2).sum() > 9 and not (np.abs(second - colour) < 60).all(2).any()
    assert (abs(second - 200) < 9).all(2).mean() > 0.3, "the third image, of as little doubt, is not shown"


def test_copies_of_an_image_share_a_split(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", *(f"{n}.png" for n in range(8)))
    for n in range(8):
        shutil.copy(source / f"{n}.png", source / f"{n}-copy.png")
    label(Model(), source, tmp_path / "out", val=0.4)
    report = check(tmp_path / "out/data.yaml")
    assert report.errors == 0 and report.images["val"] >= 2


def test_an_image_keeps_its_split(tmp_path: Path) -> None:
    """The one validation image of a few is none of the many that join them later."""
    source = photos(tmp_path / "photos", "0.png", "1.png", "2.png")
    label(Model(), source, tmp_path / "out", val=1e-9)
    before = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out/images").rglob("*.png")}
    assert len(before) == 3 and {p.parent.name for p in before} == {"train", "val"}
    label(Model(), photos(source, *(f"{n}.png" for n in range(30))), tmp_path / "out", val=1e-9)
    after = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out/images").rglob("*.png")}
    assert before < after and len(after) == 30


def test_links(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", "a.png", "b.png")
    label(Model(), source, tmp_path / "out", images="link", val=0)
    assert (tmp_path / "out/images/train/a.png").resolve() == source / "a.png"


@pytest.mark.parametrize("where", ["data.yaml", "labels"])
def test_merging_adds_ignore_regions_alone(tmp_path: Path, where: str) -> None:
    """Rows stay as they are, byte by byte, and splits, too; whoever is in none of them is ignored, unless a row is near."""
    root = tmp_path / "set"
    photos(root / "images/val", "a.png", "b.png"), photos(root / "images/train", "a.png")
    row = "0 " + " ".join(f"{x / 200:.8f} {y / 100:.8f} 2" for x, y, _ in person(20, 20)[1])  # no newline
    for file in ("train/a.txt", "val/a.txt"):
        (root / "labels" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / file).write_text(row)
    about = {"train": "images/train", "val": "images/val", "names": ["human"], "kpt_shape": [5, 3], "flip_idx": [0, 2, 1, 4, 3]}
    (root / "data.yaml").write_text(yaml.safe_dump(about))
    model = Model((person(20, 20), 0.9), (person(100, 20), 0.8))
    if where == "labels":
        counts = label(model, root / "images/val", tmp_path / "out", merge=root / "labels/val", val=0)
        files = {"train/a.txt": row, "train/b.txt": ""}
    else:
        counts = label(model, out=tmp_path / "out", merge=root / "data.yaml")
        files = {"train/a.txt": row, "val/a.txt": row, "val/b.txt": ""}
        assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"] == {0: "human"}
    assert counts["persons"] == 0 and counts["rows"] == len(files) - 1 and counts["regions"] == len(files) + 1
    assert {p.relative_to(tmp_path / "out/labels").as_posix() for p in (tmp_path / "out/labels").rglob("*.txt")} == set(files)
    for file, before in files.items():
        lines, old = (tmp_path / "out/labels" / file).read_text().splitlines(), before.splitlines()
        assert lines[: len(old)] == old and len(lines) == 2
        assert not read_rows(tmp_path / "out/labels" / file, 5, 3).posed()[len(old) :].any()


def test_a_model_of_other_keypoints_is_refused(tmp_path: Path, tiny_dataset: Path) -> None:
    with pytest.raises(labelling.DataError, match=r"kpt_shape is \[17, 3\], but the model finds 5 keypoints"):
        label(Model(), out=tmp_path / "out", merge=tiny_dataset)


# -- runs that are stopped, and files of the user


def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After Ctrl-C and after a kill between any two writes: the same files in the end, and no image is looked at twice."""
    source = photos(tmp_path / "photos", *(f"{n}.png" for n in range(6)))
    people = (person(20, 20), 0.9), (person(100, 20), 0.3)
    label(Model(*people), source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        label(Model(*people, stop=3), source, tmp_path / "out")
    with open(tmp_path / "out/labelling.jsonl", "a") as journal:
        journal.write('{"image": "train/5.p')  # killed while writing a line
    last = json.loads((tmp_path / "out/labelling.jsonl").read_text().splitlines()[-2])["image"]
    (tmp_path / "out/labels" / last).with_suffix(".txt").unlink()  # killed between the line and the labels
    capsys.readouterr()
    model = Model(*people)
    assert label(model, source, tmp_path / "out")["images"] == 6
    assert "2 of 6 images are labelled already, going on with the rest" in capsys.readouterr().out and model.seen == 4
    again, whole = tree(tmp_path / "out"), tree(tmp_path / "whole")
    del again["labelling.jsonl"], whole["labelling.jsonl"]
    assert again == whole
    idle = Model(*people)
    assert label(idle, source, tmp_path / "out")["persons"] == 6 and idle.seen == 0


def test_labels_of_the_user_stay(tmp_path: Path) -> None:
    source, out = photos(tmp_path / "photos", "a.png", "b.png", "c.png"), tmp_path / "out"
    model = Model((person(20, 20), 0.9))
    (out / "labels/train").mkdir(parents=True)
    (out / "labels/train/a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out holds files that erpose label has not written.*overwrite=True"):
        label(model, source, out)
    assert tree(out) == {"labels/train/a.txt": b"mine"}

    shutil.rmtree(out)
    label(model, photos(tmp_path / "some", "b.png", "c.png"), tmp_path / "other", val=0)
    label(model, source, out, val=0)
    (out / "labels/train/a.txt").write_text("edited")
    photos(source, "a.png", "b.png", "c.png", "d.png")
    (out / "labels/train/d.txt").write_text("mine")
    counts = label(model, source, out, val=0)
    assert counts["kept"] == 1 and counts["images"] == 3
    assert (out / "labels/train/a.txt").read_text() == "edited" and (out / "labels/train/d.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match=r"begun with conf=0.5, not conf=0.6"):
        label(model, source, out, conf=0.6, val=0)
    counts = label(model, source, out, conf=0.6, val=0, overwrite=True)
    assert counts["images"] == 4 and counts["kept"] == 0 and "mine" not in (out / "labels/train/d.txt").read_text()


def test_hostile_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each that cannot be used; the others are labelled, under names of their own."""
    source = photos(tmp_path / "photos", "a/x.jpg", "b/x.jpg", "a/x.png", "b/images/y.png", "naïve 人.png", "sure.jpg")
    (source / "text.jpg").write_text("hello")
    (source / "zero.png").write_bytes(b"")
    (source / "cut.jpg").write_bytes((source / "sure.jpg").read_bytes()[:-500])
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    photos(source, "tiny.png", size=(5, 5))
    pixels = np.random.default_rng(9).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    cv2.imwrite(str(source / "deep.png"), pixels.astype(np.uint16) * 257)
    Image.fromarray(pixels[..., 0]).save(source / "grey.png")
    Image.fromarray(pixels).convert("CMYK").save(source / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(source / "turned.jpg", exif=exif)
    counts = label(Model((person(20, 20), 0.9)), source, tmp_path / "out")
    told = capsys.readouterr().err.strip().splitlines()
    assert counts["skipped"] == 5 and counts["images"] == counts["persons"] == 10
    left_out = sorted(line.partition(": left out: ")[0].rpartition("/")[2] for line in told)
    assert left_out == ["cut.jpg", "gone.png", "text.jpg", "tiny.png", "zero.png"]
    assert check(tmp_path / "out/data.yaml").errors == 0
    labels = {p.stem: read_rows(p, 5, 3).posed()[0] for p in (tmp_path / "out/labels").rglob("*.txt")}
    assert {"x", "x-2", "y", "naïve 人", "turned", "deep", "grey", "cmyk", "sure"} == set(labels)
    head = person(20, 20)[1][0]
    assert np.allclose(labels["turned"][0, :2] * (100, 200), head[:2], atol=1e-3), "it is shown on its side"


# -- real models


def test_a_stock_model_labels(tmp_path: Path) -> None:
    """YOLO11-pose with NMS, three classes, five keypoints of two values: all that it finds is written."""
    torch.manual_seed(0)
    stock = PoseModel("yolo11n-pose.yaml", nc=3, data_kpt_shape=(5, 2), verbose=False)
    stock.names = {0: "a", 1: "b", 2: "c"}
    stock.task = "pose"
    stock.args = {"task": "pose", "model": "x.pt", "imgsz": 64}
    torch.save({"model": stock.half(), "ema": None, "train_args": {}}, tmp_path / "stock.pt")
    source = photos(tmp_path / "photos", "a.png", "b.png")
    counts = label(tmp_path / "stock.pt", source, tmp_path / "out", ignore=1e-9, imgsz=64, max_det=20, iou=0.3)
    assert counts["regions"] >= 2 and counts["persons"] == 0
    report = check(tmp_path / "out/data.yaml")
    assert report.errors == 0, report.findings
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"] == {0: "a", 1: "b", 2: "c"}


@pytest.mark.slow
def test_from_photos_to_training_and_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As typed: two photos are labelled, checked, exported and trained on."""
    photos_of = tmp_path / "photos"
    photos_of.mkdir()
    for name in ("bus.jpg", "zidane.jpg"):
        shutil.copy(ASSETS / name, photos_of)
    assert main(["label", "model=erpose-n.pt", f"source={photos_of}", "out=people", "val=0.5"]) == 0
    said = re.search(r"people: 2 images, (\d+) persons", capsys.readouterr().out)
    assert said and int(said[1]) >= 5
    assert main(["check", "people/data.yaml"]) == 0
    assert main(["convert", "labels", "people/data.yaml", "--split", "train", "--out", "people.json"]) == 0
    assert json.loads(Path("people.json").read_text())["annotations"]
    words = ["train", "model=erpose-n.pt", f"data={tmp_path}/people/data.yaml", "epochs=1", "imgsz=64", "workers=0", "plots=False"]
    assert main([*words, f"project={tmp_path}/runs", "name=a", "batch=1"]) == 0
    assert (tmp_path / "runs/a/weights/best.pt").is_file()


# -- the command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("source=photos", "Give out="),
        ("out=o", "either source= or merge=DATA.yaml"),
        ("source=photos out=o conf=0.1 ignore=0.2", "0 < ignore <= conf < 1"),
        ("source=photos out=o val=2", "val=2"),
        ("source=photos out=o images=move", "images copy or link"),
        ("source=nowhere out=o", "nowhere does not exist"),
        ("source=. out=o", "lie in one another"),
        ("source=empty out=o", "no images there"),
        ("source=photos out=o merge=gone", "neither a data YAML nor a folder"),
        ("source=photos out=o model=yolo11n.yaml", "of the task 'detect', not of 'pose'"),
        ("source", "is not key=value"),
    ],
)
def test_mistakes_are_explained(words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", "a.png")
    (tmp_path / "empty").mkdir()
    assert main(["label", *words.split()]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_an_unknown_word_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "sauce=photos"]) == 2
    assert "Did you mean 'source'?" in capsys.readouterr().err


def test_ctrl_c_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(labelling, "label", stopped)
    monkeypatch.setattr("inspect.signature", lambda _: SimpleNamespace(parameters={"source": 0, "out": 0}))
    assert main(["label", "source=a", "out=b"]) == 130
    assert "goes on from here" in capsys.readouterr().err
