"""The starter weights that ship with the package: found by name from anywhere, clean, small, and able to see somebody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import ASSETS
from ultralytics.utils.patches import torch_load

from erpose_yolo import ERPose, catalog
from erpose_yolo.cli import main

NAME = "erpose-n.pt"
FILE = catalog.cfg_root() / "weights" / NAME
SIZE = 192


def test_it_is_small_and_says_nothing_of_its_maker(repo: Path) -> None:
    assert FILE.stat().st_size <= 7e6
    checkpoint = torch_load(FILE, map_location="cpu")
    assert set(checkpoint) == {"model", "train_args", "epoch", "version", "license"} and checkpoint["license"] == "AGPL-3.0"
    assert all(v.dtype == torch.float16 for v in checkpoint["model"].parameters())
    assert checkpoint["train_args"]["imgsz"] == SIZE and checkpoint["train_args"]["data"] is None
    assert b"/work" not in FILE.read_bytes() and b"/tmp" not in FILE.read_bytes()
    texts = [str(v) for v in (checkpoint["train_args"], checkpoint["model"].args, checkpoint["model"].yaml)]
    assert not any("/" in text for text in texts)


@pytest.mark.parametrize("maker", [ERPose, YOLO])
def test_it_finds_people_in_photos_that_it_has_never_seen(maker: type[YOLO]) -> None:
    """By its bare name, in an empty folder: somebody in each photo, upright, where people stand."""
    model = maker(NAME)
    assert isinstance(model, ERPose) and Path(str(model.ckpt_path)) == FILE
    found = {}
    for photo in ("bus.jpg", "zidane.jpg"):
        result = model.predict(ASSETS / photo, conf=0.15, verbose=False)[0]  # at the size of its training, from the checkpoint
        joints = result.keypoints.xyn[0]
        found[photo] = joints
        assert joints[:5, 1].mean() < joints[5:7, 1].mean() < joints[11:13, 1].mean(), "head, shoulders, hips"
    people = {"bus.jpg": ((0.05, 0.31), (0.26, 0.43), (0.82, 1.0), (0.0, 0.1)), "zidane.jpg": ((0.1, 0.95),)}
    for photo, spans in people.items():
        middle = float(found[photo][[5, 6, 11, 12], 0].mean())
        assert any(low <= middle <= high for low, high in spans), (photo, middle)


def test_the_commands_know_it(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"model={NAME}", f"data={tiny_dataset}", "imgsz=64", "plots=False", f"save_dir={tmp_path / 'eval'}"]) == 0
    assert "Average Precision" in capsys.readouterr().out


def test_other_models_start_from_it() -> None:
    fresh = ERPose("erpose-n.yaml")
    assert fresh.load(NAME) is fresh
    shipped, taken = (m.model.state_dict() for m in (ERPose(NAME), fresh))
    assert all(torch.equal(taken[k].float(), v.float()) for k, v in shipped.items())


@pytest.mark.slow
def test_training_starts_from_it(tiny_dataset: Path, tmp_path: Path, benchmark_module: Callable[[str], ModuleType]) -> None:
    """By pretrained= as by model=; at a rate of nothing the weights stay. What starter.py makes of a run says nothing of it."""
    shipped = ERPose(NAME).model.state_dict()
    for n, (model, pretrained) in enumerate(((NAME, True), ("erpose-n.yaml", NAME))):
        ERPose(model).train(
            data=str(tiny_dataset), epochs=1, imgsz=64, batch=2, workers=0, plots=False, val=False, lr0=0.0, warmup_epochs=0,
            optimizer="SGD", weight_decay=0.0, pretrained=pretrained, project=str(tmp_path), name=str(n),
        )  # fmt: skip
        trained = ERPose(str(tmp_path / str(n) / "weights/last.pt")).model.state_dict()
        cleaned = tmp_path / f"{n}.pt"
        torch.save(
            benchmark_module("starter").cleaned(torch_load(tmp_path / str(n) / "weights/last.pt", map_location="cpu")), cleaned
        )
        assert not any(str(folder).encode() in cleaned.read_bytes() for folder in (tmp_path, tiny_dataset.parent))
        assert len(ERPose(str(cleaned)).predict(np.zeros((64, 64, 3), np.uint8), conf=0.0, verbose=False)) == 1
        for key in ("model.0.conv.weight", "model.23.pose.joints.0.weight"):
            assert torch.allclose(trained[key].float(), shipped[key].float(), atol=1e-3), key


@pytest.mark.slow
def test_the_command_that_makes_it(
    tiny_dataset: Path, tmp_path: Path, benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tunes, does not repeat a finished run, repeats one that was cut off, and writes weights, figures and a picture."""
    starter = benchmark_module("starter")
    ERPose("erpose-n.yaml").save(tmp_path / "crowd.pt")
    monkeypatch.setattr(starter, "TRAIN", {**starter.TRAIN, "epochs": 1, "imgsz": 64, "batch": 2, "nbs": 2})
    monkeypatch.setattr(starter.catalog, "cfg_root", lambda: tmp_path / "cfg")
    monkeypatch.setattr(starter.common, "RESULTS", tmp_path / "results")
    (tmp_path / "cfg" / "datasets").mkdir(parents=True)
    data = ["--photos", str(tiny_dataset), "--crowds", str(tiny_dataset)]
    arguments = [*data, "--start", str(tmp_path / "crowd.pt"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["starter.py", *arguments])
    made = tmp_path / "out/tuned/weights/last.pt"
    written = []
    for cut_off in (False, False, True):
        if cut_off:
            torch.save({**torch_load(made, map_location="cpu"), "epoch": 0}, made)
        starter.main()
        written.append(made.stat().st_mtime_ns)
        assert torch_load(made, map_location="cpu")["epoch"] == -1
    assert written[0] == written[1] < written[2]
    assert len(ERPose(str(tmp_path / "cfg/weights/erpose-n.pt")).predict(np.zeros((64, 64, 3), np.uint8), verbose=False)) == 1
    assert [row[0] for row in json.loads((tmp_path / "results/starter.json").read_text())["rows"]] == [192, 256, 320]
    assert (tmp_path / "results/starter.jpg").stat().st_size > 10_000


@pytest.mark.parametrize("maker", [ERPose, YOLO])
def test_a_name_that_does_not_ship_is_said(maker: type[YOLO]) -> None:
    with pytest.raises(FileNotFoundError, match=r"'erpose-x\.pt' does not exist.*erpose-n\.pt.*'erpose-x\.yaml'"):
        maker("erpose-x.pt")


def test_the_card_says_what_was_measured(repo: Path) -> None:
    record, card = repo / "benchmarks" / "results" / "starter.json", (FILE.parent / "erpose-n.md").read_text()
    if not record.exists():
        pytest.skip("benchmarks/ is not part of the source distribution")
    for row in json.loads(record.read_text())["rows"]:
        assert "| " + " | ".join(map(str, row)) + " |" in card
