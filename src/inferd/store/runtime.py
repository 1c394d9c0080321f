"""Private directories, and locks between processes.

A lock is an ``flock`` on a file. The file is never unlinked: after an unlink, two processes could hold the
same lock on two different files. The kernel releases the lock when the process ends or crashes. The file
contains the pid of the process that holds the lock. The pid is used only for display and for the wait in
:func:`_take`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inferd import private
from inferd.errors import BootCancelled, LockHeld, StoreError

LOOK_SECS = 0.5  # far longer than `is_held` holds its shared lock
POLL_SECS = 0.1  # the longest time until a wait notices a cancellation


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Turns an OSError of the ``with`` block into a StoreError with the message ``cannot WHAT: REASON;
    ADVICE``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot {what}: {reason}{f'; {advice}' if advice else ''}") from error


def make_private_dir(path: Path) -> None:
    """Creates ``path`` and its missing parents with mode 0700. Existing directories keep their mode."""
    with explained(f"make the directory {path}"):
        private.make_private_dirs(path)


def ensure_private_dir(path: Path) -> None:
    """Calls :func:`make_private_dir`. Raises StoreError if the directory, or a link at ``path``, belongs
    neither to this user nor to root.

    Used for inferd's default directories. One of these directories is in the world-writable ``/tmp``.
    """
    make_private_dir(path)
    with explained(f"use the directory {path}"):
        for found in (path.lstat(), path.stat()):
            if found.st_uid not in (0, os.getuid()):
                raise StoreError(
                    f"the directory {path} belongs to another user; remove it or choose another one"
                )


class Lock:
    """A lock that this process holds, until :meth:`release` or the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> Lock:
        """Takes the lock. Raises LockHeld within LOOK_SECS if another process holds the lock. Raises
        StoreError if the file cannot be opened or locked, or is not a plain file."""
        make_private_dir(path.parent)
        while True:
            fd = _open(path)
            try:
                _take(fd)
                current = _is_current(path, fd)
            except BlockingIOError:
                os.close(fd)
                raise LockHeld(f"another inferd-daemon already holds the lock at {path}") from None
            except OSError as error:
                os.close(fd)
                raise StoreError(f"cannot lock {path}: {error.strerror}") from error
            if current:
                break
            os.close(fd)  # the file was deleted between our open and our lock
        lock = cls(path, fd)
        lock._write_pid(f"{os.getpid()}\n".encode())
        return lock

    @classmethod
    def wait(cls, path: Path, cancelled: threading.Event, held: Callable[[], None]) -> Lock:
        """Waits until the lock is free, and takes the lock. Polls the lock every POLL_SECS, and calls
        ``held`` after each poll that finds the lock held.

        Raises BootCancelled at most POLL_SECS after ``cancelled`` is set.
        """
        while not cancelled.is_set():
            with suppress(LockHeld):
                return cls.acquire(path)
            held()
            cancelled.wait(POLL_SECS)
        raise BootCancelled(f"the wait for the lock at {path} was cancelled")

    def is_current(self) -> bool:
        """Whether the file at the lock's path is still the file that this lock holds."""
        return _is_current(self.path, self._fd)

    def release(self) -> None:
        """Releases the lock. A second call does nothing."""
        if self._fd >= 0:
            self._write_pid(b"")
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write_pid(self, text: bytes) -> None:
        # A lock path given by mistake may be a document: only a pid or an empty file is overwritten.
        with suppress(OSError):
            if os.pread(self._fd, 32, 0).strip().isdigit() or os.fstat(self._fd).st_size == 0:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, text, 0)


def is_held(path: Path) -> bool:
    """Whether a running process holds the lock.

    Does not create the file. The check takes a shared lock for a moment. :func:`_take` tolerates this shared
    lock.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot open the lock {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise StoreError(f"cannot look at the lock {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return False


def _take(fd: int) -> None:
    """Takes an exclusive lock on the open file ``fd``. Raises BlockingIOError if another process holds the
    lock.

    If the lock is held, but the file does not have the pid of another running process, the lock may be held
    only by a check that :func:`is_held` makes. In this case, tries again for up to LOOK_SECS.
    """
    give_up = time.monotonic() + LOOK_SECS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if _has_living_holder(fd) or time.monotonic() >= give_up:
                raise
        time.sleep(LOOK_SECS / 100)


def _has_living_holder(fd: int) -> bool:
    try:
        pid = int(os.pread(fd, 32, 0))
        if pid == os.getpid():  # of a killed daemon: in a container each daemon may have this pid
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def holder(path: Path) -> int | None:
    """Returns the pid of the process that holds the lock, as written in the lock's file, or ``None`` if the
    file has no pid. Only for display."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        return int(file.read(32)) or None
    return None


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"the lock {path} is a symbolic link; remove it") from error
        raise StoreError(f"cannot open the lock {path}: {error.strerror}") from error
    found = os.fstat(fd)
    # With a hard link, the pid would overwrite a file that has another purpose.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise StoreError(f"the lock {path} is not a plain file, or has a hard link; remove it")
    return fd


def _is_current(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False
