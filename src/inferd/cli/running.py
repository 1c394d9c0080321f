"""Runs a command and maps its error to an exit code.

Only this module decides the exit code. After an error, the exit code is the ``exit_code`` of the error's
class. The exit code is 2 for an invalid command line, 130 after Ctrl-C, and 141 after a broken pipe on
stdout.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from inferd.cli.say import say
from inferd.controls import one_line
from inferd.errors import InferdError

INTERRUPTED = 130
BROKEN_PIPE = 141


def run_command(
    command: click.Command,
    program: str,
    arguments: Sequence[str],
    *,
    prefix: str | None = None,
    failure: int | None = None,
) -> int:
    """Runs ``command`` and returns the exit code.

    An error is printed to stderr as one line. The line begins with ``prefix``, by default the name of the
    program. The exit code after an error is ``failure``, by default the ``exit_code`` of the error's class.
    """

    def fail(sentence: str, exit_code: int) -> int:
        with contextlib.suppress(OSError):  # stderr may be the failing stream
            say(f"{program if prefix is None else prefix}: {one_line(sentence)}", err=True)
        return exit_code if failure is None else failure

    _prepare_streams()
    try:
        if not _is_open(sys.stdout):
            raise OSError(errno.EBADF, "stdout is closed")
        with command.make_context(program, list(arguments)) as context:
            result = command.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except InferdError as error:
        return fail(str(error), error.exit_code)
    except BrokenPipeError:
        _abandon_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _abandon_stdout()
        where = "the output cannot be written: " if error.filename is None else f"{error.filename}: "
        return fail(f"{where}{error.strerror or error}", 1)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else program
        if isinstance(error, click.NoSuchOption):
            from inferd.config.nearest import nearest

            near = nearest(error.option_name, error.possibilities or ())
            error = click.NoSuchOption(
                error.option_name, possibilities=None if near is None else [near], ctx=error.ctx
            )
        return fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            say(err=True)
        return INTERRUPTED


def _prepare_streams() -> None:
    """Makes stdout and stderr print ``?`` for characters that the locale cannot encode. Opens /dev/null if
    stderr is closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_open(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed


def _abandon_stdout() -> None:
    """Redirects stdout to /dev/null, so that Python's flush at exit does not fail on the broken pipe."""
    if _is_open(sys.stdout):
        with contextlib.suppress(OSError), open(os.devnull, "w") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), sys.stdout.fileno())
