"""Rate limit for log events that clients cause.

The first ``LIMIT`` events of a second are logged one by one. Further events of the same second are counted,
and one record reports their number. If a flood of events lasts longer, each further second gets only one
record with the number of its events. So a flood cannot push other events out of the log.
"""

from __future__ import annotations

import asyncio

from inferd import log

LIMIT = 32
"""The events per second that are written one by one."""

SPAN_SECS = 1.0


class Burst:
    """Logs one kind of event. ``event`` is the name of the record of one event. ``counted`` is the name of
    the record that reports how many events were not logged one by one."""

    def __init__(self, events: log.Log, event: str, counted: str) -> None:
        self._log = events
        self._event = event
        self._counted = counted
        self._began = 0.0
        self._seen = 0
        self._limit = LIMIT
        self._left_out = 0

    def info(self, **fields: object) -> None:
        """Logs the event or counts it. Must be called on the event loop."""
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
