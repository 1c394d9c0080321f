"""A status line on stderr while a request waits for its answer.

The status line appears only on a terminal, and only after a second. The status line shows the step of the
model's load or the position in the queue, as reported on the request's own connection. If this connection has
reported nothing, the status line shows the state that the admin socket reports. Without a terminal, each step
of the load is printed on a line of its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from inferd.cli.columns import duration
from inferd.cli.options import Target
from inferd.cli.progress import Progress, title
from inferd.cli.say import say_status
from inferd.client.address import Addresses
from inferd.client.admin import AdminClient, Status
from inferd.controls import one_line
from inferd.errors import InferdError
from inferd.wire.bounds import QUEUE_STEPS

FIRST_SECS = 1.0
NEXT_SECS = 0.5
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


class Waiting:
    """Shows the status line inside a ``with`` block, until :meth:`over` is called."""

    def __init__(self, daemon: Target) -> None:
        self._daemon = daemon
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._shown = False
        self._began = 0.0
        self._steps = Progress()
        self._step = ""

    def __enter__(self) -> Waiting:
        if sys.stderr.isatty():
            self._began = time.monotonic()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()

    def over(self) -> None:
        """Removes the status line, without waiting for the daemon. Call this method when the answer begins. A
        second call does nothing."""
        if self._over.is_set():
            return
        with self._lock:
            self._over.set()
            self._show("")

    def phase(self, name: str, details: Mapping[str, Any]) -> None:
        """Takes a ``progress`` frame of the request: a step of loading the model, or a position in the queue.
        The status line shows the step or the position. Without a terminal, prints each step of loading."""
        position = details.get("position")
        if name == "loaded" or name in QUEUE_STEPS:
            self._step = f"{ordinal(position)} in the queue" if isinstance(position, int) else ""
        elif sys.stderr.isatty():
            share = details.get("progress")
            self._step = title(name) + (f" ({share:.0%})" if isinstance(share, float) else "")
        else:
            self._steps.phase(name, details)

    def _watch(self) -> None:
        pause = FIRST_SECS
        while not self._over.wait(pause):
            pause = NEXT_SECS
            said = self._state()
            with self._lock:
                if not self._over.is_set():
                    self._show(f"{said}, {duration(time.monotonic() - self._began)}")

    def _show(self, text: str) -> None:
        if text or self._shown:
            say_status(text)
            self._shown = bool(text)

    def _state(self) -> str:
        if self._step:
            return self._step
        address = admin_of(self._daemon)
        if address is not None:
            try:
                with AdminClient(address, timeout=NEXT_SECS) as admin:
                    return describe(admin.status(), os.getpid())
            except InferdError:
                pass
        return "waiting for the answer"


def admin_of(daemon: Target) -> Path | None:
    """Returns the path of the daemon's admin socket, or ``None`` if the path is unknown."""
    if daemon.startable:
        return daemon.settings.admin_addr
    found = Addresses({"v1": daemon.address}).find("admin")
    return None if found is None else Path(found)


def describe(state: Status, pid: int) -> str:
    """Says in words what the daemon is doing for the request of the process ``pid``."""
    for row in state.waiting:
        if row.get("peer_pid") == pid:
            return f"{ordinal(row['position'])} in the queue"
    for row in state.running:
        share = row.get("prompt_read")
        if row.get("peer_pid") == pid and share is not None:
            return f"reading the prompt {share * 100:.0f} %" if share < 1 else "writing the answer"
    for load in state.loading:
        return one_line(f"loading {load.get('name', 'the model')}")
    return "waiting for the answer"


def ordinal(number: int) -> str:
    """Returns ``number`` as an ordinal: 1st, 2nd, 3rd, 4th, 11th, 21st, …"""
    ending = "th" if number % 100 in (11, 12, 13) else _ORDINALS.get(number % 10, "th")
    return f"{number}{ending}"
