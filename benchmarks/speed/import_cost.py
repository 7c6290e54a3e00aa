"""What the autoload file costs a Python that does nothing: ``python -c pass`` with it, switched off, and without it.

Fresh virtual environments, so that the figure does not depend on how this one was set up. The variants take turns within a
round and the first one changes from round to round, so a slow moment of the machine hits all alike; what is reported is the
difference within a round.

    python -m benchmarks.speed.import_cost [--rounds 300]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from benchmarks import common

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MS = 3.0


def make_python(folder: Path, installed: bool) -> Path:
    """Make a virtual environment without packages, or with what an editable install puts there; return its Python."""
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if installed:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
        (site / "_erpose_yolo.pth").write_text(f"{ROOT}\n")
        (site / "erpose_yolo_autoload.pth").write_text((ROOT / "erpose_yolo" / "upstream" / "autoload.pth").read_text())
    return python


def wall_ms(python: Path, environment: dict[str, str]) -> float:
    """Wall time of one ``python -c pass``."""
    start = time.perf_counter()
    subprocess.run([python, "-c", "pass"], env=environment, check=True)
    return 1000 * (time.perf_counter() - start)


def has_hook(python: Path, environment: dict[str, str]) -> bool:
    """Tell whether this Python has imported the hook by itself."""
    code = "import sys; print('erpose_yolo.upstream.autoload' in sys.modules)"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def summary(record: common.Record) -> str:
    """What the autoload file adds to a bare Python, median (quartiles)."""
    low, middle, high = record["variants"]["with it"]["difference"]
    off, bare = record["variants"]["with it, `ERPOSE_AUTOLOAD=0`"]["difference"], record["variants"]["without the package"]["ms"]
    return f"{middle:.2f} ms ({low:.2f} to {high:.2f}) on {bare[1]:.1f} ms of a bare `python -c pass`; {off[1]:.2f} ms switched off"


def main() -> int:
    """Measure and save; 1 if the cost is over the limit."""
    parser = common.parser(__doc__)
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
        expected = {name: environment is on and python != bare for name, (python, environment) in variants.items()}
        assert expected == {name: has_hook(*variant) for name, variant in variants.items()}  # each is what it says

        times: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(rounds):
            for name in order:
                times[name].append(wall_ms(*variants[name]))
            order.append(order.pop(0))

    record: common.Record = {}
    for name, values in times.items():
        difference = [a - b for a, b in zip(values, times["without the package"])] if name != "without the package" else []
        ms, extra = (statistics.quantiles(v, n=4) if v else None for v in (values, difference))
        record[name] = {"ms": ms, "difference": extra}
    common.save("import-cost", {"rounds": rounds, "variants": record}, summary)
    worst = max(v["difference"][1] for v in record.values() if v["difference"])
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
