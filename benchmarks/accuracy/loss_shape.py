"""Loss and gradient of one keypoint against its distance, for small, medium and large persons.

    python -m benchmarks.accuracy.loss_shape        # writes results/loss_shape.png

The smooth OKS loss is drawn with the spread that minimises it at each distance, to which training converges. Beside it is the
plain OKS loss 1 - exp(-e).
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import common
from erpose_yolo.method.losses import MIN_LOG_SPREAD, smooth_oks_loss

PERSONS = {"small, 24 px": 24.0, "medium, 64 px": 64.0, "large, 256 px": 256.0}  # square root of the area
SIGMA = 0.072  # an elbow, the middle of COCO's sigmas


def curve(plain: bool, distance: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Plain or smooth loss at distances in px of a person, and its derivative by the distance in 1/px."""
    d = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
    error = (d / (scale * 2 * SIGMA)).square() / 2
    if plain:
        value = 1 - torch.exp(-error)
    else:
        spreads = torch.linspace(MIN_LOG_SPREAD, 5, 400, dtype=torch.float64)[:, None]
        best = spreads[smooth_oks_loss(error.detach(), spreads.expand(-1, len(d))).argmin(0), 0]
        value = smooth_oks_loss(error, best)
    (slope,) = torch.autograd.grad(value.sum(), d)
    return value.detach().numpy(), slope.numpy()


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    common.parser(__doc__).parse_args()
    distance = np.geomspace(0.05, 500, 300)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex=True)
    for column, (person, scale) in enumerate(PERSONS.items()):
        for label, plain, style in (("plain OKS loss", True, "C1"), ("smooth OKS loss", False, "C0")):
            value, slope = curve(plain, distance, scale)
            axes[0, column].plot(distance, value - value[0], style, label=label)
            axes[1, column].plot(distance, np.abs(slope) + 1e-12, style, label=label)
        axes[0, column].set(xscale="log", title=person, ylabel="loss above its value at the keypoint")
        axes[1, column].set(xscale="log", yscale="log", xlabel="distance, px", ylabel="|gradient|, 1/px", ylim=(1e-6, 20))
        axes[1, column].axvline(scale * 2 * SIGMA, color="grey", lw=0.8)
    axes[0, 0].legend()
    figure.suptitle("One keypoint (sigma 0.072); grey line: one OKS tolerance")
    figure.tight_layout()
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / "loss_shape.png", dpi=80)


if __name__ == "__main__":
    main()
