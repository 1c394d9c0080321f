"""A download in progress.

::

    .partial-HASH/data.tmp      the bytes received so far
    .partial-HASH/source.json   the source of these bytes, so that a later process can resume
    .partial-HASH/scratch/      temporary files while the source is copied

Only the process that holds the blob's lock reads or writes these files. ``data.tmp`` becomes the blob only
when the whole file has the right hash. So a process may die at any moment without harm.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import msgspec

from inferd.errors import BootCancelled, FetchError, StoreError
from inferd.store.models import UNREADABLE, ModelStore, write_whole

SPARE_BYTES = 16 << 20  # left free on the disk for other programs
HASH_CHUNK_BYTES = 4 << 20  # small enough to notice a cancellation between two chunks


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``source.json``: the source of the bytes in ``data.tmp``, the server's ETag for the
    file, and the size of the complete file in bytes."""

    url: str
    etag: str = ""
    size: int | None = None


def read_mark(partial: Path) -> Mark | None:
    """Reads ``source.json`` in ``partial``. Returns ``None`` if the file is missing or unreadable."""
    with suppress(OSError, *UNREADABLE):
        return msgspec.json.decode((partial / "source.json").read_bytes(), type=Mark)
    return None


def check_room(store: ModelStore, needed: int) -> None:
    """Raises StoreError if fewer than ``needed`` + SPARE_BYTES bytes are free on the store's disk."""
    free = shutil.disk_usage(store.home).free
    if free < needed + SPARE_BYTES:
        raise StoreError(
            f"the model needs {needed + SPARE_BYTES >> 20} MiB on the disk of {store.home} but only "
            f"{free >> 20} MiB are free; free some space or set MODELS_HOME to another disk"
        )


def largest_file(directory: Path) -> int:
    """Returns the size in bytes of the largest file under ``directory``. In the directory of a download, this
    file is the download itself."""
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, Path(folder, name).lstat().st_size)
    return largest


class Sink:
    """Writes and hashes ``data.tmp`` in the directory ``partial``. ``limit`` is the size of the complete file
    in bytes, or ``None`` if unknown.

    With ``resume``, the sink keeps the bytes that an earlier process received from the same ``url``.
    ``in_parts`` is true if the content came from several requests. A wrong hash may then mean that the server
    changed the file between the requests.
    """

    def __init__(
        self,
        store: ModelStore,
        partial: Path,
        url: str,
        *,
        limit: int | None,
        resume: bool,
        cancelled: threading.Event,
    ) -> None:
        self.cancelled = cancelled
        self.received = 0
        self.in_parts = False
        self.mark = Mark(url=url)
        self._store = store
        self._partial = partial
        self._limit = limit
        self._hash = hashlib.sha256()
        with self.writing():
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(partial / "data.tmp", flags, 0o644)
        try:
            self._begin(read_mark(partial) if resume else None)
        except BaseException:
            self.close()
            raise

    def _begin(self, mark: Mark | None) -> None:
        if mark is None or mark.url != self.mark.url:
            self.restart()
            return
        self.mark = mark
        while chunk := os.read(self._fd, HASH_CHUNK_BYTES):
            self._check_cancelled()
            self._hash.update(chunk)
            self.received += len(chunk)
        self.in_parts = self.received > 0

    @property
    def expected(self) -> int | None:
        """The size of the complete file in bytes, or ``None`` if unknown."""
        return self.mark.size if self._limit is None else self._limit

    def writing(self) -> AbstractContextManager[None]:
        """Returns a context manager for writes to the store, as :meth:`ModelStore.writing` does."""
        return self._store.writing()

    def restart(self) -> None:
        """Discards the received bytes."""
        with self.writing():
            (self._partial / "source.json").unlink(missing_ok=True)
            os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.mark = Mark(url=self.mark.url)
        self.received, self.in_parts, self._hash = 0, False, hashlib.sha256()

    def remember(self, etag: str, size: int | None) -> None:
        """Records the ETag and the size that the server reports for the file. Called before the first byte is
        written."""
        self.mark = Mark(url=self.mark.url, etag=etag, size=size)
        with self.writing():
            write_whole(self._partial / "source.json", msgspec.json.encode(self.mark))
            if self._limit is None and size is not None:
                check_room(self._store, size - self.received)

    def check_room(self, needed: int) -> None:
        """Raises StoreError if fewer than ``needed`` + SPARE_BYTES bytes are free on the store's disk."""
        check_room(self._store, needed)

    def write(self, chunk: bytes) -> None:
        """Appends ``chunk``.

        Raises BootCancelled after a cancellation, FetchError if the source sends more bytes than expected,
        and StoreError if the file cannot be written.
        """
        self._check_cancelled()
        if self.expected is not None and self.received + len(chunk) > self.expected:
            expected = self.expected
            self.restart()
            raise FetchError(f"it is longer than the {expected} bytes that the model has")
        with self.writing():
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._hash.update(chunk)
        self.received += len(chunk)

    def finish(self) -> str:
        """Syncs the file. Returns the sha256 of the file in hex."""
        with self.writing():
            os.fsync(self._fd)
        return self._hash.hexdigest()

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise BootCancelled("the download was cancelled")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
