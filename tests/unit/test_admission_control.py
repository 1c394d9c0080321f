"""The control of the queue: closing, resizing, listing, and waiting until it is idle."""

from __future__ import annotations

import asyncio

import pytest

from inferd.errors import AdmissionClosed, QueueFull
from tests.in_process import until
from tests.unit.test_admission import Queue


async def test_closing_refuses_new_requests_only() -> None:
    queue = Queue()
    await queue.come("a")
    await queue.come("b")
    queue.admission.close()
    with pytest.raises(AdmissionClosed):
        await queue.admission.admit("caller")
    assert await queue.finish_all() == ["a", "b"]


async def test_release_waiters_starts_all_waiting_requests() -> None:
    queue = Queue()
    for name in ("a", "b", "c"):
        await queue.come(name)
    queue.admission.release_waiters()
    await until(lambda: queue.started == ["a", "b", "c"])
    assert (queue.admission.running, queue.admission.waiting) == (3, 0)
    assert await queue.finish_all() == ["a", "b", "c"]


@pytest.mark.parametrize("permits", [3, 5])
async def test_more_permits_start_waiting_requests(permits: int) -> None:
    queue = Queue(active_permits=1, queue_depth=2)
    for name in ("a", "b", "c"):
        await queue.come(name)
    queue.admission.resize(permits, 0)
    await until(lambda: queue.started == ["a", "b", "c"])
    assert queue.admission.waiting == 0
    assert (queue.admission.refusal is None) == (permits == 5)
    assert await queue.finish_all() == ["a", "b", "c"]


async def test_fewer_permits_cut_off_no_running_request() -> None:
    queue = Queue(active_permits=3, queue_depth=1)
    for name in ("a", "b", "c", "d"):
        await queue.come(name)
    queue.admission.resize(0, 1)
    await queue.finish("a")
    await queue.finish("b")
    assert (queue.admission.running, queue.admission.waiting) == (1, 1)
    with pytest.raises(QueueFull):
        await queue.admission.admit("caller")
    await queue.finish("c")
    assert queue.started == ["a", "b", "c", "d"]
    await queue.finish("d")


async def test_the_listings_show_running_and_waiting_in_order() -> None:
    queue = Queue(active_permits=2)
    for name in ("r1", "r2", "a1", "a2", "b1", "a3", "b2"):
        await queue.come(name, caller=name[0])
    await queue.come("later", priority="batch")
    assert set(queue.admission.running_requests()) == {"r1", "r2"}
    line = list(queue.admission.queued_requests())
    assert line == ["a1", "b1", "a2", "b2", "a3", "later"]
    assert (await queue.finish_all())[2:] == line


async def test_idle_waits_for_the_last_to_end() -> None:
    queue = Queue()
    await queue.admission.idle()
    await queue.come("a")
    await queue.come("b")
    idle = asyncio.ensure_future(queue.admission.idle())
    await queue.finish("a")
    assert not idle.done()
    await queue.finish("b")
    await idle


async def test_idle_sees_the_last_one_leave_the_queue() -> None:
    queue = Queue()
    await queue.come("a")
    await queue.come("b")
    idle = asyncio.ensure_future(queue.admission.idle())
    queue.tasks["b"].cancel()
    await queue.finish("a")
    await idle
