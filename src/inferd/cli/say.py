"""Printing. Every command prints through this module, which neutralises terminal controls in the text.

:class:`inferd.cli.output.Answer` streams answers through the same filter.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from inferd.controls import harmless, to_json


def say(text: object = "", *, err: bool = False, head: str = "") -> None:
    """Prints ``text`` and a line feed to stdout or stderr; ``head`` may hold click's colours."""
    click.echo(head + harmless(str(text)), err=err)


def say_status(text: str) -> None:
    """Replaces the status line on stderr by ``text``, without a line feed; an empty ``text`` removes the
    status line.
    """
    click.echo("\r\x1b[K" + harmless(text), err=True, nl=False)


def say_json(value: Any) -> None:
    """Prints ``value`` to stdout as one line of JSON."""
    click.echo(to_json(value, ascii_only=not (sys.stdout.encoding or "").lower().startswith("utf")))
