"""The models that were loaded on demand, and the memory that all local models share.

Before a load, :meth:`Residents.make_room` compares the model's need with what the models take already, in RAM
and on each GPU. If the model could not fit even without the models that may be unloaded, it is refused. If
RAM or a GPU is short of memory, idle models that take memory there are unloaded, the least recently used
first. Then a busy model is unloaded when its running requests have ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from inferd import log
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.engine.backend import Backend, EngineState, Need, Needs
from inferd.serve.router import BackendSlot, Router

Tell = Callable[[str, str, Mapping[str, object]], None]
"""Called with a model's name, its state (``loading``, ``resident``, ``unloaded``, ``failed``), and
details."""

_MAKES_ROOM = "another model needs its memory"

_log = log.get("residency")


class Resident:
    """A model that was loaded on demand. An idle model is unloaded at ``until``, a time of the event loop's
    clock, or earlier if its memory is needed. A ``pinned`` model is unloaded in neither case. A ``leaving``
    model is unloaded when its last request ends. ``releases`` counts the calls to unload the model, and
    ``users`` the requests that use it. A ``fresh`` model has had no request yet. If a new configuration
    changes ``build_key``, the model is unloaded. While ``drained`` is a future and not ``None``, the model
    gets no new requests. The future is done when the last running request ends."""

    def __init__(
        self, backend: Backend, slot: BackendSlot, pinned: bool, build_key: tuple[object, ...]
    ) -> None:
        self.build_key = build_key
        self.backend = backend
        self.slot = slot
        self.pinned = pinned
        self.users = 0
        self.fresh = True
        self.last_used = 0.0
        self.until = 0.0
        self.leaving = False
        self.releases = 0
        self.alarm: asyncio.TimerHandle | None = None
        self.drained: asyncio.Future[None] | None = None


class Residents:
    """The models ``by_name``. Runs on the event loop.

    ``waiting`` counts, for each model, the requests that wait until the model is loaded. The memory of the
    ``starting`` and of the ``retiring`` backends counts as taken, too. A ``starting`` backend is being
    loaded, or the router does not have it yet. A ``retiring`` backend is being closed by a task. Memory that
    was ``granted`` to a load counts as taken until the load's backend exists and reports its need itself.
    """

    def __init__(self, router: Router, tell: Tell) -> None:
        self.by_name: dict[str, Resident] = {}
        self.waiting: dict[str, int] = {}
        self.granted: Counter[str] = Counter()
        self.starting: set[Backend] = set()
        self.retiring: dict[asyncio.Task[None], Backend] = {}
        self._unloading: dict[asyncio.Task[None], Resident] = {}
        self._router = router
        self._tell = tell

    def _states(self, without: Backend | None = None) -> list[EngineState]:
        """Returns the states of all engine processes, except that of the backend ``without``."""
        residents = (each.backend for each in (*self.by_name.values(), *self._unloading.values()))
        configured = (member.backend for member in self._router.members)
        backends = {*residents, *self.starting, *self.retiring.values(), *configured} - {without}
        return [state for backend in backends if (state := backend.engine_state()) is not None]

    def taken(self, without: Backend | None = None) -> tuple[Counter[str], int]:
        """Returns the bytes that all models take in each place, and how many bytes of the models' processes
        are not backed by a file."""
        taken = self.granted.copy()
        states = self._states(without)
        for state in states:
            taken.update(memory.taken(state))
        return taken, sum(state.private_bytes for state in states)

    def gpu_budgets(self, settings: Settings, needs: Needs, share: float = memory.SHARE) -> dict[str, int]:
        """Returns the budget of each GPU."""
        held: Counter[str] = Counter()
        for state in self._states():
            if state.loaded:
                held.update(state.gpu_bytes)
        return memory.gpu_budgets(settings, needs, held, share)

    def fitting(self, sizes: Sequence[Need], settings: Settings) -> Need | None:
        """Returns the first size for which RAM has room now."""
        used, private = self.taken()
        return memory.fitting(sizes, used, memory.budgets(settings, private, {}))

    async def make_room(
        self,
        name: str,
        sizes: Sequence[Need],
        settings: Settings,
        gpus: Mapping[str, int] = MappingProxyType({}),
        without: Backend | None = None,
    ) -> Need:
        """Unloads models if memory is short, and returns the size to load. ``gpus`` are the budgets of the
        GPUs. ``without`` is the backend to load.

        Raises ModelTooLarge.
        """
        while True:
            used, private = self.taken(without)
            budgets = memory.budgets(settings, private, gpus)
            # Prefer a shorter context to unloading a model that may be needed again.
            fitting = memory.fitting(sizes, used, budgets)
            if fitting is not None:
                return fitting
            if lacking := memory.short(sizes[-1], self.staying(used), budgets):
                raise memory.too_large(name, sizes[-1], used, budgets, lacking[0])
            short = memory.short(sizes[-1], used, budgets)
            if not (await self.unload_idle(_MAKES_ROOM, short) or await self.wait_for_retiring(short)):
                await self._drain(short)

    def staying(self, used: Counter[str], *, busy: bool = False) -> Counter[str]:
        """Returns the ``used`` bytes without those of models that end or may be unloaded. With ``busy``, busy
        models stay: only a load on demand waits for their requests."""
        staying = used.copy()
        residents = self._idle() if busy else self.by_name
        leaving = [
            each.backend for each in (*residents.values(), *self._unloading.values()) if not each.pinned
        ]
        for backend in (*leaving, *self.retiring.values()):
            staying.subtract(memory.taken_by(backend))
        return staying

    def _idle(self) -> dict[str, Resident]:
        """Returns the models that may be unloaded now."""
        return {
            name: resident
            for name, resident in self.by_name.items()
            if not resident.users and not resident.pinned
            if not (resident.fresh and name in self.waiting)  # the waiting requests are about to start
        }

    async def unload_idle(self, reason: str, short: Collection[str]) -> bool:
        """If models are being unloaded already, waits until one of them has ended. Otherwise unloads the
        least recently used idle model that takes memory in one of the places ``short``. Returns whether there
        was a model to unload."""
        if self._unloading:
            await asyncio.wait(self._unloading, return_when=asyncio.FIRST_COMPLETED)
            return True
        idle = [
            (resident.last_used, name)
            for name, resident in self._idle().items()
            if memory.takes(resident.backend, short)
        ]
        if idle:
            await self.unload(min(idle)[1], reason)
        return bool(idle)

    async def wait_for_retiring(self, short: Collection[str]) -> bool:
        """Waits until a replaced backend has ended that takes memory in one of the places ``short``. Returns
        whether there was one."""
        ending = [task for task, backend in self.retiring.items() if memory.takes(backend, short)]
        if ending:
            await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        return bool(ending)

    async def _drain(self, short: Collection[str]) -> None:
        """Waits for the requests of the least recently used busy model that takes memory in one of the places
        ``short``, gives it no new ones, and unloads it."""
        busy = [
            (resident.last_used, other)
            for other, resident in self.by_name.items()
            if resident.users and not resident.pinned and memory.takes(resident.backend, short)
        ]
        if not busy:
            await asyncio.sleep(0.001)  # a fresh model; the waiting requests are about to start
            return
        _, victim = min(busy)
        resident = self.by_name[victim]
        resident.drained = asyncio.get_running_loop().create_future()
        try:
            await resident.drained
        finally:
            resident.drained = None
        if self.by_name.get(victim) is resident and not resident.pinned:
            await self.unload(victim, _MAKES_ROOM)

    async def unload(self, name: str, reason: str) -> None:
        """Unloads a model, if it is still loaded, and waits until its process has ended."""
        if name in self.by_name:
            await asyncio.shield(self.begin_unload(name, reason))

    def begin_unload(self, name: str, reason: str) -> asyncio.Task[None]:
        """Removes a model at once, so that a later request loads it again. Returns the task that ends the
        process. If you await the task, shield it, because only this task ends the process."""
        resident = self.by_name.pop(name)
        if resident.alarm is not None:
            resident.alarm.cancel()
        self._router.remove(resident.slot)
        task = asyncio.get_running_loop().create_task(self._end(name, resident, reason))
        self._unloading[task] = resident
        task.add_done_callback(self._unloading.pop)
        return task

    async def _end(self, name: str, resident: Resident, reason: str) -> None:
        await resident.slot.released()
        await resident.backend.close()
        _log.info("model_unloaded", model=name, reason=reason)
        self._tell(name, "unloaded", {"reason": reason})

    async def close(self) -> None:
        """Unloads all models. No load may be running."""
        if self._unloading:
            await asyncio.wait(self._unloading)
        for name in list(self.by_name):
            await self.unload(name, "the daemon stops")
