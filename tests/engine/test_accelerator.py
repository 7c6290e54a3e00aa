"""An accelerator computes what the CPU does. Without one, the CPU stands in for it, so that the test itself stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import common
from erpose_yolo import ERPose
from erpose_yolo.method.losses import AT_ONCE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS: list[dict[str, Any]] = [{}, {"boxes": True}, {"heatmap_gain": 0}, {"refine": False}, {"tower": "plain"}]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """TensorFloat-32 keeps ten bits of a factor."""
    parts = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    yield
    for part, value in zip(parts, before):
        part.allow_tf32 = value


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_loss_and_gradient_are_those_of_the_cpu(settings: dict[str, Any]) -> None:
    # of an untrained model half types may choose other cells, as of seed 0: 3 to 5 % of the loss, whatever the settings
    batch, model = common.random_batch(96, 3, 4), common.build("erpose-n", 1, epochs=10, settings=settings)

    def step(device: str, kind: torch.dtype | None = None) -> tuple[float, float]:
        model.to(device).train()
        model.zero_grad()
        with torch.autocast(device, kind, enabled=kind is not None):
            loss = model({k: v.to(device) for k, v in batch.items()})[0].sum()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        return loss.item(), norm.item()

    (loss, norm), there = step("cpu"), step(DEVICE)
    assert there == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-2))
    assert step(DEVICE, torch.bfloat16)[0] == pytest.approx(loss, rel=0.05)


@pytest.mark.slow
def test_a_run_and_its_predictions(tiny_dataset: Path, tmp_path: Path) -> None:
    """Train, validate and predict there, with Ultralytics' mixed precision; the rows are those of the CPU."""
    device = 0 if DEVICE == "cuda" else "cpu"
    run: dict[str, Any] = {"imgsz": 64, "workers": 0, "plots": False}
    ERPose("erpose-n.yaml").train(
        data=str(tiny_dataset), epochs=1, batch=2, device=device, project=str(tmp_path), name="run", **run
    )
    weights = str(tmp_path / "run/weights/last.pt")
    assert ERPose(weights).val(data=str(tiny_dataset), device=device, **run).pose.map >= 0
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    here, there = (ERPose(weights).predict(image, conf=1e-4, imgsz=64, device=d, verbose=False)[0] for d in ("cpu", device))
    assert len(here) == len(there) > 0
    assert torch.allclose(here.boxes.conf, there.boxes.conf.cpu(), atol=1e-4)
    best = here.keypoints.xy[0], there.keypoints.xy[0].cpu()
    assert torch.allclose(*best, atol=0.05), "pixels"


def test_crowds_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses of many candidates are looked up a part at a time, there as here."""
    losses = []
    batch, model = common.random_batch(96, 2, 6), common.build("erpose-n", 0).train()
    for most in (AT_ONCE, 100):
        monkeypatch.setattr("erpose_yolo.method.losses.AT_ONCE", most)
        losses.append(model.to(DEVICE)({k: v.to(DEVICE) for k, v in batch.items()})[0].sum().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
