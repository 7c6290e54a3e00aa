"""Names of files that others have chosen, and several files put in place as one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path


def install(staged: Sequence[tuple[Path, Path]], trash: Path) -> None:
    """Rename finished files and folders to their final names; all of them or none.

    Args:
        staged: pairs of the finished thing and its final name, on one file system.
        trash: existing folder there that what is replaced moves to; the caller removes it.
    """
    undo: list[Callable[[], None]] = []
    try:
        for number, (new, final) in enumerate(staged):
            final.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(final):
                old = trash / f"old-{number}"
                os.rename(final, old)
                undo.append(lambda old=old, final=final: os.rename(old, final))  # type: ignore[misc]
            os.rename(new, final)
            undo.append(lambda new=new, final=final: os.rename(final, new))  # type: ignore[misc]
    except BaseException:
        for step in reversed(undo):
            step()
        raise


SAFE_NAME = re.compile(r"[^\x00-\x1f\x7f]+")


def safe_relative(name: object) -> str | None:
    """A file name from a foreign file as a path, parted by '/', that stays inside its folder; None if it would not.

    Folders named ``images`` are left out: Ultralytics would look for the label in a folder ``labels`` in their place.
    """
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        return None
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or re.match("[A-Za-z]:", parts[0]) or ".." in parts:
        return None
    kept = [part for part in parts if part not in ("", ".", "images")]
    return "/".join(kept) if kept and kept[-1].rfind(".") > 0 else None
