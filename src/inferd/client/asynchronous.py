"""The asyncio client of a running daemon.

    async with AsyncClient() as client, client.generate("Why is the sky blue?") as answer:
        async for event in answer:
            ...

This client behaves as described in :mod:`inferd.client.blocking`, and raises the same errors. A request is
sent when the ``async with`` block of its reply begins, or when the reply is first read. If a task that waits
for a reply is cancelled, the request is cancelled. Several tasks may share a client, and a client is not
bound to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inferd.client import start as background
from inferd.client.address import Address, Surface, endpoint
from inferd.client.admin import Status
from inferd.client.async_admin import AsyncAdminClient
from inferd.client.async_channel import AsyncChannel, AsyncReply
from inferd.client.conversation import Conversation
from inferd.client.core import Backoff, Core, SurfaceAddresses, Tooling
from inferd.client.messages import Block, Content, Event, MessageDone
from inferd.client.protocol import Incoming, OnProgress
from inferd.client.text import Done, Sampling, Token
from inferd.client.vectors import Embeddings, Ranking
from inferd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from typing_extensions import Unpack

AsyncGeneration = AsyncReply[Token, Done]
AsyncAnswer = AsyncReply[Event, MessageDone]


class AsyncClient:
    """:class:`inferd.Client` for asyncio, with the same arguments.

    With ``start``, :meth:`connect` and the beginning of an ``async with`` block start a daemon if none runs.
    """

    def __init__(
        self,
        address: Address | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        *,
        id_prefix: str | None = None,
        start: bool = False,
        **elsewhere: Unpack[SurfaceAddresses],
    ) -> None:
        background.check(start, address)
        self._start = start
        self._core = Core(address, elsewhere, id_prefix)
        self._api_key = api_key or self._core.api_key
        self._timeout = timeout
        self._channels: dict[Surface, AsyncChannel] = {}
        self.address = self._core.addresses.of("v1")

    async def connect(self, timeout: float | None = None, surface: Surface = "v1") -> None:
        """Connects, unless a connection is open. ``timeout`` limits only the time to connect, in seconds."""
        try:
            await self._channel(surface).connect(timeout)
        except DaemonUnreachable:
            if not self._start:
                raise
            await asyncio.to_thread(background.start)
            await self._channel(surface).connect(timeout)

    def generate(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        on_progress: OnProgress | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGeneration:
        """Generates text: see :meth:`inferd.Client.generate`."""
        surface, request = self._core.generate(messages, sampling, on_progress)
        return AsyncReply(self._channel(surface), request)

    def messages(
        self,
        messages: str | Sequence[Block],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[Tooling],
    ) -> AsyncAnswer:
        """Generates typed blocks: see :meth:`inferd.Client.messages`."""
        return AsyncReply(self._channel("v2"), self._core.messages(messages, options, on_progress))

    def chat(self, system: str | None = None, **options: Unpack[Tooling]) -> AsyncChat:
        """Starts a conversation: see :meth:`inferd.Client.chat`."""
        return AsyncChat(self, self._core.conversation(system, options))

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        dimensions: int | None = None,
        model: str | None = None,
    ) -> Embeddings:
        """Returns the embeddings of one or many texts: see :meth:`inferd.Client.embed`."""
        return await self._channel("embed").follow(self._core.embed(texts, task, dimensions, model))

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
    ) -> Ranking:
        """Returns the documents, ranked by relevance to the query: see :meth:`inferd.Client.rerank`."""
        return await self._channel("rerank").follow(self._core.rerank(query, documents, top_n, model))

    async def status(self) -> Status:
        """Returns the state of the daemon, with its running and queued requests. Works even while the daemon
        starts."""
        async with AsyncAdminClient(self._core.addresses.of("admin"), self._timeout) as admin:
            return await admin.status()

    async def aclose(self) -> None:
        """Closes the idle connections. Running requests continue. A second call does nothing."""
        for channel in self._channels.values():
            channel.close()
        self._channels = {}

    async def __aenter__(self) -> AsyncClient:
        if self._start:
            await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _channel(self, surface: Surface) -> AsyncChannel:
        channel = self._channels.get(surface)
        if channel is None:
            where = endpoint(self._core.addresses.of(surface), surface)
            incoming = self._core.incoming_v2 if surface == "v2" else Incoming
            channel = self._channels[surface] = AsyncChannel(where, self._api_key, self._timeout, incoming)
        return channel

    def _ask(self, conversation: Conversation, content: Content) -> AsyncAnswer:
        return AsyncReply(self._channel("v2"), conversation.ask(self._core.next_id(), content))


class AsyncChat:
    """A conversation. A question becomes part of the conversation as soon as any part of its answer has
    arrived."""

    def __init__(self, client: AsyncClient, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation

    def ask(self, content: Content) -> AsyncAnswer:
        """Asks for an answer to ``content``, which is a text or a list of texts, attachments and blocks. Read
        each answer to its end before you ask the next question."""
        return self._client._ask(self._conversation, content)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns so far without the system message, in the form that :meth:`AsyncClient.messages`
        takes."""
        return self._conversation.turns

    def clear(self) -> None:
        """Forgets all turns. The system message stays."""
        self._conversation.clear()


async def async_dial_and_wait_ready(
    address: Address | None = None,
    *,
    limit_secs: float,
    api_key: str | None = None,
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **elsewhere: Unpack[SurfaceAddresses],
) -> AsyncClient:
    """Waits for the daemon, and returns a connected client: see :func:`inferd.dial_and_wait_ready`."""
    client = AsyncClient(address, api_key, timeout, **elsewhere)
    backoff = Backoff(limit_secs, clock)
    while True:
        try:
            await client.connect(backoff.left())
            return client
        except DaemonUnreachable:
            pause = backoff.pause()
            if not pause:
                raise
        await sleep(pause)
