"""Detects a departed client, even while its connection is not read.

A reader gets the same end of file whether the client closed its socket or only shut down its sending side.
The kernel distinguishes the two: it reports a hang-up only once both directions are closed. A hang-up is
reported on a Unix socket as soon as the client closes, and on TCP only when the client resets the connection.
epoll reports a hang-up even for a descriptor registered without events. So one epoll watches every
connection, whether it is read or not, and costs nothing until a hang-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from collections.abc import Callable


class HangupWatch:
    """Calls back once for each watched descriptor that hangs up.

    On a system without epoll, :meth:`watch` does nothing, and the first failed write shows that the client
    has left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        if sys.platform == "linux":
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._report, self._epoll)

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """Watches ``fd`` until it hangs up, is closed, or :meth:`forget` is called."""
        if self._epoll is not None:
            self._callbacks[fd] = gone
            with contextlib.suppress(OSError):  # too many watches: the first failed write reveals it
                self._epoll.register(fd, select.EPOLLET)

    def forget(self, fd: int, gone: Callable[[], None]) -> None:
        """Ends the watch that was begun with these arguments. A new watch of a reused descriptor stays."""
        if self._epoll is not None and self._callbacks.get(fd) == gone:
            del self._callbacks[fd]
            with contextlib.suppress(OSError):  # closing a descriptor takes it out of the epoll
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Ends every watch."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _report(self, epoll: select.epoll) -> None:
        for fd, _ in epoll.poll(0):
            gone = self._callbacks.get(fd)
            if gone is not None:
                self.forget(fd, gone)
                gone()
