"""Starts a daemon in the background for a client, as ``inferd run`` does."""

from __future__ import annotations

import subprocess
import sys

from inferd.errors import BootFailed, UsageError

COMMAND = (sys.executable, "-m", "inferd", "start")


def check(wanted: bool, address: object) -> None:
    """Raises UsageError if a client is given both ``start`` and an address."""
    if wanted and address is not None:
        raise UsageError("a daemon is started at the default address alone; leave out address or start")


def start() -> None:
    """Starts a daemon as this user, and waits until the daemon is ready. Raises BootFailed with the reason if
    the daemon cannot start."""
    done = subprocess.run(  # noqa: S603 - our own interpreter with fixed arguments
        COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise BootFailed(lines[-1].removeprefix("inferd: "))
