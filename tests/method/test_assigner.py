"""Assignment: hand-made cases, and what must hold for any of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from erpose_yolo.method.assigner import NO_CELL, Candidates, alignment, find_candidates, labelled_extent, one_to_many, one_to_one
from erpose_yolo.method.decode import make_cells

SHAPES, STRIDES = [(8, 10), (4, 5), (2, 3)], [8.0, 16.0, 32.0]  # an 80 x 64 px image
NUM_CELLS = 80 + 20 + 6


def person(*xy: tuple[float, float], seen: int = 2) -> Tensor:
    """(1, K, 3) keypoints."""
    return torch.tensor([[(x, y, seen) for x, y in xy]], dtype=torch.float32)


def table(cells: list[list[int]]) -> Candidates:
    """Candidates whose cells are given by hand."""
    cell = torch.tensor(cells).view(len(cells), -1)
    return Candidates(cell, torch.zeros(*cell.shape, 2), torch.ones(cell.shape))


def cells_of(rank: list[list[float]], cells: list[list[int]], image: list[int], num_cells: int = 100) -> list[int]:
    """Cell per person of the one-to-one assignment, NO_CELL for none."""
    found = table(cells)
    column = one_to_one(torch.tensor(rank), found, torch.tensor(image), num_cells)
    picked = found.cell.gather(1, column.clamp(min=0)[:, None])[:, 0]
    return torch.where(column == NO_CELL, NO_CELL, picked).tolist()


# --- candidates ---------------------------------------------------------------------------------------------------


def test_extent_counts_labelled_keypoints_only() -> None:
    """Unlabelled keypoints are stored as (0, 0): were they counted, every centroid would be dragged to the corner."""
    keypoints = torch.tensor([[[10.0, 20, 2], [30, 60, 1], [0, 0, 0]], [[5, 5, 0], [6, 6, 0], [7, 8, 2]]])
    centroid, low, high = labelled_extent(keypoints)
    assert centroid.tolist() == [[20, 40], [7, 8]]
    assert low.tolist() == [[10, 20], [7, 8]] and high.tolist() == [[30, 60], [7, 8]]


def test_candidates_lie_on_the_grid() -> None:
    """A candidate's index, centre and stride must be one cell's, or its person is learnt somewhere else."""
    keypoints = torch.cat((person((20, 10), (60, 50)), person((70, 60), (79, 63)), person((1, 1), (5, 9))))
    found = find_candidates(keypoints, torch.tensor([900.0, 80.0, 60.0]), SHAPES, STRIDES)
    centres, strides = make_cells(SHAPES, STRIDES, keypoints)
    assert found.cell.shape == (3, 3 * 49) and found.valid.any(1).all()
    assert torch.equal(centres.T[found.cell[found.valid]], found.centre[found.valid])
    assert torch.equal(strides[0][found.cell[found.valid]], found.stride[found.valid])


def test_candidates_by_hand() -> None:
    """Cells whose centre lies in the keypoints' extent widened by one cell, no further than the window."""
    found = find_candidates(person((30, 30), (34, 34)), torch.tensor([16.0]), SHAPES[:1], STRIDES[:1])
    # extent 30..34 widened by 8 is 22..42: centres 28 and 36, columns and rows 3 and 4
    assert sorted(found.cell[found.valid].tolist()) == [33, 34, 43, 44]
    wide = find_candidates(person((0, 0), (80, 64)), torch.tensor([16.0]), SHAPES[:1], STRIDES[:1], center_sampling_window=3)
    # centroid (40, 32) lies in column 5, row 4
    assert sorted(wide.cell[wide.valid].tolist()) == [34, 35, 36, 44, 45, 46, 54, 55, 56]


def test_candidates_are_distinct() -> None:
    """A cell listed twice for one person would count twice in its loss."""
    torch.manual_seed(0)
    keypoints = torch.cat((torch.rand(50, 4, 2) * 140 - 30, torch.full((50, 4, 1), 2.0)), 2)
    found = find_candidates(keypoints, torch.rand(50) * 3000 + 16, SHAPES, STRIDES)
    for row, valid in zip(found.cell, found.valid):
        cells = row[valid].tolist()
        assert len(cells) == len(set(cells)) > 0
        assert min(cells) >= 0 and max(cells) < NUM_CELLS


@pytest.mark.parametrize(("size", "levels"), [(4, {0}), (40, {0, 1}), (80, {0, 1, 2}), (97, {1, 2}), (200, {2}), (5000, {2})])
def test_levels_are_gated_by_size(size: float, levels: set[int]) -> None:
    """Small persons are learnt on fine levels, large ones on coarse levels, and none goes without."""
    keypoints = person((5, 5), (75, 60))
    found = find_candidates(keypoints, torch.tensor([size**2 * 1.0]), SHAPES, STRIDES, size_range=(2.0, 12.0))
    strides = set(found.stride[found.valid].tolist())
    assert strides == {STRIDES[i] for i in levels}


def test_one_visible_keypoint_has_candidates() -> None:
    """A person of whom one wrist is labelled is still learnt, near that wrist."""
    keypoints = torch.zeros(1, 17, 3)
    keypoints[0, 9] = torch.tensor([43.0, 21.0, 1.0])
    found = find_candidates(keypoints, torch.tensor([16.0]), SHAPES, STRIDES)
    assert 1 <= found.valid.sum() <= 4
    assert (found.centre[found.valid] - keypoints[0, 9, :2]).abs().max() <= 8


@pytest.mark.parametrize("at", [(-500.0, 30.0), (500.0, 30.0), (30.0, -500.0), (9e3, 9e3)])
def test_keypoints_outside_the_image_have_the_nearest_cell(at: tuple[float, float]) -> None:
    """Augmentation pushes keypoints out of the image; such a person gets the border cell and breaks nothing."""
    found = find_candidates(person(at, at), torch.tensor([400.0]), SHAPES, STRIDES)
    assert found.valid.any()
    cell = found.cell[found.valid]
    assert cell.min() >= 0 and cell.max() < NUM_CELLS
    nearest = torch.tensor(at).clamp(torch.tensor([0.0, 0.0]), torch.tensor([79.0, 63.0]))
    assert (found.centre[found.valid] - nearest).abs().amax(1).le(found.stride[found.valid]).all()


def test_no_persons() -> None:
    """An empty batch flows through candidates and both assignments."""
    found = find_candidates(torch.zeros(0, 17, 3), torch.zeros(0), SHAPES, STRIDES)
    rank, image = torch.zeros(found.cell.shape), torch.zeros(0, dtype=torch.long)
    assert found.cell.shape == (0, 147)
    assert one_to_one(rank, found, image, NUM_CELLS).shape == (0,)
    assert one_to_many(rank, found, image, NUM_CELLS, 10).shape == (0, 147)


def test_padding_images_to_the_batch_changes_nothing() -> None:
    """A person's cells depend on its own image: not on its neighbours in the batch, nor on empty ones."""
    torch.manual_seed(0)
    keypoints = torch.cat((torch.rand(6, 4, 2) * 70, torch.full((6, 4, 1), 2.0)), 2)
    area, image = torch.rand(6) * 900 + 16, torch.tensor([0, 0, 0, 1, 1, 1])
    found = find_candidates(keypoints, area, SHAPES, STRIDES)
    rank = torch.rand(found.cell.shape)
    for spread in (torch.tensor([0, 5]), torch.tensor([3, 17])):
        other = spread[image]
        assert torch.equal(one_to_one(rank, found, image, NUM_CELLS), one_to_one(rank, found, other, NUM_CELLS))
        assert torch.equal(one_to_many(rank, found, image, NUM_CELLS, 4), one_to_many(rank, found, other, NUM_CELLS, 4))
    alone = find_candidates(keypoints[:3], area[:3], SHAPES, STRIDES)
    assert torch.equal(alone.cell, found.cell[:3])
    assert torch.equal(one_to_one(rank[:3], alone, image[:3], NUM_CELLS), one_to_one(rank, found, image, NUM_CELLS)[:3])


# --- ranking ------------------------------------------------------------------------------------------------------


def test_alignment_by_hand() -> None:
    """score^alpha * quality^beta; a zero of either ranks last and is no NaN."""
    score, quality = torch.tensor([0.25, 0.0, 1.0]), torch.tensor([0.5, 1.0, 0.0])
    assert alignment(score, quality, 0.5, 2.0).tolist() == [0.125, 0.0, 0.0]


# --- one-to-one ---------------------------------------------------------------------------------------------------


def test_best_cell_wins() -> None:
    """Without a quarrel everyone gets the best candidate; columns without a cell are never taken."""
    assert cells_of([[0.1, 0.9, 0.5], [0.7, 0.2, 99.0]], [[3, 4, 5], [8, 9, -1]], [0, 0]) == [4, 8]


def test_loser_takes_the_next_best_free_cell() -> None:
    """Three persons want cell 7: the best bidder has it, the others go down their lists, also past a second quarrel."""
    rank = [[0.9, 0.5, 0.1], [0.8, 0.6, 0.2], [0.7, 0.4, 0.3]]
    assert cells_of(rank, [[7, 1, 2], [7, 1, 2], [7, 1, 2]], [0, 0, 0]) == [7, 1, 2]


def test_late_bid_beats_an_early_lower_one() -> None:
    """Person 0 loses cell 7, then wants cell 3 far more than person 2 does, who has another: all three get a cell."""
    assert cells_of([[0.9, 0.85], [0.95, 0.1], [0.2, 0.1]], [[7, 3], [7, 9], [3, 8]], [0, 0, 0]) == [3, 7, 8]


def test_same_cell_of_two_images_is_two_cells() -> None:
    """Persons of different images never compete."""
    assert cells_of([[0.9, 0.1], [0.8, 0.1]], [[5, 6], [5, 6]], [0, 1]) == [5, 5]


def test_ties_are_broken() -> None:
    """Equal ranks everywhere (an untrained network) must still give distinct cells."""
    got = cells_of([[0.5] * 4] * 4, [[1, 2, 3, 4]] * 4, [0] * 4)
    assert sorted(got) == [1, 2, 3, 4]
    assert sorted(cells_of([[0.0] * 3] * 3, [[1, 2, 3]] * 3, [0] * 3)) == [1, 2, 3]  # ranks that underflowed


def test_more_persons_than_cells() -> None:
    """A crowd on a small grid: every cell is used once, the surplus goes without, and it ends."""
    got = cells_of([[0.5, 0.4]] * 5, [[1, 2]] * 5, [0] * 5)
    assert sorted(got) == [-1, -1, -1, 1, 2]


def test_two_identical_persons_get_different_cells() -> None:
    """Duplicated labels exist in real data; both rows must be learnable."""
    keypoints = torch.cat([person((20, 10), (60, 50))] * 2)
    found = find_candidates(keypoints, torch.tensor([900.0, 900.0]), SHAPES, STRIDES)
    rank = torch.rand(1, found.cell.shape[1], generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    column = one_to_one(rank, found, torch.zeros(2, dtype=torch.long), NUM_CELLS)
    cell = found.cell.gather(1, column[:, None])[:, 0]
    assert cell[0] != cell[1] and (cell >= 0).all()


def test_person_without_candidates() -> None:
    """Nothing to assign is no error, and does not disturb the others."""
    assert cells_of([[0.9, 0.8], [0.9, 0.8]], [[-1, -1], [4, 5]], [0, 0]) == [NO_CELL, 4]
    assert cells_of([[0.9]], [[-1]], [0]) == [NO_CELL]


# --- one-to-many --------------------------------------------------------------------------------------------------


def test_topk_and_quarrels_by_hand() -> None:
    """Each person's k best cells, a contested one to the better claim only; the loser gets no replacement."""
    rank = torch.tensor([[0.9, 0.8, 0.1], [0.5, 0.7, 0.6]])
    found = table([[1, 2, 3], [1, 2, 4]])
    got = one_to_many(rank, found, torch.tensor([0, 0]), 10, 2)
    assert got.tolist() == [[True, True, False], [False, False, True]]
    apart = one_to_many(rank, found, torch.tensor([0, 1]), 10, 2)
    assert apart.tolist() == [[True, True, False], [False, True, True]]


def test_topk_beyond_the_candidates() -> None:
    """topk larger than what there is takes what there is, and never a column without a cell."""
    got = one_to_many(torch.tensor([[0.2, 0.9, 0.0]]), table([[1, -1, 3]]), torch.tensor([0]), 10, 50)
    assert got.tolist() == [[True, False, True]]


# --- what must hold always ----------------------------------------------------------------------------------------


def crowd(seed: int) -> tuple[Tensor, Candidates, Tensor, int]:
    """Random ranks (often tied or zero), candidates (with holes) and images."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    n, c, cells = draw(1, 25), draw(1, 12), draw(1, 30)
    c = min(c, cells)
    cell = torch.stack([torch.randperm(cells, generator=g)[:c] for _ in range(n)])
    cell[torch.rand(n, c, generator=g) < 0.2] = NO_CELL
    rank = torch.rand(n, c, generator=g)
    if seed % 3 == 0:
        rank = (rank * 3).floor() / 3
    found = Candidates(cell, torch.zeros(n, c, 2), torch.ones(n, c))
    return rank, found, torch.randint(0, 3, (n,), generator=g), cells


def test_one_to_one_means_one() -> None:
    """For any crowd: a cell has at most one person, a person at most one cell, and nobody is left out for nothing."""
    left_out = 0
    for seed in range(400):
        rank, found, image, cells = crowd(seed)
        column = one_to_one(rank, found, image, cells)
        got = column != NO_CELL
        cell = found.cell.gather(1, column.clamp(min=0)[:, None])[:, 0]
        assert (cell[got] >= 0).all(), seed
        used = (image * cells + cell)[got].tolist()
        assert len(used) == len(set(used)), seed
        for i in (~got).nonzero()[:, 0].tolist():
            wanted = (image[i] * cells + found.cell[i][found.valid[i]]).tolist()
            assert set(wanted) <= set(used), seed  # all its candidates are taken
            left_out += 1
    assert left_out > 0  # the cases are hard enough


def test_one_to_one_is_stable() -> None:
    """No person would rather have a cell that is free or that a lower bid holds: the order of bids decides nothing."""
    for seed in range(1, 400, 3):
        rank, found, image, cells = crowd(seed)
        column = one_to_one(rank, found, image, cells)
        holds: dict[int, float] = {}
        mine = [float(rank[i, c]) if c != NO_CELL else -1.0 for i, c in enumerate(column.tolist())]
        for i, c in enumerate(column.tolist()):
            if c != NO_CELL:
                holds[int(image[i] * cells + found.cell[i, c])] = mine[i]
        for i, j in found.valid.nonzero().tolist():
            bid, cell = float(rank[i, j]), int(image[i] * cells + found.cell[i, j])
            assert bid <= mine[i] or bid <= holds.get(cell, -1.0), (seed, i, j)


def test_everyone_gets_a_cell_when_they_suffice() -> None:
    """With at least as many candidates each as there are persons, no person may go unlearnt."""
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        n = int(torch.randint(1, 20, (1,), generator=g))
        cell = torch.stack([torch.randperm(n + 5, generator=g)[:n] for _ in range(n)])
        found = Candidates(cell, torch.zeros(n, n, 2), torch.ones(n, n))
        rank = torch.rand(n, n, generator=g) ** 8
        assert (one_to_one(rank, found, torch.zeros(n, dtype=torch.long), n + 5) >= 0).all(), seed


def test_one_to_many_shares_no_cell() -> None:
    """For any crowd: at most topk cells each, valid ones, no cell of two persons, the best claim on a cell wins."""
    for seed in range(400):
        rank, found, image, cells = crowd(seed)
        topk = 1 + seed % 6
        chosen = one_to_many(rank, found, image, cells, topk)
        assert (chosen.sum(1) <= topk).all() and not (chosen & ~found.valid).any(), seed
        where = (image[:, None] * cells + found.cell)[chosen].tolist()
        assert len(where) == len(set(where)), seed
        assert chosen.any(), seed if found.valid.any() else "nothing to choose"


@pytest.mark.parametrize("how", ["one", "many"])
def test_order_of_persons_does_not_matter(how: str) -> None:
    """Where ranks are distinct, shuffling the labels of an image shuffles the result and changes nothing else."""
    for seed in range(1, 100, 3):
        rank, found, image, cells = crowd(seed)
        order = torch.randperm(len(rank), generator=torch.Generator().manual_seed(seed))
        moved = Candidates(found.cell[order], found.centre[order], found.stride[order])
        if how == "one":
            a = one_to_one(rank, found, image, cells)[order]
            b = one_to_one(rank[order], moved, image[order], cells)
        else:
            a = one_to_many(rank, found, image, cells, 3)[order]
            b = one_to_many(rank[order], moved, image[order], cells, 3)
        assert torch.equal(a, b), seed


def test_inputs_are_left_alone() -> None:
    """The same ranks serve both assignments, so neither may write to them."""
    rank, found, image, cells = crowd(1)
    before, cell = rank.clone(), found.cell.clone()
    one_to_one(rank, found, image, cells)
    one_to_many(rank, found, image, cells, 3)
    assert torch.equal(rank, before) and torch.equal(found.cell, cell)
