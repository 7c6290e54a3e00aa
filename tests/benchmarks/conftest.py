"""What the tests of the benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    """Command lines of benchmarks make Ultralytics quiet; other tests read what it logs."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    yield
    LOGGER.setLevel(level)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which benchmarks keep their result files."""
    from benchmarks import common

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.RESULTS.mkdir()
    return common.RESULTS
