"""Makes measurements possible on a machine that other programs use, too.

A turn counts only if almost nothing else ran meanwhile. The load of other programs is the time that all
processors were busy, minus the time that the benchmark and its servers used. A disturbed turn is repeated
once the machine is quiet. If that takes longer than ``--patience``, the disturbed turn counts, and the report
says so.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.report import Report

T = TypeVar("T")

# Processors that the rest of the machine may keep busy during a turn. The counters tick at 10 ms.
TOLERATED = 0.1
RESOLUTION_SECS = 0.04
LOOK_SECS = 0.5

SERVERS: set[int] = set()
"""The measured processes."""

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all of its descendants: the engines of a daemon are separate processes."""
    found = [pid]
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _foreign_seconds() -> float:
    """The processor time since the start of the machine that neither the bench nor its servers used."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    own = os.times()
    ours = own.user + own.system + own.children_user + own.children_system
    ours += sum(cpu_seconds(pid) for server in SERVERS for pid in family(server))
    return (user + nice + system + irq + softirq + steal) / _TICKS - ours


def _look() -> None:
    time.sleep(LOOK_SECS)


class Watch:
    """``patience`` is the time in seconds that one case may spend on waits and on turns that do not count."""

    def __init__(self, report: Report, patience: float) -> None:
        self._report = report
        self._patience = patience
        self._disturbed = 0
        self._repeated = 0

    def undisturbed(self, turn: Callable[[], T]) -> T:
        """Repeats a turn, which adds its samples to the report, until one counts."""
        while True:
            samples = copy.deepcopy(self._report.samples)
            began = time.monotonic()
            quiet, result = self._watched(turn)
            # One mark for each turn shows that a long case is alive; `~` marks a turn that does not count.
            print("." if quiet else "~", end="", file=sys.stderr, flush=True)
            if quiet or self._patience <= 0:
                break
            self._report.samples = samples
            self._repeated += 1
            while time.monotonic() - began < self._patience and not self._watched(_look)[0]:
                pass
            self._patience -= time.monotonic() - began
        self._disturbed += not quiet
        self._report.settings |= {"turns_repeated": self._repeated, "turns_disturbed": self._disturbed}
        return result

    def _watched(self, turn: Callable[[], T]) -> tuple[bool, T]:
        start, before = time.monotonic(), _foreign_seconds()
        result = turn()
        foreign = _foreign_seconds() - before
        return foreign <= TOLERATED * (time.monotonic() - start) + RESOLUTION_SECS, result
