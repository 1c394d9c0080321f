"""``inferd stop`` and ``reload``: signals to the process that holds the daemon's lock."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from inferd.cli.background import POLL_SECS
from inferd.cli.say import say
from inferd.cli.status import settings_of_daemon
from inferd.client.admin import AdminClient
from inferd.errors import ConfigError, DaemonUnreachable
from inferd.store.runtime import holder, is_held

SILENCE_SECS = 0.5
"""How long `stop` waits before it prints the reason."""


@click.command("stop")
def stop_command() -> None:
    """Stop the daemon, and wait until it has ended. Running requests may finish."""
    settings = settings_of_daemon()
    lock = settings.lock
    pid = _running(lock)
    if pid is None:
        say("no daemon is running")
        return
    _signal(pid, signal.SIGTERM)
    speaks_at = time.monotonic() + SILENCE_SECS
    while is_held(lock) and holder(lock) == pid:
        time.sleep(POLL_SECS)
        if time.monotonic() >= speaks_at:
            speaks_at = float("inf")
            say(
                f"waiting for the requests that run; after {settings.drain_timeout_secs:g} s they are cut …",
                err=True,
            )
    say(f"the daemon, process {pid}, has stopped")


@click.command("reload")
def reload_command() -> None:
    """Make the daemon read its configuration again, and wait for it. No request is dropped."""
    settings = settings_of_daemon()
    pid = _running(settings.lock)
    if pid is None:
        raise DaemonUnreachable("no daemon is running; `inferd run` starts one")
    with AdminClient(settings.admin_addr) as admin:
        events = admin.events()
        next(events)  # the state before
        _signal(pid, signal.SIGHUP)
        began, failure = False, None
        for frame in events:
            if frame["status"] == "restarting":
                began = True
            elif frame["status"] == "reload_failed":
                failure = str(frame.get("message"))
            elif frame["status"] == "ready" and began:
                break
    if failure is not None:
        raise ConfigError(f"nothing has changed: {failure}")
    say(f"the daemon, process {pid}, has read its configuration")


def _running(lock: Path) -> int | None:
    """The process of the daemon; ``None`` when none runs."""
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
