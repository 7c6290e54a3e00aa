"""The ``erpose`` command, and what the ``yolo`` command does with a model of ours."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

import erpose_yolo
from erpose_yolo import catalog, cli, model
from erpose_yolo.model import ERPose

SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a b.png"
    cv2.imwrite(str(path), np.zeros((100, 200, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    ERPose("erpose-n.yaml").save(path)
    return path


def test_own_commands_are_dispatched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``erpose check`` is ours and not a yolo task."""
    assert cli.main(["check", str(tmp_path / "absent.yaml")]) != 0
    out = capsys.readouterr()
    assert "absent.yaml" in out.out + out.err


@pytest.mark.parametrize("name", catalog.list_datasets())
def test_stock_models_get_our_data_sets_by_bare_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Peers are measured on the same data with the same words: the stock loader finds what the command hands it."""
    from ultralytics import cfg
    from ultralytics.data.utils import check_file

    seen: list[str] = []
    monkeypatch.setattr(cfg, "entrypoint", lambda: seen.extend(sys.argv[1:]))
    cli.main(["pose", "val", "model=yolo11n-pose.yaml", f"data={name}", "imgsz=64"])
    assert seen[:3] == ["pose", "val", "model=yolo11n-pose.yaml"] and seen[4] == "imgsz=64"
    assert Path(check_file(seen[3].removeprefix("data="))).name == name


def test_a_mistyped_folder_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["val", "model=erpose-n.yaml", "data=my-typo/synth-people.yaml", "imgsz=64"]) == 1
    assert "my-typo/synth-people.yaml" in capsys.readouterr().err


# Help and versions


def test_every_command_has_its_module() -> None:
    """A command in the table that cannot be imported is found here and not by a user."""
    for command in cli.COMMANDS.values():
        assert callable(importlib.import_module(command.module).main) and command.help


def parameters(mode: str) -> set[str]:
    """What a method of ERPose takes by name."""
    return set(inspect.signature(getattr(model.ERPose, mode)).parameters)


def test_the_tables_are_those_of_the_stock_command() -> None:
    """A mode, a special command or a bare flag that Ultralytics adds fails here until somebody decides what becomes of it."""
    from ultralytics import cfg

    assert set(cli.MODES) == set(cfg.MODES) and set(cli.OURS) <= set(cli.MODES)
    tree = ast.parse(textwrap.dedent(inspect.getsource(cfg.entrypoint)))
    special = next(n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "special")
    names = {ast.literal_eval(key) for key in special.keys}  # type: ignore[attr-defined]
    assert names == {*cli.SPECIAL, "help", "version"}
    flags = [ast.literal_eval(n) for n in ast.walk(tree) if isinstance(n, ast.Set)]
    assert set(cli.FLAGS) in flags
    for mode, keys in cli.OURS.items():
        taken = {name for of in {mode, "predict" if mode == "track" else mode} for name in parameters(of)}  # track hands on
        assert keys <= taken and (mode != "track" or {"smooth", "out"} <= parameters(mode))
        assert all(not erpose_yolo.upstream.compat.is_argument(key) for key in keys), "the stock command would take it itself"


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_names_everything(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for name in (*cli.COMMANDS, *cli.MODES):
        assert f"  {name} " in out


@pytest.mark.parametrize("name", [*cli.COMMANDS, *cli.MODES])
def test_help_on_each(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", name]) == 0
    said = capsys.readouterr().out
    assert "usage" in said.lower()
    if name in cli.MODES:
        for words in ([name, "--help"], ["pose", name, "-h"], [name, "model=erpose-n.pt", "help"]):
            assert cli.main(words) == 0 and capsys.readouterr().out == said
        assert all(key in said for key in cli.OURS.get(name, ())) and "{" not in said


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import ultralytics

    for word in cli.VERSION:
        assert cli.main([word]) == 0
        wanted = f"erpose-yolo {erpose_yolo.__version__}, ultralytics {ultralytics.__version__}, torch {torch.__version__}\n"
        assert capsys.readouterr().out.split("+")[0].strip() == wanted.split("+")[0].strip()


# Words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("chek data.yaml", "Did you mean 'check'?"),
        ("predcit source=a.jpg", "Did you mean 'predict'?"),
        ("help evla", "Did you mean 'eval'?"),
        ("predict mdoel=erpose-n.pt", "'mdoel' is not an argument. Did you mean 'model'?"),
        ("predict slice=640", "Did you mean 'slices'?"),
        ("track smoth=30", "Did you mean 'smooth'?"),
        ("predict smooth=30", "smooth= goes with track, not with predict."),
        ("train slices=64", "slices= goes with predict and track, not with train."),
        ("predict imgsz", "'imgsz' needs a value: imgsz=640."),
        ("predict slices", "'slices' needs a value: slices=640."),
        ("predict conf=", "'conf=' has no value."),
        ("erpose-n.pt", "'erpose-n.pt' is not a word of this command."),
    ],
)
def test_unknown_words(words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the nearest word and exit code 2, before anything is loaded."""
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: pytest.fail("started"))
    assert cli.main(words.split()) == 2
    out = capsys.readouterr()
    assert sentence in out.err and out.err.count("\n") == 1 and not out.out


@pytest.mark.parametrize(
    "words",
    ["predict half", "predict show_boxes=False", "predict --conf=0.3", "pose predict imgsz = 64", "predict hide_labels=True"],
)
def test_words_of_the_stock_command_pass(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that it forgives, and arguments that it has deprecated."""
    ran: list[str] = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: ran.extend(sys.argv))
    assert cli.main(words.split()) == 0
    assert ran[0] == "yolo" and not capsys.readouterr().err


def test_special_commands_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["settings", "sync=False"], ["solutions", "count", "my_key=1"], ["checks"]):
        ran: list[str] = []
        monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda ran=ran: ran.extend(sys.argv[1:]))
        assert cli.main(words) == 0 and ran == words


def test_a_model_of_ours_where_none_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: ran.append(" ".join(sys.argv[1:])))
    (tmp_path / "mine.yaml").write_text("imgsz: 64\nmodel: other.pt\n")
    (tmp_path / "none.yaml").write_text("imgsz: 64\nmodel:\n")
    for words in ("predict", "val model=a.pt", f"predict cfg={tmp_path}/mine.yaml", f"predict cfg={tmp_path}/none.yaml"):
        assert cli.main(words.split()) == 0
    assert [line.count("model=erpose-n.pt") for line in ran] == [1, 0, 0, 1]


def test_errors_of_the_input_are_one_line_and_bugs_are_not(
    image: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        ([f"model={weights}", "source=nowhere.jpg"], "nowhere.jpg does not exist"),
        (["model=nowhere.pt", f"source={image}"], "nowhere.pt"),
        ([f"model={weights}", f"source={image}", "conf=much"], "'conf=much' is of invalid type str"),
        ([f"model={weights}", f"source={image}", "slices=4"], "at least 32 px"),
        ([f"model={weights}", f"source={image}", "slices=many"], "got slices='many'"),
    ):
        assert cli.main(["predict", *words]) == 1
        err = capsys.readouterr().err
        assert err.startswith("erpose: ") and sentence in err and err.count("\n") == 1

    def broken(*args: object, **kwargs: object) -> None:
        return None + 1  # type: ignore[operator]

    monkeypatch.setattr("erpose_yolo.engine.predictor.select_persons", broken)
    for extra in ([], ["slices=64"]):
        with pytest.raises(TypeError, match="unsupported operand"):
            cli.main(["predict", f"model={weights}", f"source={image}", "imgsz=32", *extra])


# Runs


def test_slices_from_the_command_line(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image with its skeletons is saved; several sides, stock flags and a cfg file go with it."""
    words = ["predict", f"source={image}", f"project={tmp_path}", "conf=1e-6"]
    (tmp_path / "mine.yaml").write_text("imgsz: 32\nmax_det: 3\n")
    assert cli.main([*words, "name=out", "slices=64,80", "overlap=0.1", "save_txt", f"cfg={tmp_path / 'mine.yaml'}"]) == 0
    saved = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*"))
    assert saved == ["a b.jpg", "labels/a b.txt"]
    assert len((tmp_path / "out/labels/a b.txt").read_text().splitlines()) == 3
    assert cli.main(["predict", "model=yolo26n-pose.yaml", f"source={image}", "slices=64"]) == 1
    assert "yolo26n-pose.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", "val", "predict", "track", "export", "benchmark"])
def test_every_method_takes_what_the_stock_command_passes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``model=`` and all: it calls ``getattr(model, mode)(**overrides)``."""
    from ultralytics.engine.model import Model

    got: dict[str, object] = {}
    monkeypatch.setattr(Model, mode, lambda self, *args, **kwargs: got.update(kwargs) or "")
    monkeypatch.setattr("erpose_yolo.export.exporter._Work.publish", lambda self, made: made)
    given = {"model": "erpose-n.yaml", "imgsz": 64, "data": "synth-people.yaml", "format": "torchscript", "task": "pose"}
    if mode in ("predict", "track"):
        given |= {"source": "a.jpg"}
    getattr(ERPose("erpose-n.yaml"), mode)(**given)
    assert got["model"] == "erpose-n.yaml" and got["imgsz"] == 64


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A console script of this environment."""
    words = [str(SCRIPTS / command[0]), *map(str, command[1:])]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_scripts_run_every_mode(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """As typed: each mode ends well and leaves its file; the pages type the others of yolo (tests/test_typed.py)."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "small.pt").write_bytes(weights.read_bytes())
    image = tiny_dataset.parent / "images/val/0.png"
    common = ["model=small.pt", "imgsz=64", f"project={tmp_path / 'runs'}"]
    for script, words, made in (
        ("erpose", ["export", "format=onnx"], "small.onnx"),
        ("erpose", ["predict", "name=predict", f"source={image}"], "runs/predict/0.jpg"),
        ("erpose", ["track", "name=track", f"source={image}"], "runs/track/0.jpg"),
        ("erpose", ["val", "name=val", "workers=0", f"data={tiny_dataset}"], "runs/val/predictions.json"),
        (
            "erpose",
            ["pose", "train", "name=train", "workers=0", "epochs=1", "batch=4", f"data={tiny_dataset}"],
            "runs/train/weights/best.pt",
        ),
        ("yolo", ["benchmark", "format=onnx", f"data={tiny_dataset}"], "benchmarks.log"),
    ):
        done = run(script, *words, *common, cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / made).exists(), f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_scripts_answer(tmp_path: Path) -> None:
    """Our own words, through the script: help and versions at once, a mistake in one line."""
    assert "slices" in run("erpose", "predict", "--help", cwd=tmp_path).stdout
    assert run("erpose", "--version", cwd=tmp_path).stdout.startswith(f"erpose-yolo {erpose_yolo.__version__}, ultralytics ")
    wrong = run("erpose", "predict", "mdoel=erpose-n.pt", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.count("\n") == 1 and "'model'" in wrong.stderr
    assert not list(tmp_path.iterdir()), "nothing was made or downloaded"


def test_help_and_versions_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from erpose_yolo.cli import main\n"
        "codes = [main(words) for words in ([], ['predict', '--help'], ['--version'])]\n"
        "print(codes, {'torch', 'ultralytics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] set()"
