"""ER-Pose on the feature pyramid of torchvision's RetinaNet and FCOS, here over a ResNet-18.

    python examples/graft/retinanet.py                   # trains from random weights on the images in people/
    python examples/graft/retinanet.py --style stock     # the same backbone with boxes, IoU assignment and NMS

README.md says how the images are made; `--help` lists the options.
"""

from __future__ import annotations

import common
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


class ResNetFPN(common.Backbone):
    """P3 to P5."""

    channels, strides = (256, 256, 256), (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        # torchvision freezes batch norm by default, which needs pre-trained weights
        self.body = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, returned_layers=[2, 3, 4], norm_layer=nn.BatchNorm2d
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.body(x).values())[:3]  # the fourth is a pooled P5


if __name__ == "__main__":
    common.main(ResNetFPN, __doc__)
