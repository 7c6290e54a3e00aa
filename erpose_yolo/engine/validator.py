"""Validation: rows without NMS, our OKS sigmas, and pose AP alone as fitness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.utils.metrics import PoseMetrics

from erpose_yolo import catalog
from erpose_yolo.data.dataset import ERPoseDataset, build_dataset
from erpose_yolo.data.drawing import plot_skeletons
from erpose_yolo.data.skeletons import limbs_of
from erpose_yolo.method.maps import select_persons
from erpose_yolo.metrics.exact import ExactPose


class ERPoseMetrics(PoseMetrics):
    """Stock pose metrics, of which pose AP alone decides: boxes are derived from keypoints and are not what is trained."""

    @property
    def fitness(self) -> float:
        """Pose AP (OKS .50:.95)."""
        return self.pose.fitness()


class ERPoseValidator(ExactPose, PoseValidator):
    """Stock pose validator without NMS, with pycocotools' figures beside the stock ones (``metrics.exact``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = ERPoseMetrics()
        self.args.data = catalog.resolve_data(self.args.data)

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Start the metrics, after making sure that model and data agree on the keypoints.

        Raises:
            ValueError: kpt_shape of data and model differ, or sigmas do not fit the keypoints.
        """
        ours, theirs = list(self.data["kpt_shape"]), getattr(model, "kpt_shape", None)
        if theirs is not None and list(theirs) != ours:
            raise ValueError(
                f"kpt_shape {ours} of {self.args.data} differs from kpt_shape {list(theirs)} of the model. "
                "Validate with the data set the model was trained on, or train a model for this one."
            )
        super().init_metrics(model)
        self.network = model
        self.decoder = None
        if hasattr(model, "units"):  # an export
            from erpose_yolo.export.exporter import full_precision, maps_decoder

            full_precision(model, self.args.model)
            self.decoder = maps_decoder(model)

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> ERPoseDataset:
        """Data set of a split, see data.dataset.build_dataset."""
        fraction = get_split_fraction(self.args.fraction, self.args.split or "val")
        return build_dataset(self.args, img_path, batch, self.data, mode, False, self.stride, fraction)

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Stock preprocessing, and a check that the images fit an export of fixed size."""
        batch = super().preprocess(batch)
        if hasattr(self.network, "units"):  # an export
            from erpose_yolo.export.exporter import check_input

            check_input(batch["img"].shape, self.network)
        return batch

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """Rows or maps to per-image predictions: threshold and sort only."""
        return [
            {
                "bboxes": row[:, :4],
                "conf": row[:, 4],
                "cls": row[:, 5],
                "keypoints": row[:, 6 : 6 + self.kpt_shape[0] * self.kpt_shape[1]].reshape(-1, *self.kpt_shape),
            }
            for row in select_persons(preds, self.decoder, self.args.conf or 0.0, self.args.max_det)
        ]

    def plot_val_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Draw the labels of a validation batch as skeletons."""
        file = self.save_dir / f"val_batch{ni}_labels.jpg"
        plot_skeletons(batch, batch["im_file"], file, limbs_of(self.data, self.kpt_shape[0]), on_plot=self.on_plot)

    def plot_predictions(self, batch: dict[str, Any], preds: list[dict[str, Tensor]], ni: int, max_det: int | None = None) -> None:
        """Draw the predictions of a validation batch as skeletons with scores."""
        if not preds:
            return
        image = [torch.full_like(p["conf"], i) for i, p in enumerate(preds)]
        persons = {k: torch.cat([p[k] for p in preds]) for k in ("keypoints", "conf")}
        persons["batch_idx"] = torch.cat(image)
        file = self.save_dir / f"val_batch{ni}_pred.jpg"
        limbs = limbs_of(self.data, self.kpt_shape[0])
        plot_skeletons(batch, batch["im_file"], file, limbs, persons, on_plot=self.on_plot)
