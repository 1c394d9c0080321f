"""Garbage collection of a process of one command, and of the start of a daemon.

The collector visits the modules while they are imported, and the interpreter frees them one by one at the
exit. Both together take a quarter of the time of a short command.
"""

from __future__ import annotations

import atexit
import gc

_USUAL = gc.get_threshold()


def collect_less() -> None:
    """Makes the collector run seldom, and not at the exit."""
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """Reverts :func:`collect_less`, for a command that serves."""
    gc.set_threshold(*_USUAL)
    atexit.unregister(gc.freeze)
