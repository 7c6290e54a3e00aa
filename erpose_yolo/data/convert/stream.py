"""Reads a JSON object whose arrays are too large for memory, one element at a time.

A sliding window of text goes over the file, and Python's own JSON scanner reads one value from it at a time; only the
outermost object and the arrays directly inside it are taken apart here. So memory is that of the largest element.

Not ijson (3.6.0, yajl2_c): in one pass over 78 MB it took 2.0 to 2.1 times as long and 1.9 times the memory, and its errors
name no byte of the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.eE\d]*")
_TAIL = 16  # characters: an error so near the window's end may be a literal or escape that goes on behind it
_BOM = codecs.BOM_UTF8


class JsonError(ValueError):
    """The file is not the JSON object that it should be; the message names the file and the byte."""


class JsonStream:
    """The members of the object in a JSON file, with arrays given element by element.

    Args:
        file: UTF-8 text, a byte order mark is passed over.
        window: bytes read at a time.
        largest: most characters of one value; beyond it the file is taken for damaged instead of eating all memory.
        on_read: told of the number of bytes after every read.

    Attributes:
        keys: names of the members met so far, in order, each with its number of elements (None: not an array).
        offset: byte at which the value given last begins.
    """

    def __init__(
        self,
        file: Path,
        window: int = 1 << 20,
        largest: int = 1 << 28,
        on_read: Callable[[int], object] | None = None,
    ) -> None:
        self.file = Path(file)
        self.keys: dict[str, int | None] = {}
        self.offset = 0
        self._window, self._largest, self._on_read = window, largest, on_read
        self._text, self._at = "", 0  # the window, and how far it has been read
        self._base = 0  # bytes of the file before the window
        self._read = 0  # bytes taken from the file
        self._ended = False
        self._where = "at the start"
        self._scan = json.JSONDecoder().raw_decode
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def __iter__(self) -> Iterator[tuple[str, int | None, Any]]:
        """Yield (key, index, value): each element of an array with its index, any other value with index None.

        Empty arrays yield nothing; :attr:`keys` has them.

        Raises:
            JsonError: the file is cut off, not JSON, not UTF-8, not an object, or has a key twice.
        """
        with self.file.open("rb") as self._handle:
            yield from self._members()

    def _members(self) -> Iterator[tuple[str, int | None, Any]]:
        first = self._peek()
        if first != "{":
            if not first:
                raise JsonError(f"{self.file}: the file is empty. Fix: fetch or make it again.")
            self._fail(f"must begin with {{, an object with named members, but begins with {first!r}")
        self._at += 1
        self._where = "in the outermost object"
        if self._peek() == "}":
            self._at += 1
        else:
            while True:
                self._expect('"', "a key in double quotes")
                key = self._value()
                if key in self.keys:
                    self._fail(f"the key {key!r} is there twice")
                self._expect(":", "':' after a key")
                self._at += 1
                self.keys[key] = None
                if self._peek() == "[":
                    yield from self._elements(key)
                else:
                    self._where = f"in {key!r}"
                    yield key, None, self._value()
                self._where = f"after {key!r}"
                if self._expect(",}", "',' or '}'") == "}":
                    self._at += 1
                    break
                self._at += 1
        self._where = "after the object"
        if self._peek():
            self._fail("there is more text after the end of the object")

    def _elements(self, key: str) -> Iterator[tuple[str, int, Any]]:
        self._at += 1
        self.keys[key] = count = 0
        self._where = f"in {key!r}"
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            self._where = f"in {key!r}, element {count}"
            yield key, count, self._value()
            count += 1
            self.keys[key] = count
            mark = self._expect(",]", f"',' or ']' after element {count - 1}")
            self._at += 1
            if mark == "]":
                return

    def _more(self) -> None:
        """Move the window on: drop what has been read, take up more."""
        if len(self._text) - self._at > self._largest:
            self._fail(f"one value is longer than {self._largest} characters; the file looks damaged")
        self._base += _bytes(self._text[: self._at])
        rest = self._text[self._at :]
        # doubling: a long value is not scanned too often
        data = self._handle.read(max(self._window, len(rest), len(_BOM)))
        self._ended = not data
        if not self._read and data.startswith(_BOM):
            data = data[len(_BOM) :]
            self._base = self._read = len(_BOM)
        pending = len(self._decoder.getstate()[0])
        try:
            new = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._read - pending + error.start
            raise JsonError(
                f"{self.file}: byte {at}: not UTF-8 text ({error.reason}). Fix: save the file as UTF-8, or fetch it again."
            ) from None
        self._read += len(data)
        self._text, self._at = rest + new, 0
        if self._on_read is not None:
            self._on_read(len(data))

    def _peek(self) -> str:
        """The next character that is not white space, without taking it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _expect(self, any_of: str, what: str) -> str:
        mark = self._peek()
        if not mark:
            self._cut(self._at)
        if mark not in any_of:
            self._fail(f"expected {what}, found {mark!r}")
        return mark

    def _value(self) -> Any:
        if not self._peek():
            self._cut(self._at)
        self.offset = self._base + _bytes(self._text[: self._at])
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL
                if unfinished and not self._ended:
                    self._more()
                    continue
                if unfinished and not _closed(self._text, error):
                    self._cut(len(self._text))
                self._fail(error.msg, error.pos)
            except RecursionError:
                self._fail("values are nested too deeply")
            except ValueError as error:  # an integer of thousands of digits
                self._fail(str(error))
            else:
                rest = _NUMBER.match(self._text, end)  # a number may go on behind the window: 1 | .5
                if rest is None or rest.end() < len(self._text):
                    self._at = end
                    return value
                if self._ended:  # the outermost object is never closed by a value
                    self._cut(len(self._text))
                self._more()

    def _byte(self, at: int) -> int:
        return self._base + _bytes(self._text[:at])

    def _cut(self, at: int) -> NoReturn:
        raise JsonError(f"{self.file}: byte {self._byte(at)}: the file is cut off {self._where}. Fix: fetch or copy it again.")

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        byte = self._byte(self._at if at is None else at)
        raise JsonError(f"{self.file}: byte {byte}: not valid here ({self._where}): {what}. Fix: fetch or make it again.")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _closed(text: str, error: json.JSONDecodeError) -> bool:
    """Whether an error near the end of the file is not for want of text: something wrong stands there."""
    if error.msg.startswith("Unterminated string"):
        return False
    rest = text[error.pos :].strip()
    if not rest or error.msg.startswith("Invalid \\"):
        return False
    # The start of a literal or number is a cut; anything else is a mistake.
    return not any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity")) and (
        _NUMBER.fullmatch(rest) is None
    )
