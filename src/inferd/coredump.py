"""Disables core dumps of processes that hold prompts and answers.

A core size limit of zero prevents core files. The kernel may also pipe a core dump to a program, such as
systemd-coredump, regardless of the limit. Therefore, on Linux, the process is also marked as not dumpable. As
a side effect, other programs of the same user cannot attach a debugger or read ``/proc/PID/mem``. A child
process becomes dumpable again when it executes a program, so the new program must call :func:`forbid`, too.
"""

from __future__ import annotations

import resource
import sys

_PR_SET_DUMPABLE = 4


def forbid() -> None:
    """Disables core dumps of this process. Raises OSError if the system refuses."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _set_dumpable(0)


def permit_reading() -> None:
    """Marks the process as dumpable again, so that it can open its own files in ``/proc``, which otherwise
    belong to root. The core size limit stays zero. Raises OSError if the system refuses."""
    _set_dumpable(1)


def _set_dumpable(dumpable: int) -> None:
    if sys.platform == "linux":
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
