"""What ultralytics does not promise to keep is as we rely upon it; and the ranges of versions are said once."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import ultralytics
from torch import nn
from ultralytics.engine import exporter as stock_exporter
from ultralytics.engine.exporter import export_formats

from erpose_yolo.data.dataset import ERPoseDataset
from erpose_yolo.data.drawing import PoseResults
from erpose_yolo.engine.predictor import ERPosePredictor
from erpose_yolo.engine.slicing import SlicedPredictor
from erpose_yolo.engine.trainer import ERPoseTrainer
from erpose_yolo.engine.validator import ERPoseMetrics, ERPoseValidator
from erpose_yolo.export import formats
from erpose_yolo.model import ERPose
from erpose_yolo.nn.head import ERPoseHead
from erpose_yolo.nn.network import ERPoseModel
from erpose_yolo.upstream import compat
from erpose_yolo.upstream.compat import CONTRACTS, REPLACED, SUPPORTED, UpstreamContract

OURS = (ERPose, ERPoseModel, ERPoseHead, ERPoseTrainer, ERPoseValidator, ERPosePredictor, ERPoseMetrics, ERPoseDataset)


def holder(name: str) -> tuple[object, str]:
    """The module or class that a name of the table lies in, and its last part."""
    module, _, attributes = name.partition(":")
    *path, last = attributes.split(".")
    thing: object = importlib.import_module(module)
    for part in path:
        thing = getattr(thing, part)
    return next((base for base in getattr(thing, "__mro__", ()) if last in vars(base)), thing), last


def test_ultralytics_is_as_we_rely_upon_it() -> None:
    assert not list(compat.complaints())


@pytest.mark.parametrize("touch", CONTRACTS, ids=lambda touch: f"{touch.name.partition(':')[2]} {touch.shape}")
def test_canary_can_fail(touch: UpstreamContract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of the table is renamed or changes its shape is named, with what breaks."""
    owner, last = holder(touch.name)
    changed = "changed" if touch.shape.startswith("= ") else lambda something_else: None
    with monkeypatch.context() as patch:
        if touch.shape:
            patch.setattr(owner, last, changed)
            assert any(line.startswith(touch.name) and touch.breaks in line for line in compat.complaints())
        patch.delattr(owner, last)
        lines = [line for line in compat.complaints() if line.startswith(f"{touch.name} is gone")]
        assert lines or hasattr(owner, last)  # a base has that name, too, and stands in


@pytest.mark.parametrize(
    ("function", "shape", "words"),
    [
        (lambda a, b=1: 0, "(a, /, b=1)", ""),
        (lambda a, b=1, *c, d=2, **e: 0, "(a, /)", ""),
        (lambda b, a: 0, "(a, /, b)", "takes (b, a)"),
        (lambda a, c=1: 0, "(a, /, b=1)", "takes (a, c)"),
        (lambda a, b=2: 0, "(a, /, b=1)", "takes b=2"),
        (lambda a, b: 0, "(a, /)", "takes b"),
        (lambda a: a.name, "uses name", ""),
        (lambda a: lambda: getattr(a, "name"), "uses name", ""),  # noqa: B009
        (lambda a: a.other, "uses name", "does not use name"),
        (3, "= 3", ""),
        (3, "= 4", "is 3, not 4"),
    ],
)
def test_shapes(function: object, shape: str, words: str) -> None:
    found = compat._mismatch(function, shape)
    assert found.startswith(words) and bool(found) is bool(words)


def overridden(cls: type) -> set[str]:
    """Names that a class of ours defines, mix-ins included, and that a stock base of it defines, too."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("erpose_yolo.")]
    stock = [base for base in cls.__mro__ if base.__module__.startswith("ultralytics.")]
    names = {name for base in own for name in vars(base)}
    return {
        name
        for name in names & {name for base in stock for name in vars(base)}
        if name == "__init__" or not (name.startswith("__") and name.endswith("__"))
    }


def stock_base(cls: type) -> type:
    return next(base for base in cls.__mro__ if base.__module__.startswith("ultralytics."))


@pytest.mark.parametrize("cls", OURS)
def test_table_of_replaced_methods_is_complete(cls: type) -> None:
    """An override that is not recorded could be renamed upstream and never be called again, without an error."""
    recorded = {id(compat._resolve(owner)): methods.split() for owner, methods in REPLACED.items()}
    names = recorded[id(stock_base(cls))]
    assert names == sorted(names) and set(names) >= overridden(cls) - {"max_det", "export"}
    kept = {name for base in cls.__mro__ if base.__module__.startswith("erpose_yolo.") for name in vars(base)}
    assert set(names) <= kept  # nothing stale


def private_words(bases: Iterable[type]) -> set[str]:
    """Private names that these classes define, or that their methods use."""
    words = {name for base in bases for name in vars(base)}
    for member in (member for base in bases for member in vars(base).values()):
        function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
        words |= set(compat._words(function.__code__)) if isinstance(function, types.FunctionType) else set()
    return {word for word in words if re.fullmatch(r"_[^\W_]\w*", word)}


def unrecorded(cls: type) -> set[str]:
    """Private names of the stock bases of a class of ours that it uses, or takes for its own, without a row in the tables."""
    recorded = set(re.findall(r"\w+", " ".join(f"{touch.name} {touch.shape}" for touch in CONTRACTS) + f" {REPLACED}"))
    ours, stock = ([b for b in cls.__mro__ if b.__module__.startswith(f"{top}.")] for top in ("erpose_yolo", "ultralytics"))
    return private_words(ours) & private_words(stock) - recorded - set(vars(nn.Module()))  # torch's own are another matter


@pytest.mark.parametrize("cls", [*OURS, SlicedPredictor, PoseResults])
def test_private_names_of_stock_bases_are_recorded(cls: type) -> None:
    assert not unrecorded(cls)


def test_an_unrecorded_private_name_is_found() -> None:
    class Touching(ERPose):
        def save(self, filename: str | Path = "") -> None:
            self._check_is_pytorch_model()

    class Colliding(ERPoseTrainer):
        _oom_retries = 3

    Touching.__module__ = Colliding.__module__ = "erpose_yolo.model"
    assert unrecorded(Touching) == {"_check_is_pytorch_model"} and unrecorded(Colliding) == {"_oom_retries"}


def test_a_replaced_method_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.models.yolo.detect import DetectionValidator

    monkeypatch.delattr(DetectionValidator, "plot_val_samples")
    monkeypatch.delattr("ultralytics.engine.validator.BaseValidator.plot_val_samples")
    assert [line for line in compat.complaints() if "plot_val_samples is gone" in line and "never called" in line]


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in OURS for name in sorted(overridden(cls))], ids=lambda x: getattr(x, "__name__", x)
)
def test_overrides_take_what_stock_code_passes(cls: type, name: str) -> None:
    """Each override accepts the parameters that the method it replaces has, by place and by name."""
    ours, theirs = inspect.getattr_static(cls, name), getattr(stock_base(cls), name)
    if not isinstance(ours, types.FunctionType) or (cls, name) in {(ERPoseHead, "__init__"), (ERPoseModel, "__init__")}:
        return  # a property; or a constructor that only we call
    taken, passed = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {p.kind for p in taken.values()}
    required = {n for n, p in passed.items() if p.default is p.empty and p.kind not in loose}
    assert required <= set(taken) or kinds >= set(loose)
    assert [n for n in passed if n in taken] == [n for n in taken if n in passed]  # same order
    assert {n for n, p in taken.items() if p.default is p.empty and p.kind not in loose} <= set(passed)


def nested(code: types.CodeType) -> list[object]:
    """Constants of a function and of those inside it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [*code.co_consts, *(c for part in inner for c in nested(part))]


def test_formats_that_stock_code_forces_to_nms_are_known() -> None:
    """A new format without TopK would get top-k rows from us and fail in its converter."""
    sets = [c for c in nested(inspect.unwrap(stock_exporter.Exporter.__call__).__code__) if isinstance(c, frozenset)]
    forced = [c for c in sets if {"ncnn", "rknn", "imx"} <= c]
    assert forced and all(c - {"imx"} <= set(formats.NO_TOPK) for c in forced)


def test_every_format_has_a_decision() -> None:
    assert set(export_formats()["Argument"]) - {"-"} <= set(formats.CONVERTERS) | set(formats.REFUSED)


# ---- ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", SUPPORTED)
def test_supported_range_is_said_once(package: str, repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(rf'^ *"{package}([<>=][^"]*)"', text, re.MULTILINE) == [",".join(SUPPORTED[package])]


def test_readme_names_the_oldest(repo: Path) -> None:
    lines = [line for line in (repo / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("* Supported: ")]
    assert len(lines) == 1
    assert all(f"{package} {bounds[0][2:]}" in lines[0].lower() for package, bounds in SUPPORTED.items())


def test_installed_versions_are_supported() -> None:
    """With the range as it stands; a newer release is tried by hand: python -m erpose_yolo.upstream.compat."""
    for package in (ultralytics, torch):
        if not compat.is_supported(package.__version__, package.__name__):
            pytest.skip(f"{package.__name__} {package.__version__} is outside the range: a trial of a newer release")


@pytest.mark.parametrize(
    ("package", "version", "supported"),
    [("ultralytics", v, True) for v in ("8.4.130", "8.4.190", "8.4.1000", "8.4.130.dev1")]
    + [("ultralytics", v, False) for v in ("8.4.129", "8.5", "8.5.0", "9.0.0", "8.3.999", "nonsense")]
    + [("torch", v, True) for v in ("2.4", "2.4.0", "2.4.1+cu121", "2.15.0+cpu", "3.0", "2.10.0a0+git")]
    + [("torch", v, False) for v in ("2.3.1", "1.13.1+cu117")],
)
def test_supported_range(package: str, version: str, supported: bool) -> None:
    assert compat.is_supported(version, package) is supported


@pytest.mark.parametrize(("package", "version"), [("ultralytics", "8.5.1"), ("torch", "2.3.1+cpu")])
def test_unsupported_version_is_one_warning(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import LOGGER

    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    monkeypatch.setattr(compat, "_warned", False)
    monkeypatch.setattr(ultralytics, "__version__", SUPPORTED["ultralytics"][0][2:])
    compat.install()
    assert not said
    monkeypatch.setattr({"torch": torch, "ultralytics": ultralytics}[package], "__version__", version)
    compat.install()
    compat.install()
    assert len(said) == 1 and f"{package}{','.join(SUPPORTED[package])}" in said[0] and version in said[0]
    assert "python -m erpose_yolo.upstream.compat" in said[0]


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """python -m erpose_yolo.upstream.compat: versions, verdicts, and what moved."""
    assert compat.main() == 0
    assert f"ultralytics {ultralytics.__version__}: " in capsys.readouterr().out
    monkeypatch.setattr("ultralytics.nn.modules.head.Detect.max_det", 100)
    assert compat.main() == 1
    assert "Detect.max_det is 100, not 300. Breaks: rows of an export" in capsys.readouterr().out


def test_torch_that_is_not_loaded_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_warned", False)
    monkeypatch.setattr(compat, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(ultralytics, "__version__", SUPPORTED["ultralytics"][0][2:])
    compat.warn_if_unsupported()
    assert not compat._warned
