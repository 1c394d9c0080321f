"""The router's backends, and the pools of backends.

Several backends that serve one name form a pool, if at least one of them is remote. A request on a local
backend needs one of the daemon's permits. If a request would wait too long for a permit, a remote backend
serves it. Each remote backend of a pool serves up to ``limit`` requests at a time. A request goes to the
least loaded remote backend. But a further turn of a conversation goes to the remote backend of the last turn,
if this backend has at most ``AFFINITY_SLACK`` requests more than the least loaded backend.

A :class:`Choice` picks the backend for one request, when the request arrives and again whenever a backend may
have become free. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple, Protocol

from inferd.engine.backend import Backend
from inferd.errors import BackendError, InferdError
from inferd.serve.breaker import Breaker

TEXT = frozenset({"text"})
"""The capabilities that a request of the v1 protocol needs. The other capabilities have the names of the
fields of :class:`~inferd.engine.backend.Capabilities`."""

AFFINITY_SLACK = 1
"""A conversation returns to its backend if this backend has at most this many requests more than the least
loaded backend."""

MAX_CONVERSATIONS = 4096
"""The number of conversations whose backend is remembered. A further conversation replaces the least recently
used conversation."""


class Route(NamedTuple):
    """How requests reach a backend. ``serves`` is a further name of the backend. All backends of a pool have
    the same ``serves``. ``limit`` bounds the concurrent requests of a ``remote`` backend of a pool.
    ``aliases`` are names that are replaced before a request reaches the router."""

    serves: str = ""
    remote: bool = False
    limit: int = 0
    aliases: tuple[str, ...] = ()


ALONE = Route()


def pool_names(routes: Collection[Route]) -> set[str]:
    """Returns the names of the pools. A pool has several backends with one name, and at least one backend is
    remote."""
    served = Counter(route.serves for route in routes)
    # Local models alone never form a pool, since two local models with the same name are different models.
    return {route.serves for route in routes if route.remote and route.serves and served[route.serves] > 1}


class BackendSlot:
    """One backend of the router, and its state. ``running`` counts the running requests of the backend.

    ``outstanding`` counts the requests that a :class:`Choice` has sent to the backend and that have not
    ended. ``others`` counts the requests of other clients, as the backend reports them. ``failures`` counts
    the failed health checks since the last success. After too many failures, ``healthy`` is false. ``here``
    is false for a remote backend of a pool. Requests on such a backend need no permit of the daemon.
    """

    __slots__ = (
        "_released",
        "able",
        "backend",
        "breaker",
        "failures",
        "healthy",
        "here",
        "idle_since",
        "limit",
        "others",
        "outstanding",
        "route",
        "running",
    )

    def __init__(self, backend: Backend, breaker: Breaker, now: float) -> None:
        self.backend = backend
        self.breaker = breaker
        self.able = _abilities(backend)
        self.running = 0
        self.outstanding = 0
        self.forget_health()
        self.follow(ALONE)
        self.idle_since = now
        """The time on the router's clock when the last request ended. Before the first request, the time when
        the backend was added."""
        self._released: asyncio.Future[None] | None = None

    def follow(self, route: Route) -> None:
        """Replaces the route."""
        self.route = route
        self.here = not route.remote
        self.limit = route.limit

    def forget_health(self) -> None:
        """Resets the results of health checks."""
        self.healthy = True
        self.failures = 0
        self.others = 0

    def is_named(self, model: str) -> bool:
        return model in (self.backend.name, self.backend.model) or model == self.route.serves != ""

    def release(self) -> None:
        """Marks the backend as removed, after the router has removed it.

        Resets the circuit breaker. A request that is still running will not report its result to the circuit
        breaker.
        """
        self.breaker.reset()
        self._released = asyncio.get_running_loop().create_future()
        if not self.running:
            self._released.set_result(None)

    async def released(self) -> None:
        """Returns once the last request on a removed backend has ended."""
        if self._released is not None:
            await self._released

    def fit(self) -> bool:
        """Whether the backend takes requests now."""
        return self.healthy and self.backend.ready() and self.breaker.lets_pass()

    def has_room(self) -> bool:
        """Whether the backend may get one more request. A backend whose circuit breaker is not closed gets
        one request at a time."""
        return self.outstanding < self.limit and (not self.outstanding or self.breaker.state == "closed")

    def taken(self) -> None:
        self.outstanding += 1

    def left(self) -> None:
        self.outstanding -= 1

    def begin(self) -> bool:
        """Records that a request starts. Returns whether the request is the probe of the circuit breaker."""
        self.running += 1
        return self.breaker.begin()

    def end(self, error: BaseException | None, probe: bool, now: float) -> None:
        """Records that a request has ended. ``error`` is ``None`` if the request succeeded."""
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


def adapter(name: str) -> str:
    """Returns the name of the capability that a request needs if the request uses the LoRA adapter
    ``name``."""
    return f"lora {name}"


def _abilities(backend: Backend) -> frozenset[str]:
    able = backend.capabilities()
    names = {name for name in _CAPABILITIES if getattr(able, name)} | {*map(adapter, able.lora)}
    return frozenset(names | TEXT if able.v2 else names)


_CAPABILITIES = ("v2", "tools", "vision", "audio", "embed", "rerank", "raw", "logprobs")


class Pool:
    """The backends of a pool that have the capabilities for a request, in order of priority."""

    __slots__ = ("_known", "here", "remote")

    def __init__(self, slots: Sequence[BackendSlot], known: Known) -> None:
        self.here = [slot for slot in slots if slot.here]
        self.remote = [slot for slot in slots if not slot.here]
        self._known = known

    def fit(self, without: BackendSlot | None) -> bool:
        """Whether any backend except ``without`` takes requests now."""
        return any(slot.fit() for slot in (*self.here, *self.remote) if slot is not without)

    def local(self, without: BackendSlot | None) -> BackendSlot | None:
        """Returns the least loaded local backend, other than ``without``, that takes requests. Returns
        ``None`` if there is no such backend."""
        best: BackendSlot | None = None
        for slot in self.here:
            if (best is None or slot.outstanding < best.outstanding) and slot is not without and slot.fit():
                best = slot
        return best

    def least(self, without: BackendSlot | None, conversation: Hashable) -> tuple[BackendSlot | None, str]:
        """Returns the remote backend for the request, and the reason for this choice: ``affinity`` if the
        backend served the last turn of the conversation, otherwise ``spill``."""
        best: BackendSlot | None = None
        load = 0
        for slot in self.remote:
            count = slot.outstanding + slot.others
            if (best is None or count < load) and slot is not without and slot.has_room() and slot.fit():
                best, load = slot, count
        if best is None or conversation is None:
            return best, "spill"
        last = self._known.get(conversation)
        if (
            last is not None
            and last is not without
            and last in self.remote
            and last.outstanding + last.others <= load + AFFINITY_SLACK
            and last.has_room()
            and last.fit()
        ):
            return last, "affinity"
        self._known.put(conversation, best)
        return best, "spill"


class Known:
    """Remembers which remote backend served each conversation last."""

    def __init__(self) -> None:
        self._slots: OrderedDict[Hashable, BackendSlot] = OrderedDict()

    def get(self, conversation: Hashable) -> BackendSlot | None:
        slot = self._slots.get(conversation)
        if slot is not None:
            self._slots.move_to_end(conversation)
        return slot

    def put(self, conversation: Hashable, slot: BackendSlot) -> None:
        self._slots[conversation] = slot
        self._slots.move_to_end(conversation)
        if len(self._slots) > MAX_CONVERSATIONS:
            self._slots.popitem(last=False)


class Pools(Protocol):
    """The part of the router that a :class:`Choice` uses."""

    spill_after_secs: float

    def pools(self, needs: frozenset[str], model: str | None) -> Sequence[Pool]:
        """Returns the pools with the needed capabilities, in order of priority. Raises ModelNotFound."""

    def refuse(self, needs: frozenset[str], model: str | None) -> InferdError:
        """Returns the error that says why no backend serves the request now."""


class Choice:
    """Picks the backend of one request. ``conversation()`` returns the key of the request's conversation, or
    ``None`` without a conversation. ``why`` is the reason for the last choice."""

    __slots__ = ("_conversation", "_failed", "_key", "_model", "_needs", "_router", "why")

    def __init__(
        self,
        router: Pools,
        needs: frozenset[str],
        model: str | None,
        conversation: Callable[[], Hashable],
    ) -> None:
        self._router = router
        self._needs = needs
        self._model = model
        self._conversation: Callable[[], Hashable] | None = conversation
        self._key: Hashable = None
        self._failed: BackendSlot | None = None
        self.why = ""

    @property
    def spill_after_secs(self) -> float:
        """The time in seconds that the request may wait for a local backend while a remote backend has
        room."""
        return self._router.spill_after_secs

    def take(self, room: bool, wait_secs: float) -> BackendSlot | None:
        """Picks the backend that serves the request now. Returns ``None`` if the request must wait.

        ``room`` is true if the request may take a permit for a local backend. ``wait_secs`` is the estimated
        wait for a permit. Raises NoBackend or another error if no pool can serve the request.
        """
        failed = self._failed
        for pool in self._router.pools(self._needs, self._model):
            local = pool.local(failed) if pool.here else None
            if local is not None:
                if room:
                    self.why = "local" if failed is None else "retry"
                    return local
                if wait_secs <= self._router.spill_after_secs:
                    return None
            slot, why = pool.least(failed, self._named()) if pool.remote else (None, "")
            if slot is not None:
                self.why = why if failed is None else "retry"
                return slot
            if local is not None or pool.fit(failed):
                return None
        raise self._router.refuse(self._needs, self._model)

    def may_retry(self, slot: BackendSlot) -> bool:
        """Whether another backend of the pool may serve the request after ``slot`` failed.

        Returns true at most once, since a request is retried only once.
        """
        if self._failed is not None:
            return False
        self._failed = slot
        pools = self._router.pools(self._needs, self._model)
        pool = next((pool for pool in pools if slot in pool.here or slot in pool.remote), None)
        return pool is not None and pool.fit(slot)

    def _named(self) -> Hashable:
        if self._conversation is not None:
            self._key = self._conversation()
            self._conversation = None
        return self._key
