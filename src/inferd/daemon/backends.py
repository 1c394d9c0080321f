"""Builds the configured backends in order, passes them to the router, and replaces them while requests run.

:meth:`Backends.make` builds those backends of a configuration that do not exist yet. Meanwhile, the old
backends serve requests, unless an old model must free memory for a new model (:mod:`inferd.daemon.room`).
:meth:`Backends.use` then switches the router to the new list of backends. Each backend that is not in this
list is closed when its last request has ended. A backend whose config entry and settings are unchanged is
kept, unless the backend has died.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from inferd import log
from inferd.config.entries import BackendEntry, LlamaCppEntry
from inferd.config.settings import Settings
from inferd.daemon.build import build_key, route_of
from inferd.daemon.room import Room
from inferd.daemon.threads import in_thread, until_done
from inferd.engine.backend import Backend
from inferd.errors import ModelError
from inferd.progress import Progress
from inferd.serve.pool import pool_names
from inferd.serve.router import BackendSlot, Route, Router
from inferd.wire import admin
from inferd.wire.bounds import WIRE_VERSION

READY_POLL_SECS = 0.05
# The shortest interval between two progress events of one phase. Neither people nor programs need more
# events.
PROGRESS_SECS = 0.1

Build = Callable[[Settings, BackendEntry, Progress, threading.Event], Backend]
Show = Callable[[str, Mapping[str, object]], None]

_log = log.get("backends")


class Backends:
    """The configured backends. ``build`` builds one backend, and runs in a thread of its own. All methods of
    this class run on the event loop."""

    def __init__(self, router: Router, build: Build, room: Room) -> None:
        self._router = router
        self._build = build
        self._room = room
        self._build_keys: dict[Backend, tuple[object, ...]] = {}
        self._routes: dict[Backend, Route] = {}
        """The routes of the backends that the last :meth:`make` returned, for the router and for clients."""
        self._retiring = room.models.retiring
        self._started = False

    async def make(self, settings: Settings, show: Show) -> list[Backend]:
        """Builds and starts the backends of ``settings``, and returns them in order. Leaves out config
        entries whose models are loaded on demand.

        Calls ``show`` with the progress of each build. Raises the error of a failed build. If the calling
        task is cancelled, waits until the running build has stopped.
        """
        routes: dict[Backend, Route] = {}
        entries = [
            (entry, build_key(settings, entry))
            for entry in settings.backends
            if not isinstance(entry, LlamaCppEntry) or entry.preload
        ]
        keys = [key for _, key in entries]
        leaving = [
            slot
            for slot in self._router.members
            if self._build_keys[slot.backend] not in keys or not slot.backend.alive()
        ]
        for entry, wanted in entries:
            there = (
                backend for backend, made in self._build_keys.items() if made == wanted and backend.alive()
            )
            backend = next(there, None) or await self._make(settings, entry, wanted, leaving, show)
            routes[backend] = route_of(entry)
        self._routes = routes
        return list(routes)

    async def _make(
        self,
        settings: Settings,
        entry: BackendEntry,
        wanted: tuple[object, ...],
        leaving: Sequence[BackendSlot],
        show: Show,
    ) -> Backend:
        loop = asyncio.get_running_loop()
        pace = Pace(loop, show)
        cancelled = threading.Event()

        def progress(phase: str, details: Mapping[str, object]) -> None:
            loop.call_soon_threadsafe(pace.show, phase, details)

        async def make_room(backend: Backend) -> None:
            await self._room.make(settings, backend, leaving, show, first=not self._started)

        backend = await started(
            lambda: self._build(settings, entry, progress, cancelled), cancelled, make_room
        )
        self._build_keys[backend] = wanted
        return backend

    async def until_ready(self, backends: Sequence[Backend], patience: float) -> None:
        """Waits until all ``backends`` are ready. Raises ModelError if a backend is not ready after
        ``patience`` seconds."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while waiting := [backend.name for backend in backends if not backend.ready()]:
            if loop.time() >= give_up:
                raise ModelError(
                    f"backend {waiting[0]!r} was not ready within {patience:g} s;"
                    " look into the log or raise --ready-timeout-secs"
                )
            await asyncio.sleep(READY_POLL_SECS)

    def capabilities_frames(self) -> list[bytes]:
        """Returns one ``capabilities`` frame for each backend that the last :meth:`make` returned, in
        order."""
        pools = pool_names(self._routes.values())
        return [
            capabilities_frame(backend, route, pooled=route.serves in pools)
            for backend, route in self._routes.items()
        ]

    def use(self, backends: Sequence[Backend]) -> None:
        """Makes the router use ``backends``, the result of :meth:`make`, for all later requests."""
        self._started = True
        retired = self._router.replace(backends, self._routes)
        self._room.arrived()
        for member in retired:
            del self._build_keys[member.backend]
            self._end(member.backend, self._retire(member, at_once=self._room.rests(member)))

    def _end(self, backend: Backend, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs ``work``, which closes the backend, in a task that outlives a cancelled caller. :meth:`close`
        waits for the task. Until then the backend's memory counts as taken."""
        task = asyncio.get_running_loop().create_task(work)
        self._retiring[task] = backend
        task.add_done_callback(self._retiring.pop)
        return task

    async def _retire(self, member: BackendSlot, *, at_once: bool) -> None:
        name = member.backend.name
        if not at_once:
            await member.released()
        await member.backend.close()
        _log.info("backend_closed", backend=name)

    async def settle(self) -> str:
        """Ends a reload. Closes the backends that :meth:`make` has built but the router does not use. Wakes
        those of the router's backends that :mod:`inferd.daemon.room` has put to rest. Returns a clause that
        names the woken backends, for the error of a failed reload. A second call does nothing.
        """
        try:
            await self._discard()
        finally:
            woken = self._room.end()
        return f"; {' and '.join(woken)} had made room, and is loaded again" if woken else ""

    async def _discard(self) -> None:
        used = {member.backend for member in self._router.members}
        unused = [backend for backend in self._build_keys if backend not in used]
        for backend in unused:
            del self._build_keys[backend]  # before the close, so that no later reload uses the backend
        if unused:
            await until_done([self._end(backend, backend.close()) for backend in unused])

    def dead(self) -> list[str]:
        """Returns the names of the router's backends that have died."""
        return [member.backend.name for member in self._router.members if not member.backend.alive()]

    async def close(self) -> None:
        """Closes all backends. No request may be running."""
        if self._retiring:
            await asyncio.wait(tuple(self._retiring))
        for backend in reversed(self._build_keys):
            await backend.close()


async def _at_once(backend: Backend) -> None: ...


async def started(
    build: Callable[[], Backend],
    cancelled: threading.Event,
    before: Callable[[Backend], Awaitable[None]] = _at_once,
) -> Backend:
    """Builds a backend in a thread, awaits ``before``, and starts the backend. If the start fails or the task
    is cancelled, the backend is closed."""
    made: list[Backend] = []
    try:
        await in_thread(lambda: made.append(build()), cancelled)
        await before(made[0])
        await made[0].start()
    except BaseException:
        for backend in made:
            await backend.close()
        raise
    return made[0]


class Pace:
    """Passes the progress of a build on to ``show``: each beginning and end of a phase, and other progress at
    most every ``PROGRESS_SECS``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, show: Show) -> None:
        self._loop = loop
        self._show = show
        self._last = ("", 0.0)

    def show(self, phase: str, details: Mapping[str, object]) -> None:
        last_phase, last_time = self._last
        now = self._loop.time()
        whole = details.get("progress") == 1.0 or (
            details.get("downloaded_bytes") == details.get("total_bytes") is not None
        )
        if phase != last_phase or whole or now - last_time >= PROGRESS_SECS:
            self._last = (phase, now)
            self._show(phase, details)


def capabilities_frame(backend: Backend, route: Route, *, pooled: bool) -> bytes:
    """Returns the ``capabilities`` frame of a backend: the backend's capabilities, and the names by which
    requests may address the backend."""
    able = backend.capabilities()._asdict()
    accelerator = able.pop("accelerator")._asdict()
    kind = accelerator.pop("kind")
    first = {name: able.pop(name) for name in ("v2", "vision", "audio", "tools", "thinking", "embed")}
    names = {"wire_version": WIRE_VERSION, "name": backend.name, "model": backend.model}
    # If no other backend has the same ``serves``, this name is listed as an alias.
    further = (route.serves,) if not pooled and route.serves not in ("", backend.name, backend.model) else ()
    pool = {"pool": route.serves if pooled else "", "aliases": [*route.aliases, *further]}
    ours = {**accelerator, **able, **names, **pool}
    return admin.encode_status(
        "capabilities", {"backend": backend.kind, **first, "accelerator": kind, **ours}
    )
