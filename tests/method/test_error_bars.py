"""Error bars follow from the law that the loss trains: its moments, pixels, and factors that are found again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from erpose_yolo.method.errorbars import (
    AXIS_STD,
    LEAST_ERRORS,
    fit_factors,
    fit_oks_factor,
    keypoint_sigma,
    pose_oks,
    sigma_units,
    spreads,
    within,
)
from erpose_yolo.method.losses import bounded, smooth_oks_loss
from erpose_yolo.method.oks import object_area, sigmas_for, tolerance

RADII = torch.linspace(0, 80, 400_001, dtype=torch.float64)


def density(spread: float) -> Tensor:
    """Of errors in the plane at RADII tolerances, times the circumference: from the loss itself, normalised numerically."""
    log_spread = torch.tensor(math.log(spread), dtype=torch.float64)
    value = 2 * math.pi * RADII * torch.exp(-smooth_oks_loss(RADII**2 / 2, log_spread))
    return value / torch.trapezoid(value, RADII)


@pytest.mark.parametrize("spread", [0.2, 1.0, 2.5])
def test_moments_are_those_of_the_loss(spread: float) -> None:
    law = density(spread)
    b = float(bounded(torch.tensor(math.log(spread), dtype=torch.float64)).exp())
    variance = float(torch.trapezoid(law * RADII**2, RADII)) / 2  # of one axis
    assert math.sqrt(variance) == pytest.approx(AXIS_STD * b, rel=1e-4)
    for n in (1.0, 2.0, 3.0):
        inside = RADII <= n * AXIS_STD * b
        assert float(torch.trapezoid(law[inside], RADII[inside])) == pytest.approx(within(n), abs=1e-3)
    assert (round(within(1), 2), round(within(2), 2), round(within(3), 2)) == (0.49, 0.86, 0.97)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels(dtype: torch.dtype) -> None:
    """A person twice as large has error bars twice as wide, in half types, too, where areas overflow."""
    log_spread = torch.tensor([[-1.0, 0.5, -20.0]], dtype=dtype)[..., None].expand(2, 3, 2)
    boxes = torch.tensor([[0.0, 0, 60, 80], [0, 0, 600, 800]], dtype=dtype).T[None].expand(2, 4, 2)
    units = sigma_units(sigmas_for(3, [0.05, 0.1, 0.1]))
    found = keypoint_sigma(log_spread, boxes, units)
    assert found.shape == (2, 3, 2) and found.dtype == dtype and found.isfinite().all()
    reach = tolerance(object_area(torch.tensor([0.0, 0, 60, 80])), sigmas_for(3, [0.05, 0.1, 0.1]))
    wanted = AXIS_STD * bounded(torch.tensor([-1.0, 0.5, -20.0])).exp() * reach
    assert torch.allclose(found[0, :, 0].float(), wanted, rtol=2e-2)
    assert torch.allclose(found[..., 1].float(), 10 * found[..., 0].float(), rtol=2e-2)
    assert torch.equal(sigma_units(sigmas_for(2), [2.0, 0.5]), sigma_units(sigmas_for(2)) * torch.tensor([2.0, 0.5]))


def errors(count: int, factors: Tensor) -> Tensor:
    """(count, K) errors in standard deviations of a model whose error bars lack these factors, drawn from the law."""
    law = density(1.0)
    steps = torch.cumulative_trapezoid(law, RADII)
    uniform = torch.rand(count, len(factors), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = float(bounded(torch.zeros(())).exp())
    return RADII[1:][torch.searchsorted(steps, uniform).clamp(max=len(steps) - 1)] / (AXIS_STD * spread) * factors


def test_factors_are_found_again() -> None:
    factors = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    ratio, labelled = errors(4000, factors), torch.ones(4000, 3, dtype=torch.bool)
    assert torch.allclose(fit_factors(ratio, labelled).double(), factors, rtol=0.05)
    ratio[:200] = 50.0  # labels of somebody else
    assert torch.allclose(fit_factors(ratio, labelled).double(), factors, rtol=0.25)
    labelled[:200] = False  # what is not labelled does not count
    assert torch.allclose(fit_factors(ratio, labelled).double(), factors, rtol=0.05)


def test_the_oks_factor_makes_the_mean_true() -> None:
    """Errors of the law itself, seen by all keypoints: near 1; the same errors with a long tail: above it."""
    reach = errors(4000, torch.ones(17, dtype=torch.float64)) * AXIS_STD  # in spreads
    spread = torch.exp(torch.linspace(-2.5, -1, 4000, dtype=torch.float64))[:, None].expand(-1, 17)
    visibility = torch.rand(4000, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def true(scale: Tensor | float) -> Tensor:
        return torch.exp(-((reach * spread * scale) ** 2) / 2).mean(1)

    plain = fit_oks_factor(spread, visibility, true(1.0))
    assert 1 < plain < 1.15  # the formula of expected_oks is up to 0.026 too large
    tail = torch.where(torch.arange(17) % 8 == 0, 10.0, 1.0)
    longer = fit_oks_factor(spread, visibility, true(tail))
    assert longer > 1.2 * plain
    assert float(pose_oks(spread, visibility, longer).mean()) == pytest.approx(float(true(tail).mean()), abs=1e-4)
    assert fit_oks_factor(spread[:5], visibility[:5], true(tail)[:5]) == 1


def test_spreads_undo_error_bars() -> None:
    log_spread, boxes, sigmas = torch.tensor([[-1.0], [0.5], [-2.0]]), torch.tensor([[0.0, 0, 60, 80]]), sigmas_for(3)
    sigma = keypoint_sigma(log_spread[None], boxes.T[None], sigma_units(sigmas))[0].T
    assert torch.allclose(spreads(sigma, boxes, sigmas), bounded(log_spread).exp().T)


def test_few_errors_say_little() -> None:
    ratio = torch.full((100, 2), 3.0)
    labelled = torch.zeros(100, 2, dtype=torch.bool)
    assert fit_factors(ratio, labelled).tolist() == [1.0, 1.0]
    labelled[:, 0] = True
    labelled[: LEAST_ERRORS - 1, 1] = True
    found = fit_factors(torch.where(labelled, ratio, 99.0), labelled)
    assert found[1] == found[0] != 1.0
