"""The daemon: everything is built from Settings here, in one order, and taken down in the reverse.

Boot: signals, lock, admin socket, configuration, backends, capabilities, inference sockets, ready. There is
no inference socket before every backend is ready. A signal at any point ends the boot cleanly; a failure is
told to the subscribers of the admin socket and raised. Stop: no new connections, no new requests, the running
ones get ``drain_timeout_secs``, then their end is ``cancelled``. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from inferd import __version__, log
from inferd.config import paths
from inferd.config.entries import BackendEntry
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.errors import BootCancelled, ConfigError, InferdError, ModelError
from inferd.serve import auth, bind
from inferd.serve.admission import Admission
from inferd.serve.blocks import BlockSurface
from inferd.serve.build import Progress, build_backend
from inferd.serve.hangup import HangupWatch
from inferd.serve.listener import Listener, Places
from inferd.serve.router import Router
from inferd.serve.session import Service
from inferd.serve.status import StatusBoard
from inferd.serve.surface import Surface
from inferd.serve.text import TextSurface
from inferd.serve.vectors import EmbedSurface, RerankSurface
from inferd.store.runtime import Lock, ensure_private_dir
from inferd.wire import admin

READY_POLL_SECS = 0.05
# A cancelled request ends within a step of its backend; one that does not is cut off.
CANCEL_GRACE_SECS = 5.0
# How long a client may take to read what was written to it before the daemon closes.
FLUSH_GRACE_SECS = 1.0
# Progress of one phase is told at most this often; a subscriber is a person or a waiting program.
PROGRESS_SECS = 0.1

Build = Callable[[Settings, BackendEntry, Progress, threading.Event], Backend]
T = TypeVar("T")

_log = log.get("daemon")


def run(
    settings: Settings,
    notes: Sequence[str] = (),
    problem: ConfigError | None = None,
    build: Build | None = None,
) -> int:
    """Serves until it is told to stop; 0. Raises the InferdError that kept the daemon from starting.

    ``notes`` are logged and ``problem`` is raised in its turn: what was found in the config file is reported
    when the admin socket is there to report it. ``build`` makes a backend, :func:`build_backend` by default.
    """
    faulthandler.enable()
    activity = log.setup(settings.log_level, settings.log_dir)
    loop = new_event_loop()
    try:
        loop.run_until_complete(Daemon(settings, notes, problem, build or build_backend).run())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        activity.close()
    return 0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Daemon:
    """One run of the daemon; ``build`` makes a backend in a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        notes: Sequence[str],
        problem: ConfigError | None,
        build: Build,
    ) -> None:
        self._settings = settings
        self._notes = notes
        self._problem = problem
        self._build = build
        self._board = StatusBoard()
        self._admission = Admission(settings.active_permits, settings.queue_depth)
        self._cancelled = threading.Event()
        self._stop = asyncio.Event()
        self._booting: asyncio.Task[None] | None = None
        self._admin: list[Listener] = []
        self._places = Places(settings.max_connections)
        self._listeners: list[Listener] = []
        self._services: list[Service[Any]] = []
        self._idle_alarm: asyncio.TimerHandle | None = None
        self._last_progress = ("", 0.0)

    async def run(self) -> None:
        """Boots, serves until a signal or the idle time ends it, drains. Raises what ends the boot."""
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as held:
            self._handle_signals(held)
            self._booting = self._loop.create_task(self._boot(held))
            try:
                await self._booting
            except (asyncio.CancelledError, BootCancelled):
                _log.info("stopped", reason="the boot was cancelled")
                return
            except Exception as error:
                message = str(error) if isinstance(error, InferdError) else repr(error)
                self._board.publish(admin.failed(message))
                _log.error("boot_failed", error=message)
                raise
            await self._stop.wait()
            await self._drain()
        _log.info("stopped")

    # Boot. What is acquired is pushed on ``held``, which gives it back in the reverse order.

    async def _boot(self, held: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        _log.info("starting", version=__version__, pid=os.getpid())
        self._lock(held)
        admin_socket = bind.bind_unix(settings.admin_addr, 0o600)
        listener = Listener(admin_socket, self._serve_admin, Places(settings.max_connections))
        self._admin.append(listener)
        held.push_async_callback(listener.close, FLUSH_GRACE_SECS)
        for note in self._notes:
            _log.warn("config", note=note)
        if self._problem is not None:
            raise self._problem
        backends = [await self._start_backend(entry, held) for entry in settings.backends]
        for backend in backends:
            self._board.publish_capabilities(_capabilities_frame(backend))
        await self._until_ready(backends)
        surfaces = self._surfaces(backends)
        bound = [self._bind(held, surface) for surface in surfaces]
        router = Router(backends)
        hangups = HangupWatch(self._loop)
        held.callback(hangups.close)
        for surface, socket_ in zip(surfaces, bound, strict=True):
            service = Service(
                surface=surface,
                admission=self._admission,
                router=router,
                hangups=hangups,
                api_key=None if settings.api_key is None else auth.ApiKey(settings.api_key.reveal()),
                max_frame_bytes=settings.max_frame_bytes,
                max_attachment_bytes=settings.max_attachment_bytes,
                write_timeout_secs=settings.write_timeout_secs,
            )
            self._services.append(service)
            listener = Listener(socket_, service.serve, self._places, self._watch_idleness)
            self._listeners.append(listener)
            held.push_async_callback(listener.close, FLUSH_GRACE_SECS)
        self._board.publish(admin.READY)
        _notify("READY=1")
        _log.info("ready", address=self._listeners[0].address)
        self._watch_idleness()

    def _lock(self, held: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        runtime = paths.runtime_dir()
        ours = [settings.lock, settings.admin_addr, settings.uds, settings.v2_addr]
        ours += [settings.embed_addr, settings.rerank_addr]
        if any(path is not None and path.parent == runtime for path in ours):
            ensure_private_dir(runtime)
        held.callback(Lock.acquire(settings.lock).release)

    async def _serve_admin(self, sock: socket.socket, number: int) -> None:
        await self._board.serve(sock)

    async def _start_backend(self, entry: BackendEntry, held: contextlib.AsyncExitStack) -> Backend:
        def progress(phase: str, details: Mapping[str, object]) -> None:
            self._loop.call_soon_threadsafe(self._show_progress, phase, details)

        backend = await self._in_thread(lambda: self._build(self._settings, entry, progress, self._cancelled))
        held.push_async_callback(backend.close)
        await backend.start()
        return backend

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in a thread; a cancellation is passed on, and waits until the thread has heard it."""
        running = self._loop.run_in_executor(None, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._cancelled.set()
            await asyncio.wait((running,))
            running.exception()  # nobody is left to hear it
            raise

    def _show_progress(self, phase: str, details: Mapping[str, object]) -> None:
        last_phase, last_time = self._last_progress
        now = self._loop.time()
        if phase != last_phase or details.get("progress") == 1.0 or now - last_time >= PROGRESS_SECS:
            self._last_progress = (phase, now)
            self._board.publish(admin.loading_model(phase, details))

    async def _until_ready(self, backends: Sequence[Backend]) -> None:
        patience = self._settings.ready_timeout_secs
        give_up = self._loop.time() + patience
        while waiting := [backend.name for backend in backends if not backend.ready()]:
            if self._loop.time() >= give_up:
                raise ModelError(
                    f"backend {waiting[0]!r} was not ready within {patience:g} s;"
                    " look into the log or raise --ready-timeout-secs"
                )
            await asyncio.sleep(READY_POLL_SECS)

    def _surfaces(self, backends: Sequence[Backend]) -> list[Surface[Any]]:
        asked = self._settings.surfaces
        surfaces: list[Surface[Any]] = [TextSurface()]
        if "v2" in asked:
            surfaces.append(BlockSurface())
        wanted: list[tuple[Surface[Any], bool, bool]] = [
            (EmbedSurface(), "embed" in asked, any(b.capabilities().embed for b in backends)),
            (RerankSurface(), "rerank" in asked, any(b.capabilities().rerank for b in backends)),
        ]
        for surface, is_wanted, is_possible in wanted:
            if is_wanted and is_possible:
                surfaces.append(surface)
            elif is_wanted:
                _log.warn("surface not served, no backend is capable of it", surface=surface.name)
        return surfaces

    def _bind(self, held: contextlib.AsyncExitStack, surface: Surface[Any]) -> bind.Bound:
        settings = self._settings
        tcp, path = {
            "v1": (settings.tcp, settings.uds),
            "v2": (settings.v2_tcp, settings.v2_addr),
            "embed": (settings.embed_tcp, settings.embed_addr),
            "rerank": (settings.rerank_tcp, settings.rerank_addr),
        }[surface.name]
        if path is not None:
            bound = bind.bind_unix(path, 0o660, settings.group)
        else:
            if settings.api_key is None:
                _log.warn("tcp without an API key: every user of this machine can connect", address=tcp)
            bound = bind.bind_tcp(tcp or "", has_key=settings.api_key is not None)
        held.callback(bound.close)
        return bound

    # Stop.

    def _handle_signals(self, held: contextlib.AsyncExitStack) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal, number)
            held.callback(self._loop.remove_signal_handler, number)
        # Its default would end the daemon together with the terminal that it was started from.
        self._loop.add_signal_handler(signal.SIGHUP, _log.warn, "SIGHUP ignored, restart to read the config")
        held.callback(self._loop.remove_signal_handler, signal.SIGHUP)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        if self._cancelled.is_set():
            for listener in (*self._listeners, *self._admin):
                listener.stop()
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        self._cancelled.set()
        self._stop.set()
        if self._booting is not None:
            self._booting.cancel()

    def _watch_idleness(self) -> None:
        """Stops the daemon when nobody has been connected for ``idle_exit_secs``."""
        if self._idle_alarm is not None:
            self._idle_alarm.cancel()
            self._idle_alarm = None
        if self._settings.idle_exit_secs and not self._places.taken:
            self._idle_alarm = self._loop.call_later(self._settings.idle_exit_secs, self._stop_idle)

    def _stop_idle(self) -> None:
        _log.info("stopping", idle_secs=self._settings.idle_exit_secs)
        self._stop.set()

    async def _drain(self) -> None:
        """Lets requests finish, then ends them, then closes the connections behind what was written."""
        for listener in self._listeners:
            listener.stop()
        self._admission.close()
        self._board.publish(admin.DRAINING)
        _notify("STOPPING=1")
        idle = self._loop.create_task(self._admission.idle())
        await asyncio.wait((idle,), timeout=self._settings.drain_timeout_secs)
        if not idle.done():
            _log.warn("drain_timeout", running=self._admission.running, waiting=self._admission.waiting)
            for service in self._services:
                service.interrupt()
            await asyncio.wait((idle,), timeout=CANCEL_GRACE_SECS)
            idle.cancel()
        await asyncio.gather(*(listener.close(FLUSH_GRACE_SECS) for listener in self._listeners))


def _capabilities_frame(backend: Backend) -> bytes:
    able = dataclasses.asdict(backend.capabilities())
    accelerator = able.pop("accelerator")
    kind = accelerator.pop("kind")
    first = {name: able.pop(name) for name in ("v2", "vision", "audio", "tools", "thinking", "embed")}
    ours = {**accelerator, **able, "name": backend.name, "model": backend.model}
    return admin.encode_status(
        "capabilities", {"backend": backend.kind, **first, "accelerator": kind, **ours}
    )


def _notify(state: str) -> None:
    """Tells systemd, if it started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
