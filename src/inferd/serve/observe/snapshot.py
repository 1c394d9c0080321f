"""The state of the daemon at one moment, for the admin socket and the metrics."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from inferd import __version__
from inferd.engine.backend import Backend
from inferd.serve.observe.metrics import Metrics
from inferd.serve.queues import Queues
from inferd.serve.router import BackendSlot, Router

if TYPE_CHECKING:
    from inferd.serve.surface import RequestContext


class Residents(Protocol):
    """The models that requests have loaded."""

    def loading(self) -> list[dict[str, object]]:
        """The models that are loading now."""

    def stay(self, slot: BackendSlot) -> dict[str, object]:
        """Returns ``pinned`` and ``stays_secs``, which say how long the backend stays loaded."""


class Snapshot:
    """Builds snapshots from the live objects."""

    def __init__(
        self, admission: Queues, router: Router, metrics: Metrics, residents: Residents | None = None
    ) -> None:
        self.admission = admission
        self.router = router
        self.metrics = metrics
        self._residents = residents
        self._began = time.monotonic()

    @property
    def uptime_secs(self) -> float:
        return time.monotonic() - self._began

    def snapshot(self) -> dict[str, object]:
        """Returns the details of a ``snapshot`` frame. Running requests are listed from the oldest to the
        newest, and waiting requests in the order of service."""
        admission = self.admission
        running = sorted(_contexts(admission.running_requests()), key=lambda context: context.arrived)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_secs": round(self.uptime_secs, 3),
            "active_permits": admission.active_permits,
            "queue_depth": admission.queue_depth,
            "running": [context.row(None) for context in running],
            "waiting": [
                cast("RequestContext[Any]", context).row(position)
                for position, context in admission.queued_requests()
            ],
            "backends": self.backends(),
            "loading": [] if self._residents is None else self._residents.loading(),
            "metrics": self.metrics.summary(),
        }

    def backends(self) -> list[dict[str, Any]]:
        """Returns one row for each backend, in order of priority. A row contains the state that decides
        whether the backend gets requests."""
        return [
            {
                "name": member.backend.name,
                "kind": member.backend.kind,
                "model": member.backend.model,
                "ready": member.backend.ready() and member.healthy,
                "breaker": member.breaker.state,
                "running": member.running,
                "waiting": self.admission.waiting_for(member.backend.name),
                "idle_secs": round(self.router.idle_secs(member), 3),
                "n_ctx": member.backend.capabilities().n_ctx,
                "device": member.backend.capabilities().accelerator.kind,
                "gpu_layers": member.backend.capabilities().accelerator.gpu_layers,
                "layers": member.backend.capabilities().accelerator.layers,
                "pool": member.route.serves if self.router.pooled(member) else "",
                "outstanding": member.outstanding,
                "others": member.others,
                "engine": _engine(member.backend),
                **({} if self._residents is None else self._residents.stay(member)),
            }
            for member in self.router.all_members()
        ]


def _engine(backend: Backend) -> dict[str, object] | None:
    """Returns the state of the backend's engine process, or ``None`` if the backend has no engine process."""
    state = backend.engine_state()
    if state is None:
        return None
    return {**state._asdict(), "cage": dict(state.cage), "gpu_bytes": dict(state.gpu_bytes)}


def _contexts(holders: list[object]) -> list[RequestContext[Any]]:
    """Casts the holders in the queues to request contexts."""
    return cast("list[RequestContext[Any]]", holders)
