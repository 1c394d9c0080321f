"""The blocking connections of a client to one surface, and the replies that arrive on these connections.

Each running request has a connection of its own, so several requests may run at once. If a reply is closed
before its end, the connection is closed, and the daemon cancels the request. The connection of a finished
request is reused.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic

from inferd.client.address import Endpoint
from inferd.client.connection import Connection
from inferd.client.core import ConnectionPool
from inferd.client.protocol import D, E, Incoming, PendingRequest, check_whole
from inferd.client.vectors import Plan, T
from inferd.errors import ConnectionLost

if TYPE_CHECKING:
    from typing_extensions import Self


class Channel:
    """The blocking connections to one surface. ``timeout`` limits each wait for the daemon, in seconds, and
    ``None`` means no limit."""

    def __init__(
        self,
        endpoint: Endpoint,
        api_key: str | None,
        timeout: float | None,
        incoming: type[Incoming] = Incoming,
    ) -> None:
        self._incoming = incoming
        self._endpoint = endpoint
        self._api_key = api_key
        self._timeout = timeout
        self._idle: ConnectionPool[Connection] = ConnectionPool()

    def connect(self, timeout: float | None) -> None:
        """Connects, unless a connection is open. ``timeout`` limits only the time to connect, in seconds."""
        self._idle.give_back(self._take(self._timeout if timeout is None else timeout))

    def ask(self, request: PendingRequest[E, D], *, anew: bool = False) -> Connection:
        """Sends a request. With ``anew``, opens a new connection for this request. Returns the connection on
        which the reply arrives."""
        connection = self._connect(self._timeout) if anew else self._take(self._timeout)
        connection.ask(request.pieces)
        return connection

    def follow(self, plan: Plan[T]) -> T:
        """Sends the requests that the generator ``plan`` yields, one after the other, and returns the result
        of ``plan``."""
        try:
            request = next(plan)
            while True:
                with Reply(self, request) as reply:
                    request = plan.send(reply.result())
        except StopIteration as end:
            result: T = end.value
            return result

    def give_back(self, connection: Connection) -> None:
        """Keeps the connection of a finished request for the next request."""
        self._idle.give_back(connection)

    def close(self) -> None:
        """Closes the idle connections. Running requests continue. A second call does nothing."""
        self._idle.close()

    def _take(self, connect_timeout: float | None) -> Connection:
        return self._idle.take() or self._connect(connect_timeout)

    def _connect(self, connect_timeout: float | None) -> Connection:
        return Connection(
            self._endpoint,
            self._api_key,
            timeout=self._timeout,
            connect_timeout=connect_timeout,
            incoming=self._incoming,
        )


class Reply(Iterator[E | D], Generic[E, D]):
    """The events of one reply. The last event has the type ``D``.

    If the reply is closed before its end, the connection is closed, which cancels the request. Use a reply in
    a ``with`` block.
    """

    _connection: Connection | None = None

    def __init__(self, channel: Channel, request: PendingRequest[E, D]) -> None:
        self._channel = channel
        self._request = request
        self._connection = channel.ask(request)

    def __next__(self) -> E | D:
        """Returns the next event. Raises RequestFailed for an error frame, and ConnectionLost if the
        connection ends before the reply is complete."""
        if self._connection is None:
            raise StopIteration
        try:
            while (event := self._request.take(self._line(self._connection))) is None:
                pass
        except BaseException:
            self.close()
            raise
        if self._request.done is not None:
            self._channel.give_back(self._connection)
            self._connection = None
        return event

    def _line(self, connection: Connection) -> bytes:
        try:
            return connection.line()
        except ConnectionLost:
            if not connection.lapsed:
                raise
        self._connection = self._channel.ask(self._request, anew=True)
        return self._connection.line()

    def result(self) -> D:
        """Reads the reply to its end, and returns the last event.

        Raises ConnectionLost if the reply was closed before its end, and AnswerCancelled if the daemon ended
        the answer early.
        """
        for _ in self:
            pass
        if self._request.done is None:
            raise ConnectionLost("the reply was closed before it was complete")
        check_whole(self._request.done)
        return self._request.done

    def close(self) -> None:
        """Cancels the request, unless the request is finished. A second call does nothing."""
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
