"""benchmarks/report.py: the page says what the result files say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import common, report


def test_the_page_is_what_the_results_say() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.render(page) == page, "run python -m benchmarks.report"
    assert len(page.splitlines()) <= 250


@pytest.fixture
def copied(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the results with a copy of all, and a page of its own."""
    for file in (Path(report.__file__).parent / "results").glob("*.json"):
        shutil.copy(file, results)
    shutil.copy(report.PAGE, tmp_path / "README.md")
    monkeypatch.setattr(report, "PAGE", tmp_path / "README.md")
    return results


def change(file: Path) -> None:
    record = json.loads(file.read_text())
    if "models" in record:
        record["models"]["erpose-n"]["parameters"] += 100_000
    else:
        record["ratio"] = [2 * ratio for ratio in record["ratio"]]
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(("name", "line"), [("size", "| erpose-* | 2.76,"), ("evaluate", " 0.23 (")])
def test_a_changed_result_changes_the_page(
    copied: Path, name: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied / f"{name}.json")
    old = report.PAGE.read_text()
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    assert report.main() == 1 and report.PAGE.read_text() == old
    added = [text for text in capsys.readouterr().out.splitlines() if text.startswith("+|")]
    assert len(added) == 1 and line in added[0]
    monkeypatch.setattr("sys.argv", ["report.py"])
    assert report.main() == 0
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    assert report.main() == 0, "rendered once, it stays"


def test_no_result_is_lost_and_no_table_is_empty(copied: Path) -> None:
    page = report.PAGE.read_text()
    (copied / "new.json").write_text("{}")
    with pytest.raises(ValueError, match="differ in new"):
        report.render(page)
    (copied / "new.json").unlink()
    (copied / "crash.json").unlink()
    with pytest.raises(ValueError, match="differ in crash"):
        report.render(page)


def test_a_table_says_where_it_was_measured_unless_at_home(copied: Path) -> None:
    file = copied / "step.json"
    record = {**json.loads(file.read_text()), "machine": report.HOME}
    file.write_text(json.dumps(record))
    page = report.render(report.PAGE.read_text())
    file.write_text(json.dumps({**record, "machine": "a phone"}))
    other = report.render(page)
    assert "\nMeasured on a phone.\n" in other and "a phone" not in page
    file.write_text(json.dumps(record))
    assert report.render(other) == page
    assert set(common.read("step")) == {"machine", "against", "ratios"}
