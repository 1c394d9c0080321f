"""The backends of the router, and the pools that several of them form.

Backends whose routes ``serve`` one name form a pool. Local ones run on the daemon's permits. Remote ones, up
to ``limit`` requests each, take what the local ones would serve too late. Among the remote ones the least
loaded is chosen. A conversation goes where its last turn went, unless that backend has more to do.

A :class:`Choice` is one request's way through the pools: it is asked for a place when the request arrives,
and again whenever a place may have become free. All of it is for the event loop alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inferd.engine.backend import Backend
from inferd.errors import BackendError, InferdError
from inferd.serve.breaker import Breaker

TEXT = frozenset({"text"})
"""What a v1 request needs. The other needs have the names of :class:`~inferd.engine.backend.Capabilities`."""

AFFINITY_SLACK = 1
"""By how many requests the backend that knows a conversation may be busier than the least loaded one."""

MAX_CONVERSATIONS = 4096
"""Conversations of a pool of which it is known where they went; the one used least recently is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What the router is told of a backend: the name that it ``serves`` beside its own, whether it is
    ``remote``, and how many requests it is sent at once as a remote one of a pool. ``aliases`` are further
    names of it, which are its own name when they come to the router."""

    serves: str = ""
    remote: bool = False
    limit: int = 0
    aliases: tuple[str, ...] = ()


ALONE = Route()


def pool_names(routes: Collection[Route]) -> set[str]:
    """The names that several backends serve as a pool, of which one at least is remote."""
    served = Counter(route.serves for route in routes)
    # Two local models of one name differ in something, or there would not be two.
    return {route.serves for route in routes if route.remote and route.serves and served[route.serves] > 1}


class BackendSlot:
    """One backend of the router, its breaker, and how many requests are ``running`` on it.

    ``outstanding`` are the places that requests of its pool have on it. ``others`` are the requests of other
    clients that the backend said it has; ``healthy`` is what it said last of its health, and ``failures`` how
    often in a row it did not say.
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
        """When its last request ended, or it came, by the clock of the router."""
        self._released: asyncio.Future[None] | None = None

    def follow(self, route: Route) -> None:
        """Takes on another route."""
        self.route = route
        self.here = not route.remote
        self.limit = route.limit

    def forget_health(self) -> None:
        """As before it was first asked how it is."""
        self.healthy = True
        self.failures = 0
        self.others = 0

    def is_named(self, model: str) -> bool:
        return model in (self.backend.name, self.backend.model) or model == self.route.serves != ""

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
        return self.healthy and self.backend.ready() and self.breaker.lets_pass()

    def has_room(self) -> bool:
        """Whether a place is free on it. While its breaker has to be probed, one place is all there is."""
        return self.outstanding < self.limit and (not self.outstanding or self.breaker.state == "closed")

    def taken(self) -> None:
        self.outstanding += 1

    def left(self) -> None:
        self.outstanding -= 1

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


def adapter(name: str) -> str:
    """What a request needs that names a LoRA adapter."""
    return f"lora {name}"


def _abilities(backend: Backend) -> frozenset[str]:
    able = backend.capabilities()
    names = {name for name in _CAPABILITIES if getattr(able, name)} | {*map(adapter, able.lora)}
    return frozenset(names | TEXT if able.v2 else names)


_CAPABILITIES = ("v2", "tools", "vision", "audio", "embed", "rerank", "raw", "logprobs")


class Pool:
    """Backends of one name that are able to serve a request, in order of priority."""

    __slots__ = ("_known", "here", "remote")

    def __init__(self, slots: Sequence[BackendSlot], known: Known) -> None:
        self.here = [slot for slot in slots if slot.here]
        self.remote = [slot for slot in slots if not slot.here]
        self._known = known

    def fit(self, without: BackendSlot | None) -> bool:
        """Whether one of them takes requests now, other than ``without``."""
        return any(slot.fit() for slot in (*self.here, *self.remote) if slot is not without)

    def local(self, without: BackendSlot | None) -> BackendSlot | None:
        """The local backend with the least to do, of those that are fit."""
        best: BackendSlot | None = None
        for slot in self.here:
            if (best is None or slot.outstanding < best.outstanding) and slot is not without and slot.fit():
                best = slot
        return best

    def least(self, without: BackendSlot | None, conversation: Hashable) -> tuple[BackendSlot | None, str]:
        """The remote backend to choose, and why it: ``spill`` or ``affinity``."""
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
    """Where conversations went last."""

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
    """What a choice asks the router."""

    spill_after_secs: float

    def pools(self, needs: frozenset[str], model: str | None) -> Sequence[Pool]:
        """The pools that can serve the request, in order of priority. Raises as ``dispatch``."""

    def refuse(self, needs: frozenset[str], model: str | None) -> InferdError:
        """Why none of them serves now."""


class Choice:
    """One request's way to a backend; ``conversation`` names the conversation that it belongs to, ``None``
    if it belongs to none. ``why`` is why the last place was chosen."""

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
        """The backend on which the request has a place now, or ``None`` if it has to wait.

        ``room``: a permit is free for a local backend; ``wait_secs`` is how long one may be waited for.
        Raises NoBackend, or what else keeps every pool from serving.
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
        """Whether another backend of the pool may serve the request after ``slot`` has failed it; once."""
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
