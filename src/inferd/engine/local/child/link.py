"""Messages between the daemon and an engine process, over a stream socket pair.

A message is a :data:`HEADER` and a body. Descriptors are attached to the first byte of their message. All
messages without descriptors that are queued within one iteration of the event loop are sent with one write,
so a step of the engine costs one write for all its requests. This module does not interpret the kinds of
messages.

A :class:`Link` never blocks. If the peer sends a malformed message or closes its end, the link closes and
calls ``on_closed`` once, on the event loop.
"""

from __future__ import annotations

import array
import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from inferd.engine.local.child.descriptors import close_all

HEADER = struct.Struct("<IIBB")
"""The size of the body in bytes, the number of the job, the kind, and the number of descriptors."""

MAX_BODY_BYTES = 8 << 20
"""The limit for a body. A header that announces more closes the link. Large data travels in a memory file
instead."""
MAX_FDS = 4
"""The limit for the descriptors of a message, except that of a load: a model may have many files."""
MAX_LOAD_FDS = 253  # of one message on Linux
_READ_BYTES = 256 << 10
_INT_BYTES = array.array("i").itemsize
_LOAD_RIGHTS_BYTES = socket.CMSG_SPACE(MAX_LOAD_FDS * _INT_BYTES)

OnMessage = Callable[[int, int, bytes, list[int]], None]
"""Called with the kind, job, body and descriptors of a message. The receiver must close the descriptors."""


class Link:
    """One end of the socket pair. Call the constructor and all methods on one event loop."""

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_closed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._buffer = bytearray(_READ_BYTES)
        self._pending = bytearray()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._flushing = False
        self.closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, kind: int, job: int = 0, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Queues a message, which is sent soon. The link takes over ``fds`` and closes them once they are
        sent."""
        if self.closed:
            close_all(fds)
            return
        self._out.append((HEADER.pack(len(body), job, kind, len(fds)) + body, tuple(fds)))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def drain(self) -> None:
        """Delivers all messages that have arrived. Called after the peer has ended."""
        while not self.closed and self._readable():
            pass

    def close(self) -> None:
        """Closes this end and drops unsent messages. Does not call ``on_closed``. May be called again."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            close_all(self._fds)
            for _, fds in self._out:
                close_all(fds)
            self._out.clear()
            self._buffer = bytearray()  # a closed link may be in a reference cycle for long

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._on_closed()

    def _flush(self) -> None:
        """Writes the queued messages in order. If the socket is full, continues when the socket is
        writable."""
        try:
            while self._out and not self.closed:
                data, fds = self._take()
                sent = self._write(data, fds)
                if sent < len(data):
                    self._out.appendleft((data[sent:], () if sent else fds))
                    self._loop.add_writer(self._sock, self._writable)
                    return
        except OSError:
            self._end()
        self._flushing = False

    def _take(self) -> tuple[bytes, tuple[int, ...]]:
        """Removes from the queue what one write sends: either one message with descriptors, or all messages
        before the next message with descriptors.
        """
        if self._out[0][1]:
            return self._out.popleft()
        parts = []
        while self._out and not self._out[0][1]:
            parts.append(self._out.popleft()[0])
        return b"".join(parts), ()

    def _write(self, data: bytes, fds: tuple[int, ...]) -> int:
        try:
            if not fds:
                return self._sock.send(data)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            sent = self._sock.sendmsg([data], [rights])
        except BlockingIOError:
            return 0
        except OSError:
            close_all(fds)
            raise
        close_all(fds)
        return sent

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _readable(self) -> bool:
        """Reads once. Returns whether bytes arrived."""
        try:
            n, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._buffer],
                socket.CMSG_SPACE(MAX_FDS * _INT_BYTES),
                getattr(socket, "MSG_CMSG_CLOEXEC", 0),
            )
        except BlockingIOError:
            return False
        except OSError:
            self._end()
            return False
        self._fds.extend(_descriptors(ancillary))
        if n == 0 or flags & getattr(socket, "MSG_CTRUNC", 0):
            self._end()
            return False
        if not self._pending:
            with memoryview(self._buffer) as view:
                used = self._parse(view[:n])
                self._pending += view[used:n]
        else:
            self._pending += self._buffer[:n]
            with memoryview(self._pending) as view:
                used = self._parse(view)
            del self._pending[:used]
        return True

    def _parse(self, data: memoryview) -> int:
        """Delivers the complete messages in ``data``, and returns the number of bytes that these messages
        take. Closes the link at a malformed message."""
        at = 0
        while not self.closed and len(data) - at >= HEADER.size:
            size, job, kind, n_fds = HEADER.unpack_from(data, at)
            if size > MAX_BODY_BYTES or n_fds > MAX_FDS:
                self._end()
                break
            end = at + HEADER.size + size
            if end > len(data):
                break
            if n_fds > len(self._fds):
                self._end()
                break
            fds = [self._fds.popleft() for _ in range(n_fds)]
            body = bytes(data[at + HEADER.size : end])
            at = end
            self._on_message(kind, job, body, fds)
        return at


def receive(sock: socket.socket) -> tuple[int, int, bytes, list[int]]:
    """Waits for the next message and returns its kind, job, body and descriptors. Raises EOFError if the link
    is closed."""
    head, ancillary, _, _ = sock.recvmsg(HEADER.size, _LOAD_RIGHTS_BYTES, socket.MSG_WAITALL)
    if len(head) < HEADER.size:
        raise EOFError
    size, job, kind, _ = HEADER.unpack(head)
    body = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(body) < size:
        raise EOFError
    return kind, job, body, _descriptors(ancillary)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return list(received)
