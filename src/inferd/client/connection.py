"""One blocking connection to a daemon, lines in and lines out.

Used by one thread at a time. Whatever goes wrong closes the connection and is a typed error:
DaemonUnreachable before anything answered, ConnectionLost when an answer ended early.
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import orjson

from inferd.errors import ConnectionLost, DaemonUnreachable, ProtocolError, UsageError

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""The longest line that is read: a whole answer travels in the last frame of a request."""

Address = str | os.PathLike[str]


class Connection:
    """A connected socket.

    ``address`` is the path of a Unix socket or ``tcp://IP:port``; on TCP the ``api_key``, where there is one,
    goes ahead of everything else. ``connect_timeout`` bounds the connecting and ``timeout`` every wait for
    the other side after it, in seconds; ``None`` waits for ever.
    """

    def __init__(
        self,
        address: Address,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        connect_timeout: float | None = None,
    ) -> None:
        self.address = os.fspath(address)
        self._received = False
        tcp = self.address.startswith("tcp://")
        self._keyed = tcp and bool(api_key)
        try:
            self._socket = (
                _connect_tcp(self.address, connect_timeout)
                if tcp
                else _connect_unix(self.address, connect_timeout)
            )
        except OSError as error:
            raise DaemonUnreachable(_unreachable(self.address, error)) from None
        self._socket.settimeout(timeout)
        self._reader = self._socket.makefile("rb", buffering=65536)
        if self._keyed:
            self.send(orjson.dumps({"type": "auth", "key": api_key}) + b"\n")

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of ``data``.

        A peer that has already closed is not an error here: what it said before that is still to be read.
        """
        try:
            self._socket.sendall(data)
        except TimeoutError:
            self.close()
            raise ConnectionLost(f"the daemon at {self.address} did not take the request in time") from None
        except (BrokenPipeError, ConnectionResetError):
            pass

    def line(self) -> bytes:
        """The next line, without its newline."""
        try:
            line = self._reader.readline(MAX_RESPONSE_BYTES + 1)
        except TimeoutError:
            self.close()
            raise ConnectionLost(f"the daemon at {self.address} did not answer in time") from None
        except ConnectionError:
            line = b""
        except BaseException:
            self.close()
            raise
        if not line.endswith(b"\n"):
            self.close()
            if len(line) > MAX_RESPONSE_BYTES:
                raise ProtocolError(f"the daemon at {self.address} sent a line that does not end")
            raise ConnectionLost(self._ended())
        self._received = True
        return line[:-1]

    def alive(self) -> bool:
        """Whether the connection is quiet and open, as one between two requests must be."""
        readable = select.poll()
        readable.register(self._socket, select.POLLIN)
        return not readable.poll(0)

    def close(self) -> None:
        """Closes the connection, which cancels the request that runs on it. Idempotent."""
        self._reader.close()
        self._socket.close()

    def _ended(self) -> str:
        if self._keyed and not self._received:
            return f"the daemon at {self.address} closed the connection without a word; check the API key"
        return f"the daemon at {self.address} closed the connection before the answer was complete"


def _connect_unix(path: str, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_tcp(address: str, timeout: float | None) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{address} is no address; give a Unix socket's path or tcp://IP:port")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _unreachable(address: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"the socket {address} may not be opened by this user; join its group or ask whoever runs inferd"
        )
    if not address.startswith("tcp://") and not Path(address).exists():
        return f"no daemon is running: there is no socket at {address}; start one with `inferd serve`"
    reason = error.strerror or str(error)
    return f"no daemon answers at {address} ({reason}); start one with `inferd serve`"
