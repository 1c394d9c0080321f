"""One asyncio connection to a daemon, which sends byte strings and receives lines.

Only one task may use a connection at a time, but any task may close the connection. Every failure closes the
connection and raises the same error as on a blocking connection. The socket has no asyncio transport, because
a transport might discard the last bytes that the daemon sent before the daemon closed the connection. Between
two operations, the socket is not registered with an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from inferd.client.address import Endpoint
from inferd.client.connection import is_quiet
from inferd.client.protocol import READ_BYTES, Bytes, Incoming, opening
from inferd.client.trust import require_trusted
from inferd.errors import UsageError

R = TypeVar("R")

BACKLOG_PAUSE_SECS = 0.005


class AsyncConnection:
    """A connected socket. See :class:`inferd.client.connection.Connection`."""

    def __init__(self, connected: socket.socket, incoming: Incoming, timeout: float | None) -> None:
        self._socket = connected
        self._incoming = incoming
        self._timeout = timeout
        self._busy = False
        self._closed = False

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        connect_timeout: float | None = None,
        incoming: type[Incoming] = Incoming,
    ) -> AsyncConnection:
        """Connects. ``incoming`` is the class that splits the received bytes.

        Raises DaemonUnreachable.
        """
        keyed = api_key if endpoint.tcp is not None and api_key else None
        try:
            connected = await _connect(endpoint, connect_timeout)
        except OSError as error:
            raise endpoint.unreachable(error) from None
        connection = cls(connected, incoming(endpoint.text, tcp=endpoint.tcp is not None), timeout)
        if keyed is not None:
            await connection.send([opening(keyed)])
        return connection

    async def send(self, pieces: Sequence[Bytes]) -> None:
        """Sends all of the pieces.

        If the daemon has already closed the connection, no error is raised, because the caller can still
        read the last data from the daemon.
        """
        try:
            for piece in pieces:
                await self._send(piece)
        except TimeoutError:
            self.close()
            raise self._incoming.deaf() from None
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException:
            self.close()
            raise

    async def ask(self, pieces: Sequence[Bytes]) -> None:
        """Sends a request."""
        self._incoming.expect()
        await self.send(pieces)

    @property
    def lapsed(self) -> bool:
        """Whether a reused connection ended before the first byte of the reply arrived. Most likely, the
        daemon had closed the idle connection before the request was sent, so the caller sends the request
        again."""
        return self._incoming.lapsed

    async def line(self) -> bytes:
        """Receives the next line. Returns the line without its newline."""
        try:
            while (line := self._incoming.line()) is None:
                try:
                    data = await self._receive()
                except TimeoutError:
                    raise self._incoming.silent() from None
                except ConnectionError:
                    data = b""
                self._incoming.feed(data)
        except BaseException:
            self.close()
            raise
        return line

    def alive(self) -> bool:
        """Whether the connection is open and has no unread data, so that the next request may use it."""
        return is_quiet(self._socket)

    def close(self) -> None:
        """Closes the connection, which cancels its running request. A second call does nothing.

        If another task is sending or receiving on the connection, that task's operation ends as if the daemon
        had closed the connection. The other task then closes the socket.
        """
        if self._closed:
            return
        self._closed = True
        if self._busy:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._socket.close()

    async def _send(self, piece: Bytes) -> None:
        await self._run(asyncio.get_running_loop().sock_sendall(self._socket, piece))

    async def _receive(self) -> bytes:
        return await self._run(asyncio.get_running_loop().sock_recv(self._socket, READ_BYTES))

    async def _run(self, operation: Coroutine[Any, Any, R]) -> R:
        if self._busy:
            operation.close()
            raise UsageError("two tasks read one reply; give each a request of its own")
        if self._closed:
            operation.close()
            raise BrokenPipeError
        self._busy = True
        try:
            return await _within(self._timeout, operation)
        finally:
            self._busy = False
            if self._closed:
                self._socket.close()


async def _within(limit_secs: float | None, operation: Coroutine[Any, Any, R]) -> R:
    """Awaits ``operation``. Raises TimeoutError after ``limit_secs``. Replaces ``asyncio.wait_for``, which
    can lose a cancellation in Python 3.10 and 3.11."""
    if limit_secs is None:
        return await operation
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.wait([task], timeout=limit_secs)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # avoids "exception was never retrieved" during a cancellation
    if task.cancelled():
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    return task.result()


async def _connect(endpoint: Endpoint, limit_secs: float | None) -> socket.socket:
    if endpoint.tcp is not None:
        return await _within(limit_secs, _connect_tcp(*endpoint.tcp))
    end = None if limit_secs is None else time.monotonic() + limit_secs
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(endpoint.text)
                require_trusted(connection, endpoint.text)
                return connection
            except BlockingIOError:
                # The daemon's backlog is full. No event reports when the backlog has room again, so poll.
                if end is not None and time.monotonic() >= end:
                    raise
            await asyncio.sleep(BACKLOG_PAUSE_SECS)
    except BaseException:
        connection.close()
        raise


async def _connect_tcp(host: str, port: int) -> socket.socket:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, where) in enumerate(found, 1):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(connection, where)
            return connection
        except OSError:
            connection.close()
            if number == len(found):
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("a name that is found has an address")
