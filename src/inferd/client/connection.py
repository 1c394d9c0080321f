"""One blocking connection to a daemon, which sends byte strings and receives lines.

Only one thread may use a connection at a time. Every failure closes the connection and raises an error:
DaemonUnreachable if no daemon accepts the connection, ConnectionLost if an answer is cut short.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from inferd.client.address import Endpoint
from inferd.client.protocol import READ_BYTES, Bytes, Incoming, opening
from inferd.client.trust import require_trusted


class Connection:
    """A connected socket.

    On TCP the ``api_key``, if given, is sent first. ``connect_timeout`` limits the time to connect, and
    ``timeout`` each later wait for the daemon. Both timeouts are in seconds, and ``None`` means no limit.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        connect_timeout: float | None = None,
        incoming: type[Incoming] = Incoming,
    ) -> None:
        keyed = api_key if endpoint.tcp is not None and api_key else None
        self._incoming = incoming(endpoint.text, tcp=endpoint.tcp is not None)
        try:
            self._socket = _connect(endpoint, connect_timeout)
        except OSError as error:
            raise endpoint.unreachable(error) from None
        self._socket.settimeout(timeout)
        if keyed is not None:
            self.send([opening(keyed)])

    def send(self, pieces: Sequence[Bytes]) -> None:
        """Sends all of the pieces.

        If the daemon has already closed the connection, no error is raised, because the caller can still
        read the last data from the daemon.
        """
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except TimeoutError:
            self.close()
            raise self._incoming.deaf() from None
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException:
            self.close()
            raise

    def ask(self, pieces: Sequence[Bytes]) -> None:
        """Sends a request."""
        self._incoming.expect()
        self.send(pieces)

    @property
    def lapsed(self) -> bool:
        """Whether a reused connection ended before the first byte of the reply arrived. Most likely, the
        daemon had closed the idle connection before the request was sent, so the caller sends the request
        again."""
        return self._incoming.lapsed

    def line(self) -> bytes:
        """Receives the next line. Returns the line without its newline."""
        try:
            while (line := self._incoming.line()) is None:
                try:
                    data = self._socket.recv(READ_BYTES)
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
        """Closes the connection, which cancels its running request. A second call does nothing."""
        self._socket.close()


def is_quiet(sock: socket.socket) -> bool:
    """Whether the peer has neither closed the socket nor sent data that is still unread."""
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    return not readable.poll(0)


def _connect(endpoint: Endpoint, timeout: float | None) -> socket.socket:
    if endpoint.tcp is not None:
        connection = socket.create_connection(endpoint.tcp, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(endpoint.text)
        require_trusted(connection, endpoint.text)
    except BaseException:
        connection.close()
        raise
    return connection
