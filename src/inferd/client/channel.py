"""The blocking connections of a client to one surface, and their replies.

Each running request has its own connection, so several may run at once. Closing a reply early closes the
connection, which cancels the request in the daemon. The connection of a finished request is reused.
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
    """``timeout`` bounds each wait for the daemon, in seconds; ``None`` waits for ever."""

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
        """Connects, unless it is connected. ``timeout``, in seconds, bounds only the connecting."""
        self._idle.give_back(self._take(self._timeout if timeout is None else timeout))

    def ask(self, request: PendingRequest[E, D], *, anew: bool = False) -> Connection:
        """Sends a request, on a new connection if ``anew``. Returns the connection of the reply."""
        connection = self._connect(self._timeout) if anew else self._take(self._timeout)
        connection.ask(request.pieces)
        return connection

    def follow(self, plan: Plan[T]) -> T:
        """Runs the requests of a plan."""
        try:
            request = next(plan)
            while True:
                with Reply(self, request) as reply:
                    request = plan.send(reply.result())
        except StopIteration as end:
            result: T = end.value
            return result

    def give_back(self, connection: Connection) -> None:
        """Keeps the connection of a finished request for the next one."""
        self._idle.give_back(connection)

    def close(self) -> None:
        """Closes the idle connections; running requests continue. Idempotent."""
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
    """The events of one request; the last event has the type ``D``.

    Closing the reply earlier closes its connection and so cancels the request. Use a reply in a ``with``.
    """

    _connection: Connection | None = None

    def __init__(self, channel: Channel, request: PendingRequest[E, D]) -> None:
        self._channel = channel
        self._request = request
        self._connection = channel.ask(request)

    def __next__(self) -> E | D:
        """The next event. Raises RequestFailed for an error frame, ConnectionLost if the reply breaks off."""
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
        """Reads to the end, and returns the last event.

        Raises ConnectionLost if the reply was closed earlier, and AnswerCancelled if the daemon ended it.
        """
        for _ in self:
            pass
        if self._request.done is None:
            raise ConnectionLost("the reply was closed before it was complete")
        check_whole(self._request.done)
        return self._request.done

    def close(self) -> None:
        """Cancels the request unless it is finished. Idempotent."""
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
