"""Makes the stock ``yolo`` command and ``ultralytics.YOLO`` know ER-Pose, at almost no cost to any other program.

``autoload.pth`` (``erpose_yolo_autoload.pth`` in site-packages) imports this package at every start of Python. All
that is done then is to put one finder on ``sys.meta_path``. When, and only when, the process itself imports the module
in which ``YOLO`` lives, that finder lets the import run as ever and then calls :func:`erpose_yolo.upstream.compat.install`.
Whatever goes wrong there becomes one line on stderr: stock models never depend on this package.

``ERPOSE_AUTOLOAD=0`` turns it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # type checkers know this name; importing typing would cost each Python start more than all this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TARGET = "ultralytics.models.yolo.model"  # defines YOLO; ultralytics imports it on first access to ultralytics.YOLO
SWITCH = "ERPOSE_AUTOLOAD"


class Hook:
    """A finder for :data:`TARGET` alone, that finds what the other finders find and steps in after its execution."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the true spec of :data:`TARGET`, its loader wrapped; None for every other module."""
        if fullname != TARGET:
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, Hook) else getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(spec.loader, self)
                return spec
        return None


class Loader:
    """Stands in for the loader of :data:`TARGET` until the module is executed, then leaves no trace of itself."""

    def __init__(self, real: Any, hook: Hook) -> None:
        """Wrap the loader ``real`` that another finder gave."""
        self._real, self._hook = real, hook

    def __getattr__(self, name: str) -> Any:
        """Pass on whatever else a loader offers: get_source, get_filename, get_resource_reader ..."""
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the real loader create the module."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with its own loader in place, then apply the patch.

        An error of the module itself passes through, and the hook stays for the next try to import it.
        """
        module.__loader__ = self._real  # before execution, as it would be without us; reload() takes it from here
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        remove(self._hook)
        apply()


def install() -> None:
    """Wait for ultralytics, or patch it at once if it is imported already. Idempotent; never raises.

    Does nothing when the environment says ``ERPOSE_AUTOLOAD=0``.
    """
    if os.environ.get(SWITCH) == "0":
        return
    if hasattr(sys.modules.get(TARGET), "YOLO"):
        apply()
    elif not any(isinstance(finder, Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, Hook())  # before the finder that would find it unpatched


def remove(hook: Hook) -> None:
    """Take a hook off ``sys.meta_path``, if it is there."""
    if hook in sys.meta_path:
        sys.meta_path.remove(hook)


def apply() -> None:
    """Apply the patch. Any failure becomes one line on stderr, and ultralytics goes on as if we were not installed."""
    try:
        from erpose_yolo.upstream import compat

        compat.install()
    except Exception as error:
        reason = " ".join(str(error).split())  # one line, whatever the message looks like
        print(
            f"WARNING erpose-yolo could not attach itself to ultralytics ({type(error).__name__}: {reason}). "
            f"Stock models work as ever, ER-Pose models do not. Turn this off: {SWITCH}=0. "
            "Fix it: pip install --force-reinstall --no-deps erpose-yolo",
            file=sys.stderr,
        )
