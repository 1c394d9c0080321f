"""The activity log: one event a line, to ``inferd.ndjson`` and as short text to stderr.

The contract of this module:

* A call never blocks and never raises: it puts a record on a queue, and a thread of its own redacts,
  serialises and writes it. Below the level a call costs one comparison; before :func:`setup` all are.
* Every value is redacted before it is serialised, on both sinks. Callers must not log prompts or answers.
* The file is ours alone (0600, never through a symlink) and every line in it is one whole JSON object, also
  after a crash in the middle of a write or of a rotation.
* When the file cannot be written, stderr says so once and gets the events alone until it can.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

import orjson

from inferd.controls import json_escaped
from inferd.errors import ConfigError
from inferd.private import make_private_dirs
from inferd.redaction import marker_of_name, redact

FILE_NAME = "inferd.ndjson"
MAX_FILE_BYTES = 16 * 1024 * 1024
KEPT_FILES = 3
MAX_VALUE_CHARS = 8192  # a longer value is a mistake of the caller; the log must stay readable
MAX_QUEUED = 16384  # a disk that stalls must not turn into memory
CLOSE_SECS = 2.0
# Each wake-up of the log thread costs the event loop the interpreter lock, so under load it writes many
# records at a time. What a killed daemon can lose is this much of its log.
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

Record = tuple[float, int, str, str, Mapping[str, object]]  # Unix time, level, component, message, fields


def parse_level(text: str) -> int:
    """The number of a level name; ``0`` means ``off``. Raises ConfigError for any other text."""
    level = LEVELS.get("off" if text.strip() == "0" else text.strip().lower())
    if level is None:
        raise ConfigError(f"log level {text!r} is unknown; use one of {', '.join(LEVELS)}")
    return level


def _clean(value: object, name: str = "") -> Any:
    """A redacted copy of ``value`` that orjson can serialise; ``name`` is the key that it stands under."""
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
    """The name of an event; there are as many as there are calls in the code."""
    cleaned: str = _clean(msg)
    return cleaned


class Log:
    """The events of one component. ``msg`` is the event's name; fields are its data."""

    __slots__ = ("component",)

    def __init__(self, component: str) -> None:
        self.component = component

    def error(self, msg: str, /, **fields: object) -> None:
        """Something failed and somebody has to act."""
        if _active.level <= ERROR:
            _active.put((time.time(), ERROR, self.component, msg, fields))

    def warn(self, msg: str, /, **fields: object) -> None:
        """Something is not as it should be; the daemon goes on."""
        if _active.level <= WARN:
            _active.put((time.time(), WARN, self.component, msg, fields))

    def info(self, msg: str, /, **fields: object) -> None:
        """What an operator wants to read later."""
        if _active.level <= INFO:
            _active.put((time.time(), INFO, self.component, msg, fields))

    def debug(self, msg: str, /, **fields: object) -> None:
        """What a developer wants to read."""
        if _active.level <= DEBUG:
            _active.put((time.time(), DEBUG, self.component, msg, fields))


def get(component: str) -> Log:
    """The log of a component, e.g. ``get("session")``; usable at any time, silent before :func:`setup`."""
    return Log(component)


class ActivityLog:
    """The running log; :meth:`close` writes what is queued and makes every :class:`Log` silent again."""

    def __init__(self, level: int, sinks: Sequence[_Sink]) -> None:
        self.level = level
        self._sinks = sinks
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Takes the place of the log that was active."""
        global _active
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()
        _active = self

    def put(self, record: Record) -> None:
        """Past the limit a record is counted instead of kept."""
        if self._records.qsize() < MAX_QUEUED:
            self._records.put(record)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Idempotent. Gives up on a sink that is stuck (a full pipe)."""
        global _active
        if self._thread is None:
            return
        if _active is self:
            _active = _SILENT
        self._records.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECS)
        self._thread = None
        for sink in self._sinks:
            sink.close()

    def _write_all(self) -> None:
        told = 0
        ended = False
        while not ended:
            records = [self._records.get()]
            self._closing.wait(LINGER_SECS)
            with suppress(queue.Empty):
                while True:
                    records.append(self._records.get_nowait())
            ended = records[-1] is None
            entries = [_entry(record) for record in records if record is not None]
            dropped = self._dropped
            if dropped > told:
                count: Mapping[str, object] = {"count": dropped - told}
                entries.append(_entry((time.time(), WARN, "log", "records_dropped", count)))
                told = dropped
            for sink in self._sinks if entries else ():
                sink.write(entries)


_SILENT = ActivityLog(OFF, ())
_active = _SILENT


def _entry(record: Record) -> dict[str, Any]:
    created, level, component, msg, fields = record
    entry: dict[str, Any] = {
        "t": _timestamp(created),
        "level": _NAMES[level],
        "component": component,
        "msg": _clean_name(msg),
    }
    try:
        for name, value in fields.items():
            entry.setdefault(name, _clean(value, name))
    except Exception as error:  # a value that cannot be rendered must not end the log
        unwritable = {"event": msg, "reason": type(error).__name__}
        return _entry((created, ERROR, "log", "record_unwritable", unwritable))
    return entry


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


class _Sink(Protocol):
    def write(self, entries: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self) -> None: ...


class _TextSink:
    """Short text for people; control characters in values are escaped, so no value can move a terminal."""

    _COLOURS: ClassVar = {"error": "31", "warn": "33", "info": "32"}

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty() and "NO_COLOR" not in os.environ

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr any more
            self._stream.write("".join(map(self._text, entries)))
            self._stream.flush()

    def close(self) -> None:
        """The stream is not ours to close."""

    def _text(self, entry: Mapping[str, Any]) -> str:
        level = entry["level"]
        head = f"{level.upper():5}"
        if self._colour:
            head = f"\x1b[{self._COLOURS.get(level, '2')}m{head}\x1b[0m"
        fields = "".join(
            f" {name}={_plain(value)}"
            for name, value in entry.items()
            if name not in _HEAD and value is not None
        )
        msg = entry["msg"] if entry["msg"].isprintable() else repr(entry["msg"])
        return f"{entry['t']} {head} {entry['component']}: {msg}{fields}\n"


_HEAD = frozenset(("t", "level", "component", "msg"))
_WORD = re.compile(r"""[^ "']+""")


def _plain(value: object) -> str:
    if type(value) is int or type(value) is float:
        return repr(value)
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if text.isprintable() and _WORD.fullmatch(text) else repr(text)


def _line(entry: Mapping[str, Any]) -> bytes:
    """``entry`` as a line of the file, which people read with ``tail`` and ``cat``."""
    line = orjson.dumps(entry)
    return (line if line.isascii() else json_escaped(line.decode()).encode()) + b"\n"


class _FileSink:
    """NDJSON with rotation. The file's inode and size are looked up before each write, so that a file which
    was moved away, deleted or filled by another process is handled like our own rotation."""

    def __init__(self, directory: Path, complain: _Sink) -> None:
        self._path = directory / FILE_NAME
        self._complain = complain
        self._fd = -1
        self._failed = False

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._append([_line(entry) for entry in entries])
            self._failed = False
        except OSError as error:
            self.close()
            if not self._failed:
                self._failed = True
                reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
                problem = {
                    "t": _timestamp(time.time()),
                    "level": "warn",
                    "component": "log",
                    "msg": "the activity log cannot be written, events go to stderr only",
                    "path": str(self._path),
                    "reason": reason,
                }
                self._complain.write((problem,))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, lines: Sequence[bytes]) -> None:
        size = self._ready()
        fitting = bytearray()
        for line in lines:
            if size and size + len(line) > MAX_FILE_BYTES:
                self._put(fitting)
                fitting.clear()
                self._rotate()
                size = self._ready()
            fitting += line
            size += len(line)
        self._put(fitting)

    def _put(self, data: bytearray) -> None:
        written = 0
        while written < len(data):
            written += os.write(self._fd, memoryview(data)[written:])

    def _ready(self) -> int:
        """Make sure that our descriptor is the file at the path; its size."""
        if self._fd >= 0:
            ours = os.fstat(self._fd)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(self._path), ours):
                    return ours.st_size
            self.close()
        make_private_dirs(self._path.parent)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o600)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(self._fd, 0o600)
        if found.st_size and os.pread(self._fd, 1, found.st_size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a crash cut the last line; ours must not be glued to it
        return found.st_size

    def _rotate(self) -> None:
        # From the oldest on, each step a rename: a crash between two leaves a gap, which the next one fills.
        self.close()
        gap = next((n for n in range(1, KEPT_FILES) if not self._numbered(n).exists()), KEPT_FILES)
        for number in range(gap, 0, -1):
            with suppress(FileNotFoundError):
                self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{FILE_NAME}.{number}") if number else self._path


def setup(level: str, directory: Path | None, stderr: bool = True) -> ActivityLog:
    """Start writing events of ``level`` and above: to ``directory``/inferd.ndjson unless it is ``None``, and
    to stderr. One at a time in a process. Raises ConfigError for an unknown level."""
    number = parse_level(level)
    text = _TextSink(sys.stderr)
    sinks: list[_Sink] = [text] if stderr else []
    if directory is not None:
        sinks.append(_FileSink(directory, text))
    activity = ActivityLog(number, sinks)
    activity.start()
    return activity
