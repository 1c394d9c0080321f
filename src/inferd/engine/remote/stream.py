"""The answer of a remote backend as a stream of events.

A separate task reads the answer, so that ``cancel`` and ``close`` return at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Timings, ToolUse, Usage

# The reader waits when the consumer is this many events behind.
_EVENTS_AHEAD = 64


class RemoteStream(Stream):
    """The events of ``source``, a generator that reads an answer from a server.

    ``source`` sends the request when its first event is requested. Closing the stream closes ``source`` and
    its connection. ``source`` may be up to ``_EVENTS_AHEAD`` events ahead of the consumer. ``running``
    contains this stream until ``source`` ends.
    """

    def __init__(self, source: AsyncGenerator[Event, None], running: set[RemoteStream]) -> None:
        self._running = running
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._reading = True
        self._complete = self._cancelled = self._closed = self._leaving = False
        self._failure: BaseException | None = None
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._pieces = 0
        running.add(self)
        self._task = asyncio.ensure_future(self._read(source))
        self._task.add_done_callback(self._end)

    async def _read(self, source: AsyncGenerator[Event, None]) -> None:
        async with aclosing(source):
            async for event in source:
                self._events.append(self._noted(event))
                self._news.set()
                if isinstance(event, Done):
                    self._complete = True
                    return
                while len(self._events) >= _EVENTS_AHEAD:
                    self._room.clear()
                    await self._room.wait()

    def _noted(self, event: Event) -> Event:
        if isinstance(event, Done):
            return self._measured(event)
        self._pieces += 1
        self._last = time.monotonic()
        # A tool call arrives whole. If it comes first, its time says nothing about the speed of the tokens.
        if self._first is None and not isinstance(event, ToolUse):
            self._first = self._last
        return event

    def _measured(self, done: Done) -> Done:
        if done.timings is not None:  # the server reported them
            return done
        first, last = self._first, self._last
        if first is None:
            first = last = time.monotonic()
        ttft_ms, decode_ms = (first - self._began) * 1e3, (last - first) * 1e3
        tokens = done.usage.completion_tokens
        rate = (tokens - 1) / decode_ms * 1e3 if tokens > 1 and decode_ms > 0 else 0.0
        return replace(done, timings=Timings(ttft_ms, decode_ms, ttft_ms, rate))

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(self)
        self._reading = False
        if not task.cancelled():
            self._failure = task.exception()
        elif self._cancelled and not (self._complete or self._closed):
            # The server counts tokens only at the end; until then each chunk counts as one.
            self._events.append(self._measured(Done("cancelled", Usage(0, self._pieces))))
        self._news.set()

    async def __anext__(self) -> Event:
        while not self._events:
            if not self._reading or self._closed:
                failure, self._failure = self._failure, None
                raise failure or StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._events.popleft()

    def cancel(self) -> None:
        if self._reading:
            self._cancelled = True
            self._leave()

    def close(self) -> None:
        self._closed = True
        self._events.clear()
        self._news.set()
        self._leave()

    def _leave(self) -> None:
        """Cancels the task that reads the answer, at most once. A second cancel would interrupt the task's
        cleanup."""
        if not self._leaving:
            self._leaving = True
            self._task.cancel()

    async def closed(self) -> None:
        """Closes the stream and waits until its task has ended."""
        self.close()
        await asyncio.wait((self._task,))
