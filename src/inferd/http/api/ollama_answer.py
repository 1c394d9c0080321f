"""Ollama's answers: one object, or a stream of objects, one on each line (NDJSON). The last object has
``done``, the token counts and the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from inferd.client.messages import Event, MessageDone, Text, Thinking
from inferd.http import stream
from inferd.http.api.request import Dialect, Generation, calls_of, text_of
from inferd.http.failures import Failure

_NS_PER_MS = 1_000_000


class OllamaAnswer(Dialect):
    """An answer of /api/chat or /api/generate. ``load`` is set for an empty request, which only loads or
    unloads the model. Its value, ``load`` or ``unload``, becomes the ``done_reason`` of the answer."""

    api = "ollama"
    media_type = stream.NDJSON

    def __init__(self, generation: Generation, *, chat: bool, load: str | None = None) -> None:
        self.generation = generation
        self.load = load
        self._chat = chat

    def start(self) -> bytes:
        return b""

    def loading(self, step: str) -> bytes:
        return stream.ndjson({**self._body(""), "status": f"loading the model: {step}"})

    def event(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return stream.ndjson(self._body(event.text) | _logprobs(event.logprobs))
        if isinstance(event, Thinking):
            return self._line("", thinking=event.text)
        return self._line("", tool_calls=[_call(event.tool_call_id, event.name, event.input, 0)])

    def end(self, done: MessageDone) -> bytes:
        return stream.ndjson({**self._body(""), **_figures(done)})

    def failed(self, failure: Failure) -> bytes:
        return stream.ndjson({"error": failure.ollama()})

    def whole(self, done: MessageDone) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if thinking := text_of(done, "thinking"):
            more["thinking"] = thinking
        if calls := calls_of(done):
            more["tool_calls"] = [
                _call(call["tool_call_id"], call["name"], call["input"], index)
                for index, call in enumerate(calls)
            ]
        told = self._body(text_of(done, "text"), **more)
        return {**told, **_logprobs(done.logprobs), **_figures(done)}

    def loaded(self) -> dict[str, Any]:
        """Returns the answer to a request that only loads or unloads the model."""
        return {**self._body(""), "done": True, "done_reason": self.load}

    def _line(self, text: str, **more: Any) -> bytes:
        return stream.ndjson(self._body(text, **more))

    def _body(self, text: str, **more: Any) -> dict[str, Any]:
        head = {"model": self.generation.model, "created_at": now(), "done": False}
        if self._chat:
            return {**head, "message": {"role": "assistant", "content": text, **more}}
        return {**head, "response": text, **more}


def _logprobs(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"logprobs": tokens} if tokens else {}


def now() -> str:
    """Returns the current time in Ollama's format."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _call(call_id: str, name: str, arguments: dict[str, Any], index: int) -> dict[str, Any]:
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": arguments}}


def _figures(done: MessageDone) -> dict[str, Any]:
    """Returns the token counts and the times at the end of an answer. Times are in nanoseconds."""
    times = done.timings
    prompt = round(times.get("prefill_ms", 0.0) * _NS_PER_MS)
    answer = round(times.get("decode_ms", 0.0) * _NS_PER_MS)
    return {
        "done": True,
        "done_reason": "length" if done.stop_reason == "max_tokens" else "stop",
        "total_duration": round(times.get("queue_ms", 0.0) * _NS_PER_MS) + prompt + answer,
        "load_duration": 0,
        "prompt_eval_count": done.input_tokens,
        "prompt_eval_duration": prompt,
        "eval_count": done.output_tokens,
        "eval_duration": answer,
    }
