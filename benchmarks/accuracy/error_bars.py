"""Fit the error bars of weights on training photos, and judge them on photos that nobody has trained on.

    python -m benchmarks.accuracy.error_bars fit --weights best.pt --data coco-people.yaml --out calibrated.pt
    python -m benchmarks.accuracy.error_bars judge --weights calibrated.pt --data coco-people.yaml

``fit`` is ``ERPose.calibrate`` on a sample of the training split, and writes the weights with their factors. ``judge`` counts how
many labelled keypoints of the val split lie within one and two error bars, compares the OKS that error bars let expect with the
true one, and draws the reliability of each keypoint: the share of its labels within z error bars against the share that the law of
the loss says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import common
from erpose_yolo import ERPose
from erpose_yolo.data.skeletons import names_of
from erpose_yolo.method.errorbars import within
from erpose_yolo.metrics.errorbars import Errors, calibration_error

NAME = "error-bars"
PLOT = common.RESULTS / f"{NAME}.png"


def figures(errors: Errors, names: list[str]) -> common.Record:
    """Shares of labelled keypoints within one and two error bars, for all and each, and expected against true OKS."""

    def shares(ratio: np.ndarray) -> list[float]:
        return [round(float((ratio <= n).mean()), 4) for n in (1, 2)]

    each = {name: shares(errors.ratio[errors.labelled[:, k], k]) for k, name in enumerate(names) if errors.labelled[:, k].any()}
    return {
        "people": len(errors.true),
        "keypoints": int(errors.labelled.sum()),
        "law": [round(within(n), 4) for n in (1, 2)],
        "within": shares(errors.ratio[errors.labelled]),
        "each": each,
        "oks": {"expected": round(float(errors.expected.mean()), 4), "true": round(float(errors.true.mean()), 4)},
        "calibration_error": round(calibration_error(errors.expected, errors.true), 4),
    }


def summary(record: common.Record) -> str:
    """What the page of all benchmarks says."""
    one, two = (f"{share * 100:.0f}" for share in record["within"])
    law = " and ".join(f"{share * 100:.0f}" for share in record["law"])
    oks = record["oks"]
    return (
        f"{one} and {two} % of {record['keypoints']:,} labelled keypoints within 1 and 2 error bars (the law: {law} %); OKS "
        f"{oks['expected']:.2f} expected, {oks['true']:.2f} true, calibration error {record['calibration_error']:.3f}"
    )


def table(record: common.Record) -> str:
    """One row per keypoint."""
    rows = [["the law", *record["law"]], ["all", *record["within"]], *([name, *both] for name, both in record["each"].items())]
    return common.markdown(["keypoint", "within 1 sigma", "within 2 sigma"], rows) + "\n\n" + summary(record)


def plot(errors: Errors, names: list[str], file: Path) -> None:
    """Save the reliability of each keypoint, a small panel for each, and of expected OKS."""
    import matplotlib.pyplot as plt

    z = np.linspace(0, 4, 41)
    law = [within(float(n)) for n in z]
    columns = 6
    rows = -(-(len(names) + 1) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * columns, 1.6 * rows), sharex=True, sharey=True, constrained_layout=True
    )
    for ax, k in zip(axes.flat, range(len(names))):
        ratio = errors.ratio[errors.labelled[:, k], k]
        ax.plot([0, 1], [0, 1], color="0.7", lw=1)
        ax.plot(law, [(ratio <= n).mean() if len(ratio) else np.nan for n in z], color="tab:blue", lw=1.5)
        ax.set_title(names[k].replace("_", " "), fontsize=8)
    ax = axes.flat[len(names)]
    place = np.minimum((errors.expected * 10).astype(int), 9)
    some = [place == i for i in range(10) if (place == i).any()]
    ax.plot([0, 1], [0, 1], color="0.7", lw=1)
    sizes = [60 * float(s.mean()) + 2 for s in some]
    ax.scatter([errors.expected[s].mean() for s in some], [errors.true[s].mean() for s in some], s=sizes, color="tab:red")
    ax.set_title("OKS of people", fontsize=8)
    for ax in axes.flat[len(names) + 1 :]:
        ax.set_axis_off()
    figure.supxlabel("expected", fontsize=9)
    figure.supylabel("true", fontsize=9)
    figure.savefig(file, dpi=75)
    plt.close(figure)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("what", choices=("fit", "judge"))
    parser.add_argument("--weights", required=True, help="checkpoint of an ER-Pose model")
    parser.add_argument("--data", required=True, help="data YAML; photos of train are taken to fit, those of val to judge")
    parser.add_argument("--photos", type=int, default=1000, help="to fit on")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="fit: file of the weights with their factors")
    args = parser.parse_args()
    model, options = ERPose(args.weights), {"imgsz": args.imgsz, "device": args.device}
    k = model.model.kpt_shape[0]
    names = names_of(getattr(model.model, "kpt_names", None), k)
    if args.what == "fit":
        model.calibrate(args.data, "train", args.photos, **options)
        print(
            common.markdown(["keypoint", "factor"], [[n, f"{f:.2f}"] for n, f in zip(names, model.model.model[-1].spread_factors)])
        )
        if args.out:
            model.save(args.out)
        return
    errors = model.measure_errors(args.data, "val", **options)
    plot(errors, names, PLOT)
    common.save(NAME, {**figures(errors, names), "weights": Path(args.weights).name, "imgsz": args.imgsz}, table)


if __name__ == "__main__":
    main()
