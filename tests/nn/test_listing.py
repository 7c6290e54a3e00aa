"""``erpose models``: figures that are counted, and sources that are named."""

from __future__ import annotations

import copy

import pytest
import torch
from ultralytics.nn.tasks import PoseModel

from erpose_yolo import ERPose, catalog
from erpose_yolo.cli import main
from erpose_yolo.nn import listing
from erpose_yolo.nn.yolo26 import from_yolo26_pose


@pytest.mark.parametrize("name", ["erpose-n.yaml", "erpose-n.pt", "yolo26n-pose.pt"])
def test_figures_are_those_of_the_deployed_network(name: str) -> None:
    """Held against ultralytics-thop on the real network, which knows nothing of ours."""
    import thop

    if name == "yolo26n-pose.pt":
        network = from_yolo26_pose(PoseModel("yolo26n-pose.yaml", verbose=False))
    else:
        network = copy.deepcopy(ERPose(name).model).float()
    network = network.eval().fuse(verbose=False)
    gflops = thop.profile(network, inputs=(torch.zeros(1, 3, 640, 640),), verbose=False)[0] * 2 / 1e9
    counted = listing.measure(name)
    assert counted == (sum(p.numel() for p in network.parameters()) / 1e6, pytest.approx(gflops, rel=0.003))


def test_the_largest_network_takes_no_memory() -> None:
    """Its tensors have no storage, so 56 million parameters are counted at once."""
    parameters, gflops = listing.measure("erpose-x.yaml")
    assert 50 < parameters < 60 and 190 < gflops < 200


def test_shipped_weights_have_an_accuracy_and_its_source() -> None:
    """In the front block of their model card."""
    assert catalog.list_weights()
    for name in catalog.list_weights():
        points, source = listing.accuracy(name)
        assert 0 < float(points) < 100 and "COCO" in source
    assert listing.accuracy("yolo26x-pose.pt") == ("71.6", listing.PUBLISHER)
    assert listing.accuracy("erpose-n.yaml") == ("", "random weights")


def test_the_table_lists_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(listing, "measure", lambda name: (1.0, 2.0))
    assert main(["models"]) == 0
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    families = {name.replace("-n", "") for name in first if name.endswith(".yaml")}
    assert families == {path.name for path in (catalog.cfg_root() / "models").glob("*.yaml")}
    assert {"erpose-n.pt", *(f"yolo26{scale}-pose.pt" for scale in "nsmlx")} <= set(first)


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    ERPose("erpose-n.yaml").save("mine.pt")
    assert main(["models", "mine.pt", "erpose-n.pt"]) == 0
    mine, ours = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert mine[0] == "mine.pt" and mine[2:4] == ours[2:4] and mine[4] == "-" and float(ours[4]) > 0 < float(mine[1])
    assert main(["models", "erpose-q.yaml"]) == 1
    assert "has no scale 'q'" in capsys.readouterr().err
    assert main(["models", "nowhere.pt"]) == 1
    assert "nowhere.pt" in capsys.readouterr().err
