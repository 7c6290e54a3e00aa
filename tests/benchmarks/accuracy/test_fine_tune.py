"""The last step of the weights that ship: BatchNorm is held, the backbone stays, and the mean has a share of what was learned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ultralytics.utils import YAML

from benchmarks.accuracy import calibrate, fine_tune
from erpose_yolo import ERPose


@pytest.mark.slow
def test_a_share_of_a_fine_tuning(tiny_dataset: Path, tmp_path: Path) -> None:
    start, out = tmp_path / "start.pt", tmp_path / "tuned.pt"
    torch.manual_seed(0)
    fresh = ERPose("erpose-n.yaml")
    fresh.save(start)
    words = ["--weights", str(start), "--data", str(tiny_dataset), "--held", "3", "--epochs", "1", "--imgsz", "64", "--lr", "0.01"]
    fine_tune.main([*words, "--share", "0.5", "--out", str(out)])
    before, after, tuned = (
        ERPose(file).model.float().state_dict() for file in (start, out, tmp_path / "tuned" / "weights" / "last.pt")
    )
    seen = (tmp_path / "tuned" / "train.txt").read_text().split()
    assert sorted([*seen, *calibrate.sample(str(tiny_dataset), 3)]) == calibrate.training_photos(str(tiny_dataset))
    used = YAML.load(tmp_path / "tuned" / "args.yaml")["data"]
    assert Path(YAML.load(used)["train"]) == tmp_path / "tuned" / "train.txt"
    moved = 0
    for name, value in before.items():
        if not value.is_floating_point():
            continue
        torch.testing.assert_close(after[name], (value + tuned[name]) / 2, rtol=2e-3, atol=1e-4)
        held = name.endswith(("running_mean", "running_var")) or int(name.split(".")[1]) < fine_tune.BACKBONE
        assert not held or torch.equal(tuned[name], value), name
        moved += not torch.equal(tuned[name], value)
    assert moved > 100


def test_schedules_stand_at_their_end() -> None:
    model = ERPose("erpose-n.yaml").model
    model.args = SimpleNamespace(epochs=3)
    assert model.init_criterion().progress == 0 and model.init_criterion().loss.heatmap_gain > 0
    fine_tune.end_schedules(SimpleNamespace(model=model, epochs=3))
    assert model.criterion.progress == 1 and model.criterion.loss.heatmap_gain == 0


def test_the_score_map_needs_photos_that_were_not_seen_but_not_all(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 8 training photos .* --held"):
        fine_tune.hold_out(str(tiny_dataset), 300, tmp_path)
