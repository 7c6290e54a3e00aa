"""ERPose: the class that users meet, a YOLO that trains, predicts and exports ER-Pose models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.models.yolo.model import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, RANK

from erpose_yolo import catalog
from erpose_yolo.network import ERPoseModel, load_model_yaml
from erpose_yolo.predictor import ERPosePredictor
from erpose_yolo.trainer import ERPoseTrainer
from erpose_yolo.validator import ERPoseValidator


class ERPose(YOLO):
    """ER-Pose model: the interface of ``ultralytics.YOLO`` for keypoint-first pose.

    Args:
        model: shipped name (``erpose-n.yaml``), a YAML of your own, or a checkpoint or export of an ER-Pose model.
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

    def __init__(self, model: Any = "erpose-n.yaml", task: str | None = None, verbose: bool = False) -> None:
        if task not in (None, "pose"):
            raise ValueError(f"ER-Pose models have the task 'pose', not '{task}'.")
        super().__init__(model=model, task="pose", verbose=verbose)
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


def _resolved(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("data"):
        kwargs = {**kwargs, "data": catalog.resolve_data(kwargs["data"])}
    return kwargs
