"""Scripts in processes that begin with torch in memory: one process imports it, and each script runs in a fork of that one.

Ultralytics, which reads the environment while it is imported, is not in memory: each process imports it, and this package, for
itself. All that differs from ``python SCRIPT`` are the two seconds that torch takes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


class Preloaded:
    """The process that scripts are forked from.

    Args:
        environment: of this process; a script is given its own.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def run(self, script: Path, words: Sequence[str], cwd: Path, environment: dict[str, str], output: Path, timeout: float) -> int:
        """Run ``python script words...``.

        Args:
            script: Python source, such as a console script.
            words: arguments.
            cwd: working directory.
            environment: all of it.
            output: file that the script's standard output and error are written to.
            timeout: seconds, after which the script and what it has started are killed.

        Returns:
            The exit code, negative for a signal.
        """
        order = {"argv": [str(script), *words], "cwd": str(cwd), "environment": environment, "output": str(output)}
        assert self._process.stdin and self._process.stdout
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        timer = threading.Timer(timeout, os.killpg, (pid, signal.SIGKILL))
        timer.start()
        try:
            return int(self._process.stdout.readline())
        except BaseException:
            os.killpg(pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Answer each order of standard input with the number of a forked process and, once that has ended, its exit code."""
    import cv2  # noqa: F401
    import torchvision  # noqa: F401  with torch

    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            return become(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(order: dict) -> None:
    """Be the process of a script until its end, in a session of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(file, number)
    sys.stdin = open(0, encoding="utf-8")  # without what the other one has read ahead
    sys.argv = order["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
