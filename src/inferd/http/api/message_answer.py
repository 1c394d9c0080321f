"""Anthropic's answer: one message, sent as a whole or as events."""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from inferd.client.messages import Event, MessageDone, Text, Thinking
from inferd.http import stream
from inferd.http.api.request import Dialect, Generation
from inferd.http.failures import Failure

_SIGNATURE = "inferd"
"""The API requires a signature of thinking; clients send it back and never check it."""


class MessageAnswer(Dialect):
    """One message. ``stops`` are the stop strings of the request."""

    api = "anthropic"
    media_type = stream.EVENT_STREAM
    silence = stream.sse({"type": "ping"}, "ping")

    def __init__(self, generation: Generation, stops: list[str]) -> None:
        self.generation = generation
        self._stops = stops
        self._id = f"msg_{uuid.uuid4().hex}"
        self._index = -1
        self._open = ""

    def start(self) -> bytes:
        usage = {**_usage(0, 0), "output_tokens": 0}
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=message)

    def event(self, event: Event) -> bytes:
        if isinstance(event, Text):
            begun = self._begin("text", {"type": "text", "text": ""})
            return begun + self._delta({"type": "text_delta", "text": event.text})
        if isinstance(event, Thinking):
            begun = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            return begun + self._delta({"type": "thinking_delta", "thinking": event.text})
        block = {"type": "tool_use", "id": event.tool_call_id, "name": event.name, "input": {}}
        whole = {"type": "input_json_delta", "partial_json": orjson.dumps(event.input).decode()}
        return self._close() + self._begin("tool_use", block) + self._delta(whole) + self._close()

    def end(self, done: MessageDone) -> bytes:
        closed = self._close()
        if self._index < 0:
            closed = self._begin("text", {"type": "text", "text": ""}) + self._close()
        reason, sequence = self._reason(done)
        usage = {**_usage(done.input_tokens, done.cached_tokens), "output_tokens": done.output_tokens}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return closed + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def failed(self, failure: Failure) -> bytes:
        return _event("error", error=failure.anthropic())

    def whole(self, done: MessageDone) -> dict[str, Any]:
        reason, sequence = self._reason(done)
        usage = {**_usage(done.input_tokens, done.cached_tokens), "output_tokens": done.output_tokens}
        return {
            **self._head(),
            "content": [_block(block) for block in done.content],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self.generation.model}

    def _reason(self, done: MessageDone) -> tuple[str, str | None]:
        if done.stop_reason == "stop_sequence":
            # The daemon does not report which of several strings matched.
            return "stop_sequence", self._stops[0] if len(self._stops) == 1 else None
        asked = self.generation.max_tokens
        if done.stop_reason == "max_tokens" and asked is not None and done.output_tokens < asked:
            return "model_context_window_exceeded", None
        return done.stop_reason, None

    # Blocks of a stream.

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        closed = self._close()
        self._open = kind
        self._index += 1
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        kind, self._open = self._open, ""
        if not kind:
            return b""
        signed = b""
        if kind == "thinking":
            signed = self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        return signed + _event("content_block_stop", index=self._index)


def _event(kind: str, **values: Any) -> bytes:
    return stream.sse({"type": kind, **values}, kind)


def _usage(input_tokens: int, cached_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": input_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
    }


def _block(block: Any) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    if block["type"] == "thinking":
        return {"type": "thinking", "thinking": block["text"], "signature": _SIGNATURE}
    return {"type": "tool_use", "id": block["tool_call_id"], "name": block["name"], "input": block["input"]}
