"""The whole way on a tiny data set: train, resume, validate, predict, track, export; all of it without NMS."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.engine.results import Results

from erpose_yolo import ERPose
from erpose_yolo.engine.validator import ERPoseMetrics, ERPoseValidator
from erpose_yolo.method.boxes import default_margins, derive_boxes
from erpose_yolo.method.losses import box_overlap
from erpose_yolo.upstream import compat

LOSSES = ("pose_loss", "kobj_loss", "cls_loss", "o2o_loss", "heat_loss")
SMALL = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "verbose": False}


def load_pt(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=False)


@pytest.fixture(scope="module")
def run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two epochs on the tiny data set."""
    folder = tmp_path_factory.mktemp("runs")
    ERPose("erpose-n.yaml").train(
        data=str(tiny_dataset), epochs=2, plots=True, project=str(folder), name="run", warmup_epochs=0, **SMALL
    )
    return folder / "run"


@pytest.fixture
def no_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every NMS function that ultralytics could reach raises."""
    import torchvision
    from ultralytics.utils import nms

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("NMS was called")

    monkeypatch.setattr(nms, "non_max_suppression", forbidden)
    for name in ("nms", "fast_nms", "batched_nms"):
        if hasattr(nms.TorchNMS, name):
            monkeypatch.setattr(nms.TorchNMS, name, staticmethod(forbidden))
    for module in (torchvision.ops, torchvision.ops.boxes):
        monkeypatch.setattr(module, "nms", forbidden)
        monkeypatch.setattr(module, "batched_nms", forbidden)


def test_the_ban_on_nms_can_fail(no_nms: None, tiny_dataset: Path) -> None:
    """The ban must stop a stock model that needs NMS, or the tests below prove nothing."""
    image = tiny_dataset.parent / "images" / "val" / "0.png"
    with pytest.raises(AssertionError, match="NMS was called"):
        YOLO("yolo11n-pose.yaml").predict(image, imgsz=64, conf=0.0001, device="cpu", verbose=False)


# --- a finished run -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_log_names_our_losses(run: Path) -> None:
    """results.csv is what users watch: our terms by name for train and val, finite, and no box or DFL loss."""
    rows = list(csv.DictReader((run / "results.csv").open()))
    header = [h.strip() for h in rows[0]]
    for split in ("train", "val"):
        assert [h for h in header if h.startswith(f"{split}/")] == [f"{split}/{name}" for name in LOSSES]
    assert len(rows) == 2
    assert all(np.isfinite(float(v)) for row in rows for v in row.values())
    assert any("(P)" in h for h in header)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.png", "train_batch0.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg", "labels.jpg"])
def test_images_of_the_run(run: Path, name: str) -> None:
    """The images exist and show something."""
    image = cv2.imread(str(run / name))
    assert image is not None and min(image.shape[:2]) >= 64 and image.std() > 5


@pytest.mark.slow
def test_margins_are_fitted(run: Path, tiny_dataset: Path) -> None:
    """best.pt carries the margins of its data set: boxes from its labelled keypoints meet the labelled boxes."""
    model = load_pt(run / "weights" / "best.pt")["model"]
    margins = model.model[-1].margins.float()
    assert margins.shape == (4, 20) and not torch.allclose(margins, default_margins(17), atol=1e-3)
    files = sorted((tiny_dataset.parent / "labels" / "train").glob("*.txt"))
    table = torch.from_numpy(np.concatenate([np.loadtxt(f, ndmin=2) for f in files])).float()
    centre, side = table[:, 1:3] * 64, table[:, 3:5] * 64
    keypoints = table[:, 5:].view(-1, 17, 3)
    xy, seen = (keypoints[..., :2] * 64).permute(1, 2, 0)[None], (keypoints[..., 2] > 0).float().T[None]
    boxes = torch.cat((centre - side / 2, centre + side / 2), 1)
    fitted = box_overlap(derive_boxes(xy, seen, margins)[0].T, boxes)[0].mean()
    plain = box_overlap(derive_boxes(xy, seen, torch.zeros(4, 20))[0].T, boxes)[0].mean()
    assert fitted > 0.85 and fitted > plain


@pytest.mark.slow
def test_checkpoint_is_complete(run: Path) -> None:
    """A checkpoint holds what predict needs on another machine: keypoints, names, settings, half-size weights."""
    for name in ("best.pt", "last.pt"):
        ckpt = load_pt(run / "weights" / name)
        model = ckpt["model"]
        assert type(model).__module__ == "erpose_yolo.nn.network" and model.kpt_shape == [17, 3]
        assert model.names == {0: "person"} and ckpt["train_args"]["task"] == "pose"
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_safe_loading(run: Path) -> None:
    """weights_only=True reads our checkpoints: ULTRALYTICS_SAFE_LOAD users are not locked out."""
    from ultralytics.nn.tasks import torch_safe_load

    ckpt, _ = torch_safe_load(str(run / "weights" / "best.pt"), safe_only=True)
    assert type(ckpt["model"]).__name__ == "ERPoseModel"


def test_best_is_chosen_by_pose_alone() -> None:
    """Boxes are derived: a run with the better poses must win, however its boxes score."""

    def metrics(box: float, pose: float) -> ERPoseMetrics:
        made = ERPoseMetrics()
        for part, value in ((made.box, box), (made.pose, pose)):
            part.all_ap = np.full((1, 10), value)
            part.p = part.r = np.array([value])
        return made

    good_pose, good_box = metrics(box=0.1, pose=0.6), metrics(box=0.95, pose=0.5)
    assert good_pose.fitness > good_box.fitness
    assert metrics(0.0, 0.6).fitness == metrics(1.0, 0.6).fitness == good_pose.fitness
    assert good_pose.results_dict["fitness"] == good_pose.fitness


# --- interruption -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_resume(tiny_dataset: Path, tmp_path: Path, error: type[BaseException]) -> None:
    """A run that is cut off goes on at the next epoch, with schedules, margins and epochs where they were."""

    def cut(trainer: Any) -> None:
        if trainer.epoch == 1:  # the second epoch has begun
            raise error("power cut")

    model = ERPose("erpose-n.yaml")
    model.add_callback("on_train_epoch_start", cut)
    with pytest.raises(error, match="power cut"):
        model.train(data=str(tiny_dataset), epochs=3, plots=False, val=False, project=str(tmp_path), name="cut", **SMALL)
    last = tmp_path / "cut" / "weights" / "last.pt"
    assert load_pt(last)["epoch"] == 0

    seen: list[tuple[int, int, float]] = []
    again = ERPose(last)
    again.add_callback(
        "on_train_batch_end",
        lambda t: seen.append((t.epoch, t.model.criterion.updates, t.model.criterion.progress)),
    )
    again.train(resume=True, device="cpu")
    assert sorted(set(seen)) == [(1, 1, 0.5), (2, 2, 1.0)]
    rows = list(csv.DictReader((tmp_path / "cut" / "results.csv").open()))
    assert [int(float(next(iter(r.values())))) for r in rows] == [1, 2, 3]
    assert load_pt(tmp_path / "cut" / "weights" / "best.pt")["model"].model[-1].margins.abs().max() > 0


# --- no NMS -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("nms", [None, True, False])
def test_validation_and_prediction_without_nms(
    run: Path, tiny_dataset: Path, tmp_path: Path, no_nms: None, nms: bool | None
) -> None:
    """Whatever the stock nms argument says, rows come from one-to-one scores alone."""
    model = ERPose(run / "weights" / "best.pt")
    chosen = {} if nms is None else {"nms": nms}
    result = model.val(data=str(tiny_dataset), project=str(tmp_path), plots=False, **chosen, **SMALL)
    assert 0 <= result.pose.map <= 1 and 0 <= result.fitness <= 1
    people = model.predict(tiny_dataset.parent / "images" / "val", conf=0.001, **chosen, **{**SMALL, "batch": 2})
    assert len(people) == 4 and all(isinstance(p, Results) for p in people)
    for p in people:
        assert p.keypoints.data.shape[1:] == (17, 3) and len(p.boxes) == len(p.keypoints) > 0
        assert (p.boxes.conf.diff() <= 0).all() and p.orig_shape == (64, 64)


@pytest.mark.slow
def test_training_without_nms(tiny_dataset: Path, tmp_path: Path, no_nms: None) -> None:
    """The validation inside training is NMS-free, too."""
    ERPose("erpose-n.yaml").train(data=str(tiny_dataset), epochs=1, plots=False, project=str(tmp_path), name="r", **SMALL)
    assert (tmp_path / "r" / "weights" / "best.pt").is_file()


class _Oracle(ERPoseValidator):
    """Answers with the labels, moved to the right."""

    shift = 0.0

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess(batch)
        height, width = batch["img"].shape[2:]
        self.answers = torch.zeros(len(batch["img"]), 300, 57)
        for i, rows in enumerate(self.answers):
            keypoints = batch["keypoints"][batch["batch_idx"] == i] * torch.tensor([width, height, 1.0])
            keypoints[..., 0] += self.shift
            low, high = keypoints[..., :2].amin(1), keypoints[..., :2].amax(1)
            score, category = torch.full((len(keypoints), 1), 0.9), torch.zeros(len(keypoints), 1)
            rows[: len(keypoints)] = torch.cat((low, high, score, category, keypoints.flatten(1)), 1)
        return batch

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        return super().postprocess(self.answers)


@pytest.mark.slow
def test_validation_finds_labels_it_is_given(run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """A model that answers with the labels gets AP 1, one that is 10 px off gets less: the metric sees our rows."""
    found = {}
    for shift in (0.0, 10.0):
        oracle = type("Oracle", (_Oracle,), {"shift": shift})
        model = ERPose(run / "weights" / "best.pt")
        result = model.val(oracle, data=str(tiny_dataset), project=str(tmp_path), plots=False, **SMALL)
        found[shift] = result.pose.map
    assert found[0.0] > 0.99 and found[10.0] < 0.5


@pytest.mark.slow
def test_tracking(run: Path, tiny_dataset: Path, tmp_path: Path, no_nms: None) -> None:
    """yolo pose track works on a video: rows are what the stock trackers expect."""
    image = cv2.resize(cv2.imread(str(tiny_dataset.parent / "images" / "val" / "0.png")), (128, 128))
    file = tmp_path / "people.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 128))
    for shift in range(4):
        writer.write(np.roll(image, shift, 1))
    writer.release()
    frames = ERPose(run / "weights" / "best.pt").track(
        file, conf=0.0001, imgsz=64, device="cpu", verbose=False, tracker=str(_loose_tracker(tmp_path))
    )
    assert len(frames) == 4
    assert any(f.boxes.id is not None for f in frames)
    assert all(len(f.keypoints) == len(f.boxes) for f in frames)


def _loose_tracker(folder: Path) -> Path:
    """ByteTrack that follows the low scores of a barely trained model."""
    file = folder / "loose.yaml"
    file.write_text(
        "tracker_type: bytetrack\ntrack_high_thresh: 0.0001\ntrack_low_thresh: 0.00001\nnew_track_thresh: 0.0001\n"
        "track_buffer: 30\nmatch_thresh: 0.99\nfuse_score: false\n"
    )
    return file


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_onnx(run: Path, tiny_dataset: Path, tmp_path: Path, no_nms: None) -> None:
    """The exported graph says what PyTorch says, without NMS and without training's parts, and YOLO(...) runs it."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = tmp_path / "best.pt"
    weights.write_bytes((run / "weights" / "best.pt").read_bytes())
    file = ERPose(weights).export(format="onnx", imgsz=64, device="cpu", verbose=False)

    graph = onnx.load(file)
    assert not [n.op_type for n in graph.graph.node if "NonMaxSuppression" in n.op_type or "NMS" in n.name]
    assert not [i.name for i in graph.graph.initializer if any(p in i.name for p in ("heatmap", "one2many"))]
    metadata = {p.key: p.value for p in graph.metadata_props}
    assert metadata["task"] == "pose" and json.loads(metadata["kpt_shape"]) == [17, 3]

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image = cv2.imread(str(tiny_dataset.parent / "images" / "val" / "1.png"))[..., ::-1].transpose(2, 0, 1)[None]
    x = np.ascontiguousarray(image, np.float32) / 255
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
    model = ERPose(weights).model.float().eval()
    with torch.no_grad():
        ours = model.fuse(verbose=False)(torch.from_numpy(x))[0].numpy()
    assert theirs.shape == ours.shape == (1, 84, 57)
    assert np.abs(np.sort(theirs[..., 4]) - np.sort(ours[..., 4])).max() < 1e-4
    for row in theirs[0, :20]:  # rows of nearly equal score may swap places
        assert np.abs(ours[0] - row).max(1).min() < 0.01

    compat.install()
    source = tiny_dataset.parent / "images" / "val" / "1.png"
    exported = YOLO(file, task="pose").predict(source, conf=0.0001, **SMALL)[0]
    eager = ERPose(weights).predict(source, conf=0.0001, **SMALL)[0]
    assert len(exported.keypoints) == len(eager.keypoints) > 0
    apart = (eager.keypoints.xy - exported.keypoints.xy[0]).abs().amax((1, 2))
    assert apart.min() < 0.05  # not of the first: rows of equal score may swap places
