"""Chooses the backend of a request.

Backends are in order of priority. A request goes to the first backend that is ready, has the needed
capabilities, and has a circuit breaker that admits the request. Several backends that serve one name form a
pool. For a request to a pool, :mod:`inferd.serve.pool` chooses the backend. Each error class declares whether
the circuit breaker counts the error as a failure. Client errors, a full queue and cancellations never count.

Backends can be replaced while requests run. A running request stays on its backend, and
:meth:`BackendSlot.released` returns once the last request on a removed backend has ended.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence

from inferd.engine.backend import Backend
from inferd.errors import (
    AttachmentUnsupported,
    EmbedUnsupported,
    InferdError,
    InvalidRequest,
    ModelBroken,
    ModelNotFound,
    NoBackend,
    RerankUnsupported,
    Unsupported,
)
from inferd.serve.breaker import Breaker, Clock, OnBreaker
from inferd.serve.pool import ALONE, TEXT, BackendSlot, Known, Pool, Route, adapter, pool_names

__all__ = ["TEXT", "BackendSlot", "Dispatch", "Route", "Router", "adapter"]

SPILL_AFTER_SECS = 0.5
MAX_KEPT_POOLS = 1024
"""The most cached combinations of capabilities and model. Clients can name any number of models."""

NO_TEXT = "no_text"
"""The ``reason`` in an error's details, if a request for generated text names a model for embeddings or
rankings."""


class Dispatch:
    """A request on its backend: ``with router.dispatch() as backend: …``. At the end of the block, the
    backend's circuit breaker learns whether the request succeeded or failed. An error that is not the
    backend's fault counts as neither."""

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
    """Chooses among ``backends``, which are in order of priority. ``clock`` is a monotonic clock in
    seconds."""

    def __init__(
        self,
        backends: Sequence[Backend],
        clock: Clock = time.monotonic,
        on_breaker: OnBreaker = _ignore,
        routes: Mapping[Backend, Route] | None = None,
    ) -> None:
        self._clock = clock
        self._on_breaker = on_breaker
        self._added: list[BackendSlot] = []
        self.has_pools = False
        """Whether any pool exists."""
        self._pools: dict[tuple[frozenset[str], str | None], list[Pool]] = {}
        self._known = Known()
        self._queue_names: dict[str, str] = {}
        """The name of the queue of each pool."""
        self.spill_after_secs = SPILL_AFTER_SECS
        """How long a request to a pool waits for a local backend while a remote backend has room."""
        self.members: tuple[BackendSlot, ...] = ()
        """The backends in order of priority, as last given to :meth:`replace`."""
        self.replace(backends, routes or {})

    def dispatch(self, needs: frozenset[str] = TEXT, model: str | None = None) -> Dispatch:
        """Chooses the backend for a request. If ``model`` is given, chooses only among the backends with this
        name or model.

        Raises ModelNotFound if no backend has this name or model. Raises ModelBroken if every backend with
        the needed capabilities needs a reload. Raises NoBackend if a backend has the needed capabilities, but
        takes no requests now. Raises NoBackend, too, if no backend at all takes requests now. In all other
        cases, raises the error for the capability that the first ready backend lacks.
        """
        for member in self._named(model):
            if needs <= member.able and member.fit():
                return Dispatch(member, self._clock)
        raise self.refuse(needs, model)

    def dispatch_to(self, slot: BackendSlot) -> Dispatch:
        """Dispatches to the backend that a :class:`Choice` has taken."""
        return Dispatch(slot, self._clock)

    def refuse(self, needs: frozenset[str], model: str | None) -> InferdError:
        """Returns the error that :meth:`dispatch` raises if no backend serves the request now."""
        members = self._named(model)
        fit = next((member for member in members if member.fit()), None)
        able = [member for member in members if needs <= member.able]
        if able and all(is_broken(member.backend) for member in able):
            return ModelBroken(able[0].backend.name)
        if fit is None or able:
            return NoBackend()
        return _unsupported(fit.backend, needs - fit.able)

    def queue_for(self, needs: frozenset[str] = TEXT, model: str | None = None) -> str:
        """The name of the queue for a request.

        The queue has the name of the backend that :meth:`dispatch` would choose now. If no backend takes
        requests now, the queue has the name of the first backend with the needed capabilities. All backends
        of a pool share one queue, which has the name of the pool's first backend.
        """
        members = self._candidates(model)
        able = [member for member in members if needs <= member.able] or members
        chosen = next((member for member in able if member.fit()), able[0] if able else None)
        return "" if chosen is None else self.queue_of(chosen)

    def queue_of(self, slot: BackendSlot) -> str:
        """Returns the name of the queue in front of a backend."""
        return self._queue_names.get(slot.route.serves, slot.backend.name)

    def _candidates(self, model: str | None) -> Sequence[BackendSlot]:
        if model is None:
            return self.members
        return [member for member in self.all_members() if member.is_named(model)]

    def _named(self, model: str | None) -> Sequence[BackendSlot]:
        members = self._candidates(model)
        if model is not None and not members:
            raise ModelNotFound(model)
        return members

    # Pools.

    def pools(self, needs: frozenset[str], model: str | None) -> Sequence[Pool]:
        """Returns the pools with the needed capabilities, in order of priority. A backend outside a pool
        counts as a pool of one. Raises ModelNotFound."""
        found = self._pools.get((needs, model))
        if found is None:
            groups: dict[Hashable, list[BackendSlot]] = {}
            for member in self._named(model):
                if needs <= member.able:
                    name: Hashable = member.route.serves if self.pooled(member) else member
                    groups.setdefault(name, []).append(member)
            found = [Pool(members, self._known) for members in groups.values()]
            if len(self._pools) < MAX_KEPT_POOLS:
                self._pools[needs, model] = found
        return found

    def pooled(self, slot: BackendSlot) -> bool:
        """Whether the backend is in a pool."""
        return slot.route.serves in self._queue_names

    def _regroup(self) -> None:
        """Groups the backends into pools again, after a change of the backends or routes."""
        self._pools.clear()
        self._known = Known()
        first = {member.route.serves: member.backend.name for member in reversed(self.members)}
        names = pool_names([member.route for member in self.members])
        self._queue_names = {name: first[name] for name in names}
        self.has_pools = bool(self._queue_names)
        for member in self.members:
            # Requests on a backend outside a pool need a permit, even if the backend is remote.
            member.here = not (member.route.remote and self.pooled(member))
            if member.here:
                member.forget_health()  # it is no longer polled, so it would stay unhealthy

    def replace(
        self, backends: Sequence[Backend], routes: Mapping[Backend, Route] | None = None
    ) -> list[BackendSlot]:
        """Replaces the configured backends. ``backends`` serve all requests from the next request on. A
        backend that stays keeps its circuit breaker.

        Returns the removed backends. See :meth:`BackendSlot.released`.
        """
        before = {member.backend: member for member in self.members}
        self.members = tuple(
            before.pop(backend) if backend in before else self._member(backend) for backend in backends
        )
        for member in self.members:
            member.follow((routes or {}).get(member.backend, ALONE))
        self._regroup()
        for member in before.values():
            member.release()
        return list(before.values())

    # Backends that serve only requests that name them.

    def add(self, backend: Backend) -> BackendSlot:
        slot = self._member(backend)
        self._added.append(slot)
        self._pools.clear()
        return slot

    def remove(self, slot: BackendSlot) -> None:
        """Removes a backend that :meth:`add` added. See :meth:`BackendSlot.released`."""
        self._added.remove(slot)
        self._pools.clear()
        slot.release()

    def idle_secs(self, slot: BackendSlot) -> float:
        """The seconds since the last request on the backend ended, or 0 while a request runs."""
        return 0.0 if slot.running else max(0.0, self._clock() - slot.idle_since)

    def all_members(self) -> tuple[BackendSlot, ...]:
        return (*self.members, *self._added)

    def serves(self, model: str) -> bool:
        """Whether requests for ``model`` reach a configured backend."""
        return any(member.is_named(model) for member in self.members)

    def names(self) -> set[str]:
        """All names by which requests reach a configured backend."""
        members = self.members
        named = {name for member in members for name in (member.backend.name, member.backend.model)}
        return named | {member.route.serves for member in members if member.route.serves}

    def _member(self, backend: Backend) -> BackendSlot:
        breaker = Breaker(backend.name, self._clock, self._on_breaker)
        backend.on_crash_loop(breaker.trip)
        return BackendSlot(backend, breaker, self._clock())


_IN_A_REQUEST = {
    "raw": "cannot take a prompt without a chat template or continue an answer; leave out raw and begun",
    "logprobs": "reports no token probabilities; leave out logprobs",
}
"""By capability of the daemon's own engine, the error text for a backend without this capability."""


def _unsupported(backend: Backend, lacking: frozenset[str]) -> InferdError:
    name, adapters = backend.name, backend.capabilities().lora
    if lacking == TEXT:
        error = Unsupported(f'backend "{name}" does not generate text')
        error.details = {"reason": NO_TEXT}
        return error
    if "embed" in lacking:
        return EmbedUnsupported(f'backend "{name}" cannot embed')
    if "rerank" in lacking:
        return RerankUnsupported(f'backend "{name}" cannot rerank')
    for capability, what in _IN_A_REQUEST.items():
        if capability in lacking:
            return InvalidRequest(f'backend "{name}" {what}')
    for capability in ("v2", "tools"):
        if capability in lacking:
            return Unsupported(f'backend "{name}" does not advertise {capability} capability')
    if {"vision", "audio"}.isdisjoint(lacking):
        has = f"it has {', '.join(adapters)}" if adapters else "its config entry lists none"
        return InvalidRequest(f'backend "{name}" has no LoRA adapter of the name in `lora`; {has}')
    kind = "image" if "vision" in lacking else "audio"
    return AttachmentUnsupported(f'backend "{name}" takes no {kind} attachments')


def is_broken(backend: Backend) -> bool:
    """Whether the backend can load its model again only after a reload."""
    state = backend.engine_state()
    return state is not None and bool(state.problem)
