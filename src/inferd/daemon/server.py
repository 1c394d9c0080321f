"""The server: the surfaces on their sockets, and their shared limits.

A reload changes the limits and the API key while requests run. A drain gives running and waiting requests
some time to finish, and then cancels the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inferd import log
from inferd.config.settings import Settings
from inferd.daemon import addresses
from inferd.engine.backend import Backend
from inferd.serve import auth
from inferd.serve.bind import Bound
from inferd.serve.hangup import HangupWatch
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.memory import InputMemory
from inferd.serve.models import ModelDirectory
from inferd.serve.observe.metrics import Metrics
from inferd.serve.queues import Queues
from inferd.serve.router import Router
from inferd.serve.session import Service
from inferd.serve.strangers import Strangers
from inferd.serve.surface import Surface
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface, FramedSurface
from inferd.serve.surfaces.vectors import EmbedSurface, RerankSurface

# How long the drain waits for cancelled requests to end. A request usually ends within one step of its
# backend.
CANCEL_GRACE_SECS = 5.0
# How long a client may take to read the last output before the daemon closes its connection.
FLUSH_GRACE_SECS = 1.0

_log = log.get("front")


class Server:
    """Serves the surfaces. ``on_change`` is called whenever a client connection has opened or closed."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        metrics: Metrics,
        on_change: Callable[[], None],
        models: ModelDirectory | None = None,
    ) -> None:
        self.admission = Queues(settings.active_permits, settings.queue_depth)
        self.places = ConnectionLimit(settings.max_connections, settings.max_connections_per_uid)
        self.memory = InputMemory(settings.max_input_memory_bytes)
        self.listeners: list[Listener] = []
        self._strangers = Strangers()
        self._services: list[Service[Any]] = []
        self._router = router
        router.spill_after_secs = settings.spill_after_ms / 1e3
        self._metrics = metrics
        self._on_change = on_change
        self._models = models

    def serve(
        self, settings: Settings, sockets: Mapping[str, Bound], held: contextlib.AsyncExitStack
    ) -> None:
        """Starts to serve each surface on its socket. ``held`` gets the callbacks that close the
        listeners."""
        surfaces = _surfaces()
        hangups = HangupWatch(asyncio.get_running_loop())
        held.callback(hangups.close)
        for name, bound in sockets.items():
            service = Service(
                surface=surfaces[name],
                admission=self.admission,
                router=self._router,
                hangups=hangups,
                metrics=self._metrics,
                api_key=_api_key(settings),
                max_frame_bytes=settings.max_frame_bytes,
                max_attachment_bytes=settings.max_attachment_bytes,
                memory=self.memory,
                write_timeout_secs=settings.write_timeout_secs,
                idle_timeout_secs=settings.idle_timeout_secs,
                models=self._models,
            )
            self._services.append(service)
            listener = Listener(
                bound,
                service.serve,
                self.places,
                self._on_change,
                strangers=self._strangers,
                asks_key=service.asks_key,
            )
            self.listeners.append(listener)
            held.push_async_callback(listener.close, FLUSH_GRACE_SECS)

    def trust(self, bridge_token: str) -> None:
        """Permits the HTTP bridge to state which client each request comes from. The bridge proves its
        identity with ``bridge_token``."""
        for service in self._services:
            service.bridge_token = bridge_token

    def check_keys(self, settings: Settings) -> None:
        """Raises AddressError if a served address needs an API key and ``settings`` have none."""
        for listener in self.listeners:
            listener.check_key(has_key=settings.api_key is not None)

    def follow(self, settings: Settings, backends: Sequence[Backend]) -> None:
        """Applies new limits and a new API key. Warns of new surfaces, which only a restart can serve."""
        self._router.spill_after_secs = settings.spill_after_ms / 1e3
        self.admission.resize(settings.active_permits, settings.queue_depth)
        self.places.limit = settings.max_connections
        self.places.per_owner = settings.max_connections_per_uid
        self.memory.limit = settings.max_input_memory_bytes
        for service in self._services:
            service.api_key = _api_key(settings)
            service.max_frame_bytes = settings.max_frame_bytes
            service.max_attachment_bytes = settings.max_attachment_bytes
            service.write_timeout_secs = settings.write_timeout_secs
            service.idle_timeout_secs = settings.idle_timeout_secs
        served = {service.surface.name for service in self._services}
        for name in addresses.surfaces(settings, backends):
            if name not in served | settings.implicit_surfaces:
                _log.warn("a restart is needed to serve another surface", surface=name)

    def stop(self) -> None:
        """Stops accepting connections. Open connections stay."""
        for listener in self.listeners:
            listener.stop()

    async def drain(self, patience: float) -> None:
        """Waits ``patience`` seconds for requests to finish, and cancels the rest. Then closes each
        connection after its last output."""
        idle = asyncio.get_running_loop().create_task(self.admission.idle())
        await asyncio.wait((idle,), timeout=patience)
        if not idle.done():
            _log.warn("drain_timeout", running=self.admission.running, waiting=self.admission.waiting)
            for service in self._services:
                service.interrupt()
            await asyncio.wait((idle,), timeout=CANCEL_GRACE_SECS)
            idle.cancel()
        await asyncio.gather(*(listener.close(FLUSH_GRACE_SECS) for listener in self.listeners))


def _surfaces() -> dict[str, Surface[Any]]:
    known = (TextSurface(), BlockSurface(), EmbedSurface(), RerankSurface(), FramedSurface())
    return {surface.name: surface for surface in known}


def _api_key(settings: Settings) -> auth.ApiKey | None:
    return None if settings.api_key is None else auth.ApiKey(settings.api_key.reveal())
