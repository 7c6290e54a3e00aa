"""The inverse of decoding, and maps from rows of cells: what tests need to make outputs of a head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from erpose_yolo.method.decode import OFFSET_CELLS


def encode_keypoints(keypoints: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Inverse of :func:`decode_keypoints` for picked cells: (M, K, 2) pixels to raw offsets."""
    return (keypoints - centres[:, None]) / (strides * OFFSET_CELLS)[:, None]


def split_levels(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, C, A) of all levels in a row as maps (B, C, H, W), one per level."""
    out, first = [], 0
    for h, w in shapes:
        out.append(flat[:, :, first : first + h * w].reshape(flat.shape[0], flat.shape[1], h, w))
        first += h * w
    return out
