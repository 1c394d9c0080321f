"""Assembles an answer from the chunks of OpenAI's chat completions.

Tool calls come in chunks, too. Each tool call becomes one event, which follows after the end of the server's
stream. If the server sends no usage data, each text chunk counts as one token.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import orjson

from inferd.engine.events import Done, Event, StopReason, Text, Thinking, ToolUse, Usage
from inferd.engine.remote.http import fault_of, refusal
from inferd.engine.requests import ToolCall
from inferd.errors import InferdError, ToolCallMalformed, Unavailable

END = "[DONE]"
"""The data of a server's last event."""

_MAX_COUNT = 2**53
_STOP_REASONS: dict[str, StopReason] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "error",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPiece(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # of an answer without streaming
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class _Call:
    """A tool call, as received so far."""

    def __init__(self, call_id: str) -> None:
        self.id = call_id
        self.name = ""
        self.arguments = ""


class Answer:
    """Collects the chunks of an answer. Errors name the server as ``host``. With ``tool_required``, the
    answer must call a tool."""

    def __init__(self, host: str, *, tool_required: bool) -> None:
        self._host = host
        self._tool_required = tool_required
        self._finish: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._calls: list[_Call] = []
        self._at_index: dict[int, _Call] = {}
        self._pieces = 0

    @property
    def finished(self) -> bool:
        """Whether the server has reported the finish reason. The token counts may follow later."""
        return self._finish is not None

    def feed(self, data: str) -> Iterator[Event]:
        """Yields the events of one chunk. ``END`` ends the answer even if the server has sent no finish
        reason.

        Raises the error that the chunk reports, or one of the exceptions in ``UNREADABLE`` if the chunk is
        malformed.
        """
        if data == END:
            self._finish = self._finish or "stop"
            return
        chunk = _decoder.decode(data)
        if chunk.error is not None:
            raise self._failure(chunk.error)
        if isinstance(chunk.usage, dict):
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.index == 0:
                yield from self._take(choice)

    def _failure(self, error: Any) -> InferdError:
        status = error.get("code") if isinstance(error, dict) else None
        if isinstance(status, int) and 400 <= status < 600:
            said = {key: value for key, value in error.items() if isinstance(value, str)}
            return refusal(self._host, status, {}, orjson.dumps({"error": said}))
        name, _ = fault_of(error)
        return Unavailable(f"{self._host} broke off its answer{f' ({name})' if name else ''}")

    def _take(self, choice: _Choice) -> Iterator[Event]:
        delta = choice.delta or choice.message or _Delta()
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self._pieces += 1
            yield Thinking(thought)
        if delta.content:
            self._pieces += 1
            yield Text(delta.content)
        for piece in delta.tool_calls or ():
            self._gather(piece)
        self._finish = choice.finish_reason or self._finish

    def _gather(self, piece: _CallPiece) -> None:
        function = piece.function or _Function()
        index = piece.index
        if index is None:  # some servers send each call whole, without an index
            index = len(self._calls) - (0 if piece.id or function.name or not self._calls else 1)
        call = self._at_index.get(index)
        if call is None or (piece.id and call.id and piece.id != call.id):
            call = self._at_index[index] = _Call(piece.id or "")
            self._calls.append(call)
        call.id = call.id or piece.id or ""
        call.name = call.name or function.name or ""
        if isinstance(function.arguments, dict):
            call.arguments = orjson.dumps(function.arguments).decode()
        else:
            call.arguments += function.arguments or ""

    def end(self) -> Iterator[Event]:
        """Yields the tool calls and ``Done`` after the end of the server's stream, or nothing if the answer
        is unfinished.

        Raises ToolCallMalformed for a call that cannot be read, unless the token limit cut it off.
        """
        if self._finish is None:
            return
        reason = _STOP_REASONS.get(self._finish, "end")
        called = False
        for call in self._calls:
            whole = _whole(call)
            if whole is not None:
                called = True
                yield ToolUse(whole)
            elif reason != "length":
                raise ToolCallMalformed(
                    f"{self._host} sent a tool call that cannot be read; ask again, or lower the temperature"
                )
        if called and reason == "end":
            reason = "tool_use"
        elif reason == "tool_use" and not called:
            reason = "end"
        yield Done(reason, self._counted(), tool_missing=self._tool_required and not called)

    def _counted(self) -> Usage:
        usage = self._usage
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        completion = _number(usage.get("completion_tokens"))
        return Usage(
            _number(usage.get("prompt_tokens")) or 0,
            self._pieces if completion is None else completion,
            _number(cached) or 0,
        )


def _number(count: object) -> int | None:
    """Returns a token count as an integer, or ``None`` if ``count`` is not a valid count. Some servers send
    floats, others null."""
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    return count if isinstance(count, int) and 0 <= count <= _MAX_COUNT else None


def _whole(call: _Call) -> ToolCall | None:
    """Returns the call, or ``None`` if it has no name or its arguments are not a JSON object. Missing
    arguments count as an empty object."""
    arguments = call.arguments.strip() or "{}"
    try:
        is_object = isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return None
    if not is_object or not call.name:
        return None
    return ToolCall(call.id or f"tc-{secrets.token_hex(4)}", call.name, arguments)
