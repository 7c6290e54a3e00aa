"""Several processes: gradients are those of the whole batch, the stock launcher finds our trainer, figures are gathered."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_on_cpu import CPUTrainer, Oracle
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.utils.dist import find_free_network_port

from erpose_yolo import ERPose
from erpose_yolo.engine import trainer
from erpose_yolo.engine.distillation import DistillingCriterion, Teacher
from erpose_yolo.nn.network import ERPoseModel

# Persons of each of four images, the first two of process 0; -1: one without labelled keypoints, an ignore region
SCENES = {"uneven": [1, 0, 4, 2], "none in one process": [2, 3, 0, 0], "none at all": [0, 0, 0, 0], "ignored": [-1, 1, 2, -1]}


def make_batch(persons: list[int]) -> dict[str, torch.Tensor]:
    """Made-up persons on noise, 64 px."""
    draw = torch.Generator().manual_seed(7)
    owner = torch.tensor([float(i) for i, n in enumerate(persons) for _ in range(abs(n))])
    known = torch.tensor([float(n > 0) for n in persons for _ in range(abs(n))])
    centre = 0.3 + 0.4 * torch.rand(len(owner), 1, 2, generator=draw)
    keypoints = centre + 0.3 * (torch.rand(len(owner), 17, 2, generator=draw) - 0.5)
    low, high = keypoints.amin(1), keypoints.amax(1)
    return {
        "img": torch.rand(len(persons), 3, 64, 64, generator=draw),
        "batch_idx": owner,
        "cls": torch.zeros(len(owner), 1),
        "bboxes": torch.cat(((low + high) / 2, high - low), 1),
        "keypoints": torch.cat((keypoints, 2 * known[:, None, None].expand(-1, 17, 1)), 2),
    }


def share(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The two images of a process."""
    mine = (batch["batch_idx"] // 2).long() == rank
    part = {key: value[mine] for key, value in batch.items() if key != "img"}
    return {**part, "img": batch["img"][2 * rank : 2 * rank + 2], "batch_idx": part["batch_idx"] - 2 * rank}


def make_model() -> ERPoseModel:
    """The same weights in every process. Batch statistics are frozen: each process has its own, as in stock training."""
    torch.manual_seed(0)
    model = ERPoseModel("erpose-n.yaml", nc=1, verbose=False).train()
    model.args = get_cfg(overrides={"epochs": 3})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def make_teacher() -> ERPoseModel:
    """A network that is surer of persons in some images than in others."""
    torch.manual_seed(1)
    teacher = ERPoseModel("erpose-n.yaml", nc=1, verbose=False)
    for tower in teacher.model[-1].one2one_score:
        torch.nn.init.normal_(tower[-1].weight, std=4.0)
        torch.nn.init.constant_(tower[-1].bias, -2.0)
    return teacher


def teach(model: ERPoseModel, file: str | Path) -> None:
    """Have a model learn from a teacher, too."""
    model.criterion = DistillingCriterion(model, Teacher(file, model))


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor], processes: int) -> dict[str, torch.Tensor]:
    """Gradients of the stock loop: loss times batch size, times the number of processes."""
    model.zero_grad()
    (model(batch)[0].sum() * processes).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


WORKER = """
import sys
import torch
from torch import distributed
import test_distributed as here
from erpose_yolo.method import losses

distributed.init_process_group("gloo")
rank = distributed.get_rank()
model = torch.nn.parallel.DistributedDataParallel(here.make_model(), find_unused_parameters=False, broadcast_buffers=False)
found = {}
for _ in range(2):  # an unused parameter is told of in the next step
    for name, persons in here.SCENES.items():
        found[name] = here.gradients(model, here.share(here.make_batch(persons), rank), 2)
here.teach(model.module, sys.argv[2])
found["taught"] = here.gradients(model, here.share(here.make_batch(here.SCENES["uneven"]), rank), 2)
model.module.criterion = None
losses.avg_factor = lambda count: count.clamp(min=1)  # each process its own
found["own counts"] = here.gradients(model, here.share(here.make_batch(here.SCENES["uneven"]), rank), 2)
if rank == 0:
    torch.save(found, sys.argv[1])
distributed.destroy_process_group()
"""


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Length of the difference over that of b, all parameters as one vector."""
    assert a.keys() == b.keys()
    return float(torch.stack([(a[k] - b[k]).norm() for k in b]).norm() / torch.stack([v.norm() for v in b.values()]).norm())


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_the_whole_batch(tmp_path: Path, repo: Path) -> None:
    """Also where a process has no person; what differs is the order of float32 sums."""
    script, file, teacher = (tmp_path / name for name in ("worker.py", "gradients.pt", "teacher.pt"))
    torch.save({"model": make_teacher(), "train_args": {"task": "pose"}}, teacher)
    script.write_text(f"import sys; sys.path[:0] = [{str(repo)!r}, {str(repo / 'tests' / 'engine')!r}]\n{WORKER}")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={find_free_network_port()}"]
    command = [sys.executable, *launch, str(script), str(file), str(teacher)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found, model = torch.load(file), make_model()
    keypoint = {name: gradients(model, make_batch(persons), 1) for name, persons in SCENES.items()}
    for name in SCENES:
        assert relative(found[name], keypoint[name]) < 1e-4, name
    assert relative(found["own counts"], keypoint["uneven"]) > 0.01  # so this test can fail
    teach(model, teacher)
    taught = gradients(model, make_batch(SCENES["uneven"]), 1)
    assert relative(found["taught"], taught) < 1e-4 and relative(taught, keypoint["uneven"]) > 0.1


@pytest.mark.parametrize(
    ("rank", "devices", "expected"), [(-1, 2, 2), (5, 2, 8), (0, 1, 8), (-1, 0, 0)], ids=["launcher", "node", "one each", "cpu"]
)
def test_world_size_counts_all_machines(monkeypatch: pytest.MonkeyPatch, rank: int, devices: int, expected: int) -> None:
    """Under torchrun on several machines, the batch is shared by all processes and not by those of one machine."""

    def init(self: Any, *args: Any) -> None:
        self.world_size, self.callbacks = devices, {}

    monkeypatch.setattr(PoseTrainer, "__init__", init)
    monkeypatch.setattr(trainer, "RANK", rank)
    monkeypatch.setattr(trainer, "WORLD_SIZE", 8)
    assert trainer.ERPoseTrainer().world_size == expected


@pytest.fixture
def sparse_dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny data set with persons in two of eight training images, and three validation images for two processes."""
    root = tmp_path / "sparse"
    shutil.copytree(tiny_dataset.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    for number in range(6):
        (root / "labels" / "train" / f"{number}.txt").write_text("")
    (root / "images" / "val" / "3.png").unlink()
    (root / "labels" / "val" / "3.txt").unlink()
    text = tiny_dataset.read_text().replace(str(tiny_dataset.parent), str(root))
    (root / "data.yaml").write_text(text)
    return root / "data.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True], ids=["", "taught"])
def test_stock_launch_trains_and_validates_in_two_processes(
    sparse_dataset: Path, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, taught: bool
) -> None:
    """What device=0,1 does: script, pickle, launcher, DDP loop, gathered validation; then the figures of one process."""
    pytest.importorskip("cloudpickle")
    monkeypatch.syspath_prepend(str(repo / "tests" / "engine"))  # the generated script takes over sys.path
    small: dict[str, Any] = {"imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "verbose": False}
    model = ERPose("erpose-n.yaml")
    if taught:
        torch.save({"model": make_teacher(), "train_args": {"task": "pose"}}, tmp_path / "teacher.pt")
        small["distill_model"] = str(tmp_path / "teacher.pt")
    where = {"data": str(sparse_dataset), "project": str(tmp_path), "name": "run"}
    model.train(CPUTrainer, epochs=2, mosaic=0.0, nbs=4, **where, **small)
    found = json.loads((tmp_path / "run" / "final.json").read_text())
    assert found["same weights"] and found["images"] == 3
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2] and all(("train/dis_loss" in row) == taught for row in rows)

    small.pop("distill_model", None)
    alone = ERPose(tmp_path / "run" / "weights" / "best.pt").val(Oracle, data=str(sparse_dataset), project=str(tmp_path), **small)
    assert found["exact"] == pytest.approx(alone.exact, abs=1e-9) and 0.2 < alone.exact["AP"] < 0.9
    stock = {key: value for key, value in alone.results_dict.items() if key != "fitness"}
    assert found["stock"] == pytest.approx(stock, abs=1e-5)
