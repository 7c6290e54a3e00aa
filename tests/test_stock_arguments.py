"""Every argument of ultralytics' default configuration, in every mode: works as for a stock pose model, refused, or listed.

The grid runs a small stock model and a small ER-Pose model on the same small data set. Arguments that do not touch each
other share a run (a group); a probe looks at what one argument has done. Each probe is asked of the stock model, too: what it
expects is what ultralytics does. A group that fails is run again argument by argument, so the test that fails names the
argument.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.cfg import MODES
from ultralytics.data.augment import CutMix, MixUp, Mosaic, RandomFlip, RandomHSV, RandomPerspective
from ultralytics.engine import results as stock_results
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, IterableSimpleNamespace

from erpose_yolo import ERPose, arguments
from erpose_yolo.arguments import REFUSED, WITHOUT_EFFECT

pytestmark = pytest.mark.slow
FAMILIES = ("stock", "ours")
NAMES = {0: "person", 1: "child"}
LAYERS = """
nc: 2
kpt_shape: [17, 3]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[2, 3, 4], 1, HEAD, [nc, kpt_shape]]
"""
HEADS = {
    "stock": "Pose26, [nc, kpt_shape]]\nreg_max: 1\nend2end: True\n",
    "ours": "ERPoseHead, [nc, kpt_shape]]\nerpose: {width: 16}\n",
}


class Run(SimpleNamespace):
    """What a run has left: the trainer, validator, predictor or exported file, and what was seen on the way."""


Probe = tuple[Any, Callable[[Run], Any]]  # the value that is given, and whether it has done what it is for


# --- material -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with models, a data set of two classes and of wide and high images, a video and an argument file."""
    folder = tmp_path_factory.mktemp("arguments")
    data = yaml.safe_load(tiny_dataset.read_text())
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index, file in enumerate(sorted((tiny_dataset.parent / "images" / split).glob("*.png"))):
            image = cv2.imread(str(file))
            size = (64, 32) if index % 2 else (32, 64)
            cv2.imwrite(str(folder / "images" / split / file.name), cv2.resize(image, size))
            rows = (tiny_dataset.parent / "labels" / split / f"{file.stem}.txt").read_text().splitlines()
            text = "\n".join(f"{i % 2} {row.split(' ', 1)[1]}" for i, row in enumerate(rows))
            (folder / "labels" / split / f"{file.stem}.txt").write_text(text)
    (folder / "test.txt").write_text("\n".join(str(folder / "images" / "val" / f"{i}.png") for i in (0, 1)))
    data |= {"path": str(folder), "names": NAMES, "test": "test.txt"}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    for family, head in HEADS.items():
        (folder / f"{'erpose-' if family == 'ours' else ''}{family}.yaml").write_text(
            LAYERS.replace("HEAD, [nc, kpt_shape]]\n", head)
        )
        model = new_model(folder, family)
        model.model.names = NAMES
        model.save(folder / f"{family}.pt")
        model.model.names = {0: "Child", 1: "person"}  # the other way round
        model.save(folder / f"{family}-swapped.pt")
    video = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for shift in range(6):
        image = cv2.imread(str(tiny_dataset.parent / "images" / "val" / "0.png"))
        video.write(np.roll(image, shift, 1))
    video.release()
    (folder / "clip.streams").write_text(str(folder / "clip.avi"))
    (folder / "lr.yaml").write_text("lr0: 0.03\n")
    return folder


def new_model(home: Path, family: str, weights: str = "") -> Any:
    """A model of its family with random weights, the same in each call, whose scores differ from cell to cell."""
    if weights:
        return (ERPose if family == "ours" else YOLO)(home / f"{family}{weights}.pt")
    torch.manual_seed(0)
    model = ERPose(home / "erpose-ours.yaml") if family == "ours" else YOLO(home / "stock.yaml")
    for towers in (model.model.model[-1].one2one_cv3, model.model.model[-1].cv3):
        for tower in towers:
            torch.nn.init.normal_(tower[-1].weight, std=2.0)
    return model


def score_rows(model: Any) -> torch.Tensor:
    """Weights of the last score layer of the finest level, (classes, channels)."""
    return model.model[-1].one2one_cv3[0][-1].weight.detach().float().flatten(1).clone()


class Listener:
    """What happens while it is on: the log, which arguments are read, and how images are drawn."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.read: set[str] = set()
        self.drawn: list[dict[str, Any]] = []
        self.shown: list[str] = []
        get, plot = IterableSimpleNamespace.__getattribute__, stock_results.Results.plot

        def reading(namespace: Any, name: str) -> Any:
            self.read.add(name)
            return get(namespace, name)

        @functools.wraps(plot)  # ours reads its signature
        def plotting(result: Any, *args: Any, **kwargs: Any) -> Any:
            self.drawn.append(kwargs)
            return plot(result, *args, **kwargs)

        def logging(record: Any) -> bool:
            self.log.append(record.getMessage())
            return True

        patch.setattr(IterableSimpleNamespace, "__getattribute__", reading)
        patch.setattr(stock_results.Results, "plot", plotting)
        patch.setattr("ultralytics.engine.predictor.check_imshow", lambda warn=False: True)  # there is no screen
        for name in ("imshow", "waitKey", "namedWindow", "resizeWindow", "destroyAllWindows"):
            patch.setattr(cv2, name, lambda *args, name=name: self.shown.append(name) or 0)
        patch.setattr(LOGGER, "filters", [*LOGGER.filters, logging])
        self.compiled: list[Any] = []  # what was given to torch.compile, which is not waited for (it has tests of its own)
        patch.setattr(torch, "compile", lambda model, **kwargs: self.compiled.append(model) or model)


# --- train --------------------------------------------------------------------------------------------------------


def transform(run: Run, kind: type, moment: str = "start") -> Any:
    """The augmentation of a class, as it was when training started or in each epoch."""
    return next(t for t in run.transforms[moment] if isinstance(t, kind))


def flat(transforms: Any) -> Iterator[Any]:
    for one in getattr(transforms, "transforms", [transforms]):
        if one is not transforms and hasattr(one, "transforms") and type(one).__name__ == "Compose":
            yield from flat(one)
        else:
            yield one


def flip(run: Run, direction: str) -> float:
    return next(t.p for t in run.transforms["start"] if isinstance(t, RandomFlip) and t.direction == direction)


def predictions(run: Run) -> list[dict[str, Any]]:
    return json.loads((run.folder / "predictions.json").read_text())


TRAIN: dict[str, dict[str, Probe]] = {
    "schedule": {
        "task": ("pose", lambda run: run.trainer.args.task == "pose"),
        "data": ("DATA", lambda run: run.trainer.data["names"] == NAMES),
        "epochs": (3, lambda run: run.epochs == [0, 1, 2]),
        "lr0": (0.02, lambda run: {g["initial_lr"] for g in run.groups} == {0.02}),
        "lrf": (0.5, lambda run: run.trainer.lf(3) == pytest.approx(0.5)),
        "cos_lr": (True, lambda run: run.lr[2] == pytest.approx(0.02 * (1 - 0.5 * (1 - math.cos(2 * math.pi / 3)) / 2))),
        "momentum": (0.8, lambda run: run.batches[-1]["momentum"] == pytest.approx(0.8)),
        "warmup_epochs": (1, lambda run: [b["lr"] > 0 for b in run.batches[:2]] == [False, True] and len(run.batches) == 6),
        "warmup_momentum": (0.3, lambda run: run.batches[0]["momentum"] == pytest.approx(0.3)),
        "warmup_bias_lr": (0.05, lambda run: run.batches[0]["bias_lr"] == pytest.approx(0.05)),
        "nbs": (8, lambda run: run.trainer.accumulate == 2),
        "weight_decay": (0.01, lambda run: max(g["weight_decay"] for g in run.groups) == pytest.approx(0.01)),
        "optimizer": ("SGD", lambda run: type(run.trainer.optimizer) is torch.optim.SGD),
        "patience": (7, lambda run: run.trainer.stopper.patience == 7),
        "batch": (4, lambda run: {b["shape"][0] for b in run.batches} == {4}),
        "val": (False, lambda run: run.validations == [2]),
        "save": (False, lambda run: run.saved == [2]),
        "freeze": (2, lambda run: run.moved.isdisjoint({"0", "1"}) and "2" in run.moved),
        "close_mosaic": (1, lambda run: [t > 0 for t in run.mosaic] == [True, True, False]),
        "seed": (3, lambda run: not torch.equal(run.initial, run.other("effects").initial)),
        "project": ("PROJECT", lambda run: run.folder.parent.name == "PROJECT"),
        "name": ("schedule", lambda run: run.folder.name == "schedule"),
        "exist_ok": (True, lambda run: run.folder.name == "schedule"),  # the folder is there when the run starts
        "device": ("cpu", lambda run: run.trainer.device.type == "cpu"),
        "workers": (3, lambda run: run.trainer.train_loader.num_workers == 0),  # ultralytics has none on CPUs
        "hsv_h": (0.011, lambda run: transform(run, RandomHSV).hgain == 0.011),
        "hsv_s": (0.12, lambda run: transform(run, RandomHSV).sgain == 0.12),
        "hsv_v": (0.13, lambda run: transform(run, RandomHSV).vgain == 0.13),
        "degrees": (14.0, lambda run: transform(run, RandomPerspective).degrees == 14),
        "translate": (0.15, lambda run: transform(run, RandomPerspective).translate == 0.15),
        "scale": (0.16, lambda run: transform(run, RandomPerspective).scale == 0.16),
        "shear": (1.7, lambda run: transform(run, RandomPerspective).shear == 1.7),
        "perspective": (0.0002, lambda run: transform(run, RandomPerspective).perspective == 0.0002),
        "flipud": (0.19, lambda run: flip(run, "vertical") == 0.19),
        "fliplr": (0.21, lambda run: flip(run, "horizontal") == 0.21),
        "bgr": (0.22, lambda run: run.transforms["start"][-1].bgr == 0.22),
        "mosaic": (0.9, lambda run: transform(run, Mosaic).p == 0.9),
        "mixup": (0.24, lambda run: transform(run, MixUp).p == 0.24),
        "cutmix": (0.25, lambda run: transform(run, CutMix).p == 0.25),
    },
    "effects": {
        "imgsz": (96, lambda run: max(max(b["shape"][2:]) for b in run.batches) >= 96),
        "multi_scale": (0.6, lambda run: len({b["shape"][2:] for b in run.batches}) > 1),
        "save_period": (1, lambda run: {"epoch0.pt", "epoch1.pt"} <= {f.name for f in run.weights}),
        "cache": ("ram", lambda run: run.trainer.train_loader.dataset.cache == "ram" and len(run.images.buffer)),
        "plots": (True, lambda run: {"results.png", "labels.jpg", "train_batch0.jpg"} <= run.files),
        "split": ("test", lambda run: len(run.trainer.test_loader.dataset) == 2),
        "save_json": (True, lambda run: len({p["image_id"] for p in predictions(run)}) == 2),
        "conf": (0.00001, lambda run: run.trainer.validator.args.conf == 0.00001 and predictions(run)),
        "max_det": (5, lambda run: run.max_det == 5 and len(predictions(run)) == 5 * 2),
        "deterministic": (False, lambda run: run.deterministic is False and run.other("schedule").deterministic is True),
        "verbose": (True, lambda run: any("child" in line for line in run.log)),
        "val": (True, lambda run: run.validations == [0, 1]),
        "save": (True, lambda run: run.saved == [0, 1]),
    },
    "narrow": {
        "rect": (True, lambda run: {b["shape"][2:] for b in run.batches} == {(64, 32), (32, 64)}),
        "single_cls": (True, lambda run: run.trainer.model.nc == 1 and run.classes == {0}),
        "amp": ("fp32", lambda run: run.trainer.amp is False and run.dtypes == {torch.float32}),
        "channels_last": (True, lambda run: any("only supported on CUDA" in line for line in run.log)),
    },
    "pretrained": {
        "pretrained": ("SWAPPED", lambda run: torch.equal(run.initial, run.given.model.model[0].conv.weight)),
        "cls_remap": (True, lambda run: torch.equal(run.scores, score_rows(run.given.model)[[1, 0]])),
        "classes": ([1], lambda run: run.classes == {1}),
        "compile": (True, lambda run: run.compiled),
    },
    "as they are": {
        "pretrained": ("SWAPPED", lambda run: torch.equal(run.initial, run.given.model.model[0].conv.weight)),
        "cls_remap": (False, lambda run: torch.equal(run.scores, score_rows(run.given.model))),
        "freeze": ([1, "3.conv"], lambda run: run.moved.isdisjoint({"1", "3"}) is False and "1" not in run.moved),
        "fraction": (0.5, lambda run: len(run.trainer.train_loader.dataset) == 4),
        "cfg": ("LR", lambda run: {g["initial_lr"] for g in run.groups} == {0.03}),
    },
    "taught": {"distill_model": ("TEACHER", lambda run: run.distillation > 0)},
    "taught more": {
        "distill_model": ("TEACHER", lambda run: run.distillation > 0),
        "dis": (12.0, lambda run: math.isclose(run.distillation, 2 * run.other("taught").distillation, rel_tol=1e-4)),
    },
}


def train(home: Path, family: str, group: str, given: dict[str, Any], patch: pytest.MonkeyPatch) -> Run:
    """Train two epochs with what is given."""
    seen = Listener(patch)
    replace = {"PROJECT": str(home / family / "PROJECT"), "LR": str(home / "lr.yaml"), "DATA": str(home / "data.yaml")}
    replace |= {"SWAPPED": str(home / f"{family}-swapped.pt"), "TEACHER": str(home / "stock-swapped.pt")}
    given = {k: replace.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    few = {"epochs": 2, "imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
    few |= {"data": str(home / "data.yaml"), "project": str(home / family), "name": group, "optimizer": "SGD", "exist_ok": True}
    (home / family / "PROJECT" / group).mkdir(parents=True, exist_ok=True)  # exist_ok= decides about it
    if given.get("cfg"):
        few.pop("lr0", None)
    run = Run(epochs=[], batches=[], validations=[], saved=[], lr=[], mosaic=[], transforms={}, dtypes=set(), read=seen.read)
    run.log, run.compiled, run.distillation = seen.log, seen.compiled, 0.0
    run.given = new_model(home, family, "-swapped")
    model = new_model(home, family)
    batch: dict[str, Any] = {}

    def started(trainer: Any) -> None:
        run.trainer, run.deterministic = trainer, torch.are_deterministic_algorithms_enabled()
        network = getattr(trainer.model, "student_model", trainer.model)  # stock wraps student and teacher
        run.groups = [dict(g) for g in trainer.optimizer.param_groups]
        run.initial, run.scores = network.model[0].conv.weight.detach().clone(), score_rows(network)
        run.before = {k: v.detach().clone() for k, v in network.named_parameters()}
        run.transforms["start"] = list(flat(trainer.train_loader.dataset.transforms))
        run.classes = {int(c) for label in trainer.train_loader.dataset.labels for c in label["cls"].flatten()}
        run.images, run.max_det = trainer.train_loader.dataset.ims, network.model[-1].max_det
        network.model[1].register_forward_hook(
            lambda layer, given, out: run.dtypes.add(out.dtype) if layer.training and torch.is_grad_enabled() else None
        )
        preprocess = trainer.preprocess_batch

        def preprocessed(images: dict[str, Any]) -> Any:
            images = preprocess(images)
            groups = trainer.optimizer.param_groups
            bias = next(g for g in groups if g.get("param_group") == "bias")
            weight = next(g for g in groups if g.get("param_group") == "weight")
            batch.update(shape=tuple(images["img"].shape), lr=weight["lr"], bias_lr=bias["lr"], momentum=weight.get("momentum"))
            run.batches.append(dict(batch))
            return images

        trainer.preprocess_batch = preprocessed

    def batch_over(trainer: Any) -> None:
        run.distillation = run.distillation or float(trainer.loss_items.get("dis_loss", 0))  # of the first batch

    def epoch_over(trainer: Any) -> None:
        run.epochs.append(trainer.epoch)
        run.lr.append(trainer.optimizer.param_groups[-1]["lr"])
        run.mosaic.append(max((t.p for t in flat(trainer.train_loader.dataset.transforms) if isinstance(t, Mosaic)), default=0))

    def validated(validator: Any) -> None:
        if validator.training:
            run.validations.append(run.trainer.epoch)

    model.add_callback("on_train_start", started)
    model.add_callback("on_train_batch_end", batch_over)
    model.add_callback("on_train_epoch_end", epoch_over)
    model.add_callback("on_val_start", validated)
    model.add_callback("on_model_save", lambda trainer: run.saved.append(trainer.epoch))
    model.train(**{**few, **given})
    run.folder = run.trainer.save_dir
    run.files = {f.name for f in run.folder.iterdir()}
    run.weights = list((run.folder / "weights").iterdir())
    after = dict(getattr(run.trainer.model, "student_model", run.trainer.model).named_parameters())
    run.moved = {k.split(".")[1] for k, v in run.before.items() if not torch.equal(v, after[k])}
    return run


# --- val ----------------------------------------------------------------------------------------------------------

VAL: dict[str, dict[str, Probe]] = {
    "effects": {
        "task": ("pose", lambda run: run.validator.args.task == "pose"),
        "data": ("DATA", lambda run: run.metrics.names == NAMES),
        "split": ("test", lambda run: run.validator.seen == 2),
        "imgsz": (96, lambda run: {max(s[2:]) for s in run.shapes} == {96}),
        "batch": (2, lambda run: {s[0] for s in run.shapes} == {2}),
        "rect": (False, lambda run: {s[2:] for s in run.shapes} == {(96, 96)}),
        "conf": (0.0001, lambda run: run.validator.args.conf == 0.0001 and min(p["score"] for p in predictions(run)) >= 0.0001),
        "max_det": (7, lambda run: len(predictions(run)) == 7 * 2),
        "save_json": (True, lambda run: {len(p["keypoints"]) for p in predictions(run)} == {51}),
        "save_txt": (True, lambda run: len(run.labels) == 2),
        "save_conf": (True, lambda run: {len(line.split()) for text in run.labels for line in text} == {5 + 51 + 1}),
        "plots": (True, lambda run: {"val_batch0_pred.jpg", "val_batch0_labels.jpg", "confusion_matrix.png"} <= run.files),
        "visualize": (True, lambda run: "visualizations" in run.files),
        "show_labels": (False, lambda run: run.matches[0][0] is False),
        "show_conf": (False, lambda run: run.matches[0][1] is False),
        "augment": (True, lambda run: any("does not support 'augment=True'" in line for line in run.log)),
        "verbose": (True, lambda run: any("child" in line for line in run.log)),
        "project": ("PROJECT", lambda run: run.folder.parent.name == "PROJECT"),
        "name": ("effects", lambda run: run.folder.name == "effects"),
        "exist_ok": (True, lambda run: run.folder.name == "effects"),
        "device": ("cpu", lambda run: run.validator.device.type == "cpu"),
        "workers": (3, lambda run: run.validator.dataloader.num_workers == 0),
    },
    "narrow": {
        "classes": ([1], lambda run: run.classes == {1}),
        "fraction": ([1.0, 0.5], lambda run: run.validator.seen == 2),
        "cache": ("ram", lambda run: run.validator.dataloader.dataset.cache == "ram"),
        "quantize": (16, lambda run: run.dtypes == {torch.float32}),  # a CPU has no half precision, says ultralytics
        "rect": (True, lambda run: {s[2:] for s in run.shapes} <= {(64, 64), (96, 64), (64, 96), (96, 96)} and len(run.shapes)),
    },
    "single": {
        "single_cls": (True, lambda run: run.classes == {0} and run.predicted == {0}),
        "compile": (True, lambda run: run.compiled),
        "channels_last": (True, lambda run: run.layout),
    },
}


def val(home: Path, family: str, group: str, given: dict[str, Any], patch: pytest.MonkeyPatch) -> Run:
    """Validate with what is given."""
    seen = Listener(patch)
    replace = {"PROJECT": str(home / family / "PROJECT"), "DATA": str(home / "data.yaml")}
    given = {k: replace.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    few = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "verbose": False, "conf": 0.0001}
    few |= {"data": str(home / "data.yaml"), "project": str(home / family), "name": f"val {group}", "exist_ok": True}
    (home / family / "PROJECT" / group).mkdir(parents=True, exist_ok=True)  # exist_ok= decides about it
    run = Run(shapes=set(), dtypes=set(), predicted=set(), read=seen.read, log=seen.log, matches=[], compiled=seen.compiled)
    model = new_model(home, family, "-swapped")
    model.model.names = NAMES
    from ultralytics.utils.metrics import ConfusionMatrix

    patch.setattr(
        ConfusionMatrix, "plot_matches", spied(ConfusionMatrix.plot_matches, lambda given: run.matches.append(given[-2:]))
    )

    def batch_over(validator: Any) -> None:
        run.validator = validator
        run.predicted |= {int(c) for classes in validator.metrics.stats["pred_cls"] for c in classes}

    model.model.model[0].register_forward_hook(Look(run))
    model.add_callback("on_val_batch_start", lambda validator: setattr(run, "live", True))
    model.add_callback("on_val_batch_end", batch_over)
    run.metrics = model.val(**{**few, **given})
    run.folder = run.validator.save_dir
    run.files = {f.name for f in run.folder.iterdir()}
    run.labels = [file.read_text().splitlines() for file in sorted((run.folder / "labels").glob("*.txt"))]
    run.classes = {int(c) for label in run.validator.dataloader.dataset.labels for c in label["cls"].flatten()}
    return run


def spied(method: Any, look: Callable[[tuple[Any, ...]], Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        look(args)
        return method(*args, **kwargs)

    return call


class Look:
    """Forward hook of the first layer that notes shape, type and memory layout; a copied model shares the notes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.layout = run.live = False

    def __deepcopy__(self, memo: Any) -> Look:
        return self

    def __call__(self, layer: Any, given: Any, out: torch.Tensor) -> None:
        if self.run.live:  # not the warm-up
            self.run.shapes.add(tuple(given[0].shape))
            self.run.dtypes.add(out.dtype)
            self.run.layout |= layer.conv.weight.is_contiguous(memory_format=torch.channels_last)


# --- predict and track --------------------------------------------------------------------------------------------


def rows(run: Run) -> list[int]:
    return [len(result) for result in run.results]


PREDICT: dict[str, dict[str, Probe]] = {
    "images": {
        "task": ("pose", lambda run: run.predictor.args.task == "pose"),
        "source": ("IMAGES", lambda run: len(run.results) == 4),
        "imgsz": (96, lambda run: {s[2:] for s in run.shapes} == {(96, 96)}),
        "rect": (False, lambda run: {s[2:] for s in run.shapes} == {(96, 96)}),
        "batch": (2, lambda run: {s[0] for s in run.shapes} == {2}),
        "conf": (0.0001, lambda run: min(float(r.boxes.conf.min()) for r in run.results) < 0.25),
        "max_det": (3, lambda run: rows(run) == [3] * 4),
        "save": (True, lambda run: {f"{i}.jpg" for i in range(4)} <= run.files),
        "save_txt": (True, lambda run: len(run.labels) == 4 and {len(text) for text in run.labels} == {3}),
        "save_conf": (True, lambda run: {len(line.split()) for text in run.labels for line in text} >= {5 + 51 + 1}),
        "save_crop": (True, lambda run: len(list((run.folder / "crops").rglob("*.jpg")))),
        "show": (True, lambda run: "imshow" in run.shown),
        "show_labels": (False, lambda run: {d["labels"] for d in run.drawn} == {False}),
        "show_conf": (False, lambda run: {d["conf"] for d in run.drawn} == {False}),
        "show_boxes": (False, lambda run: {d["boxes"] for d in run.drawn} == {False}),
        "line_width": (7, lambda run: {d["line_width"] for d in run.drawn} == {7}),
        "augment": (True, lambda run: any("does not support 'augment=True'" in line for line in run.log)),
        "verbose": (True, lambda run: any("image 1/" in line for line in run.log)),
        "project": ("PROJECT", lambda run: run.folder.parent.name == "PROJECT"),
        "name": ("images", lambda run: run.folder.name == "images"),
        "exist_ok": (True, lambda run: run.folder.name == "images"),
        "device": ("cpu", lambda run: run.predictor.device.type == "cpu"),
        "quantize": (16, lambda run: run.dtypes == {torch.float32}),  # a CPU has no half precision, says ultralytics
        "data": ("DATA", lambda run: run.predictor.data.endswith("data.yaml")),
    },
    "one class": {
        "classes": (1, lambda run: {int(c) for r in run.results for c in r.boxes.cls} == {1}),
        "compile": (True, lambda run: run.compiled),
        "channels_last": (True, lambda run: run.layout),
    },
    "two classes": {"classes": ([0, 1], lambda run: {int(c) for r in run.results for c in r.boxes.cls} == {0, 1})},
    "heat": {"visualize": (True, lambda run: len(run.files) == 4)},
    "video": {
        "source": ("VIDEO", lambda run: len(run.results) == 3),
        "vid_stride": (2, lambda run: len(run.results) == 3),
        "save": (True, lambda run: "clip.avi" in run.files),
        "save_frames": (True, lambda run: len(list((run.folder / "clip_frames").iterdir())) == 3),
    },
    "stream": {
        "source": ("STREAM", lambda run: len(run.results) == 6),
        "stream_buffer": (True, lambda run: run.predictor.dataset.buffer is True and len(run.results) == 6),
    },
    "features": {"embed": ([2, 3], lambda run: {tuple(r.shape) for r in run.results} == {(32,)})},
}
TRACK: dict[str, dict[str, Probe]] = {
    **PREDICT,
    "tracker": {
        "tracker": ("bytetrack.yaml", lambda run: type(run.predictor.trackers[0]).__name__ == "BYTETracker"),
        "source": ("VIDEO", lambda run: len(run.results) == 6),
    },
}


def predict(home: Path, family: str, group: str, given: dict[str, Any], patch: pytest.MonkeyPatch, mode: str = "predict") -> Run:
    """Predict with what is given."""
    seen = Listener(patch)
    replace = {"PROJECT": str(home / family / mode / "PROJECT"), "DATA": str(home / "data.yaml"), "VIDEO": str(home / "clip.avi")}
    replace |= {"IMAGES": str(home / "images" / "val"), "STREAM": str(home / "clip.streams")}
    given = {k: replace.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    few = {"imgsz": 64, "device": "cpu", "verbose": False, "conf": 0.0001, "source": str(home / "images" / "val")}
    few |= {"project": str(home / family / mode), "name": group, "exist_ok": True}
    (home / family / mode / "PROJECT" / group).mkdir(parents=True, exist_ok=True)  # exist_ok= decides about it
    run = Run(shapes=set(), dtypes=set(), read=seen.read, log=seen.log, drawn=seen.drawn, shown=seen.shown, compiled=seen.compiled)
    model = new_model(home, family, "-swapped")
    model.model.model[0].register_forward_hook(Look(run))
    model.add_callback("on_predict_batch_start", lambda predictor: setattr(run, "live", True))
    run.results = list(getattr(model, mode)(**{**few, **given}))
    run.predictor, run.folder = model.predictor, model.predictor.save_dir
    run.files = {f.name for f in run.folder.iterdir()} if run.folder.exists() else set()
    run.labels = [file.read_text().splitlines() for file in sorted((run.folder / "labels").glob("*.txt"))]
    return run


# --- export and benchmark -----------------------------------------------------------------------------------------


def onnx_input(run: Run) -> list[Any]:
    return [d.dim_value or d.dim_param for d in run.graph.graph.input[0].type.tensor_type.shape.dim]


EXPORT: dict[str, dict[str, Probe]] = {
    "fixed": {
        "task": ("pose", lambda run: run.metadata["task"] == "pose"),
        "format": ("onnx", lambda run: run.file.suffix == ".onnx"),
        "imgsz": ([96, 64], lambda run: onnx_input(run)[2:] == [96, 64]),
        "batch": (2, lambda run: onnx_input(run)[0] == 2),
        "simplify": (False, lambda run: not any("slimming" in line for line in run.log)),
        "opset": (17, lambda run: run.graph.opset_import[0].version == 17),
        "max_det": (9, lambda run: run.shape[1] == 9),
        "device": ("cpu", lambda run: run.shape),
    },
    "free": {
        "dynamic": (True, lambda run: all(isinstance(d, str) for d in (onnx_input(run)[i] for i in (0, 2, 3)))),
        "simplify": (True, lambda run: any("slimming" in line for line in run.log)),
    },
    "half": {"quantize": (16, lambda run: run.graph.graph.initializer[0].data_type == 10)},
}
BENCHMARK: dict[str, dict[str, Probe]] = {
    "onnx": {
        "data": ("DATA", lambda run: float(run.table[0, "metrics/mAP50-95(P)"]) >= 0),
        "format": ("onnx", lambda run: run.table["Format"].to_list() == ["ONNX"] and run.table[0, "Status❔"] == "✅"),
        "imgsz": (96, lambda run: any("at imgsz=96" in line for line in run.log)),
        "device": ("cpu", lambda run: run.table[0, "Status❔"] == "✅"),
        "verbose": (True, lambda run: run.table[0, "Status❔"] == "✅"),
        "dynamic": (True, lambda run: run.exported["dynamic"] is True),
        "simplify": (False, lambda run: run.exported["simplify"] is False),
        "opset": (17, lambda run: run.exported["opset"] == 17),
        "quantize": (16, lambda run: run.exported["quantize"] == 16),
    },
    "checkpoint": {"format": ("-", lambda run: run.table[0, "Format"] == "PyTorch" and run.table[0, "Status❔"] == "✅")},
}


def export(home: Path, family: str, group: str, given: dict[str, Any], patch: pytest.MonkeyPatch) -> Run:
    """Export with what is given, to ONNX where it names no format."""
    import onnx
    import onnxruntime

    seen = Listener(patch)
    model = new_model(home, family, "-swapped")
    (home / family).mkdir(exist_ok=True)
    model.ckpt_path = str(home / family / f"{group}.pt")  # the name that its file gets
    model.model.pt_path = model.ckpt_path
    run = Run(read=seen.read, log=seen.log)
    run.file = Path(model.export(**{"imgsz": 64, "device": "cpu", "format": "onnx", "nms": False, **given}))
    run.graph = onnx.load(run.file)
    run.metadata = {p.key: p.value for p in run.graph.metadata_props}
    session = onnxruntime.InferenceSession(run.file)
    shape = [d if isinstance(d, int) else s for d, s in zip(session.get_inputs()[0].shape, (1, 3, 64, 64))]
    kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    run.shape = session.run(None, {session.get_inputs()[0].name: np.zeros(shape, kind)})[0].shape
    return run


def benchmark(home: Path, family: str, group: str, given: dict[str, Any], patch: pytest.MonkeyPatch) -> Run:
    """Benchmark one format with what is given."""
    seen = Listener(patch)
    replace = {"DATA": str(home / "data.yaml")}
    given = {k: replace.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    model = new_model(home, family, "-swapped")
    run = Run(read=seen.read, log=seen.log)
    model.add_callback("on_export_start", lambda exporter: setattr(run, "exported", dict(vars(exporter.args))))
    few = {"imgsz": 64, "device": "cpu", "data": str(home / "data.yaml"), "format": "-"}
    run.table = model.benchmark(**{**few, **given})
    return run


# --- the grid -----------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[..., Run]] = {"train": train, "val": val, "predict": predict, "export": export, "benchmark": benchmark}
COMMANDS["track"] = lambda *given: predict(*given, mode="track")
PROBES = {"train": TRAIN, "val": VAL, "predict": PREDICT, "track": TRACK, "export": EXPORT, "benchmark": BENCHMARK}
CASES = [(mode, group, key) for mode, groups in PROBES.items() for group, probes in groups.items() for key in probes]


class Grid:
    """Runs of groups, each made once; a group that crashes is halved until it is known which arguments crash."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: dict[tuple[Any, ...], Run | Exception] = {}

    def attempt(self, mode: str, family: str, group: str, keys: frozenset[str]) -> Run | Exception:
        """The run with these arguments of a group, or what it raised."""
        case = (mode, family, group, keys)
        if case not in self.made:
            given = {k: value for k, (value, _) in PROBES[mode][group].items() if k in keys}
            arguments._told.clear()
            with pytest.MonkeyPatch.context() as patch:
                try:
                    run = COMMANDS[mode](self.home, family, group, given, patch)
                    run.other = lambda name: self.run(mode, family, name)
                    self.made[case] = run
                except Exception as error:
                    self.made[case] = error
        return self.made[case]

    def culprits(self, mode: str, family: str, group: str, keys: frozenset[str]) -> frozenset[str]:
        """Which of these arguments crash; all of them where it takes several together."""
        if not isinstance(self.attempt(mode, family, group, keys), Exception):
            return frozenset()
        if len(keys) == 1:
            return keys
        half = sorted(keys)[: len(keys) // 2]
        parts = (frozenset(half), keys - frozenset(half))
        return frozenset().union(*(self.culprits(mode, family, group, part) for part in parts)) or keys

    def run(self, mode: str, family: str, group: str, key: str = "") -> Run:
        """The run of a group without the arguments that crash.

        Raises:
            Exception: the argument that is asked for is one of them.
        """
        keys = frozenset(PROBES[mode][group])
        bad = self.culprits(mode, family, group, keys)
        if key in bad:
            made = self.attempt(mode, family, group, frozenset({key}))
            made = made if isinstance(made, Exception) else self.attempt(mode, family, group, keys)
        else:
            made = self.attempt(mode, family, group, keys - bad)
        if isinstance(made, Exception):
            raise made
        return made

    def probe(self, mode: str, family: str, group: str, key: str) -> bool:
        """Tell whether an argument has done what it is for."""
        return bool(PROBES[mode][group][key][1](self.run(mode, family, group, key)))


@pytest.fixture(scope="module")
def grid(home: Path) -> Grid:
    return Grid(home)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mode", "group", "key"), CASES, ids=lambda value: value.replace(" ", "_"))
def test_argument(grid: Grid, mode: str, group: str, key: str, family: str) -> None:
    """An argument does what it is for, for a stock pose model and for ours."""
    value = PROBES[mode][group][key][0]
    assert grid.probe(mode, family, group, key), f"{mode} {key}={value!r} has not done what it does for a stock pose model"


# --- what has no probe in a mode, and why ---------------------------------------------------------------------------

_TRAINING = """epochs time patience save_period pretrained cls_remap optimizer seed deterministic cos_lr close_mosaic resume amp
profile freeze multi_scale overlap_mask mask_ratio dropout val lr0 lrf momentum weight_decay warmup_epochs warmup_momentum
warmup_bias_lr distill_model dis box cls cls_pw dfl pose kobj rle angle dlog dgrad dlam nbs hsv_h hsv_s hsv_v degrees translate
scale shear perspective flipud fliplr bgr mosaic mixup cutmix copy_paste copy_paste_mode auto_augment erasing"""
_DRAWING = "show save_frames save_crop show_boxes line_width"
_PREDICTION = f"source vid_stride stream_buffer retina_masks embed {_DRAWING}"
_EXPORT = "format optimize dynamic simplify opset workspace"
_VALIDATION = "split save_json plots fraction cache workers single_cls"
_FILES = "project exist_ok save save_txt save_conf"
ELSEWHERE = {  # keys of other modes, which the stock code of this mode does not read
    "train": f"{_PREDICTION} {_EXPORT} tracker",
    "val": f"{_TRAINING} {_PREDICTION} {_EXPORT} tracker save",
    "predict": f"{_TRAINING} {_VALIDATION} {_EXPORT} tracker",
    "track": f"{_TRAINING} {_VALIDATION} {_EXPORT}",
    "export": f"{_TRAINING} {_PREDICTION} {_FILES} save_json plots cache workers single_cls rect show_labels show_conf augment "
    "visualize classes compile channels_last dnn tracker verbose",
    "benchmark": f"{_TRAINING} optimize workspace tracker name",
}
HANDED_ON = {
    "train": "save_txt save_conf show_labels show_conf visualize augment dnn",  # to the validator: probed there
    "export": "data fraction split",  # to the calibration of 8-bit formats: tests/export/test_exporter.py
    "benchmark": f"{_FILES} {_VALIDATION} {_PREDICTION} rect show_labels show_conf augment visualize classes compile channels_last "
    "dnn conf max_det batch task agnostic_nms",  # are those of its predict and val, which do not get them from here
}
NAMED = {
    "mode": "is the command",
    "model": "is what each run is given",
    "cfg": "test_shell; train has a probe",
    "resume": "tests/engine/test_resume.py",
    "time": "test_time_limit_lets_the_schedules_arrive",
    "profile": "test_profile",
    "dnn": "test_opencv_dnn",
    "optimize": "test_arguments_of_other_formats",
    "workspace": "test_arguments_of_other_formats",
    "name": "train, val and predict have probes; export: test_arguments_of_other_formats",
}
READ_IN_PASSING = "save_dir task val deterministic mask_ratio overlap_mask"  # read and not used in this mode, or for a message


@pytest.mark.parametrize("mode", MODES)
def test_every_argument_is_decided(mode: str) -> None:
    """A key that ultralytics adds to its configuration fails here until somebody says what becomes of it in each mode."""
    decided = [{key for probes in PROBES[mode].values() for key in probes}]
    decided += [{key for key, entry in table.items() if mode in entry.modes} for table in (WITHOUT_EFFECT, REFUSED)]
    decided += [set(ELSEWHERE[mode].split()), set(HANDED_ON.get(mode, "").split()), set(NAMED)]
    undecided = set(DEFAULT_CFG_DICT) - set().union(*decided)
    assert not undecided, f"{mode}: give {sorted(undecided)} a probe, or a line in one of the tables, with the reason"
    assert not set(WITHOUT_EFFECT) - set(DEFAULT_CFG_DICT) and not set(REFUSED) - set(DEFAULT_CFG_DICT)
    twice = decided[0] & (decided[1] | decided[3])
    assert not twice, f"{mode}: {sorted(twice)} cannot both work and be without effect"


@pytest.mark.parametrize("mode", MODES)
def test_what_stock_reads_is_decided(grid: Grid, mode: str) -> None:
    """Measured: an argument that the stock model reads and ours does not is one that is listed, and none is hidden."""
    read = {family: set() for family in FAMILIES}
    for family in FAMILIES:
        for group in PROBES[mode]:
            read[family] |= grid.run(mode, family, group).read & set(DEFAULT_CFG_DICT)
    listed = {key for key, entry in WITHOUT_EFFECT.items() if mode in entry.modes}
    assert read["stock"] - read["ours"] <= listed | set(READ_IN_PASSING.split())
    probed = {key for probes in PROBES[mode].values() for key in probes}
    unseen = read["stock"] - probed - listed - set(REFUSED) - set(HANDED_ON.get(mode, "").split()) - set(NAMED)
    assert unseen <= set(READ_IN_PASSING.split()), f"{mode}: {sorted(unseen)} are read, but stand among those of other modes"


# --- arguments with a test of their own -----------------------------------------------------------------------------


def small(home: Path, **more: Any) -> dict[str, Any]:
    return {"data": str(home / "data.yaml"), "imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "verbose": False, **more}


@pytest.mark.parametrize("taught", [{}, {"distill_model": "stock.pt"}], ids=["", "taught"])
def test_time_limit_lets_the_schedules_arrive(home: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, str]) -> None:
    """time= changes the number of epochs on the way; the loss schedules follow it and end at 1, the learning rate at its end.

    The clock is a fake one: an epoch takes a minute, so that ten minutes are ten epochs, not the hundred of epochs=.
    """
    minutes = [0.0]
    monkeypatch.setattr("ultralytics.engine.trainer.time", SimpleNamespace(time=lambda: 60 * minutes[0]))
    progress, rates = [], []

    def over(trainer: Any) -> None:
        progress.append(trainer.model.criterion.progress)  # of the epoch to come
        rates.append(trainer.lf(trainer.epoch))
        minutes[0] += 1

    model = new_model(home, "ours")
    started: list[float] = []
    model.add_callback(
        "on_train_batch_start", lambda trainer: started.append(getattr(getattr(trainer.model, "criterion", None), "progress", 0.0))
    )
    model.add_callback("on_train_epoch_end", over)
    taught = {key: str(home / file) for key, file in taught.items()}
    model.train(
        time=6 / 60, epochs=100, val=False, optimizer="SGD", project=str(home / "ours"), name="time", **small(home), **taught
    )
    assert len(progress) in (6, 7)
    assert started[0] == 0 and started == sorted(started) and started[-1] == pytest.approx(1)
    assert rates[-1] < 0.3


@pytest.mark.parametrize(("given", "words"), [({"quantize": 8}, "Quantization-aware training")])
def test_refused(home: Path, given: dict[str, Any], words: str) -> None:
    """What training cannot do stops it in one sentence, before anything is written."""
    assert set(given) <= set(REFUSED)
    with pytest.raises(ValueError, match=words) as error:
        new_model(home, "ours").train(project=str(home / "ours"), name="refused", **small(home), **given)
    assert "\n" not in str(error.value) and not (home / "ours" / "refused").exists()


@pytest.mark.parametrize("mode", ["val", "predict", "track", "export"])
def test_without_effect_is_said_once(home: Path, mode: str, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument without effect is named once, with the reason, and the result is the same without it."""
    monkeypatch.setattr(arguments, "_told", set())
    calls: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
        "val": ({"data": str(home / "data.yaml"), "conf": 0.0001, "plots": False}, lambda made: made.results_dict),
        "predict": ({"source": str(home / "images/val"), "conf": 0.0001}, lambda made: [r.keypoints.data.tolist() for r in made]),
        "track": ({"source": str(home / "clip.avi"), "conf": 0.0001}, lambda made: [r.keypoints.data.tolist() for r in made]),
        "export": ({"format": "torchscript"}, lambda made: Path(made).suffix),
    }
    given, of = calls[mode]
    given = {**given, "imgsz": 64, "device": "cpu", "verbose": False}
    got = []
    for more in ({}, {"iou": 0.3, "agnostic_nms": True}, {"iou": 0.2, "nms": False}):
        got.append(of(getattr(new_model(home, "ours", "-swapped"), mode)(**given, **more)))
    assert got[0] == got[1] == got[2]
    said = [line for line in log if "has no effect on ER-Pose models" in line]
    assert len(said) == 2 and any("iou=0.3" in line and "no NMS" in line for line in said), said


def test_without_effect_in_training(home: Path, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gains of the stock loss are said to do nothing; defaults and unknown keys are passed over."""
    monkeypatch.setattr(arguments, "_told", set())
    values = {key: 0.1 for key, entry in WITHOUT_EFFECT.items() if "train" in entry.modes and DEFAULT_CFG_DICT[key] != 0.1}
    arguments.check_arguments("train", {**values, "my_own": 3})
    arguments.check_arguments("train", dict(DEFAULT_CFG_DICT))
    assert sorted(line.split("=")[0].split()[-1] for line in log) == sorted(values)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("given", "error"), [({"optimize": True}, "optimize"), ({"workspace": 2}, "workspace"), ({"name": "v73"}, "")]
)
def test_arguments_of_other_formats(home: Path, family: str, given: dict[str, Any], error: str) -> None:
    """What belongs to DeepX, TensorRT or a chip is refused or ignored for ONNX, as for a stock model."""
    model = new_model(home, family, "-swapped")
    if error:
        with pytest.raises(AssertionError, match=error):
            model.export(format="onnx", imgsz=64, device="cpu", **given)
    else:
        assert model.export(format="onnx", imgsz=64, device="cpu", **given).endswith(".onnx")


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 does not read all layers of the graph")
def test_opencv_dnn(home: Path) -> None:
    """dnn=True: OpenCV runs the ONNX export and finds the same persons as ONNX Runtime."""
    file = home / "starter.onnx"
    Path(ERPose("erpose-n.pt").export(format="onnx", imgsz=64, device="cpu")).rename(file)
    found = []
    for dnn in (False, True):
        result = ERPose(file).predict(home / "images/val/0.png", imgsz=64, conf=0.001, dnn=dnn, device="cpu", verbose=False)[0]
        found.append(result.boxes.data)
    assert len(found[0]) and torch.allclose(found[0], found[1], atol=0.01)


def test_profile(home: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """profile=True: experiment loggers get the speed of the run's ONNX export."""
    from ultralytics.utils import benchmarks
    from ultralytics.utils.torch_utils import model_info_for_loggers

    quick = {"num_timed_runs": 1, "num_warmup_runs": 1, "min_time": 0}
    monkeypatch.setattr(benchmarks, "ProfileModels", functools.partial(benchmarks.ProfileModels, **quick))
    trainer = grid.run("train", "ours", "narrow").trainer
    monkeypatch.setattr(trainer.args, "profile", True)
    assert model_info_for_loggers(trainer)["model/speed_ONNX(ms)"] > 0


def test_shell(home: Path, tmp_path: Path) -> None:
    """Each mode once as it is typed: the stock entry point hands its words on as keywords, ``model=`` among them."""
    (tmp_path / "more.yaml").write_text("max_det: 2\n")
    common = f"imgsz=64 device=cpu project={tmp_path}"
    data, weights = f"data={home / 'data.yaml'}", f"model={home / 'ours-swapped.pt'}"
    lines = {
        "train": f"model={home / 'erpose-ours.yaml'} {data} epochs=1 batch=4 plots=False name=train {common}",
        "val": f"{weights} {data} plots=False name=val {common}",
        "predict": f"{weights} source={home / 'images/val'} conf=0.0001 save_txt=True cfg={tmp_path / 'more.yaml'} name=p {common}",
        "track": f"{weights} source={home / 'clip.avi'} conf=0.0001 save=True name=track {common}",
        "export": f"{weights} format=onnx imgsz=64 device=cpu",
        "benchmark": f"{weights} {data} format=onnx imgsz=64 device=cpu verbose=True",
    }
    for mode in MODES:
        code = "from ultralytics.cfg import entrypoint; entrypoint()"
        words = [sys.executable, "-c", code, "pose", mode, *lines[mode].split()]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, f"yolo pose {mode} {lines[mode]}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "train" / "weights" / "best.pt").exists() and (home / "ours-swapped.onnx").exists()
    assert [len(f.read_text().splitlines()) for f in (tmp_path / "p" / "labels").iterdir()] == [2] * 4
    assert (tmp_path / "track" / "clip.avi").exists()
