"""Imports point one way, the method's modules know nothing of ultralytics, and private names stay in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "erpose_yolo"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

# A room may import rooms of earlier rows only, and none of its own row. Inside a room anything but a circle goes.
ORDER = (
    ("catalog", "errors", "files", "method"),
    ("arguments",),
    ("data",),
    ("nn",),
    ("metrics",),
    ("export",),
    ("engine",),
    ("model",),
    ("cli",),
)
LEVEL = {name: level for level, row in enumerate(ORDER) for name in row}
# These tie the package to Python and to ultralytics. Everyone may import them; what they import of later rooms, they import
# inside functions, after the fact.
TIES = {"__init__", "upstream"}

# The method itself: plain torch on tensors.
TORCH_ONLY = {"method"}
STDLIB_ONLY = {"catalog", "errors", "files"}
PRIVATE_ALLOWED = {"upstream"}


def room_of(path: Path) -> str:
    """Name of a module, or of the folder that it lies in."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for every import at any depth, relative ones resolved against ``package``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for every private name taken from ultralytics, by import or as an attribute of an import."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ultralytics":
                    bound.add(alias.asname or "ultralytics")
                    yield from ((node.lineno, alias.name) for part in alias.name.split(".") if is_private(part))
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "ultralytics":
            bound.update(alias.asname or alias.name for alias in node.names)
            for alias in node.names:
                if any(is_private(part) for part in (*(node.module or "").split("."), alias.name)):
                    yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root: ast.expr = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in bound:
                yield node.lineno, f"{root.id}. ... .{node.attr}"


def complaints(source: str, room: str, package: str = PACKAGE) -> list[str]:
    """Return what is wrong with the imports of one module that lies in ``room``."""
    tree = ast.parse(source)
    found = []
    if room not in LEVEL and room not in TIES:
        found.append(f"{room} has no place in ORDER of tests/test_imports.py: give it one")
    for line, name in imports_of(tree, package):
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            other = rest.partition(".")[0]
            if room in TIES or other in ("", room) or other not in LEVEL:
                continue  # other: a name of __init__, a tie, or this very module or folder
            if LEVEL[other] >= LEVEL.get(room, 99):
                found.append(f"line {line}: {room} imports {other}, which comes after it or stands beside it")
        elif top in sys.stdlib_module_names:
            continue
        elif room in STDLIB_ONLY:
            found.append(f"line {line}: {room} imports {top}; it may import the standard library only")
        elif room in TORCH_ONLY and top not in {"torch", "numpy"}:
            found.append(f"line {line}: {room} imports {top}; it may import torch and numpy only")
    if room not in PRIVATE_ALLOWED:
        for line, name in private_names(tree):
            found.append(f"line {line}: private name {name} of ultralytics outside upstream/")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    return ".".join((PACKAGE, *path.relative_to(ROOT).parent.parts))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    assert not complaints(path.read_text(encoding="utf-8"), room_of(path), package_of(path))


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of a circle of imports; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def import_graph() -> dict[str, set[str]]:
    """Which module imports which when it is imported itself; imports inside functions are left out."""
    names = {".".join((package_of(p), p.stem)).removesuffix(".__init__"): p for p in MODULES}
    graph = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                node.body = []
        found = {dotted for _, dotted in imports_of(tree, package_of(path))}
        found |= {dotted.rpartition(".")[0] for dotted in found}
        graph[name] = {dotted for dotted in found if dotted in names and not f"{name}.".startswith(f"{dotted}.")}
    return graph


def test_no_circle_of_imports() -> None:
    graph = import_graph()
    assert circle(graph) == [] and f"{PACKAGE}.method.oks" in graph[f"{PACKAGE}.method.losses"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_every_rule_has_modules_to_apply_to() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert TORCH_ONLY | STDLIB_ONLY | TIES <= rooms


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("method", "from ultralytics.utils import ops"),
        ("method", "def f():\n    import cv2"),
        ("catalog", "import torch"),
        ("method", "from erpose_yolo.nn.head import ERPoseHead"),
        ("nn", "from ..engine import trainer"),
        ("nn", "from erpose_yolo import cli"),
        ("catalog", "from erpose_yolo import method"),
        ("metrics", "from erpose_yolo.model import ERPose"),
        ("data", "def f():\n    from ..nn.head import ERPoseHead"),
        ("engine", "from ultralytics.cfg import _handle_deprecation"),
        ("engine", "import ultralytics.nn.tasks as t\nt._SafeLoad.loading('x')"),
        ("model", "from ultralytics.nn import tasks\ntasks._SafeLoad"),
        ("leftover", ""),
    ],
)
def test_the_check_can_fail(room: str, source: str) -> None:
    assert len(complaints(source, room, f"{PACKAGE}.{room}")) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("method", "import math\nimport torch.nn.functional as F\nfrom erpose_yolo.method import oks\nfrom .oks import a"),
        ("data", "import cv2\nfrom .synth import scene\nfrom erpose_yolo.data.synth import body"),
        ("nn", "from ultralytics.nn.tasks import PoseModel\nfrom erpose_yolo import __version__\nfrom . import head"),
        ("engine", "class A:\n    def f(self):\n        return self._x"),
        ("upstream", "from ultralytics.nn.tasks import _SafeLoad\ndef f():\n    from erpose_yolo.model import ERPose"),
    ],
)
def test_the_check_can_pass(room: str, source: str) -> None:
    assert not complaints(source, room, f"{PACKAGE}.{room}")


def test_importing_the_package_imports_nothing_heavy(repo: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(repo)!r}); import erpose_yolo; dir(erpose_yolo)\n"
        "print(sorted({'torch', 'ultralytics', 'numpy', 'yaml', 'typing'} & set(sys.modules)))\n"
        "from erpose_yolo import Settings\n"
        "print(Settings.__module__, 'torch' in sys.modules)"
    )
    # -S: without site-packages, whose own .pth files may import anything
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "erpose_yolo.method.settings False"]
