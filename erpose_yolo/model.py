"""ERPose: the class that users meet, a YOLO that trains, predicts and exports ER-Pose models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.yolo.model import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, SETTINGS

from erpose_yolo import catalog
from erpose_yolo.network import ERPoseModel, load_model_yaml
from erpose_yolo.predictor import ERPosePredictor
from erpose_yolo.slicing import check, predict_slices
from erpose_yolo.smoothing import PoseSmoother
from erpose_yolo.tracking import TRACKER, TrackWatch
from erpose_yolo.trainer import ERPoseTrainer
from erpose_yolo.validator import ERPoseValidator
from erpose_yolo.weights import is_weights, load_weights, save_weights


class ERPose(YOLO):
    """ER-Pose model: the interface of ``ultralytics.YOLO`` for keypoint-first pose.

    Args:
        model: shipped name (``erpose-n.yaml`` for random weights, ``erpose-n.pt`` for the starter weights), a YAML of your own,
            or a checkpoint, safetensors file or export of an ER-Pose model.
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

    _smoother: PoseSmoother | None = None  # of a video that is fed frame by frame (persist)
    _watch: TrackWatch | None = None

    def __init__(self, model: Any = "erpose-n.yaml", task: str | None = None, verbose: bool = False) -> None:
        if task not in (None, "pose"):
            raise ValueError(f"ER-Pose models have the task 'pose', not '{task}'.")
        super().__init__(model=_weights(model), task="pose", verbose=verbose)
        self.task = "pose"  # a YOLO that hands over an export may have guessed another
        self.overrides: dict[str, Any] = {**self.overrides, "task": "pose"}

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
            from erpose_yolo.exporter import check_file

            check_file(weights)
        super()._load(weights, task=task)
        if not isinstance(self.model, (str, Path, ERPoseModel)):
            raise TypeError(
                f"{weights} is a {type(self.model).__name__}, not an ER-Pose model. Open it with ultralytics.YOLO, or take "
                f"over its trunk: ERPose('erpose-n.yaml').load('{weights}')"
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
            ModuleNotFoundError, FileExistsError: see weights.save_weights.
        """
        if is_weights(filename):
            self._check_is_pytorch_model()
            save_weights(self.model, filename)
        else:
            super().save(filename)

    def predict(
        self,
        source: Any = None,
        stream: bool = False,
        predictor: Any = None,
        slices: int | Sequence[int] | None = None,
        overlap: float = 0.25,
        **kwargs: Any,
    ) -> Any:
        """Predict, large pictures in slices if wanted.

        Args:
            source, stream, predictor, **kwargs: as ``YOLO.predict`` takes them.
            slices: side of square tiles in pixels of the picture, or several sides; tiles and the whole picture are
                predicted and merged by OKS (slicing.py). ``imgsz`` is the network's input for each of them.
            overlap: least share of a side that neighbouring tiles have in common.

        Returns:
            List of Results, with ``stream`` a generator of them.

        Raises:
            ValueError: slices or overlap out of range.
        """
        if slices is None:
            return super().predict(source, stream, predictor, **kwargs)
        results = self._predict_slices(source, slices, overlap, **kwargs)
        return results if stream else list(results)

    def _predict_slices(self, source: Any, slices: int | Sequence[int], overlap: float, **kwargs: Any) -> Iterator[Any]:
        from ultralytics.cfg import get_cfg, get_save_dir
        from ultralytics.data.build import load_inference_source

        sides = [slices] if isinstance(slices, int) else list(slices)
        for side in sides:
            check(side, overlap)
        save, show, batch = kwargs.pop("save", False), kwargs.pop("show", False), int(kwargs.pop("batch", 8))
        kwargs = {**kwargs, "save": False, "verbose": False}
        first = super().predict

        def predict(parts: list[Any]) -> list[Any]:
            return list(first(parts, **kwargs))

        pictures = ((path, image) for paths, images, _ in load_inference_source(source) for path, image in zip(paths, images))
        size = kwargs.get("imgsz") or self.overrides.get("imgsz") or DEFAULT_CFG_DICT["imgsz"]
        size = size if isinstance(size, int) else max(size)
        if isinstance(self.model, nn.Module):
            sigmas = getattr(self.model, "kpt_oks_sigmas", None)
        else:
            from erpose_yolo.exporter import read_metadata

            sigmas = read_metadata(self.model).get("sigmas")
        folder = get_save_dir(get_cfg(overrides={**self.overrides, **kwargs, "mode": "predict"})) if save else None
        for result in predict_slices(predict, pictures, sides, size, sigmas, overlap, batch):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                LOGGER.info(f"Saved {result.save(str(folder / Path(result.path).with_suffix('.jpg').name))}")
            if show:
                result.show()
            yield result

    def track(self, source: Any = None, stream: bool = False, persist: bool = False, smooth: float = 0, **kwargs: Any) -> Any:
        """Track, with joints smoothed per track if wanted.

        Without ``tracker=`` it is BoT-SORT, which starts tracks from a score of 0.25 on, so whoever predict shows is followed.
        Ultralytics' own default waits for 0.7, which the weights of a short training never reach (benchmarks/video.py).

        Args:
            source, stream, persist, **kwargs: as ``YOLO.track`` takes them.
            smooth: frames per second of the source; joints of each track go through a One-Euro filter (smoothing.py).
                0 leaves them as they are.
        """
        if self._watch is None:
            self._watch = TrackWatch()
            self._watch.register(self)
        self._watch.persist = persist
        kwargs["tracker"] = kwargs.get("tracker") or self.overrides.get("tracker") or TRACKER
        results = super().track(source, stream, persist, **kwargs)
        if not smooth:
            return results
        if not persist or self._smoother is None:
            self._smoother = PoseSmoother(smooth)
        smoothed = map(self._smoother, results)
        return smoothed if stream else list(smoothed)

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate, with the data sets of this package known by name."""
        return super().val(validator, **_resolved(kwargs))

    def export(self, **kwargs: Any) -> str:
        """Export without NMS, see exporter.export; data sets of this package are known by name (int8 calibration)."""
        from erpose_yolo import exporter  # late: it imports what only exports need

        return exporter.export(self, super().export, **_resolved(kwargs))

    def benchmark(self, data: str | None = None, format: str = "", verbose: bool | float = False, **kwargs: Any) -> Any:
        """Benchmark exports, with the data sets of this package known by name."""
        return super().benchmark(_resolved({"data": data})["data"], format, verbose, **kwargs)


def _weights(weights: Any) -> Any:
    return catalog.resolve_weights(weights, SETTINGS["weights_dir"])


def _resolved(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("data"):
        kwargs = {**kwargs, "data": catalog.resolve_data(kwargs["data"])}
    return kwargs
