"""The data YAML of a YOLO-pose data set, read as Ultralytics does but without importing it, with the line of each key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SPLITS = ("train", "val", "test", "minival")  # the keys that Ultralytics resolves


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file, the line and the fix."""


class YamlError(DataError):
    """A data YAML that cannot be read.

    Args:
        file: the YAML.
        line: where, 0 if it is not known.
        what: what is wrong.
        fix: what to do.
    """

    def __init__(self, file: Path, line: int, what: str, fix: str) -> None:
        super().__init__(f"{file}:{line}: {what}. Fix: {fix}." if line else f"{file}: {what}. Fix: {fix}.")
        self.file, self.line, self.what, self.fix = file, line, what, fix


@dataclass(frozen=True)
class DataYaml:
    """A data YAML.

    Args:
        file: the YAML.
        data: its content.
        lines: line of every top-level key, from 1.
        root: folder that splits and annotations are relative to.
    """

    file: Path
    data: dict[str, Any]
    lines: dict[str, int]
    root: Path

    def entries(self, split: str) -> list[Path]:
        """What a split names: folders, lists of images (.txt) or images, resolved as Ultralytics does."""
        value = self.data.get(split)
        out = []
        for entry in [value] if isinstance(value, str) else value or []:
            path = (self.root / str(entry)).resolve()
            if not path.exists() and str(entry).startswith("../"):
                path = (self.root / str(entry)[3:]).resolve()
            out.append(path)
        return out

    def annotations(self, split: str) -> Path | None:
        """The sidecar JSON of a split, None where the data YAML names none."""
        value = self.data.get("annotations")
        return self.root / str(value[split]) if isinstance(value, dict) and value.get(split) else None


def load_data_yaml(file: str | Path) -> DataYaml:
    """Read a data YAML, by path or by the bare name of one that ships with the package.

    Raises:
        FileNotFoundError: there is no such file.
        YamlError: it is not YAML, or not a mapping.
    """
    from erpose_yolo.catalog import find_dataset, list_datasets

    path = Path(file)
    if not path.is_file():
        found = find_dataset(file)
        if found is None:
            raise FileNotFoundError(
                f"{path} is no file. Give a data YAML, or a set that ships with erpose-yolo: {', '.join(list_datasets())}"
            )
        path = found
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = yaml.safe_load(text)
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise YamlError(path, 0, f"not UTF-8 text at byte {error.start}", "save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        raise YamlError(path, line, f"not YAML: {getattr(error, 'problem', error)}", "correct that line") from None
    if not isinstance(data, dict):
        raise YamlError(path, 1, "not a data YAML, it holds no keys", "give it train, val, kpt_shape and names")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return DataYaml(path, data, lines, _root_of(path, data))


def _root_of(file: Path, data: dict[str, Any]) -> Path:
    """``path:`` as it is, else in Ultralytics' datasets folder; the folder of the YAML where it is not given."""
    value = data.get("path")
    if not value:
        return file.resolve().parent
    root = Path(str(value))
    if root.exists() or root.is_absolute():
        return root.resolve()
    from ultralytics.utils import SETTINGS

    return (Path(SETTINGS["datasets_dir"]) / root).resolve()
