"""uvicorn's HTTP/1.1 connection, with limits for the request head, the idle time and the number of
connections.

The request head consists of the request line and all headers. The head may take up to 30 seconds to arrive,
and may be up to 64 KiB long. Between two requests a client may be idle for ``timeout_keep_alive`` seconds. If
a client closes its connection, or only its sending side, the bridge ends all requests of the connection,
including pipelined requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from inferd.http.joining import JoiningTransport
from inferd.http.local_user import Peer

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECS = 30.0


class Protocol(HttpToolsProtocol):
    """One connection. A subclass sets ``max_connections``."""

    max_connections = 1024

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._peer = Peer()
        self._head_bytes = 0
        self._in_head = False
        self._head_alarm: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoiningTransport(transport, self.loop))
        if len(self.connections) > self.max_connections:
            transport.close()
            return
        # uvicorn arms this timer only after a response, but a client that never sends a request must be
        # disconnected, too.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unset_keepalive_if_required()
        # uvicorn wakes only the newest request. The running and the pipelined requests must end, too.
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # a head that came in one piece needs no alarm
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()
            elif self._head_alarm is None:
                self._head_alarm = self.loop.call_later(HEAD_SECS, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["peer"] = self._peer  # type: ignore[typeddict-unknown-key]
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.scope["whole"] = True  # type: ignore[typeddict-unknown-key]

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_alarm is not None:
            self._head_alarm.cancel()
            self._head_alarm = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)
