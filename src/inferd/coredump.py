"""Disables core dumps of processes that hold prompts and answers.

A core size limit of zero prevents dumps into files. A program that collects dumps ignores the limit, so on
Linux the process is also marked as not dumpable. As a side effect, other programs of the same user cannot
attach a debugger or read ``/proc/PID/mem``. A child process that executes a program is dumpable again until
it calls :func:`forbid`.
"""

from __future__ import annotations

import resource
import sys

_PR_SET_DUMPABLE = 4


def forbid() -> None:
    """Disables core dumps of this process. Raises OSError if the system refuses."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
