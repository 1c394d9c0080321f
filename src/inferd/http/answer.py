"""Sends the HTTP response to a generation request: converts the daemon's events to the bytes of one API.

Nothing is sent before the first event or keep-alive, so that an earlier error can still set the HTTP status.
If the client closes its connection, the bridge cancels the request in the daemon, which frees the request's
slot within one decode step. A stream always ends with the final event of its API, or with an error in the
form of this API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.types import Message, Receive, Send

from inferd import log
from inferd.client.messages import Event, MessageDone, ToolUse
from inferd.errors import InferdError
from inferd.http import body, failures
from inferd.http.api.request import Dialect
from inferd.http.exchange import Exchange
from inferd.http.failures import Failure
from inferd.http.upstream import Reply
from inferd.wire.bounds import QUEUE_STEPS

SILENCE_SECS = 10.0
"""A stream sends a keep-alive after this many seconds without output."""

LOAD_SECS = 1.0
"""The same limit while the model is loading. The keep-alive then shows the step of the load. If the load
fails before the first keep-alive, the error can still set the status of the response."""

STEPS = {
    "waiting": "waiting for memory",
    "checking_local": "opening the file",
    "verify": "verifying the file",
    "mmap": "reading the file",
    "kv_cache": "making room for the context",
}

STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

_log = log.get("http")


class Answer:
    """Sends the daemon's reply as an HTTP response in the format of ``dialect``. ``send`` is the ASGI
    callable."""

    _reply: Reply

    def __init__(self, dialect: Dialect, exchange: Exchange, send: Send) -> None:
        self._dialect = dialect
        self._exchange = exchange
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._opened = False
        self._last_sent = 0.0
        self._calls = 0
        self._step = ""
        self._alarm: asyncio.TimerHandle | None = None
        self._keep_alive: asyncio.Task[None] | None = None

    async def serve(self, reply: Reply, receive: Receive) -> None:
        """Sends the whole response."""
        self._reply = reply
        watch = self._loop.create_task(self._close_when_gone(receive))
        try:
            if self._streams:
                self._break_silence()
                await self._stream()
            else:
                await self._whole()
        finally:
            watch.cancel()
            if self._alarm is not None:
                self._alarm.cancel()
            if self._keep_alive is not None:
                self._keep_alive.cancel()
            await reply.aclose()

    def show_load(self, phase: str, details: Mapping[str, Any]) -> None:
        """Records a step of loading the model. The keep-alives of a streamed answer show this step to the
        client."""
        if phase in QUEUE_STEPS:
            return
        before, share = self._step, details.get("progress")
        self._step = "" if phase == "loaded" else STEPS.get(phase, phase)
        if self._step and isinstance(share, float):
            self._step += f", {round(100 * share)} %"
        if self._streams and self._step and not before:
            self._break_silence()

    @property
    def _streams(self) -> bool:
        return self._dialect.generation.stream

    async def _close_when_gone(self, receive: Receive) -> None:
        await body.until_gone(receive)
        self._exchange.gone = True
        await self._reply.aclose()

    async def _whole(self) -> None:
        done: MessageDone | None = None
        failure: Failure | None = None
        try:
            async for event in self._reply:
                if isinstance(event, MessageDone):
                    done = event
                    if (ttft_ms := done.timings.get("ttft_ms")) is not None:
                        self._exchange.ttft_secs = ttft_ms / 1e3
        except Exception as error:
            failure = self._failure_of(error)
        if done is not None:
            self._exchange.count(done)
            failure = self._early_end(done)
        if failure is not None:
            await send_failure(self._send, failure, self._exchange)
        elif done is not None:
            answer = self._dialect.whole(self._without_extra_calls(done))
            await send_json(self._send, answer, self._exchange)

    async def _stream(self) -> None:
        failure: Failure | None = None
        done: MessageDone | None = None
        try:
            async for event in self._reply:
                self._exchange.first_token()
                if isinstance(event, MessageDone):
                    done = event
                elif data := self._told(event):
                    await self._write(data)
        except Exception as error:
            failure = self._failure_of(error)
        if done is not None:
            self._exchange.count(done)
            failure = self._early_end(done)
        if failure is not None and not self._opened:
            await send_failure(self._send, failure, self._exchange)
        elif failure is not None:
            self._exchange.error = failure.kind
            await self._write(self._dialect.failed(failure), last=True)
        elif done is not None:
            await self._write(self._dialect.end(self._without_extra_calls(done)), last=True)

    def _told(self, event: Event) -> bytes:
        if isinstance(event, ToolUse):
            self._calls += 1
            if self._calls > 1 and self._dialect.generation.one_call:
                return b""
        return self._dialect.event(event)

    def _without_extra_calls(self, done: MessageDone) -> MessageDone:
        if not self._dialect.generation.one_call:
            return done
        calls = [block for block in done.content if block["type"] == "tool_use"]
        kept = tuple(block for block in done.content if block not in calls[1:])
        return replace(done, content=kept)

    def _early_end(self, done: MessageDone) -> Failure | None:
        if done.stop_reason == "cancelled":
            return failures.cancelled(had_deadline=self._exchange.asker.deadline_ms is not None)
        if done.stop_reason == "error":
            return Failure(kind="internal", message="the model failed before the answer was complete")
        return None

    def _failure_of(self, error: Exception) -> Failure:
        if not isinstance(error, InferdError):
            _log.error("request_failed", id=self._exchange.id, error=log_line(error))
        return failures.of(error)

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        """Sends a chunk of a stream. Before the first chunk, sends the headers and the first event of the
        API."""
        self._last_sent = self._loop.time()
        if not self._opened:
            self._opened = True
            self._exchange.status = 200
            headers = [(b"content-type", self._dialect.media_type.encode()), *STREAM_HEADERS]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            data = self._dialect.start() + data
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _write_keep_alive(self) -> None:
        if data := self._dialect.loading(self._step) if self._step else self._dialect.silence:
            await self._write(data)

    def _break_silence(self) -> None:
        """Sends a keep-alive if the stream has been silent for too long, and sets the timer for the next
        check."""
        now, limit = self._loop.time(), LOAD_SECS if self._step else SILENCE_SECS
        if self._alarm is None:
            self._last_sent = now
        else:
            self._alarm.cancel()
        if now - self._last_sent >= limit:
            self._last_sent = now
            if self._keep_alive is None or self._keep_alive.done():
                self._keep_alive = self._loop.create_task(self._write_keep_alive())
        self._alarm = self._loop.call_at(self._last_sent + limit, self._break_silence)


def log_line(error: Exception) -> str:
    """Describes an unexpected exception by class and location. The message is left out, since it may quote a
    prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"


async def send_json(
    send: Send, value: object, exchange: Exchange, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Sends a JSON response as a whole."""
    data = orjson.dumps(value)
    exchange.status = status
    start: Message = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            *((name.encode(), text.encode()) for name, text in (headers or {}).items()),
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": data})


async def send_failure(send: Send, failure: Failure, exchange: Exchange) -> None:
    """Sends an error response in the form of the request's API."""
    exchange.error = failure.kind
    told = failure.body(exchange.api, exchange.id)
    await send_json(send, told, exchange, failure.status(exchange.api), dict(failure.headers()))
