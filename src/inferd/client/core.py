"""Code that the blocking and the asyncio client share: makes requests from arguments, computes the pauses
between retries, and keeps idle connections."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from inferd.client import vectors
from inferd.client.address import Address, Addresses, Surface
from inferd.client.conversation import Conversation
from inferd.client.framed import FramedIncoming, FramedMessagesRequest
from inferd.client.messages import Block, MessagesRequest
from inferd.client.protocol import MAX_LINE_BYTES, Incoming, OnProgress, PendingRequest
from inferd.client.text import Done, LongTextRequest, Sampling, TextRequest, Token, given
from inferd.client.vectors import Embeddings, Plan, Ranking
from inferd.config import surfaces

FIRST_PAUSE_SECS = 0.1
LONGEST_PAUSE_SECS = 5.0
MAX_IDLE = 16
"""The largest number of idle connections that are kept for each surface."""


class Tooling(Sampling, total=False):
    """The options of a v2 request. Each of the ``tools`` is ``{"name", "description", "input_schema"}``."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, str] | None
    thinking: bool | None
    response_format: Mapping[str, Any] | None
    raw: bool | None
    suffix: str | None
    begun: bool | None
    logprobs: int | None


class SurfaceAddresses(TypedDict, total=False):
    """The addresses of the surfaces other than v1."""

    v2: Address | None
    embed: Address | None
    rerank: Address | None
    admin: Address | None


_numbers = itertools.count(1)
"""Numbers the requests of all clients in this process that have no ``id_prefix``."""


class Core:
    """Builds requests with unique ids."""

    def __init__(
        self, address: Address | None, elsewhere: SurfaceAddresses, id_prefix: str | None = None
    ) -> None:
        found = surfaces.addresses() if address is None else {}
        self.api_key: str | None = None
        """The API key from the environment. ``None`` if the address comes neither from the environment nor
        from the config file."""
        if found:
            self.api_key = os.environ.get("INFERD_API_KEY") or None
        self.addresses = Addresses(
            {
                "v1": address or found.get("v1"),
                "v2": elsewhere.get("v2") or found.get("v2"),
                "embed": elsewhere.get("embed") or found.get("embed"),
                "rerank": elsewhere.get("rerank") or found.get("rerank"),
                "admin": elsewhere.get("admin") or found.get("admin"),
            }
        )
        framed = self.addresses.find("v2") is None
        self._blocks: type[MessagesRequest] = FramedMessagesRequest if framed else MessagesRequest
        self.incoming_v2: type[Incoming] = FramedIncoming if framed else Incoming
        """The class that splits v2 answers."""
        # The requests of all programs have different ids in status, top and the log, because the ids contain
        # the pid.
        self._id_prefix = f"c{os.getpid()}-" if id_prefix is None else id_prefix
        self._numbers = _numbers if id_prefix is None else itertools.count(1)

    def next_id(self) -> str:
        return f"{self._id_prefix}{next(self._numbers)}"

    def generate(
        self, messages: str | Sequence[Mapping[str, str]], sampling: Sampling, on_progress: OnProgress | None
    ) -> tuple[Surface, PendingRequest[Token, Done]]:
        """Returns the surface and the request for a generation of text. The surface is v1, or v2 if the
        request is too long for a v1 line."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        options = {**given(sampling, Sampling), **_wants(on_progress)}
        request_id = self.next_id()
        request: PendingRequest[Token, Done] = TextRequest(request_id, {"messages": turns, **options})
        surface: Surface = "v1"
        if len(request.pieces[0]) > MAX_LINE_BYTES + 1:
            options = {"model_defaults": False, **options}
            surface, request = "v2", LongTextRequest(self._blocks(request_id, turns, options))
        request.on_progress = on_progress
        return surface, request

    def messages(
        self, messages: str | Sequence[Block], options: Tooling, on_progress: OnProgress | None
    ) -> MessagesRequest:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        request = self._blocks(self.next_id(), turns, {**given(options, Tooling), **_wants(on_progress)})
        request.on_progress = on_progress
        return request

    def conversation(self, system: str | None, options: Tooling) -> Conversation:
        return Conversation(system, given(options, Tooling), self._blocks)

    def embed(
        self, texts: str | Sequence[str], task: str | None, dimensions: int | None, model: str | None
    ) -> Plan[Embeddings]:
        options = {"task": task, "dimensions": dimensions, "model": model}
        chosen = {name: value for name, value in options.items() if value is not None}
        return vectors.embed(self.next_id, [texts] if isinstance(texts, str) else texts, chosen)

    def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None, model: str | None
    ) -> Plan[Ranking]:
        options = None if model is None else {"model": model}
        return vectors.rerank(self.next_id, query, documents, top_n, options)


def _wants(on_progress: OnProgress | None) -> dict[str, object]:
    return {} if on_progress is None else {"progress": True}


class Backoff:
    """Computes the pauses between retries. The first pause is 100 ms, and each further pause is twice as
    long, up to 5 s. No pause goes beyond the time limit, which is ``limit_secs`` after the construction."""

    def __init__(self, limit_secs: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + limit_secs
        self._pause = FIRST_PAUSE_SECS

    def left(self) -> float:
        """Returns the seconds until the time limit, or 0 if the limit has passed."""
        return max(self._end - self._clock(), 0.0)

    def pause(self) -> float:
        """Returns the seconds to wait before the next try, or 0 if the time limit has passed."""
        pause = min(self._pause, self.left())
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECS)
        return pause


class Closable(Protocol):
    """The methods of a connection that :class:`ConnectionPool` calls."""

    def alive(self) -> bool: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class ConnectionPool(Generic[C]):
    """Keeps idle connections for the next requests. Several threads may share a pool."""

    def __init__(self) -> None:
        self._kept: list[C] = []
        self._closed = False

    def take(self) -> C | None:
        """Takes the most recently used connection out of the pool, or returns ``None`` if the pool has no
        open connection."""
        while True:
            try:
                connection = self._kept.pop()
            except IndexError:
                return None
            if connection.alive():
                return connection
            connection.close()

    def give_back(self, connection: C) -> None:
        if self._closed or len(self._kept) >= MAX_IDLE:
            connection.close()
        else:
            self._kept.append(connection)

    def close(self) -> None:
        """Closes the idle connections. From now on, :meth:`give_back` closes each connection. A second call
        does nothing."""
        self._closed = True
        while self._kept:
            self._kept.pop().close()
