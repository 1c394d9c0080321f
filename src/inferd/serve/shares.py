"""How many of the permits each user, and each process of a user, may hold.

All users that are present have equal shares of the permits, and so have the processes of a user within its
share; a share is rounded up. Only a user or process that is present alone may hold every permit. One is
present while it has a request that runs or waits, and for ``STAY_SECS`` after its last one. A client that
sends one request after the other thus keeps its share in the pause between two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

# A client sends its next request some milliseconds after an answer. Permits may be unused for so long.
STAY_SECS = 0.1


class User:
    """``running`` counts the permits that the requests of a user hold."""

    __slots__ = ("processes", "running")

    def __init__(self) -> None:
        self.running = 0
        self.processes: dict[Hashable, Process] = {}


class Process:
    """A process of a user, and how many requests it has; ``running`` counts those with a permit."""

    __slots__ = ("leaving", "requests", "running", "user")

    def __init__(self, user: User) -> None:
        self.user = user
        self.requests = 0
        self.running = 0
        self.leaving: asyncio.TimerHandle | None = None


class Shares:
    """The users and processes that are present. ``freed`` is called when one of them no longer is."""

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed = freed
        self._users: dict[Hashable, User] = {}

    def come(self, owner: Hashable, caller: Hashable) -> Process:
        """A request of the process ``caller`` of the user ``owner`` arrives."""
        user = self._users.get(owner)
        if user is None:
            user = self._users[owner] = User()
        process = user.processes.get(caller)
        if process is None:
            process = user.processes[caller] = Process(user)
        if process.leaving is not None:
            process.leaving.cancel()
            process.leaving = None
        process.requests += 1
        return process

    def go(self, process: Process, owner: Hashable, caller: Hashable) -> None:
        """A request has ended, or is refused."""
        process.requests -= 1
        if not process.requests:
            loop = asyncio.get_running_loop()
            process.leaving = loop.call_later(STAY_SECS, self._forget, owner, caller)

    def _forget(self, owner: Hashable, caller: Hashable) -> None:
        processes = self._users[owner].processes
        del processes[caller]
        if not processes:
            del self._users[owner]
        self._freed()

    def allow(self, process: Process, permits: int) -> bool:
        """Whether the process may have one more of so many permits."""
        user = process.user
        share = _part(permits, len(self._users))
        own = _part(share, len(user.processes))
        return user.running < share and process.running < own


def _part(whole: int, of: int) -> int:
    return -(-whole // of)
