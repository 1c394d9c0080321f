"""What a service manager and the daemon tell each other, in the protocols of systemd.

To the manager: ready, reloading, stopping, and a sign of life as often as it wants one. From the manager:
sockets that it opened before it started us, and keeps open when we end. Where no manager is, there is
nothing to do. The variables are taken out of the environment, so that no child takes them for its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from inferd import log
from inferd.errors import AddressError
from inferd.serve import bind
from inferd.serve.bind import Bound

FIRST_FD = 3

_log = log.get("systemd")


def notify(*states: str) -> None:
    """Sends assignments such as ``READY=1``, if there is anybody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            target = "\0" + address[1:] if address.startswith("@") else address
            sock.sendto("\n".join(states).encode(), target)


def notify_reloading() -> None:
    """Says that a reload begins; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """Gives a sign of life twice within the manager's patience, as long as ``dead`` names nothing.

    It comes from a timer of the event loop, so a loop that hangs gives none.
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
    """How long the manager waits for a sign of life; 0: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0, int(os.environ.get("WATCHDOG_USEC", "0"))) / 1e6
    return 0.0


def passed_sockets(addresses: Mapping[str, str], *, has_key: bool) -> dict[str, Bound]:
    """The listening sockets that were passed to this process, by the name of their surface.

    ``addresses`` are the configured ones, by name: a socket belongs to the surface that it is named after, or
    else to the one whose address it has. Raises AddressError for one that fits none, does not listen, or may
    not be served without an API key.
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
                    f"the passed socket {name or number} at {bound.address} is that of no surface;"
                    f" name it {', '.join(addresses)} by FileDescriptorName= in its socket unit, each once"
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
    """The listening socket with that descriptor; its file, if it has one, stays the manager's."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise AddressError(f"the passed descriptor {fd} is no socket: {error.strerror}") from error
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
