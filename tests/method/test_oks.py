"""OKS: golden values, agreement with pycocotools, the area rule, sigmas and the kernels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erpose_yolo.method.oks import (
    BOX_FILL,
    COCO_SIGMAS,
    DEFAULT_SIGMA,
    MIN_AREA,
    MIN_ASPECT,
    TIGHT_FROM,
    describe_sigmas,
    kernel,
    lax_sigmas,
    mean_over_labelled,
    object_area,
    oks,
    oks_error,
    sigmas_for,
    tolerance,
)


def test_golden_values_by_hand() -> None:
    """A slip in the formula (2A for A, sigma for 2 sigma) would make every score and every AP of a user wrong."""
    area, sigmas = torch.tensor([100.0]), torch.tensor([0.05, 0.1, 0.1])
    target = torch.tensor([[[10.0, 10.0, 2.0], [20.0, 20.0, 1.0], [30.0, 30.0, 0.0]]])
    pred = torch.tensor([[[11.0, 10.0], [20.0, 22.0], [900.0, 900.0]]])
    # e_0 = 1 / (2 * 100 * (2 * 0.05)^2) = 0.5;  e_1 = 4 / (2 * 100 * (2 * 0.1)^2) = 0.5;  keypoint 2 is not labelled
    assert oks_error(pred, target, area, sigmas)[0, :2].tolist() == pytest.approx([0.5, 0.5])
    assert oks(pred, target, area, sigmas).item() == pytest.approx(math.exp(-0.5))
    pred[0, 1, 1] = 24.0  # e_1 = 16 / 8 = 2
    assert oks(pred, target, area, sigmas).item() == pytest.approx((math.exp(-0.5) + math.exp(-2)) / 2)


def test_perfect_pose_is_one_and_no_labels_is_zero() -> None:
    """A person without labelled keypoints must give 0 and not NaN, or one such label would spoil a whole run."""
    target = torch.rand(2, 17, 3) * 100
    target[0, :, 2], target[1, :, 2] = 2, 0
    value = oks(target[..., :2], target, torch.tensor([500.0, 500.0]), sigmas_for(17))
    assert value.tolist() == [1.0, 0.0]


def test_tolerance_is_where_oks_falls_to_exp_of_minus_one_half() -> None:
    """Losses and spreads are in units of this distance; a factor off would shift them all."""
    area, sigmas = torch.tensor([2500.0, 64.0]), torch.tensor([0.025, 0.1])
    away = tolerance(area, sigmas)
    assert away.tolist() == [pytest.approx([2.5, 10.0]), pytest.approx([0.4, 1.6])]
    target = torch.zeros(2, 2, 3)
    pred = torch.stack((away, torch.zeros_like(away)), -1)
    assert torch.allclose(oks_error(pred, target, area, sigmas), torch.tensor(0.5))


def coco_oks(pred: np.ndarray, target: np.ndarray, area: np.ndarray, box: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """(P, G) OKS as pycocotools computes it, from keypoints (P, K, 2) and (G, K, 3)."""
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType="keypoints")
    judge.params = SimpleNamespace(kpt_oks_sigmas=sigmas, maxDets=[100])
    ones = np.ones((len(pred), pred.shape[1], 1))
    dets = [
        {"keypoints": row.ravel().tolist(), "score": -i} for i, row in enumerate(np.concatenate((pred, ones), 2))
    ]  # descending scores keep the order
    gts = [
        {"keypoints": row.ravel().tolist(), "area": a, "bbox": b}
        for row, a, b in zip(target, area.tolist(), box.tolist(), strict=True)
    ]
    judge._dts, judge._gts = {(1, 1): dets}, {(1, 1): gts}
    return judge.computeOks(1, 1)


@pytest.mark.parametrize("keypoints", [17, 5, 21])
def test_equals_pycocotools(keypoints: int) -> None:
    """Loss, assigner and metric must mean by OKS what the official evaluation means, custom sigmas included."""
    rng = np.random.default_rng(keypoints)
    sigmas = sigmas_for(17) if keypoints == 17 else sigmas_for(keypoints, rng.uniform(0.02, 0.2, keypoints))
    for _ in range(20):
        n = int(rng.integers(1, 7))
        low = rng.uniform(0, 300, (n, 1, 2))
        side = rng.uniform(10, 300, (n, 1, 2))
        xy = low + rng.uniform(0, 1, (n, keypoints, 2)) * side
        vis = rng.integers(0, 3, (n, keypoints, 1))
        vis[:, 0] = 2  # at least one labelled: pycocotools judges the others by their box
        target = np.concatenate((xy, vis), 2)
        pred = xy + rng.normal(0, 1, xy.shape) * side * rng.choice([0.01, 0.1])
        area = side.prod(2).ravel() * 0.6
        wanted = coco_oks(pred, target, area, np.concatenate((low, side), 2)[:, 0], sigmas.double().numpy())
        ours = oks(torch.from_numpy(pred)[:, None], torch.from_numpy(target)[None], torch.from_numpy(area), sigmas.double())
        assert np.abs(wanted - ours.numpy()).max() < 1e-6
        assert wanted.max() > 0.1  # the comparison is not one of zeros


def test_area_rule() -> None:
    """The area decides how strict OKS is: a share of the box, never near zero."""
    box = torch.tensor([[10.0, 20.0, 110.0, 60.0]] * 3)
    assert object_area(box).tolist() == pytest.approx([BOX_FILL * 4000] * 3)
    thin = torch.tensor([[0.0, 0.0, 100.0, 1.0], [0.0, 0.0, 1.0, 100.0]])  # a line of keypoints
    assert object_area(thin).tolist() == pytest.approx([BOX_FILL * 100 * 100 * MIN_ASPECT] * 2)
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 3.0]])  # one keypoint; corners the wrong way round
    assert object_area(point).tolist() == [MIN_AREA, MIN_AREA]


def test_sigmas() -> None:
    """COCO's for 17 keypoints, one value elsewhere whatever K is, the user's own in any container."""
    assert sigmas_for(17).tolist() == pytest.approx(list(COCO_SIGMAS))
    assert sigmas_for(4).tolist() == pytest.approx([DEFAULT_SIGMA] * 4) and sigmas_for(133)[7] == sigmas_for(2)[1]
    own = [0.1, 0.2, 0.3]
    for custom in (own, tuple(own), np.array(own), torch.tensor(own, dtype=torch.float64)):
        got = sigmas_for(3, custom)
        assert got.dtype == torch.float32 and got.tolist() == pytest.approx(own)
    assert sigmas_for(17, [0.05] * 17).tolist() == pytest.approx([0.05] * 17)  # also where COCO's would fit


def test_sigmas_are_described_in_pixels() -> None:
    """The line says what they are, whose they are, and how far off a keypoint may be: 2 sigma sqrt(0.53 * 80 * 160)."""
    reach = 2 * DEFAULT_SIGMA * math.sqrt(BOX_FILL * 80 * 160)
    said = describe_sigmas(5)
    assert "0.070 for 5 keypoints" in said and "kpt_oks_sigmas" in said and f"{reach:.0f} px off" in said
    assert "0.050" in describe_sigmas(5, [0.05] * 5) and "of the data YAML" in describe_sigmas(5, [0.05] * 5)
    assert "0.025 to 0.107" in describe_sigmas(17) and "COCO's" in describe_sigmas(17)


def test_tight_sigmas_start_lax_and_arrive() -> None:
    """COCO's and laxer ones are never touched; tighter ones begin at COCO's mean and are the metric's at the end."""
    mean = sum(COCO_SIGMAS) / len(COCO_SIGMAS)
    for sigmas in (sigmas_for(17), sigmas_for(5), torch.full((3,), 0.2)):
        assert all(lax_sigmas(sigmas, p) is sigmas for p in (0.0, 0.3, 1.0))
    tight = torch.tensor([0.01, 0.03])
    assert lax_sigmas(tight, 0.0).mean().item() == pytest.approx(mean)
    assert (lax_sigmas(tight, 0.0) / tight).tolist() == pytest.approx([mean / 0.02] * 2)  # one factor for all
    factors = [(lax_sigmas(tight, p) / tight)[0].item() for p in np.linspace(0, 1, 21)]
    assert factors == sorted(factors, reverse=True) and factors[-1] == 1 and lax_sigmas(tight, TIGHT_FROM) is tight


def test_coco_sigmas_are_pycocotools() -> None:
    """A typing error in the table would be invisible and wrong for ever."""
    from pycocotools.cocoeval import Params

    assert np.allclose(sigmas_for(17).numpy(), Params("keypoints").kpt_oks_sigmas)


@pytest.mark.parametrize("custom", [[0.1] * 16, [0.1] * 18, [], [0.1] * 16 + [0.0], [0.1] * 16 + [float("nan")], [-0.1] * 17])
def test_wrong_sigmas_are_named(custom: list[float]) -> None:
    """Sigmas that do not fit the keypoints stop the run with both numbers and the key to fix."""
    with pytest.raises(ValueError, match="kpt_oks_sigmas must hold 17 ") as caught:
        sigmas_for(17, custom)
    assert f"got {len(custom)}" in str(caught.value)


def test_kernel_becomes_exp_as_the_tail_grows() -> None:
    """The annealed kernel must end at OKS, or assignment and metric would part ways."""
    error = torch.linspace(0, 12, 200, dtype=torch.float64)
    wanted = torch.exp(-error)
    gaps = [(kernel(error, t) - wanted).abs().max().item() for t in (1.0, 8.0, 64.0, 1e4)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-4
    assert torch.equal(kernel(error), wanted)
    assert kernel(torch.tensor(3.0), 1.0).item() == pytest.approx(0.25)  # (1 + 3/1)^-1
    assert kernel(torch.tensor(4.0), 2.0).item() == pytest.approx(1 / 9)  # (1 + 4/2)^-2


@pytest.mark.parametrize("tail", [1.0, 4.0])
def test_heavy_tail_ranks_where_exp_underflows(tail: float) -> None:
    """An untrained network is hundreds of tolerances off; candidates there must still be told apart."""
    error = torch.tensor([200.0, 1e3, 1e4, 1e6])
    assert kernel(error).max() == 0  # exp gives up
    far = kernel(error, tail)
    assert (far > 0).all() and (far.diff() < 0).all()


def test_kernel_of_zero_is_one() -> None:
    """A perfect keypoint scores 1 under every tail."""
    zero = torch.zeros(3)
    assert all(kernel(zero, t).tolist() == [1, 1, 1] for t in (0.5, 1.0, 8.0, float("inf")))


def test_mean_over_labelled() -> None:
    """Unlabelled keypoints neither raise nor lower a person's value."""
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 5.0, 5.0]])
    labelled = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_over_labelled(values, labelled).tolist() == [2.0, 0.0]
