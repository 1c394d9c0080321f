"""The interface between a session and its surface: the codec, and the calls to the engine.

The session knows the stages of a request, but not the fields of a request. So one session class serves every
surface.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from inferd.engine.backend import Backend
from inferd.engine.requests import GenerateRequest
from inferd.errors import AnswerUnread, DeadlineExceeded, InferdError
from inferd.serve.admission import Permit
from inferd.serve.connection import Connection
from inferd.serve.models import Stay
from inferd.serve.observe.metrics import BackendMetrics
from inferd.serve.peer import Peer
from inferd.wire.frames import encode_error
from inferd.wire.sampling import Behalf

# A client chooses the id, which may be as long as a line. The log needs only enough to recognise the id.
_LOGGED_ID_CHARS = 128


class WireRequest(Protocol):
    """The fields common to the requests of all surfaces."""

    @property
    def id(self) -> str: ...

    @property
    def priority(self) -> str | None: ...

    @property
    def deadline_ms(self) -> int | None: ...

    @property
    def on_behalf_of(self) -> Behalf | None: ...

    @property
    def model(self) -> str | None: ...

    @property
    def keep_alive(self) -> float | None: ...

    @property
    def progress(self) -> bool | None: ...


R = TypeVar("R", bound=WireRequest)


def _unknown() -> None:
    return None


def ms_since(start: float) -> float:
    """Returns the milliseconds since ``start``, a time of ``time.monotonic()``."""
    return (time.monotonic() - start) * 1e3


class RequestContext(Generic[R]):
    """One request in progress: its caller, its stage, and whether it must end early.

    ``source`` holds the log fields of the connection. ``tokens`` counts the chunks of the answer so far.
    ``prompt_read()`` returns the share of the prompt that has been processed, or ``None`` if this share is
    unknown. ``caller`` identifies the process and ``owner`` the user that sent the request, so that the queue
    can serve them fairly. ``route`` says why the backend was chosen from its pool. ``engine_request`` is the
    request in the backend's form, which is kept while a retry is possible. ``show`` sends a progress frame,
    and is ``None`` unless the client wants progress. If the request waits in the queue of an upstream daemon,
    ``position`` is the position in this queue.
    """

    __slots__ = (
        "_on_interrupt",
        "arrived",
        "backend",
        "caller",
        "conn",
        "engine_request",
        "interruption",
        "large",
        "owner",
        "permit",
        "position",
        "prompt_read",
        "queue_ms",
        "request",
        "route",
        "show",
        "source",
        "streaming",
        "tokens",
    )

    def __init__(
        self, request: R, conn: Connection, arrived: float, source: Mapping[str, object], peer: Peer
    ) -> None:
        self.request = request
        self.conn = conn
        self.arrived = arrived
        self.source = source
        self.caller: Hashable = peer.caller
        self.owner: Hashable = peer.owner
        self.queue_ms = 0.0
        self.permit: Permit | None = None
        self.position: int | None = None
        self.show: Callable[[str, Mapping[str, object]], None] | None = None
        self.large = False
        self.backend: str | None = None
        self.route = ""
        self.streaming = False
        self.tokens = 0
        self.prompt_read: Callable[[], float | None] = _unknown
        self.engine_request: GenerateRequest | None = None
        self.interruption: InferdError | None = None
        self._on_interrupt: Callable[[], object] | None = None

    @property
    def scope(self) -> str:
        """``owner`` as a string. Requests with different scopes never share KV caches."""
        return repr(self.owner)

    @property
    def untouched(self) -> bool:
        """Whether a retry is possible: no part of the answer has been sent, and the request has not been
        ended early."""
        return not self.tokens and not self.streaming and self.interruption is None

    def conversation(self, surface: Surface[R]) -> Callable[[], Hashable]:
        """Returns a function that computes the key of the request's conversation."""

        def conversation() -> Hashable:
            head = surface.head(self.request)
            return None if head is None else hash((self.owner, head))

        return conversation

    def ask_for(self, caller: str) -> None:
        """Records that the HTTP bridge sends the request on behalf of the HTTP client ``caller``. From then
        on, the queue treats the request as a request of this client.

        ``caller`` is ``uid:N`` for a local user or ``key:NAME`` for an API key. A local user of the bridge
        and the same user on a Unix socket count as one user.
        """
        kind, _, name = caller.partition(":")
        self.owner = int(name) if kind == "uid" and name.isdecimal() else caller
        self.caller = ("http", caller)
        self.source = {**self.source, "caller": caller[:_LOGGED_ID_CHARS]}

    def stay(self) -> Stay:
        """Returns how long the model must stay loaded after the request."""
        return Stay(self.request.keep_alive, by_owner=self.owner in (0, os.getuid()))

    def interrupt(self, reason: InferdError) -> None:
        """Asks the surface to end the request early. If an answer cannot be cut short, its surface raises
        ``reason`` instead."""
        self.interruption = reason
        self.conn.wait_no_more()
        if self._on_interrupt is not None:
            self._on_interrupt()

    def pass_deadline(self) -> None:
        """Interrupts the request because its deadline has passed."""
        # A new exception each time: a shared exception would keep the stack frames of every raise alive.
        self.interrupt(DeadlineExceeded("the deadline passed while the request ran"))

    def on_interrupt(self, end: Callable[[], object]) -> None:
        """Sets the callback that ends the request early. If :meth:`interrupt` has already been called, calls
        the callback at once."""
        self._on_interrupt = end
        if self.interruption is not None:
            end()

    def wait_upstream(self, phase: str, details: Mapping[str, object]) -> None:
        """Records the progress of the request at an upstream daemon, and shows it to the client."""
        position = details.get("position")
        self.position = position if phase == "queued" and isinstance(position, int) else None
        if self.show is not None:
            self.show(phase, details)

    async def let_client_read(self) -> None:
        """Waits until the client has read enough, or until the request must end early. Meanwhile, the queue
        may end this request and give the permit of this request to a waiting request."""
        if self.interruption is None:
            if self.permit is not None:
                self.permit.rest(self._give_up)
            try:
                await self.conn.writable()
            finally:
                if self.permit is not None:
                    self.permit.resume()

    def _give_up(self) -> None:
        self.interrupt(AnswerUnread())

    def fields(self) -> dict[str, object]:
        """The log fields of the request."""
        return {
            "req_id": self.request.id[:_LOGGED_ID_CHARS],
            "backend": self.backend,
            **({"route": self.route} if self.route else {}),
            "queue_ms": round(self.queue_ms, 3),
            "total_ms": round(ms_since(self.arrived), 3),
            **({"caller": self.source["caller"]} if "caller" in self.source else {}),
        }

    def row(self, position: int | None) -> dict[str, object]:
        """Returns the row of the request in a listing.

        ``position`` is the request's position in this daemon's queue, from 1, or ``None`` if the request
        runs. The row of a running request may contain its position in the queue of an upstream daemon.
        """
        return {
            "id": self.request.id[:_LOGGED_ID_CHARS],
            **self.source,
            "priority": self.request.priority or "interactive",
            "position": self.position if position is None else position,
            "age_ms": round(ms_since(self.arrived), 3),
            "queue_ms": round(self.queue_ms, 3),
            "backend": self.backend,
            "route": self.route,
            "tokens": self.tokens,
            "prompt_read": self.prompt_read(),
        }


class Surface(ABC, Generic[R]):
    """One kind of request and its answers. ``parse`` raises DecodeError. ``validate`` raises an error if the
    request is invalid."""

    name: ClassVar[str]
    encode_error = staticmethod(encode_error)

    @abstractmethod
    def parse(self, line: bytes, /) -> R: ...

    @abstractmethod
    def validate(self, request: R) -> None: ...

    @abstractmethod
    def needs(self, request: R) -> frozenset[str]:
        """Returns the names of the capabilities that the request needs. See :mod:`inferd.serve.router`."""

    def head(self, request: R, /) -> Hashable:
        """Returns a key that is the same for all turns of a conversation, or ``None`` for a request outside a
        conversation."""
        return None

    @abstractmethod
    async def answer(
        self, context: RequestContext[R], backend: Backend, metrics: BackendMetrics
    ) -> dict[str, object]:
        """Serves the request with ``backend`` and writes the answer, including the terminal frame.

        Counts the backend's work in ``metrics``. Returns the log fields of the answer. If this method raises
        an error, the session sends the error frame.
        """

    # A surface may accept lines, frames, or both.

    @property
    def lines(self) -> Surface[Any]:
        """The surface that serves the clients of this socket if they send lines."""
        return self

    @property
    def frames(self) -> Surface[Any] | None:
        """The surface that serves the clients of this socket if they send frames. ``None`` if the socket
        accepts no frames."""
        return None

    # Raw content after a request. A surface without raw content overrides nothing here.

    may_carry_raw: Callable[[bytes], bool] | None = None
    """Whether raw content could follow a line or frame. Called before the line is parsed, so the result may
    be true although no content follows."""

    def raw_size(self, request: R, max_attachment_bytes: int) -> int:
        """Returns the number of raw bytes that follow the request's line. Raises FrameTooLarge for more raw
        bytes than ``max_attachment_bytes``."""
        return 0

    def assign(self, request: R, raw: memoryview) -> None:
        """Stores ``raw``, the bytes after the request's line, in the request."""
