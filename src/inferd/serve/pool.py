"""The router's backends, and the pools they form.

Backends whose routes ``serve`` one name form a pool. Local backends run on the daemon's permits. Remote
backends, up to ``limit`` requests each, take the requests that a local one would serve too late. The least
loaded remote backend is chosen. A conversation returns to the backend of its last turn, unless that backend
is busier.

A :class:`Choice` picks a backend for one request. It is asked for a slot when the request arrives, and again
whenever a slot may have become free. Everything here runs on the event loop.
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
"""The needs of a v1 request. Other needs have the names in :class:`~inferd.engine.backend.Capabilities`."""

AFFINITY_SLACK = 1
"""How many more requests than the least loaded backend the backend of a conversation may have."""

MAX_CONVERSATIONS = 4096
"""The conversations of a pool whose backend is remembered; the least recently used is forgotten."""


class Route(NamedTuple):
    """The routing of a backend: the name that it ``serves`` besides its own, whether it is ``remote``, and
    the ``limit`` of concurrent requests as a remote backend of a pool. ``aliases`` are further names for it;
    they are resolved before the router."""

    serves: str = ""
    remote: bool = False
    limit: int = 0
    aliases: tuple[str, ...] = ()


ALONE = Route()


def pool_names(routes: Collection[Route]) -> set[str]:
    """The names served by pools: by several backends, of which at least one is remote."""
    served = Counter(route.serves for route in routes)
    # Local models alone never form a pool: two of one name are different models.
    return {route.serves for route in routes if route.remote and route.serves and served[route.serves] > 1}


class BackendSlot:
    """One backend of the router, its breaker, and how many requests are ``running`` on it.

    ``outstanding`` counts the slots taken by requests of its pool. ``others`` counts the requests of other
    clients, as the backend reports them. ``failures`` counts the failed health checks in a row, and
    ``healthy`` is false after too many.
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
        """When its last request ended, or the backend was added, by the router's clock."""
        self._released: asyncio.Future[None] | None = None

    def follow(self, route: Route) -> None:
        """Applies another route."""
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
        """Marks the backend as removed, after the router has dropped it.

        Resets its breaker, which no longer gets the results of the requests that still run.
        """
        self.breaker.reset()
        self._released = asyncio.get_running_loop().create_future()
        if not self.running:
            self._released.set_result(None)

    async def released(self) -> None:
        """Returns once a removed backend has ended its last request."""
        if self._released is not None:
            await self._released

    def fit(self) -> bool:
        """Whether the backend takes requests now."""
        return self.healthy and self.backend.ready() and self.breaker.lets_pass()

    def has_room(self) -> bool:
        """Whether the backend has a free slot. While its breaker awaits a probe, it has one slot."""
        return self.outstanding < self.limit and (not self.outstanding or self.breaker.state == "closed")

    def taken(self) -> None:
        self.outstanding += 1

    def left(self) -> None:
        self.outstanding -= 1

    def begin(self) -> bool:
        """Records that a request starts. Returns whether this request is the breaker's probe."""
        self.running += 1
        return self.breaker.begin()

    def end(self, error: BaseException | None, probe: bool, now: float) -> None:
        """Records that a request has ended with ``error``."""
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
    """The need of a request that names a LoRA adapter."""
    return f"lora {name}"


def _abilities(backend: Backend) -> frozenset[str]:
    able = backend.capabilities()
    names = {name for name in _CAPABILITIES if getattr(able, name)} | {*map(adapter, able.lora)}
    return frozenset(names | TEXT if able.v2 else names)


_CAPABILITIES = ("v2", "tools", "vision", "audio", "embed", "rerank", "raw", "logprobs")


class Pool:
    """The backends of one name that can serve a request, in order of priority."""

    __slots__ = ("_known", "here", "remote")

    def __init__(self, slots: Sequence[BackendSlot], known: Known) -> None:
        self.here = [slot for slot in slots if slot.here]
        self.remote = [slot for slot in slots if not slot.here]
        self._known = known

    def fit(self, without: BackendSlot | None) -> bool:
        """Whether a backend other than ``without`` takes requests now."""
        return any(slot.fit() for slot in (*self.here, *self.remote) if slot is not without)

    def local(self, without: BackendSlot | None) -> BackendSlot | None:
        """The least loaded of the fit local backends."""
        best: BackendSlot | None = None
        for slot in self.here:
            if (best is None or slot.outstanding < best.outstanding) and slot is not without and slot.fit():
                best = slot
        return best

    def least(self, without: BackendSlot | None, conversation: Hashable) -> tuple[BackendSlot | None, str]:
        """The remote backend to choose, and the reason: ``spill`` or ``affinity``."""
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
    """The last backend of each conversation."""

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
    """The router, as a choice uses it."""

    spill_after_secs: float

    def pools(self, needs: frozenset[str], model: str | None) -> Sequence[Pool]:
        """The pools that can serve the request, in order of priority. Raises as ``dispatch``."""

    def refuse(self, needs: frozenset[str], model: str | None) -> InferdError:
        """The error that says why no backend serves the request now."""


class Choice:
    """Picks the backend of one request. ``conversation`` returns the key of its conversation, or ``None``.
    ``why`` is the reason for the last choice."""

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
        """How long the request may wait for a local backend when a remote one has room."""
        return self._router.spill_after_secs

    def take(self, room: bool, wait_secs: float) -> BackendSlot | None:
        """The backend that serves the request now, or ``None`` if the request must wait.

        ``room``: a permit is free for a local backend. ``wait_secs`` is the estimated wait for a permit.
        Raises NoBackend, or another reason why no pool can serve.
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

        Only the first call can return true: a request is retried once.
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
