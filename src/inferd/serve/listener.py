"""Accepts connections on one listening socket and serves each connection in its own task.

The listener survives every error of ``accept``. If a client has already left, the listener accepts the next
connection. On any other error, such as a shortage of descriptors, accepting pauses. Connections beyond the
limit are closed at once, and the log gets at most one record of them a second. Keepalive probes detect a TCP
peer that has vanished.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from inferd import log
from inferd.log import faults
from inferd.serve.bind import Bound, check_key
from inferd.serve.peer import Peer
from inferd.serve.strangers import Strangers

# How long accepting pauses when the system cannot provide a connection.
BACKOFF_SECS = 0.5
# Connections accepted in one callback, before the event loop serves the open connections.
ACCEPTS_AT_ONCE = 64
# The shortest time in seconds between two log records about refused connections.
REFUSALS_SECS = 1.0
# A silent TCP peer is probed after a minute, and dropped after half a minute without an answer.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

Serve = Callable[..., Coroutine[Any, Any, None]]

_log = log.get("listener")
_numbers = itertools.count(1)


class ConnectionLimit:
    """Limits and counts the open connections of several listeners together.

    ``limit`` bounds the total. ``per_owner`` bounds the connections of one user or, over TCP, of one host. A
    ``per_owner`` of 0 means no bound. Both limits may be changed at any time.
    """

    __slots__ = ("_owners", "limit", "per_owner", "taken")

    def __init__(self, limit: int, per_owner: int = 0) -> None:
        self.limit = limit
        self.per_owner = per_owner
        self.taken = 0
        self._owners: Counter[Hashable] = Counter()

    def take(self, owner: Hashable) -> bool:
        """Counts one more connection of ``owner``. Returns False if a limit is reached."""
        if self.taken >= self.limit or 0 < self.per_owner <= self._owners[owner]:
            return False
        self.taken += 1
        self._owners[owner] += 1
        return True

    def leave(self, owner: Hashable) -> None:
        """Removes an ended connection of ``owner`` from the count."""
        self.taken -= 1
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]


class Listener:
    """Accepts connections, and passes each to ``serve(sock, peer, number)``. ``serve`` returns when the
    connection has ended, and closes ``sock``. ``on_change`` is called whenever a connection has opened or
    closed.

    If ``strangers`` is given and ``asks_key()`` is true, a new TCP connection does not count towards the
    limit until the client has sent the API key. ``serve`` then gets ``enter`` as a fourth argument, and calls
    ``enter()`` when the client has sent the key. ``enter()`` returns False if the limit is reached.
    """

    def __init__(
        self,
        bound: Bound,
        serve: Serve,
        places: ConnectionLimit,
        on_change: Callable[[], None] = lambda: None,
        *,
        strangers: Strangers | None = None,
        asks_key: Callable[[], bool] = lambda: False,
    ) -> None:
        self.address = bound.address
        self._bound = bound
        self._serve = serve
        self._places = places
        self._on_change = on_change
        self._strangers = strangers
        self._asks_key = asks_key
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._refused = 0
        self._accepting = True
        self._listen()
        _log.info("listening", address=self.address)

    def check_key(self, *, has_key: bool) -> None:
        """Raises AddressError if this address needs an API key and ``has_key`` is false."""
        if self._bound.is_tcp:
            check_key(self.address, has_key=has_key)

    def is_there(self) -> bool:
        """Whether clients can still connect. False if the file of a Unix socket has been deleted or
        replaced."""
        return self._bound.is_there()

    def stop(self) -> None:
        """Stops accepting connections. Open connections stay. A second call does nothing."""
        if self._accepting:
            self._accepting = False
            if self._rest is not None:
                self._rest.cancel()
            self._loop.remove_reader(self._bound.sock)
            self._bound.close()

    async def close(self, grace: float) -> None:
        """Stops accepting, and closes every connection after its last write. Connections that are still open
        after ``grace`` seconds are closed at once."""
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
                sock, peer = self._bound.accept()
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
            if self._bound.is_tcp and self._strangers is not None and self._asks_key():
                self._begin_stranger(sock, peer, self._strangers)
            elif self._take(peer):
                self._begin(sock, peer)
            else:
                sock.close()

    def _take(self, peer: Peer) -> bool:
        taken = self._places.take(peer.owner)
        if not taken:
            self._refused += 1
            if self._refused == 1:
                self._tell_refusals(peer)
        return taken

    def _tell_refusals(self, peer: Peer) -> None:
        """Logs the first refused connection at once. If more connections are refused within the next second,
        the log gets their total at the end of this second."""
        places = self._places
        _log.warn(
            "too_many_connections",
            address=self.address,
            limit=places.limit,
            limit_per_uid=places.per_owner,
            **peer.fields(),
        )
        self._loop.call_later(REFUSALS_SECS, self._count_refusals)

    def _count_refusals(self) -> None:
        refused, self._refused = self._refused, 0
        if refused > 1:
            _log.warn("connections_refused", address=self.address, count=refused)

    def _begin(self, sock: socket.socket, peer: Peer) -> None:
        self._prepare(sock, peer)
        task = self._loop.create_task(self._serve(sock, peer, next(_numbers)))
        self._watch(task, sock, lambda: self._places.leave(peer.owner))

    def _begin_stranger(self, sock: socket.socket, peer: Peer, strangers: Strangers) -> None:
        self._prepare(sock, peer)
        entered = False

        def enter() -> bool:
            nonlocal entered
            strangers.discard(peer.owner, task)
            entered = self._take(peer)
            self._on_change()
            return entered

        def leave() -> None:
            strangers.discard(peer.owner, task)
            if entered:
                self._places.leave(peer.owner)

        task = self._loop.create_task(self._serve(sock, peer, next(_numbers), enter))
        strangers.add(peer.owner, task, task.cancel)
        self._watch(task, sock, leave)

    def _prepare(self, sock: socket.socket, peer: Peer) -> None:
        sock.setblocking(False)
        if peer.transport == "tcp":
            _prepare_tcp(sock)

    def _watch(self, task: asyncio.Task[None], sock: socket.socket, leave: Callable[[], None]) -> None:
        self._connections.add(task)
        task.add_done_callback(lambda task: self._ended(task, sock, leave))
        self._on_change()

    def _ended(self, task: asyncio.Task[None], sock: socket.socket, leave: Callable[[], None]) -> None:
        sock.close()  # already closed, unless the task was cancelled before it began
        self._connections.discard(task)
        leave()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("connection_failed", address=self.address, error=faults.describe(error))
        self._on_change()


def _prepare_tcp(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client has left already; its session will notice
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # a system without the option uses its own, longer time
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
