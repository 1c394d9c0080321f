"""Streams generated answers: writes each event of a backend's stream to the client as the event arrives.

The surfaces v1 and v2 differ in the form of their frames. A :class:`Writer` encodes the frames of one answer.
A backend may itself make text frames from the writer's template; these frames are sent unchanged.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from msgspec.structs import asdict

from inferd.engine.backend import Backend
from inferd.engine.events import Done, Frames, Text, Thinking, ToolUse, Usage
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from inferd.errors import AnswerUnread, Unavailable
from inferd.serve.observe.metrics import BackendMetrics
from inferd.serve.surface import R, RequestContext, Surface
from inferd.wire import sampling

# An answer is kept until its end, for the last frame or because the client wants no stream. An upstream that
# never stops must not fill the memory, and no client reads a longer line.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


class Writer(Protocol):
    """Encodes the frames of one answer. ``template`` is the form of a text frame, or ``None`` if the client
    wants no stream."""

    template: FrameTemplate | None

    def event(self, event: Text | Thinking | ToolUse) -> bytes:
        """Returns the frames to send to the client now, or ``b""`` if no frame is to be sent for ``event``
        yet."""

    def end(self, done: Done, backend: Backend, timings: dict[str, float] | None) -> bytes:
        """Returns the remaining frames of the answer, up to the ``done`` frame. ``timings`` are in
        milliseconds."""


class Generation(Surface[R]):
    """A surface on which a model generates the answers: v1 or v2."""

    @abstractmethod
    def writer(self, request: R) -> Writer: ...

    @abstractmethod
    def engine_request(self, request: R, template: FrameTemplate | None, scope: str = "") -> GenerateRequest:
        """Converts a valid request of a client into a backend request. Requests with the same ``scope`` may
        share KV caches. Call this method only once for a request, since the conversion may free the contents
        of the request's attachments."""

    async def answer(
        self, context: RequestContext[R], backend: Backend, metrics: BackendMetrics
    ) -> dict[str, object]:
        writer = self.writer(context.request)
        if context.interruption is not None:
            done = Done("cancelled", Usage(0, 0))
        else:
            done = await self._stream(context, backend, writer, metrics)
            _count(done, metrics)
            if isinstance(context.interruption, AnswerUnread):
                raise context.interruption
        timings = _timings(context, done)
        context.conn.write(writer.end(done, backend, timings))
        return {
            "stop_reason": done.stop_reason,
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "cached_tokens": done.usage.cached_tokens,
            "ttft_ms": None if timings is None else timings["ttft_ms"],
        }

    async def _stream(
        self, context: RequestContext[R], backend: Backend, writer: Writer, metrics: BackendMetrics
    ) -> Done:
        """Writes the backend's events to the client, and returns the last event."""
        conn = context.conn
        stream = await backend.generate(await self._asked(context, writer.template))
        clock = time.monotonic
        last = 0.0
        size = 0
        try:
            context.on_interrupt(stream.cancel)
            context.prompt_read = stream.prompt_read
            stream.on_wait = context.wait_upstream
            async for event in stream:
                if isinstance(event, Done):
                    return event
                now = clock()
                if context.tokens:
                    metrics.inter_token.observe(now - last)
                else:
                    context.streaming = True
                    metrics.ttft.observe(now - context.arrived)
                last = now
                size += _size(event)
                if size > MAX_ANSWER_BYTES:
                    raise Unavailable(f"the answer has more than {MAX_ANSWER_BYTES} bytes; it was ended")
                if isinstance(event, Frames):
                    context.tokens += event.data.count(b"\n")
                    conn.write(event.data)
                else:
                    context.tokens += 1
                    if data := writer.event(event):
                        conn.write(data)
                context.engine_request = None  # no retry follows; the texts may be large
                if conn.blocked:
                    await context.let_client_read()
                    last = clock()
        finally:
            stream.on_wait = None  # else stream and context would keep each other alive
            stream.close()
        context.streaming = True
        raise Unavailable("backend ended stream without terminal frame")

    async def _asked(self, context: RequestContext[R], template: FrameTemplate | None) -> GenerateRequest:
        """Returns the request to the backend. The client's request is converted only once: a retry of the
        request gets the same converted request."""
        if context.engine_request is None:
            asked = context.request, template, context.scope
            if context.large:
                context.engine_request = await asyncio.to_thread(self.engine_request, *asked)
            else:
                context.engine_request = self.engine_request(*asked)
        return context.engine_request


# How much of a message identifies its conversation. A system message may be long and the same in all
# conversations; the user's first message then tells the conversations apart.
HEAD_CHARS = 4096


def head_of(session: str | None, texts: Iterable[str]) -> Hashable:
    """Returns a key that is the same for all turns of a conversation. The key is the name ``session``. If
    ``session`` is empty or ``None``, the key is the beginning of each of the first two ``texts``."""
    return session or tuple(text[:HEAD_CHARS] for text in itertools.islice(texts, 2))


def _size(event: Frames | Text | Thinking | ToolUse) -> int:
    if isinstance(event, Frames):
        return len(event.data)
    return len(event.call.arguments if isinstance(event, ToolUse) else event.text)


def _count(done: Done, metrics: BackendMetrics) -> None:
    usage, timings = done.usage, done.timings
    metrics.prompt_tokens += usage.prompt_tokens
    metrics.completion_tokens += usage.completion_tokens
    metrics.cached_tokens += usage.cached_tokens
    if done.cache is not None:
        if done.cache.miss:
            metrics.cache_misses[done.cache.miss] += 1
        else:
            metrics.cache_hits += 1
        metrics.cache_bytes = done.cache.held_bytes
        metrics.cache_tokens = done.cache.held_tokens
    if done.drafts is not None:
        metrics.drafted_tokens += done.drafts.drafted
        metrics.accepted_tokens += done.drafts.accepted
    if timings is not None:
        computed = usage.prompt_tokens - usage.cached_tokens
        # The time of an aborted prompt would give a wrong speed.
        if computed > 0 and timings.prefill_ms > 0 and usage.completion_tokens:
            metrics.prefill.observe(computed / timings.prefill_ms * 1e3)
        if timings.tokens_per_second > 0:
            metrics.decode.observe(timings.tokens_per_second)


def _timings(context: RequestContext[R], done: Done) -> dict[str, float] | None:
    """Returns the timings to send to the client, or ``None`` if the backend measures no times. Times are in
    milliseconds."""
    if done.timings is None:
        return None
    times = {name: round(value, 3) for name, value in asdict(done.timings).items()}
    return {"queue_ms": round(context.queue_ms, 3), **times}


def generate_request(
    request: sampling.Sampling,
    messages: Sequence[Message],
    template: FrameTemplate | None,
    scope: str,
    **own: Any,
) -> GenerateRequest:
    """Converts a valid request into a backend request. ``own`` has the fields that v1 and v2 set
    differently."""
    return GenerateRequest(
        messages=tuple(messages),
        max_tokens=request.max_tokens,
        sampling=request.params(),
        stop=tuple(request.stop or ()),
        grammar=request.grammar,
        schema_lenient=bool(request.schema_lenient),
        session=request.session or "",
        scope=scope,
        cache=request.cache is not False,
        priority=request.priority or "interactive",
        frame=template,
        lora=request.lora or "",
        **own,
    )
