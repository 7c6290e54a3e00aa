"""Shared fixtures, and an environment in which no test reaches a network, a user's settings or another test's files."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import erpose_yolo

# ultralytics reads these while it is imported, so they are set before any test module can import it. Subprocesses of
# tests inherit them.
_SCRATCH = Path(tempfile.mkdtemp(prefix="erpose-tests-"))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ.update(
    YOLO_CONFIG_DIR=str(_SCRATCH),  # settings.json, fonts; never the user's
    YOLO_AUTOINSTALL="false",
    YOLO_OFFLINE="true",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.pop("ERPOSE_AUTOLOAD", None)
os.environ.pop("ULTRALYTICS_SAFE_LOAD", None)
(_SCRATCH / "Ultralytics").mkdir()
(_SCRATCH / "Ultralytics" / "settings.json").write_text(
    json.dumps(  # ultralytics fills in the rest; its own default for datasets_dir is beside the checkout
        {
            "settings_version": "0.0.8",
            "datasets_dir": str(_SCRATCH / "datasets"),
            "weights_dir": str(_SCRATCH / "weights"),
            "runs_dir": str(_SCRATCH / "runs"),
            "sync": False,
        }
    )
)

ROOT = Path(__file__).resolve().parents[1]

# The hook imports an installed package before pytest puts this checkout on the path: that one would be tested then.
if Path(erpose_yolo.__file__).resolve().parent != ROOT / "erpose_yolo":
    raise pytest.UsageError(
        f"these are the tests of {ROOT}, but erpose_yolo is {erpose_yolo.__file__}: pip install -e '{ROOT}[test]', "
        "or run pytest with ERPOSE_AUTOLOAD=0"
    )

# 17 COCO keypoints of a standing person as fractions of the box: nose, eyes, ears, ... ankles, left before right.
_STANDING = (
    (0.50, 0.10), (0.56, 0.07), (0.44, 0.07), (0.62, 0.09), (0.38, 0.09), (0.72, 0.24), (0.28, 0.24), (0.86, 0.40),
    (0.14, 0.40), (0.92, 0.54), (0.08, 0.54), (0.64, 0.54), (0.36, 0.54), (0.66, 0.75), (0.34, 0.75), (0.68, 0.95),
    (0.32, 0.95),
)  # fmt: skip
_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file as a whole, whose fixtures are made once, and of what the pages tell to type a page."""
    from xdist.scheduler import LoadFileScheduling

    class ByPage(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            page = re.search(r"\[(.+\.md):\d+\]$", nodeid)
            return page[1] if page else super()._split_scope(nodeid)

    return ByPage(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Messages that ultralytics and this package log."""
    from ultralytics.utils import LOGGER

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield messages
    LOGGER.removeHandler(handler)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a folder of its own: the package works from any folder, and leaves nothing in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_argv() -> Iterator[None]:
    """Undo what the ``erpose`` command does to ``sys.argv``: after "yolo predict" there, predict returns nothing."""
    before = sys.argv[:]
    yield
    sys.argv[:] = before


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.yaml`` of 8 training and 4 validation images, 64 x 64 px, two people of coloured blobs in each.

    YOLO-pose rows with 17 keypoints; every fifth keypoint is marked occluded (1), every eleventh unlabelled (0). The same
    bytes in every run.
    """
    import cv2
    import numpy as np
    import yaml

    root = tmp_path_factory.mktemp("tiny-people")
    rng = np.random.default_rng(0)
    size, count = 64, 0
    for split, images in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(images):
            image = rng.integers(40, 90, (size, size, 3)).astype(np.uint8)
            rows = []
            for person in range(2):
                width, height = rng.uniform(18, 26), rng.uniform(40, 56)
                left = 32 * person + rng.uniform(1, 31 - width)
                top = rng.uniform(1, 63 - height)
                keypoints = np.array(_STANDING) * (width, height) + (left, top)
                colour = rng.integers(130, 255, 3).tolist()
                for (x, y), radius in zip(keypoints, [3] + [2] * 16):
                    cv2.circle(image, (round(x), round(y)), radius, colour, -1)
                for a, b in ((5, 6), (5, 11), (6, 12), (11, 12), (11, 15), (12, 16), (5, 9), (6, 10)):
                    cv2.line(image, tuple(keypoints[a].astype(int)), tuple(keypoints[b].astype(int)), colour, 2)
                row = [0, (left + width / 2) / size, (top + height / 2) / size, width / size, height / size]
                for x, y in keypoints / size:
                    count += 1
                    seen = 0 if count % 11 == 0 else 1 if count % 5 == 0 else 2
                    row += [x, y, seen] if seen else [0, 0, 0]
                rows.append(" ".join(f"{value:.6g}" for value in row))
            cv2.imwrite(str(root / "images" / split / f"{index}.png"), image)
            (root / "labels" / split / f"{index}.txt").write_text("\n".join(rows) + "\n")
    data = root / "data.yaml"
    data.write_text(
        yaml.safe_dump(
            {
                "path": str(root),
                "train": "images/train",
                "val": "images/val",
                "kpt_shape": [17, 3],
                "flip_idx": list(_FLIP),
                "names": {0: "person"},
            },
            sort_keys=False,
        )
    )
    return data


@pytest.fixture(scope="session")
def stick_figures() -> Callable[..., Path]:
    """Writes a set of stick figures with five keypoints, one in each image, and returns its ``data.yaml``.

    Head, hands and feet, in poses, sizes, colours and places that are random and the same in every run; figures face the
    camera, so their left is on the right of the image. ``val`` shows figures that ``train`` does not.
    """
    import cv2
    import numpy as np
    import yaml

    def limb(start: np.ndarray, degrees: float, length: float) -> np.ndarray:
        angle = np.deg2rad(degrees)  # from straight down, to the right of the image
        return start + length * np.array([np.sin(angle), np.cos(angle)])

    def write(root: Path, train: int = 40, val: int = 16, size: int = 160, **keys: object) -> Path:
        rng = np.random.default_rng(0)
        for split, count in (("train", train), ("val", val)):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for index in range(count):
                base = rng.integers(60, 200, 3)
                clouds = cv2.resize(rng.normal(0, 25, (12, 12, 3)).astype(np.float32), (size, size))
                image = np.clip(clouds + base + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)
                height = rng.uniform(0.45, 0.85) * size
                x, top = rng.uniform(0.3 * height, size - 0.3 * height), rng.uniform(4, size - height - 4)
                head = np.array([x + rng.uniform(-0.02, 0.02) * height, top + 0.1 * height])
                neck = np.array([x, top + 0.2 * height])
                hip = neck + np.array([rng.uniform(-0.05, 0.05), 0.33]) * height
                hands = [limb(neck, side * rng.uniform(10, 130), 0.33 * height) for side in (1, -1)]
                feet = [limb(hip, side * rng.uniform(4, 38), 0.45 * height) for side in (1, -1)]
                colour = tuple(int(c) for c in (base + 128) % 256 * 0.5 + rng.integers(0, 60, 3))
                for a, b in ((neck, hip), (neck, hands[0]), (neck, hands[1]), (hip, feet[0]), (hip, feet[1])):
                    cv2.line(image, a.astype(int).tolist(), b.astype(int).tolist(), colour, max(2, round(height / 28)), cv2.LINE_AA)
                cv2.circle(image, head.astype(int).tolist(), round(0.1 * height), colour, -1, cv2.LINE_AA)
                points = np.array([head, *hands, *feet]).clip(0, size - 1) / size
                low, high = np.minimum(points.min(0), [x / size, top / size]), points.max(0)
                row = [0, *(low + high) / 2, *high - low, *np.insert(points, 2, 2, axis=1).ravel()]
                cv2.imwrite(str(root / "images" / split / f"{index:02}.png"), image)
                (root / "labels" / split / f"{index:02}.txt").write_text(" ".join(f"{v:.6g}" for v in row) + "\n")
        about = {
            "train": "images/train", "val": "images/val", "names": {0: "person"}, "kpt_shape": [5, 3],
            "kpt_names": {0: ["head", "left_hand", "right_hand", "left_foot", "right_foot"]},
            "flip_idx": [0, 2, 1, 4, 3], "skeleton": [[0, 1], [0, 2], [0, 3], [0, 4]],
        }  # fmt: skip
        data = root / "data.yaml"
        data.write_text(yaml.safe_dump({**about, **keys}, sort_keys=False))
        return data

    return write
