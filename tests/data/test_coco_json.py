"""COCO-format JSON: damaged files are named, polygons are dropped, what is written is read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erpose_yolo.data.coco_json import read_json, write_annotations
from erpose_yolo.data.data_yaml import DataError


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "char 0"),
        (b'{"a": [1 2]}', "char 9"),
        (b'{"a": ["\t"]}', "Invalid control character"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": "\xff"}', "can't decode byte 0xff in position 7"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 6000 + b"}", "Exceeds the limit"),
    ],
    ids=str,
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="bad.json is truncated or not JSON") as caught:
        read_json(file)
    assert what in str(caught.value) and "Fix: " in str(caught.value)


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    data, file = '{"a": [1.5, "é\\u0041", {"b": null}], "c": -12, "d": true}'.encode(), tmp_path / "cut.json"
    for end in range(len(data)):
        file.write_bytes(data[:end])
        with pytest.raises(DataError, match="cut.json is truncated"):
            read_json(file)


def test_what_is_written_is_read_without_polygons(tmp_path: Path) -> None:
    points = np.array([1.0, 2.5, 2, np.nan, np.inf, 0])
    entries = [
        {"id": 1, "keypoints": points, "segmentation": [[1, 2]]},
        {"id": 2, "keypoints": ["nose", "é"]},
        {"keypoints": [[10**400]]},
    ]
    file = tmp_path / "a.json"
    write_annotations(file, {"info": {"ü": 1}}, {"annotations": entries, "images": []})
    assert file.read_text(encoding="ascii").startswith(
        '{"info":{"\\u00fc":1},\n"annotations":[\n{"id":1,"keypoints":[1,2.5,2,NaN,Infinity,0]'
    )
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # a byte order mark
    found = read_json(file)
    assert found["info"] == {"ü": 1} and found["images"] == []
    first, names, odd = found["annotations"]
    assert first.keys() == {"id", "keypoints"} and np.array_equal(first["keypoints"], points, equal_nan=True)
    assert names["keypoints"] == ["nose", "é"] and odd["keypoints"] == [[10**400]]  # left to who reads them
