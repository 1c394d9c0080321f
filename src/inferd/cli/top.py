"""``inferd top``: shows the daemon's activity, and redraws it every second."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import click

from inferd.cli.columns import aligned, duration, rate, terminal_width
from inferd.cli.numbers import Number
from inferd.cli.status import ANSWER_SECS, admin_address, overview
from inferd.client.admin import AdminClient, Frame, Status
from inferd.errors import UsageError

KEPT = 60
"""The number of past values that are drawn."""

LEAVE = ("q", "Q", "\x04")
"""The keys that quit, besides Ctrl-C."""

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """Draws a bar for each value, scaled to the highest value. ``None`` is a blank."""
    most = max((value for value in values if value is not None), default=0.0)
    steps = len(_BARS) - 1
    return "".join(
        " " if value is None else _BARS[round(value / most * steps) if most else 0] for value in values
    )


class Trend:
    """The history of one value. ``show`` formats the value."""

    def __init__(self, show: Callable[[float], str]) -> None:
        self.values: deque[float | None] = deque(maxlen=KEPT)
        self._show = show

    def cells(self) -> tuple[str, str, str]:
        """Returns the current value, the highest value that is drawn, and the sparkline."""
        known = [value for value in self.values if value is not None]
        now = self.values[-1]
        return (
            "-" if now is None else self._show(now),
            self._show(max(known)) if known else "-",
            sparkline(self.values),
        )


class Trends:
    """The values that ``inferd top`` draws, computed from consecutive snapshots."""

    def __init__(self) -> None:
        self._before: Status | None = None
        self.lines = {
            "requests/s": Trend(rate),
            "tokens/s": Trend(rate),
            "running": Trend(lambda value: f"{value:.0f}"),
            "waiting": Trend(lambda value: f"{value:.0f}"),
            "first token": Trend(duration),
            "between tokens": Trend(duration),
            "queue wait": Trend(duration),
        }

    def add(self, state: Status) -> None:
        """Adds a newer snapshot. The first snapshot gives no values, since a rate needs two snapshots."""
        before, self._before = self._before, state
        if before is None or state.uptime_secs <= before.uptime_secs:
            return
        span = state.uptime_secs - before.uptime_secs
        first, gaps, waits = (
            _between(before, state, part, name)
            for part, name in (
                ("backends", "time_to_first_token_seconds"),
                ("backends", "inter_token_seconds"),
                ("surfaces", "queue_wait_seconds"),
            )
        )
        points: dict[str, float | None] = {
            "requests/s": (_ended(state) - _ended(before)) / span,
            "tokens/s": (first[0] + gaps[0]) / span,
            "running": len(state.running),
            "waiting": len(state.waiting),
            "first token": _mean(*first),
            "between tokens": _mean(*gaps),
            "queue wait": _mean(*waits),
        }
        for name, value in points.items():
            self.lines[name].values.append(value)

    def table(self) -> list[str]:
        rows = [(name, *line.cells()) for name, line in self.lines.items() if line.values]
        return aligned([("", "now", "most", f"the last {KEPT}"), *rows]) if rows else []


def _between(before: Status, after: Status, part: str, name: str) -> tuple[int, float]:
    """Returns the count and the sum of the values that a histogram got between two snapshots. ``part`` is
    ``backends`` or ``surfaces``. Sums over the histograms called ``name`` of all backends, or of all
    surfaces."""

    def total(state: Status, of: str) -> float:
        return float(sum(owner[name][of] for owner in state.metrics[part].values()))

    return int(total(after, "count") - total(before, "count")), total(after, "sum") - total(before, "sum")


def _mean(count: int, total: float) -> float | None:
    return total / count if count else None


def _ended(state: Status) -> int:
    surfaces: list[Frame] = [*state.metrics["surfaces"].values()]
    early = chain.from_iterable((*one["errors"].values(), *one["cancels"].values()) for one in surfaces)
    return int(sum(one["done"] for one in surfaces) + sum(early))


@click.command("top")
@click.option(
    "--interval",
    type=Number(0.1, 60.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="The time in seconds between updates.",
)
def top_command(interval: float) -> None:
    """Show speeds, queue, backends and requests, live. q quits."""
    if not sys.stdout.isatty():
        raise UsageError("`inferd top` draws on a terminal; elsewhere use `inferd status --json`")
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    trends = Trends()
    able: tuple[Frame, ...] = ()
    with AdminClient(admin_address(), timeout=ANSWER_SECS) as admin, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        state = admin.status()  # fails without a daemon, before the screen is switched
        pressed = stack.enter_context(_keys())
        live = stack.enter_context(Live(console=Console(highlight=False), screen=True, auto_refresh=False))
        while True:
            able = state.capabilities or able
            trends.add(state)
            lines = overview(dataclasses.replace(state, capabilities=able), terminal_width())
            lines[2:2] = ["", *trends.table()]
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
            if pressed(interval) in LEAVE:
                return
            state = admin.status()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits some seconds for a key, and returns ``""`` if none is pressed."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(stdin)

    def pressed(seconds: float) -> str:
        readable, _, _ = select.select([stdin], [], [], seconds)
        return os.read(stdin, 1).decode("ascii", "replace") or LEAVE[0] if readable else ""

    tty.setcbreak(stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""
