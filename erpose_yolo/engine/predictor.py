"""Prediction without NMS: rows, a threshold, Results."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.engine.results import Results
from ultralytics.models.yolo.pose import PosePredictor
from ultralytics.utils import ops

from erpose_yolo.data.drawing import PoseResults
from erpose_yolo.data.skeletons import COCO_17, Limbs, limbs_ok
from erpose_yolo.method.decode import HeadOutputs
from erpose_yolo.method.errorbars import pose_oks, sigma_units, spreads
from erpose_yolo.method.maps import select_persons
from erpose_yolo.method.oks import sigmas_for


class ERPosePredictor(PosePredictor):
    """Stock pose predictor whose post-processing is a threshold, and whose Results have error bars.

    Attributes:
        limbs: of the network's data set, as ``PoseResults`` takes them.
        show_sigma, save_sigma: error bars in the images and text files that are saved (``PoseResults``).
    """

    limbs: Limbs | None = None
    show_sigma = save_sigma = False

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        """Open the network; an export computes in the precision that it was exported in."""
        super().setup_model(model, verbose)
        self.decoder = None
        if hasattr(self.model, "units"):  # an export
            from erpose_yolo.export.exporter import full_precision, maps_decoder

            full_precision(self.model, model or self.args.model)
            self.decoder = maps_decoder(self.model)
        else:
            network: Any = self.model.model
            head = network.model[-1]
            if head.has_error_bars:
                oks_sigmas = sigmas_for(head.kpt_shape[0], getattr(network, "kpt_oks_sigmas", None))
                head.sigma_units = sigma_units(oks_sigmas, head.spread_factors)
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
        """Results of one image with the error bars that its rows end with, if any."""
        keypoints, values = self.model.kpt_shape
        pred, sigma = pred[:, : 6 + keypoints * values], pred[:, 6 + keypoints * values :]
        bars = self._error_bars(pred, sigma) if sigma.shape[1] else None  # before super() moves boxes to the image, and clips them
        result = super().construct_result(pred, img, orig_img, img_path)
        if bars is None:  # an export, or untrained spreads
            return self.finish(result)
        gain = min(side / full for side, full in zip(img.shape[2:], result.orig_shape))  # of letterboxing, as ops.scale_coords
        bars[:, :-1] /= gain
        return self.finish(result, bars)

    def _error_bars(self, pred: Tensor, sigma: Tensor) -> Tensor:
        """(P, K + 1) as ``ErrorBars`` takes them, in pixels of the network's input, of rows and the error bars at their ends."""
        boxes, keypoints = pred[:, :4].float(), sigma.shape[1]
        visibility = pred[:, 8::3].float() if self.model.kpt_shape[1] == 3 else boxes.new_ones(sigma.shape)
        spread = spreads(sigma.float(), boxes, sigmas_for(keypoints, self.about("sigmas")).to(boxes))
        oks = pose_oks(spread, visibility, self.about("oks_factor") or 1.0)
        return torch.cat((sigma, oks[:, None].to(sigma)), 1)

    def about(self, name: str) -> Any:
        """OKS "sigmas" of the data set that the network was trained for, or the head's "oks_factor"; None where nobody knows."""
        if self.model.format == "pt":
            network: Any = self.model.model
            return getattr(network, "kpt_oks_sigmas", None) if name == "sigmas" else network.model[-1].oks_factor
        found = getattr(self.model, name, None)  # of the export's metadata, which some formats keep as text
        return json.loads(found) if isinstance(found, str) else found

    def finish(self, result: Results, bars: Tensor | None = None) -> PoseResults:
        """Results that are drawn with the limbs of the network's data set, and saved as this predictor's arguments say.

        Args:
            result: of one image.
            bars: (P, K + 1) as ``ErrorBars`` takes them.
        """
        ours = PoseResults.of(result, self.limbs, bars)
        ours.show_sigma, ours.save_sigma = self.show_sigma, self.save_sigma
        return ours

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
            preds: rows (B, R, 6 + K*D), with error bars K more, alone or first in a tuple; or maps of an export (method.maps).
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
        return select_persons(preds, self.decoder, self.args.conf, self.args.max_det, self.args.classes)


def _scores_as_stock(head: Any, given: Any, output: tuple[Tensor, HeadOutputs]) -> tuple[Tensor, dict[str, Any]]:
    """Forward hook that names the score logits as the stock activation maps (``visualize=True``) look for them."""
    return output[0], {"one2one": {"scores": output[1].one2one_scores}}


@functools.lru_cache(maxsize=16)
def with_sigma(predictor: type[Any], show: bool, save: bool) -> type[Any]:
    """Predictor class that shows or saves error bars; the same class for the same arguments, so that a predictor is built once."""
    return type(f"{predictor.__name__}Sigma", (predictor,), {"show_sigma": show, "save_sigma": save})
