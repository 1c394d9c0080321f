"""Shows the steps of loading a model on stderr.

On a terminal, a progress bar shows the current step; no bar is left at the end. Without a terminal, one line
is printed when a step begins, when a step is retried, and when a step begins to wait for another process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inferd.cli.say import say
from inferd.controls import one_line
from inferd.wire.bounds import QUEUE_STEPS

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_TITLES = {
    "waiting": "Waiting for the model",
    "checking_local": "Looking for the model",
    "download": "Downloading the model",
    "verify": "Verifying the model",
    "quarantine": "Setting a damaged file aside",
    "mmap": "Loading the model",
    "kv_cache": "Making room for the context",
}


def title(phase: str) -> str:
    """Returns the text to show for a phase."""
    return one_line(_TITLES.get(phase, phase))


class Progress:
    """Shows the progress from status frames, or from phases with details. Use it in a ``with``."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._note = ""

    def frame(self, frame: Mapping[str, Any]) -> None:
        """Shows the phase of a ``loading_model`` frame of the admin socket. Ignores other frames."""
        if frame["status"] == "loading_model":
            self.phase(str(frame.get("phase", "")), frame)

    def phase(self, name: str, details: Mapping[str, Any]) -> None:
        """Shows a step. Also shows the completed and the total bytes, or the completed share, if ``details``
        contains these numbers."""
        if name in QUEUE_STEPS:
            return
        if name == "loaded":
            self.end()
            return
        step, note = title(name), one_line(_note(details))
        if name == "download" and str(details.get("source_url")).startswith("file:"):
            step = "Copying the model"
        if not sys.stderr.isatty():
            if (step, note) != (self._title, self._note):
                say(f"{step}{note} …", err=True)
        else:
            self._draw(step, note, details)
        self._title, self._note = step, note

    def _draw(self, title: str, note: str, details: Mapping[str, Any]) -> None:
        bars = self._bars or self._start()
        if title != self._title or self._task is None:
            if self._task is not None:
                bars.remove_task(self._task)
            self._task = bars.add_task(title, total=None, amount="")
        bars.update(self._task, description=title + note)
        if "downloaded_bytes" in details:
            done, total = details["downloaded_bytes"], details.get("total_bytes")
            bars.update(self._task, completed=done, total=total)
            rate = None if note else bars.tasks[-1].speed
            bars.update(self._task, amount=_amount(done, total) + (f" {rate / 1e6:.1f} MB/s" if rate else ""))
        elif "progress" in details:
            bars.update(self._task, completed=details["progress"], total=1.0)

    def _start(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),  # a reason may contain brackets
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        return self._bars

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Removes the bar, so that other text can be written. A second call does nothing."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


def _note(details: Mapping[str, Any]) -> str:
    """Returns a note about a download that waits or is retried."""
    if "attempt" in details:
        return f", try {details['attempt']} ({details.get('reason', '')})"
    if "waiting_for_pid" in details:
        return f" (by process {details['waiting_for_pid'] or '?'})"
    return ""


def _amount(done: int, total: int | None) -> str:
    whole = "?" if total is None else f"{total / 1e6:.0f}"
    return f"{done / 1e6:.0f}/{whole} MB"
