"""The bounded queue in front of the backends.

At most ``active_permits`` requests run, ``queue_depth`` more wait, and the next one is refused at once. Those
that wait are served ``interactive`` before ``batch``, then between callers turn by turn, then in order of
arrival. Whoever is cancelled while waiting leaves the queue, and so does whoever's deadline passes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable

from inferd.errors import AdmissionClosed, DeadlineExceeded, QueueFull

_Waiter = asyncio.Future[None]
_Turns = OrderedDict[Hashable, deque[_Waiter]]


class Permit:
    """A place among the running requests, given back at the end of its ``with`` block."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._admission._release()


class Admission:
    """``with await admission.admit(caller): …`` runs the block when its turn has come."""

    def __init__(self, active_permits: int, queue_depth: int) -> None:
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.running = 0
        self.waiting = 0
        self._closed = False
        self._queues: dict[str, _Turns] = {"interactive": OrderedDict(), "batch": OrderedDict()}
        self._idle: asyncio.Future[None] | None = None

    async def admit(
        self, caller: Hashable, priority: str = "interactive", deadline: float | None = None
    ) -> Permit:
        """Waits for a place; ``priority`` is ``interactive`` or ``batch``, ``deadline`` a time of the event
        loop's clock.

        Raises AdmissionClosed, QueueFull or DeadlineExceeded.
        """
        if self._closed:
            raise AdmissionClosed
        if self.running < self.active_permits:
            self.running += 1
            return Permit(self)
        if self.waiting >= self.queue_depth:
            raise QueueFull
        await self._wait_in_line(caller, priority, deadline)
        return Permit(self)

    async def _wait_in_line(self, caller: Hashable, priority: str, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        turns = self._queues[priority]
        turns.setdefault(caller, deque()).append(waiter)
        self.waiting += 1
        alarm = None if deadline is None else loop.call_at(deadline, self._too_late, turns, caller, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._leave(turns, caller, waiter)
            else:
                self._release()  # the turn came in the moment of the cancellation
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    def _too_late(self, turns: _Turns, caller: Hashable, waiter: _Waiter) -> None:
        if not waiter.done():
            self._leave(turns, caller, waiter)
            waiter.set_exception(DeadlineExceeded("the deadline passed while the request waited"))

    def _leave(self, turns: _Turns, caller: Hashable, waiter: _Waiter) -> None:
        line = turns.get(caller)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del turns[caller]
            self.waiting -= 1
            self._tell_idle()

    def _release(self) -> None:
        self.running -= 1
        if self.running < self.active_permits:
            self._call_next()
        self._tell_idle()

    def _call_next(self) -> bool:
        for turns in self._queues.values():
            while turns:
                caller, line = turns.popitem(last=False)
                waiter = line.popleft()
                if line:
                    turns[caller] = line  # behind the other callers
                self.waiting -= 1
                if not waiter.cancelled():
                    self.running += 1
                    waiter.set_result(None)
                    return True
        return False

    def close(self) -> None:
        """Refuses whoever comes from now on; who waits or runs goes on."""
        self._closed = True

    def let_all_through(self) -> None:
        """Ends all waiting, beyond the number of permits; for requests that only have to say goodbye."""
        while self._call_next():
            pass

    async def idle(self) -> None:
        """Returns once nobody runs or waits."""
        if self.running or self.waiting:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def _tell_idle(self) -> None:
        if self._idle is not None and not self.running and not self.waiting and not self._idle.done():
            self._idle.set_result(None)
