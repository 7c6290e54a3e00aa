"""``distill_model=``: what a teacher is read as, who is refused, and that of a teacher nothing is kept."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils.torch_utils import ModelEMA

from erpose_yolo import ERPose
from erpose_yolo.engine import checkpoint
from erpose_yolo.engine.distillation import DistillingCriterion, Teacher
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.nn.network import Criterion, ERPoseModel
from erpose_yolo.nn.yolo26 import from_yolo26_pose

SMALL: dict[str, Any] = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
BODY = {
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], *[[-1, 1, "Conv", [16, 3, 2]]] * 4, [-1, 1, "C3k2", [16]]],
    "nc": 1,
    "kpt_shape": [17, 3],
}
HEADS: dict[str, dict[str, Any]] = {  # one-to-one, one-to-many, ours
    "yolo26": {"head": "Pose26", "reg_max": 1, "end2end": True},
    "yolo11": {"head": "Pose"},
    "erpose": {"head": "ERPoseHead", "erpose": {"width": 16}},
}


def network(kind: str, seed: int = 0, levels: tuple[int, ...] = (2, 3, 5), **more: Any) -> Any:
    """A small network with random weights and scores that differ from cell to cell."""
    torch.manual_seed(seed)
    cfg = {**copy.deepcopy(BODY), **copy.deepcopy(HEADS[kind]), **more}
    cfg["head"] = [[list(levels), 1, cfg["head"], ["nc", "kpt_shape"]]]
    model = (ERPoseModel if kind == "erpose" else PoseModel)(cfg, verbose=False)
    for name, layer in model.model[-1].named_modules():
        if ("cv3" in name or "score" in name) and isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            torch.nn.init.normal_(layer.weight, std=4.0)
            torch.nn.init.constant_(layer.bias, -2.0)
    model.names = {i: f"class {i}" for i in range(cfg["nc"])} if cfg["nc"] > 1 else {0: "person"}
    model.args = {"imgsz": 64, "task": "pose"}
    model.task = "pose"
    return model.eval()


def saved(model: Any, file: Path) -> Path:
    torch.save({"model": model, "train_args": {"imgsz": 64, "task": "pose"}}, file)
    return file


def images(count: int = 2) -> torch.Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(9 * coarse, (64, 64), mode="bilinear")  # contrast that reaches the coarsest level


# --- reading a teacher --------------------------------------------------------------------------------------------


def test_yolo26_is_read_as_its_conversion_is(tmp_path: Path) -> None:
    """Two ways to the same cells: stock outputs decoded by stock code, and the converted network with a row per cell."""
    stock = network("yolo26")
    stock.yaml["kpt_shape"] = [17, 3]
    student = network("erpose", 1)
    files = [saved(stock, tmp_path / "stock.pt"), saved(from_yolo26_pose(stock), tmp_path / "converted.pt")]
    one, other = (Teacher(file, student)(images()) for file in files)
    assert one.one2one and other.one2one
    for name in ("scores", "keypoints", "visibility"):
        found, wanted = getattr(other, name), getattr(one, name)
        assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.std()), name


@pytest.mark.parametrize("columns", [2, 3])
def test_one_to_many_teacher_is_read_as_stock_decodes_it(tmp_path: Path, columns: int) -> None:
    teacher = network("yolo11", kpt_shape=[17, columns])
    found = Teacher(saved(teacher, tmp_path / "teacher.pt"), network("erpose", 1))(images())
    with torch.no_grad():
        rows = teacher.float()(images())[0]  # (B, 4 + 1 + K * D, A)
    points = rows[:, 5:].unflatten(1, (17, columns))
    assert not found.one2one and torch.allclose(found.scores, rows[:, 4:5], atol=1e-5)
    assert torch.allclose(found.keypoints, points[:, :, :2], atol=1e-3)
    assert (found.visibility is None) == (columns == 2)
    assert found.visibility is None or torch.allclose(found.visibility, points[:, :, 2], atol=1e-5)


def test_classes_meet_by_name(tmp_path: Path) -> None:
    """A teacher of people teaches the second class of a student that knows the first by itself; without names, by number."""
    student, teacher = network("erpose", 1, nc=2), network("yolo26")
    student.names = {0: "dog", 1: "Person"}
    found = Teacher(saved(teacher, tmp_path / "teacher.pt"), student)
    assert found.classes == ([1], [0]) and found(images()).scores.shape[1] == 1
    student.names = {0: "dog", 1: "cat"}
    teacher = network("yolo26", nc=2)
    assert Teacher(saved(teacher, tmp_path / "teacher.pt"), student).classes == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("kind", "other", "words"),
    [
        ("yolo26", {"levels": (2, 3)}, r"strides \[8.0, 16.0\], the student \[8.0, 16.0, 32.0\]"),
        ("erpose", {"kpt_shape": [5, 3]}, "keypoints 5, the student 17"),
        ("yolo26", {"channels": 1}, "input channels 1, the student 3"),
        ("yolo26", {"nc": 3}, "none of the student's"),
    ],
    ids=["strides", "keypoints", "channels", "classes"],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, kind: str, other: dict[str, Any], words: str) -> None:
    channels = {"ch": other.pop("channels")} if "channels" in other else {}
    teacher = network(kind, **other)
    teacher.yaml["channels"] = channels.get("ch", 3)
    with pytest.raises(ValueError, match=rf"distill_model=.*teacher.pt: the teacher.*{words}") as error:
        Teacher(saved(teacher, tmp_path / "teacher.pt"), network("erpose", 1))
    assert "\n" not in str(error.value) and str(error.value).endswith((".", "many."))


def test_keypoints_of_other_names_are_refused(tmp_path: Path) -> None:
    student, teacher = network("erpose", 1), network("yolo26")
    student.kpt_names = {0: [f"a{i}" for i in range(17)]}
    Teacher(saved(teacher, tmp_path / "teacher.pt"), student)  # does not tell its names
    teacher.kpt_names = {0: [f"a{16 - i}" for i in range(17)]}
    with pytest.raises(ValueError, match="the teacher has keypoints"):
        Teacher(saved(teacher, tmp_path / "teacher.pt"), student)


def test_a_detector_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "detector.pt"
    YOLO("yolo26n.yaml").save(file)
    with pytest.raises(ValueError, match="a DetectionModel is no pose model"):
        Teacher(file, network("erpose"))


# --- the loss of a batch --------------------------------------------------------------------------------------------


def batch_of(model: ERPoseModel) -> dict[str, torch.Tensor]:
    from ultralytics.cfg import get_cfg

    model.args = get_cfg(overrides={"epochs": 3, "imgsz": 64})
    draw = torch.Generator().manual_seed(2)
    keypoints = torch.cat((0.2 + 0.6 * torch.rand(3, 17, 2, generator=draw), torch.full((3, 17, 1), 2.0)), 2)
    boxes = torch.tensor([[0.5, 0.5, 0.7, 0.7]]).repeat(3, 1)
    owner = torch.tensor([0.0, 0.0, 1.0])
    return {"img": images(), "batch_idx": owner, "cls": torch.zeros(3, 1), "bboxes": boxes, "keypoints": keypoints}


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_reach_the_student_alone(tmp_path: Path, kind: str) -> None:
    """Every parameter of the student's deployed side learns from the teacher; the teacher's stay, and know of no gradient."""
    student = network("erpose", 1).train()
    batch = batch_of(student)
    teacher = Teacher(saved(network(kind), tmp_path / "teacher.pt"), student)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    plain, terms = Criterion(student)(student(batch["img"]), batch)
    student.criterion = DistillingCriterion(student, teacher)
    loss, items = student(batch)
    assert plain.shape == (1,) and loss.shape == (2,) and items.keys() - terms.keys() == {"dis_loss"}
    assert torch.equal(loss[0], plain[0]) and loss[1] == 2 * items["dis_loss"] > 0
    loss[1].backward()
    learnt = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    side = "one2many_score" if kind == "yolo11" else "one2one_score"
    for name in ("model.0.", "model.4.", "model.6.one2one_pose.tower", "model.6.one2one_pose.spread", f"model.6.{side}"):
        assert any(of.startswith(name) for of in learnt), name
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters()) and not teacher.model.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


@pytest.mark.parametrize("kind", HEADS)
def test_half_precision(tmp_path: Path, kind: str) -> None:
    """Under autocast the loss is what it is in float32, nearly, and gradients are finite."""
    student = network("erpose", 1).train()
    batch, file = batch_of(student), saved(network(kind), tmp_path / "teacher.pt")
    student.criterion = DistillingCriterion(student, Teacher(file, student))
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    whole = student(batch)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = student(batch)[0]
    half.sum().backward()
    assert half.dtype == torch.float32 and torch.allclose(half.detach(), whole, rtol=0.03)
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_gain_is_stocks(tmp_path: Path) -> None:
    """dis=12 is twice the default, 0 nothing."""
    student = network("erpose", 1).train()
    batch, file = batch_of(student), saved(network("yolo26"), tmp_path / "teacher.pt")
    found = {}
    for dis in (0.0, 6.0, 12.0):
        student.args.dis = dis
        student.criterion = DistillingCriterion(student, Teacher(file, student))
        found[dis] = float(student(batch)[0][1].detach())
    assert found[0.0] == 0 < found[6.0] and found[12.0] == pytest.approx(2 * found[6.0], rel=1e-5)


def test_validation_and_averages_know_no_teacher(tmp_path: Path) -> None:
    """The loss of validation is that of labels; a copy of the model in training does not copy the teacher."""
    student = network("erpose", 1)
    batch, file = batch_of(student), saved(network("yolo26"), tmp_path / "teacher.pt")
    student.criterion = DistillingCriterion(student, Teacher(file, student))
    loss, items = student.loss(batch, student(batch["img"]))
    assert loss.shape == (1,) and "dis_loss" not in items
    assert ModelEMA(student).ema.criterion.teacher is student.criterion.teacher


def test_loss_is_a_vector_for_the_stock_wrapper() -> None:
    """Ultralytics' own wrapper of student and teacher, for whoever builds it, appends its loss to ours."""
    student = network("erpose", 1)
    batch = batch_of(student)
    both = DistillationModel(network("yolo26"), student).train()
    loss, items = both(batch)
    assert loss.shape == (2,) and loss.isfinite().all() and "dis_loss" in items


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Folder with a teacher of each kind and the YAML of a student."""
    for kind in HEADS:
        saved(network(kind, 3), tmp_path / f"{kind}.pt")
    cfg = {**copy.deepcopy(BODY), **HEADS["erpose"]}
    cfg["head"] = [[[2, 3, 5], 1, "ERPoseHead", ["nc", "kpt_shape"]]]
    (tmp_path / "erpose-student.yaml").write_text(yaml.safe_dump(cfg))
    return tmp_path


def student_of(folder: Path) -> ERPose:
    torch.manual_seed(0)
    return ERPose(folder / "erpose-student.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_distilled_checkpoint_is_the_students_alone(files: Path, tiny_dataset: Path, kind: str) -> None:
    """It opens without the teacher, has its size and layers without one, and other weights than without."""
    common = {**SMALL, "data": str(tiny_dataset), "epochs": 1, "project": str(files)}
    student_of(files).train(**common, name="alone")
    student_of(files).train(**common, name="taught", distill_model=str(files / f"{kind}.pt"))
    (files / f"{kind}.pt").unlink()
    alone, taught = (files / name / "weights" / "last.pt" for name in ("alone", "taught"))
    assert abs(taught.stat().st_size - alone.stat().st_size) < 2000
    states = [ERPose(file).model.state_dict() for file in (alone, taught)]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(*(s[k] for s in states)) for k in states[0])
    content = torch.load(taught, map_location="cpu", weights_only=False)
    assert type(content["model"]) is ERPoseModel and content["train_args"]["distill_model"].endswith(f"{kind}.pt")
    assert not any("distill" in name.lower() for name in torch.serialization.get_unsafe_globals_in_checkpoint(taught))
    with (files / "taught" / "results.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["train/dis_loss"]) > 0 and float(row["val/dis_loss"]) == 0


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(files: Path, tiny_dataset: Path) -> None:
    """Cut off in its third epoch, with gradients waiting; and its checkpoint of an epoch opens without the teacher, too."""
    ends: dict[str, Any] = {}

    def run(name: str, cut: bool = False) -> None:
        def batch_over(trainer: Any) -> None:
            if cut and trainer.epoch == 2:
                raise KeyboardInterrupt

        last = files / name / "weights" / "last.pt"
        resume = last.exists()
        model = ERPose(last) if resume else student_of(files)
        model.add_callback("on_train_batch_end", batch_over)
        model.add_callback(
            "on_model_save",
            lambda trainer: ends.update({name: torch.load(trainer.last, map_location="cpu", weights_only=False)}),
        )
        given = {"resume": True, "device": "cpu"} if resume else {**SMALL, "data": str(tiny_dataset), "epochs": 4, "nbs": 12}
        if not resume:
            given |= {"warmup_epochs": 1.5, "project": str(files), "name": name, "distill_model": str(files / "yolo26.pt")}
        model.train(**given)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", cut=True)
    assert type(ends["cut"]["ema"]) is ERPoseModel and ends["cut"]["epoch"] == 1
    assert len(ERPose(files / "cut" / "weights" / "last.pt").predict(images(1), imgsz=64, verbose=False, device="cpu")) == 1
    run("cut")
    states = [ends[name][checkpoint.STATE] for name in ("whole", "cut")]
    assert states[0]["gradients"].keys() == states[1]["gradients"].keys() and len(states[0]["gradients"])
    for part in ("model", "ema", "gradients"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), (part, name)


@pytest.mark.slow
def test_a_wrong_teacher_stops_a_run_before_it_reads_labels(
    files: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ERPoseTrainer, "_build_train_pipeline", lambda trainer: pytest.fail("labels were read"))
    saved(network("yolo11", kpt_shape=[5, 3]), files / "five.pt")
    for name, error in (("nowhere.pt", FileNotFoundError), ("five.pt", ValueError)):
        with pytest.raises(error, match=name):
            student_of(files).train(**SMALL, data=str(tiny_dataset), project=str(files), distill_model=str(files / name))
