"""Images of a data set: which files they are, where their labels lie, their size, and whether they can be decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

# ultralytics.data.utils.IMG_FORMATS; a test keeps the two equal
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dng .heic .heif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp".split()
)  # fmt: skip


def images_of(entries: Iterable[Path]) -> list[Path]:
    """The images of a split, sorted.

    Args:
        entries: folders, text files that list images, or images.

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


def label_of(image: Path) -> Path:
    """Label file of an image: the last folder ``images`` of its path becomes ``labels``, the suffix ``.txt``."""
    head, mark, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    stem = f"{head}{os.sep}labels{os.sep}{tail}" if mark else str(image)
    return Path(stem.rsplit(".", 1)[0] + ".txt")


def image_folder_of(labels: Path) -> Path:
    """Folder of the images of a label folder, the way back of :func:`label_of`."""
    head, mark, tail = f"{labels}{os.sep}".rpartition(f"{os.sep}labels{os.sep}")
    return Path(f"{head}{os.sep}images{os.sep}{tail}") if mark else labels


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def image_size(file: Path, deep: bool = False) -> tuple[int, int]:
    """Width and height of an image as it is shown (its EXIF orientation obeyed), from its header.

    Args:
        file: the image.
        deep: decode all of it, by Pillow and by OpenCV, so that damage anywhere is found.

    Raises:
        OSError: it cannot be read; the message says why.
    """
    try:
        with file.open("rb") as handle:
            image = _open_image(handle)
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


def _open_image(handle: Any) -> Any:
    """PIL.Image.open as PIL has it: Ultralytics replaces that by one which runs pip for an image it does not know."""
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
    raise OSError("not an image of a format that Pillow can read here")


def _decodes(file: Path) -> bool:
    """Tell whether OpenCV, which training reads images with, makes pixels of a file; formats that it lacks pass."""
    import cv2

    suffix = _suffix(file.name)
    if suffix in {".avif", ".heic", ".heif"}:
        return True
    data = np.fromfile(file, np.uint8)
    try:
        # as training does: pages of a TIFF first, of which there are kinds that OpenCV reads in this way only
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1] if suffix in {".tif", ".tiff"} else ()
        return any(page.ndim == 3 for page in pages[:1]) or cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    except cv2.error:  # sizes that no image has
        return False


UNDECODED = "its pixels cannot be decoded: it is damaged, or of a kind that OpenCV cannot read"

_KINDS = {suffix[1:] for suffix in IMAGE_SUFFIXES} | {"jpeg2000"}  # Pillow's names of the formats that Ultralytics takes

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
