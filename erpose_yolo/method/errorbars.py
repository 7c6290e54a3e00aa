"""Error bars: from the spread that the smooth OKS loss trains to the standard deviation of a keypoint in pixels.

The loss (losses.smooth_oks_loss) is the negative logarithm of a density. With r the error in tolerances (oks.tolerance) and b the
spread, and u = sqrt(1 + (r/b)^2), that density in the plane is exp(1 - u) / (4 pi b^2). Its moments follow by parts with
r dr = b^2 u du:

    E[r^2] = b^2 e/2 * integral from 1 of (u^3 - u) exp(-u) du = 7 b^2      one axis: sigma = sqrt(7/2) b
    P(r <= R) = 1 - (1 + U)/2 * exp(1 - U),   U = sqrt(1 + (R/b)^2)          within 1, 2, 3 sigma: 49, 86 and 97 %

A round Gaussian has 39, 86 and 99 % there: 2 sigma means the same, the middle is more pointed and the tail is longer.

Shapes: B images, A cells or rows, N poses, K keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from erpose_yolo.method.decode import expected_oks
from erpose_yolo.method.losses import bounded
from erpose_yolo.method.oks import object_area, tolerance

AXIS_STD = math.sqrt(3.5)  # standard deviation along one axis of errors of spread 1
LEAST_ERRORS = 20  # fewer errors of a keypoint than these say nothing about its factor
LEAST_POSES = 10  # fewer poses than these say nothing about their OKS


def within(sigmas: float) -> float:
    """Share of errors that the law of the loss has within a circle of so many standard deviations."""
    u = math.sqrt(1 + (sigmas * AXIS_STD) ** 2)
    return 1 - (1 + u) / 2 * math.exp(1 - u)


def sigma_units(oks_sigmas: Tensor, factors: Sequence[float] | None = None) -> Tensor:
    """Standard deviation (K,) of each keypoint of spread 1 on a person of 1 square pixel.

    Args:
        oks_sigmas: (K,).
        factors: (K,) of :func:`fit_factors`; None for the law as it was trained.
    """
    units = 2 * AXIS_STD * oks_sigmas
    return units if factors is None else units * torch.tensor(factors)


def keypoint_sigma(log_spread: Tensor, boxes: Tensor, units: Tensor) -> Tensor:
    """Standard deviation of each keypoint along one axis.

    Args:
        log_spread: (B, K, A) raw output, log b.
        boxes: (B, 4, A) corners in pixels; the area of the tolerances follows from them.
        units: (K,) of :func:`sigma_units`.

    Returns:
        (B, K, A) pixels.
    """
    size = object_area(boxes.transpose(1, 2).float()).sqrt()[:, None]  # (B, 1, A); half types do not hold areas
    sigma = bounded(log_spread.float()).exp() * size * units.to(size)[:, None]
    return sigma.to(log_spread.dtype)


def spreads(sigma: Tensor, boxes: Tensor, oks_sigmas: Tensor) -> Tensor:
    """The inverse of :func:`keypoint_sigma`: spreads (N, K), in tolerances, from standard deviations.

    Args:
        sigma: (N, K) pixels.
        boxes: (N, 4) corners in pixels.
        oks_sigmas: (K,).
    """
    return sigma / (AXIS_STD * tolerance(object_area(boxes), oks_sigmas))


def pose_oks(spread: Tensor, visibility: Tensor, factor: float = 1.0) -> Tensor:
    """OKS (N,) to be expected of poses (decode.expected_oks).

    Args:
        spread: (N, K) tolerances.
        visibility: (N, K) probabilities.
        factor: of :func:`fit_oks_factor`.
    """
    return expected_oks((factor * spread).log().T[None], visibility.T[None])[0, 0]


def fit_oks_factor(spread: Tensor, visibility: Tensor, true: Tensor) -> float:
    """What spreads must be multiplied by so that the OKS expected of poses is on average the true one.

    Above 1, because few errors are far larger than the law says, and because decode.expected_oks takes a simpler formula.

    Args:
        spread, visibility: see :func:`pose_oks`.
        true: (N,) OKS; 1 is returned for fewer than LEAST_POSES.
    """
    low, high = 0.1, 10.0
    if len(true) < LEAST_POSES:
        return 1.0
    for _ in range(40):  # the expectation falls with the factor
        middle = math.sqrt(low * high)
        if float(pose_oks(spread, visibility, middle).mean()) > float(true.mean()):
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def fit_factors(ratio: Tensor, labelled: Tensor) -> Tensor:
    """What the standard deviation of each keypoint must be multiplied by so that errors are distributed as the law says.

    One factor would bring 49 % of the errors within one standard deviation, another 86 % within two; this is their geometric mean.
    Quantiles, not the likelihood, which the few labels of somebody else or of the other side would decide.

    Args:
        ratio: (N, K) distances between predicted and labelled keypoints, in standard deviations without factors.
        labelled: (N, K) bool.

    Returns:
        (K,); keypoints with fewer than LEAST_ERRORS take the factor of all together, which is 1 where even those are too few.
    """

    def factor(errors: Tensor) -> float:
        return math.sqrt(math.prod(float(errors.quantile(within(n))) / n for n in (1, 2)))

    def sample(errors: Tensor) -> Tensor:
        return errors[:: 1 + len(errors) // 10**6].double()  # torch sorts 16 million at most

    every = ratio[labelled]
    common = factor(sample(every)) if len(every) >= LEAST_ERRORS else 1.0
    columns = [ratio[:, k][labelled[:, k]] for k in range(ratio.shape[1])]
    return torch.tensor([factor(sample(column)) if len(column) >= LEAST_ERRORS else common for column in columns])
