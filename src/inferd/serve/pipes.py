"""Named pipes behind the interface of a listening socket.

A pipe of Windows is no socket, and an event loop that waits for sockets cannot wait for it. So one thread
waits for clients, two more carry the bytes of each between its pipe and one end of a pair of sockets, and the
other end is what is accepted. What only Windows can do is in :mod:`inferd.serve.win32`.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from inferd import log
from inferd.errors import AddressError
from inferd.serve.bind import Bound
from inferd.serve.peer import Peer

_READ_BYTES = 64 * 1024
# How long the thread that waits for clients rests when the system cannot make another pipe.
_REST_SECS = 0.5

_log = log.get("pipes")


class PipeSystem(Protocol):
    """What pipes need of a system. Handles are numbers; everything may raise OSError."""

    def create(self, name: str, *, first: bool) -> int:
        """A new instance of the pipe, to which only this user can connect. With ``first`` there must not be
        one yet, of whomever."""

    def wait_for_client(self, handle: int) -> Peer:
        """Blocks until a client has connected to an instance."""

    def stop_waiting(self, name: str) -> None:
        """Ends a wait for a client, as if one had come."""

    def read(self, handle: int, size: int) -> bytes:
        """Blocks until there is something; nothing at the end."""

    def write(self, handle: int, data: bytes) -> None:
        """Blocks until all is written."""

    def cancel(self, handle: int) -> None:
        """Ends what reads or writes in other threads."""

    def close(self, handle: int) -> None:
        """What was written can still be read at the other end."""


def bind_pipe(path: Path) -> Bound:
    """The named pipe ``path``, of which this must be the first server; raises AddressError."""
    if sys.platform == "win32":
        from inferd.serve.win32 import Pipes

        return open_pipe(Pipes(), str(path))
    raise AddressError(f"{path}: named pipes exist on Windows only; use a Unix socket here")


def open_pipe(system: PipeSystem, name: str) -> Bound:
    """Begins to wait for clients; raises AddressError when the pipe cannot be made."""
    try:
        first = system.create(name, first=True)
    except OSError as error:
        raise AddressError(
            f"cannot make the pipe {name}: {error.strerror or error}; if another process serves on it,"
            " stop that or choose another name"
        ) from error
    door, bell = socket.socketpair()
    door.setblocking(False)
    server = _Server(system, name, bell)
    threading.Thread(target=server.wait_for_clients, args=(first,), name="inferd-pipe", daemon=True).start()
    return _BoundPipe(door, name, server=server)


@dataclass(frozen=True, slots=True)
class _BoundPipe(Bound):
    server: _Server = field(kw_only=True)

    def accept(self) -> tuple[socket.socket, Peer]:
        self.sock.recv(1)  # BlockingIOError when nobody waits
        return self.server.accepted.popleft()

    def close(self) -> None:
        self.server.stop()
        self.sock.close()


class _Server:
    """Waits for clients in a thread; those that have come stand in ``accepted``, and ``bell`` has rung."""

    def __init__(self, system: PipeSystem, name: str, bell: socket.socket) -> None:
        self.accepted: deque[tuple[socket.socket, Peer]] = deque()
        self._system = system
        self._name = name
        self._bell = bell
        self._stopping = threading.Event()

    def wait_for_clients(self, first: int) -> None:
        handle: int | None = first
        while handle is not None:
            try:
                peer = self._system.wait_for_client(handle)
            except OSError as error:
                _log.warn("accept_failed", address=self._name, reason=error.strerror)
                self._system.close(handle)
            else:
                if self._stopping.is_set():
                    self._system.close(handle)
                    break
                self._let_in(handle, peer)
            handle = self._create()
        self._bell.close()
        while self.accepted:  # and nobody is left to serve them
            self.accepted.popleft()[0].close()

    def _create(self) -> int | None:
        """Another instance for the next client; ``None`` at the end."""
        while not self._stopping.is_set():
            try:
                handle = self._system.create(self._name, first=False)
            except OSError as error:
                _log.warn("accept_failed", address=self._name, reason=error.strerror)
                self._stopping.wait(_REST_SECS)
                continue
            # Whoever asks for the end from here on finds an instance to end the wait at.
            if not self._stopping.is_set():
                return handle
            self._system.close(handle)
        return None

    def _let_in(self, handle: int, peer: Peer) -> None:
        ours, theirs = socket.socketpair()
        carrier = _Carrier(self._system, handle, theirs)
        for work in (carrier.carry_in, carrier.carry_out):
            threading.Thread(target=work, name="inferd-pipe-client", daemon=True).start()
        self.accepted.append((ours, peer))
        with contextlib.suppress(OSError):  # the listener has closed in the meantime
            self._bell.send(b"!")

    def stop(self) -> None:
        """Idempotent; the clients that are there stay."""
        if not self._stopping.is_set():
            self._stopping.set()
            with contextlib.suppress(OSError):
                self._system.stop_waiting(self._name)


class _Carrier:
    """Carries bytes between a pipe and a socket, each way in a thread, until either end is closed."""

    def __init__(self, system: PipeSystem, handle: int, sock: socket.socket) -> None:
        self._system = system
        self._handle = handle
        self._sock = sock
        self._lock = threading.Lock()
        self._working = 2

    def carry_in(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._system.read(self._handle, _READ_BYTES):
                self._sock.sendall(data)
        self._end()

    def carry_out(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._sock.recv(_READ_BYTES):
                self._system.write(self._handle, data)
        self._end()

    def _end(self) -> None:
        """The first to end stops the other; the last closes both ends."""
        with self._lock:  # so that nobody cancels a handle that was closed, and given away again
            self._working -= 1
            if not self._working:
                self._sock.close()
                self._system.close(self._handle)
                return
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self._system.cancel(self._handle)
