"""The state of the daemon, told to everyone who listens on the admin socket.

A subscriber gets one ``capabilities`` frame for each backend, the current lifecycle frame, and then each
event as it is published. Publishing never blocks: what a subscriber does not read is kept for it, up to a
bound, and past the bound it is disconnected; it comes back for a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import cast

from inferd.wire import admin

MAX_UNREAD_EVENTS = 256  # minutes of a download's progress; beyond that a fresh snapshot says more


class StatusBoard:
    """The current snapshot and its subscribers. All methods run on the event loop's thread."""

    def __init__(self) -> None:
        self._capabilities: list[bytes] = []
        self._lifecycle = admin.STARTING
        self._subscribers: set[Subscriber] = set()

    def publish(self, frame: bytes) -> None:
        """A lifecycle frame: replaces the current one and goes to every subscriber."""
        self._lifecycle = frame
        self._send(frame)

    def publish_capabilities(self, frame: bytes) -> None:
        """A ``capabilities`` frame: joins the snapshot and goes to every subscriber."""
        self._capabilities.append(frame)
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber.send(frame)

    async def serve(self, sock: socket.socket) -> None:
        """One subscriber, until it leaves. When cancelled, what it has been sent is still flushed."""
        subscriber = Subscriber()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: subscriber, sock)
        for frame in (*self._capabilities, self._lifecycle):
            subscriber.send(frame)
        self._subscribers.add(subscriber)
        try:
            await asyncio.shield(subscriber.closed)
        except asyncio.CancelledError:
            subscriber.finish()
            await subscriber.closed
        finally:
            self._subscribers.discard(subscriber)
            subscriber.abort()


class Subscriber(asyncio.BufferedProtocol):
    """The connection of one subscriber. What it sends is ignored."""

    _transport: asyncio.Transport
    _ignored = bytearray(4096)

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unread: deque[bytes] = deque()
        self._blocked = False
        self._finishing = False

    def send(self, frame: bytes) -> None:
        """Sends ``frame`` now or as soon as the subscriber reads; one that has left misses it."""
        if self._transport.is_closing():
            return
        if not self._blocked:
            self._transport.write(frame)
        elif len(self._unread) < MAX_UNREAD_EVENTS:
            self._unread.append(frame)
        else:
            self.abort()

    def finish(self) -> None:
        """Closes the connection behind the last frame."""
        self._finishing = True
        if not self._unread:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection now."""
        self._unread.clear()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Frames wait in our own queue, where they can be counted, and not in the transport's.
        self._transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._ignored

    def buffer_updated(self, nbytes: int) -> None: ...

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        while self._unread and not self._blocked:
            self._transport.write(self._unread.popleft())
        if self._finishing and not self._unread:
            self._transport.close()
