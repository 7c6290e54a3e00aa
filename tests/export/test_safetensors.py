"""Untrusted weights: checkpoints in the restricted loader, and the safetensors + YAML pair that holds no code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT

from erpose_yolo import ERPose, Settings
from erpose_yolo.export.safetensors import FORMAT, load_weights, save_weights
from erpose_yolo.nn.network import ERPoseModel, load_model_yaml

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def network(**erpose: Any) -> ERPoseModel:
    """A small network with everything that a data set attaches, and no two numbers alike in its tensors."""
    torch.manual_seed(0)
    cfg = load_model_yaml("erpose-n.yaml")
    cfg["erpose"] = {"width": 16, **erpose}
    model = ERPoseModel(cfg, nc=2, data_kpt_shape=[3, 3], verbose=False)
    model.names = {0: "hand", 1: "paw"}
    model.kpt_names = {0: ["left_tip", "right_tip", "root"], 1: ["left_tip", "right_tip", "root"]}
    model.kpt_oks_sigmas = [0.03, 0.031, 0.1]
    model.args = {**DEFAULT_CFG_DICT, "imgsz": 96, "task": "pose"}
    model.task = "pose"
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.01 * torch.randn_like(tensor).abs())
    return model.eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``best.safetensors`` with ``best.yaml`` beside it."""
    return save_weights(network(), tmp_path_factory.mktemp("pair") / "best.safetensors")


@pytest.fixture
def copy(pair: Path, tmp_path: Path) -> Path:
    """A pair to be damaged."""
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(pair.with_suffix(suffix), tmp_path)
    return tmp_path / pair.name


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the YAML of a pair."""
    text = file.with_suffix(".yaml")
    about = yaml.safe_load(text.read_text())
    change(about)
    text.write_text(yaml.safe_dump(about))


# --- round trip -----------------------------------------------------------------------------------------------------


SWAPPED = {"tower": "plain", "boxes": True, "refine": False, "topk": 3}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("erpose", [{}, SWAPPED], ids=str)
def test_round_trip_is_bit_equal(tmp_path: Path, fused: bool, erpose: dict[str, Any]) -> None:
    """Every tensor, buffers included, and everything that training, export and metric read off a model comes back."""
    before = network(**erpose)
    if fused:
        before.fuse(verbose=False)
    after = load_weights(save_weights(before, tmp_path / "sub" / "best.safetensors"))
    ours, theirs = before.state_dict(), after.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert all(ours[k].dtype == theirs[k].dtype for k in ours) and "model.23.margins" in ours
    assert after.is_fused() == fused and not after.training
    assert after.settings == before.settings == Settings(width=16, **erpose)
    for name in ("names", "kpt_shape", "kpt_names", "task"):
        assert getattr(after, name) == getattr(before, name), name
    torch.testing.assert_close(after.init_criterion().loss.sigmas, before.init_criterion().loss.sigmas, rtol=0, atol=0)
    x = torch.rand(1, 3, 64, 96)
    assert torch.equal(after(x)[0], before(x)[0])
    about = yaml.safe_load((tmp_path / "sub" / "best.yaml").read_text())
    assert about["flip_idx"] == [1, 0, 2] and about["kpt_oks_sigmas"] == [0.03, 0.031, 0.1] and about["imgsz"] == 96


def test_through_the_class_and_the_hook(tmp_path: Path) -> None:
    """ERPose(...).save writes the pair; ERPose and YOLO open it, predict the same, and train and save go on from it."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    model.save("best.safetensors")
    assert sorted(p.name for p in Path().iterdir()) == ["best.safetensors", "best.yaml"]
    assert os.stat("best.safetensors").st_mode == os.stat("best.yaml").st_mode
    kwargs: dict[str, Any] = {"imgsz": 64, "conf": 0.0, "device": "cpu", "verbose": False}
    wanted = model.predict(IMAGE, **kwargs)[0]
    assert len(wanted)
    for opened in (ERPose("best.safetensors"), YOLO("best.safetensors"), YOLO(Path("best.safetensors"))):
        assert type(opened) is ERPose and opened.task == "pose"
        assert torch.equal(opened.predict(IMAGE, **kwargs)[0].keypoints.data, wanted.keypoints.data)
    opened.save("again.pt")
    assert isinstance(ERPose("again.pt").model, ERPoseModel)
    opened.save("best.safetensors")  # over itself


@pytest.mark.slow
def test_command_line_and_training(tiny_dataset: Path, tmp_path: Path) -> None:
    """`yolo pose predict model=best.safetensors` works, and so does a run that starts from such weights."""
    torch.manual_seed(0)
    model = ERPose("erpose-n.yaml")
    model.save("best.safetensors")
    image = next((tiny_dataset.parent / "images" / "val").iterdir())
    words = ["pose", "predict", "model=best.safetensors", f"source={image}", "imgsz=64", "device=cpu", "conf=0.001"]
    words += [f"project={tmp_path}", "name=p"]
    subprocess.run([sys.executable, "-m", "erpose_yolo.cli", *words], check=True, capture_output=True)
    assert (tmp_path / "p" / f"{image.stem}.jpg").is_file()
    opened = ERPose("best.safetensors")
    opened.train(data=str(tiny_dataset), epochs=1, imgsz=64, batch=4, lr0=0.0, warmup_epochs=0, optimizer="SGD", plots=False,
                 val=False, device="cpu", workers=0, project=str(tmp_path), name="r")  # fmt: skip
    trained = ERPose(tmp_path / "r" / "weights" / "last.pt").model.state_dict()
    start = model.model.state_dict()
    for name in ("model.0.conv.weight", "model.23.pose.keypoints.0.weight"):  # it was not begun from random weights
        torch.testing.assert_close(trained[name], start[name].half().float())


# --- bad files ------------------------------------------------------------------------------------------------------


def test_missing_files(copy: Path) -> None:
    """Which of the two is missing is said, by the class and through the hook."""
    copy.with_suffix(".yaml").unlink()
    for cls in (ERPose, YOLO):
        with pytest.raises(FileNotFoundError, match="best.yaml is missing.*best.safetensors"):
            cls(copy)
        with pytest.raises(FileNotFoundError, match="absent.safetensors does not exist"):
            cls(copy.with_name("absent.safetensors"))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_tensors(copy: Path, share: float) -> None:
    """A download that broke off."""
    data = copy.read_bytes()
    copy.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="best.safetensors is damaged, or no safetensors file"):
        load_weights(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("model.0.conv.weight"), r"model\.0\.conv\.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "extra is not of this network"),
        (lambda s: s.update({"model.23.margins": torch.zeros(4, 5)}), r"margins is torch.float32 \(4, 5\), not \(4, 6\)"),
        (lambda s: s.update({"model.23.margins": torch.zeros(4, 6, dtype=torch.int8)}), r"margins is torch.int8"),
        (lambda s: s.clear(), "is missing; .* and [0-9]+ more"),
    ],
)
def test_wrong_tensors(copy: Path, change: Callable[[dict[str, torch.Tensor]], Any], says: str) -> None:
    """Tensors of another network: named, none silently skipped."""
    from safetensors.torch import load_file, save_file

    state = load_file(copy)
    change(state)
    save_file(state, copy)
    with pytest.raises(ValueError, match=says):
        load_weights(copy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("names: {0: person}", "does not describe ER-Pose weights"),
        ("", "does not describe ER-Pose weights"),
        ("format: erpose weights 99", "format: erpose weights 1.*not 'erpose weights 99'"),
        ("a: [1, 2", "is not YAML"),
        ("\x00\x01", "is not YAML"),
        ("!!python/object/apply:os.system ['touch pwned']", "is not YAML"),
        (f"format: {FORMAT}\nnetwork: 3", "network with nc and a name"),
        (f"format: {FORMAT}\nnetwork: {{nc: 1}}\nkpt_shape: [17, 3]\nnames: {{1: person}}", "a name per class"),
    ],
)
def test_foreign_yaml(copy: Path, text: str, says: str) -> None:
    """Another tool's YAML, a newer format, no YAML, and a YAML that would run a command under an unsafe loader."""
    copy.with_suffix(".yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_weights(copy)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a["network"].update(activation="__import__('os').system('touch pwned') or nn.SiLU()"), "activation"),
        (lambda a: a["network"].update(activation="nn.SiLU(__import__('os').system('touch pwned'))"), "activation"),
        (lambda a: a["network"].update(activation="nn.Module.__subclasses__()"), "activation"),
        (lambda a: a["network"]["backbone"][0].__setitem__(2, "load_checkpoint"), "'load_checkpoint' is not a layer"),
        (lambda a: a["network"]["backbone"][0].__setitem__(2, "nn.functional"), "'nn.functional' is not a layer"),
        (lambda a: a["network"]["backbone"][0].__setitem__(2, "torchvision.ops.misc"), "is not a layer"),
        (lambda a: a["network"]["backbone"][0].__setitem__(2, "TorchVision"), "'TorchVision' is not a layer"),
        (lambda a: a["network"]["head"][-1].__setitem__(2, "Pose"), "not an ER-Pose model"),
        (lambda a: a["network"]["backbone"].__setitem__(0, "Conv"), "rows of four"),
        (lambda a: a["network"].pop("head"), "the last layer is"),
        (lambda a: a["network"]["backbone"][0].__setitem__(3, ["x", "y"]), "cannot be built"),
        (lambda a: a["network"]["erpose"].update(pose_los=1), "cannot be built.*pose_los"),
        (lambda a: a.update(kpt_shape=[0, 9]), r"kpt_shape is \[0, 9\]"),
        (lambda a: a.update(kpt_oks_sigmas=[1, 2]), "kpt_oks_sigmas must hold 3"),
    ],
)
def test_networks_that_are_not_built(copy: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    """Stock code evaluates the activation and looks layers up by name: nothing but known layers gets that far."""
    edit(copy, change)
    with pytest.raises(ValueError, match=says):
        load_weights(copy)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("activation", ["nn.ReLU()", "torch.nn.LeakyReLU(0.1, inplace=True)"])
def test_activations_that_are_built(tmp_path: Path, activation: str) -> None:
    """The refusals above do not refuse what a model YAML may say."""
    cfg = load_model_yaml("erpose-n.yaml")
    model = ERPoseModel({**cfg, "activation": activation}, verbose=False)
    model.names, model.args = {0: "person"}, {}
    after = load_weights(save_weights(model, tmp_path / "a.safetensors"))
    assert str(after.model[0].act) == str(model.model[0].act) != "SiLU(inplace=True)"


def test_a_model_yaml_is_not_overwritten(tmp_path: Path) -> None:
    """``erpose-mine.safetensors`` beside a model YAML of that name: the YAML stays, and no half a pair is left."""
    (tmp_path / "mine.yaml").write_text("base: yolo26.yaml")
    with pytest.raises(FileExistsError, match="mine.yaml exists and does not describe weights"):
        save_weights(network(), tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.yaml").read_text() == "base: yolo26.yaml" and len(list(tmp_path.iterdir())) == 1


def test_without_safetensors_the_package_is_named(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: the error says what to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        load_weights(pair)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        save_weights(network(), tmp_path / "a.safetensors")


# --- pickles --------------------------------------------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('pwned', 'w').close()",))


OPEN = """
import sys, torch
from {module} import {cls}
for file in sys.argv[1:]:
    try:
        model = {cls}(file)
    except Exception as error:
        print("refused", type(error).__name__)
    else:
        model.predict(torch.zeros(1, 3, 64, 64), device="cpu", verbose=False)
        print("opened", type(model).__name__)
"""


def open_safely(module: str, cls: str, *files: str | Path, repo: Path) -> list[str]:
    """What becomes of files in a process with ULTRALYTICS_SAFE_LOAD=1: a line for each."""
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1", "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", OPEN.format(module=module, cls=cls), *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(("refused", "opened"))]
    assert len(said) == len(files), done.stdout + done.stderr
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("module", "cls"), [("erpose_yolo", "ERPose"), ("ultralytics", "YOLO")])
def test_safe_load(module: str, cls: str, repo: Path) -> None:
    """ULTRALYTICS_SAFE_LOAD=1 opens our checkpoint and refuses one with code in it, wherever in it the code lies."""
    ERPose("erpose-n.yaml").save("good.pt")
    checkpoint = torch.load("good.pt", weights_only=False)
    torch.save({**checkpoint, "date": Bomb()}, "bad.pt")
    checkpoint["model"].extra = Bomb()
    torch.save(checkpoint, "worse.pt")
    said = open_safely(module, cls, "good.pt", "bad.pt", "worse.pt", repo=repo)
    assert said == ["opened ERPose", "refused TypeError", "refused TypeError"]
    assert not Path("pwned").exists()
    torch.load("bad.pt", weights_only=False)
    assert Path("pwned").exists()  # the bomb is live


@pytest.mark.slow
def test_safe_load_of_a_trained_checkpoint(tiny_dataset: Path, tmp_path: Path, repo: Path) -> None:
    """What training writes (optimizer, arguments, results) opens under the switch, too."""
    ERPose("erpose-n.yaml").train(data=str(tiny_dataset), epochs=2, imgsz=64, batch=4, plots=False, device="cpu", workers=0,
                                  save_period=1, project=str(tmp_path), name="r")  # fmt: skip
    files = [tmp_path / "r" / "weights" / f"{name}.pt" for name in ("best", "last", "epoch0")]
    assert open_safely("erpose_yolo", "ERPose", *files, repo=repo) == ["opened ERPose"] * 3
