"""The asyncio connections of a client to one surface, and the replies that arrive on these connections.

This module is :mod:`inferd.client.channel` for asyncio, with one difference: a request is sent only when the
``async with`` block of its reply begins, or when the reply is first read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol

from inferd.client.address import Endpoint
from inferd.client.async_connection import AsyncConnection
from inferd.client.core import ConnectionPool
from inferd.client.protocol import D, E, Incoming, PendingRequest, check_whole
from inferd.client.vectors import Plan, T
from inferd.errors import ConnectionLost

if TYPE_CHECKING:
    from typing_extensions import Self


_CLOSED = "the reply was closed before it was complete"


class Connection(Protocol):
    """The connection over which one reply arrives."""

    @property
    def lapsed(self) -> bool: ...

    async def line(self) -> bytes: ...

    def close(self) -> None: ...


class Channel(ABC):
    """Sends each request over a connection, and returns this connection, on which the reply arrives."""

    @abstractmethod
    async def ask(self, request: PendingRequest[E, D], *, anew: bool = False) -> Connection:
        """Sends a request. With ``anew``, opens a new connection for this request. Returns the connection on
        which the reply arrives."""

    @abstractmethod
    def give_back(self, connection: Any) -> None:
        """Keeps the connection of a finished request for the next request."""

    async def follow(self, plan: Plan[T]) -> T:
        """Sends the requests that the generator ``plan`` yields, one after the other, and returns the result
        of ``plan``."""
        try:
            request = next(plan)
            while True:
                async with AsyncReply(self, request) as reply:
                    request = plan.send(await reply.result())
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncChannel(Channel):
    """The asyncio connections to one surface.

    ``timeout`` limits each wait for the daemon, in seconds, and ``None`` means no limit. ``incoming`` is the
    class that splits the received bytes, either into lines or into frames. Requests must have the same form
    as replies. ``connection`` is the class of the connections.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        api_key: str | None,
        timeout: float | None,
        incoming: type[Incoming] = Incoming,
        connection: type[AsyncConnection] = AsyncConnection,
    ) -> None:
        self._incoming = incoming
        self._kind = connection
        self._endpoint = endpoint
        self._api_key = api_key
        self._timeout = timeout
        self._idle: ConnectionPool[AsyncConnection] = ConnectionPool()

    async def connect(self, timeout: float | None) -> None:
        """Connects, unless a connection is open. ``timeout`` limits only the time to connect, in seconds."""
        self._idle.give_back(await self.take(self._timeout if timeout is None else timeout))

    async def take(self, connect_timeout: float | None) -> AsyncConnection:
        """Returns a connection for one request: an idle connection, or else a new connection."""
        return self._idle.take() or await self._connect(connect_timeout)

    async def _connect(self, connect_timeout: float | None) -> AsyncConnection:
        return await self._kind.open(
            self._endpoint,
            self._api_key,
            timeout=self._timeout,
            connect_timeout=connect_timeout,
            incoming=self._incoming,
        )

    async def ask(self, request: PendingRequest[E, D], *, anew: bool = False) -> AsyncConnection:
        connection = None if anew else self._idle.take()
        if connection is None:
            connection = await self._connect(self._timeout)
        await connection.ask(request.pieces)
        return connection

    def give_back(self, connection: AsyncConnection) -> None:
        self._idle.give_back(connection)

    def close(self) -> None:
        """Closes the idle connections. Running requests continue. A second call does nothing."""
        self._idle.close()


class AsyncReply(AsyncIterator[E | D], Generic[E, D]):
    """The events of one reply. The last event has the type ``D``.

    If the reply is closed before its end, or the task that reads the reply is cancelled, the connection is
    closed, which cancels the request. Use a reply in an ``async with`` block.
    """

    _connection: Connection | None = None
    _over = False

    def __init__(self, channel: Channel, request: PendingRequest[E, D]) -> None:
        self._channel = channel
        self._request = request

    async def __anext__(self) -> E | D:
        """Returns the next event. Raises RequestFailed for an error frame, and ConnectionLost if the
        connection ends before the reply is complete."""
        if self._over:
            raise StopAsyncIteration
        try:
            event = None
            while event is None:
                connection = self._connection or await self._started()
                event = self._request.take(await self._line(connection))
        except ConnectionLost:
            if self._over:  # another task has closed the reply
                raise StopAsyncIteration from None
            self._close()
            raise
        except BaseException:
            self._close()
            raise
        if self._request.done is not None and self._connection is not None:
            self._over = True
            self._channel.give_back(self._connection)
            self._connection = None
        return event

    async def _line(self, connection: Connection) -> bytes:
        try:
            return await connection.line()
        except ConnectionLost:
            if self._over or not connection.lapsed:
                raise
        self._connection = None
        return await (await self._started(anew=True)).line()

    async def result(self) -> D:
        """Reads the reply to its end, and returns the last event.

        Raises ConnectionLost if the reply was closed before its end, and AnswerCancelled if the daemon ended
        the answer early.
        """
        async for _ in self:
            pass
        if self._request.done is None:
            raise ConnectionLost(_CLOSED)
        check_whole(self._request.done)
        return self._request.done

    async def aclose(self) -> None:
        """Cancels the request, unless the request is finished. Another task may be reading the reply. A
        second call does nothing."""
        self._close()

    async def __aenter__(self) -> Self:
        if not self._over:
            await self._started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    async def _started(self, *, anew: bool = False) -> Connection:
        if self._connection is None:
            connection = await self._channel.ask(self._request, anew=anew)
            if self._over:
                connection.close()
                raise ConnectionLost(_CLOSED)
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        self._over = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None
