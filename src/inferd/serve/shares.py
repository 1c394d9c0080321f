"""How many of the permits each user, and each process of a user, may hold.

All users that are present have equal shares of the permits, and so have the processes of a user within its
share; a share is rounded up. A user or process may exceed its share by permits that no other one needs: each
other one keeps, within its share, one permit more than it has held at once. A user or process is present
while it has a request that runs or waits, and for ``STAY_SECS`` after its last one. A client that sends one
request after the other thus finds a free permit after the pause between two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

# A client sends its next request some milliseconds after an answer. Permits may be unused for so long.
STAY_SECS = 0.1


class _Holder:
    """``running`` counts the permits that are held, ``most`` those that were held at once."""

    __slots__ = ("most", "running")

    def __init__(self) -> None:
        self.running = self.most = 0

    def begin(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def kept(self, share: int) -> int:
        """Free permits that others leave to it."""
        return max(0, min(share, self.most + 1) - self.running)


class User(_Holder):
    """The permits of a user, and its processes."""

    __slots__ = ("processes",)

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[Hashable, Process] = {}


class Process(_Holder):
    """The permits of a process, and how many requests it has."""

    __slots__ = ("leaving", "requests", "user")

    def __init__(self, user: User) -> None:
        super().__init__()
        self.user = user
        self.requests = 0
        self.leaving: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        super().begin()
        self.user.begin()

    def end(self) -> None:
        self.running -= 1
        self.user.running -= 1


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

    def allow(self, process: Process, permits: int, free: int) -> bool:
        """Whether the process may have one of the ``free`` permits, of ``permits`` in all."""
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
