"""The queue: its limits, its order, and how requests leave it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import pytest

from inferd.errors import DeadlineExceeded, QueueFull
from inferd.serve import admission, shares
from inferd.serve.admission import Admission
from tests.in_process import Clock, until


class Queue:
    """Runs requests through an admission; each runs until ``finish``."""

    def __init__(self, active_permits: int = 1, queue_depth: int = 10) -> None:
        self.admission = Admission(active_permits, queue_depth)
        self.started: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def come(
        self,
        name: str,
        caller: Hashable = "caller",
        priority: str = "interactive",
        deadline: float | None = None,
        owner: Hashable = None,
    ) -> None:
        """Lets a request arrive; returns when it has its place."""
        self._ends[name] = asyncio.Event()

        async def request() -> None:
            with await self.admission.admit(caller, priority, deadline, name, owner):
                self.started.append(name)
                await self._ends[name].wait()

        self.tasks[name] = asyncio.ensure_future(request())
        await asyncio.sleep(0)

    async def finish(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def finish_all(self) -> list[str]:
        """Finishes all requests; returns the order in which they were served."""
        finished = 0
        while finished < len(self.started):
            await self.finish(self.started[finished])
            finished += 1
        assert self.admission.running == self.admission.waiting == 0
        return self.started


async def test_capacity_counts_running_and_waiting_requests() -> None:
    queue = Queue(active_permits=2, queue_depth=1)
    for name in ("a", "b", "c"):
        await queue.come(name)
    assert (queue.admission.running, queue.admission.waiting) == (2, 1)
    with pytest.raises(QueueFull):
        await queue.admission.admit("caller")
    assert await queue.finish_all() == ["a", "b", "c"]


@pytest.mark.parametrize("permits", [0, 1])
async def test_no_permits_count_as_one(permits: int) -> None:
    queue = Queue(active_permits=permits, queue_depth=0)
    await queue.come("a")
    with pytest.raises(QueueFull):
        await queue.admission.admit("caller")
    assert await queue.finish_all() == ["a"]


async def test_a_free_place_is_taken_without_waiting() -> None:
    admission = Admission(1, 0)
    step = admission.admit("caller")
    with pytest.raises(StopIteration) as returned:
        step.send(None)
    with returned.value.value:
        assert admission.running == 1
    assert admission.running == 0


async def test_first_come_first_served() -> None:
    queue = Queue()
    for name in "abcdef":
        await queue.come(name)
    assert await queue.finish_all() == list("abcdef")


async def test_interactive_before_batch() -> None:
    queue = Queue()
    await queue.come("running", priority="batch")
    await queue.come("batch 1", priority="batch")
    await queue.come("interactive 1")
    await queue.come("batch 2", priority="batch")
    await queue.come("interactive 2")
    assert (await queue.finish_all())[1:] == ["interactive 1", "interactive 2", "batch 1", "batch 2"]


async def test_callers_take_turns() -> None:
    queue = Queue()
    await queue.come("running", caller="a")
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        await queue.come(name, caller=name[0])
    assert (await queue.finish_all())[1:] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_users_take_turns_and_within_a_user_its_processes() -> None:
    queue = Queue(queue_depth=20)
    await queue.come("running", caller="a1", owner="a")
    for name in ("a1.1", "a1.2", "a2.1", "a3.1", "b1.1", "b1.2", "b1.3"):
        await queue.come(name, caller=name[:2], owner=name[0])
    line = list(queue.admission.queued_requests())
    assert line == ["a1.1", "b1.1", "a2.1", "b1.2", "a3.1", "b1.3", "a1.2"]
    assert (await queue.finish_all())[1:] == line


async def refused(queue: Queue, *names: str) -> None:
    for name in names:
        with pytest.raises(QueueFull):
            await queue.tasks[name]


@pytest.mark.parametrize("level", ["process", "user"])
async def test_in_a_full_queue_a_newcomer_displaces_the_last_of_the_caller_with_the_most(level: str) -> None:
    queue = Queue(queue_depth=4)
    for name in ("a0", "a1", "a2", "a3", "a4"):
        await queue.come(name, caller=name if level == "user" else "a", owner="a")
    await queue.come("b1", caller="b", owner="b" if level == "user" else "a")
    await refused(queue, "a4")
    await queue.come("b2", caller="b", owner="b" if level == "user" else "a")
    await refused(queue, "a3")
    # Now each has two places and a has the one that runs; another one of b would leave b with more.
    await queue.come("b3", caller="b", owner="b" if level == "user" else "a")
    await queue.come("a5", caller="a", owner="a")
    await refused(queue, "b3", "a5")
    assert (await queue.finish_all())[1:] == ["a1", "b1", "a2", "b2"]


async def test_batch_makes_way_before_interactive() -> None:
    queue = Queue(queue_depth=3)
    await queue.come("a0", caller="a")
    await queue.come("a1", caller="a", priority="batch")
    await queue.come("a2", caller="a")
    await queue.come("a3", caller="a")
    await queue.come("b1", caller="b")
    await refused(queue, "a1")
    assert await queue.finish_all() == ["a0", "a2", "b1", "a3"]


async def test_a_caller_that_fills_the_queue_cannot_come_back_before_the_other_is_served() -> None:
    queue = Queue(queue_depth=1)
    await queue.come("a0", caller="a")
    await queue.come("a1", caller="a")
    await queue.come("b1", caller="b")
    await queue.come("a2", caller="a")
    await refused(queue, "a1", "a2")
    assert await queue.finish_all() == ["a0", "b1"]


async def test_without_a_queue_no_request_is_displaced() -> None:
    queue = Queue(active_permits=2, queue_depth=0)
    await queue.come("a0", caller="a")
    await queue.come("a1", caller="a")
    await queue.come("b1", caller="b")
    await refused(queue, "b1")
    assert await queue.finish_all() == ["a0", "a1"]


async def test_a_refusal_has_the_time_of_the_next_free_place() -> None:
    queue, clock = Queue(active_permits=2, queue_depth=0), Clock()
    await queue.come("a0")
    await queue.come("a1")
    with pytest.raises(QueueFull) as caught:
        await queue.admission.admit("caller")
    assert caught.value.retry_after_secs is None  # nothing has ended yet
    await clock.advance(1000)
    await queue.finish("a0")
    await queue.come("a2")
    with pytest.raises(QueueFull) as caught:
        await queue.admission.admit("caller")
    assert caught.value.retry_after_secs is not None
    assert caught.value.retry_after_secs > 100
    await queue.finish_all()


async def test_a_newcomer_among_callers_is_not_starved() -> None:
    queue = Queue()
    await queue.come("a0", caller="a")
    await queue.come("a1", caller="a")
    await queue.come("a2", caller="a")
    await queue.finish("a0")
    await queue.come("b1", caller="b")
    await queue.finish("a1")
    await queue.come("a3", caller="a")
    await queue.finish("a2")
    assert queue.started == ["a0", "a1", "a2", "b1"]
    await queue.finish("b1")
    await queue.finish("a3")


@pytest.mark.parametrize("level", ["process", "user"])
async def test_a_flood_gets_half_of_the_permits_with_one_other_client(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "STAY_SECS", 3600.0)
    queue = Queue(active_permits=4, queue_depth=20)
    other = "b" if level == "user" else "a"
    for name in ("a1", "a2", "a3", "a4", "a5", "a6"):
        await queue.come(name, caller="a", owner="a")
    assert queue.started == ["a1", "a2", "a3", "a4"]  # alone it holds all
    await queue.come("b1", caller="b", owner=other)
    await queue.finish("a1")
    await queue.finish("a2")
    assert queue.started[4:] == ["b1"]
    await queue.finish("a3")
    assert queue.started[5:] == ["a5"]
    # A client that sends one request after the other finds a place at once, whenever it comes.
    for name in ("b2", "b3", "b4"):
        await queue.finish(queue.started[-1] if name != "b2" else "b1")
        await queue.come(name, caller="b", owner=other)
        assert queue.started[-1] == name
    await queue.finish_all()


async def test_a_flood_exceeds_its_share_by_permits_that_the_other_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "STAY_SECS", 3600.0)
    queue = Queue(active_permits=8, queue_depth=20)
    await queue.come("b1", caller="b")
    for n in range(1, 9):
        await queue.come(f"a{n}", caller="a")
    assert queue.started == ["b1", "a1", "a2", "a3", "a4", "a5", "a6"]  # one permit stays free for b
    await queue.come("b2", caller="b")
    assert queue.started[7:] == ["b2"]
    await queue.finish("b1")
    assert queue.started[8:] == []  # b has had two at once
    await queue.finish_all()


async def test_an_idle_process_leaves_its_permits_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "STAY_SECS", 0.001)
    queue = Queue(active_permits=2)
    await queue.come("b1", caller="b")
    await queue.come("a1", caller="a")
    await queue.come("a2", caller="a")
    assert queue.started == ["b1", "a1"]
    await queue.finish("b1")
    await until(lambda: queue.started == ["b1", "a1", "a2"])
    await queue.finish("a1")
    await queue.finish("a2")


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    queue = Queue(queue_depth=2)
    for name in ("a", "b", "c"):
        await queue.come(name)
    queue.tasks["b"].cancel()
    with pytest.raises(asyncio.CancelledError):
        await queue.tasks["b"]
    assert queue.admission.waiting == 1
    await queue.come("d")
    assert await queue.finish_all() == ["a", "c", "d"]


async def test_a_cancellation_during_the_turn_passes_it_on() -> None:
    queue = Queue()
    running = await queue.admission.admit("caller")
    await queue.come("b")
    await queue.come("c")
    running.__exit__()
    queue.tasks["b"].cancel()  # its turn has come, but it has not resumed yet
    await until(lambda: queue.started == ["c"])
    assert queue.tasks["b"].cancelled()
    await queue.finish("c")
    assert (queue.admission.running, queue.admission.waiting) == (0, 0)


async def test_a_cancellation_at_the_deadline_frees_no_place() -> None:
    queue = Queue()
    await queue.come("a")
    await queue.come("b", deadline=asyncio.get_running_loop().time())
    for _ in range(2):  # the timer becomes due and fires
        await asyncio.sleep(0)
    assert queue.admission.waiting == 0
    queue.tasks["b"].cancel()  # it has not resumed since its deadline
    with pytest.raises(asyncio.CancelledError):
        await queue.tasks["b"]
    assert queue.admission.running == 1
    await queue.finish("a")


async def test_a_turn_is_not_given_to_a_leaving_request() -> None:
    queue = Queue()
    running = await queue.admission.admit("caller")
    await queue.come("b")
    await queue.come("c")
    queue.tasks["b"].cancel()  # it has not seen that yet
    running.__exit__()
    await until(lambda: queue.started == ["c"])
    await queue.finish("c")
    assert (queue.admission.running, queue.admission.waiting) == (0, 0)


async def test_a_deadline_ends_the_waiting() -> None:
    queue = Queue(queue_depth=1)
    await queue.come("a")
    await queue.come("b", deadline=asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(DeadlineExceeded):
        await queue.tasks["b"]
    assert queue.admission.waiting == 0
    assert await queue.finish_all() == ["a"]


async def test_a_met_deadline_leaves_no_timer() -> None:
    queue, clock = Queue(), Clock()
    await queue.come("a")
    await queue.come("b", deadline=asyncio.get_running_loop().time() + 1000)
    await queue.finish("a")
    await clock.advance(1001)
    assert not queue.tasks["b"].done()
    await queue.finish("b")


async def test_a_free_place_ignores_the_deadline() -> None:
    queue = Queue()
    await queue.come("a", deadline=asyncio.get_running_loop().time() - 1)
    assert await queue.finish_all() == ["a"]


# Requests that wait for their clients.


async def test_a_request_paused_too_long_yields_to_a_waiting_one() -> None:
    queue, clock = Admission(2, 10), Clock()
    first, second = await queue.admit("a"), await queue.admit("a")
    told: list[str] = []
    first.rest(lambda: told.append("first"))
    second.rest(lambda: told.append("second"))
    await clock.advance(admission.REST_SECS)
    assert told == []  # nothing waits
    waiting = asyncio.ensure_future(queue.admit("b"))
    await until(lambda: told == ["first"])  # those paused for the longest, and at most as many as wait
    first.__exit__()
    with await waiting:
        assert told == ["first"]
    second.__exit__()


async def test_a_paused_request_yields_to_an_earlier_waiter() -> None:
    queue, clock = Admission(1, 10), Clock()
    running = await queue.admit("a")
    waiting = asyncio.ensure_future(queue.admit("b"))
    await asyncio.sleep(0)
    running.rest(running.__exit__)
    assert not waiting.done()
    await clock.advance(admission.REST_SECS)
    with await waiting:
        assert queue.running == 1


async def test_a_client_that_reads_on_keeps_its_place() -> None:
    queue, clock = Admission(1, 10), Clock()
    running = await queue.admit("a")
    waiting = asyncio.ensure_future(queue.admit("b"))
    await asyncio.sleep(0)
    told: list[str] = []
    running.rest(lambda: told.append("running"))
    running.resume()
    await clock.advance(2 * admission.REST_SECS)
    assert told == []
    running.__exit__()
    (await waiting).__exit__()
