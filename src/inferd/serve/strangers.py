"""Connections that have not sent the API key yet. A small limit bounds their number.

If the limit is reached, a new connection displaces an older one: the host with the most connections that have
not sent the key loses the oldest of these. A client that has the key sends the key at once, before a flood of
silent connections can displace this client.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

LIMIT = 64


class Strangers:
    """The connections that have not sent the API key yet. Includes the connections of all listeners that need
    the key."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._number = 0
        self._hosts: OrderedDict[Hashable, OrderedDict[object, Callable[[], object]]] = OrderedDict()

    def add(self, host: Hashable, connection: object, close: Callable[[], object]) -> None:
        """Adds ``connection``. ``close`` is called if a new connection displaces ``connection``."""
        if self._number >= self._limit:
            crowded = max(self._hosts, key=lambda host: len(self._hosts[host]))
            oldest, end = next(iter(self._hosts[crowded].items()))
            self.discard(crowded, oldest)
            end()
        self._hosts.setdefault(host, OrderedDict())[connection] = close
        self._number += 1

    def discard(self, host: Hashable, connection: object) -> bool:
        """Removes ``connection``. Returns whether ``connection`` was present."""
        connections = self._hosts.get(host, OrderedDict())
        if connections.pop(connection, None) is None:
            return False
        self._number -= 1
        if not connections:
            del self._hosts[host]
        return True

    def __len__(self) -> int:
        return self._number
