"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_replace(part: Path, file: Path) -> None:
    """Give a complete file its final name: after a power cut there is the old file or the new one, whole.

    Args:
        part: what was written, on the same disk as ``file``.
        file: its name from now on; what had it is replaced.
    """
    with open(part, "rb+") as handle:
        os.fsync(handle.fileno())  # else the name may reach the disk before the content
    os.replace(part, file)
    if os.name == "posix":  # the rename itself; elsewhere a folder cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Yield the name of a hidden file beside ``file`` to write to; it takes the name of ``file`` when the block ends well."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        atomic_replace(part, file)
    finally:
        part.unlink(missing_ok=True)
