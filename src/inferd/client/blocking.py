"""The blocking client of a running daemon.

    with Client() as client, client.generate("Why is the sky blue?") as answer:
        for event in answer:
            ...

The client opens separate connections to each surface of the daemon (v1, v2, embed, rerank), on first use. If
a reply is closed before its end, the daemon cancels the request. Several threads may share a client, but not
a reply. The errors are in ``inferd.errors``: DaemonUnreachable, ConnectionLost, ProtocolError, RequestFailed
and UsageError. An error frame raises RequestFailed, and a value that JSON cannot express raises UsageError.
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
    """The client of a daemon.

    ``address`` is the address of the v1 surface. ``v2``, ``embed``, ``rerank`` and ``admin`` are the
    addresses of the surfaces with these names. An address is the path of a Unix socket or ``tcp://IP:port``.
    A TCP address may need an ``api_key``. Without ``address``, the client uses the addresses in the
    environment or the config file, or else the default sockets. If ``address`` is a socket with a default
    file name, the client looks for the sockets of the other surfaces in the same directory. ``timeout``
    limits each wait for the daemon, in seconds, and ``None`` means no limit. The ids of the client's requests
    begin with ``id_prefix``, which by default contains the pid; ``inferd status`` and the log show the ids.

    With ``start``, the constructor connects, and starts a daemon in the background if none runs. If the
    daemon cannot start, the constructor raises BootFailed with the reason. Without ``start``, the client
    connects when :meth:`connect` is called or the first request is sent.
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
        """Connects, unless a connection is open. ``timeout`` limits only the time to connect, in seconds."""
        self._channel(surface).connect(timeout)

    def generate(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        on_progress: OnProgress | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Starts generating text. Uses the v1 protocol, or the v2 protocol if the request is too long for v1.

        ``messages`` is the text of one user message, or a list of turns ``{"role", "content"}``. The reply
        yields :class:`Token` events, and at the end a :class:`Done`. While the request is queued or its model
        is being loaded, ``on_progress(phase, details)`` is called at each step, during a read of the reply.
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
        """Starts generating typed blocks. Uses the v2 protocol.

        ``messages`` is the text of one user message, or a list of turns ``{"role", "content"}``. ``content``
        is a text or a list. The list may contain texts, instances of :class:`Attachment`, and blocks of the
        v2 protocol. ``tool_choice`` is ``auto``, ``none``, ``required`` or ``{"name": …}``. The reply yields
        :class:`Text`, :class:`Thinking` and :class:`ToolUse` events, and at the end a :class:`MessageDone`.
        """
        return Reply(self._channel("v2"), self._core.messages(messages, options, on_progress))

    def chat(self, system: str | None = None, **options: Unpack[Tooling]) -> Chat:
        """Starts a conversation over the v2 protocol. The options apply to every answer of the
        conversation."""
        return Chat(self, self._core.conversation(system, options))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        dimensions: int | None = None,
        model: str | None = None,
    ) -> Embeddings:
        """Returns the embeddings of one or many texts. A long list is sent in several requests, one after the
        other. If a request after the first one fails, the message of RequestFailed gives the index in
        ``texts`` at which this request begins."""
        return self._channel("embed").follow(self._core.embed(texts, task, dimensions, model))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
    ) -> Ranking:
        """Returns the documents, ranked by relevance to the query. With ``top_n``, returns only the best
        ``top_n``."""
        return self._channel("rerank").follow(self._core.rerank(query, documents, top_n, model))

    def status(self) -> Status:
        """Returns the state of the daemon, with its running and queued requests. Works even while the daemon
        starts."""
        with AdminClient(self._core.addresses.of("admin"), self._timeout) as admin:
            return admin.status()

    def close(self) -> None:
        """Closes the idle connections. Running requests continue. A second call does nothing."""
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
            # If two threads create a channel at the same time, both use the first channel.
            channel = self._channels.setdefault(
                surface, Channel(where, self._api_key, self._timeout, incoming)
            )
        return channel

    def _ask(self, conversation: Conversation, content: Content) -> Answer:
        return Reply(self._channel("v2"), conversation.ask(self._core.next_id(), content))


class Chat:
    """A conversation. A question becomes part of the conversation as soon as any part of its answer has
    arrived."""

    def __init__(self, client: Client, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation

    def ask(self, content: Content) -> Answer:
        """Asks for an answer to ``content``, which is a text or a list of texts, attachments and blocks. Read
        each answer to its end before you ask the next question."""
        return self._client._ask(self._conversation, content)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns so far without the system message, in the form that :meth:`Client.messages` takes."""
        return self._conversation.turns

    def clear(self) -> None:
        """Forgets all turns. The system message stays."""
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

    The daemon's socket need not exist yet. The first retry is after 100 ms, and each further pause is twice
    as long, up to 5 s. Raises DaemonUnreachable after ``limit_secs``. The last pause is shortened, so that
    the last try is made when ``limit_secs`` have passed.
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
