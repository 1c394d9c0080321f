"""Makes room in memory for the models of a reload.

A new model is loaded beside the old ones if all fit into the memory budget. If they do not fit, idle models
that were loaded on demand are unloaded. If memory is still short, models that the new configuration drops are
put to rest, one after another. A model at rest starts no queued request, its running requests have ended, and
its process has ended, too. Its queued requests wait until the reload has ended. Then they run on the new
model, or on the old one if the reload has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from inferd import log
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.serve.admission import Admission
from inferd.serve.queues import Queues
from inferd.serve.router import BackendSlot, Router

_log = log.get("backends")


class Residents(Protocol):
    """The models that were loaded on demand. They count the memory of the ``starting`` backends as taken."""

    starting: set[Backend]

    def memory(self, others: Iterable[Backend]) -> tuple[int, int]:
        """Returns two numbers of bytes for these models and the ``others`` together: the memory that they
        take, and the memory of their processes that no file backs."""

    async def unload_idle(self, reason: str) -> bool:
        """Unloads the least recently used idle model. Returns whether there was one."""


class Room:
    """Makes room for one reload at a time. All methods run on the event loop."""

    def __init__(self, router: Router, queues: Queues, models: Residents) -> None:
        self._router = router
        self._queues = queues
        self._models = models
        self._resting: list[BackendSlot] = []
        self._paused: list[Admission] = []

    async def make(
        self,
        settings: Settings,
        backend: Backend,
        others: Collection[Backend],
        leaving: Sequence[BackendSlot],
        show: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        """Unloads idle models, and then puts models of ``leaving`` to rest, until ``backend`` fits beside the
        ``others``, or until no more models can leave.

        ``show`` is called before each model is put to rest.
        """
        awake = [slot for slot in leaving if _taken_by(slot.backend)]
        while not self._fits(settings, backend, others):
            if await self._models.unload_idle("the configuration needs its memory"):
                continue
            if not awake:
                break
            slot = awake.pop(0)
            about = {"unloading": slot.backend.name, "running": slot.running}
            _log.info("making_room", loading=backend.name, **about)
            show("making_room", about)
            await self._put_to_rest(slot)
        self._models.starting.add(backend)

    def _fits(self, settings: Settings, backend: Backend, others: Collection[Backend]) -> bool:
        from inferd.daemon import memory

        used, private = self._models.memory(others)
        budget = memory.budget_bytes(private, settings.memory_budget_bytes)
        needed = _taken_by(backend)
        return not needed or not budget or used + needed <= budget

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
        self._models.starting.clear()
        self._resting.clear()
        self._paused.clear()
        return [backend.name for backend in woken]


def _taken_by(backend: Backend) -> int:
    state = backend.engine_state()
    return 0 if state is None else state.taken_bytes
