"""Detects a departed client, even while its connection is not read.

A reader sees end of file both for a closed socket and for one whose sending side was shut down. The kernel
distinguishes them by the hang-up condition, which it sets when both directions are closed: on a Unix socket
as soon as the client closes, on TCP when it resets. epoll reports a hang-up even for a descriptor registered
without events. So one epoll watches every connection, read from or not, and costs nothing until it fires.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from collections.abc import Callable


class HangupWatch:
    """Calls back once for each watched descriptor that hangs up.

    Without epoll, :meth:`watch` does nothing, and the first failed write reveals a departed client.
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
        """Ends the watch begun with these arguments; a reused descriptor is left alone."""
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
