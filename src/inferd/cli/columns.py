"""Plain-text tables for commands that must start quickly. This module does not import rich.

Frames from a daemon may contain text of clients, so control characters are removed before text reaches the
terminal.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferd.controls import one_line

PIPE_COLUMNS = 10_000


def aligned(rows: Iterable[Sequence[object]]) -> list[str]:
    """Formats the rows as lines. Each column is as wide as its longest cell.

    All rows must have the same number of cells.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def wrapped(text: str, width: int) -> list[str]:
    """Splits the text into lines of at most ``width`` or 20 characters, whichever is more. The lines after
    the first are indented by two more spaces."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, max(width, 20), subsequent_indent=indent + "  ", break_on_hyphens=False)


def terminal_width() -> int:
    """Returns the number of columns of the terminal on stdout, or 80 if the number is unknown. (A terminal
    that does not know its size reports 0 columns, and Python 3.10 returns this 0.)"""
    return shutil.get_terminal_size().columns or 80


def screen_width() -> int:
    """Returns the number of columns of the terminal on stdout. For a pipe the number is practically
    unlimited."""
    return terminal_width() if sys.stdout.isatty() else PIPE_COLUMNS


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def duration(seconds: float) -> str:
    """Formats a time in a suitable unit, such as ``0.42 ms``, ``85 ms``, ``3.1 s``, ``12 min`` or ``5 h``."""
    for limit, unit, name in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{_short(seconds / unit)} {name}"
    return f"{_short(seconds / 86400)} d"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def partly(row: Mapping[str, Any]) -> str:
    """Returns how many of a backend's layers a GPU computes, such as ``, 20 of 33 layers``, or nothing
    if it computes all or none. ``row`` is a backend of the daemon's status."""
    here, layers = row.get("gpu_layers", 0), row.get("layers", 0)
    return f", {here} of {layers} layers" if 0 < here < layers else ""


def rate(per_second: float | None) -> str:
    """Formats a speed in tokens per second, or ``-`` if it is unknown."""
    return "-" if per_second is None else _short(per_second)


def time_or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.2g}"


def caller(row: dict[str, object]) -> str:
    """Returns the caller of a request: a user and a command, or an address."""
    pid, uid = row.get("peer_pid"), row.get("peer_uid")
    if not isinstance(pid, int):
        return str(row.get("peer"))
    command = _command(pid, uid)
    return f"{_user(uid)}, {command} ({pid})" if command else f"{_user(uid)}, pid {pid}"


def _user(uid: object) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name if isinstance(uid, int) else "unknown user"
    except KeyError:
        return f"uid {uid}"


def _command(pid: int, uid: object) -> str:
    """Returns the name of the process, or an empty string if the process does not run as user ``uid`` any
    more."""
    process = Path(f"/proc/{pid}")
    try:
        if process.stat().st_uid != uid:
            return ""
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    script = next((word for word in words[1:] if word == "-c" or not word.startswith("-")), "-c")
    return program if script == "-c" else f"{program} {Path(script).name}"  # -c takes code, not a name
