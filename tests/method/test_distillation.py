"""The loss of a teacher's poses: who learns what from which cells, its minimum, odd teachers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_losses import STRIDES, K, criterion, outputs_of, packed, shapes_of
from torch import Tensor

from erpose_yolo.method.decode import decode_keypoints, make_cells
from erpose_yolo.method.distillation import CELLS, TeacherOutputs, distillation_loss

SIZE = 64
SURE_CELLS = [3, 40, 83]  # one of each level's


def teacher_of(b: int = 2, k: int = K, seed: int = 1) -> TeacherOutputs:
    """Three sure persons in each image, and nobody elsewhere."""
    draw = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in shapes_of(SIZE))
    scores = torch.full((b, 1, cells), 0.01)
    scores[:, :, SURE_CELLS] = torch.tensor([0.9, 0.4, 0.1])
    keypoints = SIZE * torch.rand(b, k, 2, cells, generator=draw)
    return TeacherOutputs(scores, keypoints, 0.35 + 0.6 * torch.rand(b, k, cells, generator=draw), True)


def gradients(leaves: dict[str, Tensor], teacher: TeacherOutputs, **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by output; outputs without one are left out."""
    for leaf in leaves.values():
        leaf.grad = None
    loss = distillation_loss(criterion(**arguments), packed(leaves, SIZE), teacher)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def of_itself(leaves: dict[str, Tensor]) -> TeacherOutputs:
    """A teacher that says what a student's deployed branch says, whose refinement moves nothing."""
    scores = leaves["one2one"].detach().sigmoid()
    places = make_cells(shapes_of(SIZE), STRIDES, scores)
    keypoints = decode_keypoints(leaves["one2one_offsets"].detach(), *places)
    return TeacherOutputs(scores, keypoints, leaves["one2one_visibility"].detach().sigmoid(), True)


def test_deployed_branch_learns_from_sure_cells() -> None:
    """Scores learn from every cell, poses where the teacher is sure; the one-to-many side and the heatmaps learn nothing."""
    _, found = gradients(outputs_of(2, SIZE), teacher_of())
    assert found.keys() == {"one2one"} | {f"one2one_{name}" for name in ("offsets", "log_spread", "visibility", "refinement")}
    assert (found["one2one"] != 0).all()
    for name in ("offsets", "log_spread", "visibility"):
        learnt = (found[f"one2one_{name}"] != 0).flatten(1, -2).any(1)  # (B, A)
        assert learnt.nonzero()[:, 1].tolist() == SURE_CELLS * 2, name


def test_surer_cells_weigh_more() -> None:
    """By the root of the score: with all else equal, four times the score has twice the gradient."""
    teacher = teacher_of(1)
    teacher.scores[..., SURE_CELLS] = torch.tensor([0.64, 0.16, 0.04])
    teacher.visibility[..., SURE_CELLS] = 0.5  # the student's, 0 being its logit, has the same gradient everywhere but for weights
    leaves = outputs_of(1, SIZE)
    leaves["one2one_visibility"] = torch.ones_like(leaves["one2one_visibility"]).requires_grad_()
    learnt = gradients(leaves, teacher)[1]["one2one_visibility"][0, 0, SURE_CELLS]
    assert torch.allclose(learnt / learnt[2], torch.tensor([4.0, 2.0, 1.0]))


def test_a_students_own_outputs_are_the_minimum() -> None:
    """Nothing but the spreads, which fall with the error, is left to learn; and every step away costs."""
    leaves = outputs_of(2, SIZE)
    with torch.no_grad():
        leaves["one2one_refinement"].zero_()
        leaves["one2one_visibility"].clamp_(min=0)  # all keypoints count
    teacher = of_itself(leaves)
    least, found = gradients(leaves, teacher)
    for name in ("one2one", "one2one_offsets", "one2one_visibility"):
        assert float(found[name].abs().max()) < 1e-6, name
        before = leaves[name].detach().clone()
        with torch.no_grad():
            leaves[name] += 0.5
        assert float(gradients(leaves, teacher)[0]) > float(least) + 1e-3, name
        with torch.no_grad():
            leaves[name].copy_(before)


def test_steps_towards_the_teacher() -> None:
    """Plain gradient descent brings scores and poses of the deployed branch to the teacher's."""
    leaves, teacher = outputs_of(2, SIZE), teacher_of()
    optimizer = torch.optim.Adam([leaves[name] for name in leaves if name.startswith("one2one")], lr=0.05)
    for _ in range(300):
        gradients(leaves, teacher)
        optimizer.step()
    mine = of_itself(leaves)  # without refinement, whose coarse keypoints have a loss of their own
    assert torch.allclose(mine.scores[..., SURE_CELLS], teacher.scores[..., SURE_CELLS], atol=0.05)
    assert float((mine.keypoints - teacher.keypoints)[..., SURE_CELLS].norm(dim=2).mean()) < 2  # of 64 pixels


def test_one_to_many_scores_are_no_one_to_one_scores() -> None:
    """A teacher without a one-to-one head teaches the one-to-many scores, and the deployed poses."""
    _, found = gradients(outputs_of(2, SIZE), replace(teacher_of(), one2one=False))
    assert "one2one" not in found and (found["one2many"] != 0).all() and "one2one_offsets" in found and "offsets" not in found


def test_teacher_without_visibility() -> None:
    """Two-column keypoints: every one counts, and the student's visibility learns from labels alone."""
    _, found = gradients(outputs_of(2, SIZE), replace(teacher_of(), visibility=None))
    assert "one2one_visibility" not in found and (found["one2one_offsets"][..., SURE_CELLS] != 0).all()


def test_hidden_keypoints_teach_no_place() -> None:
    teacher = teacher_of()
    teacher.visibility[:, 4] = 0.1
    found = gradients(outputs_of(2, SIZE), teacher)[1]["one2one_offsets"][..., SURE_CELLS]
    assert not found[:, 4].any() and (found[:, :4] != 0).all()


@pytest.mark.parametrize("score", [0.0, 1e-6])
def test_teacher_that_sees_nobody(score: float) -> None:
    teacher = teacher_of()
    teacher.scores.fill_(score)
    loss, found = gradients(outputs_of(2, SIZE), teacher)
    assert loss.isfinite() and all(value.isfinite().all() for value in found.values())
    assert not found["one2one_offsets"].any() and (found["one2one"] > 0).all()  # every score falls


def test_a_crowd_has_its_best_cells_learnt() -> None:
    teacher = teacher_of(1)
    teacher.scores.copy_(torch.linspace(0.1, 0.9, teacher.scores.shape[2]))
    learnt = gradients(outputs_of(1, SIZE), teacher)[1]["one2one_offsets"].abs().sum((0, 1, 2)) > 0
    assert learnt.nonzero()[:, 0].tolist() == list(range(len(learnt) - CELLS, len(learnt)))


def test_classes_are_learnt_by_number() -> None:
    """Two classes of the student, of which the teacher knows the second."""
    leaves, teacher = outputs_of(2, SIZE), teacher_of()
    leaves["one2one"] = leaves["one2one"].detach().repeat(1, 2, 1).requires_grad_()
    distillation_loss(criterion(), packed(leaves, SIZE), teacher, [1]).backward()
    assert not leaves["one2one"].grad[:, 0].any() and (leaves["one2one"].grad[:, 1] != 0).all()


def test_gains_are_those_of_the_labels() -> None:
    """Twice the gain of poses is twice their gradient."""
    once, twice = (gradients(outputs_of(1, SIZE), teacher_of(1), pose_gain=g)[1]["one2one_offsets"] for g in (2.0, 4.0))
    assert torch.allclose(2 * once, twice)


def test_other_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5, 2, 84\) keypoints in cells, the student \(2, 17, 2, 84\)"):
        gradients(outputs_of(2, SIZE), teacher_of(k=5))
