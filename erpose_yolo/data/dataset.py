"""The stock data set, reading our label rows: boxes are optional, and errors name the line."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_image, get_hash
from ultralytics.utils import colorstr
from ultralytics.utils.patches import PIL_FALLBACK_SUFFIXES, imread

from erpose_yolo.data.images import UNDECODED, image_size
from erpose_yolo.data.labels import ColumnError, LabelError, parse_labels
from erpose_yolo.data.skeletons import read_kpt_shape

ROWS = "erpose rows 3"  # into the hash of label caches, so that stock runs and ours do not read each other's


def check_decodes(image: str, flag: int) -> tuple[str, tuple[int, int]]:
    """Make sure that an image can be used, by decoding it as training will.

    The stock check reads the header of most formats and no more; an image damaged behind it ends a stock run in the middle
    of an epoch. Decoding all of a set takes about as long as reading it for one epoch; the label cache remembers the result.

    Args:
        image: file.
        flag: OpenCV's flag for reading it.

    Returns:
        A message of the stock check, empty if it changed nothing, and the image's height and width in pixels.

    Raises:
        Exception: it cannot be used; the message says why.
    """
    if not image.lower().endswith(PIL_FALLBACK_SUFFIXES):
        image_size(Path(image))  # before the stock check, which runs pip for a file that is no image
    message, _ = check_image(image)
    pixels = imread(image, flags=flag)
    if pixels is None:
        raise ValueError(UNDECODED)
    return message, pixels.shape[:2]


def verify(args: tuple[Any, ...]) -> list[Any]:
    """Check one image and read its labels.

    Args:
        args: image file, label file, log prefix, (K, D), number of classes, single_cls, OpenCV's flag for reading.

    Returns:
        The ten values of Ultralytics' own check: file, rows (N, 5), shape, segments, keypoints, missing, found, empty, corrupt,
        message. An image that cannot be used is left out and its message says file, line and fix.

    Raises:
        ColumnError: a wrong number of columns stops the run, see labels.ColumnError.
    """
    image, file, prefix, kpt_shape, num_classes, single_class, flag = args
    try:
        message, shape = check_decodes(image, flag)
        found = Path(file).is_file()
        if found:
            classes, boxes, keypoints = parse_labels(file, kpt_shape, num_classes, (shape[1], shape[0]), single_class)
        else:
            classes, boxes, keypoints = np.zeros((0, 1)), np.zeros((0, 4)), np.zeros((0, kpt_shape[0], 3), np.float32)
        rows = np.concatenate((classes, boxes), 1).astype(np.float32)
        message = f"{prefix}{message}" if message else ""
        return [image, rows, shape, [], keypoints, int(not found), int(found), int(found and not len(rows)), 0, message]
    except ColumnError:
        raise
    except Exception as error:  # as Ultralytics does: an unreadable image must not end a run of days
        what = str(error) if isinstance(error, LabelError) else f"{error}. Fix: replace or remove the image."
        return [None, None, None, None, None, 0, 0, 0, 1, f"{prefix}{image}: left out. {what}"]


class ERPoseDataset(YOLODataset):
    """YOLO-pose data set with optional boxes."""

    def verify_args(self) -> tuple[Any, Iterable[Any]]:
        """Our check and its arguments, one tuple per image."""
        k, d = self.data["kpt_shape"]
        each = (self.prefix, (k, d), len(self.data["names"]), self.single_cls, self.cv2_flag)
        return verify, zip(self.im_files, self.label_files, *map(repeat, each))

    def set_rectangle(self) -> None:
        """Stock shapes of rectangular batches; labels keep the ``shape`` that it takes away (box margins need it)."""
        shapes = [(label, label["shape"]) for label in self.labels]
        super().set_rectangle()
        for label, shape in shapes:
            label["shape"] = shape

    def get_cache_hash(self) -> str:
        """Stock hash, told apart from the stock reader's."""
        return get_hash([super().get_cache_hash(), ROWS])


def build_dataset(
    args: Any, img_path: str, batch: int | None, data: dict[str, Any], mode: str, rect: bool, stride: int, fraction: Any
) -> ERPoseDataset:
    """Build the data set of a split, with the stock loader's choices.

    Args:
        args: run configuration.
        img_path: folder or list of images.
        batch: images per batch, for rectangular batches.
        data: data dictionary with kpt_shape and names.
        mode: "train" augments, "val" does not.
        rect: rectangular batches.
        stride: sides are multiples of it, in pixels.
        fraction: share of the images to use.

    Raises:
        ValueError: no usable kpt_shape in the data YAML.
    """
    data["kpt_shape"] = read_kpt_shape(data.get("kpt_shape"), args.data)
    return ERPoseDataset(
        img_path=img_path,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=mode == "train",
        hyp=args,
        rect=args.rect or rect,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0 if mode == "train" else 0.5,
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
        fraction=1.0 if data.get("complete") else fraction,
    )
