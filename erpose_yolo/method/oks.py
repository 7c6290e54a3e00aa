"""Object Keypoint Similarity: sigmas, the area rule, the error in tolerances and the kernels built on it.

Every other module takes its OKS from here, so that loss, assigner and metric cannot drift apart.

Shapes: N pairs of poses, K keypoints. Coordinates are pixels of the network input, x to the right and y down, with
(0, 0) the top left corner of the top left pixel (YOLO labels times image size).

Formula (COCO keypoint evaluation, https://cocodataset.org/#keypoints-eval, as computed by pycocotools):
    e_k = |p_k - g_k|^2 / (2 * A * (2 * sigma_k)^2)        OKS = sum_k [v_k > 0] exp(-e_k) / sum_k [v_k > 0]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erpose_yolo.method.sigmas import COCO_SIGMAS, DEFAULT_SIGMA

# Share of the training after which the losses use the sigmas of the metric (lax_sigmas).
TIGHT_FROM = 0.6

# Share of a person's box that its segment covers, the figure that CrowdPose's evaluation and Ultralytics use where no
# segment is at hand (xtcocotools cocoeval).
BOX_FILL = 0.53

# A lone keypoint or keypoints on one line span no area; the box of such a person is widened to this share of its long side.
MIN_ASPECT = 0.25

# Least area in square pixels: keeps the tolerance of a one-keypoint person near a pixel instead of zero.
MIN_AREA = 16.0


def sigmas_for(num_keypoints: int, custom: Sequence[float] | Tensor | None = None) -> Tensor:
    """Return the OKS sigmas of a data set.

    Args:
        num_keypoints: K.
        custom: the data set's own ``kpt_oks_sigmas``, or None for COCO's where K is 17 and DEFAULT_SIGMA elsewhere. D and
            the type of ``kpt_shape`` do not matter (Ultralytics takes COCO's for the list [17, 3] alone).

    Returns:
        Float32 tensor (K,).

    Raises:
        ValueError: custom sigmas are not K positive finite numbers.
    """
    if custom is None:
        return torch.tensor(COCO_SIGMAS) if num_keypoints == len(COCO_SIGMAS) else torch.full((num_keypoints,), DEFAULT_SIGMA)
    sigmas = torch.as_tensor(custom, dtype=torch.float32).flatten().cpu()
    if len(sigmas) != num_keypoints or not bool((sigmas > 0).all()) or not bool(sigmas.isfinite().all()):
        raise ValueError(
            f"kpt_oks_sigmas must hold {num_keypoints} positive numbers, one per keypoint of kpt_shape, "
            f"got {len(sigmas)}: {sigmas.tolist()}. Fix kpt_oks_sigmas in the data YAML."
        )
    return sigmas


def describe_sigmas(num_keypoints: int, custom: Sequence[float] | Tensor | None = None) -> str:
    """One line on the sigmas of a data set: what they are, where they come from and what they mean in pixels.

    Args:
        num_keypoints: K.
        custom: see :func:`sigmas_for`.
    """
    sigmas = sigmas_for(num_keypoints, custom)
    width, height = 80, 160
    reach = tolerance(object_area(torch.tensor([0.0, 0.0, width, height])), sigmas)

    def span(values: Tensor, digits: int) -> str:
        low, high = (f"{float(v):.{digits}f}" for v in (values.min(), values.max()))
        return low if low == high else f"{low} to {high}"

    if custom is not None:
        source = "kpt_oks_sigmas of the data YAML"
    elif num_keypoints == len(COCO_SIGMAS):
        source = "COCO's"
    else:
        source = "the default; kpt_oks_sigmas in the data YAML sets others"
    return (
        f"OKS sigmas: {span(sigmas, 3)} for {num_keypoints} keypoints ({source}). On a person of {width} x {height} px, a keypoint "
        f"that is {span(reach, 0)} px off scores 0.61."
    )


def lax_sigmas(sigmas: Tensor, progress: float) -> Tensor:
    """Sigmas that a training uses for its losses and its assignment: lax at the start where the data set's are tight.

    Under tight sigmas the OKS of every candidate of an untrained head is zero, so that nothing ranks them and scores
    learn nothing. All sigmas are therefore multiplied by one factor, which brings their mean to COCO's at first and falls
    to 1 geometrically at TIGHT_FROM of the training. Sigmas whose mean is COCO's or more are returned as they are. Metrics
    never use this.

    Args:
        sigmas: (K,).
        progress: share of the training that is over, in [0, 1].
    """
    start = sum(COCO_SIGMAS) / len(COCO_SIGMAS) / float(sigmas.mean())
    if start <= 1 + 1e-6 or progress >= TIGHT_FROM:  # COCO's own mean comes out of float32 arithmetic
        return sigmas
    factor: float = start ** (1 - progress / TIGHT_FROM)
    return sigmas * factor


def object_area(box: Tensor) -> Tensor:
    """The area rule: BOX_FILL of the box.

    A box without keypoints' annotation is the caller's business: derive it from the keypoints (``boxes.derive_boxes``).

    Args:
        box: (..., 4) corners x1 y1 x2 y2 in pixels.

    Returns:
        (...) area A in square pixels, at least MIN_AREA.
    """
    side = (box[..., 2:] - box[..., :2]).clamp(min=0)
    side = torch.maximum(side, MIN_ASPECT * side.amax(-1, keepdim=True))
    return (BOX_FILL * side.prod(-1)).clamp(min=MIN_AREA)


def tolerance(area: Tensor, sigmas: Tensor) -> Tensor:
    """Distance in pixels at which a keypoint's OKS falls to exp(-1/2): sqrt(A) * 2 sigma.

    Args:
        area: (...) object area in square pixels.
        sigmas: (K,).

    Returns:
        (..., K) pixels.
    """
    return area.sqrt()[..., None] * (2 * sigmas)


def oks_error(pred: Tensor, target: Tensor, area: Tensor, sigmas: Tensor) -> Tensor:
    """Squared distance in tolerances, halved: the e_k of the OKS formula.

    Args:
        pred: (..., K, 2) pixels.
        target: (..., K, 2 or 3) pixels; a third column is not read.
        area: (...) object area in square pixels.
        sigmas: (K,).

    Returns:
        (..., K), zero where keypoints coincide.
    """
    offset = (pred - target[..., :2]) / tolerance(area, sigmas)[..., None]
    return offset.square().sum(-1) / 2


def kernel(error: Tensor, dof: float = float("inf")) -> Tensor:
    """Similarity of one keypoint: (1 + e/t)^(-t), which is exp(-e) as its degrees of freedom t grow.

    exp(-e) underflows to zero a few tolerances away, where every candidate of an untrained network lies; the rational
    form (a Student-t profile) still ranks them.

    Args:
        error: e_k, any shape.
        dof: t > 0; infinity gives OKS itself.
    """
    if dof == float("inf"):
        return torch.exp(-error)
    return torch.exp(-dof * torch.log1p(error / dof))


def mean_over_labelled(values: Tensor, labelled: Tensor) -> Tensor:
    """Mean of (..., K) values over the labelled keypoints, zero where none is labelled."""
    weight = labelled.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def oks(pred: Tensor, target: Tensor, area: Tensor, sigmas: Tensor) -> Tensor:
    """OKS of aligned pairs of poses.

    Args:
        pred: (..., K, 2) pixels.
        target: (..., K, 3) pixels and visibility; keypoints with visibility 0 do not count.
        area: (...) object area of the target in square pixels.
        sigmas: (K,).

    Returns:
        (...) in [0, 1]; 0 for a target without labelled keypoints.
    """
    return mean_over_labelled(kernel(oks_error(pred, target, area, sigmas)), target[..., 2] > 0)
