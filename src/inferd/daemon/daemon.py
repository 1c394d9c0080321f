"""The daemon: builds all its parts from Settings in a fixed order, and closes them in reverse order.

The boot takes the lock and the admin socket. Unless a local model is preloaded, the boot also binds the
sockets for text at once (places.py). Then the boot handles signals, checks the configuration, builds the
backends, publishes their capabilities, waits until all backends are ready, and serves requests. A signal ends
the boot cleanly at any point. An error of the boot is published on the admin socket and raised. A reload
builds the new backends, and then switches to all of them at once. Until then, the old backends serve
requests. If memory is short, old backends are unloaded earlier (room.py). If a reload fails, the old
configuration stays in effect. A stop refuses new connections and new requests. Running and queued requests
may finish within ``drain_timeout_secs``. Requests that remain after this time are cancelled. A second signal
ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from inferd import coredump, log
from inferd.collecting import collect_as_usual
from inferd.config import fingerprints
from inferd.config.settings import OPTIONS, Settings
from inferd.config.sources import LoadedConfig
from inferd.daemon import addresses, systemd
from inferd.daemon.backends import Backends, Build
from inferd.daemon.build import build_backend
from inferd.daemon.descriptors import raise_descriptor_limit
from inferd.daemon.loop import new_event_loop
from inferd.daemon.places import Places
from inferd.daemon.residency import Residency
from inferd.daemon.room import Room
from inferd.daemon.server import FLUSH_GRACE_SECS, Server
from inferd.daemon.spare import Spare
from inferd.daemon.threads import in_thread
from inferd.errors import AddressError, BootCancelled, InferdError
from inferd.log import library
from inferd.serve.health import HealthWatch
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.observe.metrics import Metrics
from inferd.serve.observe.snapshot import Snapshot
from inferd.serve.observe.status import StatusBoard
from inferd.serve.peer import Peer
from inferd.serve.router import Router
from inferd.wire import admin

if TYPE_CHECKING:
    from inferd.daemon.bridge import HttpBridge
    from inferd.daemon.pulls import Pulls
    from inferd.serve.observe.status import ShowPull

# How often the daemon checks that its lock and its sockets still exist.
LOOK_SECS = 2.0

_log = log.get("daemon")


def serve(
    given: LoadedConfig,
    read: Callable[[], LoadedConfig],
    build: Build | None,
    activity: log.ActivityLog,
    places: Places,
) -> None:
    """Runs a daemon in ``places`` until the daemon is stopped. Raises the InferdError of a failed boot."""
    collect_as_usual()
    # The imported modules stay in memory, so garbage collections of the running daemon need not visit them.
    gc.freeze()
    if not given.settings.core_dumps:
        coredump.forbid()
    loop = new_event_loop()
    library.capture(loop)
    try:
        loop.run_until_complete(Daemon(given, read, build, activity, places).run())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gc.collect()  # a task that was left behind is reported before the log is closed
        gc.freeze()  # to free the modules one by one takes longer than the rest of the exit
        library.release()


class Daemon:
    """One run of the daemon. ``given`` is its first configuration. A reload calls ``read`` for the next.
    ``build`` replaces the function that builds backends."""

    def __init__(
        self,
        given: LoadedConfig,
        read: Callable[[], LoadedConfig],
        build: Build | None,
        activity: log.ActivityLog,
        places: Places,
    ) -> None:
        settings = given.settings
        self._given = given
        self._settings = settings
        self._read = read
        self._activity = activity
        self._places = places
        self._metrics = Metrics()
        router = self._router = Router((), on_breaker=self._tell_breaker)
        self._spare = Spare(settings.spare_engine)
        build = build or functools.partial(build_backend, loading=self._spare.loading)
        self._models = Residency(router, build, settings, self._tell_model)
        self._server = Server(settings, router, self._metrics, self._watch_idleness, self._models)
        self._backends = Backends(router, build, Room(router, self._server.admission, self._models.residents))
        self._snapshot = Snapshot(self._server.admission, router, self._metrics, self._models)
        self._board = StatusBoard(self._report, self._models.listing, self._models.release, self._pull)
        self._admin_places = ConnectionLimit(settings.max_connections)
        self._admin: Listener | None = None
        self._bridge: HttpBridge | None = None
        self._pulls: Pulls | None = None
        self._work: asyncio.Task[None] | None = None
        self._ready = False
        self._stopping = False
        self._signalled = False
        self._reload_wanted = False
        self._woken = asyncio.Event()
        self._idle_alarm: asyncio.TimerHandle | None = None
        self._lost: AddressError | None = None

    async def run(self) -> None:
        """Boots, serves until a signal or the idle timeout, and drains. Raises the error of a failed boot."""
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as held:
            self._handle_signals(held)
            held.callback(self._places.close)
            # Signals are ignored before the lock is released. A command takes the release of the lock for the
            # exit of the daemon, and may send one more signal.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                held.callback(signal.signal, number, signal.SIG_IGN)
            try:
                if not await self._do(self._boot(held)):
                    _log.info("stopped", reason="the boot was cancelled")
                    return
            except Exception as error:
                self._board.publish(admin.failed(_describe(error)))
                _log.error("boot_failed", error=_describe(error))
                raise
            self._ready = True
            while not self._stopping:
                if self._reload_wanted:
                    self._reload_wanted = False
                    await self._do(self._reload())
                else:
                    await self._woken.wait()
                self._woken.clear()
            await self._drain()
        if self._lost is not None:
            raise self._lost
        _log.info("stopped")

    async def _do(self, work: Coroutine[Any, Any, None]) -> bool:
        """Runs ``work``, which a signal may cancel. Returns whether ``work`` completed."""
        self._work = self._loop.create_task(work)
        try:
            await self._work
        except (asyncio.CancelledError, BootCancelled):
            return False
        finally:
            self._work = None
        return True

    # Boot. Resources are pushed on ``held``, which releases them in reverse order.

    async def _boot(self, held: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        self._admin = Listener(self._places.admin, self._serve_admin, self._admin_places)
        held.push_async_callback(self._admin.close, FLUSH_GRACE_SECS)
        for note in self._given.notes:
            _log.warn("config", note=note)
        if self._given.problem is not None:
            raise self._given.problem
        if settings.http is not None:
            from inferd.daemon import bridge

            bridge.check(settings)
        self._places.check(settings)
        held.push_async_callback(self._spare.close)
        held.push_async_callback(self._backends.close)
        held.push_async_callback(self._models.close)
        backends = await self._backends.make(settings, self._show_loading)
        for frame in self._backends.capabilities_frames():
            self._board.publish_capabilities(frame)
        await self._backends.until_ready(backends, settings.ready_timeout_secs)
        self._backends.use(backends)
        sockets = self._places.bind(settings, addresses.surfaces(settings, backends))
        self._server.serve(settings, sockets, held)
        self._serve_metrics(held)
        self._serve_http(held)
        held.callback(systemd.Watchdog(self._loop, self._backends.dead).close)
        self._board.publish(admin.READY)
        systemd.notify("READY=1")
        _log.info("ready", address=self._server.listeners[0].address)
        self._watch_idleness()
        health = HealthWatch(self._router, self._server.admission.look_again)
        for watch in (self._watch_places(), health.run()):
            held.callback(self._loop.create_task(watch).cancel)

    async def _watch_places(self) -> None:
        """Stops the daemon if its lock or a socket is removed, since clients could not find the daemon."""
        listeners = [*self._server.listeners, *([] if self._admin is None else [self._admin])]
        while True:
            await asyncio.sleep(LOOK_SECS)
            places = [(str(self._places.lock.path), self._places.lock.is_current())]
            places += [(listener.address, listener.is_there()) for listener in listeners]
            gone = next((place for place, there in places if not there), None)
            if gone is not None and not self._stopping:
                self._lost = AddressError(
                    f"{gone} is gone or no longer this daemon's, so clients cannot find it; start it again"
                )
                _log.error("place_lost", place=gone)
                self._stop()
                return

    async def _serve_admin(self, sock: socket.socket, peer: Peer, number: int) -> None:
        await self._board.serve(sock)

    def _serve_metrics(self, held: contextlib.AsyncExitStack) -> None:
        if self._settings.metrics_addr is not None:
            from inferd.serve.observe import prometheus

            bound = addresses.bind_metrics(self._settings.metrics_addr, self._settings.group)
            places = ConnectionLimit(prometheus.MAX_CONNECTIONS)
            listener = Listener(bound, prometheus.Exporter(self._snapshot).serve, places)
            held.push_async_callback(listener.close, FLUSH_GRACE_SECS)

    def _serve_http(self, held: contextlib.AsyncExitStack) -> None:
        if self._settings.http is not None:
            from inferd.daemon.bridge import HttpBridge

            self._bridge = HttpBridge(self._settings)
            held.push_async_callback(self._bridge.close)
            self._server.trust(self._bridge.token)
            self._bridge.start()

    def _show_loading(self, phase: str, details: Mapping[str, object]) -> None:
        self._board.publish(admin.loading_model(phase, details))

    async def _pull(self, name: str, show: ShowPull) -> str:
        if self._pulls is None:
            from inferd.daemon.pulls import Pulls  # few daemons ever download a model

            self._pulls = Pulls(lambda: self._settings)
        return await self._pulls.pull(name, show)

    def _report(self) -> dict[str, object]:
        return {**self._snapshot.snapshot(), "settings": fingerprints.of(self._settings)}

    def _tell_model(self, name: str, state: str, details: Mapping[str, object]) -> None:
        self._board.publish_event(admin.model(name, state, details))

    def _tell_breaker(self, backend: str, state: str) -> None:
        self._metrics.breaker_changed(backend, state)
        self._board.publish_event(admin.breaker(backend, state))

    # Reload.

    async def _reload(self) -> None:
        """Reads and applies the configuration. If a step fails, the old configuration stays in effect."""
        _log.info("reloading")
        systemd.notify_reloading()
        self._board.publish(admin.restarting("config", {}))
        try:
            given = await in_thread(self._read, threading.Event())
            if given.problem is not None:
                raise given.problem
            for note in given.notes:
                _log.warn("config", note=note)
            settings = _reloadable(self._settings, given.settings)
            self._server.check_keys(settings)
            backends = await self._backends.make(settings, self._show_restarting)
            await self._backends.until_ready(backends, settings.ready_timeout_secs)
            self._backends.use(backends)
            self._settings = settings
            self._models.follow(settings)
            self._activity.level = log.parse_level(settings.log_level)
            self._admin_places.limit = settings.max_connections
            raise_descriptor_limit(settings.max_connections)
            self._server.follow(settings, backends)
            self._watch_idleness()
            self._board.forget_capabilities()
            for frame in self._backends.capabilities_frames():
                self._board.publish_capabilities(frame)
            await self._spare.follow(settings.spare_engine)  # last, because a signal may cancel it
            _log.info("reloaded", backends=[backend.name for backend in backends])
        except Exception as error:
            reason = _describe(error) + await self._backends.settle()
            _log.error("reload_failed", error=reason)
            self._board.publish_event(admin.reload_failed(reason))
        finally:
            await self._backends.settle()
            if not self._stopping:
                self._board.publish(admin.READY)
                systemd.notify("READY=1")

    def _show_restarting(self, phase: str, details: Mapping[str, object]) -> None:
        self._board.publish(admin.restarting(phase, details))

    # Stop.

    def _handle_signals(self, held: contextlib.AsyncExitStack) -> None:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            number: functools.partial(self._on_stop_signal, number)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        # By default SIGHUP would end the daemon when its terminal closes.
        handlers[signal.SIGHUP] = self._on_reload_signal
        for number, handler in handlers.items():
            signal.signal(number, functools.partial(self._pass_on, handler))
            # Not the loop's own handlers: once they are removed, a late signal would kill the process with
            # the signal's status during a clean exit.
            held.callback(signal.signal, number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)  # start.py has blocked them until now

    def _pass_on(self, handler: Callable[[], None], *_: object) -> None:
        self._loop.call_soon_threadsafe(handler)

    def _on_reload_signal(self) -> None:
        """Starts a reload as soon as the daemon is ready. A running reload is cancelled and started again."""
        self._reload_wanted = True
        self._woken.set()
        if self._ready and self._work is not None:
            self._work.cancel()

    def _on_stop_signal(self, number: signal.Signals) -> None:
        if self._signalled:
            self._server.stop()
            if self._admin is not None:
                self._admin.stop()
            os._exit(128 + number)
        self._signalled = True
        _log.info("stopping", signal=number.name)
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if self._work is not None:
            self._work.cancel()

    def _watch_idleness(self) -> None:
        """Starts the timer that stops an idle daemon, or stops the timer if a client is connected."""
        if self._idle_alarm is not None:
            self._idle_alarm.cancel()
            self._idle_alarm = None
        if self._settings.idle_exit_secs and not self._server.places.taken:
            self._idle_alarm = self._loop.call_later(self._settings.idle_exit_secs, self._stop_idle)

    def _stop_idle(self) -> None:
        _log.info("stopping", idle_secs=self._settings.idle_exit_secs)
        self._stop()

    async def _drain(self) -> None:
        self._server.stop()
        if self._bridge is not None:
            self._bridge.stop()
        self._server.admission.close()
        self._models.stop()
        self._board.publish(admin.DRAINING)
        systemd.notify("STOPPING=1")
        await self._spare.close()  # its start would take processor time from the last answers
        await self._server.drain(self._settings.drain_timeout_secs)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, InferdError) else repr(error)


def _reloadable(old: Settings, new: Settings) -> Settings:
    """Returns the settings ``new``, but with the old values of options that only a restart can change. Logs
    the name of each such option whose value differs."""
    fixed = [
        option
        for option in OPTIONS
        if not option.reload and getattr(old, option.name) != getattr(new, option.name)
    ]
    for option in fixed:
        _log.warn("a restart is needed to change an option", option=option.key or option.flag)
    return new.replaced(**{option.name: getattr(old, option.name) for option in fixed})
