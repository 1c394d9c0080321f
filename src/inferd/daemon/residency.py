"""Models on demand: loaded when a request names them, kept while they are used, unloaded when they idle.

The backends of the configuration are always there and never touched. Any other model of the store is loaded
when it is asked for by name; requests for it wait for that outside the queue, so they take nobody's place.
Before a load its memory is estimated from the header of its file; models that idle give way, the one unused
for longest first, and a model that cannot fit is refused with the numbers. Nothing is ever downloaded for a
request.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from inferd import log
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.daemon.backends import Build, in_thread, started
from inferd.engine.backend import Backend
from inferd.errors import (
    AdmissionClosed,
    DeadlineExceeded,
    ModelError,
    ModelNotFound,
    ModelTooLarge,
    QueueFull,
    StoreError,
)
from inferd.serve.router import BackendSlot, Router
from inferd.store.catalogue import CATALOGUE, lookup
from inferd.store.gguf import ModelCard, read_card
from inferd.store.models import ModelStore

CONTEXTS = (16384, 8192, 4096, 2048)
"""The context of a model that no entry of the configuration speaks of: the largest of these that fits."""

MAX_NAME_CHARS = 128

Tell = Callable[[str, str, Mapping[str, object]], None]
"""Told the name of a model, its state (``loading``, ``resident``, ``unloaded``, ``failed``), and details."""

_log = log.get("residency")


@dataclass(slots=True)
class _Resident:
    """A model that was loaded on demand."""

    backend: Backend
    slot: BackendSlot
    estimate: int
    users: int = 0
    last_used: float = 0.0
    alarm: asyncio.TimerHandle | None = field(default=None)

    def memory_bytes(self) -> int:
        """What it takes, or will once all its pages were touched."""
        state = self.backend.engine_state()
        return max(self.estimate, 0 if state is None else state.memory_bytes)


class Residency:
    """The models of the store, for :class:`~inferd.serve.models.ModelDirectory`. For the event loop alone."""

    def __init__(self, router: Router, build: Build, settings: Settings, tell: Tell) -> None:
        self.settings = settings
        self._router = router
        self._build = build
        self._tell = tell
        self._residents: dict[str, _Resident] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, int] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._cards: dict[str, ModelCard] = {}
        self._closing = False

    @asynccontextmanager
    async def hold(self, name: str, deadline: float | None) -> AsyncIterator[str]:
        if len(name) > MAX_NAME_CHARS:  # no such name is in a store, and to look for the nearest takes long
            raise ModelNotFound(name[:MAX_NAME_CHARS] + "…")
        known = lookup(name)
        name = name if known is None else known.name
        if self._router.serves(name):
            yield name
            return
        while name not in self._residents:  # it may have had to go again before this request came to it
            await self._wait_for(name, deadline)
        resident = self._residents[name]
        resident.users += 1
        if resident.alarm is not None:
            resident.alarm.cancel()
        try:
            yield name
        finally:
            resident.users -= 1
            resident.last_used = asyncio.get_running_loop().time()
            if not resident.users:
                self._let_idle(name, resident)

    async def _wait_for(self, name: str, deadline: float | None) -> None:
        """Waits for the load of a model, which all who wait for it share; it goes on when they leave."""
        if self._closing:
            raise AdmissionClosed
        if self._waiting.get(name, 0) >= max(1, self.settings.queue_depth):
            raise QueueFull
        loop = asyncio.get_running_loop()
        load = self._loads.get(name)
        if load is None:
            load = self._loads[name] = loop.create_task(self._load(name))
            load.add_done_callback(functools.partial(self._loaded, name))
        self._waiting[name] = self._waiting.get(name, 0) + 1
        try:
            await asyncio.wait(
                (load,), timeout=None if deadline is None else max(0.0, deadline - loop.time())
            )
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
        if not load.done():
            raise DeadlineExceeded(f"the deadline passed while the model {name!r} was loaded")
        if load.cancelled() or self._closing:
            raise AdmissionClosed
        load.result()  # raises what kept the model from being loaded

    def _loaded(self, name: str, load: asyncio.Task[None]) -> None:
        del self._loads[name]
        if not load.cancelled() and (error := load.exception()) is not None:
            self._tell(name, "failed", {"message": str(error)})

    # Loading.

    async def _load(self, name: str) -> None:
        card = await in_thread(lambda: self.card(name), threading.Event())
        async with self._one_load:  # two estimates at once would each count the same room
            entry, estimate = await self._make_room(name, card)
            self._tell(name, "loading", {"estimate_bytes": estimate, "n_ctx": entry.n_ctx})
            loop = asyncio.get_running_loop()
            cancelled = threading.Event()

            def progress(phase: str, details: Mapping[str, object]) -> None:
                loop.call_soon_threadsafe(self._tell, name, "loading", {"phase": phase, **details})

            settings = self.settings
            backend = await started(lambda: self._build(settings, entry, progress, cancelled), cancelled)
            slot = self._router.add(backend)
            resident = self._residents[name] = _Resident(backend, slot, estimate)
            resident.last_used = loop.time()
            self._let_idle(name, resident)
            _log.info("model_resident", model=name, n_ctx=entry.n_ctx, estimate_bytes=estimate)
            self._tell(name, "resident", {"n_ctx": entry.n_ctx})

    def card(self, name: str) -> ModelCard:
        """The card of a model in the store; blocks. Raises ModelNotFound with what to do, and ModelError."""
        store = ModelStore(self.settings.models_home)
        known = lookup(name)
        digest = known.sha256 if known is not None else None
        if digest is None:
            with suppress(StoreError):
                manifest = store.manifest(name)
                digest = None if manifest is None else manifest.sha256
        if digest is None:
            names = {*CATALOGUE, *(manifest.name for manifest in store.list()), *self._router.names()}
            raise ModelNotFound(name, difflib.get_close_matches(name, sorted(names), n=3))
        path = store.blob_path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise ModelNotFound(name, (), missing=True) from None
        try:
            return read_card(fd, path)
        finally:
            os.close(fd)

    async def _make_room(self, name: str, card: ModelCard) -> tuple[LlamaCppEntry, int]:
        """The entry to load, and its estimate, after idle models have given way to it."""
        permits = max(1, self.settings.active_permits)
        vectors = card.pooling or card.ranks
        contexts = [min(n, card.context or n) for n in CONTEXTS]
        sizes = [(n, card.memory_bytes(n, 1 if vectors else permits)) for n in dict.fromkeys(contexts)]
        while True:
            used = self._used()
            budget = memory.budget_bytes(used, self.settings.memory_budget_bytes)
            fitting = next(((n, size) for n, size in sizes if not budget or used + size <= budget), None)
            # Rather a shorter context than to unload what may be wanted again.
            if fitting is not None:
                n_ctx, size = fitting
                spec = ModelSpec(name=name)
                return LlamaCppEntry(name=name, model=spec, n_ctx=n_ctx, embed=vectors or None), size
            idle = [
                (resident.last_used, other)
                for other, resident in self._residents.items()
                if not resident.users
            ]
            if not idle:
                raise ModelTooLarge(name, sizes[-1][1], budget, used)
            await self.unload(min(idle)[1], "another model needs its memory")

    def _used(self) -> int:
        """What the models take that are loaded now."""
        used = sum(resident.memory_bytes() for resident in self._residents.values())
        for member in self._router.members:
            state = member.backend.engine_state()
            used += 0 if state is None else state.memory_bytes
        return used

    # Unloading.

    def _let_idle(self, name: str, resident: _Resident) -> None:
        if self.settings.keep_alive_secs and not self._closing:
            loop = asyncio.get_running_loop()
            resident.alarm = loop.call_later(self.settings.keep_alive_secs, self._unload_idle, name, resident)

    def _unload_idle(self, name: str, resident: _Resident) -> None:
        if self._residents.get(name) is resident and not resident.users:
            task = asyncio.get_running_loop().create_task(self.unload(name, "nobody has used it for a while"))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def unload(self, name: str, reason: str) -> None:
        """Ends the process of a model; its last requests end first."""
        resident = self._residents.pop(name, None)
        if resident is None:
            return
        if resident.alarm is not None:
            resident.alarm.cancel()
        self._router.remove(resident.slot)
        await resident.slot.released()
        await resident.backend.close()
        _log.info("model_unloaded", model=name, reason=reason)
        self._tell(name, "unloaded", {"reason": reason})

    def stop(self) -> None:
        """Loads nothing any more; who waits for a load is refused."""
        self._closing = True
        for load in self._loads.values():
            load.cancel()

    async def close(self) -> None:
        """Ends all that was loaded on demand."""
        self.stop()
        if waiting := (*self._loads.values(), *self._unloading):
            await asyncio.wait(waiting)
        for name in list(self._residents):
            await self.unload(name, "the daemon stops")

    # What there is.

    async def listing(self) -> list[dict[str, object]]:
        """Every model of the store, which a request may name, and what its file says of it."""
        return await in_thread(self._list, threading.Event())

    def _list(self) -> list[dict[str, object]]:
        store = ModelStore(self.settings.models_home)
        rows: list[dict[str, object]] = []
        for manifest in store.list():
            row: dict[str, object] = {
                "name": manifest.name,
                "sha256": manifest.sha256,
                "resident": manifest.name in self._residents or self._router.serves(manifest.name),
            }
            with suppress(ModelError, ModelNotFound, StoreError):
                card = self._cards.get(manifest.sha256) or self.card(manifest.name)
                self._cards[manifest.sha256] = card
                row |= {
                    "architecture": card.architecture,
                    "quantisation": card.quantisation,
                    "parameters": card.parameters,
                    "context": card.context,
                    "bytes": card.file_bytes,
                    "embed": card.pooling,
                    "rerank": card.ranks,
                    "tools": card.tools,
                }
            rows.append(row)
        return rows
