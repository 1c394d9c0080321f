"""The commands: ``inferd``, and ``inferd-daemon``, which is ``inferd serve``; ``inferdctl`` is in ctl.py.

Each command lives in a module of its own that is loaded when it is called, so that ``inferd status`` is
quick. Only this package turns an error into an exit code: that of the error's class, 2 for a command line
that cannot be followed, 130 after Ctrl-C, and 141 when the reader of our output has left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from inferd.cli.commands import app
from inferd.cli.say import say
from inferd.controls import one_line
from inferd.errors import InferdError

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``inferd`` with ``arguments`` (default: the process's own); returns the exit code."""
    return run_command(app, "inferd", sys.argv[1:] if arguments is None else arguments)


def daemon_main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``inferd-daemon`` likewise."""
    from inferd.cli.serve import daemon_command

    return run_command(daemon_command, "inferd-daemon", sys.argv[1:] if arguments is None else arguments)


def run_command(
    command: click.Command,
    program: str,
    arguments: Sequence[str],
    *,
    prefix: str | None = None,
    failure: int | None = None,
) -> int:
    """Runs ``command`` and returns the exit code.

    The line of an error begins with ``prefix``, else the name of the program, and its code is ``failure``,
    else its own.
    """

    def fail(sentence: str, exit_code: int) -> int:
        say(f"{program if prefix is None else prefix}: {one_line(sentence)}", err=True)
        return exit_code if failure is None else failure

    try:
        with command.make_context(program, list(arguments)) as context:
            result = command.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except InferdError as error:
        return fail(str(error), error.exit_code)
    except BrokenPipeError:
        # What Python would still write at exit has nobody to read it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return fail(f"{where}{error.strerror or error}", 1)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else program
        return fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            say(err=True)
        return INTERRUPTED
