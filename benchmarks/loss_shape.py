"""Loss and gradient of one joint against its distance, for small, medium and large persons: python benchmarks/loss_shape.py

The smooth OKS loss is drawn with the spread that minimises it at each distance (what training converges to) and with a
spread of one tolerance, beside the stock loss 1 - exp(-e). Writes results/loss_shape.png and a table.
"""

from __future__ import annotations

import math

import common
import numpy as np
import torch

from erpose_yolo.losses import MIN_LOG_SPREAD, plain_oks_loss, smooth_oks_loss

PERSONS = {"small, 24 px": 24.0, "medium, 64 px": 64.0, "large, 256 px": 256.0}  # square root of the area
SIGMA = 0.072  # an elbow, the middle of COCO's sigmas


def curve(loss: str, distance: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Loss, and its derivative by the distance in 1/px."""
    d = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
    error = (d / (scale * 2 * SIGMA)).square() / 2
    if loss == "stock":
        value = plain_oks_loss(error, torch.zeros_like(error))
    else:
        spreads = torch.linspace(MIN_LOG_SPREAD, 5, 400, dtype=torch.float64)[:, None]
        table = smooth_oks_loss(error.detach(), spreads.expand(-1, len(d)))
        one = math.log(math.expm1(-MIN_LOG_SPREAD)) + MIN_LOG_SPREAD  # raw output that means a spread of one tolerance
        best = spreads[table.argmin(0), 0] if loss == "smooth, spread fitted" else torch.full_like(d, one)
        value = smooth_oks_loss(error, best.detach())
    (slope,) = torch.autograd.grad(value.sum(), d)
    return value.detach().numpy(), slope.numpy()


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    distance = np.geomspace(0.05, 500, 300)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex=True)
    rows, record = [], {}
    for column, (person, scale) in enumerate(PERSONS.items()):
        for loss, style in (("stock", "C1"), ("smooth, one tolerance", "C0:"), ("smooth, spread fitted", "C0")):
            value, slope = curve(loss, distance, scale)
            axes[0, column].plot(distance, value - value[0], style, label=loss)
            axes[1, column].plot(distance, np.abs(slope) + 1e-12, style, label=loss)
            picked = [float(slope[np.abs(distance - d).argmin()]) for d in (0.5, 5, 50, 500)]
            record[f"{person}: {loss}"] = picked
            rows.append([person, loss, *(f"{p:.2g}" for p in picked)])
        axes[0, column].set(xscale="log", title=person, ylabel="loss above its value at the joint")
        axes[1, column].set(xscale="log", yscale="log", xlabel="distance, px", ylabel="|gradient|, 1/px", ylim=(1e-6, 20))
        axes[1, column].axvline(scale * 2 * SIGMA, color="grey", lw=0.8)
    axes[0, 0].legend()
    figure.suptitle("One joint (sigma 0.072); grey line: one OKS tolerance")
    figure.tight_layout()
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / "loss_shape.png", dpi=80)
    header = ["person", "loss", *(f"gradient at {d} px" for d in (0.5, 5, 50, 500))]
    common.write("loss_shape", {"gradients": record}, common.markdown(header, rows))


if __name__ == "__main__":
    main()
