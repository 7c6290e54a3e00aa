"""The head: layout of rows, what is deployed, what is not there."""

from __future__ import annotations

import io
import math
from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import DFL

from erpose_yolo.method.boxes import ROOM, derive_boxes, with_room
from erpose_yolo.method.decode import HeadOutputs, decode_keypoints, make_cells, select_rows
from erpose_yolo.method.errorbars import keypoint_sigma
from erpose_yolo.method.refine import refine_keypoints
from erpose_yolo.method.rows import best_class
from erpose_yolo.nn.head import LOG_SPREAD_START, ERPoseHead, tower_width

CH, STRIDES = (16, 24, 32), (8.0, 16.0, 32.0)


def make_head(nc: int = 1, kpt_shape: tuple[int, int] = (17, 3), seed: int = 0, **settings: object) -> ERPoseHead:
    """A small head with random, not constant, scores, in evaluation mode."""
    torch.manual_seed(seed)
    head = ERPoseHead(nc, kpt_shape, CH, width=16, **settings)  # type: ignore[arg-type]
    head.stride = torch.tensor(STRIDES)
    head.bias_init()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return head.eval()


def features(size: int = 64, b: int = 2, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(b, c, size // int(s), size // int(s), generator=g) for c, s in zip(CH, STRIDES)]


def rows_of(head: ERPoseHead, x: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return head(x)[0]


def switch(head: ERPoseHead, **attributes: object) -> ERPoseHead:
    for name, value in attributes.items():
        setattr(head, name, value)
    return head


@pytest.mark.parametrize(
    ("nc", "shape", "columns"), [(1, (17, 3), 57), (3, (17, 3), 57), (1, (5, 3), 21), (1, (21, 2), 48), (2, (1, 2), 8)]
)
def test_rows_layout(nc: int, shape: tuple[int, int], columns: int) -> None:
    """Stock predictors, validators and trackers read exactly this: (B, rows, 6 + K*D), best score first."""
    head = make_head(nc, shape)
    rows = rows_of(head, features(192))
    assert rows.shape == (2, head.max_det, columns) and head.max_det == 300
    assert rows.isfinite().all()
    assert (rows[..., 0] <= rows[..., 2]).all() and (rows[..., 1] <= rows[..., 3]).all()
    score, category = rows[..., 4], rows[..., 5]
    assert ((score > 0) & (score < 1)).all() and (score.diff(dim=1) <= 0).all()
    assert set(category.unique().tolist()) <= set(map(float, range(nc)))
    if shape[1] == 3:
        seen = rows[..., 6:].view(2, -1, *shape)[..., 2]
        assert ((seen > 0) & (seen < 1)).all()


def test_rows_of_a_small_image() -> None:
    """Fewer cells than max_det: as many rows as there are cells, in training validation and in export alike."""
    assert rows_of(make_head(), features(64)).shape == (2, 84, 57)


def test_max_det() -> None:
    """max_det of the stock arguments is kept."""
    assert rows_of(switch(make_head(), max_det=7), features()).shape == (2, 7, 57)


def test_rows_are_the_decoded_best_cells() -> None:
    """Each row's pose must be that of the cell whose score it carries, and the pose's own spreads weigh that score."""
    head, x = make_head(), features()
    for conv in [*head.deployed.spread, *head.deployed.refinement]:
        nn.init.normal_(conv.weight, 0, 0.5)
    with torch.no_grad():
        rows, raw = head(x)
    pose, logits = raw.one2one, raw.one2one_scores[0, 0]
    centres, strides = make_cells([f.shape[2:] for f in x], STRIDES, x[0])
    coarse = decode_keypoints(pose.offsets, centres, strides)
    keypoints, wider = refine_keypoints(coarse, pose.refinement, STRIDES)
    assert (keypoints - coarse).abs().max() > 1  # refinement has its say, too
    oks_of_keypoints = 1 / (1 + math.e * (pose.log_spread + wider)[0].exp() ** 2)
    weight = pose.visibility[0].sigmoid()
    score = logits.sigmoid() ** 0.5 * (oks_of_keypoints * weight).sum(0) / weight.sum(0)
    order = score.argsort(descending=True)
    assert not torch.equal(order[:5], logits.argsort(descending=True)[:5])  # the spreads have their say
    wanted = keypoints[0, :, :, order[:5]].permute(2, 0, 1)
    assert torch.allclose(rows[0, :5, 6:].view(5, 17, 3)[..., :2], wanted, atol=1e-4)
    assert torch.allclose(rows[0, :5, 4], score[order[:5]], rtol=1e-3)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("shape", "confidence"), [((17, 3), "expected_oks"), ((5, 2), "score")])
def test_rows_end_with_error_bars(shape: tuple[int, int], confidence: str, dense: bool) -> None:
    """Where units are set, and of the same person; all else stays as it is."""
    head, x = switch(make_head(1, shape), dense=dense, confidence=confidence), features()
    for conv in [*head.deployed.spread, *head.deployed.refinement]:
        nn.init.normal_(conv.weight, 0, 0.5)
    plain = rows_of(head, x)
    units = torch.linspace(0.1, 0.9, shape[0])
    rows = rows_of(switch(head, sigma_units=units), x)
    assert rows.shape[2] == plain.shape[2] + shape[0] and torch.equal(rows[..., : plain.shape[2]], plain)
    with torch.no_grad():
        raw = head(x)[1]
    pose, (centres, strides) = raw.one2one, make_cells(raw.shapes, STRIDES, x[0])
    keypoints, wider = refine_keypoints(decode_keypoints(pose.offsets, centres, strides), pose.refinement, STRIDES)
    boxes = derive_boxes(keypoints, pose.visibility.sigmoid(), with_room(head.margins))
    every = keypoint_sigma(pose.log_spread + wider, boxes, units).transpose(1, 2)  # (B, A, K)
    places = keypoints.flatten(1, 2).transpose(1, 2)
    found = plain[0, :3, 6:].reshape(3, *shape)[..., :2].flatten(1)
    cell = torch.cdist(found, places[0]).argmin(1)
    assert every.std(1).min() > 0 and torch.allclose(rows[0, :3, -shape[0] :], every[0, cell], rtol=1e-3)


def test_more_cells_than_rows() -> None:
    """Cells are picked by their scores, and sorted by their confidence after refinement."""
    head, x = switch(make_head(), max_det=20), features()
    for conv in [*head.deployed.spread, *head.deployed.refinement]:
        nn.init.normal_(conv.weight, 0, 0.5)
    with torch.no_grad():
        rows, raw = head(x)
    cell = rows_of(switch(head, layout="cells"), x)  # a row per cell, in their order
    for image in range(2):
        picked = cell[image][raw.one2one_scores[image, 0].topk(20).indices]
        wanted = picked[picked[:, 4].argsort(descending=True)]
        assert not torch.equal(picked, wanted)
        assert torch.allclose(rows[image], wanted, rtol=1e-5, atol=1e-4)


def test_without_refinement_keypoints_stay_where_their_cells_put_them() -> None:
    """refine: false is the same head without the maps."""
    with_maps, without = make_head(), make_head(refine=False)
    for branch in (with_maps.pose, with_maps.one2one_pose):
        branch.refinement = None
    without.load_state_dict(with_maps.state_dict())
    assert torch.equal(rows_of(with_maps, features()), rows_of(without, features()))


def test_confidence_is_a_choice_at_inference() -> None:
    """Rows carry the plain score where the spreads shall not be read; another word is refused."""
    head, x = switch(make_head(), confidence="score"), features()
    with torch.no_grad():
        rows, raw = head(x)
    assert torch.allclose(rows[0, :5, 4], raw.one2one_scores[0, 0].sigmoid().sort(descending=True).values[:5])
    assert not torch.equal(rows_of(switch(head, confidence="expected_oks"), x), rows)
    with pytest.raises(ValueError, match="'oks' of the head is neither 'expected_oks' nor 'score'"):
        rows_of(switch(head, confidence="oks"), x)


def test_deployed_score_is_one_to_one() -> None:
    """Rows from the one-to-many scores would show every person ten times, with no NMS to clean up."""
    head, x = make_head(), features()
    before = rows_of(head, x)
    for tower in head.one2many_score:
        tower[-1].bias.data += 5
    assert torch.equal(rows_of(head, x), before)
    for tower in head.one2one_score:
        tower[-1].bias.data += 1
    assert not torch.equal(rows_of(head, x), before)


def test_two_columns_have_no_visibility() -> None:
    """kpt_shape [K, 2]: the same keypoints, without the third column."""
    three, two = make_head(1, (5, 3)), make_head(1, (5, 2))
    two.load_state_dict(three.state_dict())
    a, b = rows_of(three, features()), rows_of(two, features())
    assert torch.equal(a[..., 6:].view(2, -1, 5, 3)[..., :2].flatten(2), b[..., 6:])


@pytest.mark.parametrize("nc", [1, 3])
def test_cells_hold_the_same_people(nc: int) -> None:
    """Runtimes without TopK get a row per cell; threshold and sort on the host give the same people and classes."""
    head, x = make_head(nc), features()
    best = select_rows(rows_of(head, x), 0.0, 84)
    cells = rows_of(switch(head, layout="cells"), x)
    assert cells.shape == (2, 84, 57)
    for a, b in zip(best, select_rows(cells, 0.0, 84)):
        assert len(a.unique(dim=0)) == 84 and torch.allclose(a, b, rtol=1e-5, atol=1e-4)  # sums over other layouts


@pytest.mark.parametrize("layout", ["rows", "cells"])
def test_one_cell_is_one_person_whatever_its_classes(layout: str) -> None:
    """Two classes that a cell finds equally likely are one person, not two; agnostic_nms has nothing to change."""
    head, x = switch(make_head(nc=3), layout=layout), features()
    for tower in head.one2one_score:
        tower[-1].weight.data[1:] = tower[-1].weight.data[:1] * torch.tensor([1.01, 0.99]).view(2, 1, 1, 1)
    with torch.no_grad():
        rows, raw = head(x)
    for image in rows:
        assert len(image[:, 6:8].unique(dim=0)) == 84, "a row per cell"
    assert sorted(rows[0, :, 5].tolist()) == sorted(raw.one2one_scores[0].argmax(0).tolist()) and len(rows[0, :, 5].unique()) > 1
    assert torch.equal(rows_of(switch(head, agnostic_nms=True), x), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nc", [1, 2, 5])
def test_best_class_of_each_cell(nc: int, dtype: torch.dtype) -> None:
    """Rows name the class of the best score, the first of equal ones, as argmax does; some runtimes have no argmax."""
    torch.manual_seed(0)
    scores = torch.rand(2, nc, 40).to(dtype)
    scores[0, :, :5] = 0.25
    scores[1, :, 0], scores[1, -1, 0] = 0.0, 1.0
    score, category = best_class(scores)
    assert torch.equal(score, scores.amax(1, keepdim=True))
    assert torch.equal(category, scores.argmax(1, keepdim=True).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_best_class_tells_neighbouring_numbers_apart(dtype: torch.dtype) -> None:
    """Two scores that differ by the last bit of a half type are two scores: half=True must not name another class."""
    low = torch.logspace(-7, -1e-3, 500, dtype=torch.float64).to(dtype)
    high = torch.nextafter(low, torch.ones_like(low)) if dtype is torch.float32 else (low.view(torch.int16) + 1).view(dtype)
    assert (high > low).all()
    assert best_class(torch.stack((low, high))[None])[1].eq(1).all() and best_class(torch.stack((high, low))[None])[1].eq(0).all()
    assert best_class(torch.tensor([[[0.3001], [0.3003]]], dtype=torch.float16))[1].item() == 1


def test_best_class_in_an_onnx_graph() -> None:
    """The exported graph names the same classes: a floored quotient is a truncated one there."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")

    class Best(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return torch.cat(best_class(scores), 1)

    torch.manual_seed(0)
    scores, file = torch.rand(2, 4, 300) ** 4, io.BytesIO()
    torch.onnx.export(Best().eval(), (scores,), file, dynamo=False)
    session = runtime.InferenceSession(file.getvalue())
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: scores.numpy()})[0])
    assert torch.equal(found[:, 1], scores.argmax(1).float()) and torch.equal(found[:, 0], scores.amax(1))


@pytest.mark.parametrize("layout", ["rows", "cells"])
def test_torch_export_gives_the_same_rows(layout: str) -> None:
    """ExecuTorch and Core AI convert what torch.export makes of the head, after a first run as ultralytics does one."""
    head, x = switch(make_head(nc=3), export=True, layout=layout), features(b=1)
    with torch.no_grad():
        wanted = head(x)
        graph = torch.export.export(head, (x,)).module()
        assert torch.equal(graph(x), wanted)
        other = features(b=1, seed=1)
        assert torch.equal(graph(other), head(other)) and not torch.equal(graph(other), wanted)


def test_modes() -> None:
    """Training gives raw outputs, export rows alone, evaluation both: what trainer, exporter and validator expect."""
    head, x = make_head(), features()
    with torch.no_grad():
        rows, raw = head(x)
        exported = switch(head, export=True)(x)
        trained = head.train()(x)
    for out in (raw, trained):
        assert isinstance(out, HeadOutputs) and out.shapes == [(8, 8), (4, 4), (2, 2)]
        for pose, scores in ((out.one2many, out.one2many_scores), (out.one2one, out.one2one_scores)):
            assert pose.offsets.shape == (2, 17, 2, 84) and scores.shape == (2, 1, 84)
            assert pose.log_spread.shape == pose.visibility.shape == (2, 17, 84) and pose.box is None
            assert [m.shape for m in pose.refinement] == [(2, 51, *shape) for shape in out.shapes]
        assert out.heatmaps.shape == (2, 17, 64)
    assert isinstance(exported, Tensor) and torch.equal(exported, rows)


def test_nms_free_is_no_mode() -> None:
    """Stock code switches end2end off where nms is not given; ours must stay one-to-one."""
    head, x = make_head(), features()
    before = rows_of(head, x)
    for value in (False, None):
        head.end2end = value
        assert head.end2end is True and torch.equal(rows_of(head, x), before)


@pytest.mark.parametrize("settings", [{}, {"boxes": True}, {"heatmaps": False}, {"refine": False}, {"tower": "plain"}], ids=str)
def test_fuse_drops_training_and_keeps_rows(settings: dict[str, object]) -> None:
    """What is deployed is smaller and says the same."""
    head, x = make_head(**settings), features()
    before, parameters = rows_of(head, x), sum(p.numel() for p in head.parameters())
    head.fuse()
    assert torch.equal(rows_of(head, x), before)
    assert {name.split(".")[0] for name in head.state_dict()} == {"one2one_pose", "one2one_score", "margins"}
    assert "heatmap" not in " ".join(head.state_dict())
    assert sum(p.numel() for p in head.parameters()) < parameters / 2 + 100
    head.fuse()  # again: no error
    assert torch.equal(rows_of(head, x), before)


def test_no_box_branch() -> None:
    """Part 1 of the method: nothing in the default head regresses a box."""
    head = make_head()
    assert not any(isinstance(m, DFL) for m in head.modules()) and "box" not in " ".join(head.state_dict())
    widths = {m.out_channels for m in head.modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert widths == {3 * 17, 17, 1}  # keypoints and visibility, as refinement; spread and heatmaps; score
    learned = make_head(boxes=True)
    assert 4 in {m.out_channels for m in learned.modules() if isinstance(m, nn.Conv2d) and m.bias is not None}


def test_margins_widen_the_boxes() -> None:
    """The fitted margins of a checkpoint reach the rows, and change boxes only."""
    head, x = make_head(), features()
    before = rows_of(head, x)
    assert "margins" in head.state_dict()
    head.margins[:, 0] += 0.5
    after = rows_of(head, x)
    assert torch.equal(before[..., 4:], after[..., 4:])
    assert (after[..., :2] < before[..., :2]).all() and (after[..., 2:4] > before[..., 2:4]).all()


def test_predicted_boxes_have_room() -> None:
    """Beyond the fitted margins: ROOM of the extent's diagonal on each side."""
    head, x = make_head(), features()
    head.margins.zero_()
    rows = rows_of(head, x)[0, :5]
    pose = rows[:, 6:].view(5, 17, 3)
    seen = pose[..., 2:] >= 0.5
    seen |= ~seen.any(1, keepdim=True)
    low = pose[..., :2].where(seen, torch.inf).amin(1)
    high = pose[..., :2].where(seen, -torch.inf).amax(1)
    unit = (high - low).norm(dim=1, keepdim=True).clamp(min=1)
    wanted = torch.cat((low - unit * torch.tensor(ROOM[:2]), high + unit * torch.tensor(ROOM[2:])), 1)
    assert torch.allclose(rows[:, :4], wanted, rtol=1e-3, atol=1e-2)


def test_biases_start_at_their_priors() -> None:
    """Scores that start at one half drown the first epochs in background loss."""
    head = make_head(nc=2)
    for tower, stride in zip(head.one2one_score, STRIDES):
        assert tower[-1].bias[0].item() == pytest.approx(math.log(5 / 2 / (640 / stride) ** 2))
    with torch.no_grad():
        raw = head.train()(features())
    assert (raw.one2many.log_spread == LOG_SPREAD_START).all()
    assert raw.heatmaps.sigmoid().mean() < 0.1
    assert all((m == 0).all() for m in raw.one2many.refinement)  # nobody is moved


def test_both_assignments_teach_the_backbone() -> None:
    """Gradients of both sides reach the features: their poses want the same, though their scores contradict each other."""
    for name in ("one2many_scores", "one2one_scores", "one2many.offsets", "one2one.offsets"):
        x = [f.requires_grad_() for f in features()]
        attrgetter(name)(make_head().train()(x)).square().sum().backward()
        assert all(f.grad is not None and f.grad.abs().max() > 0 for f in x)


def test_both_assignments_start_alike() -> None:
    """Same keypoints and scores from weights of their own: at first both assignments then rank the same cells."""
    head = make_head().train()  # with statistics of the batch, as make_head's running ones differ
    with torch.no_grad():
        raw = head(features())
    for name in ("offsets", "visibility", "log_spread"):
        assert torch.equal(getattr(raw.one2many, name), getattr(raw.one2one, name))
    assert all(torch.equal(a, b) for a, b in zip(raw.one2many.refinement, raw.one2one.refinement))
    assert torch.equal(raw.one2many_scores, raw.one2one_scores)
    pointers = [p.data_ptr() for p in head.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_heads_of_all_towers() -> None:
    """Plain towers cost more than mixed ones, on the finest level alone."""
    size = {t: [sum(p.numel() for p in level.parameters()) for level in make_head(tower=t).pose.tower] for t in ("mixed", "plain")}
    assert size["mixed"][0] < size["plain"][0] and size["mixed"][1:] == size["plain"][1:]


def test_tower_width() -> None:
    """Multiples of 8, growing with the square root of the backbone, never degenerate."""
    assert [tower_width(64, c) for c in (64, 128, 256)] == [64, 88, 128]
    assert tower_width(1, 1) == 16
