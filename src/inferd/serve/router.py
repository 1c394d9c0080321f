"""Chooses the backend of a request and keeps each backend's circuit breaker.

Backends stand in order of priority; the first that is ready, has the capabilities that the request needs and
whose breaker lets it serves. Three failures
within a minute open a breaker for half a minute; then one request at a time may probe, and its success closes
the breaker while its failure opens it again. What counts as a failure is data on the error: what the client
did, a full queue or a cancellation never does. There is no retry and no failover: the caller owns retries.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from inferd import log
from inferd.engine.backend import Backend
from inferd.errors import (
    AttachmentUnsupported,
    BackendError,
    EmbedUnsupported,
    InferdError,
    NoBackend,
    RerankUnsupported,
    Unsupported,
)

FAILURES = 3
WINDOW_SECS = 60.0
OPEN_SECS = 30.0

Clock = Callable[[], float]

TEXT = frozenset({"text"})
"""What a v1 request needs. The other needs have the names of :class:`~inferd.engine.backend.Capabilities`."""

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
        self._entries = tuple(
            (backend, Breaker(backend.name, clock), _abilities(backend)) for backend in backends
        )

    def dispatch(self, needs: frozenset[str] = TEXT) -> Dispatch:
        """The backend for the next request.

        Raises NoBackend when none is fit to serve anything, and the Unsupported that tells what the first fit
        one lacks when none of them has all that the request ``needs``.
        """
        lacking: InferdError = NoBackend()
        for backend, breaker, able in self._entries:
            if backend.ready() and breaker.lets_pass():
                if needs <= able:
                    return Dispatch(backend, breaker)
                if isinstance(lacking, NoBackend):
                    lacking = _unsupported(backend.name, needs - able)
        raise lacking


def _abilities(backend: Backend) -> frozenset[str]:
    able = backend.capabilities()
    names = {name for name in _CAPABILITIES if getattr(able, name)}
    return frozenset(names | TEXT if able.v2 else names)


_CAPABILITIES = ("v2", "tools", "vision", "audio", "embed", "rerank")


def _unsupported(name: str, lacking: frozenset[str]) -> InferdError:
    if lacking == TEXT:
        return NoBackend()
    if "embed" in lacking:
        return EmbedUnsupported(f'backend "{name}" cannot embed')
    if "rerank" in lacking:
        return RerankUnsupported(f'backend "{name}" cannot rerank')
    for capability in ("v2", "tools"):
        if capability in lacking:
            return Unsupported(f'backend "{name}" does not advertise {capability} capability')
    kind = "image" if "vision" in lacking else "audio"
    return AttachmentUnsupported(f'backend "{name}" takes no {kind} attachments')
