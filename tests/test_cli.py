"""The ``erpose`` command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from erpose_yolo import catalog, cli


def test_own_commands_are_dispatched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``erpose check`` is ours and not a yolo task."""
    assert cli.main(["check", str(tmp_path / "absent.yaml")]) != 0
    out = capsys.readouterr()
    assert "absent.yaml" in out.out + out.err


@pytest.mark.parametrize("name", catalog.list_datasets())
def test_stock_models_get_our_data_sets_by_bare_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Peers are measured on the same data with the same words: the stock loader finds what the command hands it."""
    from ultralytics import cfg
    from ultralytics.data.utils import check_file

    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(cfg, "entrypoint", lambda: seen.extend(sys.argv[1:]))
    cli.main(["pose", "val", "model=yolo11n-pose.yaml", f"data={name}", "imgsz=64"])
    assert seen[:3] == ["pose", "val", "model=yolo11n-pose.yaml"] and seen[4] == "imgsz=64"
    assert Path(check_file(seen[3].removeprefix("data="))).name == name


def test_every_command_has_its_module() -> None:
    """A command in the table that cannot be imported is found here and not by a user."""
    import importlib

    for module in cli.COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_slices_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture with its skeletons is saved; what cannot work is said in one line."""
    import cv2
    import numpy as np

    picture = tmp_path / "a b.png"
    cv2.imwrite(str(picture), np.zeros((100, 200, 3), np.uint8))
    words = ["predict", "model=erpose-n.yaml", f"source={picture}", "imgsz=32", f"project={tmp_path}", "name=out"]
    assert cli.main([*words, "slices=64", "overlap=0.1"]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a b.jpg"]
    for wrong, message in (
        ([*words, "slices=4"], "at least 32 px"),
        (["train", "slices=64"], "goes with predict"),
        (["predict", "slices=64"], "Give model= and source="),
    ):
        assert cli.main(wrong) == 1
        assert message in capsys.readouterr().err
