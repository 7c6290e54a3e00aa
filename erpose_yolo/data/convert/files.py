"""A YOLO-pose data set on disk, as Ultralytics finds it: data YAML, splits, images and label files.

Read without Ultralytics (whose import takes seconds), except where a relative ``path:`` needs its datasets folder.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

T = TypeVar("T")

SPLITS = ("train", "val", "test", "minival")  # the keys that Ultralytics resolves

# ultralytics.data.utils.IMG_FORMATS; a test keeps the two equal
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dng .heic .heif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp".split()
)  # fmt: skip


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file, the line and the mend."""


class YamlError(DataError):
    """A data YAML that cannot be read.

    Args:
        file: the YAML.
        line: where, 0 if it is not known.
        what: what is wrong.
        mend: what to do.
    """

    def __init__(self, file: Path, line: int, what: str, mend: str) -> None:
        super().__init__(f"{file}:{line}: {what}. Mend: {mend}." if line else f"{file}: {what}. Mend: {mend}.")
        self.file, self.line, self.what, self.mend = file, line, what, mend


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
        """What a split names: folders, lists of pictures (.txt) or pictures, resolved as Ultralytics does."""
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


def pictures_of(entries: Iterable[Path]) -> list[Path]:
    """The pictures of a split, sorted.

    Args:
        entries: folders, text files that list pictures, or pictures.

    Raises:
        FileNotFoundError: an entry does not exist.
    """
    out: list[Path] = []
    for entry in entries:
        if entry.is_dir():
            for folder, folders, names in os.walk(entry, followlinks=True):
                folders.sort()
                out += [Path(folder, n) for n in names if _suffix(n) in IMAGE_SUFFIXES]
        elif entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES:
            out.append(entry)
        elif entry.is_file():
            for line in entry.read_text(encoding="utf-8-sig").splitlines():
                name = line.strip()
                if _suffix(name) in IMAGE_SUFFIXES:
                    out.append(entry.parent / name[2:] if name.startswith("./") else Path(name))
        else:
            raise FileNotFoundError(f"{entry} does not exist")
    return sorted(out)


def label_of(picture: Path) -> Path:
    """Label file of a picture: the last folder ``images`` of its path becomes ``labels``, the suffix ``.txt``."""
    head, mark, tail = str(picture).rpartition(f"{os.sep}images{os.sep}")
    stem = f"{head}{os.sep}labels{os.sep}{tail}" if mark else str(picture)
    return Path(stem.rsplit(".", 1)[0] + ".txt")


def picture_folder_of(labels: Path) -> Path:
    """Folder of the pictures of a label folder, the way back of :func:`label_of`."""
    head, mark, tail = f"{labels}{os.sep}".rpartition(f"{os.sep}labels{os.sep}")
    return Path(f"{head}{os.sep}images{os.sep}{tail}") if mark else labels


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def picture_size(file: Path, deep: bool = False) -> tuple[int, int]:
    """Width and height of a picture as it is shown (its EXIF orientation obeyed), from its header.

    Args:
        file: the picture.
        deep: decode all of it, by Pillow and by OpenCV, so that damage anywhere is found.

    Raises:
        OSError: it cannot be read; the message says why.
    """
    try:
        with file.open("rb") as handle:
            image = _open_picture(handle)
            width, height = image.size
            kind = image.format
            if str(kind).lower() not in _KINDS:
                raise OSError(f"it is a {kind}, which Ultralytics does not read whatever its suffix says")
            turned = kind in ("JPEG", "MPO") and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if deep:
                image.load()
            if kind in _ENDS:
                handle.seek(max(0, handle.seek(0, os.SEEK_END) - 1024))
                if _ENDS[kind] not in handle.read():  # some cameras append data of their own after the mark
                    raise OSError("the file is cut off, its end mark is missing")
        if deep and not _decodes(file):
            raise OSError(UNDECODED)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise OSError(str(error) or type(error).__name__) from None
    return (height, width) if turned else (width, height)


def _open_picture(handle: Any) -> Any:
    """PIL.Image.open as PIL has it: Ultralytics replaces that by one which runs pip for a picture it does not know."""
    from PIL import Image  # comes with ultralytics; OpenCV cannot read a header alone

    prefix = handle.read(16)
    if not prefix:
        raise OSError("the file is empty")
    for load in (Image.preinit, Image.init):  # the usual formats, then all
        load()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            if accept is not None and accept(prefix) is not True:
                continue
            handle.seek(0)
            try:
                return factory(handle, "")
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
                continue  # another format may begin alike
    raise OSError("not a picture of a format that Pillow can read here")


def _decodes(file: Path) -> bool:
    """Tell whether OpenCV, which training reads pictures with, makes pixels of a file; formats that it lacks pass."""
    import cv2

    suffix = _suffix(file.name)
    if suffix in {".avif", ".heic", ".heif"}:
        return True
    data = np.fromfile(file, np.uint8)
    try:
        # as training does: pages of a TIFF first, of which there are kinds that OpenCV reads in this way only
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1] if suffix in {".tif", ".tiff"} else ()
        return any(page.ndim == 3 for page in pages[:1]) or cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    except cv2.error:  # sizes that no picture has
        return False


UNDECODED = "its pixels cannot be decoded: it is damaged, or of a kind that OpenCV cannot read"
_KINDS = {suffix[1:] for suffix in IMAGE_SUFFIXES} | {"jpeg2000"}  # Pillow's names of the formats that Ultralytics takes
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


class Progress:
    """A progress bar on standard error, nothing where that is not a terminal.

    Ours, because importing that of Ultralytics takes seconds and 500 MB (it brings torch).

    Args:
        title: what is done.
        total: number of steps; 0 where unknown.
        unit: printed after the count.
        scale: steps per unit.
    """

    def __init__(self, title: str, total: float, unit: str = "", scale: float = 1) -> None:
        self.title, self.total, self.unit, self.scale = title, total, unit, scale
        self.done = 0.0
        self._start = time.monotonic()
        self._next = 0.0
        self._shown = sys.stderr.isatty()

    def add(self, steps: float = 1) -> None:
        """Count steps, and draw at most ten times a second."""
        self.done += steps
        if self._shown and time.monotonic() >= self._next:
            self._draw()

    def close(self) -> None:
        """Draw the last state and end the line."""
        if self._shown:
            self._draw()
            print(file=sys.stderr)
            self._shown = False

    def over(self, items: Sequence[T]) -> Iterator[T]:
        """Yield the items and count them."""
        try:
            for item in items:
                yield item
                self.add()
        finally:
            self.close()

    def _draw(self) -> None:
        now = time.monotonic()
        self._next = now + 0.1
        share = min(1.0, self.done / self.total) if self.total else 0.0
        bar = "━" * round(24 * share) + "─" * (24 - round(24 * share))
        count = f"{self.done / self.scale:.0f}/{self.total / self.scale:.0f}{self.unit}"
        print(f"\r{self.title} {bar} {share:4.0%} {count} {now - self._start:.0f}s ", end="", file=sys.stderr, flush=True)


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
