"""Assembles an answer from the event stream of Anthropic's Messages API.

A tool call becomes one event. Unknown kinds of events and blocks are ignored, as the API asks clients to do.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import orjson

from inferd.engine.events import Done, Event, StopReason, Text, Thinking, ToolUse, Usage
from inferd.engine.remote.http import UNREADABLE, Count, fault_of
from inferd.engine.requests import GenerateRequest, ToolCall
from inferd.errors import BackendInternal, InvalidRequest, ToolCallMalformed, Unavailable

_STOP_REASONS: dict[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_use",
    "refusal": "error",
}


class _Usage(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class _MessageStart(msgspec.Struct):
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""


class _Delta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Fault(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _MessageStart | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Fault | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Collects the parts of one answer while its events arrive."""

    def __init__(self, request: GenerateRequest) -> None:
        self._tool_required = request.tool_choice == "required" or bool(request.tool_name)
        self._called = self._malformed = False
        self._usage = _Usage()
        self._stop_reason = ""
        self._calls: dict[int, tuple[_Block, list[str]]] = {}

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yields the backend's events for one event of the API. The API's last event yields ``Done``.

        Raises InvalidRequest or Unavailable for an error that the server reports, ToolCallMalformed for a
        malformed tool call, and BackendInternal for a malformed event.
        """
        try:
            event = _decode(data)
        except UNREADABLE:
            raise BackendInternal(
                "the model's server sent an event that is not of the Messages API"
            ) from None
        if event.error is not None:
            raise fault(event.error.type, event.error.message)
        if event.message is not None:
            self._count(event.message.usage)
        self._count(event.usage)
        if event.content_block is not None:
            yield from self._begin(event.index, event.content_block)
        if event.delta is not None:
            yield from self._go_on(event.index, event.delta)
        if event.type == "content_block_stop" and event.index in self._calls:
            yield from self._call(*self._calls.pop(event.index))
        if event.type == "message_stop":
            yield self._end()

    def _count(self, usage: _Usage | None) -> None:
        """Records token counts. The counts of a later event replace the earlier counts."""
        if usage is not None:
            for name in usage.__struct_fields__:
                if (value := getattr(usage, name)) is not None:
                    setattr(self._usage, name, value)

    def _begin(self, index: int, block: _Block) -> Iterator[Event]:
        if block.type == "tool_use":
            self._calls[index] = block, []
        if block.thinking:
            yield Thinking(block.thinking)
        if block.text:
            yield Text(block.text)

    def _go_on(self, index: int, delta: _Delta) -> Iterator[Event]:
        if delta.stop_reason is not None:
            self._stop_reason = delta.stop_reason
        if delta.partial_json and index in self._calls:
            self._calls[index][1].append(delta.partial_json)
        if delta.thinking:
            yield Thinking(delta.thinking)
        if delta.text:
            yield Text(delta.text)

    def _call(self, block: _Block, pieces: list[str]) -> Iterator[Event]:
        """Yields the call if its arguments are a complete JSON object. For an incomplete call, ``_end``
        decides whether the token limit cut it off."""
        arguments = "".join(pieces) or "{}"
        try:
            whole = isinstance(orjson.loads(arguments), dict)
        except orjson.JSONDecodeError:
            whole = False
        if whole:
            self._called = True
            yield ToolUse(ToolCall(block.id, block.name, arguments))
        else:
            self._malformed = True

    def _end(self) -> Done:
        reason = _STOP_REASONS.get(self._stop_reason, "end")
        if self._malformed and reason != "length":
            raise ToolCallMalformed("the model's tool call is not a JSON object; ask again")
        usage = self._usage
        cached = usage.cache_read_input_tokens or 0
        prompt = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
        return Done(
            reason,
            Usage(prompt, usage.output_tokens or 0, cached),
            tool_missing=self._tool_required and not self._called,
        )


def fault(name: str, text: str) -> InvalidRequest | Unavailable:
    """Returns the error for a fault that the server reported in the middle of an answer."""
    name, text = fault_of({"code": name, "message": text})
    if name in ("invalid_request_error", "validationException"):
        return InvalidRequest(f"the model's server refused the request: {text or 'it gave no reason'}")
    return Unavailable(f"the model's server broke off the answer ({name or 'it gave no reason'})")
