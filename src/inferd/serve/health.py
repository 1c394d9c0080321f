"""Health checks of the remote backends of the pools.

Each backend is polled every ``LOOK_SECS``. After two failed polls in a row, a backend gets no requests until
a poll succeeds. A successful poll also closes a half-open circuit breaker, so that no client's request has to
probe the backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferd import log
from inferd.errors import InferdError, Unavailable
from inferd.log import faults
from inferd.serve.pool import BackendSlot
from inferd.serve.router import Router

LOOK_SECS = 2.0
ANSWER_SECS = 2.0
FAILURES = 2

_log = log.get("health")


class HealthWatch:
    """Polls the backends. Calls ``on_news`` after each round, since a backend may now take a waiting
    request."""

    def __init__(self, router: Router, on_news: Callable[[], None]) -> None:
        self._router = router
        self._on_news = on_news

    async def run(self) -> None:
        """Polls until the task is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECS)
            if self._router.has_pools:
                await self.look()

    async def look(self) -> None:
        """Polls each backend once."""
        await asyncio.gather(*(self._look_at(slot) for slot in self._router.members if not slot.here))
        self._on_news()

    async def _look_at(self, slot: BackendSlot) -> None:
        before = slot.outstanding
        failure: Exception | None = None
        requests: int | None = None
        try:
            requests = await _within(ANSWER_SECS, slot)
        except Exception as error:  # an unexpected error must not end the watch
            failure = error
        if slot.here:  # a reload has removed the backend from its pool meanwhile
            return
        if failure is not None:
            slot.failures += 1
            if slot.failures >= FAILURES and slot.healthy:
                slot.healthy = False
                _log.warn("backend_unwell", backend=slot.backend.name, message=_told(failure))
            return
        slot.failures = 0
        slot.others = 0 if requests is None else max(0, requests - max(before, slot.outstanding))
        if not slot.healthy:
            slot.healthy = True
            _log.info("backend_well", backend=slot.backend.name)
        if slot.breaker.state == "half-open":
            slot.breaker.reset()


def _told(failure: Exception) -> str:
    return failure.logged or str(failure) if isinstance(failure, InferdError) else faults.describe(failure)


async def _within(limit_secs: float, slot: BackendSlot) -> int | None:
    look = asyncio.ensure_future(slot.backend.look())
    try:
        await asyncio.wait((look,), timeout=limit_secs)
    finally:
        look.cancel()
    if not look.done():
        await asyncio.wait((look,))
    if look.cancelled():
        raise Unavailable(f"{slot.backend.name} did not report its health within {limit_secs:g} s")
    return look.result()
