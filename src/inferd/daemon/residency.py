"""Loads models on demand, when a request names them, keeps them while they are used, and unloads idle ones.

The preloaded backends of the configuration always stay loaded. Any other model of
:mod:`inferd.daemon.directory` is loaded when a request names it. The request enters the queue after the load.
Before a load, the memory that the model needs is estimated from the header of its file. If memory is short,
idle models are unloaded, the least recently used first, and then busy models after their running requests. If
even that would not suffice, the request is refused with an error that states the sizes. A request that names
a model never starts a download.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from inferd import log
from inferd.config.entries import LlamaCppEntry
from inferd.config.settings import Settings
from inferd.daemon.backends import Build, started
from inferd.daemon.build import build_key
from inferd.daemon.threads import in_thread
from inferd.engine.backend import Backend, EngineState
from inferd.errors import (
    AdmissionClosed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelTooLarge,
    QueueFull,
)
from inferd.serve.models import USUAL, Show, Stay
from inferd.serve.router import BackendSlot, Router

if TYPE_CHECKING:
    from inferd.daemon.directory import Directory
    from inferd.store.gguf import ModelCard

Tell = Callable[[str, str, Mapping[str, object]], None]
"""Called with a model's name, its state (``loading``, ``resident``, ``unloaded``, ``failed``), and
details."""

_log = log.get("residency")


class _Resident:
    """A model that was loaded on demand. An idle model is unloaded at ``until``, a time of the event loop's
    clock, or earlier if its memory is needed. A ``pinned`` model is unloaded in neither case. A ``leaving``
    model is unloaded when its last request ends. ``releases`` counts the calls to unload the model, and
    ``users`` the requests that use it. If a new configuration changes ``build_key``, the model is unloaded.
    While the future ``drained`` is set, the model gets no new requests. The future is done when the last
    running request ends."""

    def __init__(
        self, backend: Backend, slot: BackendSlot, estimate: int, pinned: bool, build_key: tuple[object, ...]
    ) -> None:
        self.build_key = build_key
        self.backend = backend
        self.slot = slot
        self.estimate = estimate
        self.pinned = pinned
        self.users = 0
        self.last_used = 0.0
        self.until = 0.0
        self.leaving = False
        self.releases = 0
        self.alarm: asyncio.TimerHandle | None = None
        self.drained: asyncio.Future[None] | None = None

    def memory_bytes(self) -> int:
        """Returns the estimated memory of the model, or the memory of its process if that is more."""
        state = self.backend.engine_state()
        return max(self.estimate, 0 if state is None else state.taken_bytes)


class _Loading:
    """A running load: its current phase, and the callbacks that are called with each further phase."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.phase = "waiting"
        self.details: Mapping[str, object] = {}
        self.shows: list[Show] = []

    def advance(self, phase: str, details: Mapping[str, object]) -> None:
        self.phase, self.details = phase, details
        for show in self.shows:
            show(phase, details)


class Residency:
    """Implements :class:`~inferd.serve.models.ModelDirectory`. Runs on the event loop."""

    def __init__(self, router: Router, build: Build, settings: Settings, tell: Tell) -> None:
        self.settings = settings
        self._router = router
        self._made: Directory | None = None
        self._build = build
        self._tell = tell
        self.starting: set[Backend] = set()
        """The models that a reload has begun to load. Their memory counts as taken."""
        self._residents: dict[str, _Resident] = {}
        self._loads: dict[str, _Loading] = {}
        self._waiting: dict[str, int] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._closing = False

    @property
    def _directory(self) -> Directory:
        if self._made is None:
            # The directory imports the store, so it is made only when a request names a model.
            from inferd.daemon.directory import Directory

            self._made = Directory(self._router, self.settings)
        self._made.settings = self.settings  # a reload replaces the settings
        return self._made

    @asynccontextmanager
    async def hold(
        self, name: str, deadline: float | None, stay: Stay = USUAL, show: Show | None = None
    ) -> AsyncIterator[str]:
        if not self._router.serves(name):
            name = self._directory.resolve(name)
        if self._router.serves(name):
            yield name
            return
        # The model may be unloaded again before this request runs.
        while name not in self._residents or self._residents[name].drained is not None:
            await self._wait_for(name, deadline, show)
        resident = self._residents[name]
        resident.users += 1
        releases = resident.releases
        if resident.alarm is not None:
            resident.alarm.cancel()
        try:
            yield name
        finally:
            resident.users -= 1
            resident.last_used = asyncio.get_running_loop().time()
            # If the owner unloaded the model after this request began, the unload takes precedence.
            self._stays(resident, stay if releases == resident.releases else USUAL)
            if not resident.users:
                self._let_idle(name, resident)
                if resident.drained is not None and not resident.drained.done():
                    resident.drained.set_result(None)

    def _stays(self, resident: _Resident, stay: Stay) -> None:
        """Sets how long a model stays loaded. Only the daemon's own user and root can shorten the stay."""
        settings, now = self.settings, resident.last_used
        usual = now + (settings.keep_alive_secs or math.inf)
        if stay.secs is not None and stay.by_owner:
            resident.leaving, resident.pinned = False, stay.secs < 0
            resident.until = math.inf if stay.secs < 0 else now + stay.secs
        elif resident.leaving:
            resident.until = now
        elif resident.pinned:
            resident.until = math.inf
        elif stay.secs is None:
            resident.until = max(resident.until, usual)
        else:
            most = settings.keep_alive_max_secs
            resident.until = max(
                resident.until, usual, now + (most if stay.secs < 0 else min(stay.secs, most))
            )

    async def _wait_for(self, name: str, deadline: float | None, show: Show | None) -> None:
        """Waits for the load of a model. All requests for the model share one load, which goes on even if all
        of them are cancelled."""
        if self._closing:
            raise AdmissionClosed
        if self._waiting.get(name, 0) >= max(1, self.settings.queue_depth):
            raise QueueFull
        loop = asyncio.get_running_loop()
        load = self._loads.get(name)
        if load is None:
            load = self._loads[name] = _Loading(loop.create_task(self._load(name)))
            load.task.add_done_callback(functools.partial(self._loaded, name))
        self._waiting[name] = self._waiting.get(name, 0) + 1
        if show is not None:
            load.shows.append(show)
            show(load.phase, load.details)
        try:
            await asyncio.wait(
                (load.task,), timeout=None if deadline is None else max(0.0, deadline - loop.time())
            )
        finally:
            if show is not None:
                load.shows.remove(show)
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
        if not load.task.done():
            raise DeadlineExceeded(f"the deadline passed while the model {name!r} was loaded")
        if load.task.cancelled() or self._closing:
            raise AdmissionClosed
        load.task.result()  # raises the error of a failed load
        if show is not None:
            show("loaded", {})

    def _loaded(self, name: str, load: asyncio.Task[None]) -> None:
        del self._loads[name]
        if not load.cancelled() and (error := load.exception()) is not None:
            self._tell(name, "failed", {"message": str(error)})

    # Loading.

    async def _load(self, name: str) -> None:
        card = await in_thread(lambda: self._directory.card_with_draft(name), threading.Event())
        async with self._one_load:  # two estimates at once would count the same free memory
            if name in self._residents:
                return  # a load for another model was to unload it, but did not
            entry, estimate = await self._make_room(name, card)
            self._tell(name, "loading", {"estimate_bytes": estimate, "n_ctx": entry.n_ctx})
            loop = asyncio.get_running_loop()
            cancelled = threading.Event()

            def progress(phase: str, details: Mapping[str, object]) -> None:
                loop.call_soon_threadsafe(self._advance, name, phase, details)

            settings, key = self.settings, self._build_key(name)
            backend = await started(lambda: self._build(settings, entry, progress, cancelled), cancelled)
            slot = self._router.add(backend)
            resident = self._residents[name] = _Resident(backend, slot, estimate, entry.pin, key)
            resident.last_used = loop.time()
            self._stays(resident, USUAL)
            self._let_idle(name, resident)
            resident.leaving = key != self._build_key(name)  # a reload came during the load
            _log.info("model_resident", model=name, n_ctx=entry.n_ctx, estimate_bytes=estimate)
            self._tell(name, "resident", {"n_ctx": entry.n_ctx})

    def _advance(self, name: str, phase: str, details: Mapping[str, object]) -> None:
        self._tell(name, "loading", {"phase": phase, **details})
        if name in self._loads:
            self._loads[name].advance(phase, details)

    async def _make_room(self, name: str, card: ModelCard) -> tuple[LlamaCppEntry, int]:
        """Unloads other models if memory is short. Returns the entry to load and its estimated bytes."""
        from inferd.daemon import memory
        from inferd.daemon.directory import with_context

        entry = self._directory.entry(name)
        held = memory.part_here(card, len(entry.rpc), entry.n_gpu_layers)
        sizes = memory.context_sizes(held, entry.n_ctx, self.settings.active_permits)
        while True:
            used, private = self.memory({*self.starting, *(each.backend for each in self._router.members)})
            budget = memory.budget_bytes(private, self.settings.memory_budget_bytes)
            fitting = next(((n, size) for n, size in sizes if not budget or used + size <= budget), None)
            # Prefer a shorter context to unloading a model that may be needed again.
            if fitting is not None:
                n_ctx, size = fitting
                return with_context(entry, card, n_ctx), size
            if not await self.unload_idle("another model needs its memory"):
                await self._drain(name, sizes[-1][1], budget, used)

    async def _drain(self, name: str, needed: int, budget: int, used: int) -> None:
        """Gives the least recently used busy model no new requests, and unloads it after its running ones.

        Raises ModelTooLarge if ``name`` would not fit even with all unpinned models unloaded.
        """
        giving = {other: resident for other, resident in self._residents.items() if not resident.pinned}
        if not giving or used - sum(each.memory_bytes() for each in giving.values()) + needed > budget:
            raise ModelTooLarge(name, needed, budget, used)
        busy = [(resident.last_used, other) for other, resident in giving.items() if resident.users]
        if not busy:
            await asyncio.sleep(0.001)  # just loaded; the waiting requests are about to start
            return
        _, victim = min(busy)
        resident = self._residents[victim]
        resident.drained = asyncio.get_running_loop().create_future()
        try:
            await resident.drained
        finally:
            resident.drained = None
        if self._residents.get(victim) is resident and not resident.pinned:
            await self.unload(victim, "another model needs its memory")

    def memory(self, others: Iterable[Backend]) -> tuple[int, int]:
        """Returns two numbers of bytes for the models on demand and the ``others`` together: the memory that
        they take, and the memory of their processes that no file backs."""
        residents = self._residents.values()
        states = [backend.engine_state() or EngineState() for backend in others]
        taken = sum(state.taken_bytes for state in states) + sum(each.memory_bytes() for each in residents)
        states += [each.backend.engine_state() or EngineState() for each in residents]
        return taken, sum(state.private_bytes for state in states)

    # Unloading.

    def _let_idle(self, name: str, resident: _Resident) -> None:
        if not math.isinf(resident.until) and not self._closing:
            loop = asyncio.get_running_loop()
            resident.alarm = loop.call_at(resident.until, self._unload_idle, name, resident)

    def _unload_idle(self, name: str, resident: _Resident) -> None:
        if self._residents.get(name) is resident and not resident.users:
            self._unload(name, "it was idle for a while")

    def follow(self, settings: Settings) -> None:
        """Applies a new configuration. Unloads models with a changed ``build_key`` after their requests."""
        self.settings = settings
        for name, resident in [*self._residents.items()]:
            if resident.build_key != self._build_key(name):
                self._release(name, resident, "its configuration has changed")

    def _build_key(self, name: str) -> tuple[object, ...]:
        return build_key(self.settings, self._directory.entry(name))

    def _release(self, name: str, resident: _Resident, reason: str) -> asyncio.Task[None] | None:
        """Unloads a model after its requests. If it has none, returns the task that unloads it now."""
        resident.pinned, resident.leaving = False, True
        resident.releases += 1
        return None if resident.users else self._unload(name, reason)

    async def release(self, name: str) -> int:
        """Unloads a model now, or after its last running request. Returns the number of running requests.

        Raises ModelNotFound for a model that is not loaded, and InvalidRequest for a preloaded model.
        """
        name = self._directory.resolve(name)
        resident = self._residents.get(name)
        if resident is None:
            if self._router.serves(name):
                raise InvalidRequest(
                    f"the configuration keeps {name!r} loaded; give its entry `preload`: false and reload"
                )
            raise ModelNotFound(name, loaded=False)
        unloading = self._release(name, resident, "it was asked for")
        if unloading is not None:
            await asyncio.shield(unloading)
        return resident.users

    async def unload_idle(self, reason: str) -> bool:
        """Unloads the least recently used idle model. Returns whether there was one."""
        free = {name for name, each in self._residents.items() if not each.users and not each.pinned}
        idle = sorted(free - self._waiting.keys(), key=lambda name: self._residents[name].last_used)
        if idle:
            await self.unload(idle[0], reason)
        return bool(idle)

    async def unload(self, name: str, reason: str) -> None:
        """Unloads a model, if it is still loaded, and waits until its process has ended."""
        if name in self._residents:
            await asyncio.shield(self._unload(name, reason))

    def _unload(self, name: str, reason: str) -> asyncio.Task[None]:
        """Removes a model at once, so that a later request loads it again. Returns the task that ends the
        process. Shield the task if you await it, because nothing else would end the process."""
        resident = self._residents.pop(name)
        if resident.alarm is not None:
            resident.alarm.cancel()
        self._router.remove(resident.slot)
        task = asyncio.get_running_loop().create_task(self._end(name, resident, reason))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)
        return task

    async def _end(self, name: str, resident: _Resident, reason: str) -> None:
        await resident.slot.released()
        await resident.backend.close()
        _log.info("model_unloaded", model=name, reason=reason)
        self._tell(name, "unloaded", {"reason": reason})

    def stop(self) -> None:
        """Starts no more loads, cancels the running ones, and refuses the requests that wait for them."""
        self._closing = True
        for load in self._loads.values():
            load.task.cancel()

    async def close(self) -> None:
        """Unloads all models loaded on demand."""
        self.stop()
        if waiting := (*(load.task for load in self._loads.values()), *self._unloading):
            await asyncio.wait(waiting)
        for name in list(self._residents):
            await self.unload(name, "the daemon stops")
        if self._made is not None:
            await self._made.close()

    # Listings.

    async def listing(self) -> list[dict[str, object]]:
        """Returns the rows of :meth:`Directory.listing`."""
        return await self._directory.listing(self._residents.__contains__)

    def loading(self) -> list[dict[str, object]]:
        """Returns the models that are loading, and the number of requests that wait for each."""
        return [{"name": name, "waiting": self._waiting.get(name, 0)} for name in self._loads]

    def stay(self, slot: BackendSlot) -> dict[str, object]:
        """Returns how long a backend stays loaded without requests. A ``pinned`` backend is never unloaded.
        ``stays_secs`` is ``None`` if the backend stays until its memory is needed."""
        resident = next((each for each in self._residents.values() if each.slot is slot), None)
        if resident is None:
            return {"pinned": True, "stays_secs": None}
        left = None if math.isinf(resident.until) else resident.until - asyncio.get_running_loop().time()
        return {"pinned": resident.pinned, "stays_secs": None if left is None else round(max(0.0, left), 3)}
