"""Serves one connection: checks the API key, then serves one request after another until the client leaves.

The stages of a request are parse → validate → admission → dispatch → generate → stream. Each request ends
with exactly one terminal frame. Only this module writes error frames. When the client leaves, the session's
task is cancelled, whatever stage the request has reached. The ``with`` blocks then release the place in the
queue, the backend and the probe of its circuit breaker, and nothing more is written.

(This file has over 400 lines, because this module contains the whole path of a request, for every surface.)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, cast

from inferd import fastpath, log
from inferd.errors import (
    AdmissionClosed,
    BackendError,
    BackendInternal,
    DeadlineExceeded,
    DecodeError,
    FrameTooLarge,
    InferdError,
    InputMemoryFull,
    MalformedFrame,
    NotJson,
    QueueFull,
    UpstreamFull,
)
from inferd.log import faults
from inferd.serve import auth
from inferd.serve.admission import Permit
from inferd.serve.connection import LARGE_BYTES, Connection
from inferd.serve.deadline import Alarm, deadline_of
from inferd.serve.hangup import HangupWatch
from inferd.serve.log_limit import Burst
from inferd.serve.memory import InputMemory
from inferd.serve.models import ModelDirectory
from inferd.serve.observe.metrics import Metrics
from inferd.serve.peer import Peer
from inferd.serve.pool import Choice
from inferd.serve.queues import Queues
from inferd.serve.router import Router
from inferd.serve.surface import R, RequestContext, Surface, WireRequest, ms_since
from inferd.serve.wires import Lines, Wire, recognise
from inferd.wire import long_texts
from inferd.wire.bounds import QUEUE_STEPS
from inferd.wire.frames import check_id, encode_progress

# The reasons for ending a request early, besides the reasons that the connection reports.
_DEADLINE, _STOP = "deadline", "stop"

# If a request is refused because the queue is full, its connection is not read for this time. The time
# doubles with each further refusal. So a client that retries at once cannot keep the event loop busy.
FIRST_PAUSE_SECS, LONGEST_PAUSE_SECS = 0.01, 0.5

QUEUED, STARTED = QUEUE_STEPS
_UNEXPECTED = "internal error; the daemon's log says more"

_log = log.get("session")
_accepted = Burst(_log, "connection_accepted", "connections_accepted")
_closed = Burst(_log, "connection_closed", "connections_closed")


@dataclass(slots=True, kw_only=True)
class Service(Generic[R]):
    """The state shared by all sessions of a surface. Only TCP clients must send ``api_key``.

    The key and the limits may be changed at any time. An open connection stays authenticated, and keeps its
    line limit and its timeouts. ``bridge_token`` is the token of the HTTP bridge that this daemon started, or
    empty if the daemon started no bridge.
    """

    surface: Surface[R]
    admission: Queues
    router: Router
    hangups: HangupWatch
    metrics: Metrics
    api_key: auth.ApiKey | None
    max_frame_bytes: int
    max_attachment_bytes: int
    write_timeout_secs: float
    memory: InputMemory
    idle_timeout_secs: float = 0.0
    bridge_token: str = ""
    models: ModelDirectory | None = None
    sessions: set[Session[R]] = field(default_factory=set)

    def asks_key(self) -> bool:
        """Whether a TCP client must send a key."""
        return self.api_key is not None

    async def serve(
        self, sock: socket.socket, peer: Peer, number: int, enter: Callable[[], bool] = lambda: True
    ) -> None:
        """Serves an accepted socket until it is closed. ``number`` identifies the connection in the log.

        ``enter`` is called when the client has authenticated. If ``enter`` returns False because the
        connection limit is reached, the connection is closed.
        """
        session = Session(self, sock, peer, number, enter)
        metrics = self.metrics.surfaces[self.surface.name]
        metrics.connections += 1
        metrics.connections_open += 1
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)
            metrics.connections_open -= 1

    def believes(self, token: str) -> bool:
        """Whether ``token`` is the token of the HTTP bridge that this daemon started."""
        ours = self.bridge_token.encode()
        return bool(ours) and fastpath.keys_equal(token.encode(), ours)

    def interrupt(self) -> None:
        """Ends every running and waiting request."""
        for session in self.sessions:
            session.interrupt(AdmissionClosed())
        self.admission.release_waiters()


def _this_task() -> asyncio.Task[None]:
    return cast("asyncio.Task[None]", asyncio.current_task())


def _show_place(show: Callable[[str, Mapping[str, object]], None], place: int) -> None:
    if place:
        show(QUEUED, {"position": place})
    else:
        show(STARTED, {})


class Session(Generic[R]):
    """The requests and answers of one connection."""

    def __init__(
        self, service: Service[R], sock: socket.socket, peer: Peer, number: int, enter: Callable[[], bool]
    ) -> None:
        self._service = service
        self._enter = enter
        self._surface: Surface[Any] = service.surface
        self._metrics = service.metrics.surfaces[service.surface.name]
        self._sock = sock
        self._peer = peer
        self._reserved = service.memory.of(peer.owner)
        self._log_fields: dict[str, Any] = {"surface": service.surface.name, "conn": number, **peer.fields()}
        self._conn = Connection(
            service.max_frame_bytes,
            service.write_timeout_secs,
            service.hangups,
            service.surface.lines.may_carry_raw,
            service.idle_timeout_secs,
            self._reserved.add,
        )
        self._first_line = True
        self._pause_secs = 0.0
        self._wire: Wire | None = None
        if service.surface.frames is not None:
            self._conn.expect_either()
        self._context: RequestContext[R] | None = None

    async def run(self) -> None:
        """Serves the connection, and returns when the socket is closed. If the task is cancelled, the socket
        is closed after the last write. A second cancellation closes the socket at once."""
        _accepted.info(**self._log_fields)
        conn = self._conn
        try:
            if await conn.open(self._sock, _this_task().cancel):
                with contextlib.suppress(asyncio.CancelledError):
                    await self._converse()
                await conn.close()
        finally:
            self._reserved.release()
            _closed.info(reason=conn.gone_because or "end", **self._log_fields)

    def interrupt(self, reason: InferdError) -> None:
        """Ends the running or waiting request early, if any. See :meth:`RequestContext.interrupt`."""
        if self._context is not None:
            self._context.interrupt(reason)

    async def _converse(self) -> None:
        key = self._service.api_key
        if key is not None and self._peer.transport == "tcp" and not await self._authenticate(key):
            return
        if not self._enter():
            return
        try:
            while True:
                wire = self._wire or await self._recognise()
                raw = await wire.next_request()
                if raw is None:
                    return
                if not await self._answer(wire, raw):
                    await self._conn.linger()
                    return
                if self._pause_secs:
                    await asyncio.sleep(self._pause_secs)
                if self._conn.blocked:
                    await self._conn.writable()
        except FrameTooLarge as error:
            _log.warn("request_oversized", cap=error.cap, **self._log_fields)
            await self._refuse_line(error)
        except InputMemoryFull as error:
            _log.warn("request_error", code=error.code, message=str(error), **self._log_fields)
            await self._refuse_line(error)
        except (MalformedFrame, NotJson) as error:
            _log.info("request_error", code=error.code, stage="decode", **self._log_fields)
            await self._refuse_line(error)

    async def _refuse_line(self, error: InferdError) -> None:
        self._write_error("", error)
        await self._conn.linger()

    async def _recognise(self) -> Wire:
        """Detects whether the client sends lines or frames, and selects the surface for this form."""
        wire = self._wire = await recognise(self._conn, self._service.surface, self._reserved.add)
        self._surface = wire.surface
        self._metrics = self._service.metrics.surfaces[wire.surface.name]
        self._log_fields["surface"] = wire.surface.name
        return wire

    async def _authenticate(self, key: auth.ApiKey) -> bool:
        """Reads the first line. Returns whether the line contains the right key. Writes nothing in either
        case."""
        silence = asyncio.get_running_loop().call_later(auth.TIMEOUT_SECS, _this_task().cancel)
        accepted = False
        self._conn.begin_lines()
        try:
            line = await self._conn.next_line(at_most=auth.MAX_LINE_BYTES)
            accepted = line is not None and key.opens_with(bytes(line))
        except FrameTooLarge:
            pass
        finally:
            silence.cancel()
            self._first_line = False
            if not accepted:
                _log.warn("tcp_auth_rejected", **self._log_fields)
        return accepted

    async def _answer(self, wire: Wire, raw: bytes | memoryview) -> bool:
        """Serves the request whose JSON is ``raw``. The JSON of a large request is a memoryview.

        Returns whether the connection stays open.
        """
        arrived = time.monotonic()
        surface = wire.surface
        first, self._first_line = self._first_line, False
        large = isinstance(raw, memoryview)
        try:
            if isinstance(raw, memoryview):
                request = await asyncio.to_thread(long_texts.parse, surface.parse, raw)
            else:
                request = surface.parse(raw)
        except DecodeError as error:
            self._reserved.release()
            if first and isinstance(raw, bytes) and isinstance(wire, Lines) and auth.is_auth_line(raw):
                self._wire = None  # some clients send the key on Unix sockets, too; frames may follow
                return True
            _log.info("request_error", code=error.code, stage="decode", **self._log_fields)
            self._write_error(error.request_id, error)
            if error.closes:
                return False
            if surface.may_carry_raw is None:
                return True
            return isinstance(raw, bytes) and not surface.may_carry_raw(raw)
        except Exception as error:  # such as the error when no thread can be started
            self._reserved.release()
            _log.error("request_error", code="internal", error=faults.describe(error), **self._log_fields)
            self._write_error("", BackendInternal(_UNEXPECTED))
            return False
        self._context = context = RequestContext(request, self._conn, arrived, self._log_fields, self._peer)
        if request.progress:
            context.show = functools.partial(self._show_step, request)
        if (behalf := request.on_behalf_of) is not None and self._service.believes(behalf.token):
            context.ask_for(behalf.caller)
        whole = False  # unread bytes of this request must never be parsed as the next request
        try:
            deadline = deadline_of(request)
            with Alarm(deadline, self._miss_deadline):
                await wire.receive(
                    request, self._service.max_attachment_bytes, functools.partial(self._make_room, request)
                )
            whole = True
            check_id(request.id)
            context.large = large or self._reserved.size > LARGE_BYTES
            if context.large:
                await asyncio.to_thread(surface.validate, request)
            else:
                surface.validate(request)
            await self._serve(context, deadline)
        except InferdError as error:
            self._log_error(context, error)
            self._fail(context, error)
            return whole and not error.closes
        except asyncio.CancelledError:
            reason = self._conn.gone_because or _STOP
            self._metrics.cancels[reason] += 1
            _log.info("request_cancelled", reason=reason, **context.fields(), **self._log_fields)
            raise
        except Exception as error:
            what = faults.describe(error)
            _log.error("request_error", code="internal", error=what, **context.fields(), **self._log_fields)
            self._fail(context, BackendInternal(_UNEXPECTED))
        finally:
            self._context = context.permit = None
            self._reserved.release()
        return whole

    def _make_room(self, request: R, size: int) -> None:
        """Reserves memory for the attachments. If the attachments are large and no backend can serve the
        request, raises an error and reserves nothing."""
        # Whether a named model accepts attachments is known only once it is loaded.
        if size > LARGE_BYTES and (request.model is None or self._service.models is None):
            self._service.router.dispatch(self._surface.needs(request), request.model)
        self._reserved.add(size)

    def _miss_deadline(self) -> None:
        self._conn.stop_reading(DeadlineExceeded("the deadline passed before all attachments had come"))

    async def _serve(self, context: RequestContext[R], deadline: float | None) -> None:
        request, models = context.request, self._service.models
        if not request.model or models is None:
            answer = await self._admit(context, deadline, request.model or None)
        else:
            async with models.hold(request.model, deadline, context.stay(), context.show) as model:
                answer = await self._admit(context, deadline, model)
        if answer.get("stop_reason") == "cancelled":
            too_late = isinstance(context.interruption, DeadlineExceeded)
            self._metrics.cancels[_DEADLINE if too_late else _STOP] += 1
        else:
            self._metrics.done += 1
        _log.info("request_done", **answer, **context.fields(), **self._log_fields)

    def _show_step(self, request: WireRequest, phase: str, details: Mapping[str, object]) -> None:
        if not self._conn.blocked:  # a slow reader gets only a later frame
            self._conn.write(encode_progress(request.id, request.model or "", phase, details))

    async def _admit(
        self, context: RequestContext[R], deadline: float | None, model: str | None
    ) -> dict[str, object]:
        """Waits for a permit and serves the request. Returns the log fields of the answer.

        If a backend of a pool fails before its first output, the request is retried once on another backend
        of the pool.
        """
        request, service = context.request, self._service
        needs = self._surface.needs(request)
        choice = None
        if service.router.has_pools:
            choice = Choice(service.router, needs, model, context.conversation(self._surface))
        about = (
            context.caller,
            request.priority or "interactive",
            deadline,
            context,
            context.owner,
            choice,
            None if context.show is None else functools.partial(_show_place, context.show),
        )
        queue = service.router.queue_for(needs, model)
        permit = await service.admission.of(queue).admit(*about)
        # While it waited, its backend may have become unfit. If the next one is at rest, it waits there.
        while (other := self._queue_behind(permit, needs, model)) != queue:
            if not service.admission.of(other).paused:
                break
            with permit:
                queue = other
            permit = await service.admission.of(queue).admit(*about, again=True)
        context.queue_ms = ms_since(context.arrived)
        self._metrics.queue_wait.observe(context.queue_ms / 1e3)
        self._pause_secs = 0.0
        while True:
            slot = permit.slot
            try:
                with permit as context.permit:
                    if choice is None or slot is None:
                        dispatch = service.router.dispatch(needs, model)
                    else:
                        dispatch = service.router.dispatch_to(slot)
                        context.route = choice.why
                        service.metrics.backends[slot.backend.name].routed[choice.why] += 1
                    with dispatch as backend:
                        context.backend = backend.name
                        metrics = service.metrics.backends[backend.name]
                        with Alarm(deadline, context.pass_deadline):
                            return await self._surface.answer(context, backend, metrics)
            except BackendError as error:
                context.permit = None
                if not (error.elsewhere and context.untouched) or choice is None or slot is None:
                    raise
                if not choice.may_retry(slot):
                    raise
                service.metrics.backends[slot.backend.name].errors[error.code] += 1
                _log.warn("request_retried", code=error.code, **context.fields(), **self._log_fields)
            permit = await service.admission.of(queue).admit(*about, again=True)

    def _queue_behind(self, permit: Permit, needs: frozenset[str], model: str | None) -> str:
        """Returns the name of the queue in front of the backend that the request would go to now."""
        router = self._service.router
        return router.queue_for(needs, model) if permit.slot is None else router.queue_of(permit.slot)

    def _fail(self, context: RequestContext[R], error: InferdError) -> None:
        if isinstance(error, QueueFull):
            self._pause_secs = min(max(2 * self._pause_secs, FIRST_PAUSE_SECS), LONGEST_PAUSE_SECS)
        if context.backend is not None and error.fault == "backend":
            self._service.metrics.backends[context.backend].errors[error.code] += 1
        self._write_error(context.request.id, error)

    def _write_error(self, request_id: str, error: InferdError) -> None:
        self._metrics.errors[error.code] += 1
        retry_after = error.retry_after_secs if isinstance(error, QueueFull | UpstreamFull) else None
        self._conn.write(
            self._surface.encode_error(request_id, error.code, str(error), retry_after, error.details)
        )

    def _log_error(self, context: RequestContext[R], error: InferdError) -> None:
        if isinstance(error, QueueFull):
            _log.info("queue_full", **context.fields(), **self._log_fields)
            return
        if isinstance(error, FrameTooLarge):
            _log.warn("request_oversized", cap=error.cap, **context.fields(), **self._log_fields)
            return
        name = "request_error_mid_stream" if context.streaming else "request_error"
        # The message of a client error may quote the request, which must not be logged.
        message = None if error.fault == "client" else error.logged or str(error)
        _log.warn(name, code=error.code, message=message, **context.fields(), **self._log_fields)
