"""The blocking client of a running daemon.

    with Client() as client, client.generate("Why is the sky blue?") as answer:
        for event in answer:
            ...

Each surface has connections of its own, which are made when they are first needed. Closing a reply early
cancels its request in the daemon. Errors are those of ``inferd.errors``: RequestFailed for an error frame,
DaemonUnreachable, ConnectionLost, ProtocolError, and UsageError for what cannot be written as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from inferd.client import vectors
from inferd.client.channel import Channel
from inferd.client.connection import Address
from inferd.client.messages import Answer, Block
from inferd.client.text import Generation, Sampling, given
from inferd.client.vectors import Embeddings, Ranking
from inferd.config import paths
from inferd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from typing_extensions import Unpack

FIRST_PAUSE_SECS = 0.1
LONGEST_PAUSE_SECS = 5.0

Surface = Literal["v1", "v2", "embed", "rerank"]


class Client:
    """Talks to a daemon at ``address``, and at ``v2``, ``embed`` and ``rerank`` for those surfaces.

    An address is a Unix socket's path, or ``tcp://IP:port``, for which there may be an ``api_key``; by
    default it is the surface's default socket. ``timeout`` is the longest silence of the daemon in seconds
    that is put up with; ``None`` waits for ever. Nothing is sent before :meth:`connect` or the first request.
    """

    def __init__(
        self,
        address: Address | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        *,
        v2: Address | None = None,
        embed: Address | None = None,
        rerank: Address | None = None,
    ) -> None:
        addresses: dict[Surface, Address | None] = {"v1": address, "v2": v2, "embed": embed, "rerank": rerank}
        self._channels = {
            surface: Channel(paths.socket_path(surface) if at is None else at, api_key, timeout)
            for surface, at in addresses.items()
        }
        self.address = self._channels["v1"].address

    def connect(self, timeout: float | None = None, surface: Surface = "v1") -> None:
        """Connects, unless it is connected; ``timeout``, in seconds, is for this alone."""
        self._channels[surface].connect(timeout)

    def generate(
        self, messages: str | Sequence[Mapping[str, str]], **sampling: Unpack[Sampling]
    ) -> Generation:
        """Starts a generation of text (v1).

        ``messages`` is one user message, or turns of ``{"role", "content"}``.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return Generation(self._channels["v1"], {"messages": turns, **given(sampling)})

    def messages(
        self,
        messages: str | Sequence[Block],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, str] | None = None,
        thinking: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """Starts a generation of blocks (v2).

        ``messages`` is one user message, or turns of ``{"role", "content"}``, where ``content`` is a text or
        a list of texts, instances of :class:`Attachment`, and blocks of the wire. ``tools`` are
        ``{"name", "description", "input_schema"}``; ``tool_choice`` is ``auto``, ``none``, ``required`` or
        ``{"name": …}``.
        """
        options = {
            "tools": None if tools is None else list(tools),
            "tool_choice": tool_choice,
            "thinking": thinking,
            "response_format": response_format,
        }
        chosen = {name: value for name, value in options.items() if value is not None}
        return Answer(self._channels["v2"], messages, {**chosen, **given(sampling)})

    def embed(
        self, texts: str | Sequence[str], *, task: str | None = None, dimensions: int | None = None
    ) -> Embeddings:
        """The vectors of one text or many. A long list is sent in several requests, one after the other."""
        options = {"task": task, "dimensions": dimensions}
        chosen = {name: value for name, value in options.items() if value is not None}
        return vectors.embed(self._channels["embed"], [texts] if isinstance(texts, str) else texts, chosen)

    def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> Ranking:
        """The documents by how well they answer the query; with ``top_n`` only so many of the best."""
        return vectors.rerank(self._channels["rerank"], query, documents, top_n)

    def close(self) -> None:
        """Closes the idle connections; requests that still run are not touched. Idempotent."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def dial_and_wait_ready(
    address: Address | None = None,
    *,
    limit_secs: float,
    api_key: str | None = None,
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Client:
    """A connected client, as soon as the daemon is ready: its socket does not exist before that.

    Tries again after 100 ms, doubling up to 5 s, and raises DaemonUnreachable when ``limit_secs`` have
    passed; the last pause is cut so that the limit is not overshot.
    """
    client = Client(address, api_key, timeout)
    end = clock() + limit_secs
    pause = FIRST_PAUSE_SECS
    while True:
        left = end - clock()
        try:
            client.connect(max(left, 0.001))
            return client
        except DaemonUnreachable:
            left = end - clock()
            if left <= 0:
                raise
        sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE_SECS)
