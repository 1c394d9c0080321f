"""``inferd stop`` and ``inferd reload``, which send signals to the daemon's process.

Without ``INFERD_ADDRESS``, the daemon's process is the process that holds the daemon's lock. With
``INFERD_ADDRESS``, it is the process that serves the admin socket of the daemon at that address.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import click

from inferd.cli.background import POLL_SECS
from inferd.cli.say import say
from inferd.cli.status import ANSWER_SECS, admin_address, settings_of_daemon
from inferd.client.admin import AdminClient
from inferd.client.trust import server_pid
from inferd.errors import ConfigError, DaemonUnreachable
from inferd.store.runtime import holder, is_held

SILENCE_SECS = 0.5
"""How long `stop` waits in silence before it prints why it waits."""


@click.command("stop")
def stop_command() -> None:
    """Stop the daemon, and wait until it has ended.

    The daemon gives running requests a limited time to finish.
    """
    if os.environ.get("INFERD_ADDRESS"):
        named = _named()
        _stop(named, lambda: _has_ended(named), "")
        return
    settings = settings_of_daemon()
    lock = settings.lock
    found = _running(lock)
    if found is None:
        say("no daemon is running")
        return
    cut = f"; after {settings.drain_timeout_secs:g} s they are cut"
    _stop(found, lambda: not is_held(lock) or holder(lock) != found, cut)


def _stop(pid: int, has_ended: Callable[[], bool], cut: str) -> None:
    _signal(pid, signal.SIGTERM)
    speaks_at = time.monotonic() + SILENCE_SECS
    while not has_ended():
        time.sleep(POLL_SECS)
        if time.monotonic() >= speaks_at:
            speaks_at = float("inf")
            say(f"waiting for the requests that run{cut} …", err=True)
    say(f"the daemon, process {pid}, has stopped")


@click.command("reload")
def reload_command() -> None:
    """Make the daemon read its configuration again, and wait until it uses the new one.

    No request is dropped.
    """
    pid = _named() if os.environ.get("INFERD_ADDRESS") else _running(settings_of_daemon().lock)
    if pid is None:
        raise DaemonUnreachable("no daemon is running; `inferd run` starts one")
    with AdminClient(admin_address()) as admin:
        events = admin.events()
        next(events)  # the state before
        _signal(pid, signal.SIGHUP)
        began, failure = False, None
        for frame in events:
            if frame["status"] == "restarting":
                began = True
                if frame.get("phase") == "making_room":
                    say(f"unloading {frame['unloading']!r} first, because not all fits in memory …", err=True)
            elif frame["status"] == "reload_failed":
                failure = str(frame.get("message"))
            elif frame["status"] == "ready" and began:
                break
    if failure is not None:
        raise ConfigError(f"nothing has changed: {failure}")
    say(f"the daemon, process {pid}, has read its configuration")


def _named() -> int:
    """Returns the pid of the daemon that ``INFERD_ADDRESS`` names.

    If the socket is forwarded from another machine, the daemon reports the pid of a process on that machine.
    So on Linux, DaemonUnreachable is raised unless the process with this pid, or its parent (such as
    systemd), created the socket. Other systems do not report the creator of a socket, so the pid is not
    checked.
    """
    address = admin_address()
    with AdminClient(address, timeout=ANSWER_SECS) as admin:
        pid = admin.status().pid
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(os.fspath(address))
        server = server_pid(connected)
    if server is not None and str(server) not in (str(pid), *_stat(pid)[1:2]):
        raise DaemonUnreachable(
            f"the daemon at {address} runs on another machine or in a container; stop or reload it there"
        )
    return pid


def _has_ended(pid: int) -> bool:
    """Whether the process has ended, even if its parent has not waited for it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _stat(pid)[:1] == ["Z"]


def _stat(pid: int) -> list[str]:
    """Returns the fields of ``/proc/PID/stat`` from the third on. The first two of these are the state of the
    process and the pid of its parent. Returns an empty list if the file does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _running(lock: Path) -> int | None:
    """Returns the pid of the daemon, or ``None`` if no daemon runs."""
    if not is_held(lock):
        return None
    pid = holder(lock)
    if pid is None:
        raise DaemonUnreachable(f"a daemon holds {lock}, but its process is not known; stop it with `kill`")
    return pid


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise DaemonUnreachable(
            f"the daemon, process {pid}, belongs to another user; ask them, or use `kill` as root"
        ) from None
