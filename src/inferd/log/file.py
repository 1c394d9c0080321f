"""The file of the activity log: NDJSON with rotation.

Only this user can read the file (mode 0600). If a symbolic link has the file's name, nothing is written. Each
record is a JSON object on a line of its own, even if a crash cut off the line before it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from inferd.controls import json_escaped
from inferd.private import make_private_dirs

FILE_NAME = "inferd.ndjson"
MAX_FILE_BYTES = 16 * 1024 * 1024
KEPT_FILES = 3


def _line(entry: Mapping[str, Any]) -> bytes:
    """Encodes ``entry`` as a line. Escapes control characters, which ``tail`` and ``cat`` would send to the
    terminal."""
    import orjson  # imported by the thread that writes, so that the daemon's start need not wait

    line = orjson.dumps(entry)
    return (line if line.isascii() else json_escaped(line.decode()).encode()) + b"\n"


class FileSink:
    """Writes NDJSON and rotates the file. Each write first looks up the inode and the size of the file,
    because another process may have moved, deleted or extended the file."""

    def __init__(self, directory: Path, complain: Callable[[Mapping[str, Any]], None]) -> None:
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
                self._complain({"path": str(self._path), "reason": reason})

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
        try:
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError:  # the disk is full: remove the part of a line that was written
            cut = written - (data.rfind(b"\n", 0, written) + 1)
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - cut)
            raise

    def _ready(self) -> int:
        """Opens the file, unless the open descriptor still refers to the file at the path. Returns the size
        of the file in bytes."""
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
            os.write(self._fd, b"\n")  # a crash cut the last line; the next record must begin a new line
        return found.st_size

    def _rotate(self) -> None:
        # The files are renamed one by one, the oldest first. A crash in between leaves a gap, which the next
        # rotation fills.
        self.close()
        gap = next((n for n in range(1, KEPT_FILES) if not self._numbered(n).exists()), KEPT_FILES)
        for number in range(gap, 0, -1):
            with suppress(FileNotFoundError):
                self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{FILE_NAME}.{number}") if number else self._path
