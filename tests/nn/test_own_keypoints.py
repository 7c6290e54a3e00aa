"""Keypoints of one's own: a data YAML to start from, sigmas, skeletons, fine-tuning on few images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.engine.results import Results

from erpose_yolo import ERPose
from erpose_yolo.data import init
from erpose_yolo.data.check import check, contact_sheet
from erpose_yolo.data.data_yaml import load_data_yaml
from erpose_yolo.data.dataset import build_dataset
from erpose_yolo.data.drawing import PoseResults, plot_skeletons
from erpose_yolo.data.skeletons import COCO_17, CROWDPOSE_14, limbs_of, match_names, read_kpt_shape
from erpose_yolo.method.decode import HeadOutputs, PoseOutputs
from erpose_yolo.method.oks import COCO_SIGMAS, DEFAULT_SIGMA, sigmas_for
from erpose_yolo.nn.network import Criterion, ERPoseModel

StickFigures = Callable[..., Path]
SIDE, EPOCHS = 128, 100  # pixels, epochs: three minutes on two cores
HANDS = "nose,left_hand,right_hand,left_foot,right_foot"


# -- erpose init -----------------------------------------------------------------------------------------------------


def test_init_writes_what_the_names_say(tmp_path: Path, capsys: pytest.CaptureFixture[str], stick_figures: StickFigures) -> None:
    """flip_idx comes from left and right; with images beside it the linter has nothing to say; the next commands are named."""
    root = tmp_path / "set"
    stick_figures(root, train=3, val=2, size=64)
    file = root / "my.yaml"
    assert init.main([str(file), "--names", HANDS]) == 0
    data = yaml.safe_load(file.read_text())
    assert data["kpt_shape"] == [5, 3] and data["kpt_names"] == {0: HANDS.split(",")} and data["flip_idx"] == [0, 2, 1, 4, 3]
    assert data["kpt_oks_sigmas"] == [DEFAULT_SIGMA] * 5 and limbs_of(data, 5)
    assert not check(file).findings
    said = capsys.readouterr().out
    assert f"erpose check {file}" in said and f"yolo pose train model=erpose-n.pt data={file}" in said


def test_init_of_a_number(tmp_path: Path) -> None:
    """Without names the mirror is the identity, and a comment says that this is a guess."""
    assert init.main([str(tmp_path / "a.yaml"), "--keypoints", "40"]) == 0
    text = (tmp_path / "a.yaml").read_text()
    data = yaml.safe_load(text)
    assert data["flip_idx"] == list(range(40)) and len(data["kpt_names"][0]) == len(data["kpt_oks_sigmas"]) == 40
    assert "CHECK: no name says left or right" in text


def test_init_knows_published_skeletons_and_names_lone_sides(tmp_path: Path) -> None:
    assert init.main([str(tmp_path / "a.yaml"), "--names", ",".join(CROWDPOSE_14.names)]) == 0
    data = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert tuple(data["kpt_oks_sigmas"]) == CROWDPOSE_14.sigmas and limbs_of(data, 14) == CROWDPOSE_14.limbs
    assert "CHECK: left_fin has a side and no partner" in init.template("a.yaml", ["tail", "left_fin"])


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mine")
    assert init.main([str(file), "--keypoints", "5"]) == 2
    assert file.read_text() == "mine" and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.yaml"], "--keypoints"),
        (["a.yaml", "--keypoints", "0"], "--keypoints 0"),
        (["a.yaml", "--keypoints", "3", "--names", "a,b"], "--names has 2"),
        (["a.yaml", "--names", "a,,b"], "a name of its own"),
        (["a.yaml", "--names", "a,a"], "a name of its own"),
        (["a.txt", "--keypoints", "3"], ".yaml"),
        (["no-folder/a.yaml", "--keypoints", "3"], "Make its folder"),
    ],
)
def test_init_on_wrong_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init.main(arguments) == 2 and says in capsys.readouterr().err and not Path(arguments[0]).exists()


def test_init_is_light() -> None:
    """A file of text needs neither torch nor ultralytics."""
    code = "import erpose_yolo.data.init, sys; print({'torch', 'ultralytics', 'cv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# -- sigmas ----------------------------------------------------------------------------------------------------------


def criterion(sigmas: list[float] | None, keypoints: int = 5) -> Criterion:
    model = ERPoseModel("erpose-n.yaml", data_kpt_shape=[keypoints, 3], verbose=False)
    model.args, model.kpt_oks_sigmas = {"epochs": 11}, sigmas
    return Criterion(model)


def loss_sigmas(subject: Criterion, epoch: int) -> torch.Tensor:
    """Sigmas that the losses use in an epoch, seen from inside."""
    seen: list[torch.Tensor] = []
    subject.updates = epoch
    subject.loss = type("Loss", (), {"__call__": lambda self, *_: (seen.append(self.sigmas), (torch.zeros(()), {}))[1]})()
    batch = {"img": torch.zeros(1, 3, 64, 64), "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1)}
    batch |= {"bboxes": torch.zeros(0, 4), "keypoints": torch.zeros(0, len(subject.sigmas), 3)}
    pose = PoseOutputs(torch.zeros(1, len(subject.sigmas), 2, 84), torch.zeros(0), torch.zeros(0), torch.zeros(0))
    subject(HeadOutputs(None, pose, None, None, None, [(8, 8)]), batch)
    return seen[0]


def test_the_loss_starts_lax_and_ends_with_the_sigmas_of_the_metric() -> None:
    tight = criterion([0.02] * 5)
    first, last = loss_sigmas(tight, 0), loss_sigmas(tight, 10)
    assert first.tolist() == pytest.approx([np.mean(COCO_SIGMAS)] * 5) and torch.equal(last, sigmas_for(5, [0.02] * 5))


@pytest.mark.parametrize("epoch", [0, 5, 10])
def test_coco_is_trained_with_its_own_sigmas_throughout(epoch: int) -> None:
    assert torch.equal(loss_sigmas(criterion(None, 17), epoch), torch.tensor(COCO_SIGMAS))


@pytest.mark.parametrize("written", [[17, 3], (17, 3), (17, 2)])
def test_every_spelling_of_seventeen_keypoints_selects_coco_sigmas(written: list[int] | tuple[int, int]) -> None:
    """Stock takes 1/17 for all but the list [17, 3], also for [17, 2], without a word."""
    shape = read_kpt_shape(written, "a.yaml")
    assert shape == list(written) and torch.equal(sigmas_for(shape[0]), torch.tensor(COCO_SIGMAS))


@pytest.mark.parametrize("written", [17, "17", [17], [17, 4], [0, 3], [17.0, 3], None, (17, True), "(17, 3)"])
def test_a_kpt_shape_that_is_none_is_named(written: object) -> None:
    with pytest.raises(ValueError, match=r"a\.yaml: kpt_shape is .*Write"):
        read_kpt_shape(written, "a.yaml")


def test_validation_takes_a_tuple(stick_figures: StickFigures, tmp_path: Path) -> None:
    """The data set that is built makes a list of it, in the dictionary that trainer and validator read."""
    data = yaml.safe_load(stick_figures(tmp_path / "set", train=1, val=2, size=64).read_text())
    data |= {"kpt_shape": (5, 3), "channels": 3, "nc": 1}
    args = get_cfg(overrides={"task": "pose", "imgsz": 64})
    built = build_dataset(args, str(tmp_path / "set" / "images" / "val"), 2, data, "val", False, 32, 1.0)
    assert data["kpt_shape"] == [5, 3] and built.labels[0]["keypoints"].shape == (1, 5, 3)


# -- keypoints of other weights --------------------------------------------------------------------------------------


def test_names_find_their_keypoints() -> None:
    """The same name in any spelling, else a neighbour on the body; numbers are no names."""
    names = ["leftWrist", "right_hand", "head", "tail", "3"]
    assert match_names(names, COCO_17.names) == [9, 10, 0, None, None]
    assert match_names(["3"], [str(i) for i in range(17)]) == [None]
    assert match_names(CROWDPOSE_14.names, COCO_17.names)[:12] == list(range(5, 17))


def test_fine_tuning_takes_keypoints_over_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of a keypoint that both have are equal; another starts at the mean of all, as sure as a new one."""
    torch.manual_seed(0)
    source = ERPoseModel("erpose-n.yaml", verbose=False)
    for parameter in source.model[-1].parameters():
        nn.init.normal_(parameter, 0, 0.1)
    model = ERPoseModel("erpose-n.yaml", data_kpt_shape=[3, 3], verbose=False)
    model.kpt_names = {0: ["right_wrist", "tail", "nose"]}
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model.load(source, verbose=False)
    features = [torch.randn(1, c, s, s) for c, s in zip((64, 128, 256), (8, 4, 2))]
    for name in ("pose", "one2one_pose"):
        ours, theirs = getattr(model.model[-1], name)(features)[0], getattr(source.model[-1], name)(features)[0]
        for key, rows in (("offsets", 1), ("visibility", 1), ("log_spread", 1), ("refinement", 3)):
            found = (getattr(out, key) for out in (ours, theirs))
            found = (value[0].flatten(2) if key == "refinement" else value for value in found)  # its finest level
            got, wanted = (value.reshape(1, -1, rows, *value.shape[2:]) for value in found)
            assert torch.allclose(got[:, 0], wanted[:, 10], atol=1e-5) and torch.allclose(got[:, 2], wanted[:, 0], atol=1e-5)
            if key in ("offsets", "visibility"):
                assert torch.allclose(got[:, 1], wanted.mean(1), atol=1e-5)
        spread = f"model.{len(model.model) - 1}.{name}.spread.0.weight"
        assert torch.equal(model.state_dict()[spread][1], fresh[spread][1])


# -- drawings --------------------------------------------------------------------------------------------------------


def pixels_between(image: np.ndarray, blank: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether something is drawn in the middle between two keypoints."""
    x, y = (int(round((p + q) / 2)) for p, q in zip(a, b))
    return bool((image[y - 2 : y + 3, x - 2 : x + 3] != blank[y - 2 : y + 3, x - 2 : x + 3]).any())


SPOTS = ((40, 40), (280, 60), (60, 280), (290, 300))


def results(keypoints: int = 4, confidence: float = 0.9) -> Results:
    points = torch.tensor([[*SPOTS[i % 4], confidence] for i in range(keypoints)]).float()[None]
    box = torch.tensor([[30.0, 30, 300, 310, 0.9, 0]])
    return Results(np.full((320, 320, 3), 127, np.uint8), "a.jpg", {0: "person"}, boxes=box, keypoints=points)


def test_results_draw_the_limbs_of_their_data_set(tmp_path: Path) -> None:
    """Also after indexing and moving; hidden ends, kpt_line=False and saved files as Ultralytics has them."""
    stock, ours = results(), PoseResults.of(results(), [(0, 1), (2, 3)])
    blank = stock.plot(boxes=False)
    for one in (ours, ours[0], ours.cpu(), ours.new().__class__.of(ours, ours.limbs)):
        image = one.plot(boxes=False)
        assert pixels_between(image, blank, SPOTS[0], SPOTS[1]) and pixels_between(image, blank, SPOTS[2], SPOTS[3])
        assert not pixels_between(image, blank, SPOTS[0], SPOTS[2])
    assert (ours.plot(boxes=False, kpt_line=False) == blank).all()
    hidden = PoseResults.of(results(confidence=0.1), ours.limbs)
    assert (hidden.plot(boxes=False) == results(confidence=0.1).plot(boxes=False)).all()
    ours.save(str(tmp_path / "a.png"))
    assert (cv2.imread(str(tmp_path / "a.png")) == ours.plot()).all()
    assert ours.plot(pil=True).size == (320, 320)


def test_results_without_limbs_are_stock() -> None:
    assert (PoseResults.of(results(17), None).plot() == results(17).plot()).all()


def test_batches_are_drawn_with_the_limbs_of_the_data_yaml(tmp_path: Path) -> None:
    """CrowdPose's 14 by its names, other numbers by their skeleton, a broken skeleton not at all."""
    assert limbs_of({"kpt_names": {0: list(CROWDPOSE_14.names)}}, 14) == CROWDPOSE_14.limbs
    assert limbs_of({"skeleton": [[0, 1]]}, 4) == ((0, 1),) and limbs_of({}, 4) == () and limbs_of({"skeleton": [[1, 4]]}, 4) == ()
    keypoints = torch.tensor([[[x / 320, y / 320, 2] for x, y in SPOTS]])
    batch = {"img": torch.full((1, 3, 320, 320), 0.5), "keypoints": keypoints, "batch_idx": torch.zeros(1)}
    images = []
    for limbs in ((), ((0, 1),)):
        plot_skeletons(batch, [], tmp_path / "a.png", limbs)
        images.append(cv2.imread(str(tmp_path / "a.png")))
    assert pixels_between(images[1], images[0], SPOTS[0], SPOTS[1]) and not pixels_between(images[1], images[0], SPOTS[2], SPOTS[3])


@pytest.mark.parametrize("named", [True, False])
def test_contact_sheets_say_where_names_are_missing(
    tmp_path: Path, named: bool, stick_figures: StickFigures, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = stick_figures(tmp_path / "set", train=2, val=2, size=64)
    if not named:
        about = yaml.safe_load(data.read_text())
        del about["kpt_names"], about["skeleton"]
        data.write_text(yaml.safe_dump(about))
    written: list[str] = []
    real = cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda image, text, *a: (written.append(text), real(image, text, *a))[1])
    contact_sheet(load_data_yaml(data), check(data, show=2), tmp_path / "sheet.jpg")
    text = " ".join(written)
    assert ("no kpt_names in the data YAML" in text) is ("no skeleton" in text) is not named


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_first_training_says_what_it_does(
    tmp_path: Path, stick_figures: StickFigures, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sigmas at the start of train and val, limbs in every drawing and in the checkpoint, and why nobody was found."""
    drawn: dict[str, Any] = {}

    def record(batch: Any, paths: Any, file: Path, limbs: Any, *rest: Any, **options: Any) -> None:
        drawn[file.name] = limbs
        plot_skeletons(batch, paths, file, limbs, *rest, **options)

    for module in ("trainer", "validator"):
        monkeypatch.setattr(f"erpose_yolo.engine.{module}.plot_skeletons", record)
    data = stick_figures(tmp_path / "set", train=4, val=4, size=64, kpt_oks_sigmas=[0.03] * 5)
    where = {"project": str(tmp_path), "device": "cpu", "workers": 0}
    model = ERPose("erpose-n.yaml")
    model.train(data=str(data), epochs=1, imgsz=64, batch=4, name="run", verbose=False, **where)
    said = "OKS sigmas: 0.030 for 5 keypoints (kpt_oks_sigmas of the data YAML)"
    assert sum(said in line for line in log) == 2  # before the first epoch, and before the last validation
    why = next(line for line in log if "Nothing was found" in line)
    assert "optimizer steps are few" in why and "sigmas of 0.030 on average are tight" in why and "kpt_shape [5, 3]" in why
    limbs = ((0, 1), (0, 2), (0, 3), (0, 4))
    assert set(drawn) >= {"train_batch0.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg"} and set(drawn.values()) == {limbs}

    trained = ERPose(tmp_path / "run" / "weights" / "last.pt")
    result = trained.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, conf=0.0, verbose=False)[0]
    assert isinstance(result, PoseResults) and result.limbs == limbs
    log.clear()
    trained.val(data=str(data), imgsz=64, plots=False, name="val", **where)
    assert sum("OKS sigmas: 0.030" in line for line in log) == 1


@pytest.mark.slow
def test_forty_stick_figures_are_learnt_with_default_settings(tmp_path: Path, stick_figures: StickFigures) -> None:
    """What a user types for a small set of other keypoints finds all but a few figures that it has not seen, to 3 %.

    With sigmas below the default, as these are the harder ones: the loss starts with laxer ones and has to tighten.
    """
    data = stick_figures(tmp_path / "set", size=SIDE, kpt_oks_sigmas=[0.05] * 5)
    yolo = Path(sys.executable).with_name("yolo")
    words = f"pose train model=erpose-n.pt data={data} epochs={EPOCHS} imgsz={SIDE} project={tmp_path} name=run device=cpu"
    words += " val=False save=False"  # but for the last epoch, which saves 40 % of the time
    subprocess.run([yolo, *words.split()], check=True, cwd=tmp_path, capture_output=True)
    model, errors = ERPose(tmp_path / "run" / "weights" / "best.pt"), []
    stick_figures(tmp_path / "more", size=SIDE, val=80)  # 16 of these are the val split, which the last epoch is judged on
    images = sorted((tmp_path / "more" / "images" / "val").glob("*.png"))[16:]
    for image in images:
        row = np.array((tmp_path / "more" / "labels" / "val" / f"{image.stem}.txt").read_text().split(), float)
        truth, size = row[5:].reshape(5, 3)[:, :2] * SIDE, row[3:5].max() * SIDE
        found = model.predict(image, imgsz=SIDE, verbose=False)[0]  # from the default score on
        if len(found):
            errors.append(float(np.linalg.norm(found.keypoints.xy[0].numpy() - truth, axis=1).mean() / size))
    assert len(errors) >= 0.9 * len(images)
    assert np.mean(errors) <= 0.03
