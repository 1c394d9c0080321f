"""The activity log as short text on stderr.

A separate thread writes to stderr, so that a stalled reader delays neither the daemon nor the log file. While
the reader stalls, up to ``MAX_KEPT`` events are kept. Further events are dropped and counted, and their
number is written when the reader reads again. Control characters in values are escaped, so that no value can
control a terminal.
"""

from __future__ import annotations

import os
import queue
import re
import select
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO

MAX_KEPT = 4096
"""The number of events that may wait for a reader of stderr."""

CLOSE_SECS = 2.0

BACKGROUND_NAME = "background.log"
"""The file for stdout and stderr of a daemon without a terminal, in the directory of the activity log."""

MAX_BACKGROUND_BYTES = 16 * 1024 * 1024

Entry = Mapping[str, Any]

_HEAD = frozenset(("t", "level", "component", "msg"))
_WORD = re.compile(r"""[^ "']+""")


class TextSink:
    """Writes events as short text for people. :meth:`write` never blocks. ``missed`` counts the dropped
    events."""

    _COLOURS: ClassVar = {"error": "31", "warn": "33", "info": "32"}

    def __init__(self, stream: TextIO, background: Path | None = None) -> None:
        self.missed = 0
        self._stream = stream
        self._background = background
        self._colour = stream.isatty() and not os.environ.get("NO_COLOR")
        self._batches: queue.SimpleQueue[Sequence[Entry] | None] = queue.SimpleQueue()
        self._taken = self._written = 0  # changed by write() and by the stderr thread
        self._thread = threading.Thread(target=self._write_all, name="log-stderr", daemon=True)
        self._thread.start()

    def write(self, entries: Sequence[Entry]) -> None:
        """Passes the events to the thread that writes to stderr.

        If more than ``MAX_KEPT`` events would wait for this thread, drops and counts the rest.
        """
        room = MAX_KEPT - (self._taken - self._written)
        kept = entries[:room]
        self.missed += len(entries) - len(kept)
        if kept:
            self._taken += len(kept)
            self._batches.put(kept)

    def close(self) -> None:
        """Ends the thread after the last event. If the reader of stderr stalls, waits at most
        ``CLOSE_SECS``."""
        self._batches.put(None)
        self._thread.join(CLOSE_SECS)

    def _write_all(self) -> None:
        told = 0
        while (entries := self._batches.get()) is not None:
            text = "".join(map(self._text, entries))
            missed = self.missed
            if missed > told:
                text += f"({missed - told} events are missing here, because stderr was not read)\n"
                told = missed
            self._put(text)
            self._written += len(entries)

    def _put(self, text: str) -> None:
        """Writes to the file descriptor, not to the stream. A blocked write to the stream would hold the
        stream's lock, and so delay the exit of the process."""
        with suppress(OSError, ValueError):  # the reader has left, or the stream is closed
            fd = _descriptor(self._stream)
            if fd is None:
                self._stream.write(text)
                return
            self._rotate(fd)
            rest = memoryview(text.encode("utf-8", "backslashreplace"))
            while rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except BlockingIOError:
                    select.select([], [fd], [])

    def _rotate(self, fd: int) -> None:
        """If stderr is the file ``background`` and the file is too large, renames the file and continues in a
        new file. If stdout is the same file, stdout also continues in the new file.

        Does nothing if stderr is another file, which the user chose.
        """
        if self._background is None or os.fstat(fd).st_size < MAX_BACKGROUND_BYTES:
            return
        before = os.fstat(fd)
        if not os.path.samestat(before, self._background.lstat()):
            return
        self._background.replace(self._background.with_name(f"{self._background.name}.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        new = os.open(self._background, flags, 0o600)
        for descriptor in (1, 2):
            if os.path.samestat(os.fstat(descriptor), before):
                os.dup2(new, descriptor)
        os.close(new)

    def _text(self, entry: Entry) -> str:
        colour = self._COLOURS.get(entry["level"], "2") if self._colour else None
        return short_text(entry, colour) + "\n"


def short_text(entry: Entry, colour: str | None = None) -> str:
    """Returns an event as one line. ``colour`` is the ANSI code of the terminal colour for the event's
    level."""
    from inferd import fastpath  # imported by the thread that writes, as in __init__.py

    head = f"{entry['level'].upper():5}"
    if colour is not None:
        head = f"\x1b[{colour}m{head}\x1b[0m"
    fields = fastpath.joined_fields(dict(entry), _HEAD, _plain)
    msg = entry["msg"] if entry["msg"].isprintable() else repr(entry["msg"])
    return f"{entry['t']} {head} {entry['component']}: {msg}{fields}"


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except OSError:  # a stream in memory has no descriptor
        return None


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if text.isprintable() and _WORD.fullmatch(text) else repr(text)


def _json(value: object) -> str:
    import orjson  # imported by the thread that writes, as in file.py

    return orjson.dumps(value).decode()
