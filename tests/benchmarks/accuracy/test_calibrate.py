"""A map that gives thresholds the meaning of another model's, folded into weights without a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy import calibrate
from erpose_yolo import ERPose

SMALL = {"imgsz": 64, "device": "cpu"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights whose cells score about one half, each a little different, and expect about 0.9 of OKS."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    head = model.model.model[-1]
    for tower in head.one2one_score:
        torch.nn.init.normal_(tower[-1].weight, std=0.5)
        torch.nn.init.zeros_(tower[-1].bias)
    for conv in head.deployed.spread:
        torch.nn.init.normal_(conv.weight, std=0.1)
        torch.nn.init.constant_(conv.bias, -2.0)
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # unless its normalisation fits, a random network sees next to nothing of its input
        model.model.train()(torch.rand(8, 3, 64, 64))
    model.save(tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def photos(data: Path) -> list[str]:
    return sorted(map(str, (data.parent / "images" / "train").iterdir()))[:2]


def shown(weights: Path, files: list[str]) -> np.ndarray:
    """All scores that predict reports, sorted."""
    results = [ERPose(weights).predict(file, conf=0.05, verbose=False, **SMALL)[0] for file in files]
    return np.sort(np.concatenate([result.boxes.conf.numpy() for result in results]))


def test_fit_finds_the_map_that_made_the_numbers() -> None:
    rng = np.random.default_rng(0)
    logits, quality = rng.normal(-3, 3, 20000), rng.beta(8, 2, 20000)
    for factor, shift in ((2.0, 0.7), (0.6, -1.0), (1.0, 0.0)):
        wanted = [int((calibrate.confidences(logits, quality, factor, shift) > t).sum()) for t in calibrate.THRESHOLDS]
        found = calibrate.fit(logits, quality, wanted)
        passed = [int((calibrate.confidences(logits, quality, *found) > t).sum()) for t in calibrate.THRESHOLDS]
        assert np.sqrt(np.mean(np.log(np.divide(passed, wanted)) ** 2)) < 0.03
        assert found == pytest.approx((factor, shift), rel=0.15, abs=0.15)
        assert abs(np.log(found[0])) + abs(found[1]) <= abs(np.log(factor)) + abs(shift) + 0.02  # of the grid


def test_noise_is_no_reason_for_a_map() -> None:
    rng = np.random.default_rng(0)
    logits, quality = rng.normal(-3, 3, 20000), rng.beta(8, 2, 20000)
    passed = [int((calibrate.confidences(logits, quality) > t).sum()) for t in calibrate.THRESHOLDS]
    assert calibrate.fit(logits, quality, [round(n * 1.015) for n in passed]) == pytest.approx((1, 0), abs=1e-9)
    assert calibrate.fit(logits, quality, [round(n * 1.08) for n in passed])[1] > 0.05


def test_nothing_is_mapped_where_nothing_can_be_told() -> None:
    """Neither model shows anybody: every map fits, and the one taken is none."""
    assert calibrate.fit(np.full(50, -9.0), np.full(50, 0.2), [0, 0, 0]) == pytest.approx((1, 0), abs=1e-9)


def test_measured_is_what_predict_reports(weights: Path, tiny_dataset: Path) -> None:
    files = photos(tiny_dataset)
    found = calibrate.confidences(*calibrate.measure(weights, files, **SMALL))
    reported = shown(weights, files)
    assert len(reported) > 50 and np.ptp(reported) > 0.05
    assert np.sort(found[found > 0.05]) == pytest.approx(reported, abs=1e-5)


def test_folded_weights_report_mapped_confidences(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    files = photos(tiny_dataset)
    logits, quality = calibrate.measure(weights, files, **SMALL)
    model = ERPose(weights)
    before = model.model.model[-1].one2many_score[0][-1].bias.detach().clone()
    calibrate.fold(model.model.model[-1], 1.7, -0.4)
    assert model.model.model[-1].one2many_score[0][-1].bias.tolist() == pytest.approx((1.7 * before - 0.4).tolist())
    model.save(tmp_path / "mapped.pt")
    wanted = calibrate.confidences(logits, quality, 1.7, -0.4)
    reported = shown(tmp_path / "mapped.pt", files)
    assert np.sort(wanted[wanted > 0.05]) == pytest.approx(reported, abs=3e-3)  # saved in half precision


def test_scores_alone_are_refused(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    model = ERPose(weights)
    head = model.model.model[-1]
    head.confidence = "score"
    model.save(tmp_path / "alone.pt")
    with pytest.raises(ValueError, match="by the score alone"):
        calibrate.measure(tmp_path / "alone.pt", photos(tiny_dataset), **SMALL)


def test_only_training_photos_are_taken(tiny_dataset: Path) -> None:
    files = calibrate.sample(str(tiny_dataset), 5)
    assert len(set(files)) == 5 and {Path(file).parent.name for file in files} == {"train"}
    assert calibrate.sample(str(tiny_dataset), 5) == files and len(calibrate.sample(str(tiny_dataset), 99)) == 8
