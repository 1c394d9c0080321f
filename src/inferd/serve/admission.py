"""The bounded queue in front of the backends.

At most ``active_permits`` requests run, ``queue_depth`` more wait, and the next one is refused at once. Those
that wait are served ``interactive`` before ``batch``, then between callers turn by turn, then in order of
arrival. Whoever is cancelled while waiting leaves the queue, and so does whoever's deadline passes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator

from inferd.errors import AdmissionClosed, DeadlineExceeded, QueueFull


class Permit:
    """A place among the running requests, given back at the end of its ``with`` block. ``holder`` is what
    the request gave to be listed as."""

    __slots__ = ("_admission", "holder")

    def __init__(self, admission: Admission, holder: object) -> None:
        self._admission = admission
        self.holder = holder

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._admission._release(self)


class _Waiter:
    """A request in the queue; ``turn`` is done when it has left it."""

    __slots__ = ("holder", "turn")

    def __init__(self, turn: asyncio.Future[Permit], holder: object) -> None:
        self.turn = turn
        self.holder = holder


_Turns = OrderedDict[Hashable, deque[_Waiter]]


class Admission:
    """``with await admission.admit(caller): …`` runs the block when its turn has come."""

    def __init__(self, active_permits: int, queue_depth: int) -> None:
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.waiting = 0
        self._running: set[Permit] = set()
        self._closed = False
        self._queues: dict[str, _Turns] = {"interactive": OrderedDict(), "batch": OrderedDict()}
        self._idle: asyncio.Future[None] | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def refusal(self) -> AdmissionClosed | QueueFull | None:
        """Why a request that came now would be refused; ``None`` if it would not."""
        if self._closed:
            return AdmissionClosed()
        if len(self._running) >= self.active_permits and self.waiting >= self.queue_depth:
            return QueueFull()
        return None

    async def admit(
        self,
        caller: Hashable,
        priority: str = "interactive",
        deadline: float | None = None,
        holder: object = None,
    ) -> Permit:
        """Waits for a place; ``priority`` is ``interactive`` or ``batch``, ``deadline`` a time of the event
        loop's clock. ``holder`` stands for the request in the listings.

        Raises AdmissionClosed, QueueFull or DeadlineExceeded.
        """
        if len(self._running) < self.active_permits and not self._closed:
            return self._begin(holder)
        if (refusal := self.refusal) is not None:
            raise refusal
        return await self._wait_in_line(caller, priority, deadline, holder)

    def _begin(self, holder: object) -> Permit:
        permit = Permit(self, holder)
        self._running.add(permit)
        return permit

    async def _wait_in_line(
        self, caller: Hashable, priority: str, deadline: float | None, holder: object
    ) -> Permit:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), holder)
        turns = self._queues[priority]
        turns.setdefault(caller, deque()).append(waiter)
        self.waiting += 1
        alarm = None if deadline is None else loop.call_at(deadline, self._too_late, turns, caller, waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._leave(turns, caller, waiter)
            elif waiter.turn.exception() is None:
                self._release(waiter.turn.result())  # the turn came in the moment of the cancellation
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    def _too_late(self, turns: _Turns, caller: Hashable, waiter: _Waiter) -> None:
        if not waiter.turn.done():
            self._leave(turns, caller, waiter)
            waiter.turn.set_exception(DeadlineExceeded("the deadline passed while the request waited"))

    def _leave(self, turns: _Turns, caller: Hashable, waiter: _Waiter) -> None:
        line = turns.get(caller)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del turns[caller]
            self.waiting -= 1
            if self._idle is not None:
                self._tell_idle(self._idle)

    def _release(self, permit: Permit) -> None:
        self._running.remove(permit)
        if self.waiting and len(self._running) < self.active_permits:
            self._call_next()
        if self._idle is not None:
            self._tell_idle(self._idle)

    def _call_next(self) -> bool:
        for turns in self._queues.values():
            while turns:
                caller, line = turns.popitem(last=False)
                waiter = line.popleft()
                if line:
                    turns[caller] = line  # behind the other callers
                self.waiting -= 1
                if not waiter.turn.cancelled():
                    waiter.turn.set_result(self._begin(waiter.holder))
                    return True
        return False

    def resize(self, active_permits: int, queue_depth: int) -> None:
        """Changes both numbers. More permits let the next ones start at once; with fewer, who runs and who
        waits goes on, and nobody starts or joins until there is room again."""
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        while len(self._running) < self.active_permits and self._call_next():
            pass

    def close(self) -> None:
        """Refuses whoever comes from now on; who waits or runs goes on."""
        self._closed = True

    def release_waiters(self) -> None:
        """Ends all waiting, beyond the number of permits; for requests that only have to say goodbye."""
        while self._call_next():
            pass

    def running_requests(self) -> list[object]:
        """The holders of the requests that run, in no order."""
        return [permit.holder for permit in self._running]

    def queued_requests(self) -> Iterator[object]:
        """The holders of the requests that wait, in the order in which they would be served now."""
        for turns in self._queues.values():
            for round_ in itertools.zip_longest(*turns.values()):
                yield from (waiter.holder for waiter in round_ if waiter is not None)

    async def idle(self) -> None:
        """Returns once nobody runs or waits."""
        if self._running or self.waiting:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def _tell_idle(self, idle: asyncio.Future[None]) -> None:
        if not self._running and not self.waiting and not idle.done():
            idle.set_result(None)
