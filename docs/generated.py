"""Parts of the pages that are made from code and measurements, and llms.txt.

    python -m docs.generated            # writes them anew
    python -m docs.generated --check    # says which are not what code and measurements say; exit code 1 if any

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. NAME is a function below, or ``benchmark`` and the name of
a table of benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from ultralytics.engine.exporter import export_formats

from benchmarks import common, report
from erpose_yolo import arguments, catalog, cli
from erpose_yolo.export import formats
from erpose_yolo.method.settings import Settings

HOME = Path(__file__).resolve().parent
SITE = "https://erpose-yolo.github.io/erpose-yolo/"
PART = re.compile(r"(<!-- generated: ([\w -]+) -->\n)(?:(?!<!-- ).*\n)*?(<!-- end -->)")
FIELD = re.compile(r"^    (?:# (?P<section>[\w ]+)|(?P<name>\w+): (?P<type>[^=]+) = (?P<value>.+?)(?:  # (?P<comment>.+))?)$", re.M)
OPTIONS = {"fp32": "", "fp16": "half=True", "int8": "int8=True"}
PRECISIONS = (*OPTIONS, "w8a16", "w8a32")
NUMPY = {"numpy": formats.CONVERTERS["coreml"]["numpy"]}


def settings() -> str:
    """All keys of the ``erpose:`` block, with the comments of the dataclass."""
    names = {field.name for field in dataclasses.fields(Settings)}
    rows, section = [], ""
    for found in FIELD.finditer(inspect.getsource(Settings)):
        section = found["section"] or section
        if found["name"] in names:
            default = yaml.safe_dump(Settings().to_dict()[found["name"]], default_flow_style=True).splitlines()[0]
            rows.append([f"`{found['name']}`", f"`{default}`", section, found["comment"] or ""])
    return common.markdown(["key", "default", "part", "meaning"], rows)


def exports() -> str:
    """Accuracy, size and time of each export format and precision, as measured (results/export.json)."""
    record = common.read("export")
    measured: dict[tuple[str, str], dict[str, Any]] = {(row["format"], row["precision"]): row for row in record["rows"]}
    plain = measured["torch", "fp32"]["ap"]
    rows, absent = [], []
    for name in converted():
        of = [measured[name, precision] for precision in PRECISIONS if "mb" in measured.get((name, precision), {})]
        if not of:
            absent.append(f"`{name}`")
        for row in of:
            option = OPTIONS.get(row["precision"], f"quantize={row['precision']}")
            gain = f"{100 * (row.get('ap', plain) - plain):+.1f}".replace("-0.0", "+0.0")
            ap = f"{100 * row['ap']:.1f} ({gain})" if "ap" in row else row.get("note", "")
            time = f"{row['time']:.2f}" if "time" in row else ""
            pip = pip_line(formats.RUNTIMES.get(name, {}) | (NUMPY if name == "coreml" else {}))
            rows.append([f"`{f'format={name} {option}'.strip()}`", ap, row["mb"], time, pip])
    header = ["arguments of an export beside its model", "AP", "MB", "time / fp32", "pip install, to run"]
    shipped = hashlib.sha256(Path(catalog.resolve_weights(record["weights"])).read_bytes()).hexdigest()
    weights = record["weights"] if shipped.startswith(record["sha256"]) else f"an earlier {record['weights']} with the same layers"
    return (
        f"{common.markdown(header, rows)}\n\nAP of {weights} on {record['photos']} photos of COCO val2017 at "
        f"{record['imgsz']} px, padded to squares, and points gained or lost against PyTorch, whose AP is {100 * plain:.1f}. "
        f"Time: of the network on one thread, over float32 in the same runtime ({record['machine']}). "
        f"Not measured: {', '.join(absent)}."
    )


def pip_line(needs: dict[str, str]) -> str:
    """What follows ``pip install``, as code; empty for nothing."""
    text = " ".join(repr(package) if set("<>=") & set(package) else package for package in needs.values())
    return f"`{text}`" if text else ""


def installs() -> str:
    """What converters and runtimes are to be installed; formats that need the same share a row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in converted():
        needs = (formats.CONVERTERS[name], formats.QUANTIZERS.get(name, {}), formats.RUNTIMES.get(name, {}))
        alike.setdefault(tuple(map(pip_line, needs)), []).append(f"`{name}`")
    rows = [[", ".join(names), *lines] for lines, names in alike.items()]
    return common.markdown(["format", "pip install, to convert", "for int8, too", "to run"], rows)


def converted() -> list[str]:
    """Formats that ER-Pose models have."""
    return [name for name in export_formats()["Argument"][1:] if name not in formats.REFUSED]


def refused() -> str:
    """Formats that no ER-Pose model has, and why."""
    return common.markdown(["format", "why not"], [[f"`{name}`", reason] for name, reason in formats.REFUSED.items()])


def stock() -> str:
    """Arguments of ultralytics that are refused or do nothing."""
    rows = [[f"`{key}`", ", ".join(entry.modes), f"refused. {entry.reason}"] for key, entry in arguments.REFUSED.items()]
    alike: dict[tuple[str, str], list[str]] = {}
    for key, entry in arguments.WITHOUT_EFFECT.items():
        alike.setdefault((", ".join(entry.modes), entry.reason), []).append(f"`{key}`")
    rows += [[", ".join(keys), modes, f"no effect: {reason}"] for (modes, reason), keys in alike.items()]
    return common.markdown(["argument", "modes", "with ER-Pose"], rows)


def commands() -> str:
    """Commands and modes of ``erpose``."""
    rows = [[f"`erpose {name}`", command.help] for name, command in sorted(cli.COMMANDS.items())]
    rows += [[f"`erpose {name}`", f"{text}; also `yolo pose {name}`"] for name, (text, _, _) in cli.MODES.items()]
    return common.markdown(["command", "what it does"], rows)


def models() -> str:
    """Model files by family."""
    rows = []
    for file in sorted((catalog.cfg_root() / "models").glob("*.yaml")):
        title = re.sub(r"\s+", " ", file.read_text(encoding="utf-8").splitlines()[0].strip("# ."))
        names = [f"`{name}`" for name in catalog.list_models() if catalog.find_model(name)[0] == file]  # type: ignore[index]
        rows.append([names[0] + " to " + names[-1], title])
    return common.markdown(["names", "what it is"], rows)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (settings, exports, installs, refused, stock, commands, models)
}


def render(text: str) -> str:
    """A page with its generated parts made anew.

    Raises:
        KeyError: there is no such part.
    """

    def part(found: re.Match[str]) -> str:
        name = found[2]
        kind, _, table = name.partition(" ")
        body = report.TABLES[table](common.read(table)) if kind == "benchmark" else PARTS[name]()
        return f"{found[1]}{body}\n{found[3]}"

    return PART.sub(part, text)


def pages(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Titles and files of mkdocs.yml's nav, in order."""
    for entry in nav:
        for title, target in entry.items():
            if isinstance(target, list):
                yield from pages(target)
            else:
                yield title, target


def llms() -> str:
    """llms.txt (llmstxt.org): each page with its first sentences."""
    config = yaml.safe_load((HOME.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", "", "## Pages", ""]
    for title, file in pages(config["nav"]):
        paragraphs = (HOME / file).read_text(encoding="utf-8").split("\n\n")
        first = next(p for p in paragraphs if not p.startswith(("#", "<", "!", "```", "|", "* ", ":")))
        address = SITE + file.removesuffix("index.md").replace(".md", "/")
        plain = " ".join(re.sub(r"[*`\[]|]\([^)]*\)", "", first).split())
        lines.append(f"- [{title}]({address}): {plain}")
    return "\n".join(lines) + "\n"


def outdated() -> dict[Path, str]:
    """Files that differ from what they should be, with what they should be."""
    wanted = {file: render(file.read_text(encoding="utf-8")) for file in sorted(HOME.glob("*.md"))}
    wanted[HOME / "llms.txt"] = llms()
    return {file: text for file, text in wanted.items() if not file.exists() or file.read_text(encoding="utf-8") != text}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(words).check
    found = outdated()
    for file, text in found.items():
        print(f"{file.relative_to(HOME.parent)}: {'not current: python -m docs.generated' if check else 'written'}")
        if not check:
            file.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
