"""Checks of YOLO-pose label files before Ultralytics reads them.

Ultralytics drops a picture whose labels it cannot parse and goes on with a warning that names no line. A wrong number of
columns is a mistake of the whole data set, so it stops the run instead, before anything is trained on what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_REPORTED = 5


def label_columns(kpt_shape: Iterable[int]) -> int:
    """Columns of a row: class, box (4), and K joints of D values."""
    k, d = kpt_shape
    return 5 + k * d


def label_folders(split: str | list[str] | None) -> list[Path]:
    """Label folders of a split, the way Ultralytics finds them: the last ``images`` in the path becomes ``labels``."""
    folders = []
    for entry in [split] if isinstance(split, str) else split or []:
        path = Path(entry)
        if not path.is_dir():
            continue  # a list of files; Ultralytics reports a path that does not exist
        parts = list(path.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        folders.append(Path(*parts))
    return folders


def check_labels(data: dict[str, Any]) -> None:
    """Check the number of columns of every label row of the train and val splits.

    Args:
        data: Ultralytics data dictionary with resolved ``train``, ``val`` and ``kpt_shape``.

    Raises:
        ValueError: rows with a wrong number of columns; file, line, both numbers and the mend are named.
    """
    wanted = label_columns(data["kpt_shape"])
    bad: list[str] = []
    for folder in label_folders(data.get("train")) + label_folders(data.get("val")):
        for file in sorted(folder.rglob("*.txt")):
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                columns = len(line.split())
                if columns and columns != wanted:
                    bad.append(f"{file}:{number}: {columns} columns")
                    break
            if len(bad) == MAX_REPORTED:
                break
    if bad:
        k, d = data["kpt_shape"]
        raise ValueError(
            f"Label rows must have {wanted} columns (class, box x y w h, then {k} joints of {d} values, as kpt_shape "
            f"[{k}, {d}] says):\n  " + "\n  ".join(bad) + "\nMend these files, or kpt_shape in the data YAML."
        )
