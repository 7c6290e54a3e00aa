"""Which cell learns which person: candidates from keypoints, ranking by score and pose quality, one-to-many and one-to-one.

Everything here works on *persons x candidates* tables of a few hundred columns. No table over all cells is ever built,
so memory grows with the persons in the batch and not with the image's size.

Shapes: N persons of the whole batch in a row, C candidates per person, L levels, A cells per image, K keypoints.
Units: pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NO_CELL = -1  # stands in index tables where a person has no such candidate


@dataclass(frozen=True)
class Candidates:
    """Cells that may learn a person.

    Attributes:
        cell: (N, C) index into the A cells of the person's image, NO_CELL where there is none.
        centre: (N, C, 2) cell centres in pixels.
        stride: (N, C) pixels.
    """

    cell: Tensor
    centre: Tensor
    stride: Tensor

    @property
    def valid(self) -> Tensor:
        return self.cell >= 0


def labelled_extent(keypoints: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid and extent of the labelled keypoints.

    Args:
        keypoints: (N, K, 3) pixels and visibility, at least one keypoint of each person labelled.

    Returns:
        centroid (N, 2), low corner (N, 2), high corner (N, 2), pixels.
    """
    seen = (keypoints[..., 2:] > 0).to(keypoints.dtype)
    xy = keypoints[..., :2]
    centroid = (xy * seen).sum(1) / seen.sum(1).clamp(min=1)
    big = torch.finfo(keypoints.dtype).max
    low = torch.where(seen > 0, xy, torch.full_like(xy, big)).amin(1)
    high = torch.where(seen > 0, xy, torch.full_like(xy, -big)).amax(1)
    return centroid, low, high


def find_candidates(
    keypoints: Tensor,
    area: Tensor,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    center_sampling_window: int = 7,
    size_range: tuple[float, float] = (2.0, 12.0),
) -> Candidates:
    """Cells near a person's centroid, on the levels whose cells suit the person's size.

    On each level a window of cells around the centroid of the labelled keypoints is looked at; a cell is a candidate where its
    centre lies in the keypoints' extent, widened by one cell. OKS itself has no notion of the scale at which a person is best
    seen, so each level takes a range of sizes, the square roots of object areas.

    Args:
        keypoints: (N, K, 3) pixels and visibility.
        area: (N,) object area in square pixels.
        shapes: (height, width) in cells per level.
        strides: pixels per cell, per level, finest first.
        center_sampling_window: cells on a side of the window.
        size_range: a level of stride s takes persons with size_range[0]*s <= sqrt(area) <= size_range[1]*s. The finest level
            takes everything below its upper bound and the coarsest everything above its lower one, so none goes without.

    Returns:
        Candidates with C = L * center_sampling_window^2.
    """
    n = len(keypoints)
    exact = torch.promote_types(keypoints.dtype, torch.float32)  # half types cannot tell neighbouring cells apart
    keypoints, area = keypoints.to(exact), area.to(exact)
    centroid, low, high = labelled_extent(keypoints)
    size = area.sqrt()
    side = center_sampling_window
    reach = torch.arange(side, device=keypoints.device) - side // 2
    dx, dy = reach.repeat(side), reach.repeat_interleave(side)  # (side^2,)
    cells, centres, steps, first = [], [], [], 0
    for level, ((h, w), s) in enumerate(zip(shapes, strides, strict=True)):
        column = (centroid[:, :1] / s).floor().long().clamp(0, w - 1) + dx
        row = (centroid[:, 1:] / s).floor().long().clamp(0, h - 1) + dy
        centre = torch.stack((column, row), -1).to(keypoints.dtype).add(0.5).mul(s)  # (N, side^2, 2)
        inside = ((centre >= low[:, None] - s) & (centre <= high[:, None] + s)).all(-1)
        # a person whose labelled keypoints lie outside the image is still learnt at the cell nearest to them
        inside |= ((column == column.clamp(0, w - 1)) & (row == row.clamp(0, h - 1))) & (dx.abs() + dy.abs() == 0)
        on_level = torch.ones(n, dtype=torch.bool, device=keypoints.device)
        if level > 0:
            on_level &= size >= size_range[0] * s
        if level < len(strides) - 1:
            on_level &= size <= size_range[1] * s
        keep = inside & on_level[:, None] & (column >= 0) & (column < w) & (row >= 0) & (row < h)
        cells.append(torch.where(keep, first + row * w + column, torch.full_like(column, NO_CELL)))
        centres.append(centre)
        steps.append(centre.new_full((n, side * side), s))
        first += h * w
    return Candidates(torch.cat(cells, 1), torch.cat(centres, 1), torch.cat(steps, 1))


def alignment(score: Tensor, quality: Tensor, alpha: float, beta: float) -> Tensor:
    """score^alpha * quality^beta, the rank of a candidate (task alignment, arXiv 2108.07755, with OKS for IoU)."""
    return score.pow(alpha) * quality.pow(beta)


def one_to_many(rank: Tensor, candidates: Candidates, image: Tensor, num_cells: int, topk: int) -> Tensor:
    """One-to-many assignment: each person's ``topk`` best candidates; a cell that several persons claim goes to the best.

    Args:
        rank: (N, C) alignment, any non-negative finite numbers.
        candidates: the cells behind the columns.
        image: (N,) image index of each person.
        num_cells: A.
        topk: most cells per person.

    Returns:
        (N, C) bool.
    """
    n, c = rank.shape
    if n == 0 or c == 0:
        return torch.zeros_like(rank, dtype=torch.bool)
    masked = torch.where(candidates.valid, rank, torch.full_like(rank, -1.0))
    best = masked.topk(min(topk, c), dim=1).indices
    chosen = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, best, True) & candidates.valid
    return chosen & _wins_cell(masked, chosen, candidates.cell, image, num_cells)


def one_to_one(rank: Tensor, candidates: Candidates, image: Tensor, num_cells: int) -> Tensor:
    """Exactly one cell per person and at most one person per cell.

    Every person without a cell bids for its best candidate that no higher bid holds; a cell goes to the highest
    bidder, and who is outbid, also later, bids again (deferred acceptance, Gale and Shapley 1962). So the result is
    stable: no person would rather have a cell that is free or that a lower bid holds. Nearly always two or three rounds
    do. Persons are left without a cell only when all their candidates are held by bids as high as theirs.

    Args and shapes as :func:`one_to_many`.

    Returns:
        (N,) column of the assigned candidate, NO_CELL for a person that got none.
    """
    n, c = rank.shape
    result = torch.full((n,), NO_CELL, dtype=torch.long, device=rank.device)
    if n == 0 or c == 0:
        return result
    bids = torch.where(candidates.valid, rank, torch.full_like(rank, -1.0))
    where = (image[:, None] * num_cells + candidates.cell).clamp(min=0)  # (N, C) cell of the whole batch
    size = (int(image.max()) + 1) * num_cells
    held = torch.full((size,), -1.0, dtype=rank.dtype, device=rank.device)  # best bid on each cell so far
    holder = torch.full((size,), NO_CELL, dtype=torch.long, device=rank.device)  # and whose it is
    active = candidates.valid.any(1).nonzero(as_tuple=True)[0]
    while len(active):
        bid, column = torch.where(bids[active] > held[where[active]], bids[active], -1.0).max(1)
        active, column, bid = active[bid >= 0], column[bid >= 0], bid[bid >= 0]  # outbid everywhere: drops out
        target = where[active, column]
        winner = _first_best(bid, target, size)
        evicted = holder[target[winner]]
        evicted = evicted[evicted != NO_CELL]
        result[evicted] = NO_CELL
        result[active[winner]] = column[winner]
        held[target[winner]], holder[target[winner]] = bid[winner], active[winner]
        active = torch.cat((active[~winner], evicted)).sort().values
    return result


def _wins_cell(rank: Tensor, chosen: Tensor, cell: Tensor, image: Tensor, num_cells: int) -> Tensor:
    """(N, C) bool: the claim is the best one on its cell."""
    person, column = chosen.nonzero(as_tuple=True)
    wins = torch.zeros_like(chosen)
    if len(person):
        target = image[person] * num_cells + cell[person, column]
        wins[person, column] = _first_best(rank[person, column], target, int(target.max()) + 1)
    return wins


def _first_best(bid: Tensor, target: Tensor, size: int) -> Tensor:
    """(M,) bool: the highest bid on its target, the first one of equals (so that ties never share a cell)."""
    top = torch.full((size,), -1.0, dtype=bid.dtype, device=bid.device)
    top.scatter_reduce_(0, target, bid, "amax")
    order = torch.arange(len(bid), device=bid.device)
    best = bid == top[target]
    first = torch.full((size,), len(bid), dtype=torch.long, device=bid.device)
    first.scatter_reduce_(0, target[best], order[best], "amin")
    return best & (order == first[target])
