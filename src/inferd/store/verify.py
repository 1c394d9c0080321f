"""Opens model files and verifies their hashes.

The engine process loads the model from the verified descriptor, not from the path (F-6 in SECURITY.md).
``progress`` is called with a phase and its details: ``checking_local`` {path}, ``verify`` {path, and progress
from 0 to 1}, and ``quarantine`` {path, expected_sha256, actual_sha256, quarantine_path}.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from inferd import log
from inferd.errors import BootCancelled, HashMismatch, ModelError, StoreError
from inferd.progress import Progress
from inferd.store.catalogue import CatalogueModel
from inferd.store.gguf import part_names
from inferd.store.models import ModelStore, Stamp, check_sha256, same_digest
from inferd.store.runtime import Lock
from inferd.store.source import REPORT_SECS

_log = log.get("store")

HASH_CHUNK_BYTES = 4 << 20  # hashed without the GIL; small enough to notice a cancellation between chunks


@dataclass(slots=True)
class OpenModel:
    """A model whose files are open for reading. Load the model from ``fd``, not from ``path``, which is only
    for display. ``sha256`` is ``None`` if unknown. ``parts`` are the other files of a split model, in order.
    ``projector`` is the file that encodes images or audio."""

    path: Path
    fd: int
    name: str
    sha256: str | None
    size_bytes: int
    parts: list[OpenModel] = field(default_factory=list)
    projector: OpenModel | None = None

    @property
    def fds(self) -> list[int]:
        """The descriptors of the model's files, in order, without the descriptor of the projector."""
        return [self.fd, *(part.fd for part in self.parts)]

    def close(self) -> None:
        """Closes all descriptors. A second call does nothing. A memory mapping of a file stays valid."""
        for part in self.parts:
            part.close()
        if self.projector is not None:
            self.projector.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_blob(
    store: ModelStore, model: CatalogueModel, verify: str, progress: Progress, cancelled: threading.Event
) -> OpenModel:
    """Opens the files of ``model`` in the store. Verifies the hash of each file, unless a stamp in the store
    shows that the file was verified before and is unchanged. With ``verify="always"``, verifies every hash.

    Raises StoreError if a file cannot be opened or read, and ModelError if a file is not a regular file. If a
    hash is wrong, moves the file to quarantine and raises HashMismatch. Raises BootCancelled after a
    cancellation.
    """
    path = store.blob_path(model.sha256)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StoreError(f"cannot open the model {path}: {error.strerror}") from error
    opened = OpenModel(path, fd, model.name, model.sha256, os.fstat(fd).st_size)
    try:
        found = _regular(opened)
        if verify == "always" or not store.is_stamped(model.sha256, found):
            actual = hash_open(opened, progress, cancelled)
            if not same_digest(model.sha256, actual):
                raise _refuse_blob(store, model, opened, actual, progress, cancelled)
            store.write_stamp(model.sha256, found)
        for part in model.parts:
            opened.parts.append(open_blob(store, part, verify, progress, cancelled))
        if model.projector is not None:
            opened.projector = open_blob(store, model.projector, verify, progress, cancelled)
    except BaseException:
        opened.close()
        raise
    return opened


def open_file(
    path: Path,
    sha256: str | None,
    *,
    progress: Progress,
    cancelled: threading.Event,
) -> OpenModel:
    """Opens a model file outside the store. Never moves or changes the file. If ``sha256`` is given, verifies
    the file. If the file is the first file of a split model, also opens the other files, but does not verify
    them.

    Raises ModelError if a file cannot be opened, HashMismatch if the hash is wrong, and BootCancelled after a
    cancellation.
    """
    expected = None if sha256 is None else check_sha256(sha256)
    progress("checking_local", {"path": str(path)})
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelError(f"cannot open the model file {path}: {error.strerror}") from error
    opened = OpenModel(path, fd, path.stem, expected, os.fstat(fd).st_size)
    try:
        _regular(opened)
        if expected is not None:
            actual = hash_open(opened, progress, cancelled)
            if not same_digest(expected, actual):
                raise HashMismatch(
                    f"the model file {path} has the sha256 {actual} and not {expected}; "
                    "check the file or the sha256 that was given"
                )
        for name in part_names(path.name)[1:]:
            opened.parts.append(open_file(path.with_name(name), None, progress=progress, cancelled=cancelled))
    except BaseException:
        opened.close()
        raise
    return opened


def _regular(opened: OpenModel) -> os.stat_result:
    found = os.fstat(opened.fd)
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"the model {opened.path} is not a regular file")
    return found


def hash_open(opened: OpenModel, progress: Progress, cancelled: threading.Event) -> str:
    """Returns the sha256 of the open file in hex. Raises StoreError if the file changes while it is read."""
    details: dict[str, object] = {"path": str(opened.path)}
    progress("verify", details)
    before = os.fstat(opened.fd)
    digest, buffer, done = hashlib.sha256(), memoryview(bytearray(HASH_CHUNK_BYTES)), 0
    report_at = time.monotonic() + REPORT_SECS
    try:
        while count := os.preadv(opened.fd, [buffer], done):
            digest.update(buffer[:count])
            done += count
            if cancelled.is_set():
                raise BootCancelled(f"the verification of {opened.path} was cancelled")
            if time.monotonic() >= report_at:
                report_at = time.monotonic() + REPORT_SECS
                progress("verify", {**details, "progress": min(done / max(before.st_size, 1), 1.0)})
    except OSError as error:
        raise StoreError(f"cannot read the model {opened.path}: {error.strerror}") from error
    if Stamp.of(before) != Stamp.of(os.fstat(opened.fd)):
        raise StoreError(f"the model {opened.path} was changed while it was verified; try again")
    return digest.hexdigest()


def _refuse_blob(
    store: ModelStore,
    model: CatalogueModel,
    opened: OpenModel,
    actual: str,
    progress: Progress,
    cancelled: threading.Event,
) -> StoreError:
    """Moves the open blob, whose hash is wrong, to quarantine, unless another file is now at the blob's path.
    Returns the error to raise."""
    try:
        with Lock.wait(store.blob_lock(model.sha256), cancelled, lambda: None):
            if store.is_blob(model.sha256, opened.fd):
                return set_aside(store, model, opened.path, actual, progress)
    except StoreError as error:
        return HashMismatch(f"model {model.name!r} has the sha256 {actual} and not {model.sha256}; {error}")
    return StoreError(f"the model {opened.path} was changed while it was verified; try again")


def set_aside(
    store: ModelStore, model: CatalogueModel, path: Path, actual: str, progress: Progress
) -> HashMismatch:
    """Moves the file at ``path``, whose hash is wrong, to quarantine. Returns the error to raise. The caller
    holds the blob's lock."""
    place = store.quarantine(path)
    details = {
        "path": path,
        "expected_sha256": model.sha256,
        "actual_sha256": actual,
        "quarantine_path": place,
    }
    _log.error("quarantine", **details)
    progress("quarantine", {key: str(value) for key, value in details.items()})
    return HashMismatch(
        f"model {model.name!r} has the sha256 {actual} and not {model.sha256}; "
        f"the file was moved to {place}, run `inferd pull {model.name}` to fetch it again"
    )
