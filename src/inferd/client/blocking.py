"""The blocking client of a running daemon.

    with Client() as client, client.generate("Why is the sky blue?") as answer:
        for event in answer:
            ...

Each surface has its own connections, opened on first use. Closing a reply early cancels its request in the
daemon. Several threads may share a client, but not a reply. Errors come from ``inferd.errors``: RequestFailed
for an error frame, DaemonUnreachable, ConnectionLost, ProtocolError, and UsageError for values that JSON
cannot hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inferd.client import start as background
from inferd.client.address import Address, Surface, endpoint
from inferd.client.admin import AdminClient, Status
from inferd.client.channel import Channel, Reply
from inferd.client.conversation import Conversation
from inferd.client.core import Backoff, Core, SurfaceAddresses, Tooling
from inferd.client.messages import Block, Content, Event, MessageDone
from inferd.client.protocol import Incoming, OnProgress
from inferd.client.text import Done, Sampling, Token
from inferd.client.vectors import Embeddings, Ranking
from inferd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from typing_extensions import Unpack

Generation = Reply[Token, Done]
Answer = Reply[Event, MessageDone]


class Client:
    """Connects to v1 at ``address``, and to ``v2``, ``embed``, ``rerank`` and ``admin`` at their addresses.

    An address is a Unix socket's path, or ``tcp://IP:port``, which may need an ``api_key``. The default is
    the surface's default socket, or the socket next to ``address`` if that is another daemon's
    ``infer.sock``. ``timeout`` bounds each wait for the daemon, in seconds; ``None`` waits for ever.
    ``id_prefix`` begins the ids of the client's requests, as shown by status and the log; by default it
    contains the pid. With ``start`` it connects at once, and starts a daemon in the background if none runs;
    BootFailed gives the reason of a failed start. Otherwise it connects on :meth:`connect` or the first
    request.
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
        self._core = Core(address, elsewhere, id_prefix)
        self._api_key = api_key or self._core.api_key
        self._timeout = timeout
        self._channels: dict[Surface, Channel] = {}
        self.address = self._core.addresses.of("v1")
        if start:
            try:
                self.connect()
            except DaemonUnreachable:
                background.start()
                self.connect()

    def connect(self, timeout: float | None = None, surface: Surface = "v1") -> None:
        """Connects, unless it is connected. ``timeout``, in seconds, bounds only the connecting."""
        self._channel(surface).connect(timeout)

    def generate(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        on_progress: OnProgress | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Starts generating text (on v1, or on v2 if the request is too long for a line).

        ``messages`` is one user message, or turns of ``{"role", "content"}``. Events are :class:`Token`, and
        one final :class:`Done`. While the request waits for its model to load, reading the reply calls
        ``on_progress`` with each phase of the load and its details.
        """
        surface, request = self._core.generate(messages, sampling, on_progress)
        return Reply(self._channel(surface), request)

    def messages(
        self,
        messages: str | Sequence[Block],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[Tooling],
    ) -> Answer:
        """Starts generating typed blocks (on v2).

        ``messages`` is one user message, or turns of ``{"role", "content"}``, where ``content`` is a text or
        a list of texts, instances of :class:`Attachment`, and blocks of the wire. ``tool_choice`` is
        ``auto``, ``none``, ``required`` or ``{"name": …}``. Events are :class:`Text`, :class:`Thinking` and
        :class:`ToolUse`, and one final :class:`MessageDone`.
        """
        return Reply(self._channel("v2"), self._core.messages(messages, options, on_progress))

    def chat(self, system: str | None = None, **options: Unpack[Tooling]) -> Chat:
        """A conversation (on v2); the options apply to each of its answers."""
        return Chat(self, self._core.conversation(system, options))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        dimensions: int | None = None,
        model: str | None = None,
    ) -> Embeddings:
        """The embeddings of one or many texts. A long list is sent in several requests, one after the other;
        a RequestFailed after the first request names the index of its first text."""
        return self._channel("embed").follow(self._core.embed(texts, task, dimensions, model))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
    ) -> Ranking:
        """The documents ranked by relevance to the query; with ``top_n`` only the best ``top_n``."""
        return self._channel("rerank").follow(self._core.rerank(query, documents, top_n, model))

    def status(self) -> Status:
        """The state of the daemon, with its running and queued requests. Also works while it boots."""
        with AdminClient(self._core.addresses.of("admin"), self._timeout) as admin:
            return admin.status()

    def close(self) -> None:
        """Closes the idle connections; running requests continue. Idempotent."""
        for channel in self._channels.values():
            channel.close()
        self._channels = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _channel(self, surface: Surface) -> Channel:
        channel = self._channels.get(surface)
        if channel is None:
            where = endpoint(self._core.addresses.of(surface), surface)
            incoming = self._core.incoming_v2 if surface == "v2" else Incoming
            # If two threads create a channel at the same time, both use the first one.
            channel = self._channels.setdefault(
                surface, Channel(where, self._api_key, self._timeout, incoming)
            )
        return channel

    def _ask(self, conversation: Conversation, content: Content) -> Answer:
        return Reply(self._channel("v2"), conversation.ask(self._core.next_id(), content))


class Chat:
    """A conversation. It keeps a question once the question has an answer, even a partial one."""

    def __init__(self, client: Client, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation

    def ask(self, content: Content) -> Answer:
        """Asks a text, or a list of texts, attachments and blocks. One answer at a time."""
        return self._client._ask(self._conversation, content)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns so far, without the system message, in the form of :meth:`Client.messages`."""
        return self._conversation.turns

    def clear(self) -> None:
        """Forgets all turns; the system message stays."""
        self._conversation.clear()


def dial_and_wait_ready(
    address: Address | None = None,
    *,
    limit_secs: float,
    api_key: str | None = None,
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    **elsewhere: Unpack[SurfaceAddresses],
) -> Client:
    """Waits until the daemon is ready, and returns a connected client.

    Before that the daemon's socket may not exist. Retries after 100 ms, doubling up to 5 s, and raises
    DaemonUnreachable after ``limit_secs``. The last pause ends at ``limit_secs``.
    """
    client = Client(address, api_key, timeout, **elsewhere)
    backoff = Backoff(limit_secs, clock)
    while True:
        try:
            client.connect(backoff.left())
            return client
        except DaemonUnreachable:
            pause = backoff.pause()
            if not pause:
                raise
        sleep(pause)
