"""The connections that have not shown the API key yet: a few, apart from the places of everybody else.

When their number is reached, a newcomer takes the place of the oldest one of the host that has the most. A
client that has the key shows it at once, so it is through before a flood of silent connections reaches it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

LIMIT = 64


class Strangers:
    """Shared by all listeners that ask for a key."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._number = 0
        self._hosts: OrderedDict[Hashable, OrderedDict[object, Callable[[], object]]] = OrderedDict()

    def add(self, host: Hashable, connection: object, close: Callable[[], object]) -> None:
        """Lets ``connection`` in; ``close`` closes it when another one needs its place."""
        if self._number >= self._limit:
            crowded = max(self._hosts, key=lambda host: len(self._hosts[host]))
            oldest, end = next(iter(self._hosts[crowded].items()))
            self.discard(crowded, oldest)
            end()
        self._hosts.setdefault(host, OrderedDict())[connection] = close
        self._number += 1

    def discard(self, host: Hashable, connection: object) -> bool:
        """Takes ``connection`` out; whether it was there."""
        connections = self._hosts.get(host, OrderedDict())
        if connections.pop(connection, None) is None:
            return False
        self._number -= 1
        if not connections:
            del self._hosts[host]
        return True

    def __len__(self) -> int:
        return self._number
