"""Makes room in memory for the models of a reload.

A new model is loaded beside the old ones if all fit into the memory budget. If they do not fit, idle models
that were loaded on demand are unloaded. If memory is still short, models that the new configuration drops are
put to rest, one after another. A model at rest starts no queued request, its running requests have ended, and
its process has ended, too. Its queued requests wait until the reload has ended. Then they run on the new
model, or on the old one if the reload has failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from inferd import log
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.daemon.residents import Residents
from inferd.engine.backend import Backend, GpuRoom, Need, Needs
from inferd.errors import ModelError
from inferd.serve.admission import Admission
from inferd.serve.queues import Queues
from inferd.serve.router import BackendSlot, Router

_WHY = "the configuration needs its memory"

_log = log.get("backends")


class _Load(NamedTuple):
    """The load of ``backend``. The models ``awake`` may be put to rest for it."""

    settings: Settings
    backend: Backend
    awake: list[BackendSlot]
    show: Callable[[str, Mapping[str, object]], None]

    def left(self, used: Counter[str]) -> Counter[str]:
        """Returns the ``used`` bytes without those of the models ``awake``."""
        left = used.copy()
        for slot in self.awake:
            left.subtract(memory.taken_by(slot.backend))
        return left


class Room:
    """Makes room for one reload at a time. All methods run on the event loop."""

    def __init__(self, router: Router, queues: Queues, models: Residents) -> None:
        self.models = models
        self._router = router
        self._queues = queues
        self._started: set[Backend] = set()
        self._resting: list[BackendSlot] = []
        self._paused: list[Admission] = []

    async def make(
        self,
        settings: Settings,
        backend: Backend,
        leaving: Sequence[BackendSlot],
        show: Callable[[str, Mapping[str, object]], None],
        *,
        first: bool = False,
    ) -> None:
        """Makes room for ``backend``: unloads idle models, and then puts models of ``leaving`` to rest, until
        the backend fits beside the remaining models or no model is left to put to rest.

        If the backend may use a GPU, room is made later, when the backend's process has measured its need of
        GPU memory. If a GPU would lack memory for all layers even with all models of ``leaving`` at rest, the
        GPUs get fewer layers. If ``first`` is true, the daemon is starting, and no model is put to rest.
        ``show`` is called before each model is put to rest. Raises ModelError if a GPU would lack memory for
        the number of layers that the entry sets. In this case, no model has been put to rest.
        """
        taken = memory.taken_by(backend)
        size = Need(0, taken[memory.RAM])
        awake = [] if first else [slot for slot in leaving if memory.taken_by(slot.backend)[memory.RAM]]
        load = _Load(settings, backend, awake, show)

        async def grant(needs: Needs) -> Need | GpuRoom | None:
            if not needs.sizes:
                await self._free(load, [size], {}, {})
                return None
            beside = self.models.gpu_budgets(settings, needs)
            alone = self.models.gpu_budgets(settings, needs, share=1)
            sizes = memory.whole_sizes(needs)
            staying = load.left(self.models.staying(self.models.taken(backend)[0], busy=True))
            part = memory.room_for_part(sizes[-1], staying, alone, beside)
            return part or await self._free(load, sizes, beside, alone)

        short = not first and taken[memory.RAM] and self.models.fitting([size], settings) is None
        self._started.add(backend)
        self.models.starting.add(backend)  # no other model may take the room that is made for this one
        if not backend.ask_first(grant, always=bool(short)) and short:
            await self._free(load, [size], {}, {})

    async def _free(
        self, load: _Load, sizes: Sequence[Need], beside: Mapping[str, int], alone: Mapping[str, int]
    ) -> Need:
        """Makes room, and returns the size to load. ``beside`` and ``alone`` are budgets of the GPUs. Models
        are put to rest until the backend fits into ``beside``. If no model is left to put to rest, the
        backend needs to fit only into ``alone``."""
        while True:
            used, private = self.models.taken(load.backend)
            budgets = memory.budgets(load.settings, private, beside)
            fitting = memory.fitting(sizes, used, budgets)
            if fitting is not None:
                return fitting
            self._check(load, sizes[-1], used, alone)
            short = memory.short(sizes[-1], used, budgets)
            if await self.models.unload_idle(_WHY, short) or await self.models.wait_for_retiring(short):
                continue
            helpful = [slot for slot in load.awake if memory.takes(slot.backend, short)]
            if not helpful:
                return sizes[-1]
            slot = helpful[0]
            load.awake.remove(slot)
            about = {"unloading": slot.backend.name, "running": slot.running}
            _log.info("making_room", loading=load.backend.name, **about)
            load.show("making_room", about)
            await self._put_to_rest(slot)

    def _check(self, load: _Load, size: Need, used: Counter[str], alone: Mapping[str, int]) -> None:
        """Raises ModelError if a GPU has no room for the backend even without all models that may leave."""
        left = load.left(self.models.staying(used, busy=True))
        if lacking := memory.short(size, left, alone):
            raise ModelError(str(memory.too_large(load.backend.name, size, left, alone, lacking[0])))

    async def _put_to_rest(self, slot: BackendSlot) -> None:
        queue = self._queues.of(self._router.queue_of(slot))
        self._resting.append(slot)
        self._paused.append(queue)
        await queue.pause()
        await slot.backend.rest()
        _log.info("model_rests", backend=slot.backend.name)

    def rests(self, slot: BackendSlot) -> bool:
        """Returns whether the backend was put to rest for the current reload."""
        return slot in self._resting

    def end(self) -> list[str]:
        """Ends the reload. Wakes those resting models that are still configured, and returns their names.
        Resumes all queues."""
        woken = [slot.backend for slot in self._resting if slot in self._router.members]
        for backend in woken:
            backend.wake()
        for queue in self._paused:
            queue.resume()
        self.arrived()
        self._resting.clear()
        self._paused.clear()
        return [backend.name for backend in woken]

    def arrived(self) -> None:
        """Called when the router has the backends that were loaded."""
        self.models.starting -= self._started
        self._started.clear()
