"""Two models judged on the same photos: what is kept of a run, and intervals of differences by the bootstrap over photos.

What is kept per photo is enough for AP to the last bit and small enough for the repository: predictions in falling order, each
with its photo and two bits per OKS threshold. Photos are drawn with replacement, the same ones for both models, and every
figure is computed anew. The interval holds 95 % of the differences; it says how far the photos are to be trusted, and nothing
about seeds, whose figures are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from erpose_yolo.metrics.crowding import Crowding, measure_crowding
from erpose_yolo.metrics.crowdpose import with_crowd_index
from erpose_yolo.metrics.matching import AREA_RANGES, OKS_THRESHOLDS, RECALL_LEVELS, match
from erpose_yolo.metrics.predictions import Predictions
from erpose_yolo.metrics.truth import GroundTruth

CROWDED = 0.2  # crowd index from which on a photo is crowded
SHOWN = 1.0  # predictions per labelled person at which misses and duplicates are counted, equally many for all models
DRAWS = 1000
PARTNERS = dict(zip(common.PEERS, ("erpose8-n", "erpose11-n", "erpose-n")))  # of ours, with a peer's backbone and neck
Kept = dict[str, np.ndarray]


def at_number(truth: GroundTruth, predictions: Predictions, sigmas: np.ndarray, share: float) -> Crowding:
    """Misses and duplicates where the best ``share`` predictions per labelled person of the whole split are shown."""
    falling = np.sort(predictions.score)[::-1]
    number = min(round(share * int((~truth.ignore).sum())), len(falling))
    return measure_crowding(truth, predictions, sigmas, float(falling[number - 1]) if number else 1.0)


def keep(truth: GroundTruth, found: Predictions, sigmas: np.ndarray) -> Kept:
    """What the bootstrap needs of predictions.

    Args:
        truth: I photos, one class.
        found: M predictions, the best 20 of a photo.
        sigmas: (K,).

    Returns:
        ``photo`` (M',) of the predictions in falling order of their score, and ``right`` and ``void`` (M',), one bit per OKS
        threshold; ``persons``, ``missed``, ``duplicates`` and ``index`` (I,), the last the crowd index.
    """
    (m,) = match(truth, found, sigmas, area_ranges=AREA_RANGES[:1])
    order = np.argsort(-m.score, kind="mergesort")
    bit = 1 << np.arange(len(OKS_THRESHOLDS))
    void, right = m.void[0].T @ bit, ((m.match[0] >= 0) & ~m.void[0]).T @ bit
    crowd = at_number(truth, found, sigmas, SHOWN)
    return {
        "photo": m.image_of_prediction[order].astype(np.uint16),
        "right": right[order].astype(np.uint16),
        "void": void[order].astype(np.uint16),
        "persons": crowd.persons.astype(np.uint16),
        "missed": crowd.missed.astype(np.uint16),
        "duplicates": crowd.duplicates.astype(np.uint16),
        "index": with_crowd_index(truth)[0].astype(np.float32),
    }


def figures(kept: Kept, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Figures of each draw of photos.

    Args:
        kept: of :func:`keep`.
        draws: (B, I) how often each photo is drawn; None for each photo once.

    Returns:
        "AP", "crowded" (AP of crowded photos), "misses" and "duplicates" (per labelled person), each (B,).
    """
    weights = np.ones((1, len(kept["persons"]))) if draws is None else draws
    persons = np.maximum(weights @ kept["persons"], 1)
    return {
        "AP": average_precision(kept, weights),
        "crowded": average_precision(kept, weights * (kept["index"] >= CROWDED)),
        "misses": weights @ kept["missed"] / persons,
        "duplicates": weights @ kept["duplicates"] / persons,
    }


def average_precision(kept: Kept, draws: np.ndarray) -> np.ndarray:
    """COCO's AP (B,) where photo i counts ``draws[b, i]`` times, -1 without persons; its rules are those of metrics.matching."""
    out = np.zeros(len(draws))
    persons = draws @ kept["persons"].astype(float)
    for t in range(len(OKS_THRESHOLDS)):
        hit, void = kept["right"] >> t & 1, kept["void"] >> t & 1
        ends = np.flatnonzero(hit)  # precision falls in between: no other place can be the best of those to the right
        right, wrong = (draws @ up_to(ends, chosen, kept) for chosen in (hit, (1 - hit) * (1 - void)))
        share = right / (wrong + right + np.spacing(1))
        share = np.maximum.accumulate(share[:, ::-1], 1)[:, ::-1]
        level = right / np.maximum(persons, 1)[:, None]
        for b in range(len(draws)):
            at = np.searchsorted(level[b], RECALL_LEVELS, side="left")
            out[b] += share[b, at[at < len(ends)]].sum() / len(RECALL_LEVELS)
    return np.where(persons > 0, out / len(OKS_THRESHOLDS), -1)


def up_to(ends: np.ndarray, chosen: np.ndarray, kept: Kept) -> np.ndarray:
    """How many chosen predictions (M',) of each photo there are up to each end, (I, ends)."""
    place = np.flatnonzero(chosen)
    column = np.searchsorted(ends, place)
    inside = column < len(ends)
    table = np.zeros((len(kept["persons"]), len(ends)))
    np.add.at(table, (kept["photo"][place[inside]], column[inside]), 1)
    return np.cumsum(table, 1)


def draw(photos: int, seed: int = 0) -> np.ndarray:
    """(DRAWS, I) how often each photo is drawn."""
    return np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), DRAWS).astype(float)


def difference(ours: Sequence[Kept], theirs: Sequence[Kept]) -> dict[str, list[float]]:
    """What ours have more of each figure: the difference, and the ends of its 95 % interval.

    Args:
        ours, theirs: one per seed, all of the same photos.

    Raises:
        ValueError: of other photos.
    """
    persons = ours[0]["persons"]
    if any(not np.array_equal(kept["persons"], persons) for kept in (*ours, *theirs)):
        raise ValueError("The runs were judged on other photos. Fix: judge all of them on one data set.")
    draws = draw(len(persons))

    def mean(of: Sequence[Kept], of_draws: np.ndarray | None) -> dict[str, np.ndarray]:
        each = [figures(kept, of_draws) for kept in of]
        return {name: np.mean([f[name] for f in each], 0) for name in each[0]}

    (whole, spread), (their_whole, their_spread) = ((mean(of, None), mean(of, draws)) for of in (ours, theirs))
    out = {}
    for name in whole:
        ends = np.quantile(spread[name] - their_spread[name], (0.025, 0.975))
        out[name] = [round(float(v), 5) for v in (whole[name][0] - their_whole[name][0], *ends)]
    return out


def write(file: Path, kept: dict[str, Kept]) -> None:
    """All that is kept of a run, one :class:`Kept` per name of a judgement, in one compressed file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **{f"{name}/{key}": values for name, one in kept.items() for key, values in one.items()})


def read(file: Path) -> dict[str, Kept]:
    """What :func:`write` wrote."""
    out: dict[str, Kept] = {}
    with np.load(file) as found:
        for full in found.files:
            name, _, key = full.rpartition("/")
            out.setdefault(name, {})[key] = found[full]
    return out


def table(record: common.Record) -> str:
    """One row per model and mode, in per cent, means over seeds; in brackets what its partner has more, with its interval."""
    groups, rows = common.grouped(record["runs"]), []
    first, *others = record["setup"]["sizes"]
    for name, of in groups.items():
        more = record.get("differences", {}).get(name, {})

        def cell(judged: str, key: str, figure: str, of: list[common.Record] = of, more: common.Record = more) -> str:
            found = [r["judged"][judged] for r in of if judged in r["judged"]]
            values = [v["equal"].get(key, v.get(key)) for v in found]
            if not values or min(values) < 0:  # not judged, or nobody to be found
                return "-"
            text = common.mean_range(values)
            by = more.get(judged, {}).get(figure)
            return text if by is None else f"{text} [{by[0] * 100:+.1f}: {by[1] * 100:.1f} to {by[2] * 100:.1f}]"

        early = [f"{np.mean([r['curve'][i]['AP'] for r in of]) * 100:.1f}" for i in (1, 2)]
        label = f": {of[0]['label']}" if of[0].get("label") else ""
        row = [of[0]["model"] + of[0].get("mode", "") + label, len(of), *early, cell(str(first), "AP", "AP")]
        row += [f"{np.mean([r['curve'][-1][key] for r in of]) * 100:.1f}" for key in ("AP50", "AP75")]
        row += [cell(str(size), "AP", "AP") for size in others]
        row += [cell(str(first), key, key) for key in ("crowded", "misses", "duplicates")]
        row += [cell("crowds", "AP", "AP")] * any("crowds" in r["judged"] for r in record["runs"])
        rows.append([*row, f"{of[0]['lr']:g}", f"{np.mean([r['seconds per 1,000'] for r in of]):.0f}"])
    header = ["model", "seeds", "AP at 25%", "50%", f"AP, {first} px", "AP50", "AP75", *(f"AP, {size} px" for size in others)]
    header += ["AP of crowded photos", "misses", "duplicates"]
    header += ["AP, crowds"] * any("crowds" in r["judged"] for r in record["runs"])
    return common.markdown([*header, "learning rate", "s / 1,000 images"], rows)


def partner(run: common.Record, runs: list[common.Record]) -> list[common.Record]:
    """Runs that a run's row is compared with: the model without the first of its labels, of peers ours with the same backbone."""
    model, label = PARTNERS.get(run["model"], run["model"]), run.get("label", "")
    base = label.partition(", ")[2] if model == run["model"] else ""
    return [r for r in runs if r["model"] == model and r.get("label", "") == base] if model != run["model"] or label else []


def differences(runs: list[common.Record]) -> dict[str, Any]:
    """What the partner of each row has more, by row, judgement and figure (:func:`difference`)."""
    out: dict[str, Any] = {}
    for name, of in common.grouped(runs).items():
        others = partner(of[0], runs)
        seeds = {r["seed"] for r in of} & {r["seed"] for r in others}
        pairs = [[read(common.RESULTS / r["kept"]) for r in some if r["seed"] in seeds] for some in (others, of)]
        if seeds:
            shared = [key for key in pairs[0][0] if all(key in kept for some in pairs for kept in some)]
            out[name] = {key: difference(*([kept[key] for kept in some] for some in pairs)) for key in shared}
    return out
