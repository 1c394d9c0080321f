"""The activity log. Each event is a line of JSON in ``inferd.ndjson`` and a line of short text on stderr.

The contract of this module:

* Logging an event never blocks and never raises: the call puts a record on a queue. A separate thread
  redacts, serialises and writes the record. For an event below the log level, a call only compares two
  numbers. Before :func:`setup`, no event is logged.
* Every value is redacted before it is written to the file or to stderr. Callers must not log prompts or
  answers.
* Writing to the file never waits for stderr. If the reader of stderr stalls, events are dropped from stderr.
  The file and stderr then report the number of the dropped events.
* If the file cannot be written, one line on stderr reports the failure. Until the file can be written again,
  the events go only to stderr.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from inferd.errors import ConfigError
from inferd.log.file import FILE_NAME as FILE_NAME
from inferd.log.file import FileSink
from inferd.log.text import BACKGROUND_NAME, TextSink
from inferd.redaction import SHORTEST_SECRET, marker_of_name, redact

MAX_VALUE_CHARS = 8192  # a longer value is a mistake of the caller; the log must stay readable
MAX_QUEUED = 16384  # while the disk stalls, the queue must not grow without limit
CLOSE_SECS = 2.0
COUNT_EACH_SECS = 60.0
# Each wake-up of the log thread takes the interpreter lock from the event loop, so under load the thread
# writes many records at a time. A killed daemon can lose the records of this time.
LINGER_SECS = 0.02

TRACE, DEBUG, INFO, WARN, ERROR, OFF = range(6)
LEVELS: Mapping[str, int] = {
    "off": OFF,
    "error": ERROR,
    "warn": WARN,
    "info": INFO,
    "debug": DEBUG,
    "trace": TRACE,
}
_NAMES = {number: name for name, number in LEVELS.items()}

Record = tuple[float, int, str, str, Mapping[str, object]]  # Unix time, level, component, event, fields


def parse_level(text: str) -> int:
    """Returns the number of the level with the name ``text``. The name ``0`` means ``off``. Raises
    ConfigError for an unknown name."""
    level = LEVELS.get("off" if text.strip() == "0" else text.strip().lower())
    if level is None:
        raise ConfigError(f"log level {text!r} is unknown; use one of {', '.join(LEVELS)}")
    return level


def _clean(value: object, name: str = "") -> Any:
    """Returns a redacted copy of ``value`` that orjson can serialise. ``name`` is the name of the field that
    has this value."""
    if type(value) is str and len(value) < SHORTEST_SECRET and value.isalnum() and value.isascii():
        marker = marker_of_name(name)
        return value if marker is None else marker
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item, name) for item in value]
    marker = marker_of_name(name)
    if marker is not None:
        return marker
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    text = redact(str(value)).encode("utf-8", "backslashreplace").decode()
    if len(text) > MAX_VALUE_CHARS:
        text = f"{text[:MAX_VALUE_CHARS]}… ({len(text)} characters)"
    return text


@lru_cache(maxsize=1024)
def _clean_name(msg: str) -> str:
    """Returns the redacted name of an event. The code contains few names, so the results are cached."""
    cleaned: str = _clean(msg)
    return cleaned


class Log:
    """Logs the events of one component. ``msg`` is the name of the event, and ``fields`` are its data."""

    __slots__ = ("component",)

    def __init__(self, component: str) -> None:
        self.component = component

    def error(self, msg: str, /, **fields: object) -> None:
        """Logs a failure that needs an action of the operator."""
        if _active.level <= ERROR:
            _active.put((time.time(), ERROR, self.component, msg, fields))

    def warn(self, msg: str, /, **fields: object) -> None:
        """Logs an unexpected state in which the daemon continues to serve."""
        if _active.level <= WARN:
            _active.put((time.time(), WARN, self.component, msg, fields))

    def info(self, msg: str, /, **fields: object) -> None:
        """Logs an event for the operator."""
        if _active.level <= INFO:
            _active.put((time.time(), INFO, self.component, msg, fields))

    def debug(self, msg: str, /, **fields: object) -> None:
        """Logs an event for a developer."""
        if _active.level <= DEBUG:
            _active.put((time.time(), DEBUG, self.component, msg, fields))


def get(component: str) -> Log:
    """Returns the log of a component. For example, ``get("session")`` returns the log of the component
    ``session``. Before :func:`setup`, the log ignores all events."""
    return Log(component)


def level() -> int:
    """Returns the current log level. Events below this level are not written."""
    return _active.level


def relay(level: int, component: str, msg: str, fields: Mapping[str, object]) -> None:
    """Logs an event of another process of this daemon."""
    if _active.level <= level < OFF:
        _active.put((time.time(), level, component, msg, fields))


def pass_on(level: int, take: Callable[[Record], None]) -> None:
    """Makes this process pass each event to ``take`` instead of writing the event. ``take`` runs in the
    thread that logs the event. Another process then writes the event."""
    global _active
    _active = _Passing(level, take)


class ActivityLog:
    """The log of this process. :meth:`close` writes the queued events and ends all logging.

    ``text`` reports the errors of ``file``. If ``shown`` is true, ``text`` also shows the events.
    """

    def __init__(
        self,
        level: int,
        text: TextSink | None = None,
        file: FileSink | None = None,
        shown: bool = False,
    ) -> None:
        self.level = level
        self._shown = shown
        self._text = text
        self._file = file
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the log's thread, and makes this log the log of the process."""
        global _active
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()
        _active = self

    def put(self, record: Record) -> None:
        """Queues a record. If ``MAX_QUEUED`` records are waiting, drops and counts the new record."""
        if self._records.qsize() < MAX_QUEUED:
            self._records.put(record)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Writes the queued events and ends the log.

        If writing to the disk or to stderr blocks, waits at most ``CLOSE_SECS`` for each of them. A second
        call does nothing.
        """
        global _active
        if self._thread is None:
            return
        if _active is self:
            _active = _SILENT
        self._records.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECS)
        self._thread = None
        if self._text is not None:
            self._text.close()
        if self._file is not None:
            self._file.close()

    def _write_all(self) -> None:
        dropped, missed, ended = Count("records_dropped"), Count("records_not_shown"), False
        while not ended:
            records = [self._records.get()]
            self._closing.wait(LINGER_SECS)
            with suppress(queue.Empty):
                while True:
                    records.append(self._records.get_nowait())
            ended = records[-1] is None
            entries = [_entry(record) for record in records if record is not None]
            entries += dropped.entries(self._dropped, at_once=True)
            if self._text is not None and self._shown:
                self._text.write(entries)
                entries += missed.entries(self._text.missed, at_once=ended)
            if self._file is not None and entries:
                self._file.write(entries)


class Count:
    """Reports a growing number as events. Each event contains the increase since the last event."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._told = 0
        self._due = 0.0

    def entries(self, now: int, *, at_once: bool) -> list[dict[str, Any]]:
        """Returns a list of the one event to log now, or an empty list. ``now`` is the current count. The
        list is empty if ``now`` equals the last reported count. Unless ``at_once`` is true, the list is also
        empty if the last event is less than ``COUNT_EACH_SECS`` old."""
        if now == self._told or not (at_once or time.monotonic() >= self._due):
            return []
        count, self._told, self._due = now - self._told, now, time.monotonic() + COUNT_EACH_SECS
        return [_entry((time.time(), WARN, "log", self._event, {"count": count}))]


class _Passing(ActivityLog):
    def __init__(self, level: int, take: Callable[[Record], None]) -> None:
        super().__init__(level)
        self._take = take

    def put(self, record: Record) -> None:
        self._take(record)


_SILENT = ActivityLog(OFF)
_active: ActivityLog = _SILENT


def _entry(record: Record) -> dict[str, Any]:
    from inferd import fastpath  # imported by the thread that writes: most commands have no log

    created, level, component, msg, fields = record
    entry: dict[str, Any] = {
        "t": _timestamp(created),
        "level": _NAMES[level],
        "component": component,
        "msg": _clean_name(msg),
    }
    try:
        fastpath.add_fields(entry, dict(fields), _clean)
    except Exception as error:  # a value that cannot be rendered must not end the log
        unwritable = {"event": msg, "reason": type(error).__name__}
        return _entry((created, ERROR, "log", "record_unwritable", unwritable))
    return entry


def _timestamp(seconds: float) -> str:
    """Returns a Unix time as text, in UTC in the format of RFC 3339, with milliseconds."""
    whole = int(seconds)
    return f"{_whole_seconds(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)  # records are in order of time, and under load one second has many
def _whole_seconds(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def setup(level: str, directory: Path | None, stderr: bool = True) -> ActivityLog:
    """Starts the log for events of ``level`` and above. The events are written to inferd.ndjson in
    ``directory``, unless ``directory`` is ``None``. If ``stderr`` is true, the events are also written to
    stderr.

    A process has one log at a time. Raises ConfigError for an unknown level.
    """
    number = parse_level(level)
    text = TextSink(sys.stderr, None if directory is None else directory / BACKGROUND_NAME)

    def complain(fields: Mapping[str, object]) -> None:
        event = "the activity log cannot be written, events go to stderr only"
        text.write([_entry((time.time(), WARN, "log", event, fields))])

    file = None if directory is None else FileSink(directory, complain)
    activity = ActivityLog(number, text, file, shown=stderr)
    activity.start()
    return activity
