"""The protocols between the daemon and a systemd-style service manager.

The daemon tells the manager that the daemon is ready, reloads or stops. The daemon also sends watchdog pings
to the manager. The manager may pass sockets that it opened before the start of the daemon, and that it keeps
open after the daemon's exit. Without a manager nothing happens. The variables for passed sockets are removed
from the environment, so that no child process uses them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from inferd import log
from inferd.errors import AddressError
from inferd.serve import bind
from inferd.serve.bind import Bound

if TYPE_CHECKING:
    import asyncio

FIRST_FD = 3

_log = log.get("systemd")


def notify(*states: str) -> None:
    """Sends assignments such as ``READY=1`` to the manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            target = "\0" + address[1:] if address.startswith("@") else address
            sock.sendto("\n".join(states).encode(), target)


def notify_reloading() -> None:
    """Tells the manager that a reload begins. A later ``READY=1`` tells the manager that the reload has
    ended."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """Pings the manager twice in each watchdog interval. Sends no ping while ``dead()`` returns the names of
    dead backends. Sends none while the event loop hangs, either, because the timer runs on the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, dead: Callable[[], Sequence[str]]) -> None:
        self._loop = loop
        self._dead = dead
        self._silent = False
        self._alarm: asyncio.TimerHandle | None = None
        self._interval = _patience_secs() / 2
        if self._interval:
            self._ping()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _ping(self) -> None:
        dead = self._dead()
        if not dead:
            notify("WATCHDOG=1")
        elif not self._silent:
            _log.error("watchdog_silent", dead=dead)
        self._silent = bool(dead)
        self._alarm = self._loop.call_later(self._interval, self._ping)


def _patience_secs() -> float:
    """Returns the watchdog interval of the manager, in seconds, or 0 if the manager does not watch this
    process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0, int(os.environ.get("WATCHDOG_USEC", "0"))) / 1e6
    return 0.0


def passed_sockets(addresses: Mapping[str, str], *, has_key: bool) -> dict[str, Bound]:
    """Returns the listening sockets that the manager passed to this process, by surface name.

    ``addresses`` are the configured addresses, by surface name. A socket belongs to the surface with the
    socket's name, or else to the surface with the socket's address. Raises AddressError if a socket matches
    no surface, if two sockets match the same surface, if a socket does not listen, or if a socket needs an
    API key and ``has_key`` is false.
    """
    variables = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if variables["LISTEN_PID"] != str(os.getpid()) or not variables["LISTEN_FDS"].isdecimal():
        return {}
    names = variables["LISTEN_FDNAMES"].split(":")
    passed: dict[str, Bound] = {}
    try:
        for number in range(int(variables["LISTEN_FDS"])):
            bound = _adopt(FIRST_FD + number, has_key)
            name = names[number] if number < len(names) else ""
            surface = name if name in addresses else _surface_at(bound.address, addresses)
            if surface is None or surface in passed:
                bound.close()
                raise AddressError(
                    f"the passed socket {name or number} at {bound.address} belongs to no surface;"
                    f" in its socket unit set FileDescriptorName= to one of {', '.join(addresses)}, each once"
                )
            passed[surface] = bound
    except AddressError:
        for bound in passed.values():
            bound.close()
        raise
    return passed


def _surface_at(address: str, addresses: Mapping[str, str]) -> str | None:
    return next((name for name, configured in addresses.items() if configured == address), None)


def _adopt(fd: int, has_key: bool) -> Bound:
    """Takes over the listening socket ``fd``. The file of a Unix socket stays the manager's, so the daemon
    does not delete it."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise AddressError(f"the passed descriptor {fd} is not a socket: {error.strerror}") from error
    try:
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens:
            raise AddressError(
                f"the passed socket {fd} does not listen for streams; set ListenStream= for it"
            )
        sock.set_inheritable(False)
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            return Bound(sock, os.fsdecode(sock.getsockname()))
        address = bind.tcp_address(sock)
        bind.check_key(address, has_key=has_key)
        return Bound(sock, address, is_tcp=True)
    except (AddressError, OSError) as error:
        sock.close()
        if isinstance(error, AddressError):
            raise
        raise AddressError(f"the passed socket {fd} cannot be used: {error.strerror}") from error
