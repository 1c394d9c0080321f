"""The answer of OpenAI's responses API: one object, or the events that build it item by item.

Agents take the answer only from the event ``response.output_item.done``. So each item ends with this event,
which contains the complete item. Events are numbered. ``response.created`` and the last event have the same
response id.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from inferd.client.messages import Event, MessageDone, Text, Thinking, ToolUse
from inferd.http import stream
from inferd.http.api.request import Dialect, Generation, reasoning_tokens
from inferd.http.failures import Failure

_SEPARATOR = "__"
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
)
_DEFAULTS: dict[str, Any] = {
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "text": {"format": {"type": "text"}},
    "metadata": {},
    "truncation": "disabled",
}


class Tools:
    """Maps tool names between the model and the client."""

    def __init__(self) -> None:
        self.custom: set[str] = set()
        self._namespaced: dict[str, tuple[str, str]] = {}

    def add_namespaced(self, namespace: str, name: str) -> str:
        """Adds a tool of a namespace. Returns the name under which the model sees the tool."""
        own = f"{namespace}{_SEPARATOR}{name}"
        self._namespaced[own] = (namespace, name)
        return own

    def model_name(self, name: str, namespace: str | None) -> str:
        return f"{namespace}{_SEPARATOR}{name}" if namespace else name

    def client_name(self, name: str) -> dict[str, str]:
        """Returns the ``name`` that the client uses for the tool, and the ``namespace`` if the tool has
        one."""
        if name in self._namespaced:
            namespace, own = self._namespaced[name]
            return {"name": own, "namespace": namespace}
        return {"name": name}


class Response(Dialect):
    """One response. ``body`` is the body of the request, because the response repeats some fields of the
    request."""

    api = "openai"
    media_type = stream.EVENT_STREAM

    def __init__(
        self, generation: Generation, tools: Tools, body: dict[str, Any], wants_encrypted: bool
    ) -> None:
        self.generation = generation
        self._tools = tools
        self._wants_encrypted = wants_encrypted
        echoed = {name: body.get(name) for name in _ECHOED}
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            **{name: _DEFAULTS.get(name) if value is None else value for name, value in echoed.items()},
            "model": generation.model,
            "store": False,
            "error": None,
            "incomplete_details": None,
        }
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[Mapping[str, Any]] = []

    # A stream.

    def start(self) -> bytes:
        begun = self._object("in_progress")
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    @property
    def silence(self) -> bytes:
        # Codex gives up five minutes after the last event; comments do not count.
        if not self._number:
            return stream.COMMENT  # the first events are sent before this comment
        return self._event("response.in_progress", response=self._object("in_progress"))

    def event(self, event: Event) -> bytes:
        if isinstance(event, ToolUse):
            return self._close() + self._call(event)
        kind = "message" if isinstance(event, Text) else "reasoning"
        begun = b"" if self._open is not None and self._open["type"] == kind else self._begin(kind)
        self._text.append(event.text)
        if isinstance(event, Thinking):
            return begun + self._part_event("response.reasoning_summary_text.delta", delta=event.text)
        self._logprobs += event.logprobs
        return begun + self._part_event(
            "response.output_text.delta", delta=event.text, logprobs=event.logprobs
        )

    def end(self, done: MessageDone) -> bytes:
        closed = self._close(_status(done))
        answer = self._finished(done)
        return closed + self._event(f"response.{answer['status']}", response=answer)

    def failed(self, failure: Failure) -> bytes:
        closed = self._close("incomplete")
        answer = {**self._object("failed"), "error": _error(failure)}
        return closed + self._event("response.failed", response=answer)

    def whole(self, done: MessageDone) -> dict[str, Any]:
        for event in _events(done):
            self.event(event)
        self._close(_status(done))
        return self._finished(done)

    def _finished(self, done: MessageDone) -> dict[str, Any]:
        status = _status(done)
        details = None if status == "completed" else {"reason": "max_output_tokens"}
        usage = {
            "input_tokens": done.input_tokens,
            "input_tokens_details": {"cached_tokens": done.cached_tokens},
            "output_tokens": done.output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens(done)},
            "total_tokens": done.input_tokens + done.output_tokens,
        }
        return {**self._object(status), "incomplete_details": details, "usage": usage}

    def _object(self, status: str) -> dict[str, Any]:
        return {**self._head, "status": status, "output": list(self._output), "usage": None}

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return stream.sse({"type": kind, "sequence_number": number, **values}, kind)

    def _item_event(self, kind: str, item: dict[str, Any]) -> bytes:
        return self._event(f"response.output_item.{kind}", output_index=len(self._output), item=item)

    def _part_event(self, kind: str, **values: Any) -> bytes:
        """Returns an event about the part of the open item. Each item has one part."""
        item = self._open or {}
        index = "content_index" if item["type"] == "message" else "summary_index"
        place = {"item_id": item["id"], "output_index": len(self._output), index: 0}
        return self._event(kind, **place, **values)

    # Items.

    def _begin(self, kind: str) -> bytes:
        closed = self._close()
        if kind == "message":
            item = {"id": _id("msg"), "type": "message", "role": "assistant", "content": []}
            part, name = _text_part(""), "response.content_part.added"
        else:
            item = {"id": _id("rs"), "type": "reasoning", "summary": []}
            part, name = {"type": "summary_text", "text": ""}, "response.reasoning_summary_part.added"
        self._open = {**item, "status": "in_progress"}
        return closed + self._item_event("added", self._open) + self._part_event(name, part=part)

    def _close(self, status: str = "completed") -> bytes:
        """Returns the events that end the open item with its whole text."""
        if self._open is None:
            return b""
        text, tokens = "".join(self._text), self._logprobs
        self._text, self._logprobs = [], []
        item = {**self._open, "status": status}
        if item["type"] == "message":
            part = _text_part(text, tokens)
            item["content"] = [part]
            told = self._part_event("response.output_text.done", text=text, logprobs=tokens)
            told += self._part_event("response.content_part.done", part=part)
        else:
            part = {"type": "summary_text", "text": text}
            item["summary"] = [part]
            item["content"] = [{"type": "reasoning_text", "text": text}]
            if self._wants_encrypted:
                item["encrypted_content"] = text
            told = self._part_event("response.reasoning_summary_text.done", text=text)
            told += self._part_event("response.reasoning_summary_part.done", part=part)
        return told + self._finish(item)

    def _finish(self, item: dict[str, Any]) -> bytes:
        told = self._item_event("done", item)
        self._output.append(item)
        self._open = None
        return told

    def _call(self, call: ToolUse) -> bytes:
        custom = call.name in self._tools.custom
        key, word = ("input", "custom_tool_call") if custom else ("arguments", "function_call")
        text = str(call.input.get("input", "")) if custom else orjson.dumps(call.input).decode()
        item: dict[str, Any] = {
            "id": _id("ctc" if custom else "fc"),
            "type": word,
            "status": "in_progress",
            "call_id": call.tool_call_id,
            **self._tools.client_name(call.name),
            key: "",
        }
        event = "response.custom_tool_call_input" if custom else "response.function_call_arguments"
        place = {"item_id": item["id"], "output_index": len(self._output)}
        told = self._item_event("added", item)
        told += self._event(f"{event}.delta", **place, delta=text)
        told += self._event(f"{event}.done", **place, **{key: text})
        return told + self._finish({**item, "status": "completed", key: text})


def _status(done: MessageDone) -> str:
    """Returns the status of an answer and of its last item."""
    return "incomplete" if done.stop_reason == "max_tokens" else "completed"


def _text_part(text: str, tokens: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _error(failure: Failure) -> dict[str, str]:
    """Returns the error of a response. Agents send the request again unless the code rules out a retry."""
    told = failure.openai()
    code = told["code"] or "server_error"
    if failure.kind in ("useless_answer", "invalid_request"):
        code = "invalid_prompt"
    return {"code": code, "message": failure.message}


def _events(done: MessageDone) -> Iterator[Event]:
    """Yields the events of an answer that was not streamed."""
    for block in done.content:
        if block["type"] == "text":
            yield Text(block["text"], done.logprobs)
        elif block["type"] == "thinking":
            yield Thinking(block["text"])
        else:
            yield ToolUse(block["tool_call_id"], block["name"], block["input"])
