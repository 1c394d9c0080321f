"""Starting a daemon in the background for a client, as ``inferd run`` does."""

from __future__ import annotations

import subprocess
import sys

from inferd.errors import BootFailed

COMMAND = (sys.executable, "-m", "inferd", "start")


def start() -> None:
    """Returns when a daemon of this user is ready; raises BootFailed with the reason when none can start."""
    done = subprocess.run(  # noqa: S603 - our own interpreter with fixed arguments
        COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise BootFailed(lines[-1].removeprefix("inferd: "))
