"""Training: the stock pose trainer with our model, validator, label check and fitted box margins."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from erpose_yolo import catalog
from erpose_yolo.data.dataset import ERPoseDataset, build_dataset
from erpose_yolo.decode import fit_margins
from erpose_yolo.network import ERPoseModel
from erpose_yolo.oks import sigmas_for
from erpose_yolo.plotting import plot_skeletons
from erpose_yolo.validator import ERPoseValidator


class ERPoseTrainer(PoseTrainer):
    """Stock pose trainer for ER-Pose models."""

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = dict(overrides or {})
        if overrides.get("data"):
            overrides["data"] = catalog.resolve_data(overrides["data"])
        super().__init__(cfg, overrides, _callbacks)

    def get_dataset(self) -> dict[str, Any]:
        """Data dictionary, after a check of what training relies on.

        Raises:
            KeyError: no kpt_shape in the data YAML.
            ValueError: sigmas that do not fit the joints.
        """
        self.args.data = catalog.resolve_data(self.args.data)  # a resumed run brings the name from its checkpoint
        data = super().get_dataset()
        sigmas_for(data["kpt_shape"][0], data.get("kpt_oks_sigmas"))
        return data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> ERPoseDataset:
        """Data set of a split, see data.dataset.build_dataset."""
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        fraction = get_split_fraction(self.args.fraction, "train" if mode == "train" else self.args.split)
        return build_dataset(self.args, img_path, batch, self.data, mode, mode == "val", stride, fraction)

    def get_model(
        self,
        cfg: str | Path | dict[str, Any] | None = None,
        weights: nn.Module | None = None,
        verbose: bool = True,
    ) -> ERPoseModel:
        """Build the model for this data set and take over what fits of the weights.

        Raises:
            ValueError: a run is resumed on data with other joints than those it was started with.
        """
        wanted, theirs = list(self.data["kpt_shape"]), list(getattr(weights, "kpt_shape", self.data["kpt_shape"]))
        if isinstance(weights, ERPoseModel) and theirs != wanted:
            message = f"kpt_shape {wanted} of {self.args.data} differs from kpt_shape {theirs} of the checkpoint"
            if self.resume:
                raise ValueError(f"{message}. A run can be resumed on its own data only; start a new one from the weights.")
            LOGGER.warning(f"{message}: trunk and towers are taken over, the joints are learnt anew.")
        model = ERPoseModel(
            cfg or "erpose-n.yaml",
            nc=self.data["nc"],
            ch=self.data["channels"],
            data_kpt_shape=wanted,
            verbose=verbose and RANK == -1,
        )
        self.set_model_names_for_load(model)
        if weights is not None:
            model.load(weights)
        return model

    def set_model_attributes(self) -> None:
        """Attach joint names and sigmas, and fit the box margins."""
        super().set_model_attributes()
        self.model.kpt_shape = list(self.data["kpt_shape"])

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()
        self.fit_box_margins()

    def fit_box_margins(self) -> None:
        """Fit the margins of derived boxes to the training labels (closed form, before the first epoch)."""
        joints, boxes = [], []
        for label in self.train_loader.dataset.labels:
            size = np.array(label["shape"][::-1], np.float32)  # (width, height) in pixels
            box, points = label["bboxes"] * np.tile(size, 2), label["keypoints"].copy()
            points[..., :2] *= size
            boxes.append(np.concatenate((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1))
            joints.append(points)
        margins = fit_margins(torch.from_numpy(np.concatenate(joints)), torch.from_numpy(np.concatenate(boxes)))
        head = unwrap_model(self.model).model[-1]
        head.margins.copy_(margins)

    def get_validator(self) -> ERPoseValidator:
        """Validator for the epochs of this run."""
        return ERPoseValidator(
            self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Draw a training batch as skeletons."""
        plot_skeletons(batch, batch["im_file"], self.save_dir / f"train_batch{ni}.jpg", on_plot=self.on_plot)
