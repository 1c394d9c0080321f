"""The entry points of the commands ``inferd`` and ``inferd-daemon`` (which is ``inferd serve``). ctl.py has
``inferdctl``.

The module of a command is imported only when the command runs, so that ``inferd status`` is quick. This
module imports almost nothing at its top, so that :func:`collect_less` runs before all other imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from inferd.collecting import collect_less


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``inferd`` with ``arguments``, by default the arguments of the process. Returns the exit code."""
    if arguments is None:
        collect_less()
    from inferd.cli.commands import app
    from inferd.cli.running import run_command

    if "_INFERD_COMPLETE" in os.environ:
        from inferd.cli.completion import answer

        return answer(app) or 0
    return run_command(app, "inferd", sys.argv[1:] if arguments is None else arguments)


def daemon_main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``inferd-daemon`` in the same way as :func:`main`."""
    if arguments is None:
        collect_less()
    from inferd.cli.running import run_command
    from inferd.cli.serve import daemon_command

    return run_command(daemon_command(), "inferd-daemon", sys.argv[1:] if arguments is None else arguments)
