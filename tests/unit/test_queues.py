"""Each model has its own queue: a busy model delays no request for another."""

from __future__ import annotations

import asyncio

import pytest

from inferd.errors import AdmissionClosed, QueueFull
from inferd.serve.queues import Queues


async def test_a_full_queue_is_full_for_its_own_model_alone() -> None:
    queues = Queues(1, 1)
    running = await queues.of("a").admit("caller", holder="a1")
    waiting = asyncio.create_task(queues.of("a").admit("caller", holder="a2"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await queues.of("a").admit("caller")
    with await queues.of("b").admit("caller", holder="b1"):
        assert (queues.running, queues.waiting) == (2, 1)
        assert (queues.waiting_for("a"), queues.waiting_for("b"), queues.waiting_for("c")) == (1, 0, 0)
        assert set(queues.running_requests()) == {"a1", "b1"}
        assert list(queues.queued_requests()) == [(1, "a2")]
    with running:
        pass
    with await waiting:
        pass
    await queues.idle()


async def test_limits_and_the_end_reach_every_queue() -> None:
    queues = Queues(1, 0)
    with await queues.of("a").admit("caller"):
        queues.resize(2, 0)
        with await queues.of("a").admit("caller"), await queues.of("b").admit("caller"):
            queues.close()
            idle = asyncio.create_task(queues.idle())
            for name in ("a", "new"):
                with pytest.raises(AdmissionClosed):
                    await queues.of(name).admit("caller")
            await asyncio.sleep(0)
            assert not idle.done()
    await idle
