"""One connection, read from top to bottom: the key, then request after request until the client leaves.

A request goes parse → validate → admission → dispatch → generate → stream, and ends with exactly one terminal
frame; this file alone writes error frames. A client that goes away cancels the session's task wherever it
stands, and leaving the ``with`` blocks gives everything back: the place in the queue, the backend's slot, the
breaker's probe. After a cancellation by the client nothing is written any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from dataclasses import dataclass, field
from typing import Generic, cast

from inferd import log
from inferd.engine.backend import Backend, Done, Frames, GenerateRequest, Stream, Text, Usage
from inferd.errors import (
    AdmissionClosed,
    BackendInternal,
    DecodeError,
    FrameTooLarge,
    InferdError,
    QueueFull,
    Unavailable,
)
from inferd.fastpath import token_frame
from inferd.serve import auth, faults, peer
from inferd.serve.admission import Admission
from inferd.serve.connection import Connection
from inferd.serve.hangup import HangupWatch
from inferd.serve.router import Router
from inferd.serve.surface import R, Surface

# An id is the client's own text, as long as a line may be; the log is to recognise it, not to keep it.
_LOGGED_ID_CHARS = 128

_log = log.get("session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Generic[R]):
    """What all sessions of a surface share. ``api_key`` is asked for on TCP alone."""

    surface: Surface[R]
    admission: Admission
    router: Router
    hangups: HangupWatch
    api_key: auth.ApiKey | None
    max_frame_bytes: int
    write_timeout_secs: float
    sessions: set[Session[R]] = field(default_factory=set)

    async def serve(self, sock: socket.socket, number: int) -> None:
        """Serves an accepted socket until it is closed; ``number`` names the connection in the log."""
        session = Session(self, sock, number)
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)

    def interrupt(self) -> None:
        """Ends every request that runs or waits with ``done``/``cancelled``."""
        for session in self.sessions:
            session.interrupt()
        self.admission.let_all_through()


class _Course(Generic[R]):
    """How far one request has come."""

    __slots__ = ("arrived", "backend", "queue_ms", "request", "streaming")

    def __init__(self, request: R, arrived: float) -> None:
        self.request = request
        self.arrived = arrived
        self.queue_ms = 0.0
        self.backend: str | None = None
        self.streaming = False

    def timings(self, done: Done) -> dict[str, float] | None:
        """What the client is told, in milliseconds; ``None`` from a backend that measures nothing."""
        if done.timings is None:
            return None
        times = {name: round(value, 3) for name, value in dataclasses.asdict(done.timings).items()}
        return {"queue_ms": round(self.queue_ms, 3), **times}

    def fields(self) -> dict[str, object]:
        """What the log says about the request."""
        return {
            "req_id": self.request.id[:_LOGGED_ID_CHARS],
            "backend": self.backend,
            "queue_ms": round(self.queue_ms, 3),
            "total_ms": round(_ms_since(self.arrived), 3),
        }


def _ms_since(start: float) -> float:
    return (time.monotonic() - start) * 1e3


def _this_task() -> asyncio.Task[None]:
    return cast("asyncio.Task[None]", asyncio.current_task())


class Session(Generic[R]):
    """The conversation over one connection."""

    def __init__(self, service: Service[R], sock: socket.socket, number: int) -> None:
        self._service = service
        self._surface = service.surface
        self._sock = sock
        self._peer = peer.of(sock)
        self._log_fields = {"surface": service.surface.name, "conn": number, **self._peer.fields()}
        self._conn = Connection(service.max_frame_bytes, service.write_timeout_secs, service.hangups)
        self._first_line = True
        self._stream: Stream | None = None
        self._interrupted = False

    async def run(self) -> None:
        """Returns when the socket is closed. A first cancel closes it behind the last write, a second now."""
        _log.info("connection_accepted", **self._log_fields)
        conn = self._conn
        try:
            if await conn.open(self._sock, _this_task().cancel):
                with contextlib.suppress(asyncio.CancelledError):
                    await self._converse()
                await conn.close()
        finally:
            _log.info("connection_closed", reason=conn.gone_because or "end", **self._log_fields)

    def interrupt(self) -> None:
        """Ends the request that runs or waits with ``done``/``cancelled``."""
        self._interrupted = True
        if self._stream is not None:
            self._stream.cancel()

    async def _converse(self) -> None:
        key = self._service.api_key
        if key is not None and self._peer.transport == "tcp" and not await self._authenticate(key):
            return
        try:
            while (line := await self._conn.next_line()) is not None:
                if not await self._answer(line):
                    await self._conn.linger()
                    return
                if self._conn.blocked:
                    await self._conn.writable()
        except FrameTooLarge as error:
            _log.warn("request_oversized", cap=error.cap, **self._log_fields)
            self._write_error("", error)
            await self._conn.linger()

    async def _authenticate(self, key: auth.ApiKey) -> bool:
        """Whether the first line holds the key; not a byte is written either way."""
        alarm = asyncio.get_running_loop().call_later(auth.TIMEOUT_SECS, _this_task().cancel)
        accepted = False
        try:
            line = await self._conn.next_line(at_most=auth.MAX_LINE_BYTES)
            accepted = line is not None and key.opens_with(line)
        except FrameTooLarge:
            pass
        finally:
            alarm.cancel()
            self._first_line = False
            if not accepted:
                _log.warn("tcp_auth_rejected", **self._log_fields)
        return accepted

    async def _answer(self, line: bytes) -> bool:
        """Serves the request on ``line``; whether the connection stays open."""
        arrived = time.monotonic()
        first, self._first_line = self._first_line, False
        try:
            request = self._surface.parse(line)
        except DecodeError as error:
            if first and auth.is_auth_line(line):
                return True  # a client that sends its key everywhere
            _log.info("request_error", code=error.code, stage="decode", **self._log_fields)
            self._write_error(error.request_id, error)
            return False
        self._interrupted = False
        course = _Course(request, arrived)
        try:
            self._surface.validate(request)
            await self._serve(course)
        except InferdError as error:
            self._log_error(course, error)
            self._write_error(request.id, error)
            return not isinstance(error, AdmissionClosed)
        except asyncio.CancelledError:
            reason = self._conn.gone_because or "stop"
            _log.info("request_cancelled", reason=reason, **course.fields(), **self._log_fields)
            raise
        except Exception as error:
            what = faults.describe(error)
            _log.error("request_error", code="internal", error=what, **course.fields(), **self._log_fields)
            self._write_error(request.id, BackendInternal("internal error; the daemon's log says more"))
        return True

    async def _serve(self, course: _Course[R]) -> None:
        request, service = course.request, self._service
        loop = asyncio.get_running_loop()
        deadline = None if request.deadline_ms is None else loop.time() + request.deadline_ms / 1e3
        with await service.admission.admit(self._peer.caller, request.priority or "interactive", deadline):
            course.queue_ms = _ms_since(course.arrived)
            with service.router.dispatch() as backend:
                course.backend = backend.name
                alarm = None if deadline is None else loop.call_at(deadline, self.interrupt)
                try:
                    await self._generate(course, backend)
                finally:
                    if alarm is not None:
                        alarm.cancel()

    async def _generate(self, course: _Course[R], backend: Backend) -> None:
        engine_request = self._surface.engine_request(course.request)
        content: str | bytes = b""
        if self._interrupted:
            done = Done("cancelled", Usage(0, 0))
        else:
            done, content = await self._stream_answer(course, backend, engine_request)
        timings = course.timings(done)
        self._conn.write(self._surface.encode_done(course.request, backend, done, content, timings))
        _log.info(
            "request_done",
            stop_reason=done.stop_reason,
            prompt_tokens=done.usage.prompt_tokens,
            completion_tokens=done.usage.completion_tokens,
            cached_tokens=done.usage.cached_tokens,
            ttft_ms=None if timings is None else timings["ttft_ms"],
            **course.fields(),
            **self._log_fields,
        )

    async def _stream_answer(
        self, course: _Course[R], backend: Backend, request: GenerateRequest
    ) -> tuple[Done, str | bytes]:
        """Writes the tokens as they come; returns the end of the stream and the whole answer."""
        conn, frame = self._conn, request.frame
        texts: list[str] = []
        self._stream = stream = await backend.generate(request)
        course.streaming = True
        try:
            if self._interrupted:
                stream.cancel()
            async for event in stream:
                if isinstance(event, Frames):
                    conn.write(event.data)
                elif isinstance(event, Text):
                    texts.append(event.text)
                    if frame is not None:
                        conn.write(token_frame(frame.prefix, event.text, frame.suffix))
                elif isinstance(event, Done):
                    return event, "".join(texts) if event.content is None else event.content
                if conn.blocked:
                    await conn.writable()
        finally:
            self._stream = None
            stream.close()
        raise Unavailable("backend ended stream without terminal frame")

    def _write_error(self, request_id: str, error: InferdError) -> None:
        self._conn.write(self._surface.encode_error(request_id, error.code, str(error)))

    def _log_error(self, course: _Course[R], error: InferdError) -> None:
        if isinstance(error, QueueFull):
            _log.info("queue_full", **course.fields(), **self._log_fields)
            return
        name = "request_error_mid_stream" if course.streaming else "request_error"
        # What the client did wrong may be described in the client's own words; those are not for the log.
        message = None if error.fault == "client" else str(error)
        _log.warn(name, code=error.code, message=message, **course.fields(), **self._log_fields)
