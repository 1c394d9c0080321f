"""From a model's name to an open, verified file.

Everything here blocks and runs in a thread of its own; ``cancelled`` ends it with BootCancelled within about
POLL_SECS, with no child process and no temporary file left. What comes back is the very descriptor whose
content was verified, and the engine loads that, not the path (F-6).

``progress(phase, details)`` gets the phases of the status stream: ``checking_local`` {path}, ``download``
{downloaded_bytes, total_bytes, source_url; waiting_for_pid while another process does it}, ``verify`` {path;
progress 0-1 as it goes on} and ``quarantine`` {path, expected_sha256, actual_sha256, quarantine_path}.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inferd import log
from inferd.config.entries import ModelSpec
from inferd.errors import BootCancelled, FetchError, HashMismatch, ModelError, StoreError
from inferd.store import sources
from inferd.store.catalogue import CATALOGUE, CatalogueModel, lookup
from inferd.store.models import (
    Manifest,
    ModelStore,
    Provenance,
    Stamp,
    check_name,
    check_sha256,
    make_dirs,
    same_digest,
)
from inferd.store.runtime import Lock, holder
from inferd.store.sources import REPORT_SECS, Progress

_log = log.get("store")

HASH_CHUNK_BYTES = 4 << 20  # hashed without the GIL; small enough to notice a cancellation in between
SPARE_BYTES = 16 << 20  # left free on the disk for everybody else


@dataclass(slots=True)
class OpenModel:
    """A model file, open for reading. ``path`` is to show, ``fd`` to load from; ``sha256`` if it is known."""

    path: Path
    fd: int
    name: str
    sha256: str | None
    size_bytes: int

    def close(self) -> None:
        """Idempotent; a file that was mapped from the descriptor stays mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve(store: ModelStore, spec: ModelSpec) -> CatalogueModel:
    """The pinned model that ``spec`` means: its own sha256, else the catalogue's, else the store's."""
    known = lookup(spec.name)
    if spec.sha256 is not None:
        digest = check_sha256(spec.sha256)
        if known is not None and known.sha256 == digest and not spec.source_url:
            return known
        return CatalogueModel(
            name=check_name(spec.name),
            sha256=digest,
            size_bytes=spec.size_bytes,
            license=spec.license,
            sources=(spec.source_url,) if spec.source_url else (),
        )
    if known is not None:
        return known
    manifest = store.manifest(spec.name)
    if manifest is None:
        near = difflib.get_close_matches(spec.name, _names(store), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(_names(store)))}"
        raise StoreError(f"no model {spec.name!r} in the catalogue or the store at {store.home}; {hint}")
    return CatalogueModel(
        name=manifest.name,
        sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
        license=manifest.license or "",
        sources=(),
    )


def _names(store: ModelStore) -> set[str]:
    return {*CATALOGUE, *(manifest.name for manifest in store.list())}


def ensure_model(
    store: ModelStore,
    spec: CatalogueModel | ModelSpec,
    *,
    auto_pull: bool,
    verify: str,
    progress: Progress,
    cancelled: threading.Event,
) -> OpenModel:
    """The model, from the store or, with ``auto_pull``, from its sources.

    ``verify`` is ``auto`` (hash unless the stamp of the last time still fits) or ``always``. Raises
    StoreError, FetchError with every source's reason, HashMismatch, BootCancelled.
    """
    model = spec if isinstance(spec, CatalogueModel) else resolve(store, spec)
    path = store.blob_path(model.sha256)
    progress("checking_local", {"path": str(path)})
    size = store.blob_size(model.sha256)
    if not _fits(size, model):
        if not auto_pull:
            state = "missing from" if size is None else f"cut to {size} of {model.size_bytes} bytes in"
            raise StoreError(
                f"model {model.name!r} is {state} the store at {store.home}; run `inferd pull {model.name}`"
            )
        _fetch(store, model, progress, cancelled)
    elif not _is_listed(store, model):
        with suppress(StoreError):  # a store that cannot be written can still be read
            _fetch(store, model, progress, cancelled)
    return _open_blob(store, model, verify, progress, cancelled)


def _fits(size: int | None, model: CatalogueModel) -> bool:
    return size is not None and model.size_bytes in (None, size)


def _is_listed(store: ModelStore, model: CatalogueModel) -> bool:
    """Whether the name has a usable manifest that means this blob."""
    with suppress(StoreError):
        manifest = store.manifest(model.name)
        return manifest is not None and manifest.sha256 == model.sha256
    return False


def _fetch(store: ModelStore, model: CatalogueModel, progress: Progress, cancelled: threading.Event) -> None:
    """Bring what is missing of blob and manifest into the store, or wait for the process that does."""
    name_lock, blob_lock = store.name_lock(model.name), store.blob_lock(model.sha256)
    with store.writing():
        make_dirs(name_lock.parent)
        if not os.access(name_lock.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, "it is read-only")
    with (
        Lock.wait(name_lock, cancelled, _waiting(store, model, name_lock, progress)),
        Lock.wait(blob_lock, cancelled, _waiting(store, model, blob_lock, progress)),
    ):
        provenance = None
        if not _fits(store.blob_size(model.sha256), model):
            provenance = _download(store, model, progress, cancelled)
        if not _is_listed(store, model):
            manifest = Manifest(
                name=model.name,
                blob=f"sha256:{model.sha256}",
                size_bytes=store.blob_size(model.sha256) or 0,
                license=model.license or None,
                source=provenance,
                produced_by="inferd",
                produced_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            store.write_manifest(manifest)


def _waiting(store: ModelStore, model: CatalogueModel, lock: Path, progress: Progress) -> Callable[[], None]:
    """What to do at each look at a lock that another process holds: show that process's download."""
    url = model.sources[0].partition("#")[0] if model.sources else ""
    reporter = sources.Reporter(progress, url, model.size_bytes)
    partial = store.partial_dir(model.sha256)
    return lambda: reporter.report(sources.largest_file(partial), waiting_for_pid=holder(lock))


def _download(
    store: ModelStore, model: CatalogueModel, progress: Progress, cancelled: threading.Event
) -> Provenance:
    """Try the sources in order and install the file from the first that delivers. The locks are held."""
    if not model.sources:
        raise FetchError(f"model {model.name!r} is not in the store at {store.home} and has no source")
    failures = []
    for text in model.sources:
        shown = text.partition("#")[0]
        try:
            source = sources.parse(text)
            _log.info("fetch_started", model=model.name, source=source.url)
            _bring(store, model, source, progress, cancelled)
        except HashMismatch:
            raise
        except FetchError as error:
            _log.warn("fetch_failed", model=model.name, source=shown, reason=error)
            failures.append(f"{shown}: {error}")
        else:
            _log.info("fetch_done", model=model.name, source=source.url)
            return source.provenance()
    raise FetchError(f"model {model.name!r} could not be fetched from {'; from '.join(failures)}")


def _bring(
    store: ModelStore,
    model: CatalogueModel,
    source: sources.Source,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    partial = store.partial_dir(model.sha256)
    data, scratch = partial / "data.tmp", partial / "scratch"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process of ours left
    try:
        with store.writing():
            make_dirs(partial)
            scratch.mkdir(mode=0o700)
            _check_room(store, model, source)
        sink = sources.Sink(store, data, model.size_bytes, cancelled)
        try:
            with store.writing():
                source.copy(sink, scratch, progress)
            actual = sink.finish()
        finally:
            sink.close()
        if not same_digest(model.sha256, actual):
            raise _mismatch(store, model, data, actual, progress)
        store.install(model.sha256, data)
        store.write_stamp(model.sha256, store.blob_path(model.sha256).lstat())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(store: ModelStore, model: CatalogueModel, source: sources.Source) -> None:
    needed = (model.size_bytes or 0) + source.extra_bytes() + SPARE_BYTES
    free = shutil.disk_usage(store.home).free
    if free < needed:
        raise StoreError(
            f"fetching model {model.name!r} needs {needed >> 20} MiB on the disk of {store.home} but only "
            f"{free >> 20} MiB are free; free some space or set MODELS_HOME to another disk"
        )


def _open_blob(
    store: ModelStore, model: CatalogueModel, verify: str, progress: Progress, cancelled: threading.Event
) -> OpenModel:
    """Open the blob of ``model`` and verify what was opened, unless its stamp says that it was."""
    path = store.blob_path(model.sha256)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StoreError(f"cannot open the model {path}: {error.strerror}") from error
    opened = OpenModel(path, fd, model.name, model.sha256, os.fstat(fd).st_size)
    try:
        found = _regular(opened)
        if verify == "always" or not store.is_stamped(model.sha256, found):
            actual = _hash(opened, progress, cancelled)
            if not same_digest(model.sha256, actual):
                raise _mismatch(store, model, path, actual, progress)
            store.write_stamp(model.sha256, found)
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
    """A model file outside the store, verified when ``sha256`` is given; it is never moved or changed.

    Raises ModelError when it cannot be opened, HashMismatch, BootCancelled.
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
            actual = _hash(opened, progress, cancelled)
            if not same_digest(expected, actual):
                raise HashMismatch(
                    f"the model file {path} has the sha256 {actual} and not {expected}; "
                    "check the file or the sha256 that was given"
                )
    except BaseException:
        opened.close()
        raise
    return opened


def _regular(opened: OpenModel) -> os.stat_result:
    found = os.fstat(opened.fd)
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"the model {opened.path} is not a regular file")
    return found


def _hash(opened: OpenModel, progress: Progress, cancelled: threading.Event) -> str:
    """The sha256 of the open file in hex; StoreError when it changed meanwhile."""
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


def _mismatch(
    store: ModelStore, model: CatalogueModel, path: Path, actual: str, progress: Progress
) -> HashMismatch:
    """Move the file at ``path`` to quarantine; the error to raise."""
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
