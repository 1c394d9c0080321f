"""Chooses the backend of a request and keeps each backend's circuit breaker.

Backends are in order of priority; the first that is ready, has the capabilities that the request needs and
whose breaker lets it serves. Three failures within a minute open a breaker for half a minute; then one
request at a time may probe, and its success closes the breaker while its failure opens it again. What counts
as a failure is data on the error: what the client did, a full queue or a cancellation never does. There is no
retry and no failover: the caller owns retries.

The backends can be replaced while requests run: each ends on the backend that it began on, and
:meth:`BackendSlot.released` tells when a backend that was taken out has ended its last one.
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
    ModelNotFound,
    NoBackend,
    RerankUnsupported,
    Unsupported,
)

FAILURES = 3
WINDOW_SECS = 60.0
OPEN_SECS = 30.0

Clock = Callable[[], float]
OnBreaker = Callable[[str, str], None]
"""Told the name of a backend and the new state of its breaker; ``half-open`` when a probe begins."""

TEXT = frozenset({"text"})
"""What a v1 request needs. The other needs have the names of :class:`~inferd.engine.backend.Capabilities`."""

NO_TEXT = "no_text"
"""The reason, among the details of the error, of a model that makes only vectors or scores."""

_log = log.get("router")


class Breaker:
    """Counts the failures of one backend entry; times come from ``clock``, in seconds."""

    def __init__(self, name: str, clock: Clock, on_change: OnBreaker) -> None:
        self._name = name
        self._clock = clock
        self._on_change = on_change
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
        if self._probing:
            self._on_change(self._name, "half-open")
        return self._probing

    def succeeded(self, probe: bool) -> None:
        if probe:
            self._probing = False
            self.reset()

    def reset(self) -> None:
        """Closes the breaker and forgets what it has counted."""
        self._failures.clear()
        if self._open_until is not None:
            self._open_until = None
            _log.info("breaker_closed", backend=self._name)
            self._on_change(self._name, "closed")

    def failed(self, probe: bool) -> None:
        now = self._clock()
        if probe:
            self._probing = False
            self._open(now)
        elif self._open_until is None:  # a request from before the opening says nothing new
            self._failures.append(now)
            if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECS:
                self._open(now)

    def trip(self) -> None:
        """Opens the breaker: the backend itself has counted enough."""
        if self._open_until is None or self._clock() >= self._open_until:
            self._open(self._clock())

    def undecided(self, probe: bool) -> None:
        """The request ended without telling anything about the backend."""
        if probe:
            self._probing = False

    def _open(self, now: float) -> None:
        self._open_until = now + OPEN_SECS
        _log.warn("breaker_opened", backend=self._name, seconds=OPEN_SECS)
        self._on_change(self._name, "open")


class BackendSlot:
    """One backend of the router, its breaker, and how many requests are ``running`` on it."""

    __slots__ = ("_released", "able", "backend", "breaker", "idle_since", "running")

    def __init__(self, backend: Backend, breaker: Breaker, now: float) -> None:
        self.backend = backend
        self.breaker = breaker
        self.able = _abilities(backend)
        self.running = 0
        self.idle_since = now
        """When its last request ended, or it came, by the clock of the router."""
        self._released: asyncio.Future[None] | None = None

    def is_named(self, model: str) -> bool:
        return model in (self.backend.name, self.backend.model)

    def release(self) -> None:
        """Takes the backend out; results of its last requests no longer reach the breaker."""
        self.breaker.reset()
        self._released = asyncio.get_running_loop().create_future()
        if not self.running:
            self._released.set_result(None)

    async def released(self) -> None:
        """Returns when a backend that was taken out has ended its last request."""
        if self._released is not None:
            await self._released

    def fit(self) -> bool:
        """Whether the backend takes requests now."""
        return self.backend.ready() and self.breaker.lets_pass()

    def begin(self) -> bool:
        """A request starts; whether it is the breaker's probe."""
        self.running += 1
        return self.breaker.begin()

    def end(self, error: BaseException | None, probe: bool, now: float) -> None:
        """A request has ended with ``error``."""
        self.running -= 1
        self.idle_since = now
        if self._released is not None:
            if not self.running:
                self._released.set_result(None)
        elif error is None:
            self.breaker.succeeded(probe)
        elif isinstance(error, InferdError | asyncio.CancelledError):
            if isinstance(error, BackendError) and error.counts:
                self.breaker.failed(probe)
            else:
                self.breaker.undecided(probe)
        else:
            self.breaker.failed(probe)  # an unexpected error


class Dispatch:
    """``with router.dispatch() as backend: …``: how the block ends is what the breaker learns."""

    __slots__ = ("_clock", "_member", "_probe")

    def __init__(self, member: BackendSlot, clock: Clock) -> None:
        self._member = member
        self._clock = clock
        self._probe = False

    def __enter__(self) -> Backend:
        self._probe = self._member.begin()
        return self._member.backend

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._member.end(error, self._probe, self._clock())


def _ignore(name: str, state: str) -> None: ...


class Router:
    """``backends`` in order of priority; ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        backends: Sequence[Backend],
        clock: Clock = time.monotonic,
        on_breaker: OnBreaker = _ignore,
    ) -> None:
        self._clock = clock
        self._on_breaker = on_breaker
        self._added: list[BackendSlot] = []
        self.members: tuple[BackendSlot, ...] = ()
        """The backends in order of priority, as :meth:`replace` was given them last."""
        self.replace(backends)

    def dispatch(self, needs: frozenset[str] = TEXT, model: str | None = None) -> Dispatch:
        """The backend for the next request; with ``model`` only those of that name, or that model, count.

        Raises NoBackend where the request may be served later: a capable backend is not ready or shut off by
        its breaker, or none is fit. Else no repetition helps, and the Unsupported tells what the first fit
        backend lacks. ModelNotFound when no backend has that name or model.
        """
        members = self._candidates(model)
        if model is not None and not members:
            raise ModelNotFound(model)
        for member in members:
            if needs <= member.able and member.fit():
                return Dispatch(member, self._clock)
        fit = next((member for member in members if member.fit()), None)
        if fit is None or any(needs <= member.able for member in members):
            raise NoBackend
        raise _unsupported(fit.backend.name, needs - fit.able)

    def queue_for(self, needs: frozenset[str] = TEXT, model: str | None = None) -> str:
        """The name of the backend that :meth:`dispatch` would choose now, in front of which the request
        waits; where it would raise, that of the one that the request waits for."""
        members = self._candidates(model)
        able = [member for member in members if needs <= member.able] or members
        chosen = next((member for member in able if member.fit()), able[0] if able else None)
        return "" if chosen is None else chosen.backend.name

    def _candidates(self, model: str | None) -> Sequence[BackendSlot]:
        if model is None:
            return self.members
        return [member for member in self.all_members() if member.is_named(model)]

    def replace(self, backends: Sequence[Backend]) -> list[BackendSlot]:
        """Serves with ``backends`` from the next request on; a backend that stays keeps its breaker.

        Returns what was taken out; see :meth:`BackendSlot.released`.
        """
        before = {member.backend: member for member in self.members}
        self.members = tuple(
            before.pop(backend) if backend in before else self._member(backend) for backend in backends
        )
        for member in before.values():
            member.release()
        return list(before.values())

    # Backends that are there for requests which name them, and for no others.

    def add(self, backend: Backend) -> BackendSlot:
        slot = self._member(backend)
        self._added.append(slot)
        return slot

    def remove(self, slot: BackendSlot) -> None:
        """Takes out what was added; see :meth:`BackendSlot.released`."""
        self._added.remove(slot)
        slot.release()

    def idle_secs(self, slot: BackendSlot) -> float:
        """For how long no request has run on a backend."""
        return 0.0 if slot.running else max(0.0, self._clock() - slot.idle_since)

    def all_members(self) -> tuple[BackendSlot, ...]:
        return (*self.members, *self._added)

    def serves(self, model: str) -> bool:
        """Whether a backend of the configuration has that name or that model."""
        return any(member.is_named(model) for member in self.members)

    def names(self) -> set[str]:
        """The names by which the backends of the configuration may be asked for."""
        return {name for member in self.members for name in (member.backend.name, member.backend.model)}

    def _member(self, backend: Backend) -> BackendSlot:
        breaker = Breaker(backend.name, self._clock, self._on_breaker)
        backend.on_crash_loop(breaker.trip)
        return BackendSlot(backend, breaker, self._clock())


def _abilities(backend: Backend) -> frozenset[str]:
    able = backend.capabilities()
    names = {name for name in _CAPABILITIES if getattr(able, name)}
    return frozenset(names | TEXT if able.v2 else names)


_CAPABILITIES = ("v2", "tools", "vision", "audio", "embed", "rerank")


def _unsupported(name: str, lacking: frozenset[str]) -> InferdError:
    if lacking == TEXT:
        error = Unsupported(f'backend "{name}" does not generate text')
        error.details = {"reason": NO_TEXT}
        return error
    if "embed" in lacking:
        return EmbedUnsupported(f'backend "{name}" cannot embed')
    if "rerank" in lacking:
        return RerankUnsupported(f'backend "{name}" cannot rerank')
    for capability in ("v2", "tools"):
        if capability in lacking:
            return Unsupported(f'backend "{name}" does not advertise {capability} capability')
    kind = "image" if "vision" in lacking else "audio"
    return AttachmentUnsupported(f'backend "{name}" takes no {kind} attachments')
