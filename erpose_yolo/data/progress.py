"""A progress bar for tools that must not import Ultralytics, which takes seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A progress bar on standard error, nothing where that is not a terminal.

    Ours, because importing that of Ultralytics takes seconds and 500 MB (it brings torch).

    Args:
        title: what is done.
        total: number of steps.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.done = 0
        self._start = time.monotonic()
        self._next = 0.0
        self._shown = sys.stderr.isatty()

    def add(self) -> None:
        """Count a step, and draw at most ten times a second."""
        self.done += 1
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
        count = f"{self.done}/{self.total}"
        print(f"\r{self.title} {bar} {share:4.0%} {count} {now - self._start:.0f}s ", end="", file=sys.stderr, flush=True)
