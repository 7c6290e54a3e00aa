"""Prediction without NMS: rows, a threshold, Results."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn
from ultralytics.models.yolo.pose import PosePredictor
from ultralytics.utils import ops

from erpose_yolo.data.drawing import PoseResults
from erpose_yolo.data.skeletons import COCO_17, Limbs, limbs_ok
from erpose_yolo.method.decode import HeadOutputs, select_rows


class ERPosePredictor(PosePredictor):
    """Stock pose predictor whose post-processing is a threshold."""

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        """Open the network; an export computes in the precision that it was exported in."""
        super().setup_model(model, verbose)
        if hasattr(self.model, "units"):  # an export
            from erpose_yolo.export.exporter import full_precision

            full_precision(self.model, model or self.args.model)
        self.limbs = self._limbs()

    def _limbs(self) -> Limbs | None:
        """Limbs of the network's data set; None where nothing is known of them, or where they are those that stock draws."""
        network = self.model.model if isinstance(self.model.model, nn.Module) else self.model  # a checkpoint or an export
        limbs, keypoints = getattr(network, "skeleton", None), self.model.kpt_shape[0]
        limbs = json.loads(limbs) if isinstance(limbs, str) else limbs  # most formats keep text
        if not limbs or not limbs_ok(limbs, keypoints):
            return None
        found: Limbs = tuple((a, b) for a, b in limbs)
        return None if keypoints == len(COCO_17.names) and set(found) == set(COCO_17.limbs) else found

    def construct_result(self, pred: Tensor, img: Tensor, orig_img: Any, img_path: str) -> PoseResults:
        """Results of one image, which draw the limbs of the network's data set."""
        return PoseResults.of(super().construct_result(pred, img, orig_img, img_path), self.limbs)

    def inference(self, im: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the network, after a check that the image fits an export of fixed size."""
        if hasattr(self.model, "units"):
            from erpose_yolo.export.exporter import check_input

            check_input(im.shape, self.model)
        head = self.model.model.model[-1] if self.args.visualize and self.model.format == "pt" else None
        if head is None:
            return super().inference(im, *args, **kwargs)
        hook = head.register_forward_hook(_scores_as_stock)
        try:
            return super().inference(im, *args, **kwargs)
        finally:
            hook.remove()

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Turn network output into Results.

        Args:
            preds: rows (B, R, 6 + K*D), alone or first in a tuple.
            img: (B, 3, H, W) network input.
            orig_imgs: original images, a list of arrays or a tensor.
            **kwargs: what other predictors take (an IoU threshold, say); there is no NMS to use it.
        """
        if not isinstance(orig_imgs, list):
            orig_imgs = ops.convert_torch2numpy_batch(orig_imgs)[..., ::-1]
        return self.construct_results(self.select(preds), img, orig_imgs)

    def select(self, preds: Any) -> list[Tensor]:
        """Rows of each image above the threshold, best first.

        Args:
            preds: see :meth:`postprocess`.
        """
        rows = preds[0] if isinstance(preds, (list, tuple)) else preds
        return select_rows(rows, self.args.conf, self.args.max_det, self.args.classes)


def _scores_as_stock(head: Any, given: Any, output: tuple[Tensor, HeadOutputs]) -> tuple[Tensor, dict[str, Any]]:
    """Forward hook that names the score logits as the stock activation maps (``visualize=True``) look for them."""
    return output[0], {"one2one": {"scores": output[1].one2one_scores}}
