"""ER-Pose on EfficientDet-D0: EfficientNet-B0 and three BiFPN cells, from the `effdet` package.

    pip install effdet
    python examples/graft/efficientdet.py                # trains from random weights on the images in people/
    python examples/graft/efficientdet.py --style stock  # the same backbone with boxes, IoU assignment and NMS

README.md says how the images are made; `--help` lists the options.
"""

from __future__ import annotations

import common
from effdet import EfficientDet, get_efficientdet_config
from effdet.config import set_config_writeable
from torch import Tensor


class D0(common.Backbone):
    """P3 to P5; P6 and P7 want sides in multiples of 128 px and persons larger than that."""

    channels, strides = (64, 64, 64), (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        config = get_efficientdet_config("tf_efficientdet_d0")
        set_config_writeable(config)
        config.num_levels, config.max_level, config.image_size = 3, 5, (common.SIZE, common.SIZE)
        detector = EfficientDet(config, pretrained_backbone=False)
        self.backbone, self.fpn = detector.backbone, detector.fpn

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.fpn(self.backbone(x)))


if __name__ == "__main__":
    common.main(D0, __doc__)
