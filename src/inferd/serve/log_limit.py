"""Rate limit for log events that clients cause.

The first ``LIMIT`` events of a second are written one by one. The others are counted and written as one
number. While such a flood lasts, the number alone is written in each second, so that a flood cannot push
other events out of the log.
"""

from __future__ import annotations

import asyncio

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
        self._seen = 0
        self._limit = LIMIT
        self._left_out = 0

    def info(self, **fields: object) -> None:
        """Writes the event, or counts it. Call it on the event loop."""
        now = asyncio.get_running_loop().time()
        passed = now - self._began
        if passed >= SPAN_SECS:
            self._flush()
            lasts = self._seen > LIMIT and passed < 2 * SPAN_SECS
            self._began, self._seen, self._limit = now, 0, 0 if lasts else LIMIT
        self._seen += 1
        if self._seen <= self._limit:
            self._log.info(self._event, **fields)
        else:
            self._left_out += 1
            if self._left_out == 1:
                asyncio.get_running_loop().call_at(self._began + SPAN_SECS, self._flush)

    def _flush(self) -> None:
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._log.info(self._counted, count=count)
