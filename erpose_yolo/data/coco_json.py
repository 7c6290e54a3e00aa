"""COCO-format JSON, read without polygons and written with an entry a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from erpose_yolo.data.data_yaml import DataError


def read_json(file: str | Path) -> Any:
    """Read a JSON file of annotations or results.

    Segments are dropped and keypoints become arrays while the file is being parsed: the 262,000 annotations of COCO's
    training set would fill several GiB otherwise.

    Raises:
        FileNotFoundError: no such file.
        DataError: truncated or no JSON; the file and the position are named.
    """

    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        points = entry.get("keypoints")
        if isinstance(points, list) and not (points and isinstance(points[0], str)):  # categories list keypoint names
            try:
                entry["keypoints"] = np.asarray(points, np.float64)
            except (TypeError, ValueError, OverflowError):
                pass  # reported with the annotation's id by who reads it
        return entry

    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=slim)
    except (ValueError, RecursionError) as error:  # not UTF-8, and integers of thousands of digits, are ValueErrors, too
        raise DataError(f"{path} is truncated or not JSON: {error}. Fix: fetch or make it again.") from error


def write_annotations(file: Path, head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write a COCO-format document.

    Args:
        file: JSON to write.
        head: short members, which come first.
        lists: long ones; entries may hold arrays.
    """
    encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode
    with file.open("w", encoding="ascii") as handle:
        mark = "{"
        for key, value in head.items():
            handle.write(f"{mark}{encode(key)}:{encode(value)}")
            mark = ",\n"
        for key, entries in lists.items():
            handle.write(f"{mark}{encode(key)}:[")
            comma = "\n"
            for entry in entries:
                handle.write(comma + encode(entry))
                comma = ",\n"
            handle.write("\n]")
        handle.write("}\n")


def _plain(values: np.ndarray) -> list[float]:
    """Numbers of an array, whole ones as integers."""
    return [int(v) if v.is_integer() else v for v in values.tolist()]
