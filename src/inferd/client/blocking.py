"""The blocking client: text from a running daemon.

    with Client() as client, client.generate("Why is the sky blue?") as answer:
        for event in answer:
            ...

A generation has a connection to itself while it runs, so several may run at once, and closing one early
cancels it in the daemon. A finished one leaves its connection to the next. Errors are those of
``inferd.errors``: RequestFailed for an error frame, DaemonUnreachable, ConnectionLost, ProtocolError.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import orjson

from inferd.client.connection import Address, Connection
from inferd.config import paths
from inferd.errors import DaemonUnreachable, ProtocolError, RequestFailed

FIRST_PAUSE_SECS = 0.1
LONGEST_PAUSE_SECS = 5.0


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer; always whole characters."""

    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of an answer: all of it, why it ended, and what it cost (times in milliseconds)."""

    content: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    backend: str = ""
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)


class Client:
    """Talks to the daemon at ``address``: a Unix socket's path, or ``tcp://IP:port`` with an ``api_key``.

    Without an address it is the default socket. ``timeout`` is the longest silence of the daemon in seconds
    that is put up with; ``None`` waits for ever. Nothing is sent before :meth:`connect` or the first request.
    """

    def __init__(
        self, address: Address | None = None, api_key: str | None = None, timeout: float | None = None
    ) -> None:
        self.address: Address = paths.socket_path("v1") if address is None else address
        self._api_key = api_key
        self._timeout = timeout
        self._idle: Connection | None = None
        self._ids = itertools.count(1)

    def connect(self, timeout: float | None = None) -> None:
        """Connects, unless it is connected; ``timeout``, in seconds, is for this alone."""
        self._give_back(self._take(self._timeout if timeout is None else timeout))

    def generate(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        repeat_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
        priority: Literal["interactive", "batch"] | None = None,
        deadline_ms: int | None = None,
        session: str | None = None,
    ) -> Generation:
        """Starts a generation.

        ``messages`` is one user message, or turns of ``{"role", "content"}``. What is ``None`` is left to the
        daemon's default.
        """
        request_id = f"c{next(self._ids)}"
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        options = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "stop": None if stop is None else list(stop),
            "repeat_penalty": repeat_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "grammar": grammar,
            "json_schema": json_schema,
            "priority": priority,
            "deadline_ms": deadline_ms,
            "session": session,
        }
        given = {name: value for name, value in options.items() if value is not None}
        line = orjson.dumps({"id": request_id, "messages": turns, **given}, option=orjson.OPT_APPEND_NEWLINE)
        connection = self._take(self._timeout)
        connection.send(line)
        return Generation(connection, request_id, self._give_back)

    def close(self) -> None:
        """Closes the idle connection; generations that still run are not touched. Idempotent."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, connect_timeout: float | None) -> Connection:
        connection, self._idle = self._idle, None
        if connection is not None:
            if connection.alive():
                return connection
            connection.close()
        return Connection(self.address, self._api_key, timeout=self._timeout, connect_timeout=connect_timeout)

    def _give_back(self, connection: Connection) -> None:
        if self._idle is None:
            self._idle = connection
        else:
            connection.close()


class Generation(Iterator["Token | Done"]):
    """The events of one answer: tokens, then one :class:`Done`.

    Closing it before ``Done`` closes its connection, which cancels the request. Use it in a ``with``.
    """

    def __init__(
        self, connection: Connection, request_id: str, give_back: Callable[[Connection], None]
    ) -> None:
        self._connection: Connection | None = connection
        self._id = request_id
        self._give_back = give_back

    def __next__(self) -> Token | Done:
        """The next event; RequestFailed for an error frame, ConnectionLost when the answer breaks off."""
        connection = self._connection
        if connection is None:
            raise StopIteration
        try:
            event = self._event(connection.line())
        except BaseException:
            self.close()
            raise
        if isinstance(event, Done):
            self._connection = None
            self._give_back(connection)
        return event

    def close(self) -> None:
        """Cancels what is not finished. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _event(self, line: bytes) -> Token | Done:
        try:
            frame = orjson.loads(line)
            kind = frame["type"]
            if kind == "error" and frame["id"] in (self._id, ""):
                raise RequestFailed(frame["code"], frame["message"])
            if frame["id"] != self._id:
                raise ProtocolError("the daemon answered another request than the one that was sent")
            if kind == "token":
                return Token(frame["content"])
            if kind == "done":
                return _done(frame)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            pass
        raise ProtocolError("the daemon sent a line that is no response; is this inferd's socket?")


def _done(frame: Mapping[str, Any]) -> Done:
    usage = frame["usage"]
    return Done(
        content=frame["content"],
        stop_reason=frame["stop_reason"],
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=usage.get("cached_tokens", 0),
        backend=frame.get("backend", ""),
        model=frame.get("model", ""),
        timings=frame.get("timings") or {},
    )


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
