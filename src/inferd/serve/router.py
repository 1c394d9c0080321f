"""Chooses the backend of a request and keeps each backend's circuit breaker.

Backends stand in order of priority; the first that is ready and whose breaker lets it serves. Three failures
within a minute open a breaker for half a minute; then one request at a time may probe, and its success closes
the breaker while its failure opens it again. What counts as a failure is data on the error: what the client
did, a full queue or a cancellation never does. There is no retry and no failover: the caller owns retries.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from inferd import log
from inferd.engine.backend import Backend, FrameTemplate, GenerateRequest, Message
from inferd.errors import BackendError, InferdError, NoBackend
from inferd.wire import v1

FAILURES = 3
WINDOW_SECS = 60.0
OPEN_SECS = 30.0

Clock = Callable[[], float]
N = TypeVar("N", int, float)

_log = log.get("router")


class Breaker:
    """Counts the failures of one backend entry; times come from ``clock``, in seconds."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def lets_pass(self) -> bool:
        state = self.state
        return state == "closed" or (state == "half-open" and not self._probing)

    def begin(self) -> bool:
        """A request starts; whether it is the probe of a half-open breaker."""
        self._probing = self._open_until is not None
        return self._probing

    def succeeded(self, probe: bool) -> None:
        if probe:
            self._probing = False
            self._open_until = None
            self._failures.clear()
            _log.info("breaker_closed", backend=self._name)

    def failed(self, probe: bool) -> None:
        now = self._clock()
        if probe:
            self._probing = False
            self._open(now)
        elif self._open_until is None:  # a request from before the opening says nothing new
            self._failures.append(now)
            if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECS:
                self._open(now)

    def undecided(self, probe: bool) -> None:
        """The request ended without telling anything about the backend."""
        if probe:
            self._probing = False

    def _open(self, now: float) -> None:
        self._open_until = now + OPEN_SECS
        _log.warn("breaker_opened", backend=self._name, seconds=OPEN_SECS)


class Dispatch:
    """``with router.dispatch() as backend: …``: how the block ends is what the breaker learns."""

    __slots__ = ("_backend", "_breaker", "_probe")

    def __init__(self, backend: Backend, breaker: Breaker) -> None:
        self._backend = backend
        self._breaker = breaker
        self._probe = breaker.begin()

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            self._breaker.succeeded(self._probe)
        elif isinstance(error, InferdError | asyncio.CancelledError):
            if isinstance(error, BackendError) and error.counts:
                self._breaker.failed(self._probe)
            else:
                self._breaker.undecided(self._probe)
        else:
            self._breaker.failed(self._probe)  # an error that nobody foresaw


class Router:
    """``backends`` in order of priority; ``clock`` is monotonic, in seconds."""

    def __init__(self, backends: Sequence[Backend], clock: Clock = time.monotonic) -> None:
        self._entries = tuple((backend, Breaker(backend.name, clock)) for backend in backends)

    def dispatch(self) -> Dispatch:
        """The backend for the next request. Raises NoBackend."""
        for backend, breaker in self._entries:
            if backend.ready() and breaker.lets_pass():
                return Dispatch(backend, breaker)
        raise NoBackend


def generate_request(request: v1.Request, frame: FrameTemplate | None) -> GenerateRequest:
    """A valid v1 request as the backends take it, with v1's defaults."""
    return GenerateRequest(
        messages=tuple(Message(message.role, message.content) for message in request.messages),
        max_tokens=_default(request.max_tokens, v1.MAX_TOKENS),
        temperature=_default(request.temperature, v1.TEMPERATURE),
        top_p=_default(request.top_p, v1.TOP_P),
        top_k=_default(request.top_k, v1.TOP_K),
        min_p=request.min_p or 0.0,
        repeat_penalty=_default(request.repeat_penalty, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=request.seed,
        stop=tuple(request.stop or ()),
        grammar=request.grammar,
        json_schema=bytes(request.json_schema).decode(),
        session=request.session or "",
        frame=frame,
    )


def _default(value: N | None, default: N) -> N:
    return default if value is None else value
