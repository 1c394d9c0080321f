"""Converts a stream of raw text to events of text, thinking and tool calls.

The token loop delivers the raw text of the answer. If the request asks for log probabilities, the token loop
also delivers the records of the tokens. A parser of the model family's format reads the text. The parser runs
in a thread of the pool, because llama.cpp's parsers are slow: they read the whole answer again for every
piece.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from concurrent.futures import Executor

import orjson
from msgspec.structs import replace

from inferd import log
from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Frames, Text, Thinking, ToolUse
from inferd.engine.local.conversation import Reader
from inferd.engine.local.past.answers import Keeper, Turn
from inferd.engine.local.streams.token_records import RECORD_FRAMES, TokenRecords
from inferd.engine.requests import FrameTemplate, GenerateRequest
from inferd.errors import ToolCallMalformed

_log = log.get("llamacpp")

_RAW_FRAMES = FrameTemplate(b"", b"\n")
"""Each frame is a line: a piece of text, escaped as in a JSON string, so that it contains no newline."""


def raw_frames(request: GenerateRequest) -> FrameTemplate:
    """Returns the template of the frames that a :class:`TypedStream` reads for this request."""
    return _RAW_FRAMES if request.logprobs is None else RECORD_FRAMES


class TypedStream(Stream):
    """The parsed events of ``source``, whose frames have the template ``raw_frames(request)``. ``keeper``
    gets the whole answer.

    If the request requires a tool call and the answer has none, ``Done.tool_missing`` is set.
    """

    def __init__(
        self,
        source: Stream,
        reader: Reader,
        pool: Executor,
        request: GenerateRequest,
        keeper: Keeper | None = None,
    ) -> None:
        self._source = source
        self._reader = reader
        self._pool = pool
        self._tool_required = request.tool_choice == "required" or bool(request.tool_name)
        self._records = None if request.logprobs is None else TokenRecords(request.frame)
        self._events: deque[Event] = deque()
        self._chars = 0
        self._called = False
        self._keeper = keeper
        self._turn = Turn()

    async def __anext__(self) -> Event:
        while not self._events:
            event = await anext(self._source)
            if isinstance(event, Frames):
                await self._read(self._raw(event.data), last=False)
            elif isinstance(event, Done):
                if event.stop_reason in ("end", "stop"):
                    await self._read("", last=True)
                else:
                    self._events.extend(map(self._with_records, self._reader.cut()))
                self._events.append(self._end(event))
        return self._events.popleft()

    def _raw(self, data: bytes) -> str:
        if self._records is not None:
            return self._records.take(data)
        text: str = orjson.loads(b'"' + data.replace(b"\n", b"") + b'"')
        return text

    async def _read(self, text: str, *, last: bool) -> None:
        self._chars += len(text)
        loop = asyncio.get_running_loop()
        events = await loop.run_in_executor(self._pool, lambda: self._reader.feed(text, last=last))
        if events is None:
            if last:
                raise self._malformed()
            return  # the text does not parse yet; the end of the answer decides
        for event in events:
            if isinstance(event, ToolUse):
                event = self._checked(event)
                self._turn.calls.append(event.call)
            elif isinstance(event, Text):
                self._turn.text.append(event.text)
            elif isinstance(event, Thinking):
                self._turn.thinking.append(event.text)
            self._events.append(self._with_records(event))

    def _with_records(self, event: Event) -> Event:
        if self._records is None or not isinstance(event, Text):
            return event
        return self._records.shown(event, self._reader.places)

    def _checked(self, use: ToolUse) -> ToolUse:
        try:
            arguments = orjson.loads(use.call.arguments)
        except orjson.JSONDecodeError:
            raise self._malformed() from None
        if not isinstance(arguments, dict):
            raise self._malformed()
        self._called = True
        # Some families give calls no id. A generated id must be unique in the whole conversation.
        return use if use.call.id else ToolUse(replace(use.call, id=f"tc-{secrets.token_hex(4)}"))

    def _malformed(self) -> ToolCallMalformed:
        _log.warn("tool_call_malformed", answer_chars=self._chars)
        return ToolCallMalformed(
            "the model's answer is not in the format of its tool calls; ask again, or lower the temperature"
        )

    def _end(self, done: Done) -> Done:
        if self._keeper is not None:
            self._keeper.keep(self._turn)
        if self._called and done.stop_reason in ("end", "stop"):
            done = replace(done, stop_reason="tool_use")
        return replace(
            done,
            content=None,
            tool_missing=self._tool_required and not self._called,
            logprobs=b"" if self._records is None else self._records.late,
        )

    def prompt_read(self) -> float | None:
        return self._source.prompt_read()

    def cancel(self) -> None:
        self._source.cancel()

    def close(self) -> None:
        self._source.close()
