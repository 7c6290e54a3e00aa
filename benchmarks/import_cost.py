"""What the autoload file costs a Python that does nothing: ``python -c pass`` with it, switched off, and without it.

Fresh virtual environments, so that the figure does not depend on how this one was set up; where this Python has the
hook installed, it is measured too (its site-packages is full, so the package is found later). The variants take turns
within a round and the first one changes from round to round, so a slow moment of the machine hits all alike; what is
reported is the difference within a round.

    python benchmarks/import_cost.py [--rounds 300]

writes ``benchmarks/results/import_cost.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MS = 3.0


def make_python(folder: Path, installed: bool) -> Path:
    """Make a virtual environment without packages, or with what an editable install puts there; return its Python."""
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if installed:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
        (site / "_erpose_yolo.pth").write_text(f"{ROOT}\n")
        (site / "erpose_yolo_autoload.pth").write_text((ROOT / "erpose_yolo" / "autoload.pth").read_text())
    return python


def wall_ms(python: Path, environment: dict[str, str]) -> float:
    """Wall time of one ``python -c pass``."""
    start = time.perf_counter()
    subprocess.run([python, "-c", "pass"], env=environment, check=True)
    return 1000 * (time.perf_counter() - start)


def has_hook(python: Path, environment: dict[str, str]) -> bool:
    """Tell whether this Python has imported the hook by itself."""
    code = "import sys; print('erpose_yolo.autoload' in sys.modules)"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def quartiles(values: list[float]) -> str:
    """Median and, in brackets, the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> int:
    """Measure, print and write the table; 1 if the cost is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds

    with tempfile.TemporaryDirectory() as scratch:
        on = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        on.pop("ERPOSE_AUTOLOAD", None)
        on["PYTHONPYCACHEPREFIX"] = str(Path(scratch) / "pyc")  # compiled once, and not in the tree
        off = {**on, "ERPOSE_AUTOLOAD": "0"}
        bare, installed = make_python(Path(scratch) / "a", False), make_python(Path(scratch) / "b", True)
        variants = {
            "without the package": (bare, on),
            "with it": (installed, on),
            "with it, `ERPOSE_AUTOLOAD=0`": (installed, off),
        }
        base = dict.fromkeys(list(variants)[1:], "without the package")
        here = Path(sys.executable)
        if has_hook(here, on):
            variants |= {"this environment, `ERPOSE_AUTOLOAD=0`": (here, off), "this environment": (here, on)}
            base["this environment"] = "this environment, `ERPOSE_AUTOLOAD=0`"
        expected = {name: environment is on and python != bare for name, (python, environment) in variants.items()}
        assert expected == {name: has_hook(*variant) for name, variant in variants.items()}  # each is what it says

        times: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(rounds):
            for name in order:
                times[name].append(wall_ms(*variants[name]))
            order.append(order.pop(0))

    lines = ["| `python -c pass` | ms, median [quartiles] | difference within a round, ms |", "|---|---|---|"]
    worst = 0.0
    for name, values in times.items():
        difference = [a - b for a, b in zip(values, times[base[name]])] if name in base else []
        worst = max(worst, statistics.median(difference)) if difference else worst
        lines.append(f"| {name} | {quartiles(values)} | {quartiles(difference) if difference else ''} |")
    verdict = f"{rounds} rounds, Python {platform.python_version()}, {platform.system()}; the limit is {LIMIT_MS} ms."
    table = "\n".join([*lines, "", verdict])
    print(table)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "import_cost.md").write_text(table + "\n")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
