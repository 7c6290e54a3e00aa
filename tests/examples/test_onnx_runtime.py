"""examples/onnx_runtime.py: the rows of ERPose.predict, from a process that has no torch and no ultralytics."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_network import settle

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "onnx_runtime.py"
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
cv2 = pytest.importorskip("cv2")

SIZE = 160
# A random network whose scores differ from cell to cell: what it finds is nonsense, but the same nonsense everywhere.
MAKE = (
    """
import json, sys
from pathlib import Path
import cv2, numpy as np, torch, ultralytics
from ultralytics.data.augment import LetterBox
from erpose_yolo import ERPose

size = int(sys.argv[1])
torch.manual_seed(0)
model = ERPose("erpose-n.yaml")
net = model.model
head = net.model[-1]
photos = sorted((Path(ultralytics.__file__).parent / "assets").glob("*.jpg"))
fit = LetterBox((size, size))
batch = torch.from_numpy(np.stack([fit(image=cv2.imread(str(file)))[..., ::-1] for file in photos])).permute(0, 3, 1, 2) / 255
batch = torch.cat((batch, batch.flip(2), batch.flip(3), batch.flip(2, 3)))
"""
    + settle(12)
    + """

with torch.no_grad():
    spread([tower[-1] for tower in head.one2one_score], 0, 1, 1.0, -1.5)
    spread(head.deployed.keypoints, 0, 34, 0.7, 0.0)
    spread(head.deployed.keypoints, 34, 51, 0.2, 1.0)  # visible all: boxes jump where a keypoint comes or goes
    for conv in head.deployed.spread:
        conv.weight.normal_()  # from zero
    for conv in head.deployed.refinement:
        conv.weight.normal_()
    spread(head.deployed.refinement, 0, 51, 0.2, 0.0)  # keypoints are looked up and moved
    spread(head.deployed.spread, 0, 17, 0.5, -2.0)  # sure of themselves, some more than others
model.save("random.pt")  # rounds to float16
model = ERPose("random.pt")
found = {}
for file in photos:
    result = model.predict(file, imgsz=size, rect=False, conf=0.01, verbose=False)[0]
    rows = np.concatenate((result.boxes.data.numpy(), result.keypoints.data.numpy().reshape(len(result), 51)), 1)
    score = rows[:, 4]
    last = 12 + int(np.argmax(score[12:40] - score[13:41]))  # a threshold that rounding does not cross
    found[str(file)] = {"conf": float(score[last] + score[last + 1]) / 2, "rows": rows[: last + 1].tolist()}
Path("rows.json").write_text(json.dumps(found))
ERPose("random.pt").export(format="onnx", imgsz=size, simplify=False)
"""
)


@functools.cache
def exported() -> Path:
    """Folder of random.onnx and rows.json, PyTorch's rows; made by another process, once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="erpose-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", MAKE, str(SIZE)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest difference of any coordinate in pixels; rows of nearly the same score may have changed places."""
    assert expected.shape == got.shape
    gaps = np.abs(expected[:, None] - got[None]).max(2)
    nearest = gaps.argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(got))), "two rows for one person"
    return float(gaps.min(1).max())


def run(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the script where importing torch or ultralytics raises."""
    fakes = folder / "fakes"
    for name in ("torch", "ultralytics", "erpose_yolo"):
        (fakes / name).mkdir(parents=True, exist_ok=True)
        (fakes / name / "__init__.py").write_text(f"raise ImportError('the example imported {name}')\n")
    env = {**os.environ, "PYTHONPATH": str(fakes), "ERPOSE_AUTOLOAD": "0"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_rows_are_those_of_predict_without_torch(tmp_path: Path) -> None:
    folder = exported()
    worst = 0.0
    for photo, truth in json.loads((folder / "rows.json").read_text()).items():
        done = run(tmp_path, folder / "random.onnx", photo, "--conf", truth["conf"], "--rows", "rows.npy", "--out", "out.png")
        assert done.returncode == 0, done.stderr
        rows, expected = np.load(tmp_path / "rows.npy"), np.array(truth["rows"])
        assert len(expected) >= 10 and np.ptp(expected[:, 6::3], axis=0).max() > 20  # there is something to compare
        assert (np.diff(rows[:, 4]) <= 0).all()
        worst = max(worst, difference(expected, rows))
        image, drawn = cv2.imread(photo), cv2.imread(str(tmp_path / "out.png"))
        assert drawn.shape == image.shape and (drawn != image).any()
        assert done.stdout.count("  score ") == len(expected)
    print(f"largest difference {worst:.6f} px")
    assert worst <= 0.5


def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import onnx_runtime

    return onnx_runtime


@pytest.mark.slow
def test_rows_in_any_order_and_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense exports leave sorting and the top k to the host."""
    example = load(monkeypatch)
    model = example.Model(exported() / "random.onnx")
    table = np.random.default_rng(0).random((1, 5000, 57), dtype=np.float32)
    table[..., 4] *= 0.5
    model.session = type("Session", (), {"run": lambda *_: [table]})()
    rows = model(np.zeros((SIZE, SIZE, 3), np.uint8), conf=0.4)
    order = np.argsort(-table[0, :, 4], kind="stable")[:300]
    np.testing.assert_allclose(rows, table[0, order], atol=1e-6)
    assert model(np.zeros((SIZE, SIZE, 3), np.uint8), conf=0.9).shape == (0, 57)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 3000), (3000, 5), (160, 160), (37, 41), (161, 320)])
def test_letterbox_is_that_of_ultralytics(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.data.augment import LetterBox

    model = load(monkeypatch).Model(exported() / "random.onnx")
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    expected = LetterBox((SIZE, SIZE), auto=False)(image=image)
    np.testing.assert_array_equal(np.rint(model.letterbox(image)[0][0] * 255).transpose(1, 2, 0)[..., ::-1], expected)


def with_metadata(target: Path, **changes: str | None) -> Path:
    """A copy of the random model with other metadata; None takes an entry away."""
    import onnx

    proto = onnx.load(exported() / "random.onnx")
    info = {p.key: p.value for p in proto.metadata_props} | changes
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {key: value for key, value in info.items() if value is not None})
    onnx.save(proto, target)
    return target


@pytest.mark.slow
def test_metadata_name_keypoints_and_limbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(monkeypatch)
    names = [f"keypoint {k}" for k in range(17)]
    file = with_metadata(tmp_path / "named.onnx", kpt_names=str({0: names}), skeleton="[[0, 1], [1, 2]]", names="{0: 'robot'}")
    model = example.Model(file)
    assert model.keypoint_names == names and model.limbs == [[0, 1], [1, 2]] and model.classes == {0: "robot"}
    plain = example.Model(with_metadata(tmp_path / "plain.onnx", kpt_names=None, skeleton=None))
    assert plain.keypoint_names[:2] == ["nose", "left_eye"] and plain.limbs == example.COCO_LIMBS


@pytest.mark.slow
def test_bad_input_is_named(tmp_path: Path) -> None:
    model = exported() / "random.onnx"
    photo = next(iter(json.loads((exported() / "rows.json").read_text())))
    (tmp_path / "damaged.onnx").write_bytes(model.read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    bare = with_metadata(tmp_path / "bare.onnx", task=None, kpt_shape=None, head=None)
    other = with_metadata(tmp_path / "other.onnx", head="Pose26")
    for arguments, words in (
        (("absent.onnx", photo), "there is no file absent.onnx"),
        ((model, "absent.jpg"), "there is no file absent.jpg"),
        (("damaged.onnx", photo), "damaged.onnx is not an ONNX model"),
        ((bare, photo), "is not an ER-Pose model"),
        ((other, photo), "head Pose26"),
        ((model, "notes.txt"), "notes.txt is not an image"),
        ((model, "empty.jpg"), "empty.jpg is not an image"),
        ((model, photo, "--out", "nowhere/out.png"), "could not be written"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, (arguments, done.stderr)


def test_it_is_short_and_has_no_nms() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 150
    assert not any(line.split()[1].split(".")[0] in ("torch", "ultralytics", "erpose_yolo")
                   for line in text.splitlines() if line.startswith(("import ", "from ")))  # fmt: skip
