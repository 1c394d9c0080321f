"""Prints the output of all commands. Replaces control characters in the printed text, so that no untrusted
text can control the terminal.

:class:`inferd.cli.output.Answer` applies the same filter to streamed answers.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from inferd.controls import harmless, to_json


def say(text: object = "", *, err: bool = False, head: str = "") -> None:
    """Prints ``head``, ``text`` and a line feed to stdout or, with ``err``, to stderr. ``head`` is trusted
    text and may have colours, which are left out if NO_COLOR is set."""
    colour = False if os.environ.get("NO_COLOR") else None  # None: if the stream is a terminal
    click.echo(head + harmless(str(text)), err=err, color=colour)


def say_status(text: str) -> None:
    """Replaces the status line on stderr with ``text``, without a line feed. An empty ``text`` removes the
    status line.
    """
    click.echo("\r\x1b[K" + harmless(text), err=True, nl=False)


def say_json(value: Any) -> None:
    """Prints ``value`` to stdout as one line of JSON."""
    click.echo(to_json(value, ascii_only=not (sys.stdout.encoding or "").lower().startswith("utf")))
