"""The bounded queue in front of the backends.

At most ``active_permits`` requests run, and ``queue_depth`` more wait. Waiting requests are served
``interactive`` before ``batch``, then in turns: one of each user, and within a user one of each process, each
in order of arrival. A full queue is shared by the same rule. A newcomer takes the place of the last request
of the user, or of the process of its own user, that holds the most places, if that leaves the newcomer with
no more than the other keeps. Otherwise it is refused. A request leaves the queue when it is cancelled or its
deadline passes. :class:`Shares` bounds how many of the permits one user or process holds beside others.

A request that may go to a pool of backends has a :class:`Choice`. It is asked for a place beside the permits,
and may take one at once or while it waits: such a request does not count among the ``active_permits``.

A running request that waits for its client to read keeps its place only while no other request waits for one:
after ``REST_SECS`` it has to give up.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from math import inf

from inferd.errors import AdmissionClosed, DeadlineExceeded, InferdError, QueueFull
from inferd.serve.pool import BackendSlot, Choice
from inferd.serve.shares import Process, Shares

# How long a request may wait for its client to read while others wait for its place. A client that reads at
# all empties its buffer sooner.
REST_SECS = 1.0
# The part of the newest request in the running mean of how long a request takes.
_NEWEST_PART = 0.2


class Permit:
    """A place among the running requests, given back at the end of its ``with`` block. ``holder`` is what
    the request gave to be listed as, ``slot`` the backend that its choice took."""

    __slots__ = ("_admission", "began", "caller", "holder", "owner", "process", "slot")

    def __init__(self, admission: Admission, waiter: _Waiter, began: float, slot: BackendSlot | None) -> None:
        self._admission = admission
        self.slot = slot
        self.owner = waiter.owner
        self.caller = waiter.caller
        self.process = waiter.process
        self.holder = waiter.holder
        self.began = began

    def rest(self, give_up: Callable[[], object]) -> None:
        """The request waits for its client. ``give_up`` is called if it has to end for another request."""
        self._admission._rest(self, give_up)

    def resume(self) -> None:
        """The client has read on."""
        self._admission._resting.pop(self, None)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission._shares.go(self.process, self.owner, self.caller)
        self._admission._release(self)


class _Waiter:
    """A request in the queue; ``turn`` is done when it has left it."""

    __slots__ = ("caller", "choice", "holder", "overdue", "owner", "priority", "process", "turn")

    def __init__(
        self,
        owner: Hashable,
        caller: Hashable,
        priority: str,
        holder: object,
        choice: Choice | None,
        process: Process,
    ) -> None:
        self.process = process
        self.choice = choice
        self.overdue = False
        self.owner = owner
        self.caller = caller
        self.priority = priority
        self.holder = holder
        self.turn: asyncio.Future[Permit]


_Lines = OrderedDict[Hashable, deque[_Waiter]]  # by process
_Turns = OrderedDict[Hashable, _Lines]  # by user


class Admission:
    """``with await admission.admit(caller): …`` runs the block when its turn has come."""

    def __init__(self, active_permits: int, queue_depth: int) -> None:
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.waiting = 0
        self._choosing = 0
        """How many of the waiting have a choice."""
        self._active = 0
        """How many of the running count among the ``active_permits``."""
        self._shares = Shares(self.look_again)
        self._running: set[Permit] = set()
        self._resting: dict[Permit, tuple[float, Callable[[], object]]] = {}  # the longest resting first
        self._giving_up: set[Permit] = set()
        self._rest_alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._queues: dict[str, _Turns] = {"interactive": OrderedDict(), "batch": OrderedDict()}
        self._idle: asyncio.Future[None] | None = None
        self._mean_secs: float | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def retry_after_secs(self) -> float | None:
        """About when the next place becomes free, in seconds; ``None`` before a request has ended."""
        return None if self._mean_secs is None else self._mean_secs / self.active_permits

    @property
    def refusal(self) -> AdmissionClosed | QueueFull | None:
        """Why a request would be refused now, unless it takes another's place in the queue."""
        if self._closed:
            return AdmissionClosed()
        if not self._has_room() and self.waiting >= self.queue_depth:
            return QueueFull(self.retry_after_secs)
        return None

    def _has_room(self) -> bool:
        return self._active < self.active_permits

    def _wait_behind(self, ahead: int) -> float:
        """About how long a request waits for a permit that has so many before it; 0 before one has ended."""
        return 0.0 if self._mean_secs is None else (ahead + 1) * self._mean_secs / self.active_permits

    async def admit(
        self,
        caller: Hashable,
        priority: str = "interactive",
        deadline: float | None = None,
        holder: object = None,
        owner: Hashable = None,
        choice: Choice | None = None,
        *,
        again: bool = False,
    ) -> Permit:
        """Waits for a place for a request of the process ``caller`` of the user ``owner``.

        ``priority`` is ``interactive`` or ``batch``, ``deadline`` a time of the event loop's clock.
        ``holder`` is what the listings show. ``again``: the request had a place whose backend failed, so that
        it is served before the others that wait, and never refused. Raises AdmissionClosed, QueueFull,
        DeadlineExceeded, and what ``choice`` raises.
        """
        process = self._shares.come(owner, caller)
        try:
            waiter = _Waiter(owner, caller, priority, holder, choice, process)
            if again or not self._closed:
                if choice is None:
                    if self._has_room_for(waiter):
                        return self._begin(waiter)
                else:
                    wait = self._wait_behind(self.waiting) if self.waiting < self.queue_depth else inf
                    if (slot := choice.take(self._has_room_for(waiter), wait)) is not None:
                        return self._begin(waiter, slot)
            if not again:
                self._make_way_for(waiter)
            return await self._wait_in_line(waiter, deadline, again)
        except BaseException:
            self._shares.go(process, owner, caller)
            raise

    def _has_room_for(self, waiter: _Waiter) -> bool:
        free = self.active_permits - self._active
        return self._has_room() and self._shares.allow(waiter.process, self.active_permits, free)

    def _make_way_for(self, waiter: _Waiter) -> None:
        """Finds a place in the queue for a newcomer; raises why there is none."""
        refusal = self.refusal
        if refusal is None and self.waiting >= self.queue_depth:
            refusal = QueueFull(self.retry_after_secs)  # the permits that are free are not for it
        if refusal is not None:
            displaced = None if self._closed else self._displaced_by(waiter)
            if displaced is None:
                raise refusal
            self._leave(displaced)
            if not displaced.turn.done():  # its client may be leaving in this very moment
                displaced.turn.set_exception(refusal)

    def _begin(self, waiter: _Waiter, slot: BackendSlot | None = None) -> Permit:
        permit = Permit(self, waiter, asyncio.get_running_loop().time(), slot)
        self._running.add(permit)
        if slot is not None:
            slot.taken()
        if slot is None or slot.here:
            self._active += 1
            waiter.process.begin()
        return permit

    async def _wait_in_line(self, waiter: _Waiter, deadline: float | None, first: bool) -> Permit:
        loop = asyncio.get_running_loop()
        waiter.turn = loop.create_future()
        turns = self._queues[waiter.priority]
        lines = turns.setdefault(waiter.owner, OrderedDict())
        line = lines.setdefault(waiter.caller, deque())
        if first:
            line.appendleft(waiter)
            lines.move_to_end(waiter.caller, last=False)
            turns.move_to_end(waiter.owner, last=False)
        else:
            line.append(waiter)
        self.waiting += 1
        self._reclaim()
        alarms = [] if deadline is None else [loop.call_at(deadline, self._too_late, waiter)]
        if waiter.choice is not None:
            self._choosing += 1
            alarms.append(loop.call_later(waiter.choice.spill_after_secs, self._overdue, waiter))
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._leave(waiter)
            elif waiter.turn.exception() is None:
                self._release(waiter.turn.result())  # the turn came in the moment of the cancellation
            raise
        finally:
            for alarm in alarms:
                alarm.cancel()
            if waiter.choice is not None:
                self._choosing -= 1

    def _overdue(self, waiter: _Waiter) -> None:
        waiter.overdue = True
        self.look_again()

    def _too_late(self, waiter: _Waiter) -> None:
        if not waiter.turn.done():
            self._leave(waiter)
            waiter.turn.set_exception(DeadlineExceeded("the deadline passed while the request waited"))

    def _leave(self, waiter: _Waiter) -> None:
        turns = self._queues[waiter.priority]
        lines = turns.get(waiter.owner)
        line = None if lines is None else lines.get(waiter.caller)
        if lines is not None and line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del lines[waiter.caller]
            if not lines:
                del turns[waiter.owner]
            self.waiting -= 1
            self._tell_idle()

    def _release(self, permit: Permit) -> None:
        self._running.remove(permit)
        self._resting.pop(permit, None)
        self._giving_up.discard(permit)
        slot = permit.slot
        if slot is not None:
            slot.left()
        if slot is None or slot.here:
            self._active -= 1
            permit.process.end()
            took = asyncio.get_running_loop().time() - permit.began
            mean = took if self._mean_secs is None else self._mean_secs
            self._mean_secs = mean + _NEWEST_PART * (took - mean)
        self.look_again()
        self._tell_idle()

    def look_again(self) -> None:
        """Gives the places that may have become free to those that wait."""
        while self._choosing and self._call_choosing():
            pass
        while not self._choosing and self.waiting and self._has_room() and self._call_next():
            pass

    def _call_choosing(self) -> bool:
        """Gives a place to the first in line that can have one; whether there was one."""
        for ahead, waiter in enumerate([*self._in_line()]):
            if waiter.turn.done():
                continue
            slot: BackendSlot | None = None
            if waiter.choice is None:
                if not self._has_room_for(waiter):
                    continue
            else:
                wait = inf if waiter.overdue else self._wait_behind(ahead)
                try:
                    slot = waiter.choice.take(self._has_room_for(waiter), wait)
                except InferdError as error:
                    self._leave(waiter)
                    waiter.turn.set_exception(error)
                    return True
                if slot is None:
                    continue
            self._call(waiter, slot)
            return True
        return False

    def _call_next(self, *, regardless: bool = False) -> bool:
        """Gives a permit to the next in line whose share allows it; whether there was one."""
        for turns in self._queues.values():
            for lines in turns.values():
                for line in lines.values():
                    waiter = next((waiter for waiter in line if not waiter.turn.done()), None)
                    if waiter is not None and (regardless or self._has_room_for(waiter)):
                        self._call(waiter, None)
                        return True
        return False

    def _call(self, waiter: _Waiter, slot: BackendSlot | None) -> None:
        """Ends the wait of a request by a place."""
        permit = self._begin(waiter, slot)
        self._leave(waiter)
        turns = self._queues[waiter.priority]
        if waiter.owner in turns:  # behind the other users, and the other processes of the user
            turns.move_to_end(waiter.owner)
            if waiter.caller in turns[waiter.owner]:
                turns[waiter.owner].move_to_end(waiter.caller)
        waiter.turn.set_result(permit)

    # A full queue.

    def _displaced_by(self, newcomer: _Waiter) -> _Waiter | None:
        """The waiting request that has to make way, or ``None`` if the newcomer is to be refused."""
        waiting = list(self._in_line())[::-1]  # of equals the one that would be served last makes way
        everyone: list[Permit | _Waiter] = [*self._running, *waiting]
        places = Counter(request.owner for request in everyone)
        owner = max((waiter.owner for waiter in waiting), key=places.__getitem__, default=newcomer.owner)
        if places[owner] - 1 < places[newcomer.owner] + 1:
            owner = newcomer.owner  # each user has its share; this is between its own processes
        own = [waiter for waiter in waiting if waiter.owner == owner]
        places = Counter(request.caller for request in everyone if request.owner == owner)
        caller = max((waiter.caller for waiter in own), key=places.__getitem__, default=newcomer.caller)
        if owner == newcomer.owner and places[caller] - 1 < places[newcomer.caller] + 1:
            return None
        return next(waiter for waiter in own if waiter.caller == caller)

    def _in_line(self) -> Iterator[_Waiter]:
        """All that wait, in the order in which they would be served now."""
        for turns in self._queues.values():
            yield from _in_turn(_in_turn(lines.values()) for lines in turns.values())

    # Requests that wait for their clients.

    def _rest(self, permit: Permit, give_up: Callable[[], object]) -> None:
        self._resting[permit] = (asyncio.get_running_loop().time(), give_up)
        self._reclaim()

    def _reclaim(self) -> None:
        """Ends as many of the requests that rest too long as there are requests waiting."""
        if self._rest_alarm is not None:
            self._rest_alarm.cancel()
            self._rest_alarm = None
        loop = asyncio.get_running_loop()
        while self._resting and self.waiting > len(self._giving_up):
            permit, (since, give_up) = next(iter(self._resting.items()))
            if since + REST_SECS > loop.time():
                self._rest_alarm = loop.call_at(since + REST_SECS, self._reclaim)
                return
            del self._resting[permit]
            self._giving_up.add(permit)
            give_up()

    # Changes, and the end.

    def resize(self, active_permits: int, queue_depth: int) -> None:
        """Changes both numbers. More permits let the next ones start at once; with fewer, running and
        queued requests stay, and no other starts or joins until there is room."""
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.look_again()

    def close(self) -> None:
        """Refuses new requests from now on; queued and running ones stay."""
        self._closed = True

    def release_waiters(self) -> None:
        """Ends all waiting, beyond the number of permits; for requests that only have to say goodbye."""
        while self._call_next(regardless=True):
            pass

    def running_requests(self) -> list[object]:
        """The holders of the requests that run, in no order."""
        return [permit.holder for permit in self._running]

    def queued_requests(self) -> Iterator[object]:
        """The holders of the requests that wait, in the order in which they would be served now."""
        return (waiter.holder for waiter in self._in_line())

    async def idle(self) -> None:
        """Returns once no request runs or waits."""
        if self._running or self.waiting:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._running and not self.waiting and not self._idle.done():
            self._idle.set_result(None)


def _in_turn(lines: Iterable[Iterable[_Waiter]]) -> Iterator[_Waiter]:
    """One of each line, then the next of each."""
    for round_ in itertools.zip_longest(*lines):
        yield from (waiter for waiter in round_ if waiter is not None)
