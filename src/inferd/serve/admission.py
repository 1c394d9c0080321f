"""The bounded queue in front of the backends.

At most ``active_permits`` requests run, and ``queue_depth`` more wait. ``interactive`` requests are served
before ``batch`` requests. Among requests of the same priority, users take turns. On a user's turn, the user's
processes take turns, too. The requests of one process run in order of arrival. :class:`Shares` bounds the
permits that one user or process may hold. A waiting request leaves the queue when it is cancelled or its
deadline passes.

If the queue is full, a new request may displace a waiting request. The user with the most running and waiting
requests loses a waiting request, if this user then still has at least as many requests as the user of the new
request. Otherwise the processes of the new request's own user are compared by the same rule. If no request
can be displaced, the new request is refused.

A request for a pool of backends has a :class:`Choice`. The choice may send the request to a remote backend,
on arrival or while the request waits. A request on a remote backend of a pool takes none of the
``active_permits``.

A running request may wait for its client to read the answer. If another request waits for a permit meanwhile,
the running request is ended after ``REST_SECS``.

A paused queue gives no permits: its requests wait while the model behind the queue is replaced.

(This file has over 400 lines, because every decision in this module weighs the same running and waiting
requests.)
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

# How long a request may wait for its client to read while other requests wait for a permit. A client that
# reads at all empties its buffer sooner.
REST_SECS = 1.0
# The weight of the newest request in the moving average of the time a request takes.
_NEWEST_PART = 0.2


class Permit:
    """The permission to run one request. The end of the ``with`` block gives the permit back. ``holder``
    represents the request in listings. ``slot`` is the backend that the request's :class:`Choice` took, or
    ``None`` for a request without a choice."""

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
        """Records that the request waits for its client to read.

        ``give_up`` is called if the request must end, so that a waiting request gets the permit.
        """
        self._admission._rest(self, give_up)

    def resume(self) -> None:
        """Records that the client reads again."""
        self._admission._resting.pop(self, None)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission._shares.go(self.process)
        self._admission._release(self)


class _Waiter:
    """A request in the queue. The future ``turn`` gets the permit, or the error if the request is refused."""

    __slots__ = (
        "caller",
        "choice",
        "holder",
        "overdue",
        "owner",
        "place",
        "priority",
        "process",
        "tell",
        "turn",
    )

    def __init__(
        self,
        owner: Hashable,
        caller: Hashable,
        priority: str,
        holder: object,
        choice: Choice | None,
        process: Process,
        tell: Callable[[int], object] | None,
    ) -> None:
        self.tell = tell
        self.place = 0
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
    """The queue. ``with await admission.admit(caller): …`` runs the block once the request has a permit."""

    def __init__(self, active_permits: int, queue_depth: int) -> None:
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.waiting = 0
        self._choosing = 0
        """The number of waiting requests with a choice."""
        self._listening = 0
        """The number of waiting requests that are told their positions."""
        self._telling = False
        self._active = 0
        """The number of running requests that count among the ``active_permits``."""
        self._shares = Shares(self.look_again)
        self._running: set[Permit] = set()
        self._resting: dict[Permit, tuple[float, Callable[[], object]]] = {}  # the longest resting first
        self._giving_up: set[Permit] = set()
        self._rest_alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._paused = False
        self._quiet: asyncio.Future[None] | None = None
        self._queues: dict[str, _Turns] = {"interactive": OrderedDict(), "batch": OrderedDict()}
        self._idle: asyncio.Future[None] | None = None
        self._mean_secs: float | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def retry_after_secs(self) -> float | None:
        """The estimated time in seconds until a permit is free. ``None`` before any request has ended."""
        return None if self._mean_secs is None else self._mean_secs / self.active_permits

    @property
    def refusal(self) -> AdmissionClosed | QueueFull | None:
        """The error for a new request that cannot displace a waiting request. ``None`` if a new request would
        now run or wait."""
        if self._closed:
            return AdmissionClosed()
        if not self._has_room() and self.waiting >= self.queue_depth:
            return QueueFull(self.retry_after_secs)
        return None

    def _has_room(self) -> bool:
        return self._active < self.active_permits and not self._paused

    def _wait_behind(self, ahead: int) -> float:
        """Estimates how many seconds a request waits if ``ahead`` requests are before it. Returns 0 before
        any request has ended."""
        return 0.0 if self._mean_secs is None else (ahead + 1) * self._mean_secs / self.active_permits

    async def admit(
        self,
        caller: Hashable,
        priority: str = "interactive",
        deadline: float | None = None,
        holder: object = None,
        owner: Hashable = None,
        choice: Choice | None = None,
        tell: Callable[[int], object] | None = None,
        *,
        again: bool = False,
    ) -> Permit:
        """Waits for a permit for a request. ``owner`` is the user and ``caller`` the process that sent the
        request.

        ``priority`` is ``interactive`` or ``batch``, ``deadline`` a time of the event loop's clock.
        ``holder`` represents the request in listings. ``again`` marks the retry of a request whose backend
        failed: the retry goes to the front of the queue, even of a full queue. While the request waits,
        ``tell`` is called with each new position in the order of service, from 1. If ``tell`` was called, it
        is called with 0 when the request may run. Raises AdmissionClosed, QueueFull, DeadlineExceeded, and
        the errors of ``choice``.
        """
        process = self._shares.come(owner, caller)
        try:
            waiter = _Waiter(owner, caller, priority, holder, choice, process, tell)
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
            self._shares.go(process)
            raise

    def _has_room_for(self, waiter: _Waiter) -> bool:
        free = self.active_permits - self._active
        return self._has_room() and self._shares.allow(waiter.process, self.active_permits, free)

    def _make_way_for(self, waiter: _Waiter) -> None:
        """Makes room in the queue for a new request. Displaces a waiting request if the queue is full. Raises
        the refusal if no request can be displaced."""
        refusal = self.refusal
        if refusal is None and self.waiting >= self.queue_depth:
            refusal = QueueFull(self.retry_after_secs)  # permits are free, but not for this process
        if refusal is not None:
            displaced = None if self._closed else self._displaced_by(waiter)
            if displaced is None:
                raise refusal
            self._leave(displaced)
            if not displaced.turn.done():  # its client may have left at this moment
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
        self._listening += waiter.tell is not None
        self._moved()
        self._reclaim()
        alarms = [] if deadline is None else [loop.call_at(deadline, self._too_late, waiter)]
        if waiter.choice is not None:
            self._choosing += 1
            alarms.append(loop.call_later(waiter.choice.spill_after_secs, self._overdue, waiter))
        try:
            permit = await waiter.turn
            if waiter.tell is not None and waiter.place:
                waiter.tell(0)
            return permit
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._leave(waiter)
            elif waiter.turn.exception() is None:
                self._release(waiter.turn.result())  # the permit came just before the cancellation
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
            self._listening -= waiter.tell is not None
            self._moved()
            self._tell_idle()

    def _moved(self) -> None:
        if self._listening and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_places)

    def _tell_places(self) -> None:
        self._telling = False
        for place, waiter in enumerate(self._in_line(), start=1):
            if waiter.tell is not None and waiter.place != place:
                waiter.place = place
                waiter.tell(place)

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
            if self._quiet is not None and not self._active and not self._quiet.done():
                self._quiet.set_result(None)
        self.look_again()
        self._tell_idle()

    def look_again(self) -> None:
        """Starts waiting requests if permits have become free, or if remote backends take requests again."""
        while self._choosing and self._call_choosing():
            pass
        while not self._choosing and self.waiting and self._has_room() and self._call_next():
            pass

    def _call_choosing(self) -> bool:
        """Starts the first waiting request that can run. Returns False if no waiting request can run."""
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
        """Gives a permit to the first waiting request whose process may take a permit. With ``regardless``,
        gives the permit to the first waiting request of any process. Returns False if no request gets a
        permit."""
        for turns in self._queues.values():
            for lines in turns.values():
                for line in lines.values():
                    waiter = next((waiter for waiter in line if not waiter.turn.done()), None)
                    if waiter is not None and (regardless or self._has_room_for(waiter)):
                        self._call(waiter, None)
                        return True
        return False

    def _call(self, waiter: _Waiter, slot: BackendSlot | None) -> None:
        """Gives a permit to a waiting request. The request leaves the queue."""
        permit = self._begin(waiter, slot)
        self._leave(waiter)
        turns = self._queues[waiter.priority]
        if waiter.owner in turns:  # after the other users, and the user's other processes
            turns.move_to_end(waiter.owner)
            if waiter.caller in turns[waiter.owner]:
                turns[waiter.owner].move_to_end(waiter.caller)
        waiter.turn.set_result(permit)

    # A full queue.

    def _displaced_by(self, newcomer: _Waiter) -> _Waiter | None:
        """Returns the waiting request that the new request displaces, or ``None`` if the new request is
        refused."""
        waiting = list(self._in_line())[::-1]  # among equals, displace the last in the order of service
        everyone: list[Permit | _Waiter] = [*self._running, *waiting]
        places = Counter(request.owner for request in everyone)
        owner = max((waiter.owner for waiter in waiting), key=places.__getitem__, default=newcomer.owner)
        if places[owner] - 1 < places[newcomer.owner] + 1:
            owner = newcomer.owner  # the users are even; compare the user's own processes
        own = [waiter for waiter in waiting if waiter.owner == owner]
        places = Counter(request.caller for request in everyone if request.owner == owner)
        caller = max((waiter.caller for waiter in own), key=places.__getitem__, default=newcomer.caller)
        if owner == newcomer.owner and places[caller] - 1 < places[newcomer.caller] + 1:
            return None
        return next(waiter for waiter in own if waiter.caller == caller)

    def _in_line(self) -> Iterator[_Waiter]:
        """Yields the waiting requests in the order of service."""
        for turns in self._queues.values():
            yield from _in_turn(_in_turn(lines.values()) for lines in turns.values())

    # Requests that wait for their clients.

    def _rest(self, permit: Permit, give_up: Callable[[], object]) -> None:
        self._resting[permit] = (asyncio.get_running_loop().time(), give_up)
        self._reclaim()

    def _reclaim(self) -> None:
        """Ends requests that have waited for their clients for ``REST_SECS``. Does not end more requests than
        wait for a permit."""
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
        """Changes both limits. With more permits, the next waiting requests start at once. With a lower
        limit, the requests in the queue and the running requests stay. A further request starts only when
        fewer than ``active_permits`` requests run, and is queued only when fewer than ``queue_depth``
        requests wait."""
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self.look_again()

    @property
    def paused(self) -> bool:
        return self._paused

    async def pause(self) -> None:
        """Gives no permits until :meth:`resume` is called. Returns once the running requests have ended."""
        self._paused = True
        if self._active:
            self._quiet = asyncio.get_running_loop().create_future()
            await self._quiet

    def resume(self) -> None:
        """Gives permits again after :meth:`pause`."""
        self._paused = False
        self.look_again()

    def close(self) -> None:
        """Refuses new requests from now on. Queued and running requests stay."""
        self._closed = True

    def release_waiters(self) -> None:
        """Lets all waiting requests run, even if no permit is free, so that each request sends its last frame
        and ends."""
        while self._call_next(regardless=True):
            pass

    def running_requests(self) -> list[object]:
        """Returns the holders of the running requests, in no particular order."""
        return [permit.holder for permit in self._running]

    def queued_requests(self) -> Iterator[object]:
        """Yields the holders of the waiting requests in the order of service."""
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
    """Interleaves the sequences: yields the first item of each sequence, then the second of each, and so
    on."""
    for round_ in itertools.zip_longest(*lines):
        yield from (waiter for waiter in round_ if waiter is not None)
