"""The connections of a client to one surface, and the replies that come on them.

A request has a connection to itself while it runs, so several may run at once, and closing its reply early
closes the connection, which cancels it in the daemon. A finished one leaves its connection to the next.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from inferd.client.connection import Address, Connection
from inferd.errors import ProtocolError, RequestFailed, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_LINE_BYTES = 65_536
"""The longest request line that every daemon takes unless its operator has set less; without the newline."""

Bytes = bytes | bytearray | memoryview
E = TypeVar("E")


class Channel:
    """``timeout`` is the longest silence of the daemon in seconds; ``None`` waits for ever."""

    def __init__(self, address: Address, api_key: str | None, timeout: float | None) -> None:
        self.address = address
        self._api_key = api_key
        self._timeout = timeout
        self._idle: Connection | None = None
        self._ids = itertools.count(1)

    def connect(self, timeout: float | None = None) -> None:
        """Connects, unless it is connected; ``timeout``, in seconds, is for this alone."""
        self.give_back(self._take(self._timeout if timeout is None else timeout))

    def ask(self, body: Mapping[str, Any], raw: Sequence[Bytes] = ()) -> tuple[Connection, str]:
        """Sends a request with the raw bytes that follow its line; its connection and its id.

        Raises UsageError for a body that JSON cannot hold.
        """
        request_id = f"c{next(self._ids)}"
        line = encode({"id": request_id, **body})
        connection = self._take(self._timeout)
        try:
            for piece in (line + b"\n", *raw):
                connection.send(piece)
        except BaseException:
            connection.close()
            raise
        return connection, request_id

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection whose request is finished for the next one."""
        if self._idle is None:
            self._idle = connection
        else:
            connection.close()

    def close(self) -> None:
        """Closes the idle connection; requests that still run are not touched. Idempotent."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _take(self, connect_timeout: float | None) -> Connection:
        connection, self._idle = self._idle, None
        if connection is not None:
            if connection.alive():
                return connection
            connection.close()
        return Connection(self.address, self._api_key, timeout=self._timeout, connect_timeout=connect_timeout)


def encode(value: object) -> bytes:
    """``value`` as JSON; raises UsageError where it cannot be."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise UsageError(f"the request cannot be written as JSON: {error}") from None


class Reply(Iterator[E]):
    """The events of one request, up to the one that :meth:`_is_last`.

    Closing it before that closes its connection, which cancels the request. Use it in a ``with``.
    """

    _connection: Connection | None = None

    def __init__(self, channel: Channel, body: Mapping[str, Any], raw: Sequence[Bytes] = ()) -> None:
        self._channel = channel
        self._connection, self._id = channel.ask(body, raw)

    @abstractmethod
    def _event(self, kind: str, frame: Mapping[str, Any]) -> E | None:
        """What a frame means; ``None`` or a LookupError, TypeError or AttributeError: it is no response."""

    @abstractmethod
    def _is_last(self, event: E) -> bool: ...

    def __next__(self) -> E:
        """The next event; RequestFailed for an error frame, ConnectionLost when the reply breaks off."""
        connection = self._connection
        if connection is None:
            raise StopIteration
        try:
            event = self._read(connection.line())
        except BaseException:
            self.close()
            raise
        if self._is_last(event):
            self._connection = None
            self._channel.give_back(connection)
        return event

    def close(self) -> None:
        """Cancels what is not finished. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _read(self, line: bytes) -> E:
        try:
            frame = orjson.loads(line)
            kind = frame["type"]
            if kind == "error" and frame["id"] in (self._id, ""):
                raise RequestFailed(frame["code"], frame["message"])
            if frame["id"] != self._id:
                raise ProtocolError("the daemon answered another request than the one that was sent")
            event = self._event(kind, frame)
            if event is not None:
                return event
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            pass
        raise ProtocolError("the daemon sent a line that is no response; is this inferd's socket?")
