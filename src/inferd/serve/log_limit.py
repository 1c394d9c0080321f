"""Rate limit for log events that clients cause.

The first ``LIMIT`` events of a second are written one by one. The others are counted and written as one
number, so that a flood cannot push other events out of the log.
"""

from __future__ import annotations

import asyncio
import time

from inferd import log

LIMIT = 32
"""The events per second that are written one by one."""

SPAN_SECS = 1.0


class Burst:
    """One kind of event: ``event`` names a single one, ``counted`` the number of the rest."""

    def __init__(self, events: log.Log, event: str, counted: str) -> None:
        self._log = events
        self._event = event
        self._counted = counted
        self._began = 0.0
        self._written = 0
        self._left_out = 0

    def info(self, **fields: object) -> None:
        """Writes the event, or counts it. Call it on the event loop."""
        now = time.monotonic()
        if now - self._began >= SPAN_SECS:
            self._flush()
            self._began, self._written = now, 0
        if self._written < LIMIT:
            self._written += 1
            self._log.info(self._event, **fields)
        else:
            self._left_out += 1
            if self._left_out == 1:
                rest = self._began + SPAN_SECS - now
                asyncio.get_running_loop().call_later(rest, self._flush)

    def _flush(self) -> None:
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._log.info(self._counted, count=count)
