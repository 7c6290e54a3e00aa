"""ERPose: the class that users meet, a YOLO that trains, predicts and exports ER-Pose models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from ultralytics.models.yolo.model import YOLO
from ultralytics.nn.tasks import PoseModel
from ultralytics.trackers import register_tracker
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, SETTINGS, TQDM

from erpose_yolo import catalog
from erpose_yolo.arguments import check_arguments
from erpose_yolo.engine.predictor import ERPosePredictor, with_sigma
from erpose_yolo.engine.slicing import TILES, SlicedPredictor, parse_sides, sliced_predictor
from erpose_yolo.engine.smoothing import TrackSmoother
from erpose_yolo.engine.table import TrackTable
from erpose_yolo.engine.tracking import TRACKER, TrackWatch
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.engine.validator import ERPoseValidator
from erpose_yolo.export.safetensors import is_weights, load_weights, save_weights
from erpose_yolo.method.errorbars import fit_factors, fit_oks_factor
from erpose_yolo.metrics.coco import exact_sigmas
from erpose_yolo.metrics.errorbars import Errors, measure_errors
from erpose_yolo.metrics.evaluate import read_labels
from erpose_yolo.metrics.exact import load_annotations
from erpose_yolo.metrics.truth import from_labels
from erpose_yolo.nn.network import ERPoseModel, load_model_yaml
from erpose_yolo.nn.yolo26 import advice, from_yolo26_pose, is_yolo26_pose


class ERPose(YOLO):
    """ER-Pose model: the interface of ``ultralytics.YOLO`` for keypoint-first pose.

    Args:
        model: shipped name (``erpose-n.yaml`` for random weights, ``erpose-n.pt`` for the weights that ship), a YAML of your own,
            or a checkpoint, safetensors file or export of an ER-Pose model; or a stock YOLO26-pose checkpoint, which is converted
            (``yolo26n-pose.pt``, downloaded by ultralytics where it is missing). A ``YOLO`` that holds either is taken over.
        task: ``pose``; there is no other.
        verbose: print the layers when a YAML is built.

    Raises:
        TypeError: the checkpoint is of another kind of model.
        ValueError, FileNotFoundError: see network.load_model_yaml.

    Examples:
        >>> model = ERPose("erpose-n.yaml")
        >>> model.train(data="synth-people.yaml", epochs=3, imgsz=192)
        >>> model.predict("street.jpg")[0].keypoints.xy
    """

    _warned = False  # of predictions with random weights
    _watch: TrackWatch | None = None

    def __init__(self, model: Any = "erpose-n.yaml", task: str | None = None, verbose: bool = False) -> None:
        if task not in (None, "pose"):
            raise ValueError(f"ER-Pose models have the task 'pose', not '{task}'.")
        super().__init__(model=_weights(model), task="pose", verbose=verbose)
        ERPose._convert(self, self.model_name)  # of a YOLO that was given; stock code may have changed the class (RT-DETR)
        self.task = "pose"  # a YOLO that hands over an export may have guessed another
        self.overrides: dict[str, Any] = {**self.overrides, "task": "pose"}
        if "data" in self.overrides:
            self.overrides["data"] = catalog.resolve_stored_data(self.overrides["data"])

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        self.cfg = self.model_name = cfg
        self.task = "pose"
        self.model = ERPoseModel(load_model_yaml(cfg), verbose=verbose and RANK == -1)
        self.overrides = {"model": cfg, "task": self.task}
        self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}  # export reads them
        self.model.task = self.task

    def _load(self, weights: str, task: str | None = None) -> None:
        if is_weights(weights):
            self.model = load_weights(weights)
            self.ckpt: dict[str, Any] = {"train_args": {}}  # not empty: then training starts from these weights
            self.task = self.model.task
            self.overrides = {"imgsz": self.model.args["imgsz"], "model": weights, "task": self.task}
            self.ckpt_path = self.model_name = weights
            return
        if Path(str(weights).rstrip("/\\")).suffix.lower() not in {".pt", ".pth"}:
            from erpose_yolo.export.exporter import check_file

            check_file(weights)
        super()._load(weights, task=task)
        self._convert(weights)

    def _convert(self, weights: Any) -> None:
        """Turn a stock YOLO26-pose network into one of ours.

        Args:
            weights: the file that it was read from.

        Raises:
            TypeError: a network of another kind.
        """
        if isinstance(self.model, (str, Path, ERPoseModel)):  # text is an export
            return
        reason = "not an ER-Pose model"
        if is_yolo26_pose(self.model):
            try:
                converted = from_yolo26_pose(self.model)
            except ValueError as error:
                reason = f"and cannot be converted: {error}"
            else:
                self.__dict__ = {**self.__dict__, "_modules": dict(self._modules)}  # those of the YOLO that was given stay
                self.model = converted
                self.ckpt = {"train_args": {}}  # not empty: then training starts from these weights
                LOGGER.info(
                    f"{weights}: YOLO26-pose converted to ER-Pose, with scores and keypoints of its one-to-one head and boxes "
                    "derived from keypoints. ultralytics.YOLO opens it as it is."
                )
                return
        elif isinstance(self.model, PoseModel):
            reason = "and cannot be converted: it has no one-to-one head"
        raise TypeError(
            f"{weights} is a {type(self.model).__name__}, {reason}. Open it with ultralytics.YOLO, or {advice(self.model, weights)}"
        )

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Classes per task."""
        return {
            "pose": {
                "model": ERPoseModel,
                "trainer": ERPoseTrainer,
                "validator": ERPoseValidator,
                "predictor": ERPosePredictor,
            }
        }

    def load(self, weights: Any = "erpose-n.pt") -> ERPose:
        """Take over what fits of other weights; those that ship with the package are known by name."""
        loaded: ERPose = super().load(_weights(weights))
        return loaded

    def save(self, filename: str | Path = "saved_model.pt") -> None:
        """Save the model: a checkpoint in half precision, or without code as ``NAME.safetensors`` and ``NAME.yaml``.

        Args:
            filename: the suffix says which.

        Raises:
            ModuleNotFoundError, FileExistsError: see export.safetensors.save_weights.
        """
        if is_weights(filename) and isinstance(self.model, ERPoseModel):
            save_weights(self.model, filename)
        else:
            super().save(filename)  # which says what an export cannot do

    def predict(
        self,
        source: Any = None,
        stream: bool = False,
        predictor: Any = None,
        slices: int | str | Sequence[int] | None = None,
        overlap: float = 0.25,
        show_sigma: bool = False,
        save_sigma: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Predict, large images in slices if wanted. ``result.erpose.sigma`` holds the error bars of a result's keypoints.

        Args:
            source, stream, predictor, **kwargs: as ``YOLO.predict`` takes them.
            slices: side of square tiles in pixels of the image, or several sides (``640``, ``"640,1600"``, ``[640, 1600]``);
                tiles and the whole image are predicted and merged by OKS (slicing.py). ``imgsz`` is the network's input for
                each of them, and ``batch`` the tiles at a time.
            overlap: least share of a side that neighbouring tiles have in common.
            show_sigma: draw error bars (circles of two standard deviations) in images that are saved or shown.
            save_sigma: write them to the text files of ``save_txt=True``.

        Returns:
            List of Results, with ``stream`` a generator of them.

        Raises:
            ValueError: slices or overlap out of range, or a predictor of one's own beside them.
        """
        check_arguments(kwargs.get("mode", "predict"), kwargs)
        self._warn_if_random()
        if slices is not None:
            if predictor is not None:
                raise ValueError("Give either slices= or predictor=: slices bring a predictor of their own.")
            sides = parse_sides(slices, overlap)
            predictor = sliced_predictor(sides, float(overlap), int(kwargs.get("batch") or TILES))
            kwargs["batch"] = 1  # images at a time
        elif predictor is None and isinstance(self.predictor, ERPosePredictor):
            last = self.predictor
            if isinstance(last, SlicedPredictor) or last.show_sigma or last.save_sigma:
                predictor = ERPosePredictor  # the stock method would keep the last one
        if show_sigma or save_sigma:
            predictor = with_sigma(predictor or ERPosePredictor, show_sigma, save_sigma)
        return super().predict(source, stream, predictor, **kwargs)

    def _warn_if_random(self) -> None:
        """Warn, once, where the head has never been trained: its normalisation layers are as they were made."""
        if self._warned or not isinstance(self.model, ERPoseModel):
            return
        norms = [layer for layer in self.model.model[-1].modules() if isinstance(layer, nn.BatchNorm2d)]
        if norms and not any(bool(n.running_mean.any()) for n in norms if n.running_mean is not None):
            self._warned = True
            LOGGER.warning(
                f"{self.model_name} has random weights: what it predicts means nothing. Train it, or take trained weights "
                f"({', '.join(catalog.list_weights())})."
            )

    def track(
        self,
        source: Any = None,
        stream: bool = False,
        persist: bool = False,
        smooth: float | bool | str = 0,
        out: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """Track, with keypoints smoothed per track and written to a table if wanted.

        Without ``tracker=`` it is BoT-SORT, which starts tracks from a score of 0.25 on, so whoever predict shows is followed.
        Ultralytics' own default waits for 0.7, which the weights of a short training never reach (benchmarks/accuracy/video.py).

        Args:
            source, stream, persist, **kwargs: as ``YOLO.track`` takes them; ``slices`` and ``overlap`` as :meth:`predict` does.
            smooth: keypoints of each track go through a One-Euro filter (smoothing.py). ``True`` for a video or camera, which
                knows its frame rate; else frames per second. 0 leaves keypoints as they are. Each call sets it anew. "offline":
                the results are as they are found, and the table of ``out`` is smoothed without lag (offline.py).
            out: file of a table of the tracks (table.py), which is there when the call, or with ``stream`` its loop, ends.

        Raises:
            ValueError: smooth is not a frame rate, or asks for that of a source that has none; offline without out; out with
                persist, whose calls go on from one another; out is no table's name.
            ModuleNotFoundError: Parquet without pyarrow.
        """
        offline = smooth == "offline"
        filtered: Any = 0 if offline else smooth
        if offline and out is None:
            raise ValueError("smooth=offline smooths tracks that are over: give the table they go to, for example out=people.csv.")
        if out is not None and persist:
            raise ValueError("out= is the table of one call, and persist=True goes on in the next. Use engine.table.TrackTable.")
        table = None if out is None else TrackTable(out, offline)
        if self._watch is None:
            self._watch = TrackWatch()
            self._watch.register(self)
        self._watch.persist = persist
        kwargs["tracker"] = kwargs.get("tracker") or self.overrides.get("tracker") or TRACKER
        register_tracker(self, persist)  # now, so that the smoother comes after it
        TrackSmoother.register(self, filtered, persist)
        if kwargs.get("slices") is not None:
            kwargs.setdefault("batch", TILES)  # the stock method's default is 1
        if table is None:
            return super().track(source, stream, persist, **kwargs)
        track = partial(super().track, source, stream, persist, **kwargs)

        def frames() -> Iterator[Any]:
            with table.behind(self):
                yield from track()

        if stream:
            return frames()
        with table.behind(self):
            return track()

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate, with the data sets of this package known by name."""
        check_arguments("val", kwargs)
        return super().val(validator, **_resolved(kwargs))

    def calibrate(self, data: str, split: str = "val", images: int = 1000, **kwargs: Any) -> Errors:
        """Fit what error bars are multiplied by, so that 49 and 86 % of the keypoints are within one and two of them.

        What the expected OKS (``result.erpose.oks``) is computed with is fitted, too, so that its mean is that of the true OKS.
        :meth:`save` keeps the factors; training drops them. They are true of images like those that they were fitted on, so take
        some that the model has not been trained on.

        Args:
            data: data YAML with labels.
            split: val, train or test.
            images: at most so many, at random.
            **kwargs: as :meth:`predict` takes them.

        Returns:
            The errors that were fitted, in standard deviations without factors.

        Raises:
            ValueError: an export, which cannot be changed, or nobody found that is labelled.
        """
        if not isinstance(self.model, ERPoseModel):
            raise ValueError(f"{self.model_name} is an export: calibrate its checkpoint, then export it again with sigma=True.")
        head = self.model.model[-1]
        before = head.spread_factors, head.oks_factor
        head.spread_factors = [1.0] * head.kpt_shape[0]
        try:
            errors = self.measure_errors(data, split, images, **kwargs)
            if not errors.labelled.any():
                raise ValueError(f"No error bars to calibrate: none of the people labelled in {data} ({split}) were found.")
            ratio, labelled, spread, visibility, true = (
                torch.from_numpy(getattr(errors, name)) for name in ("ratio", "labelled", "spread", "visibility", "true")
            )
            factors = fit_factors(ratio, labelled)
            before = factors.tolist(), fit_oks_factor(spread * factors, visibility, true)
        finally:
            head.spread_factors, head.oks_factor = before
            self.predictor = None  # which has a copy of the head
        return errors

    def measure_errors(self, data: str, split: str = "val", images: int | None = None, **kwargs: Any) -> Errors:
        """Errors of keypoints on labelled images in standard deviations (metrics.errorbars); arguments as :meth:`calibrate`."""
        with TemporaryDirectory() as folder:
            labels, info = read_labels(str(catalog.resolve_data(data)), split, Path(folder), {})
        if images is not None and images < len(labels):
            labels = random.Random(0).sample(labels, images)
        truth = load_annotations(info, split, labels) or from_labels(labels, info["names"])
        sigmas = exact_sigmas(truth.keypoints.shape[1], info.get("kpt_oks_sigmas"))
        self.predictor = None  # it may have a head without error bars
        options = {"verbose": False, **kwargs, "save": False}
        files = TQDM([label["im_file"] for label in labels], desc="Error bars")
        return measure_errors((self.predict(file, **options)[0] for file in files), truth, sigmas)

    def export(self, layout: str | None = None, sigma: bool = False, **kwargs: Any) -> str:
        """Export without NMS, see exporter.export; data sets of this package are known by name (int8 calibration).

        Args:
            layout: what the file's outputs hold: "rows" of the best persons, sorted; raw "maps" of the head, decoded on the
                host; or "cells", a row per cell of the grid. None is rows, or maps where the runtime has no TopK. Files of any
                layout predict, validate and track alike (docs/export-layout.md).
            sigma: rows end with the error bar of each keypoint; maps always allow them.
            **kwargs: as ``YOLO.export`` takes them.

        Raises:
            ValueError: a layout that the format cannot have.
        """
        from erpose_yolo.export import exporter  # late: it imports what only exports need

        return exporter.export(self, super().export, layout, sigma, **_resolved(kwargs))

    def benchmark(self, data: str | None = None, format: str = "", verbose: bool | float = False, **kwargs: Any) -> Any:
        """Benchmark exports, with the data sets of this package known by name."""
        check_arguments("benchmark", kwargs)
        return super().benchmark(_resolved({"data": data})["data"], format, verbose, **kwargs)


def _weights(weights: Any) -> Any:
    return catalog.resolve_weights(weights, SETTINGS["weights_dir"])


def _resolved(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("data"):
        kwargs = {**kwargs, "data": catalog.resolve_data(kwargs["data"])}
    return kwargs
