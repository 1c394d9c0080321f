"""The stream of a remote backend: its events, its end, and its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from inferd.engine.events import Done, Event, Text, ToolUse, Usage
from inferd.engine.remote.stream import RemoteStream
from inferd.engine.requests import ToolCall
from inferd.errors import Unavailable
from tests.in_process import until

# Streams.

DONE = Done("end", Usage(2, 3))


class Source:
    """A source of given events; it raises an exception among them."""

    def __init__(self, *events: Event | Exception) -> None:
        self.events = asyncio.Queue[Event | Exception]()
        for event in events:
            self.events.put_nowait(event)
        self.given = 0
        self.leaving = asyncio.Event()
        self.leaving.set()
        self.left = False
        self.running: set[RemoteStream] = set()
        self.stream = RemoteStream(self._give(), self.running)

    async def _give(self) -> AsyncGenerator[Event, None]:
        try:
            while True:
                event = await self.events.get()
                if isinstance(event, Exception):
                    raise event
                self.given += 1
                yield event
        finally:
            await self.leaving.wait()
            self.left = True

    async def rest(self) -> list[Event]:
        """The remaining events of the stream; the source must have ended, too."""
        found = [event async for event in self.stream]
        await until(lambda: not self.running)
        assert self.left or not self.given
        return found


async def test_events_come_with_their_times() -> None:
    source = Source(Text("a"), Text("b"), DONE)
    *texts, done = await source.rest()
    assert texts == [Text("a"), Text("b")]
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("end", Usage(2, 3))
    times = done.timings
    assert times is not None
    assert 0 <= times.ttft_ms == times.prefill_ms
    assert times.decode_ms >= 0


async def test_calls_alone_say_nothing_of_the_speed() -> None:
    calls = [ToolUse(ToolCall(name, "f", "{}")) for name in "ab"]
    source = Source(*calls, Done("tool_use", Usage(2, 30)))
    *_, done = await source.rest()
    assert isinstance(done, Done)
    assert done.timings is not None
    assert done.timings.tokens_per_second == done.timings.decode_ms == 0


async def test_bytes_after_the_end_are_not_waited_for() -> None:
    source = Source(DONE)
    assert len(await source.rest()) == 1
    assert source.given == 1


async def test_a_failure_follows_the_earlier_events() -> None:
    source = Source(Text("a"), Unavailable("gone"))
    assert await anext(source.stream) == Text("a")
    with pytest.raises(Unavailable, match="gone"):
        await anext(source.stream)
    assert await source.rest() == []


async def test_an_end_without_done_is_an_end() -> None:
    async def two() -> AsyncGenerator[Event, None]:
        yield Text("a")

    assert [event async for event in RemoteStream(two(), set())] == [Text("a")]


async def test_cancel_keeps_received_events() -> None:
    source = Source(Text("a"), Text("b"))
    await until(lambda: source.given == 2)
    source.stream.cancel()
    source.stream.cancel()
    *texts, done = await source.rest()
    assert texts == [Text("a"), Text("b")]
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("cancelled", Usage(0, 2))


async def test_cancel_before_anything_has_begun() -> None:
    source = Source()
    source.stream.cancel()
    (done,) = await source.rest()
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("cancelled", Usage(0, 0))


async def test_cancel_after_the_end_changes_nothing() -> None:
    source = Source(DONE)
    await until(lambda: source.given == 1)
    source.stream.cancel()
    (done,) = await source.rest()
    assert isinstance(done, Done)
    assert done.stop_reason == "end"
    source.stream.cancel()
    assert await source.rest() == []


async def test_cancel_while_the_source_is_left_makes_no_second_end() -> None:
    source = Source(DONE)
    source.leaving.clear()
    await until(lambda: source.given == 1)
    source.stream.cancel()
    await until(lambda: not source.running)
    (done,) = [event async for event in source.stream]
    assert isinstance(done, Done)
    assert done.stop_reason == "end"


@pytest.mark.parametrize("given", [0, 1])
async def test_close_leaves_the_source_at_once(given: int) -> None:
    source = Source(*[Text("a")] * given)
    await until(lambda: source.given == given)
    waiting = asyncio.ensure_future(source.rest())
    await asyncio.sleep(0)
    source.stream.close()
    source.stream.close()
    assert len(await waiting) <= given
    assert await source.rest() == []


async def test_closed_returns_when_the_source_is_left() -> None:
    source = Source(Text("a"))
    await until(lambda: source.given == 1)
    await source.stream.closed()
    assert source.left
    assert not source.running


async def test_a_slow_consumer_slows_the_source() -> None:
    source = Source(*[Text("a")] * 1000, DONE)
    await until(lambda: source.given >= 1)
    for _ in range(2000):
        await asyncio.sleep(0)
    assert source.given < 100
    assert len(await source.rest()) == 1001
