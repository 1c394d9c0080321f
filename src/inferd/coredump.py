"""No core dump of a process that holds prompts and answers.

A limit of zero stops the dumps that the kernel writes into files. A program that collects dumps ignores the
limit, so on Linux the process is also made undumpable; other programs of the same user then cannot attach a
debugger or read ``/proc/PID/mem`` either. A child process is dumpable again until it calls this itself.
"""

from __future__ import annotations

import resource
import sys

_PR_SET_DUMPABLE = 4


def forbid() -> None:
    """Forbids core dumps of this process. Raises OSError when the system refuses."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
