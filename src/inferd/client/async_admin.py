"""The admin client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from inferd.client.address import Address, default_admin_address, endpoint
from inferd.client.admin import Frame, Inquiry, Opening, Removal, Snapshot, Status, is_ready
from inferd.client.async_connection import AsyncConnection
from inferd.errors import RequestFailed
from inferd.wire import admin


class AsyncAdminClient:
    """:class:`AdminClient` for asyncio. The client connects when an ``async with`` block begins, or on first
    use."""

    def __init__(self, address: Address | None = None, timeout: float | None = None) -> None:
        self.address: Address = default_admin_address() if address is None else address
        self._timeout = timeout
        self._connection: AsyncConnection | None = None

    async def event(self) -> Frame:
        """Returns the next frame. The first frames describe the daemon's current state.

        Raises DaemonUnreachable if the first call cannot connect, and ConnectionLost when the daemon exits.
        """
        connection = await self._connected()
        return admin.parse(await connection.line())

    async def events(self) -> AsyncIterator[Frame]:
        """Yields frames as they arrive."""
        while True:
            yield await self.event()

    async def snapshot(self) -> Snapshot:
        """Returns the state of the daemon when the client connected. Call this method before any other."""
        opening = Opening()
        while (state := opening.take(await self.event())) is None:
            pass
        return state

    async def status(self) -> Status:
        """Returns the state of the daemon: see :meth:`AdminClient.status`."""
        connection = await self._connected()
        await connection.send([admin.SNAPSHOT_REQUEST])
        inquiry = Inquiry()
        while (state := inquiry.take(await self.event())) is None:
            pass
        return state

    async def models(self) -> Sequence[Frame]:
        """Returns the models that the daemon loads on demand, as the rows of the ``models`` frame."""
        connection = await self._connected()
        await connection.send([admin.MODELS_REQUEST])
        while (frame := await self.event())["status"] != "models":
            pass
        rows: Sequence[Frame] = frame.get("models", ())
        return rows

    async def unload(self, name: str) -> int:
        """Unloads a model: see :meth:`AdminClient.unload`."""
        removal = Removal(name)
        connection = await self._connected()
        await connection.send([removal.request])
        while (left := removal.take(await self.event())) is None:
            pass
        return left

    async def pull(self, name: str) -> AsyncIterator[Frame]:
        """Downloads a model, and yields a frame for each step. The last frame has the status ``pulled``.

        Closing the client cancels the download. Raises RequestFailed if the download fails.
        """
        connection = await self._connected()
        await connection.send([admin.pull_request(name)])
        async for frame in self.events():
            if frame.get("model") != name:
                continue
            if frame["status"] == "refused":
                raise RequestFailed(str(frame.get("code")), str(frame.get("message")))
            if frame["status"] in ("pulling", "pulled"):
                yield frame
            if frame["status"] == "pulled":
                return

    async def wait_ready(self, on_event: Callable[[Frame], None] = lambda frame: None) -> None:
        """Waits until the daemon is ready: see :meth:`AdminClient.wait_ready`."""
        ready = False
        while not ready:
            frame = await self.event()
            on_event(frame)
            ready = is_ready(frame)

    async def aclose(self) -> None:
        """Ends the subscription. A second call does nothing."""
        if self._connection is not None:
            self._connection.close()

    async def __aenter__(self) -> AsyncAdminClient:
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            where = endpoint(self.address, "admin")
            self._connection = await AsyncConnection.open(
                where, timeout=self._timeout, connect_timeout=self._timeout
            )
        return self._connection
