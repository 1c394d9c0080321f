"""Keeps a spare engine process: a program that is started in advance, before there is a model to load.

Before an engine process can read a model, its interpreter starts and imports its modules, which takes longer
than to load a small model. So some time after a load, the daemon starts one program that does this and then
waits for a model. The next load uses the program. It holds no file and no path, has no sandbox yet, and ends
with the daemon. A daemon that has not loaded a local model has no spare.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inferd import log
from inferd.errors import ModelError

if TYPE_CHECKING:
    from inferd.engine.local.child.spawned import Spawned

AFTER_SECS = 3.0
"""The time from the end of a load to the start of the spare. The imports should not delay the first
requests."""

_log = log.get("engine")


class Spare:
    """At most one spare program, none if it is not ``wanted``. Runs on the event loop."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._program: Spawned | None = None
        self._loads = 0
        self._has_loaded = False
        self._alarm: asyncio.TimerHandle | None = None

    @contextmanager
    def loading(self) -> Iterator[Spawned | None]:
        """A context manager for a load. It yields the spare program, which then belongs to the load, or
        ``None``. No spare is started before the last running load has ended."""
        self._loads += 1
        self._stop_waiting()
        try:
            program = self._take()
            if program is not None:
                program.resume()
            yield program
            self._has_loaded = True
        finally:
            self._loads -= 1
            self._start_later()

    async def follow(self, wanted: bool) -> None:
        """Applies a new configuration."""
        self._wanted = wanted
        if wanted:
            self._start_later()
            return
        self._stop_waiting()
        program = self._take()
        if program is not None:
            program.sock.close()
            program.kill()  # it may be in the middle of its imports, and has nothing to save
            await program.end()

    async def close(self) -> None:
        """Ends the spare, and starts no other."""
        await self.follow(wanted=False)

    def _take(self) -> Spawned | None:
        program, self._program = self._program, None
        if program is not None:
            program.ended.remove_done_callback(self._ended)
        return program

    def _stop_waiting(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _start_later(self) -> None:
        if self._wanted and self._has_loaded and not self._loads and self._program is None:
            self._stop_waiting()
            self._alarm = asyncio.get_running_loop().call_later(AFTER_SECS, self._start)

    def _start(self) -> None:
        from inferd.engine.local.child.spawned import Spawned

        self._alarm = None
        try:
            self._program = Spawned()
        except ModelError as error:
            _log.warn("spare_failed", error=str(error))
            return
        self._program.ended.add_done_callback(self._ended)
        _log.info("spare_started", pid=self._program.pid)

    def _ended(self, ended: asyncio.Future[int]) -> None:
        """Called if the spare has ended without a load. The next load does without it."""
        program = self._take()
        if program is not None:
            program.sock.close()
            _log.warn("spare_ended", pid=program.pid, status=ended.result())
