"""ERPose: the class that users meet, a YOLO that trains, predicts and exports ER-Pose models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.yolo.model import YOLO
from ultralytics.nn.tasks import PoseModel
from ultralytics.trackers import register_tracker
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, SETTINGS

from erpose_yolo import catalog
from erpose_yolo.arguments import check_arguments
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.engine.slicing import TILES, SlicedPredictor, parse_sides, sliced_predictor
from erpose_yolo.engine.smoothing import TrackSmoother
from erpose_yolo.engine.table import TrackTable
from erpose_yolo.engine.tracking import TRACKER, TrackWatch
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.engine.validator import ERPoseValidator
from erpose_yolo.export.safetensors import is_weights, load_weights, save_weights
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

    Example:
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
        **kwargs: Any,
    ) -> Any:
        """Predict, large images in slices if wanted.

        Args:
            source, stream, predictor, **kwargs: as ``YOLO.predict`` takes them.
            slices: side of square tiles in pixels of the image, or several sides (``640``, ``"640,1600"``, ``[640, 1600]``);
                tiles and the whole image are predicted and merged by OKS (slicing.py). ``imgsz`` is the network's input for
                each of them, and ``batch`` the tiles at a time.
            overlap: least share of a side that neighbouring tiles have in common.

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
        elif predictor is None and isinstance(self.predictor, SlicedPredictor):
            predictor = ERPosePredictor  # the stock method would keep the last one
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

    def export(self, **kwargs: Any) -> str:
        """Export without NMS, see exporter.export; data sets of this package are known by name (int8 calibration)."""
        from erpose_yolo.export import exporter  # late: it imports what only exports need

        return exporter.export(self, super().export, **_resolved(kwargs))

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
