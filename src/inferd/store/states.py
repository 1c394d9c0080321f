"""Keeps the KV caches of earlier prompts in files, across restarts of the daemon.

A file has a head and a state: the bytes of one KV cache. The text of a prompt can be rebuilt from its KV
cache. So the directory has mode 0700, and its files have mode 0600. The head names the model, the build and
the context of the state, and the user who owns the state (``scope``). Two authentication codes protect a file
(HMAC-SHA256, with a key that is stored in the directory). The first code covers the head, and is checked when
the directory is opened. The second code covers the whole file, and is checked before the state is used. A
file that is damaged, cut short, or made with another key is never used. The daemon removes the file, and
counts the removal in ``removed``.

A file is written under a temporary name and renamed when it is complete. If a daemon is killed, the next
daemon removes the temporary files. All files together stay within a budget of bytes: the least recently used
files are removed. Several daemons may share a directory, since each daemon tolerates that another daemon
removes files.

An engine process has no access to the directory. The daemon passes descriptors to the engine process, for one
file at a time. Every method of :class:`StateFiles` blocks, so call it in a thread. The methods are
thread-safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import threading
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inferd import log
from inferd.store.runtime import ensure_private_dir

MAGIC = b"inferds1"
MAX_HEAD_BYTES = 8 << 20
MAX_FILES = 256
"""The largest number of files of one backend. The number is limited because the engine process keeps the
tokens of each file in memory."""
FREE_BYTES = 1 << 30
"""The disk space that is left free for other programs."""

_SUFFIX, _TEMP, _KEY = ".state", ".part", "key"
_MAC_BYTES = 32
_CHUNK_BYTES = 1 << 20

_log = log.get("cache")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a file. ``owner`` is the name of the backend's config entry. ``made_by`` identifies the
    model, the build and the context. ``tokens`` are the ids of the prompt's tokens, 32-bit little-endian.
    ``size`` is the size of the state in bytes."""

    owner: str
    made_by: str
    scope: bytes
    session: bytes
    tokens: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the cache. ``number`` identifies the file within this process. The state begins at
    ``offset``."""

    number: int
    path: Path
    head: Head
    offset: int

    @property
    def bytes(self) -> int:
        return self.offset + self.head.size + _MAC_BYTES


class StateFiles:
    """The files in ``directory``, which together take at most ``budget`` bytes. Raises StoreError or OSError
    if the directory cannot be used, for example because it belongs to another user."""

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory = directory
        self._budget = budget
        self._lock = threading.Lock()
        self._files: dict[int, Kept] = {}
        self._last = 0
        self._unfinished = 0
        """The bytes of the files that are being written."""
        self.removed = 0
        """The number of removed files: damaged, cut short, or made with another key."""
        ensure_private_dir(directory)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            directory.chmod(0o700)
        self._key = _key(directory / _KEY)
        self._sweep()
        for path in _by_use(directory):
            self._look(path)
        self._make_room(0)

    def files(self) -> list[Kept]:
        with self._lock:
            return list(self._files.values())

    def of(self, owner: str, made_by: str) -> tuple[list[Kept], list[Kept]]:
        """Returns two lists of files of ``owner``: the usable files, whose ``made_by`` is the given one, and
        the outdated files. Removes the outdated files."""
        with self._lock:
            own = [kept for kept in self._files.values() if kept.head.owner == owner]
            usable = [kept for kept in own if kept.head.made_by == made_by]
            outdated = [kept for kept in own if kept.head.made_by != made_by]
            for kept in outdated:
                self._remove(kept)
            return usable, outdated

    def fetch(self, number: int, owner: str) -> tuple[int, int, int] | None:
        """Opens a file of ``owner``. Returns the file's descriptor, and the offset and size of its state.
        Returns ``None`` if the file is missing, damaged, or of another owner."""
        with self._lock:
            kept = self._files.get(number)
        if kept is None or kept.head.owner != owner:
            return None
        try:
            fd = os.open(kept.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._forget(kept)
            return None
        try:
            sound = self._is_sound(fd, kept)
            if sound:
                with contextlib.suppress(OSError):
                    os.utime(fd)
        except OSError:
            sound = False
        if not sound:
            os.close(fd)
            self._discard(kept.path)
            self._forget(kept)
            return None
        return fd, kept.offset, kept.head.size

    def save(self, head: Head, fd: int, replaces: Iterable[int] = ()) -> tuple[int, list[int]]:
        """Copies the state from the open file ``fd`` to a new file with the head ``head``. The new file
        replaces those files in ``replaces`` that have the same owner as the new file. Other files may be
        removed to make room. Returns the number of the new file, and the numbers of the removed files. The
        number of the new file is 0 if the state was not stored."""
        packed = msgspec.msgpack.encode(head)
        whole = len(MAGIC) + 4 + len(packed) + 2 * _MAC_BYTES + head.size
        if len(packed) > MAX_HEAD_BYTES or whole > self._budget or os.fstat(fd).st_size != head.size:
            return 0, []
        with self._lock:
            if self._unfinished + whole > self._budget:
                return 0, []
            own = {n for n in replaces if n in self._files and self._files[n].head.owner == head.owner}
            gone = self._make_room(whole, head.owner, own)
            self._unfinished += whole
        path = None
        try:
            free = os.statvfs(self._directory)
            if free.f_bavail * free.f_frsize >= whole + FREE_BYTES:
                path = self._write(packed, fd, head.size)
        except OSError as error:
            _log.warn("cache_not_saved", error=error.strerror)
        with self._lock:
            self._unfinished -= whole
            if path is None:
                return 0, gone
            kept = self._add(path, head, whole - head.size - _MAC_BYTES)
            for number in own & self._files.keys():
                self._remove(self._files[number])
                gone.append(number)
        return kept.number, gone

    # Writing.

    def _write(self, packed: bytes, fd: int, size: int) -> Path:
        """Writes a file, and renames it when it is complete. If the engine process changes the content of
        ``fd`` during the copy, a wrong state is stored. This state can later reach only the engine of the
        same backend."""
        name = secrets.token_hex(12)
        temp, path = self._directory / (name + _TEMP), self._directory / (name + _SUFFIX)
        out = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(out, fcntl.LOCK_EX)  # keeps other daemons from removing the file as a leftover
            start = MAGIC + len(packed).to_bytes(4, "little") + packed
            head_code = hmac.digest(self._key, start, "sha256")
            _write_all(out, start + head_code)
            mac = hmac.new(self._key, head_code, hashlib.sha256)
            for chunk in _chunks(fd, 0, size):
                mac.update(chunk)
                _write_all(out, chunk)
            _write_all(out, mac.digest())
            temp.rename(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(out)
        return path

    def _make_room(self, size: int, owner: str = "", replaced: Container[int] = ()) -> list[int]:
        """Removes files until a new file of ``size`` bytes fits into the budget, and ``owner`` has fewer than
        MAX_FILES files. Removes first the ``replaced`` files, then the least recently used files. Returns the
        numbers of the removed files."""
        gone = []
        total = self._unfinished + sum(kept.bytes for kept in self._files.values())
        own = sum(kept.head.owner == owner for kept in self._files.values())
        for kept in sorted(self._files.values(), key=lambda kept: (kept.number not in replaced, _used(kept))):
            full = total + size > self._budget
            if full or (own >= MAX_FILES and kept.head.owner == owner):
                self._remove(kept)
                gone.append(kept.number)
                total -= kept.bytes
                own -= kept.head.owner == owner
        return gone

    # Reading.

    def _look(self, path: Path) -> None:
        """Adds the file ``path`` to the list if the authentication code of its head is valid, or else removes
        the file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._discard(path)
            return
        try:
            found = self._read_head(fd)
        except (OSError, msgspec.MsgspecError):
            found = None
        finally:
            os.close(fd)
        if found is None:
            self._discard(path)
        else:
            self._add(path, *found)

    def _read_head(self, fd: int) -> tuple[Head, int] | None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            return None
        start = os.pread(fd, len(MAGIC) + 4, 0)
        length = int.from_bytes(start[len(MAGIC) :], "little")
        if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC) or length > MAX_HEAD_BYTES:
            return None
        rest = os.pread(fd, length + _MAC_BYTES, len(start))
        packed, mac = rest[:length], rest[length:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, start + packed, "sha256")):
            return None
        head = msgspec.msgpack.decode(packed, type=Head)
        offset = len(start) + len(rest)
        return (head, offset) if status.st_size == offset + head.size + _MAC_BYTES else None

    def _is_sound(self, fd: int, kept: Kept) -> bool:
        """Whether the head of the file is unchanged since the file was listed, and the authentication code of
        the whole file is valid."""
        found = self._read_head(fd)
        if found is None or found[0] != kept.head:
            return False
        mac = hmac.new(self._key, os.pread(fd, _MAC_BYTES, kept.offset - _MAC_BYTES), hashlib.sha256)
        for chunk in _chunks(fd, kept.offset, kept.head.size):
            mac.update(chunk)
        written = os.pread(fd, _MAC_BYTES, kept.offset + kept.head.size)
        return hmac.compare_digest(mac.digest(), written)

    # The list.

    def _add(self, path: Path, head: Head, offset: int) -> Kept:
        self._last += 1
        kept = self._files[self._last] = Kept(self._last, path, head, offset)
        return kept

    def _remove(self, kept: Kept) -> None:
        del self._files[kept.number]
        with contextlib.suppress(OSError):
            kept.path.unlink()

    def _forget(self, kept: Kept) -> None:
        with self._lock:
            self._files.pop(kept.number, None)

    def _discard(self, path: Path) -> None:
        self.removed += 1
        _log.warn("cache_file_removed", file=path.name)
        with contextlib.suppress(OSError):
            path.unlink()

    def _sweep(self) -> None:
        """Removes the temporary files that were left by killed daemons."""
        for path in self._directory.glob(f"*{_TEMP}"):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(fd)


def usage(directory: Path) -> list[os.stat_result]:
    """Returns the attributes of each file in ``directory``. ``st_mtime`` is the time of the file's last
    use."""
    found = []
    for path in _by_use(directory):
        with contextlib.suppress(OSError):
            found.append(path.lstat())
    return found


def clear(directory: Path) -> int:
    """Removes all cache files in ``directory``, and returns their number. A running daemon tolerates the
    removal."""
    count = 0
    for path in _by_use(directory):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            count += 1
    return count


def _by_use(directory: Path) -> list[Path]:
    """Returns the paths of the cache files in the order of their last use, the least recently used first."""
    found = []
    for path in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            found.append((path.lstat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def _used(kept: Kept) -> int:
    try:
        return kept.path.lstat().st_mtime_ns
    except OSError:
        return 0


def _key(path: Path) -> bytes:
    """Returns the key in the file ``path``. Creates a new key if the file is missing, invalid, or accessible
    to other users."""
    for _ in range(3):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        else:
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                key = file.read(_MAC_BYTES + 1)
            others = stat.S_IMODE(status.st_mode) & 0o077
            if len(key) == _MAC_BYTES and not others and status.st_uid == os.getuid():
                return key
            path.unlink()
        temp = path.with_name(secrets.token_hex(12) + _TEMP)
        out = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(out, secrets.token_bytes(_MAC_BYTES))
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another daemon was quicker
                path.hardlink_to(temp)
        finally:
            os.close(out)
            temp.unlink(missing_ok=True)
    return path.read_bytes()


def _chunks(fd: int, offset: int, size: int) -> Iterator[memoryview]:
    """Yields ``size`` bytes of a file, from ``offset``, in chunks. Raises OSError if the file ends
    earlier."""
    buffer = memoryview(bytearray(min(size, _CHUNK_BYTES)))
    end = offset + size
    while offset < end:
        count = os.preadv(fd, [buffer[: end - offset]], offset)
        if count == 0:
            raise OSError("the state ends early")
        yield buffer[:count]
        offset += count


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
