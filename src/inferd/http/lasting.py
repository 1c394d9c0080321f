"""A connection to the daemon that stays registered with the HTTP bridge's event loop.

:class:`AsyncConnection` registers its socket for each read, because a program may have several event loops.
Registering takes about ten system calls for each request. The HTTP bridge has only one event loop, so a
:class:`LastingConnection` stays registered.

The socket is read only while a task waits for data. If data or the end of the stream arrives while no task
waits, the socket is unregistered until the next wait. So if an HTTP client reads slowly, the bridge's socket
to the daemon fills up, and the daemon slows down, too. And while an idle connection stays registered, the
bridge knows without a system call that the daemon has not closed the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from inferd.client.async_connection import AsyncConnection
from inferd.client.protocol import READ_BYTES, Bytes, Incoming


class LastingConnection(AsyncConnection):
    """A connected socket of one event loop. Sending and receiving have no timeout."""

    def __init__(self, connected: socket.socket, incoming: Incoming, timeout: float | None) -> None:
        super().__init__(connected, incoming, timeout)
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._waiter: asyncio.Future[bytes] | None = None

    async def _send(self, piece: Bytes) -> None:
        if self._closed:
            raise BrokenPipeError
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = self._socket.send(piece)
        if sent < len(piece):
            await super()._send(memoryview(piece)[sent:])

    async def _receive(self) -> bytes:
        if self._closed:
            return b""
        if not self._watched:
            self._loop.add_reader(self._socket, self._read)
            self._watched = True
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _read(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._unwatch()
            return
        try:
            waiter.set_result(self._socket.recv(READ_BYTES))
        except BlockingIOError:
            pass
        except OSError as error:
            waiter.set_exception(error)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._socket)

    def alive(self) -> bool:
        return self._watched or super().alive()

    def close(self) -> None:
        if not self._closed:
            self._unwatch()
        super().close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(b"")
