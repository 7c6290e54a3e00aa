"""Errors of the input and errors of the code: the commands say the first in one sentence and leave the second as they are."""

from __future__ import annotations

import difflib
import dis
from collections.abc import Iterable

SPEAKING = ("erpose_yolo", "ultralytics")  # packages whose own `raise` states what is wrong with the input


def is_input_error(error: BaseException) -> bool:
    """Tell an error that the input caused, and whose message says so, from a bug.

    An input error is a file that cannot be opened, or a SyntaxError, ValueError, TypeError, KeyError, ModuleNotFoundError or
    NotImplementedError from a ``raise`` statement of this package or of Ultralytics. The same classes raised by the interpreter
    or by another library (``None + 1``, shapes that do not fit) are bugs, and so is an ``assert`` of this package;
    Ultralytics checks input with ``assert``.
    """
    if isinstance(error, OSError):
        return error.filename is not None or _raised_in(error) in SPEAKING
    if isinstance(error, AssertionError):
        return _raised_in(error) == "ultralytics" and bool(error.args)
    known = (SyntaxError, ValueError, TypeError, KeyError, ModuleNotFoundError, NotImplementedError)
    return isinstance(error, known) and _raised_in(error) in SPEAKING


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks; a KeyError's without the quotes that ``str`` adds."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word that is nearest to ``word``; empty where none is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _raised_in(error: BaseException) -> str:
    """Top-level package whose ``raise`` or ``assert`` statement made an error; empty where no statement did."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code.co_code
    if dis.opname[code[trace.tb_lasti]] != "RAISE_VARARGS":
        return ""
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
