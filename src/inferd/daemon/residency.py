"""Loads models on demand, when a request names them, keeps them while they are used, and unloads idle ones.

The preloaded backends of the configuration always stay loaded. Any other model of
:mod:`inferd.daemon.directory` is loaded when a request names it. The request enters the queue after the load.
Before a load, the memory that the model needs is estimated from the header of its file. On a machine with a
GPU, the engine process of the model then measures its need there (:mod:`inferd.engine.local.opening`). If
memory is short, idle models are unloaded, the least recently used first. Then busy models are unloaded when
their running requests have ended. If even that would not suffice, the request is refused with an error that
states the sizes. A request that names a model never starts a download.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from inferd import log
from inferd.config.entries import LlamaCppEntry
from inferd.config.settings import Settings
from inferd.daemon.backends import Build, started
from inferd.daemon.build import build_key
from inferd.daemon.residents import Resident, Residents, Tell
from inferd.daemon.threads import in_thread
from inferd.engine.backend import Backend, GpuRoom, Need, Needs
from inferd.errors import (
    AdmissionClosed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
)
from inferd.serve.models import USUAL, Show, Stay
from inferd.serve.router import BackendSlot, Router

if TYPE_CHECKING:
    from inferd.daemon.directory import Directory
    from inferd.store.gguf import ModelCard

_log = log.get("residency")


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
        self.residents = Residents(router, tell)
        self._loads: dict[str, _Loading] = {}
        self._one_load = asyncio.Lock()
        self._has_gpu: bool | None = None
        """Whether engine processes find a GPU here, or ``None`` before the first load that could use one."""
        self._closing = False

    @property
    def _directory(self) -> Directory:
        if self._made is None:
            # The directory imports the store, so it is made only when a request names a model.
            from inferd.daemon.directory import Directory

            self._made = Directory(self._router, self.settings, closed=self._closing)
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
        while name not in self.residents.by_name or self.residents.by_name[name].drained is not None:
            await self._wait_for(name, deadline, show)
        resident = self.residents.by_name[name]
        resident.users += 1
        resident.fresh = False
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

    def _stays(self, resident: Resident, stay: Stay) -> None:
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
        if self.residents.waiting.get(name, 0) >= max(1, self.settings.queue_depth):
            raise QueueFull
        loop = asyncio.get_running_loop()
        load = self._loads.get(name)
        if load is None:
            load = self._loads[name] = _Loading(loop.create_task(self._load(name)))
            load.task.add_done_callback(functools.partial(self._loaded, name))
        self.residents.waiting[name] = self.residents.waiting.get(name, 0) + 1
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
            self.residents.waiting[name] -= 1
            if not self.residents.waiting[name]:
                del self.residents.waiting[name]
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
            if name in self.residents.by_name:
                return  # a load for another model was to unload it, but did not
            key, entry = self._build_key(name), self._directory.entry(name)
            backend, need = await self._started(name, card, entry)
            slot = self._router.add(backend)
            resident = Resident(backend, slot, entry.pin, key)
            self.residents.by_name[name] = resident
            resident.last_used = asyncio.get_running_loop().time()
            self._stays(resident, USUAL)
            self._let_idle(name, resident)
            resident.leaving = key != self._build_key(name)  # after a reload meanwhile
            _log.info(
                "model_resident",
                model=name,
                n_ctx=need.n_ctx,
                estimate_bytes=need.here,
                gpu_bytes=dict(need.gpus),
            )
            self._tell(name, "resident", {"n_ctx": need.n_ctx})

    def _advance(self, name: str, phase: str, details: Mapping[str, object]) -> None:
        self._tell(name, "loading", {"phase": phase, **details})
        if name in self._loads:
            self._loads[name].advance(phase, details)

    async def _started(self, name: str, card: ModelCard, entry: LlamaCppEntry) -> tuple[Backend, Need]:
        """Makes room for a model and loads it. Returns its backend and the memory that it needs."""
        from inferd.daemon import memory
        from inferd.daemon.directory import with_context

        settings, residents = self.settings, self.residents
        sizes = [Need(*size) for size in memory.entry_sizes(settings, entry, card)]
        may_use_gpu = self._has_gpu is not False and memory.may_use_gpu(settings, entry)
        # Only the engine process knows whether there is a GPU, and what the model takes there instead of RAM.
        later = may_use_gpu and residents.fitting(sizes, settings) is None
        need = sizes[0] if later else await residents.make_room(name, sizes, settings)
        self._tell(name, "loading", {"estimate_bytes": need.here, "n_ctx": need.n_ctx})
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()
        chosen = with_context(entry, card, need.n_ctx)
        made: set[Backend] = set()

        def progress(phase: str, details: Mapping[str, object]) -> None:
            loop.call_soon_threadsafe(self._advance, name, phase, details)

        async def ask_first(backend: Backend) -> None:
            async def grant(needs: Needs) -> Need | GpuRoom:
                nonlocal need
                self._has_gpu = bool(needs.sizes)
                asked = memory.whole_sizes(needs) or sizes
                gpus = residents.gpu_budgets(settings, needs)
                staying = residents.staying(residents.taken(backend)[0])
                part = memory.room_for_part(asked[-1], staying, gpus, gpus)
                if part is not None:
                    return part
                need = await residents.make_room(name, asked, settings, gpus, backend)
                return need

            made.add(backend)
            residents.starting |= made
            residents.granted.clear()
            backend.ask_first(grant, [size.n_ctx for size in sizes], always=later)

        if not later:
            residents.granted += memory.places(need)
        try:
            backend = await started(
                lambda: self._build(settings, chosen, progress, cancelled), cancelled, ask_first
            )
        finally:
            residents.starting -= made
            residents.granted.clear()
        if may_use_gpu and self._has_gpu is None:
            self._has_gpu = False
        return backend, need

    # Unloading.

    def _let_idle(self, name: str, resident: Resident) -> None:
        if not math.isinf(resident.until) and not self._closing:
            loop = asyncio.get_running_loop()
            resident.alarm = loop.call_at(resident.until, self._unload_idle, name, resident)

    def _unload_idle(self, name: str, resident: Resident) -> None:
        if self.residents.by_name.get(name) is resident and not resident.users:
            self.residents.begin_unload(name, "it was idle for a while")

    def follow(self, settings: Settings) -> None:
        """Applies a new configuration. Unloads each model whose ``build_key`` has changed, as soon as its
        requests have ended."""
        self.settings = settings
        for name, resident in [*self.residents.by_name.items()]:
            if resident.build_key != self._build_key(name):
                self._release(name, resident, "its configuration has changed")

    def _build_key(self, name: str) -> tuple[object, ...]:
        return build_key(self.settings, self._directory.entry(name))

    def _release(self, name: str, resident: Resident, reason: str) -> asyncio.Task[None] | None:
        """Unloads a model as soon as its requests have ended. If no request uses the model, returns the task
        that unloads the model."""
        resident.pinned, resident.leaving = False, True
        resident.releases += 1
        return None if resident.users else self.residents.begin_unload(name, reason)

    async def release(self, name: str) -> int:
        """Unloads a model now, or after its last running request. Returns the number of running requests.

        Raises ModelNotFound for a model that is not loaded, and InvalidRequest for a preloaded model.
        """
        name = self._directory.resolve(name)
        resident = self.residents.by_name.get(name)
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

    def stop(self) -> None:
        """Starts no more loads, cancels the running ones, and refuses the requests that wait for them."""
        self._closing = True
        for load in self._loads.values():
            load.task.cancel()

    async def close(self) -> None:
        """Unloads all models loaded on demand."""
        self.stop()
        if self._loads:
            await asyncio.wait([load.task for load in self._loads.values()])
        await self.residents.close()
        if self._made is not None:
            await self._made.close()

    # Listings.

    async def listing(self) -> list[dict[str, object]]:
        """Returns the rows of :meth:`Directory.listing`."""
        return await self._directory.listing(self.residents.by_name.__contains__)

    def loading(self) -> list[dict[str, object]]:
        """Returns the models that are loading, and the number of requests that wait for each."""
        return [{"name": name, "waiting": self.residents.waiting.get(name, 0)} for name in self._loads]

    def stay(self, slot: BackendSlot) -> dict[str, object]:
        """Returns how long a backend stays loaded without requests. A ``pinned`` backend is never unloaded.
        ``stays_secs`` is ``None`` if the backend stays until its memory is needed."""
        resident = next((each for each in self.residents.by_name.values() if each.slot is slot), None)
        if resident is None:
            return {"pinned": True, "stays_secs": None}
        left = None if math.isinf(resident.until) else resident.until - asyncio.get_running_loop().time()
        return {"pinned": resident.pinned, "stays_secs": None if left is None else round(max(0.0, left), 3)}
