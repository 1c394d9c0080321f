"""Accepts connections on one listening socket and gives each to a task of its own.

No error of ``accept`` ends the listening: a client that left in between is forgotten, anything else, such as
a shortage of descriptors, is waited out. A newcomer for whom there is no place is closed at once.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from inferd import log
from inferd.serve import faults
from inferd.serve.bind import Bound

# How long accepting rests when the system cannot give us a connection.
BACKOFF_SECS = 0.5
# Connections accepted in one go, before the event loop gets to serve those that are there.
ACCEPTS_AT_ONCE = 64

Serve = Callable[[socket.socket, int], Coroutine[Any, Any, None]]

_log = log.get("listener")
_numbers = itertools.count(1)


class Places:
    """How many connections the listeners that share this may have open, and have."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0


class Listener:
    """``serve(sock, number)`` serves one connection until it is closed and closes ``sock``;
    ``on_change`` is called whenever a connection has come or gone."""

    def __init__(
        self, bound: Bound, serve: Serve, places: Places, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.address = bound.address
        self._bound = bound
        self._serve = serve
        self._places = places
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._accepting = True
        self._listen()
        _log.info("listening", address=self.address)

    def stop(self) -> None:
        """Accepts nobody any more; open connections go on. Idempotent."""
        if self._accepting:
            self._accepting = False
            if self._rest is not None:
                self._rest.cancel()
            self._loop.remove_reader(self._bound.sock)
            self._bound.close()

    async def close(self, grace: float) -> None:
        """Stops, closes every connection behind what was written to it, and after ``grace`` seconds now."""
        self.stop()
        for timeout in (grace, None):
            if self._connections:
                for task in self._connections:
                    task.cancel()
                await asyncio.wait(tuple(self._connections), timeout=timeout)

    def _listen(self) -> None:
        self._loop.add_reader(self._bound.sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, _ = self._bound.sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                _log.info("accept_failed", address=self.address, reason="the client left")
                continue
            except OSError as error:
                _log.warn("accept_failed", address=self.address, reason=error.strerror)
                self._rest = self._loop.call_later(BACKOFF_SECS, self._listen)
                self._loop.remove_reader(self._bound.sock)
                return
            if self._places.taken >= self._places.limit:
                _log.warn("too_many_connections", address=self.address, limit=self._places.limit)
                sock.close()
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._serve(sock, next(_numbers)))
        self._connections.add(task)
        self._places.taken += 1
        task.add_done_callback(self._ended)
        self._on_change()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._places.taken -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("connection_failed", address=self.address, error=faults.describe(error))
        self._on_change()
