"""Baselines outside the package: each is what it says, trains all of its parts and validates."""

from __future__ import annotations

import copy

import pytest
import torch
from test_network import CROWD, batch_of, dense_rows_of, images
from torch import Tensor
from ultralytics.utils import DEFAULT_CFG_DICT

from benchmarks import variants
from erpose_yolo.method.oks import kernel
from erpose_yolo.nn.network import load_model_yaml


@pytest.mark.parametrize("block", [{}, {"boxes": True}], ids=str)
@pytest.mark.parametrize("name", [*variants.VARIANTS])
def test_every_variant_trains_the_whole_model(name: str, block: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = variants.VARIANTS[name]({**load_model_yaml("erpose-n.yaml"), "erpose": block}, verbose=False)
    model.args = {**DEFAULT_CFG_DICT, "epochs": 10}
    total, items = model.train().loss(batch_of(CROWD, 64))
    total.sum().backward()
    unused = {n.split(".")[2] for n, p in model.named_parameters() if p.grad is None}
    assert total.isfinite().all() and unused == ({"pose", "one2many_score"} if name == "one-to-one only" else set())
    model.eval()
    with torch.no_grad():
        assert model.loss(batch_of(CROWD, 64), model(images()))[0].isfinite().all()
    before = dense_rows_of(model, images())
    assert torch.allclose(dense_rows_of(copy.deepcopy(model).fuse(verbose=False), images()), before, atol=1e-3, rtol=1e-4)
    names = {n.split(".")[2] for n in model.state_dict() if n.startswith("model.23.")}
    assert ("one2one_pose" in names) == (name != "shared pose branch")


def test_plain_oks_learns_no_spread() -> None:
    error, spread = torch.rand(4, 17), torch.randn(4, 17, requires_grad=True)
    loss = variants.PlainOKSLoss(torch.ones(17), [8.0]).pose_loss(error, spread, torch.ones(4, 17, dtype=torch.bool))
    assert torch.allclose(loss, (1 - kernel(error)).mean(1)) and not loss.requires_grad
    assert variants.ScoreHead.confidence == "score"


def test_rle_prefers_the_nearer_pose_and_trains_its_flow() -> None:
    """Whatever lies where nothing is labelled."""
    loss = variants.RLELoss(torch.full((17,), 0.05), [8.0])
    loss.flow = variants.RealNVP()
    wanted = torch.cat((torch.rand(1, 17, 2) * 100, torch.full((1, 17, 1), 2.0)), 2)
    wanted[0, 3] = 0
    near, far = ((wanted[..., :2] + away).requires_grad_() for away in (1.0, 5.0))
    values = [loss.placed_loss(pose, torch.zeros(1, 17), wanted, torch.tensor([900.0])) for pose in (near, far)]
    values[1].sum().backward()
    assert values[0] < values[1] and (far.grad[0, 3] == 0).all() and (far.grad.sum(2)[0, [0, 5, 16]] > 0).all()
    assert all(p.grad is not None for p in loss.flow.parameters())


def test_iou_assignment_prefers_the_better_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are IoU: of two poses that miss by as many tolerances, the one whose box fits is ahead."""
    ranks: list[tuple[Tensor, Tensor]] = []
    stock = variants.IoULoss.pose_quality

    def quality(self, side, similarity, keypoints, person, cell, scene):  # type: ignore[no-untyped-def]
        found = stock(self, side, similarity, keypoints, person, cell, scene)
        low, high = keypoints.amin(1), keypoints.amax(1)
        box = scene.targets.box[person]
        both = (torch.minimum(high, box[:, 2:]) - torch.maximum(low, box[:, :2])).clamp(min=0).prod(1)
        ranks.append((found, both))
        return found

    monkeypatch.setattr(variants.IoULoss, "pose_quality", quality)
    torch.manual_seed(0)
    model = variants.IoUAssignment("erpose-n.yaml", verbose=False)
    model.args = {**DEFAULT_CFG_DICT, "epochs": 10}
    model.train().loss(batch_of(CROWD))
    assert len(ranks) == 2
    for found, both in ranks:
        assert ((found >= 0) & (found <= 1)).all() and (found[both > 0] > 0).all() and found.std() > 0


def test_trainer_builds_the_variant() -> None:
    for name, kind in variants.VARIANTS.items():
        assert variants.trainer_for(name).model_class is kind
