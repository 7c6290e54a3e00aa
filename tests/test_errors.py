"""Which errors the commands say in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from erpose_yolo.errors import is_input_error, one_line, suggestion


def caught(run: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as info:
        run()
    return info.value


def made(source: str, module: str) -> Callable[[], Any]:
    """A function of a made-up module."""
    space: dict[str, Any] = {"__name__": module}
    exec(f"def run():\n    {source}", space)
    return space["run"]


@pytest.mark.parametrize(
    "error", ["SyntaxError", "ValueError", "TypeError", "KeyError", "ModuleNotFoundError", "FileNotFoundError"]
)
@pytest.mark.parametrize("module", ["erpose_yolo.method.settings", "ultralytics.cfg"])
def test_what_the_packages_raise_is_of_the_input(error: str, module: str) -> None:
    assert is_input_error(caught(made(f"raise {error}(\n        'conf must be\\n a number'\n    )", module)))


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("None + 1", "erpose_yolo.method.decode"),  # the interpreter's TypeError
        ("int('x')", "erpose_yolo.method.decode"),  # a ValueError of C code
        ("{}['x']", "erpose_yolo.method.decode"),
        ("assert False, 'a sentence'", "erpose_yolo.method.decode"),
        ("assert False", "ultralytics.engine"),
        ("raise ValueError('shapes')", "numpy.linalg"),
        ("raise RuntimeError('disk full')", "erpose_yolo.export.exporter"),
        ("import no_such_module_at_all", "erpose_yolo.export.exporter"),
    ],
)
def test_bugs_are_not(source: str, module: str) -> None:
    assert not is_input_error(caught(made(source, module)))


def test_files_and_asserts_of_ultralytics() -> None:
    assert is_input_error(caught(lambda: open("/no/such/file")))
    assert is_input_error(caught(made("assert False, 'export of half needs a GPU'", "ultralytics.engine.exporter")))
    assert not is_input_error(ValueError("never raised"))


def test_sentences() -> None:
    assert (
        one_line(ValueError(" two\n  lines ")) == "two lines"
        and one_line(KeyError("kpt_shape is missing")) == "kpt_shape is missing"
    )
    assert suggestion("chek", ["check", "convert"]) == " Did you mean 'check'?" and suggestion("qqq", ["check"]) == ""
