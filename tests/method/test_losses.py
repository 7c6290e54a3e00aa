"""Losses: gradients over distance and scale, half precision, odd batches, score and heatmap targets, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from layouts import encode_keypoints, split_levels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from erpose_yolo.method.decode import OFFSET_CELLS, HeadOutputs, PoseOutputs, make_cells
from erpose_yolo.method.losses import (
    LOSS_NAMES,
    ERPoseLoss,
    Side,
    Targets,
    box_overlap,
    heatmap_targets,
    outside_boxes,
    plain_oks_loss,
    schedule,
    smooth_oks_loss,
)
from erpose_yolo.method.oks import kernel, object_area, oks_error, sigmas_for

STRIDES = [8.0, 16.0, 32.0]
K = 17


def shapes_of(size: int) -> list[tuple[int, int]]:
    """Levels of a square image."""
    return [(size // int(s), size // int(s)) for s in STRIDES]


def cells(size: int) -> int:
    return sum(h * w for h, w in shapes_of(size))


def targets_of(images: list[int], keypoints: Tensor, ignore: list[tuple[int, list[float]]] | None = None) -> Targets:
    """Targets from keypoints (N, K, 3); boxes are the keypoints' extent plus a little."""
    ignore = ignore or []
    n = len(keypoints)
    box = torch.cat((keypoints[..., :2].amin(1) - 4, keypoints[..., :2].amax(1) + 4), 1) if n else torch.zeros(0, 4)
    return Targets(
        image=torch.tensor(images, dtype=torch.long),
        keypoints=keypoints,
        box=box,
        area=object_area(box),
        category=torch.zeros(n, dtype=torch.long),
        ignore_image=torch.tensor([i for i, _ in ignore], dtype=torch.long),
        ignore_box=torch.tensor([b for _, b in ignore], dtype=torch.float32).view(-1, 4),
    )


def people(n: int, size: int, k: int = K, seed: int = 0) -> Tensor:
    """(N, K, 3) keypoints of random persons inside an image, some hidden."""
    g = torch.Generator().manual_seed(seed)
    side = (0.1 + 0.5 * torch.rand(n, 1, 2, generator=g)) * size
    low = torch.rand(n, 1, 2, generator=g) * (size - side)
    seen = torch.randint(0, 3, (n, k, 1), generator=g).float()
    seen[:, 0] = 2
    return torch.cat((low + side * torch.rand(n, k, 2, generator=g), seen), 2)


BOTH = ("one2many", "one2one")
ONE2MANY: dict[str, Any] = {"one2many_weight": (1.0, 1.0)}  # losses of a head with one assignment alone
ONE2ONE: dict[str, Any] = {"one2many_weight": (0.0, 0.0)}


def outputs_of(
    b: int,
    size: int,
    sides: tuple[str, ...] = BOTH,
    *,
    refine: bool = True,
    boxes: bool = False,
    heatmaps: bool = True,
    shared: bool = False,
    k: int = K,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Raw head outputs as leaves by name, ready for gradients; see :func:`packed`.

    The names of the second side begin with its own unless it shares the pose branch.
    """
    a = cells(size)
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, shift: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=g) + shift).to(dtype).requires_grad_()

    out = {}
    for own in ("",) if shared or len(sides) == 1 else ("", "one2one_"):
        out |= {own + "offsets": draw(b, k, 2, a), own + "log_spread": draw(b, k, a), own + "visibility": draw(b, k, a)}
        if refine:
            out[own + "refinement"] = draw(b, 3 * k, a)
        if boxes:
            out[own + "box"] = draw(b, 4, a)
    if heatmaps:
        out["heatmaps"] = draw(b, k, (size // 8) ** 2, shift=-3)
    for name in sides:
        out[name] = draw(b, 1, a, shift=-3)
    return out


def packed(leaves: dict[str, Tensor], size: int) -> HeadOutputs:
    """What a head returns, made of leaves."""
    shapes = shapes_of(size)

    def pose(own: str) -> PoseOutputs:
        found = {name: leaves[own + name] for name in ("offsets", "visibility", "log_spread", "box") if own + name in leaves}
        maps = leaves.get(own + "refinement")
        return PoseOutputs(**found, refinement=None if maps is None else split_levels(maps, shapes))

    many = pose("")
    one = pose("one2one_") if "one2one_offsets" in leaves else many
    scores = [leaves.get(name) for name in BOTH]
    return HeadOutputs(many, one, *scores, leaves.get("heatmaps"), shapes)


def criterion(k: int = K, **arguments: Any) -> ERPoseLoss:
    return ERPoseLoss(sigmas_for(k), STRIDES, **arguments)


def run(
    loss: ERPoseLoss, outputs: dict[str, Tensor], targets: Targets, size: int, progress: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward; every output must end with a finite gradient."""
    total, items = loss(packed(outputs, size), targets, progress)
    total.backward()
    assert total.isfinite()
    assert all(v.isfinite() and not v.requires_grad for v in items.values())
    assert torch.allclose(sum(items.values()), total.detach(), rtol=1e-4)
    for name, value in outputs.items():
        assert value.grad is not None and value.grad.isfinite().all(), name
    return total.detach(), items


# --- single keypoints ------------------------------------------------------------------------------------------------


def slope(keypoint_loss: Callable[..., Tensor], distance: float, scale: float, sigma: float = 0.05) -> float:
    """Gradient of a keypoint's loss by its distance in pixels, for a square person of this many pixels a side."""
    p = torch.tensor([[[distance, 0.0]]], requires_grad=True)
    area = object_area(torch.tensor([[0.0, 0.0, scale, scale]]))
    error = oks_error(p, torch.zeros(1, 1, 2), area, torch.tensor([sigma]))
    (keypoint_loss(error) if keypoint_loss is plain_oks_loss else keypoint_loss(error, torch.ones_like(error))).sum().backward()
    assert p.grad is not None and p.grad.isfinite().all()
    return float(p.grad[0, 0, 0])


DISTANCES = [10 ** (x / 4) for x in range(-8, 13)]  # 0.01 to 1,000 px
SCALES = [8.0, 30.0, 100.0, 500.0]


@pytest.mark.parametrize("scale", SCALES)
def test_smooth_oks_gradient_is_bounded_and_never_vanishes(scale: float) -> None:
    """Far away it must still pull (or an untrained net stays untrained), near the keypoint it must not spike."""
    tolerance = math.sqrt(0.53) * scale * 2 * 0.05
    bound = 1 / (math.e * tolerance)  # 1 / (b * tolerance), for b of e^1
    got = [slope(smooth_oks_loss, d, scale) for d in DISTANCES]
    assert all(0 < g <= 1.05 * bound for g in got)
    assert got == sorted(got)  # grows with distance up to the bound: no dead zone anywhere
    far = [g for g, d in zip(got, DISTANCES) if d >= math.e * tolerance]
    assert far and min(far) > 0.6 * bound
    assert slope(smooth_oks_loss, 0.0, scale) == 0.0  # at the keypoint: no pull, no NaN


@pytest.mark.parametrize("scale", SCALES)
def test_plain_oks_gradient_vanishes(scale: float) -> None:
    """The contrast that smooth OKS exists for: 1 - exp(-e) gives nothing a few tolerances away."""
    tolerance = math.sqrt(0.53) * scale * 2 * 0.05
    best = max(slope(plain_oks_loss, d, scale) for d in DISTANCES)
    away = 8 * tolerance
    assert slope(plain_oks_loss, away, scale) < 1e-10 * best
    assert slope(smooth_oks_loss, away, scale) > 0.05 * best


def test_smooth_oks_golden() -> None:
    """Value by hand: sqrt(1 + r^2/b^2) - 1 + 2 log b, with r^2 = 2e; b learns the size of the error."""
    log_b = torch.tensor([0.0, 1.0])
    assert smooth_oks_loss(torch.tensor([1.5, 0.0]), log_b).tolist() == pytest.approx([1.0, 2.0], abs=0.04)
    error = torch.full((400,), 50.0)  # r = 10 tolerances
    grid = torch.linspace(-3, 4, 400)
    best = grid[smooth_oks_loss(error, grid).argmin()].exp().item()
    # derivative by log b is zero where r^2/b^2 / sqrt(1 + r^2/b^2) = 2, i.e. r/b = sqrt(2 + 2 sqrt 2)
    assert best == pytest.approx(10 / math.sqrt(2 + 2 * math.sqrt(2)), rel=0.02)


def test_keypoint_losses_at_extremes() -> None:
    """A wild prediction or spread must not turn one batch, and with it the weights, into NaN."""
    error = torch.tensor([0.0, 1e-12, 1.0, 1e8, 1e14]).repeat(5, 1).requires_grad_()
    spread = torch.tensor([[-1e4], [-5.0], [0.0], [5.0], [80.0]]).repeat(1, 5).requires_grad_()
    loss = smooth_oks_loss(error, spread) + plain_oks_loss(error)
    loss.sum().backward()
    assert loss.isfinite().all() and error.grad.isfinite().all() and spread.grad.isfinite().all()


def test_pose_loss_ignores_unlabelled_keypoints() -> None:
    """An unlabelled keypoint is unknown, not at (0, 0): it must neither cost nor pull."""
    error = torch.tensor([[1.0, 2.0, 1e6]], requires_grad=True)
    labelled = torch.tensor([[True, True, False]])
    criterion(3).pose_loss(error, torch.zeros(1, 3), labelled).sum().backward()
    assert error.grad[0, 2] == 0 and (error.grad[0, :2] > 0).all()
    nobody = criterion(3).pose_loss(torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert nobody.isfinite().all()


def test_oks_gain_adds_what_the_metric_loses() -> None:
    """By hand: smooth OKS of e and b plus gain * (1 - exp(-e)), as a mean over labelled keypoints."""
    error, spread = torch.tensor([[0.5, 2.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    labelled = torch.tensor([[True, True, False]])
    missed = [1 - math.exp(-0.5), 1 - math.exp(-2.0)]
    more, less = (criterion(3, oks_gain=gain).pose_loss(error, spread, labelled) for gain in (4.0, 0.0))
    assert less.item() == pytest.approx(smooth_oks_loss(error, spread)[0, :2].mean().item())
    assert (more - less).item() == pytest.approx(4 * sum(missed) / 2, rel=1e-5)


def test_oks_gain_reaches_the_loss_of_a_batch() -> None:
    outputs, targets = outputs_of(1, 96), targets_of([0], people(1, 96))
    with_gain, without = (run(criterion(oks_gain=g), outputs, targets, 96)[1]["pose_loss"] for g in (4.0, 0.0))
    assert with_gain > without


def test_box_overlap_by_hand() -> None:
    """IoU and generalised IoU of the box ablation."""
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]])
    b = torch.tensor([[5.0, 0, 15, 10], [20, 0, 30, 10], [5, 5, 5, 5]])
    iou, giou = box_overlap(a, b)
    assert iou[:2].tolist() == pytest.approx([1 / 3, 0])
    assert giou[:2].tolist() == pytest.approx([1 / 3, -1 / 3])
    assert iou.isfinite().all() and giou.isfinite().all()


# --- whole batches ------------------------------------------------------------------------------------------------


def test_every_output_learns_from_a_batch_with_people() -> None:
    """Each branch must receive a gradient, or it would stay at its random start for ever."""
    outputs = outputs_of(2, 96)
    _, items = run(criterion(), outputs, targets_of([0, 0, 1], people(3, 96)), 96)
    assert set(items) == set(LOSS_NAMES) and all(v > 0 for v in items.values())
    assert all(v.grad.abs().max() > 0 for v in outputs.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wild", [1.0, 1e3])
def test_half_precision(dtype: torch.dtype, wild: float) -> None:
    """amp=True must not end in NaN: half outputs, also absurd ones, give finite loss and gradients."""
    outputs = outputs_of(2, 96, dtype=dtype)
    with torch.no_grad():
        for value in outputs.values():
            value.mul_(wild)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        total, _ = run(criterion(), outputs, targets_of([0, 0, 1], people(3, 96)), 96)
    assert total.dtype == torch.float32
    assert all(v.grad.dtype == dtype for v in outputs.values())
    assert outputs["offsets"].grad.abs().max() > 0


def test_batch_without_people() -> None:
    """Images of nobody teach background only, and the first batch of a run may hold nothing else."""
    outputs = outputs_of(2, 64)
    _, items = run(criterion(), outputs, targets_of([], torch.zeros(0, K, 3)), 64)
    assert items["pose_loss"] == 0 and items["kobj_loss"] == 0
    assert items["cls_loss"] > 0 and items["o2o_loss"] > 0 and items["heat_loss"] > 0
    assert outputs["offsets"].grad.abs().max() == 0
    assert (outputs["one2one"].grad > 0).all()  # every score is pushed down


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_what_nobody_learns_may_be_anything(wild: float) -> None:
    """A pose that overflows in a background cell is nobody's: loss and gradients are those of the batch without it."""
    targets = targets_of([1], people(1, 96))
    calm, upset = outputs_of(2, 96), outputs_of(2, 96)
    with torch.no_grad():
        for name, value in upset.items():
            if name not in ("one2many", "one2one", "heatmaps"):  # these learn background
                value[0, ..., 7] = wild
    assert run(criterion(), upset, targets, 96)[0] == run(criterion(), calm, targets, 96)[0]
    for name, value in upset.items():
        assert torch.equal(value.grad, calm[name].grad), name


def test_image_without_people_among_others() -> None:
    """An empty image beside a full one pushes its scores down and moves no keypoint."""
    outputs = outputs_of(3, 64)
    run(criterion(), outputs, targets_of([0, 2], people(2, 64)), 64)
    assert outputs["offsets"].grad[1].abs().max() == 0
    assert (outputs["one2one"].grad[1] > 0).all() and (outputs["one2one"].grad[0] < 0).sum() == 1


@pytest.mark.parametrize("with_person", [False, True])
def test_ignore_regions(with_person: bool) -> None:
    """People without labelled keypoints are no background: no score or heatmap inside their box may be pushed down."""
    size, box = 96, [20.0, 12.0, 60.0, 70.0]
    outputs = outputs_of(2, size)
    keypoints = people(1, size, seed=3) if with_person else torch.zeros(0, K, 3)
    run(criterion(), outputs, targets_of([0] * len(keypoints), keypoints, [(0, box)]), size)
    centres, _ = make_cells(shapes_of(size), STRIDES, torch.zeros(1))
    inside = ((centres > torch.tensor(box[:2])[:, None]) & (centres < torch.tensor(box[2:])[:, None])).all(0)
    assert 20 < inside.sum() < len(inside) - 20
    for name, positives in (("one2many", 10), ("one2one", 1)):
        grad = outputs[name].grad[:, 0]
        # nothing there is taught to be background; a labelled person there is still learnt
        assert (grad[0, inside] != 0).sum() <= positives * with_person
        assert (grad[0, ~inside] != 0).all() and (grad[1] > 0).all()  # everywhere else, and in the other image
    finest = inside[: (size // 8) ** 2]
    heat = outputs["heatmaps"].grad
    assert (heat[0][:, finest] <= 0).all() and (heat[1] > 0).all() and (heat[0][:, ~finest] > 0).any()


def test_ignore_regions_cell_by_cell() -> None:
    """Any boxes, also inside out, without extent, beyond the image or with sides on centres, against asking each cell."""
    g = torch.Generator().manual_seed(0)
    shapes, strides, batch = [(6, 9), (3, 5), (2, 3)], STRIDES, 3
    centres, _ = make_cells(shapes, strides, torch.zeros(1))
    boxes = torch.rand(60, 4, generator=g) * 120 - 30
    boxes[:20] = (boxes[:20] / 4).round() * 4  # centres of cells among them
    boxes[20:40, 2:] += 40
    image = torch.randint(0, batch - 1, (60,), generator=g)
    for chosen in (slice(0, 0), slice(0, 20), slice(20, 23), slice(38, 60), slice(0, 60)):
        wanted = torch.ones(batch, centres.shape[1], dtype=torch.bool)
        for i, box in zip(image[chosen].tolist(), boxes[chosen]):
            wanted[i] &= ~((centres > box[:2, None]) & (centres < box[2:, None])).all(0)
        assert torch.equal(outside_boxes(image[chosen], boxes[chosen], shapes, strides, batch), wanted)
        assert wanted[-1].all() and (chosen == slice(0, 0) or not wanted.all())


def test_ignore_regions_read_nothing_back_and_build_no_table() -> None:
    """Four hundred regions in a batch of 64: no value goes to the host (meta tensors have none), memory grows with the cells."""
    image, boxes = torch.zeros(400, dtype=torch.long), torch.rand(400, 4) * 640
    with Largest() as mode:
        outside_boxes(image, boxes, shapes_of(640), STRIDES, 64)
    assert mode.elements <= 64 * cells(640)
    found = outside_boxes(image.to("meta"), boxes.to("meta"), shapes_of(640), STRIDES, 64)
    assert found.shape == (64, cells(640))


def test_two_identical_people() -> None:
    """Duplicated rows get a cell each: two positives, both at the same keypoints."""
    outputs = outputs_of(1, 96, ("one2one",))
    keypoints = people(1, 96).repeat(2, 1, 1)
    run(criterion(**ONE2ONE), outputs, targets_of([0, 0], keypoints), 96)
    moved = outputs["offsets"].grad.abs().sum((1, 2))[0] > 0
    assert moved.sum() == 2 and (outputs["one2one"].grad < 0).sum() == 2


def test_more_people_than_cells() -> None:
    """100 people in a 32 px image of 21 cells: finite, at most one person per cell, and it ends."""
    for sides, arguments in ((BOTH, {}), (("one2many",), ONE2MANY), (("one2one",), ONE2ONE)):
        outputs = outputs_of(1, 32, sides)
        run(criterion(**arguments), outputs, targets_of([0] * 100, people(100, 32)), 32)
        assert 10 < (outputs["offsets"].grad.abs().sum((1, 2)) > 0).sum() <= 21


def test_one_visible_keypoint() -> None:
    """One labelled wrist: only that keypoint is pulled, everything stays finite."""
    outputs = outputs_of(1, 96)
    keypoints = torch.zeros(1, K, 3)
    keypoints[0, 9] = torch.tensor([50.0, 40.0, 2.0])
    target = targets_of([0], keypoints)
    run(criterion(), outputs, target, 96)
    grad = outputs["offsets"].grad.abs().sum((0, 2, 3))
    assert grad[9] > 0 and grad.sum() == grad[9]


def test_keypoints_far_outside() -> None:
    """Augmentation moves keypoints out of the image; loss and heatmaps take it."""
    keypoints = people(3, 96)
    keypoints[0, :, 0] += 5000
    keypoints[1, :, 1] -= 5000
    run(criterion(), outputs_of(1, 96), targets_of([0, 0, 0], keypoints), 96)


def test_people_weigh_the_same() -> None:
    """The pose loss is a mean over people: nobody is louder for having more cells, and a crowd no louder than one."""
    keypoints = people(2, 96)
    keypoints[1, 1:, 2] = 0  # one keypoint, so a few candidates only
    both = outputs_of(2, 96, ("one2many",), heatmaps=False)
    parts = [{k: v.detach()[i : i + 1].clone().requires_grad_() for k, v in both.items()} for i in (0, 1)]
    alone = [run(criterion(**ONE2MANY), part, targets_of([0], keypoints[i : i + 1]), 96)[1] for i, part in enumerate(parts)]
    many = [int((part["offsets"].grad.abs().sum((1, 2)) > 0).sum()) for part in parts]
    assert many[0] > 1.5 * many[1] > 0
    together = run(criterion(**ONE2MANY), both, targets_of([0, 1], keypoints), 96)[1]
    for name in ("pose_loss", "kobj_loss"):
        assert together[name].item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-4)
    assert alone[0]["pose_loss"].item() != pytest.approx(alone[1]["pose_loss"].item(), rel=0.05)


def test_wrong_shapes_are_named() -> None:
    """Outputs of another grid or keypoint count are refused with both numbers, not broadcast."""
    with pytest.raises(ValueError, match="K=17 keypoints of the targets and A=189"):
        criterion()(replace(packed(outputs_of(1, 64), 64), shapes=shapes_of(96)), targets_of([], torch.zeros(0, K, 3)))
    with pytest.raises(ValueError, match=r"K=5 .*\(1, 17, 2, 84\)"):
        criterion()(packed(outputs_of(1, 64), 64), targets_of([], torch.zeros(0, 5, 3)))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"visibility_gain": 0.0}, {"size_range": (0.0, 1e9)}, {"center_sampling_window": 1}, {"topk": 1}, {"aux_loss_gain": 0.0}],
    ids=str,
)
def test_every_argument_learns(arguments: dict[str, Any]) -> None:
    """Each number may be another, and what it weighs still trains."""
    outputs = outputs_of(2, 96)
    total, _ = run(criterion(**arguments), outputs, targets_of([0, 0, 1], people(3, 96)), 96, 0.5)
    assert total > 0
    for name, value in outputs.items():
        unpaid = (name.endswith("visibility") and arguments.get("visibility_gain") == 0) or (
            name.endswith("offsets") and arguments.get("aux_loss_gain") == 0
        )
        assert (value.grad.abs().max() == 0) == unpaid, name


@pytest.mark.parametrize(
    "parts",
    [{"refine": False}, {"boxes": True}, {"heatmaps": False}, {"shared": True}, {"sides": ("one2many",), "boxes": True},
     {"sides": ("one2one",)}, {"shared": True, "boxes": True, "refine": False}],
    ids=str,
)  # fmt: skip
def test_heads_of_other_parts_learn(parts: dict[str, Any]) -> None:
    """The loss reads what a head has; all of it gets a gradient, also in a batch of nobody."""
    outputs = outputs_of(2, 96, **parts)
    _, items = run(criterion(), outputs, targets_of([0, 0, 1], people(3, 96)), 96, 0.5)
    assert ("box_loss" in items) == parts.get("boxes", False)
    assert all(v.grad.abs().max() > 0 for v in outputs.values())
    run(criterion(), outputs_of(1, 96, **parts), targets_of([], torch.zeros(0, K, 3)), 96, 0.5)


def test_schedule() -> None:
    """A straight line from the first epoch to the last, held at both ends."""
    assert [schedule((1.0, 0.2), p) for p in (-1, 0, 0.25, 1, 7)] == pytest.approx([1.0, 1.0, 0.8, 0.2, 0.2])


def test_schedules_move() -> None:
    """Progress must reach the loss: the one-to-many assignment's share goes from 0.8 to 0.1."""
    loss = criterion(one2many_weight=(0.8, 0.1))
    loss.kernel_dof = (2.0, 2.0)
    target = targets_of([0, 0], people(2, 96))
    start, middle, end = (run(loss, outputs_of(1, 96), target, 96, p)[1] for p in (0.0, 0.5, 1.0))
    for name, shares in (("cls_loss", (0.8, 0.45, 0.1)), ("o2o_loss", (0.2, 0.55, 0.9))):
        base = start[name].item() / shares[0]
        assert middle[name].item() == pytest.approx(base * shares[1], rel=1e-4)
        assert end[name].item() == pytest.approx(base * shares[2], rel=1e-4)


# --- refinement -----------------------------------------------------------------------------------------------------


def test_refined_keypoints_are_what_is_learnt_and_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pose loss and the ranks see the keypoints after refinement: maps that fix a pose fix its loss and its quality."""
    outputs, target, _ = planted(6.0, "one2one")
    loss = criterion(**ONE2ONE, aux_loss_gain=0.0, oks_gain=0.0)
    quality: list[Tensor] = []
    monkeypatch.setattr(loss, "pose_quality", lambda side, similarity, *args: quality.append(similarity) or similarity)
    _, items = loss(packed(outputs, 96), target, 1.0)
    fixed = outputs["refinement"].detach().clone().view(1, K, 3, -1)
    _, strides = make_cells(shapes_of(96), STRIDES, torch.zeros(1))
    fixed[:, :, 0] = -6.0 / (strides * OFFSET_CELLS)  # 6 px to the left, on every level
    fixed[:, :, 2] = -1.0  # and sure of it
    after = packed({**outputs, "refinement": fixed.flatten(1, 2)}, 96)
    _, better = loss(after, target, 1.0)
    assert better["pose_loss"] < items["pose_loss"] - loss.pose_gain
    assert len(quality) == 2 and quality[0].max() < 0.9 and quality[1].max() == pytest.approx(1.0, abs=1e-4)


def test_look_ups_and_places_have_losses_of_their_own() -> None:
    """The refined keypoints train the maps, around them only; the coarse ones the offsets, as much as aux_loss_gain says."""
    grads = {}
    for gain in (0.0, 0.5, 1.0):
        outputs, target, _ = planted(3.0, "one2many")
        run(criterion(**ONE2MANY, aux_loss_gain=gain, topk=1), outputs, target, 96)
        grads[gain] = outputs
    assert grads[0.0]["offsets"].grad.abs().max() == 0 and grads[0.5]["offsets"].grad.abs().max() > 0
    assert torch.allclose(grads[1.0]["offsets"].grad, 2 * grads[0.5]["offsets"].grad)
    refinement = grads[0.5]["refinement"].grad.view(K, 3, -1)
    assert torch.equal(refinement, grads[0.0]["refinement"].grad.view(K, 3, -1))
    touched = (refinement.abs().sum(1) > 0).sum(1)
    assert ((touched >= 1) & (touched <= 4)).all()  # the cells around each keypoint of the one pose


def test_one2many_places_teach_the_deployed_maps_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of the one-to-one branch learn where the keypoints of the one-to-many branch's ten cells sample them, too."""

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        outputs = outputs_of(2, 96)
        total, _ = run(criterion(), outputs, targets_of([0, 1, 1], people(3, 96)), 96, 0.5)
        return total, {name: value.grad for name, value in outputs.items()}

    total, more = gradients()
    monkeypatch.setattr(ERPoseLoss, "_sampling_loss", lambda self, *args: torch.zeros(()))
    less, before = gradients()
    assert total > less
    for name in more:
        assert torch.equal(before[name], more[name]) == (name != "one2one_refinement"), name
    before, more = before["one2one_refinement"], more["one2one_refinement"]
    assert ((more != 0).sum() > 2 * (before != 0).sum()) and ((before != 0) <= (more != 0)).all(), "from more places"


def test_where_one_branch_is_sampled_there_is_nothing_more_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a single assignment, nor a shared branch, nor a head without maps has deployed maps beside one-to-many ones."""
    monkeypatch.setattr(ERPoseLoss, "_sampling_loss", None)
    for parts in ({"sides": ("one2one",)}, {"sides": ("one2many",)}, {"shared": True}, {"refine": False}):
        run(criterion(), outputs_of(1, 96, **parts), targets_of([0], people(1, 96)), 96)
    with pytest.raises(TypeError):
        run(criterion(), outputs_of(1, 96), targets_of([0], people(1, 96)), 96)


# --- score targets ------------------------------------------------------------------------------------------------


def planted(shift: float, side: str, size: int = 96) -> tuple[dict[str, Tensor], Targets, Tensor]:
    """Outputs whose every cell says the same pose, ``shift`` px right of the person; scores of one half. And e_k."""
    keypoints = people(1, size)
    keypoints[..., 2] = 2
    target = targets_of([0], keypoints)
    centres, strides = make_cells(shapes_of(size), STRIDES, torch.zeros(1))
    said = (keypoints[..., :2] + torch.tensor([shift, 0.0])).expand(cells(size), -1, -1)
    offsets = encode_keypoints(said, centres.T, strides.T).permute(1, 2, 0)[None].contiguous()
    outputs = outputs_of(1, size, (side,))
    outputs["offsets"] = offsets.requires_grad_()
    for name in (side, "refinement"):
        outputs[name] = torch.zeros_like(outputs[name], requires_grad=True)
    error = shift**2 / (2 * target.area[0] * (2 * sigmas_for(K)) ** 2)
    return outputs, target, error


@pytest.mark.parametrize("shift", [0.0, 6.0, 400.0])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_the_cell_of_a_person_learns_a_score_of_one(shift: float, progress: float) -> None:
    """However good its pose is."""
    outputs, target, _ = planted(shift, "one2one")
    run(criterion(**ONE2ONE), outputs, target, 96, progress)
    grad = outputs["one2one"].grad[0, 0]
    positive = grad < 0.499  # background: sigmoid(0) - 0 = 0.5
    assert positive.sum() == 1
    assert grad[positive].item() == pytest.approx(-0.5, abs=1e-4)


def test_one2many_score_targets_follow_the_rank() -> None:
    """One-to-many: the best cell of a person learns 1, the others their rank beside it, at most topk of them."""
    loss = criterion(**ONE2MANY, topk=4)
    outputs, target, _ = planted(3.0, "one2many")
    logits = torch.linspace(-2, 2, cells(96)).view(1, 1, -1)
    outputs["one2many"] = logits.clone().requires_grad_()
    run(loss, outputs, target, 96, 1.0)
    p = logits.sigmoid()[0, 0]
    positive = (outputs["one2many"].grad[0, 0] < 0).nonzero()[:, 0]
    assert 1 <= len(positive) <= 4
    # gradient is (p - t) / norm with norm = max(1, sum t): background cells tell the norm
    background = [i for i in range(len(p)) if i not in positive.tolist()]
    norm = (p / outputs["one2many"].grad[0, 0])[background].median()
    t = p - outputs["one2many"].grad[0, 0] * norm
    top = t.argmax()
    assert t[top].item() == pytest.approx(1, abs=1e-3)
    for i in positive.tolist():  # rank is sqrt(score) * quality^2, and quality is the same everywhere
        assert t[i].item() == pytest.approx(math.sqrt(p[i] / p[top]), abs=1e-3)


def test_shares_of_the_target_hold_for_hopeless_poses() -> None:
    """An untrained head is thousands of tolerances off; a rank of quality^6 must not vanish beside any constant."""
    outputs, target, error = planted(400.0, "one2many")
    quality = float(kernel(error, 1.0).mean())
    assert quality**6 < 1e-15
    logits = torch.linspace(-2, 2, cells(96)).view(1, 1, -1)
    loss = criterion(topk=4, beta=6.0)
    with torch.no_grad():
        scene = loss._scene(outputs["offsets"], target, shapes_of(96))
        pairs = loss.assign("one2many", Side.of(packed(outputs, 96).one2many, logits), scene, 0.0)
    p = logits.sigmoid()[0, 0, pairs.cell]
    wanted = (p / p.max()).sqrt()
    torch.testing.assert_close(pairs.target, wanted, rtol=1e-4, atol=0.0)


# --- heatmaps -----------------------------------------------------------------------------------------------------


def test_heatmap_targets_golden() -> None:
    """A keypoint's map peaks with exactly 1 in the keypoint's cell and falls off as a Gaussian of its tolerance."""
    keypoints = torch.zeros(1, 2, 3)
    keypoints[0, 0] = torch.tensor([35.0, 20.0, 2.0])  # column 4, row 2 at stride 8
    keypoints[0, 1] = torch.tensor([70.0, 70.0, 0.0])  # not labelled
    target = Targets(
        image=torch.tensor([1]),
        keypoints=keypoints,
        box=torch.zeros(1, 4),
        area=torch.tensor([6400.0]),
        category=torch.zeros(1, dtype=torch.long),
        ignore_image=torch.zeros(0, dtype=torch.long),
        ignore_box=torch.zeros(0, 4),
    )
    sigmas = torch.tensor([0.075, 0.1])  # tolerance sqrt(6400) * 0.15 = 12 px = 1.5 cells of 8
    maps = heatmap_targets(target, sigmas, (8, 10), 8.0, torch.zeros(2, 2, 80))
    assert maps[0].max() == 0 and maps[1, 1].max() == 0
    fine = maps[1, 0].view(8, 10)
    assert fine[2, 4] == 1 and (fine == 1).sum() == 1
    assert fine[2, 5].item() == pytest.approx(math.exp(-1 / (2 * 1.5**2)))
    assert fine[4, 3].item() == pytest.approx(math.exp(-5 / (2 * 1.5**2)))
    assert fine[2, 9] == 0  # beyond the window of 4 cells


def test_heatmaps_keep_the_higher_bump() -> None:
    """Where two people's wrists meet, both peaks must survive."""
    keypoints = torch.tensor([[[20.0, 20.0, 2.0]], [[28.0, 20.0, 2.0]], [[-5.0, 20.0, 2.0]]])
    target = targets_of([0, 0, 0], keypoints)
    maps = heatmap_targets(target, torch.tensor([0.1]), (8, 8), 8.0, torch.zeros(1, 1, 64)).view(8, 8)
    assert maps[2, 2] == 1 and maps[2, 3] == 1 and (maps == 1).sum() == 2  # the third is out of the image
    assert maps.max() == 1 and 0 < maps[2, 0] < 1


def test_buried_peaks_come_back() -> None:
    """However sure a heatmap is of the wrong thing, it is taught the right one, in a half type's range, too."""
    place = torch.tensor([[[20.0, 20.0, 2.0]]])
    target = targets_of([0], place)
    loss = ERPoseLoss(torch.tensor([0.1]), STRIDES)
    scene = loss._scene(torch.zeros(1, 1, 2, cells(64)), target, shapes_of(64))
    for logit in (-12.0, -30.0, -1e4):
        logits = torch.full((1, 1, 64), logit, requires_grad=True)
        loss._heatmap_loss(logits, scene).backward()
        peak = 2 * 8 + 2
        assert logits.grad[0, 0, peak].item() == pytest.approx(-1, abs=1e-3)
        sure = torch.full((1, 1, 64), -logit, requires_grad=True)
        loss._heatmap_loss(sure, scene).backward()
        assert sure.grad[0, 0, 0].item() == pytest.approx(1, abs=1e-3), "nor a peak where nobody is"


def test_heatmap_loss_by_hand() -> None:
    """CornerNet's eq. 1 with exponents 2 and 4, in probabilities."""
    torch.manual_seed(0)
    target = targets_of([0, 1], people(2, 64))
    loss, logits = criterion(), torch.randn(2, K, 64) * 2 - 1
    scene = loss._scene(outputs_of(2, 64)["offsets"], target, shapes_of(64))
    wanted, p = heatmap_targets(target, loss.sigmas, (8, 8), 8.0, logits), logits.double().sigmoid()
    peak = wanted == 1
    each = torch.where(peak, (1 - p) ** 2 * -p.log(), (1 - wanted.double()) ** 4 * p**2 * -(1 - p).log())
    assert loss._heatmap_loss(logits, scene).item() == pytest.approx(float(each.sum() / peak.sum()), rel=1e-5)


# --- memory -------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements, where = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            # an expanded view holds no memory of its own
            if isinstance(value, Tensor) and 0 not in value.stride() and value.numel() > self.elements:
                self.elements, self.where = value.numel(), str(func)
        return out


def test_no_table_over_all_cells() -> None:
    """Memory must grow with people, not with people x cells x keypoints: a crowd at 640 px would not fit a GPU."""
    n, a = 120, cells(640)
    outputs = packed(outputs_of(2, 640), 640)
    targets = targets_of([0] * 60 + [1] * 60, people(n, 640))
    with Largest() as mode:
        total, _ = criterion()(outputs, targets)
        total.backward()
    assert mode.elements >= 2 * K * 2 * a  # it does see the outputs themselves
    assert mode.elements < n * a, mode.where  # not even people x cells, let alone times 17 keypoints
