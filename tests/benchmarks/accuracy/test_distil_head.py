"""The training of the weights that ship: its crops, its targets, its start, and a run that is cut off."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import PoseModel

from benchmarks.accuracy import distil_head
from erpose_yolo.method.boxes import default_margins
from erpose_yolo.method.oks import COCO_SIGMAS
from erpose_yolo.nn.head import PoseBranch
from erpose_yolo.nn.network import ERPoseModel

SIGMAS = torch.tensor(COCO_SIGMAS)


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    """A teacher's head with random weights that is sure of some cells."""
    torch.manual_seed(0)
    head = PoseModel("yolo26n-pose.yaml", nc=1, data_kpt_shape=[17, 3], verbose=False).float().eval().model[-1]
    for tower in head.one2one_cv3:
        torch.nn.init.normal_(tower[-1].weight)
        torch.nn.init.zeros_(tower[-1].bias)
    return head.requires_grad_(False)


def features(size: int = 96) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.rand(2, c, size // s, size // s) for c, s in ((64, 8), (128, 16), (256, 32))]


def test_keypoints_follow_their_crop(tmp_path: Path) -> None:
    """A dot that is labelled lies where its label does, whatever the crop does to the photo."""
    image = np.zeros((200, 300, 3), np.uint8)
    rows = np.zeros((17, 3))
    for keypoint, (x, y) in {0: (150, 60), 5: (110, 100), 6: (190, 100)}.items():
        cv2.circle(image, (x, y), 6, (255, 255, 255) if keypoint == 0 else (0, 0, 255) if keypoint == 5 else (255, 0, 0), -1)
        rows[keypoint] = x / 300, y / 200, 2
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    words = [0, 0.5, 0.4, 0.4, 0.4, *rows.flatten()]
    (tmp_path / "labels" / "a.txt").write_text(" ".join(str(word) for word in words))
    photos = distil_head.Photos([tmp_path / "images" / "a.png"], 160, (150, 400), 40, 0, True)
    colours = []
    for index in range(40):
        crop, keypoints, areas = photos[index]
        for person, area in zip(keypoints, areas):
            assert 0.53 * 120 * 80 * (150 / 300) ** 2 <= area * 1.001 and area <= 0.53 * 120 * 80 * (400 / 300) ** 2 * 1.001
            if all(visible and 4 < x < 156 and 4 < y < 156 for x, y, visible in person[5:7]):
                dots = [crop[round(y), round(x)] for x, y, _ in person[5:7]]
                assert all(dot[dot.argmax()] > 0.5 + dot[2 - dot.argmax()] for dot in dots), index
                assert person[5, 0] < person[6, 0]  # in mirrored photos, too: their names have changed sides
                colours.append(tuple(int(dot.argmax()) for dot in dots))
    assert set(colours) == {(0, 2), (2, 0)} and len(colours) > 10  # as they are, and mirrored


def test_labels_take_the_place_of_the_teachers_keypoints(stock: torch.nn.Module) -> None:
    maps = features()
    none = [(torch.zeros(0, 17, 3), torch.zeros(0))] * 2
    with torch.no_grad():
        plain = distil_head.teacher_targets(stock, maps, none, SIGMAS, default_margins(17))
        steeper = distil_head.teacher_targets(stock, maps, none, SIGMAS, default_margins(17), power=1.0)
        own = plain["image"] == 0
        person = torch.cat((plain["keypoints"][own][:1] + 0.5, torch.full((1, 17, 1), 2.0)), 2)
        person[0, 3, 2] = 0
        labels = [(person, torch.tensor([plain["area"][own][0] + 900])), none[1]]
        taught = distil_head.teacher_targets(stock, maps, labels, SIGMAS, default_margins(17))
    assert len(plain["cell"]) > 10 and (taught["keypoints"][own][0, 4:] == person[0, 4:, :2]).all()
    assert (taught["keypoints"][own][0, 3] == plain["keypoints"][own][0, 3]).all()  # unlabelled: the teacher's
    assert taught["area"][own][0] == labels[0][1][0]
    assert torch.equal(taught["keypoints"][~own], plain["keypoints"][~own])
    torch.testing.assert_close(steeper["weight"], plain["weight"] ** 2)


def test_a_pruned_tower_starts_near_the_teacher(stock: torch.nn.Module) -> None:
    """Where our towers are as wide as the teacher's nothing is cut: keypoints of the levels with plain towers are the teacher's."""
    wide = PoseBranch(17, [64, 128, 256], 85)
    distil_head.prune(stock, wide)
    maps = features()
    with torch.no_grad():
        out, _ = wide.eval()(maps)
        for level, first, count in ((1, 144, 36), (2, 180, 9)):
            theirs = stock.one2one_cv4_kpts[level](stock.one2one_cv4[level](maps[level])).view(2, 17, 3, -1)
            ours = out.offsets[..., first : first + count] * distil_head.OFFSET_CELLS
            torch.testing.assert_close(ours, theirs[:, :, :2], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(out.visibility[..., first : first + count], theirs[:, :, 2], rtol=1e-4, atol=1e-4)


def test_a_trained_neck_is_written_back(stock: torch.nn.Module) -> None:
    """A network whose folded convolutions were trained gives what those gave."""
    del stock
    torch.manual_seed(2)
    network = PoseModel("yolo26n-pose.yaml", nc=1, data_kpt_shape=[17, 3], verbose=False).float().eval()
    neck = network.model[11:-1]
    trained = distil_head.frozen(neck)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.05 * torch.randn_like(p))
        image = torch.rand(1, 3, 64, 64)
        below = distil_head.run(network.model[:11], image, [])
        before = distil_head.run(neck, below[-1], below)[-1]
        wanted = distil_head.run(trained, below[-1], below)[-1]
        distil_head.unfold(neck, trained)
        torch.testing.assert_close(distil_head.run(neck, below[-1], below)[-1], wanted, rtol=1e-3, atol=1e-4)
    assert (before - wanted).abs().max() > 0.01


def test_a_training_begins_with_the_network_that_is_deployed() -> None:
    """BatchNorm that normalises by the batch whose statistics were measured gives what it gives when deployed."""
    torch.manual_seed(3)
    network = ERPoseModel("erpose-n.yaml", verbose=False).float()
    images = torch.rand(4, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after unfold
            torch.nn.init.normal_(module.bias)
            module.momentum = 0.0
    with torch.no_grad():
        deployed, before = network.eval()(images), network.train()(images).one2one
        distil_head.measure_norms(network, [images])
        after = network.train()(images).one2one
        torch.testing.assert_close(network.eval()(images), deployed, rtol=1e-3, atol=1e-2)
        for module in network.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        wanted = network(images).one2one
    torch.testing.assert_close(after.offsets, wanted.offsets, rtol=1e-2, atol=1e-3)
    assert (before.offsets - wanted.offsets).abs().max() > 0.1


def test_scores_of_the_teacher_are_the_least_of_the_score_loss(stock: torch.nn.Module) -> None:
    maps = features()
    with torch.no_grad():
        scores = distil_head.teacher_targets(
            stock, maps, [(torch.zeros(0, 17, 3), torch.zeros(0))] * 2, SIGMAS, default_margins(17)
        )["scores"]
    towers = distil_head.frozen(stock.one2one_cv3).requires_grad_(True)
    same = distil_head.score_loss(towers, maps, scores)
    same.backward()
    slope = max(p.grad.abs().max().item() for p in towers.parameters())
    distil_head.score_loss(towers, maps, 1 - scores).backward()
    assert slope < 0.05 * max(p.grad.abs().max().item() for p in towers.parameters())


def test_a_repeated_pose_keeps_no_score() -> None:
    """The third cell repeats the first person's pose, the fourth is beside the second person's."""
    pose = 100 * torch.rand(17, 2, generator=torch.Generator().manual_seed(0))
    keypoints = torch.stack((pose, pose + 200, pose + 1, pose + 230))[None]
    left = distil_head.best_of_each(
        torch.tensor([[0.9, 0.8, 0.5, 0.4]]), keypoints, torch.ones(1, 4, 17), default_margins(17), SIGMAS
    )
    torch.testing.assert_close(left, torch.tensor([[0.9, 0.8, 0.0, 0.4]]))


@pytest.mark.parametrize("neck", [[], ["--neck"]], ids=["head", "neck"])
def test_a_run_goes_on_where_it_was_cut_off(
    neck: list[str], stock: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del stock
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    (tmp_path / "labels" / "a.txt").write_text("")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nkpt_shape: [17, 3]\nnames: {{0: person}}\n")
    teacher = tmp_path / "yolo26n-pose.pt"
    network = PoseModel("yolo26n-pose.yaml", nc=1, data_kpt_shape=[17, 3], verbose=False)
    network.args = {}
    torch.save({"model": network.half(), "train_args": {}}, teacher)

    def train(images: int, out: str, *more: object) -> None:
        words = ["--teacher", teacher, "--data", tmp_path / "data.yaml", "--images", images, "--size", 64, "--batch", 2, *more]
        monkeypatch.setattr(sys, "argv", ["distil_head", *map(str, words), "--out", str(tmp_path / out)])
        distil_head.main()

    train(4, "out.pt", *neck)
    assert torch.load(tmp_path / "out.state.pt")["step"] == 2
    train(8, "out.pt", *neck)
    assert "4 crops seen" in capsys.readouterr().out and torch.load(tmp_path / "out.state.pt")["step"] == 4
    assert (tmp_path / "out.pt").is_file()

    # another goes on from the mean of two
    other = torch.load(tmp_path / "out.state.pt")
    name = "branch.keypoints.0.bias"
    other["average"][name] += 1
    torch.save(other, tmp_path / "other.state.pt")
    train(0, "mean.pt", *neck, "--start", tmp_path / "out.state.pt", tmp_path / "other.state.pt")
    mean = torch.load(tmp_path / "mean.state.pt")["average"]
    torch.testing.assert_close(mean[name], other["average"][name] - 0.5)
    if neck:
        with pytest.raises(ValueError, match="give --neck, too"):
            train(0, "less.pt", "--start", tmp_path / "out.state.pt")
