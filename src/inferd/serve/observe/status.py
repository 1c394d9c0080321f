"""The state of the daemon, published on the admin socket.

A subscriber is a client of the admin socket. A new subscriber gets one ``capabilities`` frame for each
backend, and then the current lifecycle frame. After that, the subscriber gets each event when it is
published. Publishing never blocks. For a slow subscriber, up to ``MAX_UNREAD_EVENTS`` frames are kept. A
subscriber that leaves more frames unread is disconnected, and may reconnect.

A subscriber may request a snapshot, the list of models, the unloading of a model, or a download. The answers
arrive among the events. All other input is ignored. The requests to unload are served one after another, and
at most ``MAX_UNREAD_EVENTS`` of them may wait. A subscriber has one download at a time. The download is
cancelled when the subscriber leaves.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from inferd.errors import InferdError, InvalidRequest, ModelNotFound
from inferd.wire import admin

MAX_UNREAD_EVENTS = 256  # minutes of a download's progress; then a fresh snapshot is more useful

ShowPull = Callable[[str, Mapping[str, object]], None]
"""Called with each phase of a download, and the details of the phase."""


async def _no_models() -> Sequence[Mapping[str, object]]:
    return ()


async def _no_such_model(name: str) -> int:
    raise ModelNotFound(name)


async def _no_download(name: str, show: ShowPull) -> str:
    raise ModelNotFound(name)


class StatusBoard:
    """The state of the daemon for the subscribers of the admin socket. The board calls four functions.
    ``report`` returns the details of a snapshot, and ``list_models`` returns one row for each model.
    ``unload`` unloads a model, and returns the number of requests that still run on this model. ``pull``
    downloads a model, and returns its name. All methods run on the event loop's thread."""

    def __init__(
        self,
        report: Callable[[], Mapping[str, object]],
        list_models: Callable[[], Awaitable[Sequence[Mapping[str, object]]]] = _no_models,
        unload: Callable[[str], Awaitable[int]] = _no_such_model,
        pull: Callable[[str, ShowPull], Awaitable[str]] = _no_download,
    ) -> None:
        self._report = report
        self.pull = pull
        self.unload = unload
        self.list_models = list_models
        self._capabilities: list[bytes] = []
        self._lifecycle = admin.STARTING
        self._subscribers: set[Subscriber] = set()

    def publish(self, frame: bytes) -> None:
        """Replaces the lifecycle frame, and sends it to every subscriber."""
        self._lifecycle = frame
        self.publish_event(frame)

    def publish_event(self, frame: bytes) -> None:
        """Sends a frame to every subscriber. The frame is not kept for new subscribers."""
        for subscriber in tuple(self._subscribers):
            subscriber.send(frame)

    def publish_capabilities(self, frame: bytes) -> None:
        """Sends a ``capabilities`` frame to every subscriber, and keeps it for new subscribers."""
        self._capabilities.append(frame)
        self.publish_event(frame)

    def forget_capabilities(self) -> None:
        """Drops the ``capabilities`` frames that are kept for new subscribers."""
        self._capabilities.clear()

    async def serve(self, sock: socket.socket) -> None:
        """Serves one subscriber until it leaves. If the task is cancelled, the frames that were already
        passed to :meth:`Subscriber.send` are still written."""
        subscriber = Subscriber(self)
        loop = asyncio.get_running_loop()
        connecting = loop.create_task(loop.connect_accepted_socket(lambda: subscriber, sock))
        try:
            await asyncio.shield(connecting)
            await asyncio.shield(subscriber.closed)
        except asyncio.CancelledError:
            await connecting  # frames may have been sent to the subscriber already
            subscriber.finish()
            await subscriber.closed
        finally:
            subscriber.abort()
            await subscriber.end_pull()

    def welcome(self, subscriber: Subscriber) -> None:
        """Sends the current state to a new subscriber, and registers the subscriber for further frames."""
        for frame in (*self._capabilities, self._lifecycle):
            subscriber.send(frame)
        self._subscribers.add(subscriber)

    def snapshot(self) -> bytes:
        """Returns a ``snapshot`` frame with the current state."""
        return admin.snapshot(self._lifecycle, self._report())

    def forget(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)


class Subscriber(asyncio.Protocol):
    """The connection of one subscriber."""

    _transport: asyncio.Transport

    def __init__(self, board: StatusBoard) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._board = board
        self._connected = False
        self._begun = b""  # of a line whose end has not arrived
        self._unread: deque[bytes] = deque()
        self._blocked = False
        self._finishing = False
        self._listing: asyncio.Future[None] | None = None
        self._to_unload: deque[str] = deque()
        self._unloading: asyncio.Future[None] | None = None
        self._pulling: asyncio.Future[None] | None = None
        self._pull_cancelled = False

    def send(self, frame: bytes) -> None:
        """Sends ``frame``, or keeps it until the subscriber reads again. Disconnects a subscriber with too
        many kept frames. Does nothing if the subscriber has left."""
        if self._transport.is_closing():
            return
        if not self._blocked:
            self._transport.write(frame)
        elif len(self._unread) < MAX_UNREAD_EVENTS:
            self._unread.append(frame)
        else:
            self.abort()

    def finish(self) -> None:
        """Closes the connection once all frames are written."""
        self._finishing = True
        if not self._unread:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection at once. If the connection is not open yet, does nothing."""
        self._unread.clear()
        if self._connected:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connected = True
        # Frames wait in this object's queue, where they are counted, not in the transport's buffer.
        self._transport.set_write_buffer_limits(high=0)
        self._board.welcome(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._board.forget(self)
        self._cancel_pull()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        *lines, begun = (self._begun + data).split(b"\n")
        # One byte more than the longest request: enough to reject a line that is too long.
        self._begun = begun[: admin.MAX_REQUEST_BYTES + 1]
        asked = list(map(admin.read_request, lines))
        kinds = {kind for kind, _ in asked}
        # Repeated requests of one kind in one read get one answer, so a client cannot keep the loop busy.
        if "snapshot" in kinds:
            self.send(self._board.snapshot())
        if self._listing is None and "models" in kinds:
            self._listing = asyncio.ensure_future(self._list_models())
        self._to_unload += (name for kind, name in asked if kind == "unload")
        if len(self._to_unload) > MAX_UNREAD_EVENTS:
            self._to_unload.clear()
            self.abort()
        elif self._unloading is None and self._to_unload:
            self._unloading = asyncio.ensure_future(self._unload())
        for name in (name for kind, name in asked if kind == "pull"):
            self._begin_pull(name)

    async def _list_models(self) -> None:
        try:
            self.send(admin.models(await self._board.list_models()))
        finally:
            self._listing = None

    async def _unload(self) -> None:
        """Serves the waiting unload requests one after another, and answers each request."""
        try:
            while self._to_unload:
                name = self._to_unload.popleft()
                try:
                    self.send(admin.unloaded(name, await self._board.unload(name)))
                except InferdError as error:
                    self.send(admin.refused(name, error.code, str(error)))
        finally:
            self._unloading = None

    def _begin_pull(self, name: str) -> None:
        if self._pulling is not None:
            error = InvalidRequest("this connection already downloads a model; open another one")
            self.send(admin.refused(name, error.code, str(error)))
            return
        self._pulling = asyncio.ensure_future(self._pull(name))

    async def _pull(self, name: str) -> None:
        def show(phase: str, details: Mapping[str, object]) -> None:
            if not self._blocked:  # a slow reader gets only a later frame
                self.send(admin.pulling(name, phase, details))

        try:
            self.send(admin.pulled(name, await self._board.pull(name, show)))
        except InferdError as error:
            self.send(admin.refused(name, error.code, str(error)))
        except Exception:
            self.send(admin.refused(name, InferdError.code, "internal error; the daemon's log says more"))
            raise
        finally:
            self._pulling = None

    async def end_pull(self) -> None:
        """Cancels the download, and waits until it has ended."""
        self._cancel_pull()
        if self._pulling is not None:
            await asyncio.wait((self._pulling,))

    def _cancel_pull(self) -> None:
        """Cancels the download. Only the first call cancels, since a second cancellation would interrupt the
        clean-up."""
        if self._pulling is not None and not self._pull_cancelled:
            self._pull_cancelled = True
            self._pulling.cancel()

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
