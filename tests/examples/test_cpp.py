"""examples/cpp: built with cmake, run on an NCNN export of the weights that ship, and compared with ERPose.predict.

Needs cmake, a C++ compiler, ncnn's library (CMAKE_PREFIX_PATH or ncnn_DIR name where it was installed), stb's headers (of the
system, or STB_INCLUDE_DIR names their folder), and the Python packages ncnn and pnnx for the export; skipped where one is absent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_network import settle

cv2 = pytest.importorskip("cv2")
SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
LACKS = re.compile(r"No CMAKE_CXX_COMPILER could be found|ncnn is missing.*? was installed|stb_image\.h .*? libstb-dev")

# Rows of ERPose.predict, x1 y1 x2 y2 score, then x y v of each keypoint, of the photos that come with ultralytics.
MAKE = """
import json
from pathlib import Path
import ultralytics
from erpose_yolo import ERPose

model, found = ERPose("erpose-n.pt"), {}
for photo in sorted((Path(ultralytics.__file__).parent / "assets").glob("*.jpg")):
    result = model.predict(photo, imgsz=640, rect=False, verbose=False)[0]
    persons = zip(result.boxes.data[:, :5].tolist(), result.keypoints.data.tolist())
    found[str(photo)] = [box + sum(points, []) for box, points in persons]
Path("rows.json").write_text(json.dumps(found))
model.export(format="ncnn", imgsz=640)
"""

# The same of a random network of another kind: input that is not square, two classes, five keypoints without names, learned boxes.
MAKE_OTHER = (
    """
import json
from pathlib import Path
import cv2, numpy as np, torch, yaml
from erpose_yolo import ERPose

config = {"base": "yolo26.yaml", "nc": 2, "kpt_shape": [5, 3], "head": "ERPoseHead", "erpose": {"boxes": True}}
Path("other-n.yaml").write_text(yaml.safe_dump(config))
torch.manual_seed(0)
image = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 10, 3), np.uint8), (300, 260), interpolation=cv2.INTER_CUBIC)
cv2.imwrite("image.png", image)
batch = torch.from_numpy(cv2.resize(image, (160, 128))[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
batch = torch.cat((batch, batch.flip(2), batch.flip(3)))
model = ERPose("other-n.yaml")
net, head = model.model, model.model.model[-1]
"""
    + settle(8)
    + """

with torch.no_grad():
    for conv in [*head.deployed.spread, *head.deployed.refinement]:
        conv.weight.normal_()
    spread([tower[-1] for tower in head.one2one_score], 0, 2, 1.0, -3.5)
    spread(head.deployed.keypoints, 0, 10, 0.7, 0.0)
    spread(head.deployed.keypoints, 10, 15, 0.6, 0.5)
    spread(head.deployed.refinement, 0, 15, 0.2, 0.0)
    spread(head.deployed.spread, 0, 5, 0.5, -1.5)
model.save("other.pt")
model = ERPose("other.pt")
result = model.predict("image.png", imgsz=[128, 160], rect=False, verbose=False)[0]
rows = np.concatenate((result.boxes.data.numpy(), result.keypoints.data.numpy().reshape(len(result), -1)), 1)
Path("rows.json").write_text(json.dumps(rows.tolist()))
model.export(format="ncnn", imgsz=[128, 160])
"""
)


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Warnings are errors, and neither exceptions nor type information is there, as in ncnn's builds for phones."""
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror -fno-exceptions -fno-rtti"
    return subprocess.run(["cmake", "-S", str(SOURCE), "-B", str(folder), flags, *options], capture_output=True, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    done = configure(folder)
    lacks = LACKS.search(" ".join(done.stderr.split()))
    if lacks and "ncnn_DIR" not in os.environ:
        pytest.skip(lacks[0])
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["cmake", "--build", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "erpose"


@pytest.fixture(scope="module")
def exported(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of erpose-n_ncnn_model and rows.json, made by another process."""
    for name in ("ncnn", "pnnx"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("export")
    done = subprocess.run([sys.executable, "-c", MAKE], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return call


def rows(text: str) -> np.ndarray:
    """Rows (n, 5 + 3 * K) of what is printed, in the order of rows.json."""
    found = []
    for line in text.splitlines():
        head, box, *points = line.split("  ")
        assert head.startswith("person ") and box.startswith("box ") and points[0].startswith("nose "), line
        found.append([*box.split()[1:], head.split()[1], *(value for point in points for value in point.split()[1].split(","))])
    return np.array(found, float)


@pytest.mark.slow
@needs_cmake
def test_persons_are_those_of_predict(exported: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    """Of the same pixels, so as PNG: decoders of JPEG differ, and with them unsure keypoints, by about a pixel."""
    photos = json.loads((exported / "rows.json").read_text())
    assert {Path(photo).name for photo in photos} >= {"bus.jpg", "zidane.jpg"}
    for original, truth in photos.items():
        photo = str(tmp_path / f"{Path(original).stem}.png")
        cv2.imwrite(photo, cv2.imread(original))
        done = run(exported / "erpose-n_ncnn_model", photo, "drawn.png")
        assert done.returncode == 0, done.stderr
        got, expected = rows(done.stdout), np.array(truth)
        assert got.shape == expected.shape and len(got) >= 2
        gaps = np.abs(got - expected)
        points = gaps[:, 5:].reshape(len(got), -1, 3)
        print(f"{Path(photo).name}: keypoints {points[..., :2].max():.3f} px, boxes {gaps[:, :4].max():.3f} px")
        assert points[..., :2].max() <= 0.1 and gaps[:, :4].max() <= 0.1
        assert points[..., 2].max() <= 0.001 and gaps[:, 4].max() <= 0.001
        image, drawn = cv2.imread(photo), cv2.imread(str(tmp_path / "drawn.png"))
        assert drawn.shape == image.shape and 0.001 < (np.abs(drawn.astype(int) - image) > 64).any(2).mean() < 0.05


@pytest.mark.slow
@needs_cmake
def test_persons_of_another_layout(run: Callable[..., Any], tmp_path: Path) -> None:
    """Rows of nearly the same score may have changed places, and one at the threshold may be missing or more."""
    for name in ("ncnn", "pnnx"):
        pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", MAKE_OTHER], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = np.array(json.loads((tmp_path / "rows.json").read_text()))
    got = []
    for line in run("other_ncnn_model", "image.png").stdout.splitlines():
        category, score, *rest = re.sub(r"box|keypoint_\d", "", line).replace(",", " ").split()
        got.append([*rest[:4], score, category, *rest[4:]])
    found = np.array(got, float)
    assert 20 < len(expected) < 300 and abs(len(found) - len(expected)) <= 1 and set(expected[:, 5]) == {0, 1}
    gaps = np.abs(expected[:, None] - found[None]).max(2)
    assert (gaps.min(1) <= 0.5).sum() >= len(expected) - 1 and len(set(gaps.argmin(1))) >= len(expected) - 1


@pytest.mark.slow
@needs_cmake
def test_bad_input_is_named(exported: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    model, photo = exported / "erpose-n_ncnn_model", next(iter(json.loads((exported / "rows.json").read_text())))
    (tmp_path / "notes.txt").write_text("no image")
    meta = (model / "metadata.yaml").read_text()
    changes = {
        "rows": meta.replace("layout: maps", "layout: cells"),
        "law": meta.replace("confidence: expected_oks", "confidence: other"),
        "wider": meta.replace("refinement: 51", "refinement: 68"),
    }
    for name, text in changes.items():
        assert text != meta
        shutil.copytree(model, tmp_path / name)
        (tmp_path / name / "metadata.yaml").write_text(text)
    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "model.ncnn.bin").unlink()
    for arguments, words in (
        ((), "usage: erpose MODEL_FOLDER IMAGE"),
        (("absent", photo), "absent is no NCNN export"),
        (("rows", photo), "rows is no NCNN export of an ER-Pose model with raw maps"),
        (("law", photo), "law/metadata.yaml describes another layout"),
        (("wider", photo), "the network's outputs are not those of its metadata.yaml"),
        (("bare", photo), "bare holds no model.ncnn.param and model.ncnn.bin"),
        ((model, "absent.jpg"), "absent.jpg is not an image"),
        ((model, "notes.txt"), "notes.txt is not an image"),
        ((model, photo, "nowhere/drawn.png"), "nowhere/drawn.png could not be written"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and words in done.stderr, (arguments, done.stdout, done.stderr)


@needs_cmake
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_ncnn=ON")
    lacks = LACKS.search(" ".join(done.stderr.split()))
    assert done.returncode != 0 and lacks, done.stderr
    if "COMPILER" in lacks[0]:
        pytest.skip(lacks[0])
    assert lacks[0].startswith("ncnn is missing: build it as README.md says")


def test_it_is_short_and_has_no_nms() -> None:
    text = "".join((SOURCE / name).read_text() for name in ("erpose.hpp", "main.cpp"))
    assert len(text.splitlines()) < 250 and max(map(len, text.splitlines())) <= 132
    assert "iou" not in text.lower()
