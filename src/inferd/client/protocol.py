"""The client's side of the protocols, without I/O. The blocking and the asyncio client share this module.

A client connects. On TCP with an API key, the client first sends ``opening(api_key)``. For each request, the
client sends the request's ``pieces``, and feeds the received bytes to the connection's ``Incoming``. The
client passes each line from ``Incoming`` to the request, until the request is ``done``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import orjson

from inferd.errors import (
    AnswerCancelled,
    ConnectionLost,
    KeyRefused,
    ProtocolError,
    RequestFailed,
    UsageError,
)
from inferd.wire.bounds import QUEUE_STEPS as QUEUE_STEPS

MAX_LINE_BYTES = 65_536
"""The longest request line, without the newline, that a daemon accepts by default. An operator may set a
lower limit."""

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""The longest line that a client accepts. The last line of a reply contains the whole answer."""

READ_BYTES = 65_536

_ERROR_KEYS = frozenset({"type", "id", "code", "message", "retry_after_ms"})

OnProgress = Callable[[str, Mapping[str, Any]], object]
Bytes = bytes | bytearray | memoryview
E = TypeVar("E")
D = TypeVar("D")


def check_whole(done: object) -> None:
    """Raises AnswerCancelled if ``done``, the last event of a reply, says that the daemon ended the answer
    early."""
    if getattr(done, "stop_reason", None) == "cancelled":
        raise AnswerCancelled(done)


def opening(api_key: str) -> bytes:
    """Returns the first bytes to send on a TCP connection: the line with the API key."""
    return encode({"type": "auth", "key": api_key}) + b"\n"


def encode(value: object) -> bytes:
    """Encodes ``value`` as JSON. Raises UsageError for a value that JSON cannot express."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise UsageError(f"the request cannot be written as JSON: {error}") from None


class Incoming:
    """Splits the bytes that one connection receives into lines. Creates the exceptions for a connection that
    ends or times out."""

    def __init__(self, address: str, *, tcp: bool) -> None:
        self._address = address
        self._tcp = tcp
        self._lines: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._size = 0
        self._answered = False
        self._requests = 0
        self._unheard = False
        self.lapsed = False
        """Whether a reused connection ended before the first byte of the reply arrived. Most likely, the
        daemon had closed the idle connection before the request was sent."""

    def expect(self) -> None:
        """Prepares for the reply to one more request. Call this method before the request is sent."""
        self._requests += 1
        self._unheard = True

    def line(self) -> bytes | None:
        """Returns the next line without its newline, or ``None`` while the line is incomplete."""
        return self._lines.popleft() if self._lines else None

    def feed(self, data: bytes) -> None:
        """Takes received bytes. Empty ``data`` means the end of the stream and raises ConnectionLost. A line
        that exceeds its limit raises ProtocolError."""
        if not data:
            self.lapsed = self._unheard and self._requests > 1
            raise self._ended()
        self._unheard = False
        self._cut(data)

    def _cut(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        if whole:
            self._answered = True
            self._check(len(whole[0]))
            whole[0] = b"".join((*self._partial, whole[0]))
            self._lines.extend(whole)
            self._partial, self._size = [], 0
        self._check(len(rest))
        self._partial.append(rest)
        self._size += len(rest)

    def _check(self, more: int) -> None:
        if self._size + more > MAX_RESPONSE_BYTES:
            raise ProtocolError(f"the daemon at {self._address} sent a line that does not end")

    def silent(self) -> ConnectionLost:
        """Returns the error to raise if the daemon sends nothing before the timeout."""
        return ConnectionLost(f"the daemon at {self._address} did not answer in time")

    def deaf(self) -> ConnectionLost:
        """Returns the error to raise if the daemon does not read before the timeout."""
        return ConnectionLost(f"the daemon at {self._address} did not take the request in time")

    def _ended(self) -> ConnectionLost:
        if self._tcp and not self._answered:
            return KeyRefused(
                f"the daemon at {self._address} closed the connection without a word; check the API key"
            )
        return ConnectionLost(
            f"the daemon at {self._address} closed the connection before the answer was complete"
        )


class PendingRequest(ABC, Generic[E, D]):
    """One request: holds the ``pieces`` of bytes to send, and parses the reply.

    ``done`` is the last event of the reply, or ``None`` if the last event has not arrived yet. ``raw`` are
    attachments, which are sent after the request line. ``on_progress`` is called with the phase and the
    details of each ``progress`` frame. Raises UsageError for a ``body`` that JSON cannot express.
    """

    done: D | None = None
    on_progress: OnProgress | None = None

    def __init__(self, request_id: str, body: Mapping[str, Any], raw: Sequence[Bytes] = ()) -> None:
        self._id = request_id
        self.pieces = self._written({"id": request_id, **body}, raw)

    def _written(self, body: dict[str, Any], raw: Sequence[Bytes]) -> tuple[Bytes, ...]:
        """Encodes the request."""
        return (encode(body) + b"\n", *raw)

    def take(self, line: bytes) -> E | D | None:
        """Parses a line of the reply. Returns the line's event, or ``None`` for a line without an event, such
        as a ``progress`` frame.

        Raises RequestFailed for an error frame, and ProtocolError for a line that is not part of the reply to
        this request.
        """
        try:
            frame = orjson.loads(line)
            kind = frame["type"]
            if kind == "error" and frame["id"] in (self._id, ""):
                failed = self._failed(frame["code"], frame["message"])
                after = frame.get("retry_after_ms")
                failed.retry_after_secs = after / 1e3 if isinstance(after, int) else None
                failed.details = {key: frame[key] for key in frame if key not in _ERROR_KEYS}
                raise failed
            if frame["id"] != self._id:
                raise ProtocolError("the daemon answered a different request")
            if kind == "progress":
                if self.on_progress is not None:
                    self.on_progress(frame["phase"], frame)
                return None
            return self.event(kind, frame)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise ProtocolError(
                "the daemon sent a line that is not a response; is this inferd's socket?"
            ) from None

    @abstractmethod
    def event(self, kind: str, frame: Mapping[str, Any]) -> E | D | None:
        """Returns the event of a frame. Raises LookupError, TypeError or AttributeError for a malformed
        frame."""

    def _failed(self, code: str, message: str) -> RequestFailed:
        return RequestFailed(code, message)
