"""The weights that ship with the package: found by name from anywhere, clean, small, and able to see people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.utils import ASSETS
from ultralytics.utils.patches import torch_load

from erpose_yolo import ERPose, catalog
from erpose_yolo.cli import main

NAME = "erpose-n.pt"
FILE = catalog.cfg_root() / "weights" / NAME
SIZE = 640


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
def test_it_finds_the_people_in_photos_that_it_has_never_seen(maker: type[YOLO]) -> None:
    """By its bare name, in an empty folder, at its own size and the default threshold: each person once, upright, in place."""
    model = maker(NAME)
    assert isinstance(model, ERPose) and Path(str(model.ckpt_path)) == FILE
    # horizontal range of each person's shoulders and hips, as shares of the image's width
    people = {"bus.jpg": ((0.05, 0.31), (0.26, 0.43), (0.82, 1.0)), "zidane.jpg": ((0.1, 0.5), (0.6, 0.95))}
    for photo, spans in people.items():
        result = model.predict(ASSETS / photo, verbose=False)[0]
        keypoints = result.keypoints.xyn
        middles = keypoints[:, [5, 6, 11, 12], 0].mean(1).tolist()
        for low, high in spans:
            assert sum(low <= middle <= high for middle in middles) == 1, (photo, middles)
        for body in keypoints[: len(spans)]:
            assert body[:5, 1].mean() < body[5:7, 1].mean() < body[11:13, 1].mean(), "head, shoulders, hips"


def test_it_finds_everybody_and_nobody_twice() -> None:
    found = {name: len(ERPose(NAME).predict(ASSETS / name, verbose=False)[0]) for name in ("bus.jpg", "zidane.jpg")}
    assert found == {"bus.jpg": 4, "zidane.jpg": 2}


def test_a_fine_tuning_begins_with_what_it_knows() -> None:
    """Scores with BatchNorm of the batch, as a training has them, follow those with what the file knows of it."""
    network = ERPose(NAME).model.float().train()
    photos = [LetterBox((SIZE, SIZE))(image=cv2.imread(str(ASSETS / name))) for name in ("bus.jpg", "zidane.jpg")]
    pixels = np.stack([photo[..., ::-1] for photo in (*photos, *(photo[:, ::-1] for photo in photos))])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    scores = []
    for of_the_batch in (False, True):
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train(of_the_batch)
        with torch.no_grad():
            scores.append(network(images).one2one_scores.flatten())
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.5


def test_the_commands_know_it(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"model={NAME}", f"data={tiny_dataset}", "imgsz=64", "plots=False", f"save_dir={tmp_path / 'eval'}"]) == 0
    assert "Average Precision" in capsys.readouterr().out


def test_other_models_start_from_it() -> None:
    fresh = ERPose("erpose-n.yaml")
    assert fresh.load(NAME) is fresh
    shipped, taken = (m.model.state_dict() for m in (ERPose(NAME), fresh))
    assert all(torch.equal(taken[k].float(), v.float()) for k, v in shipped.items())


@pytest.mark.slow
def test_training_starts_from_it(tiny_dataset: Path, tmp_path: Path) -> None:
    """By pretrained= as by model=; at a rate of nothing the weights stay."""
    shipped = ERPose(NAME).model.state_dict()
    for n, (model, pretrained) in enumerate(((NAME, True), ("erpose-n.yaml", NAME))):
        ERPose(model).train(
            data=str(tiny_dataset), epochs=1, imgsz=64, batch=2, workers=0, plots=False, val=False, lr0=0.0, warmup_epochs=0,
            optimizer="SGD", weight_decay=0.0, pretrained=pretrained, project=str(tmp_path), name=str(n),
        )  # fmt: skip
        trained = ERPose(str(tmp_path / str(n) / "weights/last.pt")).model.state_dict()
        for key in ("model.0.conv.weight", "model.23.pose.keypoints.0.weight"):
            assert torch.allclose(trained[key].float(), shipped[key].float(), atol=1e-3), key


@pytest.mark.parametrize("maker", [ERPose, YOLO])
def test_a_name_that_does_not_ship_is_said(maker: type[YOLO]) -> None:
    with pytest.raises(FileNotFoundError, match=r"'erpose-x\.pt' does not exist.*erpose-n\.pt.*'erpose-x\.yaml'"):
        maker("erpose-x.pt")
