"""Renders the tables of benchmarks/README.md from benchmarks/results/.

    python -m benchmarks.report            # writes the page anew
    python -m benchmarks.report --check    # says whether the page is what the results say; exit code 1 if not

A table stands below a line ``<!-- table: NAME -->``; NAME is that of the result file, or ``tools`` for the measurements that are
a sentence each. Where it was not measured on HOME, the machine stands below it. The rest of the page is written by hand.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from benchmarks import common
from benchmarks.accuracy import ablation, compare, derived_boxes, error_bars, graft, paired, video
from benchmarks.robustness import crash, endurance, export
from benchmarks.speed import evaluate, import_cost, latency, size, step

PAGE = Path(__file__).parent / "README.md"
HOME = "Intel(R) Xeon(R) Processor, 1 of 2 cores, torch 2.15.0+cu132"
TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n(?:\|.*\n)*(?:\nMeasured on .*\n)?")
TABLES: dict[str, Callable[[common.Record], str]] = {
    "compare-synth": compare.table,
    "compare-coco-people": paired.table,
    "ablation-coco-people": paired.table,
    "ablation": ablation.table,
    "video": video.table,
    "video-trackers": video.table,
    "graft": graft.table,
    "size": size.table,
    "latency": latency.table,
    "step": step.table,
    "export": export.table,
}
TOOLS: dict[str, tuple[str, ModuleType, str]] = {
    "crash": ("Training killed and resumed", crash, ""),
    "endurance": ("Growth of memory and open files", endurance, ""),
    "evaluate": ("Exact evaluation", evaluate, ""),
    "import-cost": ("The autoload file", import_cost, ""),
    "derived-boxes": (
        "Boxes derived from keypoints, learned ones and a peer's",
        derived_boxes,
        " --data coco-people.yaml --weights erpose-n.pt --peer yolo26n-pose.pt",
    ),
    "error-bars": (
        "Error bars of keypoints, fitted on training photos",
        error_bars,
        " judge --data coco-people.yaml --weights calibrated.pt",
    ),
}


def tools() -> str:
    """One row per measurement that is a sentence."""
    rows = []
    for name, (title, module, arguments) in TOOLS.items():
        rows.append([title, module.summary(common.read(name)), f"`python -m {module.__name__}{arguments}`"])
    return common.markdown(["what", "measured", "command"], rows)


def render(page: str) -> str:
    """The page with every table rendered anew.

    Raises:
        ValueError: a table has no result file, or a result file has no table.
    """
    shown = {found[1] for found in TABLE.finditer(page)}
    shown |= set(TOOLS) if "tools" in shown else set()
    stored = {file.stem for file in common.RESULTS.glob("*.json")}
    if odd := sorted((shown - {"tools"}) ^ stored):
        raise ValueError(f"README.md and results/ differ in {', '.join(odd)}. Fix: each result file needs a table, and vice versa.")

    def table(found: re.Match[str]) -> str:
        head = f"<!-- table: {found[1]} -->\n"
        if found[1] == "tools":
            return f"{head}{tools()}\n"
        record = common.read(found[1])
        where = common.machines(record)
        return f"{head}{TABLES[found[1]](record)}\n" + (f"\nMeasured on {where}.\n" if where != HOME else "")

    return TABLE.sub(table, page)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if args.check:
        print(*difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "results", lineterm=""), sep="\n")
    else:
        PAGE.write_text(new, encoding="utf-8")
    return int(args.check and old != new)


if __name__ == "__main__":
    raise SystemExit(main())
