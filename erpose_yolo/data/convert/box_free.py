"""Labels without boxes: rows of class and keypoints alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from erpose_yolo.data.data_yaml import DataError
from erpose_yolo.files import written_whole


def strip_boxes(labels: Path, keypoints: int) -> int:
    """Remove the box columns of every label file below a folder, in place; rows without a box stay.

    Args:
        labels: folder of label files.
        keypoints: K.

    Returns:
        Number of rows changed.

    Raises:
        DataError: a row has another number of columns; that file and those after it are unchanged.
    """
    changed = 0
    for file in sorted(labels.rglob("*.txt")):
        out = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            words = line.split()
            if len(words) == 5 + keypoints * 3:
                words[1:5] = []
                changed += 1
            elif words and len(words) != 1 + keypoints * 3:
                raise DataError(
                    f"{file}:{number}: {len(words)} columns, {5 + keypoints * 3} are needed for {keypoints} keypoints of three "
                    "values. Fix the row."
                )
            out.append(" ".join(words))
        with written_whole(file) as part:
            part.write_text("".join(f"{line}\n" for line in out), encoding="utf-8")
    return changed


def generate_box_free(root: Path, synth: dict[str, Any]) -> Path:
    """Make a set of synthetic people whose label rows have no boxes, unless it is there.

    Args:
        root: folder of the set.
        synth: fields of :class:`erpose_yolo.data.synth.SynthConfig`.

    Returns:
        ``root``.
    """
    from erpose_yolo.data.synth import SynthConfig, generate

    root = Path(root)
    if root.exists():
        if any(root.iterdir()):
            raise FileExistsError(f"{root} exists, but its images are not complete. Fix: remove that folder.")
        root.rmdir()
    root.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        made = generate(stage / "set", SynthConfig(**synth))
        strip_boxes(made / "labels", keypoints=17)
        os.rename(made, root)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return root
