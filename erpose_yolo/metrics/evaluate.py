"""``erpose eval``: one ruler for every pose model that Ultralytics runs, ours and its own, weights and exports.

    erpose eval model=erpose-n.pt data=coco-pose.yaml
    erpose eval model=yolo11n-pose.pt data=crowdpose.yaml split=test imgsz=640 batch=16 device=0
    erpose eval predictions=predictions.json data=coco-pose.yaml

The model is run by its own validator, so its stock figures are those of ``yolo val``, with one rule for OKS sigmas
(metrics/exact.py). Prints pycocotools' table, CrowdPose's where the data set is of that kind, duplicates, misses and
keypoints; saves predictions.json, metrics.json and images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo import catalog
from erpose_yolo.data.skeletons import CROWDPOSE_14, names_of
from erpose_yolo.method.oks import describe_sigmas
from erpose_yolo.metrics import coco, crowding, crowdpose, keypoints, plots
from erpose_yolo.metrics.exact import ExactPose, load_annotations
from erpose_yolo.metrics.matching import accumulate, match
from erpose_yolo.metrics.predictions import Predictions, read_predictions, write_json
from erpose_yolo.metrics.truth import GroundTruth, from_labels
from erpose_yolo.upstream import compat

IMGSZ = 640  # a checkpoint's own would make models incomparable

USAGE = """Usage: erpose eval model=FILE data=DATA.yaml [key=value ...]
       erpose eval predictions=FILE.json data=DATA.yaml [key=value ...]

  model        any pose model that Ultralytics opens: .pt, .yaml (random weights), export
  predictions  a COCO results file, evaluated instead of a model
  data         data YAML; 'annotations: {val: FILE.json}' in it, or annotations/person_keypoints_<split>.json, is the
               truth where there is one, else the labels are
  split        val (default), train or test
  imgsz        long side of the network's input (640, whatever size a checkpoint was trained at; a fixed export has its own)
  batch, conf, nms, iou, max_det, device, rect, half, workers, single_cls ...   as 'yolo val' takes them
  protocol     auto (default), coco or crowdpose
  score        least score for duplicates, misses, calibration and keypoints (0.25)
  reference    True: run pycocotools itself as well and compare
  plots        False: no images
  save_dir     folder for predictions.json, metrics.json and the images (runs/pose/eval)"""


def evaluate(
    model: Any = None,
    data: str | Path = "",
    predictions: str | Path | None = None,
    split: str = "val",
    protocol: str = "auto",
    score: float = crowding.DEPLOYED_SCORE,
    reference: bool = False,
    plots: bool = True,
    save_dir: str | Path | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Evaluate a model or a file of predictions.

    Args:
        model: a pose model's file, or an ``ultralytics.YOLO``.
        data: data YAML, also one that ships with this package, by name.
        predictions: COCO results file, instead of a model.
        split: train, val or test.
        protocol: ``coco``, ``crowdpose``, or ``auto``: CrowdPose's for its keypoints.
        score: least score of predictions that count as shown to a user.
        reference: let pycocotools itself compute the COCO figures, too.
        plots: save images.
        save_dir: folder for all files.
        **kwargs: as ``yolo val`` takes them, but ``imgsz`` is 640 where it is not given.

    Returns:
        Everything that metrics.json holds: ``coco``, ``crowdpose`` (where it applies), ``crowding``, ``keypoints``,
        ``stock`` (the validator's own figures), ``protocol``, ``area``, ``sigmas``, ``truth`` and ``settings``.

    Raises:
        ValueError: neither or both of model and predictions, or what truth and predictions have to complain about.
        FileNotFoundError: no such file.
        TypeError: a model of another task.
    """
    if (model is None) == (predictions is None):
        raise ValueError("Give either model= or predictions=.\n\n" + USAGE)
    if not data:
        raise ValueError("Give data=, the data YAML.\n\n" + USAGE)
    if protocol not in ("auto", "coco", "crowdpose"):
        raise ValueError(f"protocol={protocol}: auto, coco or crowdpose.")
    data = str(catalog.resolve_data(data))
    stock: dict[str, float] = {}
    if model is not None:
        truth, found, info, folder, stock, kwargs["imgsz"] = _run(model, data, split, save_dir, score, kwargs)
    else:
        assert predictions is not None
        folder = _folder(save_dir)
        truth, info = read_truth(data, split, folder, kwargs)
        found = read_predictions(predictions, truth)
    settings: dict[str, Any] = {"model": None if model is None else str(getattr(model, "ckpt_path", None) or model), "data": data}
    settings |= {"predictions": predictions and str(predictions), "split": split, **kwargs}
    report = _measure(truth, found, info, protocol, score, reference, folder if plots else None)
    report = {**report, "stock": stock, "settings": settings}
    write_json(folder / "metrics.json", _plain(report))
    print(f" Saved:   {folder}")
    return report


def _run(
    model: Any, data: str, split: str, save_dir: str | Path | None, score: float, kwargs: Mapping[str, Any]
) -> tuple[GroundTruth, Predictions, dict[str, Any], Path, dict[str, float], Any]:
    """Run a model's own validator; returns what it collected, the stock figures and the image size."""
    from ultralytics import YOLO

    compat.install()
    yolo = YOLO(model) if isinstance(model, (str, Path)) else model
    if yolo.task != "pose":
        raise TypeError(f"{model} is a model of the task '{yolo.task}', not of 'pose'.")
    base = yolo.task_map["pose"]["validator"]
    mixed = base if issubclass(base, ExactPose) else type(f"Exact{base.__name__}", (ExactPose, base), {})

    class Validator(mixed):  # type: ignore[misc,valid-type]
        keep_score = min(ExactPose.keep_score, score)
        show_table = False  # printed with all others

    runs: list[Any] = []

    def make(args: Any = None, _callbacks: Any = None) -> Any:
        runs.append(Validator(args=args, _callbacks=_callbacks))
        return runs[-1]

    options = {"plots": False, "imgsz": IMGSZ, **kwargs, "data": data, "split": split}
    if save_dir is not None:
        path = Path(save_dir).absolute()
        options |= {"project": str(path.parent), "name": path.name, "exist_ok": True}
    else:
        options |= {"name": "eval"}
    metrics = yolo.val(validator=make, **options)
    run = runs[0]
    size = run.args.imgsz  # an export of fixed size has set its own
    print(f"\n Image size: {size if isinstance(size, int) else ' x '.join(map(str, size))} px")
    stock = {str(k): float(v) for k, v in metrics.results_dict.items()}
    return run.truth, run.collected.predictions(run.truth), run.data, Path(run.save_dir), stock, size


def read_truth(data: str, split: str, folder: Path, kwargs: Mapping[str, Any]) -> tuple[GroundTruth, dict[str, Any]]:
    """Truth of a split without a model, and Ultralytics' data dictionary; arguments as for :func:`read_labels`."""
    labels, info = read_labels(data, split, folder, kwargs)
    return load_annotations(info, split, labels) or from_labels(labels, info["names"]), info


def read_labels(data: str, split: str, folder: Path, kwargs: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Images and labels of a split without a model, as a stock validator reads them.

    Args:
        data: data YAML.
        split: train, val or test.
        folder: where the validator that reads the labels may write.
        kwargs: as ``yolo val`` takes them; those that choose images or classes are heeded.

    Returns:
        ``dataset.labels``, and Ultralytics' data dictionary.
    """
    from ultralytics import YOLO
    from ultralytics.data.utils import check_det_dataset

    compat.install()
    info = check_det_dataset(data, split=split)
    allowed = {k: v for k, v in kwargs.items() if k in ("single_cls", "fraction", "classes")}
    # our own validator's reader, because it takes rows without boxes, too; a nano network is the way to it from here
    reader = YOLO("erpose-n.yaml").task_map["pose"]["validator"](
        args={"task": "pose", "mode": "val", "data": data, "split": split, "rect": False, **allowed},
        save_dir=folder,
    )
    reader.data, reader.stride = info, 32
    return reader.build_dataset(info[split], batch=1).labels, info


def _folder(save_dir: str | Path | None) -> Path:
    """The folder for results, made if need be; runs/pose/eval, eval-2 ... without a name."""
    if save_dir is None:
        from ultralytics.cfg import get_cfg, get_save_dir

        save_dir = get_save_dir(get_cfg(overrides={"task": "pose", "mode": "val", "name": "eval"}))
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_crowdpose(truth: GroundTruth, info: Mapping[str, Any]) -> bool:
    """Whether a data set is CrowdPose or built like it: 14 keypoints, and its crowd index, keypoint names or sigmas."""
    k = truth.keypoints.shape[1]
    if k != len(CROWDPOSE_14.names):
        return False
    sigmas = info.get("kpt_oks_sigmas")
    return (
        truth.crowd_index is not None
        or names_of(info.get("kpt_names"), k) == list(CROWDPOSE_14.names)
        or (sigmas is not None and np.allclose(sigmas, CROWDPOSE_14.sigmas))
    )


def _measure(
    truth: GroundTruth,
    found: Predictions,
    info: Mapping[str, Any],
    protocol: str,
    score: float,
    reference: bool,
    images: Path | None,
) -> dict[str, Any]:
    """All figures of predictions, printed and, where a folder is given, drawn."""
    k = truth.keypoints.shape[1]
    crowd = protocol == "crowdpose" or (protocol == "auto" and is_crowdpose(truth, info))
    custom = info.get("kpt_oks_sigmas")
    if crowd and custom is None and k == len(CROWDPOSE_14.sigmas):
        custom = CROWDPOSE_14.sigmas
    sigmas = coco.exact_sigmas(k, custom)
    index, origin = crowdpose.with_crowd_index(truth)

    matches = match(truth, found, sigmas)
    figures = coco.evaluate_coco(truth, found, sigmas, matches)
    report: dict[str, Any] = {"coco": figures, "protocol": coco.protocol(truth), "area": truth.area_rule}
    report["sigmas"] = sigmas.tolist()
    print("\nCOCO keypoints\n" + coco.table(figures, truth))
    print(f" {describe_sigmas(k, custom)}")
    if reference and len(found.score):
        theirs = coco.reference_evaluation(truth, found, sigmas)
        apart = max(abs(theirs[name] - figures[name]) for name in coco.STATS)
        report["reference"] = {"figures": theirs, "apart": apart}
        print(f" Judge:   pycocotools itself, largest difference {apart:.1e}")
    if crowd:
        print("\nCrowdPose")
        report["crowdpose"] = crowdpose.evaluate_crowdpose(truth, found, sigmas)
        print(crowdpose.table(report["crowdpose"], truth, index, origin))
    else:
        report["by_crowd_index"] = crowdpose.by_crowding(matches, index)

    cost = crowding.measure_crowding(truth, found, sigmas, score)
    rows = crowding.against_index(cost, index)
    names = names_of(info.get("kpt_names"), k)
    per_keypoint = keypoints.measure_keypoints(truth, cost.shown, cost.matches, sigmas)
    print("\nCrowds\n" + crowding.table(cost, rows, origin, score))
    if not crowd:
        parts = ", ".join(f"{name[3:]} {value:.3f}" for name, value in report["by_crowd_index"].items())
        print(f" AP of images by crowd index: {parts} (below {crowdpose.EASY}, between, from {crowdpose.HARD} on)")
    print("\nKeypoints\n" + keypoints.table(per_keypoint, names))
    report["crowding"] = {
        "score": score,
        "duplicate_rate": cost.duplicate_rate,
        "duplicate_label_rate": cost.duplicate_label_rate,
        "miss_rate": cost.miss_rate,
        "persons": int(cost.persons.sum()),
        "crowd_index": origin,
        "bins": rows,
    }
    report["keypoints"] = {
        name: {
            "labelled": int(per_keypoint.labelled[j]),
            "oks": float(per_keypoint.oks[j]),
            **{f"pck@{share:g}": float(per_keypoint.pck[s, j]) for s, share in enumerate(per_keypoint.shares)},
        }
        for j, name in enumerate(names)
    }
    if images is not None:
        plots.plot_precision_recall(accumulate(matches), images / "precision_recall.png")
        plots.plot_calibration(cost.matches, images / "calibration.png")
        plots.plot_crowding(rows, images / "crowding.png", score)
    return report


def _plain(value: Any) -> Any:
    """Fit for JSON: no arrays, no paths, no NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def main(arguments: list[str]) -> int:
    """Run ``erpose eval``: see :func:`arguments.run_command`."""
    from erpose_yolo.arguments import run_command

    return run_command("eval", USAGE, evaluate, arguments)
