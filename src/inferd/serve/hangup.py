"""Detects that a client has left, even while its connection is not read.

At the end of the input, the daemon cannot tell whether the client closed its socket or only shut down its
sending side. The kernel reports a hang-up only if both directions are closed. On a Unix socket, the kernel
reports the hang-up as soon as the client closes the socket. On TCP, the kernel reports the hang-up only when
the client resets the connection. epoll reports a hang-up even for a descriptor that is registered without
events. So one epoll instance watches every connection, whether the connection is read or not, and uses no
processor time before a hang-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from collections.abc import Callable


class HangupWatch:
    """Calls a function once for each watched descriptor that hangs up.

    On a system without epoll, :meth:`watch` does nothing. The first failed write then shows that the client
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
        """Calls ``gone`` if ``fd`` hangs up. The watch ends when ``fd`` hangs up or is closed, or with
        :meth:`forget`."""
        if self._epoll is not None:
            self._callbacks[fd] = gone
            # With too many watches, the first failed write shows that the client has left.
            with contextlib.suppress(OSError):
                self._epoll.register(fd, select.EPOLLET)

    def forget(self, fd: int, gone: Callable[[], None]) -> None:
        """Ends the watch that was begun with the same arguments. If ``fd`` now belongs to a new connection,
        the new watch stays."""
        if self._epoll is not None and self._callbacks.get(fd) == gone:
            del self._callbacks[fd]
            with contextlib.suppress(OSError):  # closing a descriptor removes the watch
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
