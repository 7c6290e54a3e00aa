"""What users install: wheel, sdist and editable install, each tried from a folder that is not the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from test_typed import READ, do, furnish, reader

pytestmark = pytest.mark.slow

PTH = "erpose_yolo_autoload.pth"
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "site", "runs", "yolo*.pt", "last.pt", "best.pt", "build", "dist", "node_modules"
)
USE = """
from ultralytics import YOLO
model = YOLO('erpose-n.yaml')
print('>', type(model).__name__, model.task)
import erpose_yolo
print('>', erpose_yolo.__file__)
print('>', erpose_yolo.catalog.cfg_root())
print('>', len(erpose_yolo.catalog.list_models()), erpose_yolo.catalog.find_dataset('synth-people').name)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command and return its stdout; its stderr is in the failure."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that no build leaves anything in the real one."""
    root = Path(__file__).resolve().parents[1]
    copy = tmp_path_factory.mktemp("checkout") / "erpose-yolo"
    shutil.copytree(root, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was built from it and not from the checkout."""
    pytest.importorskip("hatchling", reason="builds without isolation: pip install -e '.[test]'")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=checkout)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(out)
    source = next(path for path in out.iterdir() if path.is_dir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return out


def test_wheel_holds_what_it_should_and_no_more(built: Path, repo: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        assert archive.read(PTH).decode() == (repo / "erpose_yolo" / "upstream" / "autoload.pth").read_text()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"erpose_yolo", PTH}
    modules = {path.relative_to(repo).as_posix() for path in (repo / "erpose_yolo").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    shipped = {f"erpose_yolo/{path.relative_to(repo).as_posix()}" for path in (repo / "cfg").rglob("*.yaml")}
    shipped |= {f"erpose_yolo/cfg/weights/erpose-n.{kind}" for kind in ("pt", "md")}
    assert len(shipped) > 2 and shipped == {name for name in names if name.startswith("erpose_yolo/cfg/")}
    assert not [name for name in names if "test" in name or name.endswith((".pyc", "/autoload.pth"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "erpose = erpose_yolo.cli:main" in entry_points
    assert "License-Expression: AGPL-3.0-only" in metadata and "Project-URL: Documentation, https://" in metadata
    assert "erpose_yolo/py.typed" in names


def test_the_first_page_leads_somewhere_on_pypi(built: Path, repo: Path) -> None:
    """PyPI knows no files of the repository: each link of the README has become an address, and nothing else has changed."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    page = metadata.partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links and not [link for link in links if not link.startswith(("https://", "#"))]
    first_page = (repo / "README.md").read_text(encoding="utf-8")
    ours = [link for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", first_page) if not link.startswith("https://")]  # no badges
    assert ours and all(f"](https://raw.githubusercontent.com/erpose-yolo/erpose-yolo/main/{link})" in page for link in ours)
    here, there = (
        re.sub(r"https://(raw\.githubusercontent|github)\.com/erpose-yolo/erpose-yolo/(main|blob/main)/", "", text).strip()
        for text in (page, first_page)
    )
    assert here == there


def test_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "erpose_yolo/upstream/autoload.pth"} <= names
    assert {"examples/quickstart.ipynb", "docs/index.md", "mkdocs.yml", "benchmarks/results/size.json", "tests/run"} <= names
    assert {"erpose_yolo/upstream/compat.py", "cfg/models/erpose.yaml", "cfg/datasets/synth-people.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert [name for name in names if name.endswith(".pt")] == ["cfg/weights/erpose-n.pt"]


def test_sdist_passes_its_own_tests(built: Path) -> None:
    """All are collected there, and those that read the whole tree pass; the rest reads what the checkout has, too."""
    source = next(path for path in built.iterdir() if path.is_dir())
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    collected = run(*pytest_, "--collect-only", "tests", cwd=source, ERPOSE_AUTOLOAD="0")
    assert not re.search(r"skipped|error", collected.splitlines()[-1])
    files = ("test_docs.py", "test_language.py", "test_imports.py", "test_catalog.py", "benchmarks/test_report.py")
    run(*pytest_, "-m", "not slow", *(f"tests/{file}" for file in files), cwd=source, ERPOSE_AUTOLOAD="0")


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Python of a new virtual environment with pip that sees the dependencies installed here, but not this package."""
    try:
        venv.create(tmp_path / "venv", with_pip=True, symlinks=os.name != "nt")
    except (subprocess.CalledProcessError, ImportError) as error:
        pytest.skip(f"this Python cannot make virtual environments with pip: {error}")
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=tmp_path).strip())
    # A plain path line: .pth files inside that folder are not read, so our own hook installed there does not act.
    (site / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def first_command_of_the_readme(python: Path, scratch: Path) -> None:
    """Run the first line that the README has for ``yolo`` or ``erpose``, with the scripts of a fresh environment."""
    script = python.parent / "yolo"  # its package is one of those that are borrowed
    script.write_text(f"#!{python}\nfrom ultralytics.cfg import entrypoint\nentrypoint()\n")
    script.chmod(0o755)
    folder = scratch / "reader"
    furnish(folder)
    environment = reader(scratch / "config", folder)
    environment["PATH"] = os.pathsep.join((str(python.parent), os.environ["PATH"]))
    do(next(step for step in READ["README.md"][0] if step.typed.startswith(("yolo", "erpose"))), folder, environment)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_works_from_an_empty_folder_and_goes_without_a_trace(
    kind: str, fresh: Path, built: Path, checkout: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--force-reinstall")
    what = (next(built.glob("*.whl")),) if kind == "wheel" else ("--editable", checkout)
    run(fresh, "-m", "pip", "install", *flags, *what, cwd=empty)

    found = [line[2:] for line in run(fresh, "-c", USE, cwd=empty).splitlines() if line.startswith("> ")]
    package, cfg = Path(found[1]).parent, Path(found[2])
    assert found[0] == "ERPose pose"
    assert found[3] == "25 synth-people.yaml"
    if kind == "wheel":
        assert package.is_relative_to(tmp_path / "venv") and cfg == package / "cfg"
    else:
        assert package == checkout / "erpose_yolo" and cfg == checkout / "cfg"
        assert not list(fresh.parents[1].rglob("erpose.yaml"))  # no copy that could go stale
    assert not list(empty.iterdir())
    if kind == "wheel":
        first_command_of_the_readme(fresh, tmp_path)

    run(fresh, "-m", "pip", "uninstall", "--yes", "erpose-yolo", cwd=empty)
    left = [path.name for path in fresh.parents[1].rglob("*erpose*")]
    assert not left
    done = run(fresh, "-c", "from ultralytics import YOLO; print('>', hasattr(YOLO.__init__, '__erpose__'))", cwd=empty)
    assert "> False" in done
