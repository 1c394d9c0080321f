"""Tools and schemas on the demo model's own family."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inferd.engine.events import Done, Event, Frames, Text, ToolUse
from inferd.engine.local import generic_tools
from inferd.engine.local.streams.typed_stream import TypedStream
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message, Tool
from inferd.errors import InvalidRequest, ToolCallMalformed
from tests.demo_model import demo_model
from tests.unit.test_conversation import WEATHER, request, summary
from tests.unit.test_llamacpp import ask, backend, read

# On the real model.


async def collect(engine: Any, asked: GenerateRequest) -> tuple[list[Event], Done]:
    events: list[Event] = []
    async for event in await engine.generate(asked):
        if isinstance(event, Done):
            return events, event
        events.append(event)
    raise AssertionError("the stream ended without Done")


async def test_a_required_call_is_made_and_fits_its_schema() -> None:
    async with backend(demo_model()) as engine:
        events, done = await collect(engine, request(tools=(WEATHER,), tool_choice="required"))
        [use] = events
        assert isinstance(use, ToolUse)
        assert use.call.id.startswith("tc-")
        assert use.call.name == "get_weather"
        arguments = json.loads(use.call.arguments)
        assert list(arguments) == ["city"]
        assert isinstance(arguments["city"], str)
        assert done.stop_reason == "tool_use"
        assert not done.tool_missing


async def test_a_required_call_without_room_is_reported_missing() -> None:
    async with backend() as engine:
        asked = request(tools=(WEATHER,), tool_choice="required", max_tokens=3)
        events, done = await collect(engine, asked)
        assert (events, done.stop_reason, done.tool_missing) == ([], "length", True)


async def test_an_answer_without_a_call_is_text() -> None:
    async with backend() as engine:
        events, done = await collect(engine, request(tools=(WEATHER,), max_tokens=20, stop=("\n",)))
        assert summary(events)[1]
        assert all(isinstance(event, Text | ToolUse) for event in events)
        assert done.content is None


async def test_the_grammar_takes_over_where_the_marker_ends() -> None:
    async with backend(demo_model()) as engine:
        # The model's first turn leads it to the marker; the grammar determines the rest.
        asked = request(
            Message("user", f"Repeat exactly: {generic_tools.MARKER}"), tools=(WEATHER,), max_tokens=80
        )
        events, done = await collect(engine, asked)
        thinking, text, calls = summary(events)
        assert thinking == ""
        assert generic_tools.MARKER not in text
        assert [name for name, _ in calls] in ([], ["get_weather"])
        assert done.stop_reason in ("tool_use", "end", "length")


async def test_a_typed_request_without_tools_keeps_the_frames_of_the_loop() -> None:
    async with backend() as engine:
        asked = request(max_tokens=5, frame=FrameTemplate(b"<", b">"))
        events, _ = await collect(engine, asked)
        assert events
        assert all(isinstance(event, Frames) for event in events)


async def test_a_schema_that_no_grammar_can_express_is_refused() -> None:
    async with backend() as engine:
        lost = Tool("lost", "", '{"$ref":"#/nowhere"}')
        match = 'the input_schema of the tool "lost": the JSON Schema cannot be used'
        with pytest.raises(InvalidRequest, match=match):
            await engine.generate(request(tools=(WEATHER, lost), tool_choice="required"))


async def test_a_call_that_cannot_be_read_is_an_error_without_its_text() -> None:
    class Broken:
        places = ()

        def feed(self, text: str, *, last: bool) -> list[Event] | None:
            return None if last else []

        def cut(self) -> list[Event]:
            return []

    async with backend() as engine:
        source = await engine.generate(
            request(max_tokens=50, frame=FrameTemplate(b"", b"\n"), grammar='root ::= "no"')
        )
        with ThreadPoolExecutor(1) as pool:
            stream = TypedStream(source, Broken(), pool, request())
            with pytest.raises(ToolCallMalformed) as raised:
                await anext(stream)
        assert "no" not in str(raised.value).split()


async def test_the_reading_of_an_answer_delays_no_other_request() -> None:
    async with backend(demo_model(), n_parallel=1) as engine:
        gate = threading.Event()
        reading = engine._reading.submit(gate.wait)
        try:
            _, done = await read(await engine.generate(ask("Hi.", 1)))
            assert (done.stop_reason, reading.done()) == ("length", False)
        finally:
            gate.set()
