"""Exact evaluation inside an Ultralytics pose validator.

:class:`ExactPose` is mixed into a validator class, ours or a stock one, in front of it. It collects what the validator
predicts anyway. Of the stock figures it changes one thing: OKS sigmas follow one rule (oks.sigmas_for) for all models,
where stock validators take 1/K for a data set that names none and whose ``kpt_shape`` is not the list [17, 3]. Nothing of
ultralytics is imported here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo.method.oks import describe_sigmas, sigmas_for
from erpose_yolo.metrics import coco
from erpose_yolo.metrics.predictions import KEEP_SCORE, Collector, write_json
from erpose_yolo.metrics.truth import GroundTruth, find_annotations, from_annotations, from_labels

LOGGER = logging.getLogger("ultralytics")  # the logger that ultralytics prints with


def load_annotations(data: Mapping[str, Any], split: str, labels: Sequence[Mapping[str, Any]]) -> GroundTruth | None:
    """Ground truth of a split from its annotation file, None where there is none and its labels are to be taken.

    Args:
        data: Ultralytics data dictionary with ``path``, ``names``, ``kpt_shape`` and perhaps ``annotations``.
        split: train, val or test.
        labels: ``dataset.labels`` of the split's images, as Ultralytics read them.

    Raises:
        FileNotFoundError, ValueError: see :func:`truth.find_annotations` and :func:`truth.from_annotations`.
    """
    file = find_annotations(data, split)
    images = [label["im_file"] for label in labels]
    return None if file is None else from_annotations(file, int(data["kpt_shape"][0]), data["names"], images)


class ExactPose:
    """Mix-in for a pose validator: exact COCO metrics beside the stock ones, and predictions.json.

    Attributes:
        exact: figures of the last run (see :func:`coco.evaluate_coco`), also as ``metrics.exact``.
        truth: ground truth of the split; kept between the epochs of a training.
        collected: predictions of the last run.
        keep_score: see :class:`predictions.Collector`.
        show_table: print pycocotools' table after the stock lines.
    """

    exact: dict[str, float]
    truth: GroundTruth | None = None
    collected: Collector
    keep_score: float = KEEP_SCORE
    show_table: bool = True

    def init_metrics(self, model: Any) -> None:
        """Start the stock metrics, and read the annotation file, if any, on the first run.

        Raises:
            ValueError: kpt_shape of data and model differ.
        """
        this: Any = self
        network: Any = getattr(model, "model", None)  # stock models have had a kpt_shape since 8.4.175, their heads always
        parts = network.modules() if hasattr(network, "modules") else ()
        heads = (part.kpt_shape for part in parts if hasattr(part, "kpt_shape"))
        ours, theirs = list(this.data["kpt_shape"]), getattr(model, "kpt_shape", None) or next(heads, None)
        if theirs is not None and list(theirs) != ours:  # stock: "shape '[-1, 14, 3]' is invalid for input of size 51"
            raise ValueError(
                f"kpt_shape {list(theirs)} of the model differs from kpt_shape {ours} of {this.args.data}. "
                "Evaluate on the data set that the model was trained for."
            )
        custom = this.data.get("kpt_oks_sigmas")
        sigmas = sigmas_for(ours[0], custom)  # before the stock check, which does not say what to do
        super().init_metrics(model)  # type: ignore[misc]
        this.sigma = sigmas.numpy()
        if self.show_table and not this.training:
            LOGGER.info(describe_sigmas(ours[0], custom))
        self.collected, self.exact = Collector(self.keep_score), {}
        if self.truth is None or not this.training:
            labels = this.dataloader.dataset.labels
            self.truth = load_annotations(this.data, this.args.split or "val", labels)

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Collect a batch in pixels of the original images, then let the stock metrics have it."""
        this: Any = self
        shape = batch["img"].shape[2:]
        for i, pred in enumerate(preds):
            place = {"imgsz": shape, "ori_shape": batch["ori_shape"][i], "ratio_pad": batch["ratio_pad"][i]}
            pred = {key: pred[key].detach() for key in ("bboxes", "conf", "cls", "keypoints")}
            scaled = {key: value.float().cpu().numpy() for key, value in this.scale_preds(pred, place).items()}
            category = np.zeros_like(scaled["cls"]) if this.args.single_cls else scaled["cls"]
            file, original = batch["im_file"][i], batch["ori_shape"][i]
            self.collected.add(file, scaled["conf"], category, scaled["keypoints"], scaled["bboxes"], original)
        super().update_metrics(preds, batch)  # type: ignore[misc]

    def pred_to_json(self, predn: dict[str, Any], pbatch: dict[str, Any]) -> None:
        """Nothing: predictions.json is written from what is collected, complete or not at all."""

    def gather_stats(self) -> None:
        """Gather the stock metrics and what the other ranks collected."""
        super().gather_stats()  # type: ignore[misc]
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object(self.collected, parts, dst=0)
            self.collected.merge([part for part in parts or [] if part is not None])

    def get_stats(self) -> dict[str, Any]:
        """The stock figures; evaluates exactly on the way, and saves the predictions after a standalone run."""
        this: Any = self
        stats = super().get_stats()  # type: ignore[misc]
        if self.truth is None:  # labels: their places are known now that the sizes of the images are
            self.truth = from_labels(this.dataloader.dataset.labels, this.data["names"], self.collected.shapes)
        self.truth.check_sizes(self.collected.shapes)
        sigmas = coco.exact_sigmas(self.truth.keypoints.shape[1], this.data.get("kpt_oks_sigmas"))
        self.exact = coco.evaluate_coco(self.truth, self.collected.predictions(self.truth), sigmas)
        this.metrics.exact = self.exact
        if not this.training:
            write_json(Path(this.save_dir) / "predictions.json", self.collected.records(self.truth))
        return stats

    def print_results(self) -> None:
        """The stock lines, then pycocotools' table; one line of it while training."""
        super().print_results()  # type: ignore[misc]
        this: Any = self
        assert self.truth is not None
        if this.training:
            figures = "  ".join(f"{name} {self.exact[name]:.3f}" for name in ("AP", "AP50", "AP75"))
            LOGGER.info(f"{'pycocotools':>22}  {figures}")
        elif self.show_table:
            LOGGER.info(coco.table(self.exact, self.truth))
