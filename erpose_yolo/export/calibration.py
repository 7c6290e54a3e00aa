"""Images to calibrate 8-bit exports on where no data set is given, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from ultralytics.utils import ASSETS

from erpose_yolo.data.synth.config import SynthConfig
from erpose_yolo.data.synth.dataset import draw_image

DRAWN = 16  # images of synthetic people
SHARE = 0.6  # of the sides of a photo, for its crops
HINT = (
    "8 bits without data=: calibrated on two photos of ultralytics and on synthetic people. Photos like those that it will see, "
    "data=YOUR.yaml, are better."
)


def default_images() -> Iterator[NDArray[np.uint8]]:
    """The photos of the ultralytics package, whole and in parts, and synthetic people; BGR."""
    for file in sorted(ASSETS.glob("*.jpg")):
        photo = cv2.imread(str(file))
        assert photo is not None
        height, width = photo.shape[:2]
        yield photo
        for top in (0, 1 - SHARE):
            for left in (0, 1 - SHARE):
                y, x = int(top * height), int(left * width)
                yield photo[y : y + int(SHARE * height), x : x + int(SHARE * width)]
    for index in range(DRAWN):
        yield draw_image(SynthConfig(size=640, seed=0), "train", index)[0]


def write_default_data(folder: Path, keypoints: int) -> Path:
    """A data set of those images, without labels.

    Args:
        folder: where to.
        keypoints: K, which the data set has to state.

    Returns:
        Its data YAML.
    """
    images = folder / "images"
    images.mkdir()
    for index, image in enumerate(default_images()):
        cv2.imwrite(str(images / f"{index}.png"), image)
    path = folder / "data.yaml"
    info = {"path": str(folder), "train": "images", "val": "images", "kpt_shape": [keypoints, 3], "names": {0: "person"}}
    path.write_text(yaml.safe_dump(info))
    return path
