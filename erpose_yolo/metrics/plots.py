"""Images of an evaluation: precision-recall, calibration of the score, crowding.

matplotlib is imported when an image is drawn, and its Agg canvas is used directly: no window system, no global state
of pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo.files import written_whole
from erpose_yolo.metrics.matching import OKS_THRESHOLDS, RECALL_LEVELS, Curves, Matches

_GRID = {"color": "0.9", "linewidth": 0.8}
_BLUE, _ORANGE, _GREEN = "#3b6fb6", "#d9822b", "#3a9a5c"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(axes: Any, title: str, x: str, y: str) -> Any:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(**_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _save(figure: Any, file: Path) -> Path:
    with written_whole(file) as part:
        figure.savefig(part, format=file.suffix[1:])
    return file


def plot_precision_recall(curves: Curves, file: Path) -> Path:
    """Precision against recall at OKS .50, .75 and .90 and their mean over .50:.95, averaged over classes.

    Args:
        curves: of :func:`matching.accumulate`, all areas first.
        file: image to write.
    """
    figure = _figure(5, 4)
    axes = _axes(figure.add_subplot(), "Precision and recall", "recall", "precision")
    precision = curves.precision[..., 0]  # (T, R, C)
    defined = precision[0, 0] > -1
    precision = precision[..., defined].mean(-1) if defined.any() else np.zeros(precision.shape[:2])
    for t, colour in ((0, _GREEN), (5, _BLUE), (8, _ORANGE)):
        label = f"OKS {OKS_THRESHOLDS[t]:.2f}, AP {precision[t].mean():.3f}"
        axes.plot(RECALL_LEVELS, precision[t], color=colour, linewidth=1.4, label=label)
    mean = precision.mean(0)
    axes.plot(RECALL_LEVELS, mean, color="black", linewidth=2, label=f"OKS 0.50:0.95, AP {mean.mean():.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return _save(figure, file)


def plot_calibration(matches: Sequence[Matches], file: Path, bins: int = 10) -> Path:
    """Score against OKS: does a higher score mean a better pose?

    Per score bin, the mean and the quartiles of the OKS of its predictions with the person that fits best; predictions
    that count neither way (matched with ignored persons) are left out. Below, how many predictions a bin holds.

    Args:
        matches: of the deployed predictions; their best OKS is used, not their match.
        file: image to write.
        bins: of the score.
    """
    score = np.concatenate([m.score[~(m.void & (m.match >= 0))[0, 0]] for m in matches])
    oks = np.concatenate([m.best_oks[~(m.void & (m.match >= 0))[0, 0]] for m in matches])
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.digitize(score, edges) - 1, 0, bins - 1)
    number = np.bincount(bin_of, minlength=bins)
    used = np.flatnonzero(number)
    middle = np.array([score[bin_of == b].mean() for b in used])
    mean = np.array([oks[bin_of == b].mean() for b in used])
    low, high = (np.array([np.quantile(oks[bin_of == b], q) for b in used]) for q in (0.25, 0.75))
    gap = float((np.abs(mean - middle) * number[used]).sum() / max(len(score), 1))

    figure = _figure(5, 5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _axes(top, f"Score and OKS: mean gap {gap:.3f}", "", "OKS with the person that fits best")
    top.plot((0, 1), (0, 1), color="0.6", linestyle="--", linewidth=1, label="score = OKS")
    top.fill_between(middle, low, high, color=_BLUE, alpha=0.18, linewidth=0, label="quartiles")
    top.plot(middle, mean, color=_BLUE, marker="o", markersize=4, label="mean")
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.legend(fontsize=8, frameon=False, loc="upper left")
    _axes(bottom, "", "score", "predictions")
    bottom.bar(edges[:-1], number, width=1 / bins * 0.92, align="edge", color="0.6")
    if number.max(initial=0) > 100:
        bottom.set_yscale("log")
    return _save(figure, file)


def plot_crowding(rows: Sequence[dict[str, float]], file: Path, score: float) -> Path:
    """Duplicates and misses against the crowd index.

    Args:
        rows: of :func:`crowding.against_index`.
        file: image to write.
        score: the threshold of the predictions, for the title.
    """
    rows = [row for row in rows if row["persons"]]
    place = np.arange(len(rows))
    figure = _figure(5.5, 4)
    axes = _axes(figure.add_subplot(), f"What crowds cost (score from {score} on)", "crowd index", "per labelled person")
    width = 0.38
    kinds = (("duplicate_rate", "duplicates", _ORANGE, -width / 2), ("miss_rate", "misses", _BLUE, width / 2))
    for key, label, colour, shift in kinds:
        values = [row[key] for row in rows]
        bars = axes.bar(place + shift, values, width, color=colour, label=label)
        axes.bar_label(bars, [f"{v:.2g}" for v in values], fontsize=7, padding=1)
    labels = [f"{row['low']:g} to {row['high']:g}\n{row['persons']:,} persons" for row in rows]
    axes.set_xticks(place, labels, fontsize=7)
    axes.grid(False, axis="x")
    top = max((max(row["duplicate_rate"], row["miss_rate"]) for row in rows), default=0)
    axes.set_ylim(0, max(top * 1.2, 0.05))
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    return _save(figure, file)
