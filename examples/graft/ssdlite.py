"""ER-Pose on the pyramid of torchvision's SSDLite320 MobileNetV3.

    python examples/graft/ssdlite.py                     # trains from random weights on the images in people/
    python examples/graft/ssdlite.py --style stock       # the same backbone with boxes, IoU assignment and NMS

README.md says how the images are made; `--help` lists the options.
"""

from __future__ import annotations

import common
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large


class SSDLite(common.Backbone):
    """The two finest of SSDLite's six maps; the other four see images of 300 px and more."""

    channels, strides = (672, 480), (16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.features = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).backbone.features

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.features:
            x = stage(x)
            maps.append(x)
        return maps


if __name__ == "__main__":
    common.main(SSDLite, __doc__)
