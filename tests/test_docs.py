"""The documents lead where they say: files, images and headings; and the first page names every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from erpose_yolo import cli

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {".": "*.md", "benchmarks": "*.md", "docs": "**/*.md", "examples": "**/*.md"}
FOUND = (page.relative_to(ROOT) for folder, name in FOLDERS.items() for page in (ROOT / folder).glob(name))
PAGES = sorted(page.as_posix() for page in FOUND if "node_modules" not in page.parts)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its blocks of code, in which brackets are code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def astray(page: Path) -> list[str]:
    """Links of a page that lead nowhere in this repository; addresses in the web are not followed."""
    lost = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert astray(ROOT / page) == []


def test_links_astray_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    links = "[a](#one-two) [b](#three) [c](absent.png) [d](page.md#one-two) [e](https://x.org/y)"
    page.write_text(f"# One, two\n{links}\n```\n[f](g)\n```\n", encoding="utf-8")
    assert astray(page) == ["#three", "absent.png"]


def test_both_pages_of_figures_are_read() -> None:
    assert {"README.md", "benchmarks/README.md", "examples/graft/README.md"} <= set(PAGES)


def test_the_table_of_commands_has_all_of_them() -> None:
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `erpose ")]
    named = set(re.findall(r"`erpose (\w+)", "".join(row.split("|")[1] for row in rows)))
    assert set(cli.COMMANDS) <= named
