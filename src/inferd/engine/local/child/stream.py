"""The events of a request to a model in an engine process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Frames, Text, Thinking, ToolUse, Usage
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.descriptors import close_all
from inferd.engine.local.child.jobs import Job
from inferd.engine.requests import ToolCall

CANCEL_GRACE_SECS = 0.25
"""How long a cancelled request waits until the process ends it. A request ends at most this long after its
deadline."""


class HostedStream(Stream):
    """The events of a job. The process pauses the job while ``WINDOW_BYTES`` or more of sent events are not
    acknowledged. The stream acknowledges the pulled events in steps of half a window. ``believed`` makes a
    context manager in which a message is decoded."""

    def __init__(self, job: Job, believed: Callable[[], AbstractContextManager[None]]) -> None:
        self._job = job
        self._believed = believed
        self._begun = False
        self._cancelled = False
        self._over = False
        self._pieces = 0
        self._unpaid = 0
        self._grace: asyncio.TimerHandle | None = None

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:
            self._end()
            raise

    async def _next(self) -> Event:
        if not self._begun:
            self._begun = True
            if self._cancelled or not await self._job.begin():
                return self._done(Done("cancelled", Usage(0, 0)))
            if self._cancelled:
                self._job.cancel()
        kind, body, fds = await self._job.next()
        close_all(fds)
        with self._believed():
            if kind == m.FRAMES:
                return self._piece(Frames(body), len(body))
            if kind == m.DONE:
                return self._done(m.decode(Done, body))
            if kind == m.FAILED:
                raise m.error(m.decode(m.Failure, body))
            if kind == m.TOOL_USE:
                return self._piece(ToolUse(m.decode(ToolCall, body)), 0)
            if kind in (m.TEXT, m.THINKING):
                text = body.decode()
                return self._piece(Text(text) if kind == m.TEXT else Thinking(text), len(body))
            raise ValueError(kind)

    def _piece(self, event: Event, size: int) -> Event:
        self._pieces += 1
        self._unpaid += size
        if self._unpaid >= m.WINDOW_BYTES // 2:
            self._job.credit(self._unpaid)
            self._unpaid = 0
        return event

    def _done(self, done: Done) -> Done:
        self._end()
        return done

    def _end(self) -> None:
        self._over = True
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._job.leave()

    def prompt_read(self) -> float | None:
        return self._job.prompt_read()

    def cancel(self) -> None:
        """Cancels the job. Waits at most ``CANCEL_GRACE_SECS`` for the process to confirm."""
        if self._over or self._cancelled:
            return
        self._cancelled = True
        self._job.cancel()
        loop = asyncio.get_running_loop()
        waits = self._job.process is None
        self._grace = loop.call_later(0.0 if waits else CANCEL_GRACE_SECS, self._give_up)

    def _give_up(self) -> None:
        if self._job.process is None:
            self._job.leave()  # it was still queued
        else:
            self._job.put((m.DONE, m.encode(Done("cancelled", Usage(0, self._pieces))), []))

    def close(self) -> None:
        if not self._over:
            self._end()
