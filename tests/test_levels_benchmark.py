"""benchmarks/levels.py: its data set says what its pictures show, and its table counts people where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import YAML

from erpose_yolo.cli import main as cli


@pytest.fixture(scope="module")
def bench(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("levels")


@pytest.fixture(scope="module")
def crowd(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    return bench.write_set(tmp_path_factory.mktemp("levels") / "set", pictures=2, persons=6, size=448)


def test_labels_are_what_is_drawn(bench: ModuleType, crowd, capsys: pytest.CaptureFixture[str]) -> None:
    data, files, crowds = crowd
    assert YAML.load(data)["flip_idx"][5:7] == [6, 5]  # shoulders change sides in the mirror
    for file, drawn in zip(files, crowds):
        rows = np.loadtxt(file.parents[1] / "labels" / f"{file.stem}.txt", ndmin=2)
        height, width = drawn.shape
        joints = rows[:, 5:].reshape(-1, 17, 3)
        assert len(rows) == drawn.shown.sum() > 3
        np.testing.assert_allclose(joints[..., :2] * [width, height], drawn.joints[drawn.shown, :, :2], atol=1e-2)
        np.testing.assert_array_equal(joints[..., 2], drawn.joints[drawn.shown, :, 2])
        low, high = ((rows[:, 1:3] + sign * rows[:, 3:5] / 2) * [width, height] for sign in (-1, 1))
        np.testing.assert_allclose(np.concatenate((low, high), 1), drawn.box[drawn.shown], atol=1e-2)
        assert drawn.height.min() < 15 and drawn.height.max() > 170  # a sixth of the octaves from either end
    cli(["check", str(data)])
    errors = [line for line in capsys.readouterr().out.splitlines() if "error:" in line]
    assert len(errors) == 2 and all("val is not unseen" in line for line in errors)  # by heart, which is meant


class Half:
    """Finds exactly the people of at least 64 px."""

    def __init__(self, files: list[Path], crowds: list) -> None:
        self.of = dict(zip(map(str, files), crowds))

    def predict(self, source: str, **_) -> list[Results]:
        drawn = self.of[source]
        tall = drawn.shown & (drawn.height >= 64)
        boxes = np.concatenate((drawn.box[tall], np.tile([0.9, 0], (tall.sum(), 1))), 1)
        tensors = [torch.tensor(v, dtype=torch.float32) for v in (boxes, drawn.joints[tall])]
        return [Results(np.zeros((*drawn.shape, 3), np.uint8), source, {0: "person"}, boxes=tensors[0], keypoints=tensors[1])]


def test_people_are_counted_by_height(bench: ModuleType, crowd) -> None:
    _, files, crowds = crowd
    r = bench.slices.measure(Half(files, crowds), bench.slices.Mode(448), files, crowds, 0.25, 0.0, bench.BINS)
    assert sum(r["persons"]) == sum(d.shown.sum() for d in crowds)
    assert r["found"][:3] == [0, 0, 0] and r["found"][3:] == r["persons"][3:] and sum(r["found"]) > 0
    assert r["false_positives"] == 0
    text = bench.table([{"model": "half", "seed": 0, "strides": [8.0, 16.0], "training_seconds": 120, **r}])
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert row[:3] == ["half", "0", "8, 16"] and row[3:6] == ["0.00"] * 3 and row[6:8] == ["1.00"] * 2
    assert row[8] == f"{sum(r['found'])} of {sum(r['persons'])}" and row[9:] == ["0.0", "2"]
