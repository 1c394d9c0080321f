"""The number of permits that each user, and each process of a user, may hold.

A user or process is present while it has a running or waiting request, and for ``STAY_SECS`` after its last
request. The present users have equal shares of the permits, and the present processes of a user have equal
parts of the user's share. Shares are rounded up. For each present user or process, permits are reserved: one
more than the largest number that this user or process has held so far, but at most its share. Beyond its
share, a user or process may take only permits that are not reserved for other users or processes. So a client
that sends one request after another finds a free permit after the short pause between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

# A client sends its next request some milliseconds after an answer. Reserved permits may stay unused for this
# time.
STAY_SECS = 0.1


class _Holder:
    """The permits of a user or process. ``running`` is the number held now, ``most`` the largest number held
    so far."""

    __slots__ = ("most", "running")

    def __init__(self) -> None:
        self.running = self.most = 0

    def begin(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def kept(self, share: int) -> int:
        """Returns how many of the free permits are reserved for this user or process, whose share of all
        permits is ``share``."""
        return max(0, min(share, self.most + 1) - self.running)


class User(_Holder):
    """The permits and the processes of a user."""

    __slots__ = ("processes",)

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[Hashable, Process] = {}


class Process(_Holder):
    """The permits of a process, and the number of its running and waiting requests."""

    __slots__ = ("caller", "owner", "requests", "user")

    def __init__(self, user: User, owner: Hashable, caller: Hashable) -> None:
        super().__init__()
        self.user = user
        self.owner = owner
        self.caller = caller
        self.requests = 0

    def begin(self) -> None:
        super().begin()
        self.user.begin()

    def end(self) -> None:
        self.running -= 1
        self.user.running -= 1


class Shares:
    """The present users and processes. ``freed`` is called when a user or process is no longer present."""

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed = freed
        self._users: dict[Hashable, User] = {}
        self._leaving: dict[Process, float] = {}
        """The times at which the processes without a request are forgotten, the earliest first."""
        self._alarm: asyncio.TimerHandle | None = None

    def come(self, owner: Hashable, caller: Hashable) -> Process:
        """Registers a request of the process ``caller`` of the user ``owner``."""
        user = self._users.get(owner)
        if user is None:
            user = self._users[owner] = User()
        process = user.processes.get(caller)
        if process is None:
            process = user.processes[caller] = Process(user, owner, caller)
        elif not process.requests:
            del self._leaving[process]
        process.requests += 1
        return process

    def go(self, process: Process) -> None:
        """Records that a request of the process has ended or was refused."""
        process.requests -= 1
        if not process.requests:
            loop = asyncio.get_running_loop()
            self._leaving[process] = due = loop.time() + STAY_SECS
            if self._alarm is None:  # one timer for all: most processes come back before it rings
                self._alarm = loop.call_at(due, self._forget)

    def _forget(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._alarm = None
        forgotten = False
        while self._leaving:
            process, due = next(iter(self._leaving.items()))
            if due > now:
                self._alarm = loop.call_at(due, self._forget)
                break
            del self._leaving[process]
            del process.user.processes[process.caller]
            if not process.user.processes:
                del self._users[process.owner]
            forgotten = True
        if forgotten:
            self._freed()

    def allow(self, process: Process, permits: int, free: int) -> bool:
        """Whether the process may take a permit. ``permits`` is the number of all permits, ``free`` the
        number of free permits."""
        user = process.user
        share = _part(permits, len(self._users))
        own = _part(share, len(user.processes))
        if user.running < share and process.running < own:
            return True
        kept = sum(other.kept(share) for other in self._users.values() if other is not user)
        kept += sum(other.kept(own) for other in user.processes.values() if other is not process)
        return free > kept


def _part(whole: int, of: int) -> int:
    return -(-whole // of)
