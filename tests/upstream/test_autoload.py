"""The hook: it fires, it can be turned off, and whatever is broken, Python and stock models never notice."""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from erpose_yolo.upstream import autoload, compat

PTH = "erpose_yolo_autoload.pth"
WARNING = "WARNING erpose-yolo could not attach itself"


@dataclass
class Site:
    """A stand-in for site-packages: our .pth file, and a path file to whatever package it shall find."""

    folder: Path

    def run(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``code`` in a Python that has read this folder as a site folder, the way site.py reads site-packages."""
        start = f"import site; site.addsitedir({str(self.folder)!r})\n"
        return subprocess.run(
            [sys.executable, "-c", start + code],
            capture_output=True,
            text=True,
            env={**os.environ, "YOLO_VERBOSE": "false", **env},  # stdout is for what `code` prints
            timeout=300,
        )

    def output(self, code: str, **env: str) -> str:
        done = self.run(code, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def make_site(tmp_path: Path, repo: Path) -> Callable[[Path | None], Site]:
    """Make a site folder whose package lies in the given folder; None: the package is gone, the .pth file remained."""

    def make(package_parent: Path | None) -> Site:
        folder = tmp_path / "site"
        folder.mkdir()
        shutil.copy(repo / "erpose_yolo" / "upstream" / "autoload.pth", folder / PTH)
        # forget an installed erpose_yolo, and put ours in its place; named to be read before our .pth file
        line = "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'erpose_yolo'))]; "
        line += f"sys.path[:0] = {[str(package_parent)] if package_parent else []}; "
        line += "[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('erpose_yolo')]; "
        line += "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != 'erpose_yolo.upstream.autoload']"
        (folder / "_first.pth").write_text(line + "\n")
        return Site(folder)

    return make


@pytest.fixture
def site(make_site: Callable[[Path | None], Site], repo: Path) -> Site:
    return make_site(repo)


PATCHED = "hasattr(YOLO.__init__, '__erpose__')"
HOOKS = "sum(type(f).__module__ == 'erpose_yolo.upstream.autoload' for f in sys.meta_path)"


HOOK = ("__init__", "upstream/__init__", "upstream/autoload", "upstream/compat")


def copy_of_the_package(repo: Path, to: Path, **replaced: str) -> Path:
    """Copy what the hook needs into ``to`` and replace the text of some modules.

    A tiny ultralytics stands beside it, with what :mod:`erpose_yolo.upstream.compat` touches: these tests are about the hook,
    and importing the real one takes seconds.
    """
    files = {
        **{f"erpose_yolo/{m}": (repo / f"erpose_yolo/{m}.py").read_text() for m in (*HOOK, "nn/__init__")},
        **{f"erpose_yolo/{'' if module == '__init__' else 'upstream/'}{module}": text for module, text in replaced.items()},
        "ultralytics/__init__": "__version__ = '8.4.190'\n"
        "def __getattr__(name):\n    from ultralytics.models.yolo.model import YOLO\n    return YOLO",
        "ultralytics/utils": "import logging\nSAFE_LOAD = False\nLOGGER = logging.getLogger('x')",
        "ultralytics/models/__init__": "",
        "ultralytics/models/yolo/__init__": "",
        "ultralytics/models/yolo/model": "class YOLO:\n    def __init__(self, model='', task=None): self.model = None",
    }
    for name, text in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / f"{name}.py").write_text(text)
    return to


def test_the_pth_file_is_one_line_that_python_executes(repo: Path) -> None:
    lines = (repo / "erpose_yolo" / "upstream" / "autoload.pth").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("import ")


def test_hook_waits_for_ultralytics_and_fires_once(site: Site) -> None:
    code = f"""
import sys
print({HOOKS}, 'torch' in sys.modules, 'erpose_yolo.upstream.compat' in sys.modules)
import erpose_yolo; erpose_yolo.upstream.autoload.install()
print({HOOKS})
from ultralytics import YOLO
print({HOOKS}, {PATCHED}, 'erpose_yolo.model' in sys.modules)
"""
    assert site.output(code).split("\n")[:3] == ["1 False False", "1", "0 True False"]


def test_hook_leaves_the_module_as_the_import_system_made_it(site: Site) -> None:
    code = """
import importlib, inspect
import ultralytics.models.yolo.model as m
from importlib.machinery import SourceFileLoader
print(type(m.__loader__) is SourceFileLoader, m.__spec__.loader is m.__loader__, m.__spec__.cached is not None)
print('class YOLO' in inspect.getsource(m), inspect.signature(m.YOLO.__init__).parameters['verbose'].default)
old = m.YOLO
importlib.reload(m)
print(m.YOLO is not old)
from erpose_yolo.upstream import compat
compat.install()
print(hasattr(m.YOLO.__init__, '__erpose__'))
"""
    assert site.output(code).split("\n")[:4] == ["True True True", "True False", "True", "True"]


def test_switch_turns_it_off(make_site: Callable[..., Site], repo: Path, tmp_path: Path) -> None:
    site = make_site(copy_of_the_package(repo, tmp_path / "copy"))
    assert site.output(f"from ultralytics import YOLO; print({PATCHED})") == "True\n"
    code = f"import sys; print({HOOKS}, 'erpose_yolo' in sys.modules)\nfrom ultralytics import YOLO; print({PATCHED})\n"
    code += f"import erpose_yolo; print({PATCHED})"  # not by an explicit import either
    assert site.output(code, ERPOSE_AUTOLOAD="0").split("\n")[:3] == ["0 False", "False", "False"]


def test_import_after_ultralytics_patches_at_once(make_site: Callable[..., Site], repo: Path, tmp_path: Path) -> None:
    site = make_site(copy_of_the_package(repo, tmp_path / "copy"))
    code = f"import os; from ultralytics import YOLO; print({PATCHED}); os.environ.pop('ERPOSE_AUTOLOAD')\n"
    code += f"import erpose_yolo; print({PATCHED})"
    assert site.output(code, ERPOSE_AUTOLOAD="0").split() == ["False", "True"]


@pytest.mark.parametrize(
    "broken",
    [
        "def install():\n    raise AttributeError('YOLO has no\\nsuch thing')",
        "import a_module_that_is_gone",
        "def install(:",
    ],
    ids=["raises", "imports what is missing", "syntax error"],
)
def test_broken_patch_is_one_warning(make_site: Callable[..., Site], repo: Path, tmp_path: Path, broken: str) -> None:
    site = make_site(copy_of_the_package(repo, tmp_path / "broken", compat=broken))
    done = site.run(f"from ultralytics import YOLO; print({PATCHED})")
    assert done.returncode == 0 and done.stdout.split()[-1] == "False"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith(WARNING)
    assert "ERPOSE_AUTOLOAD=0" in lines[0] and "pip install --force-reinstall" in lines[0]
    assert site.run("pass").stderr == ""


def assert_one_warning(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in ("WARNING erpose-yolo", "pip install --force-reinstall", *words)), lines[0]


@pytest.mark.parametrize("broken", ["def f(:", "raise RuntimeError('a\\nb')", "import a_module_that_is_gone", "\0"])
def test_broken_package_is_one_warning(make_site: Callable[..., Site], repo: Path, tmp_path: Path, broken: str) -> None:
    site = make_site(copy_of_the_package(repo, tmp_path / "broken", __init__=broken))
    done = site.run("print('on')")
    assert done.stdout == "on\n"
    assert_one_warning(done, "damaged or half removed")
    assert site.run("print('on')", ERPOSE_AUTOLOAD="0").stderr == ""


def test_package_removed_by_hand_is_one_warning(make_site: Callable[..., Site]) -> None:
    """And it says what is left, for pip no longer knows: the file that prints it."""
    done = make_site(None).run("print('on')")
    assert done.stdout == "on\n"
    assert_one_warning(done, "ModuleNotFoundError", PTH)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [{"__init__": "def f(:"}, {"compat": "raise AttributeError('moved')"}], ids=["package", "patch"])
def test_stock_command_works_beside_a_broken_install(
    make_site: Callable[..., Site], repo: Path, tmp_path: Path, broken: dict[str, str]
) -> None:
    """The true ultralytics: `yolo version` and `YOLO(...)`, and one warning."""
    package = copy_of_the_package(repo, tmp_path / "broken", **broken)
    shutil.rmtree(package / "ultralytics")
    code = "import sys; sys.argv = ['yolo', 'version']\nfrom ultralytics import YOLO, cfg\ncfg.entrypoint()\n"
    done = make_site(package).run(code + "print(type(YOLO('yolo11n-pose.yaml')).__name__)", YOLO_VERBOSE="true")
    assert done.stdout.split()[-1] == "YOLO" and "8." in done.stdout
    assert_one_warning(done)


@pytest.mark.parametrize("gone", ["ultralytics", "torch"])
def test_without_ultralytics_or_torch_only_their_own_error(site: Site, gone: str) -> None:
    code = f"import sys; sys.modules[{gone!r}] = None\ntry:\n    from ultralytics import YOLO\n"
    code += "except ImportError as e:\n    print(e.name)\nimport erpose_yolo; print(erpose_yolo.__version__)"
    done = site.run(code)
    assert done.returncode == 0 and "erpose" not in done.stderr and done.stdout.split()[0] == gone


def test_a_failing_import_of_the_target_leaves_the_hook_for_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up_target.py").write_text("import os\nif 'FAIL' in os.environ: raise ValueError\nYOLO = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autoload, "TARGET", "made_up_target")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    fired: list[int] = []
    monkeypatch.setattr(autoload, "apply", lambda: fired.append(1))
    autoload.install()
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ValueError):
        importlib.import_module("made_up_target")
    assert not fired
    monkeypatch.delenv("FAIL")
    monkeypatch.delitem(sys.modules, "made_up_target", raising=False)
    importlib.import_module("made_up_target")
    assert fired == [1]


STOCK = """
import hashlib, sys, torch
from ultralytics import YOLO
torch.manual_seed(0)
model = YOLO('yolo11n-pose.yaml')
network = model.model.eval()
with torch.no_grad():
    rows = network(torch.rand(1, 3, 96, 96))[0]
state = b''.join(t.numpy().tobytes() for t in network.state_dict().values())
print(hasattr(YOLO.__init__, '__erpose__'), 'erpose_yolo.model' in sys.modules, type(model).__name__)
print(hashlib.sha256(rows.numpy().tobytes() + state).hexdigest())
"""


def test_stock_model_is_the_same_bit_for_bit(site: Site) -> None:
    with_hook, without = site.output(STOCK).split("\n"), site.output(STOCK, ERPOSE_AUTOLOAD="0").split("\n")
    assert with_hook[-3] == "True False YOLO" and without[-3] == "False False YOLO"
    assert with_hook[-2] == without[-2]


# ---- compat, in this process --------------------------------------------------------------------------------------


class Recorder:
    """What the stub ERPose below was called with."""

    calls: list[tuple[object, ...]] = []


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """``YOLO``, patched, with a stub in the place of ERPose."""
    from ultralytics import YOLO

    compat.install()

    class ERPose(YOLO):
        def __init__(self, model: object, task: str | None = None, verbose: bool = False) -> None:
            Recorder.calls.append((model, task, verbose))
            if isinstance(model, YOLO):
                super().__init__(model)
            else:
                super().__init__("yolo11n-pose.yaml", task=task)

    Recorder.calls = []
    stub = ModuleType("erpose_yolo.model")
    stub.ERPose = ERPose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "erpose_yolo.model", stub)
    yield YOLO
    compat.install()


@pytest.mark.parametrize("name", ["erpose-n.yaml", "some/folder/erpose11-s-p2.yml", "ERPose-x.yaml"])
def test_yaml_of_ours_is_handed_over(yolo: type, name: str) -> None:
    model = yolo(Path(name), task="pose")
    assert type(model).__name__ == "ERPose" and model.task == "pose"
    assert Recorder.calls == [(Path(name), "pose", False)]
    assert type(yolo(model=name)).__name__ == "ERPose"  # by keyword, as some callers do


@pytest.mark.parametrize("name", ["yolo11n-pose.yaml", "yolo26n-pose.yaml"])
def test_stock_yaml_is_not(yolo: type, name: str) -> None:
    assert type(yolo(name)) is yolo and not Recorder.calls


def test_checkpoint_and_export_with_our_head_are_handed_over(yolo: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "best.pt"
    yolo("yolo11n-pose.yaml").save(checkpoint)
    assert type(yolo(checkpoint)) is yolo
    monkeypatch.setattr(compat, "HEAD", "Pose")  # as if the stock head were ours
    model = yolo(checkpoint)
    assert type(model).__name__ == "ERPose" and model.task == "pose" and model.ckpt_path
    assert len(Recorder.calls) == 1

    export = tmp_path / "made_up_openvino_model"
    export.mkdir()
    (export / "metadata.yaml").write_text("head: Pose\ntask: pose\n")
    assert type(yolo(str(export), task="pose")).__name__ == "ERPose"
    (export / "metadata.yaml").write_text("head: Detect\ntask: detect\n")
    assert type(yolo(str(export), task="detect")) is yolo


def test_subclasses_keep_their_own_way(yolo: type) -> None:
    class Mine(yolo):  # type: ignore[misc, valid-type]
        pass

    with pytest.raises(FileNotFoundError):
        Mine("erpose-n.yaml")
    assert not Recorder.calls
    assert type(Mine("yolo11n-pose.yaml")) is Mine


def test_install_is_idempotent_and_can_be_undone(yolo: type) -> None:
    patched = yolo.__init__
    compat.install()
    assert yolo.__init__ is patched
    compat.uninstall()
    assert yolo.__init__ is patched.__wrapped__ and not hasattr(yolo.__init__, compat.MARK)
    compat.uninstall()
    assert yolo.__init__ is patched.__wrapped__


@pytest.mark.parametrize(
    "network", [None, "http://localhost/x", SimpleNamespace(), SimpleNamespace(model=[]), SimpleNamespace(model=3)]
)
def test_head_of_odd_networks_is_empty(network: object) -> None:
    assert compat.head_name(SimpleNamespace(model=network)) == ""


class Trusted:
    """Pickled by reference, so it must lie at the top of a module."""


class Untrusted:
    """Likewise."""


def test_registered_classes_pass_the_restricted_loader(tmp_path: Path) -> None:
    import torch
    from ultralytics.nn.tasks import torch_safe_load

    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        pytest.skip("ultralytics restricts loading from torch 2.6 on")

    torch.serialization.add_safe_globals([Trusted])
    for kind in (Trusted, Untrusted):
        torch.save({"model": kind()}, tmp_path / f"{kind.__name__}.pt")
    loaded, _ = torch_safe_load(str(tmp_path / "Trusted.pt"), safe_only=True)
    assert isinstance(loaded["model"], Trusted)
    with pytest.raises((TypeError, pickle.UnpicklingError)):
        torch_safe_load(str(tmp_path / "Untrusted.pt"), safe_only=True)
