"""A trainer of compare.py in two processes on the CPU, killed once where its folder says so. The stock launcher imports it."""

from __future__ import annotations

from ddp_on_cpu import CPUTrainer

from benchmarks.accuracy.budget import Budget

KILL = "kill-me"


class TwoProcesses(Budget, CPUTrainer):
    """Killed after its second checkpoint while there is a file KILL beside its folder."""

    def save_model(self) -> bool:
        saved = super().save_model()
        if self.epoch == 1 and (self.save_dir.parent / KILL).exists():
            raise KeyboardInterrupt
        return saved
