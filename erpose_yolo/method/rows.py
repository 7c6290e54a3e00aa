"""Rows of persons: the one place where they are put together, in a graph for all or the best cells, on the host for those shown.

Shapes: B images, N cells, K keypoints, C classes. Units: pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from erpose_yolo.method.boxes import decode_boxes, derive_boxes
from erpose_yolo.method.decode import assemble_rows, confidence, decode_keypoints, expected_oks
from erpose_yolo.method.errorbars import keypoint_sigma

CONFIDENCES = ("expected_oks", "score")
Refine = Callable[[Tensor], tuple[Tensor, Tensor]]


def best_class(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Best score of each cell (B, 1, N) and its class (B, 1, N), in float, of operators that every converter knows.

    ncnn lacks argmax and comparisons, x2paddle's floor and ncnn's remainder fail, and ONNX's floor of a quotient truncates.

    Args:
        scores: (B, C, N) in [0, 1].
    """
    last = scores.shape[1] - 1
    if last == 0:
        return scores, scores * 0
    score = scores.amax(1, keepdim=True)
    behind = score - scores  # exactly 0 for the best alone, in half types, too
    for _ in range(3):
        behind = (behind * 6e4).clamp(0, 1)  # 0 or 1: the least difference of two scores grows beyond 1
    back = torch.arange(last, -1, -1, dtype=scores.dtype, device=scores.device)[:, None]
    return score, last - ((1 - behind) * back).amax(1, keepdim=True)  # the first of equal ones


def make_rows(
    part: Mapping[str, Tensor],
    centres: Tensor,
    strides: Tensor,
    refine: Refine | None,
    margins: Tensor,
    sorted_by: str = "expected_oks",
    columns: int = 3,
    sigma_units: Tensor | None = None,
) -> Tensor:
    """Decode outputs of cells to ``x1 y1 x2 y2 score class keypoints``; error bars follow where ``sigma_units`` are given.

    Args:
        part: "scores" (B, C, N) in [0, 1] and raw outputs, "offsets" (B, K, 2, N), "visibility" (B, K, N), with ``sorted_by``
            "expected_oks" or ``sigma_units`` "log_spread" (B, K, N), and "box" (B, 4, N) where boxes are learned.
        centres: (2, N) or (B, 2, N) pixels.
        strides: (1, N) or (B, 1, N) pixels.
        refine: what method.refine does with keypoints (B, K, 2, N): moved ones, and (B, K, N) to be added to log b; None for none.
        margins: (4, 3 + K) of derived boxes, with room (boxes.with_room).
        sorted_by: what the score column holds, "expected_oks" (decode.confidence) or "score".
        columns: D, 3 with visibility or 2 without.
        sigma_units: (K,) of errorbars.sigma_units; None for no error bars.

    Returns:
        (B, 6 + K*D, N), with error bars K more, a column per cell in the order given.

    Raises:
        ValueError: ``sorted_by`` is none of CONFIDENCES.
    """
    if sorted_by not in CONFIDENCES:
        raise ValueError(f"confidence {sorted_by!r} of the head is neither 'expected_oks' nor 'score'.")
    keypoints, wider = decode_keypoints(part["offsets"], centres, strides), None
    if refine is not None:
        keypoints, wider = refine(keypoints)
    visibility = part["visibility"].sigmoid()
    if "box" in part:
        boxes = decode_boxes(part["box"], centres, strides)
    else:
        boxes = derive_boxes(keypoints, visibility, margins)
    score, category = best_class(part["scores"])  # one cell is one person, whatever the number of classes
    log_spread = part.get("log_spread")
    if log_spread is not None and wider is not None:
        log_spread = log_spread + wider
    if sorted_by == "expected_oks":
        assert log_spread is not None
        score = confidence(score, expected_oks(log_spread, visibility))
    best = torch.cat((score, category), 1)
    sigma = None
    if sigma_units is not None:
        assert log_spread is not None
        sigma = keypoint_sigma(log_spread, boxes, sigma_units)
    return assemble_rows(boxes, best, keypoints, visibility if columns == 3 else None, sigma)
