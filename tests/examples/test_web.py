"""examples/web in a real headless Chromium: the keypoints of ERPose.predict, every message, and no other host.

Needs node, the page's npm packages (npm ci in examples/web) and Chromium; skipped where one of them is absent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ultralytics.utils import ASSETS

cv2 = pytest.importorskip("cv2")
example = pytest.importorskip("test_onnx_runtime")  # skipped without onnx; its random model is used here, too
WEB = Path(__file__).resolve().parents[2] / "examples" / "web"
NODE = shutil.which("node")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_packages = pytest.mark.skipif(
    not all((WEB / "node_modules" / name / "package.json").is_file() for name in ("onnxruntime-web", "playwright-core")),
    reason="the npm packages are not installed: npm ci in examples/web",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Address of the page, served by its own server."""
    assert NODE is not None
    command = [NODE, str(WEB / "serve.mjs"), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@functools.cache
def photos() -> list[dict[str, Any]]:
    """The photos as PNG, so that every decoder reads the same pixels, with PyTorch's rows and the threshold for them."""
    folder = example.exported()
    out = []
    for name, truth in json.loads((folder / "rows.json").read_text()).items():
        file = folder / f"{Path(name).stem}.png"
        cv2.imwrite(str(file), cv2.imread(name))
        out.append({"file": str(file), **truth})
    return out


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the browser found, in one run for all tests."""
    folder = example.exported()
    models = {
        "other.onnx": example.with_metadata(folder / "other.onnx", head="Pose26"),
        "bare.onnx": example.with_metadata(folder / "bare.onnx", task=None, head=None, kpt_shape=None),
        "keypoints.onnx": example.with_metadata(folder / "keypoints.onnx", kpt_shape="[21, 3]"),
    }
    (folder / "damaged.onnx").write_bytes((folder / "random.onnx").read_bytes()[:100_000])
    models["damaged.onnx"] = folder / "damaged.onnx"
    with served("--model", str(folder / "random.onnx")) as address:
        config = {
            "chromium": CHROMIUM,
            "address": address,
            "photos": [{key: photo[key] for key in ("file", "conf")} for photo in photos()],
            "samples": {name: str(ASSETS / name) for name in ("bus.jpg", "zidane.jpg")},
            "models": {name: str(path) for name, path in models.items()},
        }
        command = [str(NODE), str(WEB / "test" / "browser.mjs"), json.dumps(config)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_browser(test: Any) -> Any:
    for mark in (needs_chromium, needs_packages, needs_node, pytest.mark.slow):
        test = mark(test)
    return test


@in_browser
def test_keypoints_are_those_of_python(found: dict[str, Any]) -> None:
    worst = 0.0
    for photo, seen in zip(photos(), found["photos"], strict=True):
        expected = np.array(photo["rows"])
        for once in (seen["cold"], seen["warm"]):
            assert once["error"] is None
            rows = np.array(once["lastRows"])
            assert (np.diff(rows[:, 4]) <= 0).all()
            worst = max(worst, example.difference(expected, rows))
            assert once["listed"] == len(expected) and str(len(expected)) in once["label"]
            assert re.fullmatch(r"\d+ ms", once["time"])
    print(f"largest difference {worst:.4f} px")
    assert worst <= 1.0


@in_browser
def test_a_sample_photo_is_shown_at_once(found: dict[str, Any]) -> None:
    for seen, name in ((found["opened"], "bus.jpg"), (found["second"], "zidane.jpg")):
        assert seen["error"] is None and seen["ready"] and seen["pressed"] == name
        assert len(seen["lastRows"][0]) == 57
    assert found["opened"]["backend"] == "wasm"  # without a GPU, and without being asked
    assert found["opened"]["frames"] == 1 and found["second"]["frames"] == 2
    assert found["opened"]["lastRows"] != found["second"]["lastRows"]


@in_browser
def test_webgpu_gives_the_same(found: dict[str, Any]) -> None:
    if found["adapter"] is None:
        pytest.skip("this Chromium has no WebGPU, not even on the CPU")
    assert found["adapter"] is True and found["byItself"]["backend"] == "wasm"
    assert found["gpu"]["backend"] == "webgpu" and found["gpu"]["error"] is None
    assert example.difference(np.array(found["byItself"]["lastRows"]), np.array(found["gpu"]["lastRows"])) <= 1.0


@in_browser
def test_threads_drop_and_threshold(found: dict[str, Any]) -> None:
    expected = np.array(photos()[0]["rows"])
    assert found["isolated"] is True and found["photos"][0]["cold"]["threads"] >= 1
    assert found["single"]["threads"] == 1
    assert example.difference(expected, np.array(found["single"]["lastRows"])) <= 1.0
    assert example.difference(expected, np.array(found["dropped"])) <= 1.0
    assert found["lenient"] > len(expected)


@in_browser
def test_letterbox_selection_and_metadata(found: dict[str, Any]) -> None:
    import onnxruntime
    from ultralytics.data.augment import LetterBox

    parts = found["parts"]
    expected = LetterBox((96, 160), auto=False)(image=cv2.imread(photos()[0]["file"]))[..., ::-1].transpose(2, 0, 1)
    apart = np.abs(np.array(parts["letterbox"]).reshape(3, 96, 160) - expected.astype(int))
    assert apart.max() <= 1  # cv2 interpolates with weights of 11 bits
    assert parts["scores"] == parts["wanted"] and len(parts["scores"]) == 300
    assert parts["values"] == [{"0": "it's", "1": "b"}, [[0, 1], [2, 3]], None, -0.0015, "plain words", "[1, 2", {}]
    session = onnxruntime.InferenceSession(str(example.exported() / "random.onnx"))
    assert parts["metadata"].keys() == session.get_modelmeta().custom_metadata_map.keys()
    assert parts["metadata"]["kpt_shape"] == [17, 3] and parts["metadata"]["imgsz"] == [example.SIZE, example.SIZE]


@in_browser
def test_messages(found: dict[str, Any]) -> None:
    wrong = found["wrong"]
    assert "There is no model file absent.onnx" in wrong["absent.onnx"] and "yolo export" in wrong["absent.onnx"]
    for name in ("package.json", "damaged.onnx"):
        assert f"{name} is not an ONNX model that runs here" in wrong[name]
    assert "head Pose26" in wrong["other.onnx"]
    assert "bare.onnx is not a model for this page" in wrong["bare.onnx"]
    assert "21 keypoints take rows of 69" in wrong["keypoints.onnx"]
    assert found["afterWrong"]["error"] and found["afterWrong"]["lastRows"] is None
    assert found["notImage"] == "notes.txt is not an image that this browser can read."
    assert found["noCamera"] == "This device has no camera."
    assert found["refused"].startswith("The camera was refused.")


@in_browser
def test_camera_runs(found: dict[str, Any]) -> None:
    assert found["camera"]["error"] is None and re.fullmatch(r"\d+ ms", found["camera"]["time"])
    assert re.fullmatch(r"\d+(\.\d)? fps", found["camera"]["rate"])
    assert found["cameraOff"] == "Start camera" and found["rateAfter"] is False


@in_browser
def test_nothing_from_elsewhere_and_fit_for_phones(found: dict[str, Any]) -> None:
    assert found["elsewhere"] == []
    assert found["quiet"] == []
    assert found["overflow"] == 0 and found["unnamed"] == 0


@needs_node
def test_server_types_and_borders() -> None:
    with served("--model", str(WEB / "package.json")) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        for name, kind in (("", "text/html"), ("erpose.mjs", "text/javascript"), ("style.css", "text/css")):
            with urllib.request.urlopen(address + name, timeout=10) as answer:
                assert answer.headers["Content-Type"].startswith(kind)
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for name in ("absent.onnx", "test", "..%2f..%2fREADME.md", "%2e%2e/onnx_runtime.py", "/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + name, timeout=10)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address + "%ff", timeout=10)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(address, data=b"", timeout=10)


@needs_node
def test_server_names_a_missing_model() -> None:
    done = subprocess.run([str(NODE), str(WEB / "serve.mjs"), "--model", "absent.onnx"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "there is no file absent.onnx" in done.stderr


@needs_node
def test_server_names_what_it_cannot_make(tmp_path: Path) -> None:
    """Without a model beside it and without erpose-yolo, one line says what to install."""
    shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules", "*.onnx", "*.jpg"))
    (tmp_path / "web" / "ultralytics.py").write_text("raise ModuleNotFoundError('no such package')")
    command = [str(NODE), "serve.mjs", "--port", "0"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path / "web", env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    said = done.stderr.splitlines()
    assert said[0].startswith("Making") and len(said) == 2
    assert said[1].startswith("error: erpose-n.onnx could not be made (ModuleNotFoundError: no such package): pip install")


@needs_node
@pytest.mark.slow
def test_server_makes_what_it_shows(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules", "*.onnx", "*.jpg"))
    command = [str(NODE), "serve.mjs", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path / "web", env={**os.environ, "PYTHON": sys.executable}, stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None and server.stdout.readline().startswith(b"http://")
        finally:
            server.kill()
    graph = onnx.load(tmp_path / "web" / "erpose-n.onnx").graph
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 640, 640]
    assert (tmp_path / "web" / "bus.jpg").read_bytes() == (ASSETS / "bus.jpg").read_bytes()


def test_no_other_host_and_no_nms_in_the_source() -> None:
    sources = [path for path in WEB.rglob("*") if path.suffix in (".mjs", ".html", ".css") and "node_modules" not in path.parts]
    assert {path.name for path in sources} == {"index.html", "erpose.mjs", "serve.mjs", "style.css", "browser.mjs"}
    for path in sources:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?://(?!localhost|\$\{values)|(?<!:)//cdn|\biou\b|suppress", text, re.IGNORECASE), path
        assert not re.search(r"function\s+\w*nms|\bnms\s*\(", text, re.IGNORECASE), path
    package, lock = (json.loads((WEB / name).read_text()) for name in ("package.json", "package-lock.json"))
    for kind in ("dependencies", "devDependencies"):
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package[kind].values())
        assert lock["packages"][""][kind] == package[kind]
    assert not any("resolved" in entry for entry in lock["packages"].values())  # npm ci asks the reader's own registry
