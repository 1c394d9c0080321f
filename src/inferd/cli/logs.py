"""``inferd logs``: shows the activity log as short text."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click
import orjson

from inferd.cli.numbers import WholeNumber
from inferd.cli.say import say
from inferd.cli.status import settings_of_daemon
from inferd.errors import ConfigError
from inferd.log.file import FILE_NAME
from inferd.log.text import short_text

POLL_SECS = 0.2


@click.command("logs")
@click.option("-n", "--lines", type=WholeNumber(0), default=20, show_default=True, metavar="N")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they are written.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as JSON.")
def logs_command(lines: int, follow: bool, as_json: bool) -> None:
    """Show the last lines of the activity log."""
    path = settings_of_daemon().log_dir / FILE_NAME
    if not path.exists() and not follow:
        raise ConfigError(f"there is no activity log at {path}; a daemon writes it")
    last: deque[bytes] = deque(maxlen=lines)
    for file in (path.with_name(f"{FILE_NAME}.1"), path):
        if file.exists():
            with file.open("rb") as stream:
                last.extend(stream)
    for line in last:
        _show(line, as_json)
    if follow:
        for line in _following(path):
            _show(line, as_json)


def _show(line: bytes, as_json: bool) -> None:
    text = line.decode(errors="replace").rstrip("\n")
    try:
        entry = orjson.loads(line)
        say(text if as_json else short_text(entry))
    except (orjson.JSONDecodeError, KeyError, TypeError):  # not a line of inferd
        say(text)


def _following(path: Path) -> Iterator[bytes]:
    """Yields the complete lines that are appended to the file from now on. Continues after a rotation."""
    position = path.stat().st_size if path.exists() else 0
    number = path.stat().st_ino if path.exists() else 0
    while True:
        if path.exists():
            with path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_ino != number or found.st_size < position:
                    number, position = found.st_ino, 0
                stream.seek(position)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    yield line
        time.sleep(POLL_SECS)
