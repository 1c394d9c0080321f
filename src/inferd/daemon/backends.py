"""The backends of the configuration: made in its order, used by the router, exchanged while requests run.

:meth:`Backends.make` changes nothing for the requests: it makes what a configuration asks for and is not
there yet. :meth:`Backends.use` then lets the router serve with it, and what is used no longer is closed when
its last request has ended. A backend whose entry and settings have not changed is not made again, unless it
has died.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inferd import log
from inferd.config.entries import BackendEntry, LlamaCppEntry
from inferd.config.settings import Settings
from inferd.daemon.build import build_key, route_of
from inferd.engine.backend import Backend
from inferd.errors import ModelError
from inferd.progress import Progress
from inferd.serve.pool import pool_names
from inferd.serve.router import BackendSlot, Route, Router
from inferd.wire import admin, framed

READY_POLL_SECS = 0.05
# Progress of one phase is told at most this often; a subscriber is a person or a waiting program.
PROGRESS_SECS = 0.1

Build = Callable[[Settings, BackendEntry, Progress, threading.Event], Backend]
Show = Callable[[str, Mapping[str, object]], None]
T = TypeVar("T")

_log = log.get("backends")


class Backends:
    """``build`` makes a backend in a thread of its own; all methods run on the event loop."""

    def __init__(self, router: Router, build: Build) -> None:
        self._router = router
        self._build = build
        self._recipes: dict[Backend, tuple[object, ...]] = {}
        self._routes: dict[Backend, Route] = {}
        """What the router and clients are to be told of those that were made last."""
        self._retiring: set[asyncio.Task[None]] = set()

    async def make(self, settings: Settings, show: Show) -> list[Backend]:
        """The started backends of ``settings``, in order, without those that are loaded on demand.

        ``show`` is told the phases of their making.

        Raises what keeps one from being made. A cancel ends the making soon, and waits until it has ended.
        """
        routes: dict[Backend, Route] = {}
        for entry in settings.backends:
            if isinstance(entry, LlamaCppEntry) and not entry.preload:
                continue
            wanted = build_key(settings, entry)
            there = (backend for backend, made in self._recipes.items() if made == wanted and backend.alive())
            backend = next(there, None) or await self._make(settings, entry, wanted, show)
            routes[backend] = route_of(entry)
        self._routes = routes
        return list(routes)

    async def _make(
        self, settings: Settings, entry: BackendEntry, wanted: tuple[object, ...], show: Show
    ) -> Backend:
        loop = asyncio.get_running_loop()
        pace = _Pace(loop, show)
        cancelled = threading.Event()

        def progress(phase: str, details: Mapping[str, object]) -> None:
            loop.call_soon_threadsafe(pace.show, phase, details)

        backend = await started(lambda: self._build(settings, entry, progress, cancelled), cancelled)
        self._recipes[backend] = wanted
        return backend

    async def until_ready(self, backends: Sequence[Backend], patience: float) -> None:
        """Returns when all are ready; raises ModelError after ``patience`` seconds."""
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
        """A frame for each of those that were made last, in order: what it can do and how it is named."""
        pools = pool_names(self._routes.values())
        return [
            capabilities_frame(backend, route, pooled=route.serves in pools)
            for backend, route in self._routes.items()
        ]

    def use(self, backends: Sequence[Backend]) -> None:
        """Serves with these, which were made here, from the next request on."""
        for member in self._router.replace(backends, self._routes):
            del self._recipes[member.backend]
            task = asyncio.get_running_loop().create_task(self._retire(member))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, member: BackendSlot) -> None:
        name = member.backend.name
        await member.released()
        await member.backend.close()
        _log.info("backend_closed", backend=name)

    async def discard(self) -> None:
        """Closes what was made and is not used."""
        used = {member.backend for member in self._router.members}
        unused = [backend for backend in self._recipes if backend not in used]
        for backend in unused:
            del self._recipes[backend]  # first: a reload during the close must not adopt it
        for backend in unused:
            await backend.close()

    def dead(self) -> list[str]:
        """The names of the backends in use of which a thread has died."""
        return [member.backend.name for member in self._router.members if not member.backend.alive()]

    async def close(self) -> None:
        """Closes them all; no request may run any more."""
        if self._retiring:
            await asyncio.wait(tuple(self._retiring))
        for backend in reversed(self._recipes):
            await backend.close()


async def started(build: Callable[[], Backend], cancelled: threading.Event) -> Backend:
    """The backend that ``build`` makes in a thread, started; a failure or a cancel leaves nothing of it."""
    made: list[Backend] = []
    try:
        await in_thread(lambda: made.append(build()), cancelled)
        await made[0].start()
    except BaseException:
        for backend in made:
            await backend.close()
        raise
    return made[0]


class _Pace:
    """Passes progress on when the phase changes or is complete, and else now and then."""

    def __init__(self, loop: asyncio.AbstractEventLoop, show: Show) -> None:
        self._loop = loop
        self._show = show
        self._last = ("", 0.0)

    def show(self, phase: str, details: Mapping[str, object]) -> None:
        last_phase, last_time = self._last
        now = self._loop.time()
        if phase != last_phase or details.get("progress") == 1.0 or now - last_time >= PROGRESS_SECS:
            self._last = (phase, now)
            self._show(phase, details)


async def in_thread(call: Callable[[], T], cancelled: threading.Event) -> T:
    """Runs ``call`` in a thread of its own; a cancel sets ``cancelled``, and waits until that was heard."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="inferd-load")
    running = asyncio.get_running_loop().run_in_executor(thread, call)
    thread.shutdown(wait=False)  # it ends with the call; a pool would keep it
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait((running,))
        running.exception()  # avoids "exception was never retrieved"
        raise


def capabilities_frame(backend: Backend, route: Route, *, pooled: bool) -> bytes:
    """What a backend can do and the names by which requests may ask for it, as the admin socket tells it."""
    able = dataclasses.asdict(backend.capabilities())
    accelerator = able.pop("accelerator")
    kind = accelerator.pop("kind")
    first = {name: able.pop(name) for name in ("v2", "vision", "audio", "tools", "thinking", "embed")}
    names = {"wire_version": framed.WIRE_VERSION, "name": backend.name, "model": backend.model}
    # A name that it serves alone is no more than one of its names.
    further = (route.serves,) if not pooled and route.serves not in ("", backend.name, backend.model) else ()
    pool = {"pool": route.serves if pooled else "", "aliases": [*route.aliases, *further]}
    ours = {**accelerator, **able, **names, **pool}
    return admin.encode_status(
        "capabilities", {"backend": backend.kind, **first, "accelerator": kind, **ours}
    )
