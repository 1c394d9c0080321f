"""The health checks of a pool's remote backends decide which of them get requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inferd import log
from inferd.engine.mock import Mock
from inferd.errors import Unavailable
from inferd.serve.breaker import FAILURES, OPEN_SECS
from inferd.serve.health import HealthWatch
from inferd.serve.pool import Route
from inferd.serve.router import Router
from tests.in_process import Gate, until

HERE = Route(serves="m")
THERE = Route(serves="m", remote=True, limit=8)


class Patient(Mock):
    """Reports the health that the test sets."""

    answer: int | Exception | None = None

    async def look(self) -> int | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_health_takes_a_backend_out_and_brings_it_back() -> None:
    now = [0.0]
    patient, other = Patient("p"), Mock("o")
    router = Router([patient, other], lambda: now[0], routes={patient: THERE, other: THERE})
    news: list[bool] = []
    watch = HealthWatch(router, lambda: news.append(True))
    slot = router.members[0]
    for _ in range(FAILURES):
        slot.breaker.failed(False)
    patient.answer = Unavailable("gone")
    await watch.look()
    assert slot.healthy  # once is no evidence
    await watch.look()
    assert not slot.healthy
    patient.answer = 5
    slot.outstanding = 2
    await watch.look()
    assert slot.healthy
    assert slot.others == 3
    assert slot.breaker.state == "open"
    now[0] += OPEN_SECS
    await watch.look()
    assert slot.breaker.state == "closed"
    assert len(news) == 4


class Asked(Patient):
    """Answers when the gate opens."""

    def __init__(self, name: str, gate: Gate) -> None:
        super().__init__(name)
        self.gate = gate

    async def look(self) -> int | None:
        await self.gate()
        return await super().look()


async def test_an_unhealthy_backend_that_leaves_its_pool_counts_as_healthy() -> None:
    gate = Gate()
    sick, other = Asked("sick", gate), Mock("other")
    sick.answer = Unavailable("gone")
    pool = {sick: THERE, other: HERE}
    router = Router([sick, other], routes=pool)
    watch = HealthWatch(router, lambda: None)
    slot = router.members[0]
    gate.open(2)
    await watch.look()
    await watch.look()
    assert not slot.healthy
    slot.others = 3
    looking = asyncio.create_task(watch.look())
    await until(lambda: gate.waiting == 1)
    router.replace([sick], pool)
    with router.dispatch() as backend:
        assert backend is sick
    gate.open()
    await looking  # its answer comes too late
    assert slot.healthy
    router.replace([sick, other], pool)
    gate.open()
    await watch.look()
    assert slot.healthy  # once is no evidence
    assert slot.others == 0


async def test_an_unexpected_failure_of_a_check_counts_and_does_not_end_the_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("inferd.serve.health.LOOK_SECS", 0.0)
    patient, other = Patient("p"), Mock("o")
    router = Router([patient, other], routes={patient: THERE, other: HERE})
    slot = router.members[0]
    patient.answer = ZeroDivisionError("words of a server")
    activity = log.setup("warn", tmp_path, stderr=False)
    watching = asyncio.create_task(HealthWatch(router, lambda: None).run())
    await until(lambda: watching.done() or not slot.healthy)
    patient.answer = 0
    await until(lambda: watching.done() or slot.healthy)
    ended = not watching.cancel()
    activity.close()
    assert not ended
    said = (tmp_path / log.FILE_NAME).read_text()
    assert "ZeroDivisionError at test_health.py:" in said
    assert "words of a server" not in said
