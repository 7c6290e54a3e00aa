"""The documents lead where they say, what is generated is current, and the site builds without a warning."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import erpose_yolo
from docs import figures, generated
from erpose_yolo import cli
from erpose_yolo.method.settings import Settings

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


def test_generated_parts_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert generated.main(["--check"]) == 0, capsys.readouterr().out


def test_a_part_that_is_not_current_is_seen() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert generated.render(page) == page
    assert generated.render(page.replace("| `topk` | `10` |", "| `topk` | `11` |")) == page
    with pytest.raises(KeyError, match="absent"):
        generated.render("<!-- generated: absent -->\n<!-- end -->")


def test_each_setting_has_a_row_and_a_meaning() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", generated.settings(), re.M))
    assert list(rows) == list(Settings().to_dict()) and all(rows.values())


def test_pages_of_the_site_are_those_of_the_folder() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named, there = {file for _, file in generated.pages(nav)}, {file.name for file in (ROOT / "docs").glob("*.md")}
    assert named == there, f"nav of mkdocs.yml and docs/ differ in {sorted(named ^ there)}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and docstrings; the pages and llms.txt are there, and no script is."""
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "own-keypoints" / "index.html").is_file() and (tmp_path / "site" / "llms.txt").is_file()
    assert not list((tmp_path / "site").rglob("*.py"))
    assert (tmp_path / "site" / "repository" / "examples" / "assets" / "web.jpg").is_file()  # an image beside docs/
    works = (tmp_path / "site" / "how-it-works" / "index.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/erpose-yolo/erpose-yolo/blob/main/examples/graft/README.md"' in works
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M))
    assert named and not [name for name in named if f'id="{name}"' not in api]


@pytest.mark.slow
def test_figures_are_made(tmp_path: Path) -> None:
    figures.main(["--out", str(tmp_path)])
    made = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(made) == {"head.png", "assignment.jpg", "loss.png", "photos.jpg"}
    assert all(20_000 < size < 300_000 for size in made.values()), made


def test_the_workflow_and_the_citation_are_valid(tmp_path: Path) -> None:
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    pytest.importorskip("check_jsonschema")
    check = [str(Path(sysconfig.get_path("scripts")) / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, str(workflow)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "ci.yml"
    wrong.write_text(workflow.read_text(encoding="utf-8").replace("runs-on", "runs_on"), encoding="utf-8")
    assert subprocess.run([*check, str(wrong)], capture_output=True).returncode != 0
    commands = json.dumps(yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"])
    assert all(line in commands for line in ("bash .ci/run", "mkdocs build --strict", "python -m build"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == erpose_yolo.__version__
    assert "2603.08681" in citation["preferred-citation"]["url"] and len(citation["preferred-citation"]["authors"]) == 5
