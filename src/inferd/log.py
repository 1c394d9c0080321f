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
import logging
import os
import queue
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

import orjson

from inferd.errors import ConfigError
from inferd.redaction import marker_of_name, redact

FILE_NAME = "inferd.ndjson"
MAX_FILE_BYTES = 16 * 1024 * 1024
KEPT_FILES = 3
MAX_VALUE_CHARS = 8192  # a longer value is a mistake of the caller; the log must stay readable
MAX_QUEUED = 16384  # a disk that stalls must not turn into memory
CLOSE_SECS = 2.0

TRACE = 5
OFF = logging.CRITICAL + 10
LEVELS: Mapping[str, int] = {
    "off": OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
_NAMES = {number: name for name, number in LEVELS.items()}

_root = logging.getLogger("inferd")
_root.propagate = False
_root.setLevel(OFF)


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


class Log:
    """The events of one component. ``msg`` is the event's name; fields are its data."""

    __slots__ = ("_logger", "component")

    def __init__(self, component: str) -> None:
        self.component = component
        self._logger = logging.getLogger(f"inferd.{component.replace('.', '-')}")

    def enabled(self, level: str) -> bool:
        """Whether an event of ``level`` would be written; for fields that cost something to gather."""
        return self._logger.isEnabledFor(LEVELS[level])

    def error(self, msg: str, /, **fields: object) -> None:
        """Something failed and somebody has to act."""
        self._put(logging.ERROR, msg, fields)

    def warn(self, msg: str, /, **fields: object) -> None:
        """Something is not as it should be; the daemon goes on."""
        self._put(logging.WARNING, msg, fields)

    def info(self, msg: str, /, **fields: object) -> None:
        """What an operator wants to read later."""
        self._put(logging.INFO, msg, fields)

    def debug(self, msg: str, /, **fields: object) -> None:
        """What a developer wants to read."""
        self._put(logging.DEBUG, msg, fields)

    def trace(self, msg: str, /, **fields: object) -> None:
        """The finest grain."""
        self._put(TRACE, msg, fields)

    def _put(self, level: int, msg: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.handle(_record(self._logger.name, level, self.component, msg, fields))


def get(component: str) -> Log:
    """The log of a component, e.g. ``get("session")``; usable at any time, silent before :func:`setup`."""
    return Log(component)


def _record(name: str, level: int, component: str, msg: str, fields: dict[str, object]) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, msg, None, None)
    record.component = component
    record.fields = fields
    return record


class _Queue(QueueHandler):
    """The side of the caller. Past the limit a record is counted instead of kept."""

    def __init__(self, records: queue.SimpleQueue[Any]) -> None:
        super().__init__(records)
        self.records = records
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.records.qsize() < MAX_QUEUED:
            self.records.put(record)
        else:
            self.dropped += 1


class _Writer(QueueListener):
    """The side of the log thread: cleans each record once and gives it to the sinks."""

    def __init__(self, source: _Queue, sinks: list[_Sink]) -> None:
        super().__init__(source.records)
        self._source = source
        self._sinks = sinks
        self._dropped = 0

    def handle(self, record: logging.LogRecord) -> None:
        dropped = self._source.dropped
        if dropped > self._dropped:
            count, self._dropped = dropped - self._dropped, dropped
            self._write(_record("", logging.WARNING, "log", "records_dropped", {"count": count}))
        try:
            self._write(record)
        except Exception as error:  # a value that cannot be rendered must not end the log
            fields: dict[str, object] = {"event": record.msg, "reason": type(error).__name__}
            self._write(_record("", logging.ERROR, "log", "record_unwritable", fields))

    def stop(self) -> None:
        """Write what is queued and end the thread; give up on a sink that is stuck (a full pipe)."""
        thread = self._thread
        if thread is not None:
            self.enqueue_sentinel()
            thread.join(CLOSE_SECS)
            self._thread = None

    def _write(self, record: logging.LogRecord) -> None:
        entry: dict[str, Any] = {
            "t": _timestamp(record.created),
            "level": _NAMES[record.levelno],
            "component": record.__dict__["component"],
            "msg": _clean(record.msg),
        }
        for name, value in record.__dict__["fields"].items():
            entry.setdefault(name, _clean(value, name))
        for sink in self._sinks:
            sink.write(entry)


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


class _Sink(Protocol):
    def write(self, entry: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class _TextSink:
    """Short text for people; control characters in values are escaped, so no value can move a terminal."""

    _COLOURS: ClassVar = {"error": "31", "warn": "33", "info": "32"}

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty() and "NO_COLOR" not in os.environ

    def write(self, entry: Mapping[str, Any]) -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr any more
            self._stream.write(self._text(entry))
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


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if text.isprintable() and text and not set(" \"'") & set(text) else repr(text)


class _FileSink:
    """NDJSON with rotation. The file's inode and size are looked up before each write, so that a file which
    was moved away, deleted or filled by another process is handled like our own rotation."""

    def __init__(self, directory: Path, complain: _Sink) -> None:
        self._path = directory / FILE_NAME
        self._complain = complain
        self._fd = -1
        self._failed = False

    def write(self, entry: Mapping[str, Any]) -> None:
        try:
            self._append(orjson.dumps(entry) + b"\n")
            self._failed = False
        except OSError as error:
            self.close()
            if not self._failed:
                self._failed = True
                reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
                self._complain.write(
                    {
                        "t": entry["t"],
                        "level": "warn",
                        "component": "log",
                        "msg": "the activity log cannot be written, events go to stderr only",
                        "path": str(self._path),
                        "reason": reason,
                    }
                )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: bytes) -> None:
        size = self._ready()
        if size and size + len(line) > MAX_FILE_BYTES:
            self._rotate()
            self._ready()
        view = memoryview(line)
        while view:
            view = view[os.write(self._fd, view) :]

    def _ready(self) -> int:
        """Make sure that our descriptor is the file at the path; its size."""
        if self._fd >= 0:
            ours = os.fstat(self._fd)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(self._path), ours):
                    return ours.st_size
            self.close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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


class ActivityLog:
    """The running log; :meth:`close` writes what is queued and makes every :class:`Log` silent again."""

    def __init__(self, level: int, sinks: list[_Sink]) -> None:
        self._sinks = sinks
        self._handler = _Queue(queue.SimpleQueue())
        self._writer = _Writer(self._handler, sinks)
        self._writer.start()
        _root.addHandler(self._handler)
        _root.setLevel(level)

    def close(self) -> None:
        """Idempotent."""
        if self._handler in _root.handlers:
            _root.setLevel(OFF)
            _root.removeHandler(self._handler)
            self._writer.stop()
            for sink in self._sinks:
                sink.close()


def setup(level: str, directory: Path | None, stderr: bool = True) -> ActivityLog:
    """Start writing events of ``level`` and above: to ``directory``/inferd.ndjson unless it is ``None``, and
    to stderr. One at a time in a process. Raises ConfigError for an unknown level."""
    number = parse_level(level)
    text = _TextSink(sys.stderr)
    sinks: list[_Sink] = [text] if stderr else []
    if directory is not None:
        sinks.append(_FileSink(directory, text))
    return ActivityLog(number, sinks)
