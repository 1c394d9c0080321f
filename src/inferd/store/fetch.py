"""Resolves a model's name to an open, verified file. Downloads the file if it is missing.

Every function blocks, so call it in a thread. After ``cancelled`` is set, every function raises BootCancelled
within about POLL_SECS. A cancelled function leaves no child process and no temporary file, except the
received bytes of a download that can be resumed.

``progress(phase, details)`` is called with the phases of :mod:`inferd.store.verify` and with the phase
``download``. The details of ``download`` are ``downloaded_bytes``, ``total_bytes`` and ``source_url``. While
another process downloads the file, the details also have ``waiting_for_pid``. In the pause before a retry,
the details also have ``attempt`` and ``reason``.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inferd import log
from inferd.config.entries import ModelSpec
from inferd.config.nearest import nearest
from inferd.errors import FetchError, HashMismatch, StoreError
from inferd.progress import Progress
from inferd.store import sources
from inferd.store.catalogue import CATALOGUE, HUB_MODELS, CatalogueModel, lookup
from inferd.store.models import (
    PRODUCER,
    Manifest,
    ModelStore,
    Part,
    Provenance,
    check_name,
    check_sha256,
    make_dirs,
    same_digest,
)
from inferd.store.partial import Sink, check_room, largest_file, read_mark
from inferd.store.pinning import pin_known
from inferd.store.runtime import Lock, holder
from inferd.store.source import Reporter, Source
from inferd.store.sources import LocalFile
from inferd.store.verify import OpenModel, hash_open, open_blob, open_file, set_aside

_log = log.get("store")


def resolve(store: ModelStore, spec: ModelSpec) -> CatalogueModel:
    """Returns the pinned model for ``spec``. The sha256 comes from ``spec``, or else from the catalogue, or
    else from the model's manifest in the store. Raises StoreError if no sha256 is found."""
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
    if manifest is None and spec.name in HUB_MODELS:
        raise StoreError(
            f"model {spec.name!r} is missing from the store at {store.home}; run `inferd pull {spec.name}`"
        )
    if manifest is None:
        near = nearest(spec.name, _names(store))
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(_names(store)))}"
        raise StoreError(f"no model {spec.name!r} in the catalogue or the store at {store.home}; {hint}")
    return CatalogueModel(
        name=manifest.name,
        sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
        license=manifest.license or "",
        sources=_sources_of(manifest.source),
        parts=tuple(_further(manifest, part) for part in manifest.parts),
        projector=None if manifest.projector is None else _further(manifest, manifest.projector),
    )


def _further(manifest: Manifest, part: Part) -> CatalogueModel:
    return CatalogueModel(
        name=manifest.name,
        sha256=part.sha256,
        size_bytes=part.size_bytes,
        license=manifest.license or "",
        sources=_sources_of(part.source),
    )


def _sources_of(origin: Provenance | None) -> tuple[str, ...]:
    """Returns the sources from which a file of the store can be downloaded again. Leaves out a local file,
    since another user may not be able to read the local file."""
    return () if origin is None or origin.registry == "file" or not origin.text else (origin.text,)


def _names(store: ModelStore) -> set[str]:
    return {*CATALOGUE, *HUB_MODELS, *(manifest.name for manifest in store.list())}


def ensure_model(
    store: ModelStore,
    spec: CatalogueModel | ModelSpec,
    *,
    auto_pull: bool,
    verify: str,
    progress: Progress,
    cancelled: threading.Event,
) -> OpenModel:
    """Opens the model from the store. If ``auto_pull`` is true, first downloads missing files.

    ``verify`` says which files to hash: with ``always`` every file, and with ``auto`` only files that were
    not verified before or may have changed since. Raises StoreError, HashMismatch, BootCancelled, or
    FetchError, whose message gives the reason why each source failed.
    """
    model = spec if isinstance(spec, CatalogueModel) else _pinned(store, spec, auto_pull, progress, cancelled)
    path = store.blob_path(model.sha256)
    progress("checking_local", {"path": str(path)})
    size = store.blob_size(model.sha256)
    whole = [(store.blob_size(part.sha256), part) for part in model.files]
    if not all(_fits(found, part) for found, part in whole):
        if not auto_pull:
            size, cut = next((found, part) for found, part in whole if not _fits(found, part))
            state = "missing from" if size is None else f"cut to {size} of {cut.size_bytes} bytes in"
            raise StoreError(
                f"model {model.name!r} is {state} the store at {store.home}; run `inferd pull {model.name}`"
            )
        _fetch(store, model, progress, cancelled)
    elif not _is_listed(store, model):
        with suppress(StoreError):  # a store that cannot be written can still be read
            _fetch(store, model, progress, cancelled)
    return open_blob(store, model, verify, progress, cancelled)


def _pinned(
    store: ModelStore, spec: ModelSpec, auto_pull: bool, progress: Progress, cancelled: threading.Event
) -> CatalogueModel:
    """Returns the pinned model for ``spec``. If ``auto_pull`` is true, asks the hub for the hashes of a
    :class:`HubModel` that is not in the store."""
    known = HUB_MODELS.get(spec.name)
    if known is not None and auto_pull and spec.sha256 is None and store.manifest(spec.name) is None:
        return pin_known(store, known, progress, cancelled)
    return resolve(store, spec)


def _fits(size: int | None, model: CatalogueModel) -> bool:
    return size is not None and model.size_bytes in (None, size)


def _is_listed(store: ModelStore, model: CatalogueModel) -> bool:
    """Whether the store has a readable manifest under the model's name, and this manifest lists exactly the
    model's files."""
    with suppress(StoreError):
        manifest = store.manifest(model.name)
        return manifest is not None and manifest.digests == tuple(file.sha256 for file in model.files)
    return False


def _fetch(store: ModelStore, model: CatalogueModel, progress: Progress, cancelled: threading.Event) -> None:
    """Downloads the model's missing files, and writes the manifest if it is missing. If another process is
    fetching the same model, waits for that process first."""
    name_lock = store.name_lock(model.name)
    with store.writing():
        make_dirs(name_lock.parent)
        if not os.access(name_lock.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, "it is read-only")
    with Lock.wait(name_lock, cancelled, _waiting(store, model, name_lock, progress)):
        brought = [_bring_blob(store, file, progress, cancelled) for file in model.files]
        if not _is_listed(store, model):
            further = [
                Part(
                    blob=f"sha256:{file.sha256}",
                    size_bytes=store.blob_size(file.sha256) or 0,
                    source=origin,
                )
                for file, origin in zip(model.files[1:], brought[1:], strict=True)
            ]
            manifest = Manifest(
                name=model.name,
                blob=f"sha256:{model.sha256}",
                size_bytes=store.blob_size(model.sha256) or 0,
                license=model.license or None,
                source=brought[0],
                produced_by=PRODUCER,
                produced_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                parts=tuple(further[: len(model.parts)]),
                projector=further[-1] if model.projector is not None else None,
            )
            store.write_manifest(manifest)


def _bring_blob(
    store: ModelStore, model: CatalogueModel, progress: Progress, cancelled: threading.Event
) -> Provenance | None:
    """Downloads the first file of ``model`` into the store if it is missing. Returns the file's
    provenance."""
    lock = store.blob_lock(model.sha256)
    with Lock.wait(lock, cancelled, _waiting(store, model, lock, progress)):
        if _fits(store.blob_size(model.sha256), model):
            return _first_source(model)
        return _download(store, model, progress, cancelled)


def _first_source(model: CatalogueModel) -> Provenance | None:
    """Returns the first source in ``model``, which is recorded as the provenance of a file that was already
    in the store."""
    with suppress(FetchError):
        return sources.parse(model.sources[0]).provenance() if model.sources else None
    return None


def _waiting(store: ModelStore, model: CatalogueModel, lock: Path, progress: Progress) -> Callable[[], None]:
    """Returns a callback to call at each poll of ``lock``. The callback reports how far the process that
    holds the lock has downloaded."""
    partial = store.partial_dir(model.sha256)
    first = sources.shown(model.sources[0]) if model.sources else ""
    reporters: dict[str, Reporter] = {}

    def look() -> None:
        mark = read_mark(partial)
        url = first if mark is None else mark.url
        total = mark.size if mark is not None and model.size_bytes is None else model.size_bytes
        reporter = reporters.setdefault(url, Reporter(progress, url, total))
        reporter.report(largest_file(partial), waiting_for_pid=holder(lock))

    return look


def _download(
    store: ModelStore, model: CatalogueModel, progress: Progress, cancelled: threading.Event
) -> Provenance:
    """Tries the model's sources in order, and installs the file from the first source that works. Returns the
    provenance of the file.

    The caller holds the locks.
    """
    if not model.sources:
        raise FetchError(
            f"model {model.name!r} is not in the store at {store.home} and has no source; "
            "import its file with `inferd import`"
        )
    failures = []
    for text in model.sources:
        shown = sources.shown(text)
        try:
            source = sources.parse(text)
            _log.info("fetch_started", model=model.name, source=source.url)
            path = source.path if isinstance(source, LocalFile) and source.link else None
            if path is None or not _link(store, model, path, progress, cancelled):
                _bring(store, model, source, progress, cancelled)
        except HashMismatch:
            raise
        except FetchError as error:
            _log.warn("fetch_failed", model=model.name, source=shown, reason=error)
            failures.append(f"{shown}: {error}")
        else:
            _log.info("fetch_done", model=model.name, source=source.url)
            return source.provenance()
    reasons = "; from ".join(failures).rstrip(".")
    raise FetchError(
        f"model {model.name!r} could not be fetched from {reasons}. A GGUF file that is at hand can be used"
        " instead: `inferd import FILE.gguf --name mine`, then `inferd run --model mine`"
    )


def _link(
    store: ModelStore,
    model: CatalogueModel,
    path: Path,
    progress: Progress,
    cancelled: threading.Event,
) -> bool:
    """Hard-links the file ``path`` of another program into the store. Returns False if the file cannot be
    linked; the caller then copies the file.

    Verifies the hash before it installs the link. If the hash is wrong, raises HashMismatch, and does not
    change the other program's file.
    """
    partial = store.partial_dir(model.sha256)
    # Not data.tmp: a download would write through the link into the other program's file.
    scratch = partial / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with store.writing():
            make_dirs(partial)
            scratch.mkdir(mode=0o700)
        linked = scratch / "data"
        try:
            os.link(os.path.realpath(path), linked)
        except OSError as error:
            _log.info("link_refused", model=model.name, path=path, reason=error)
            return False
        with open_file(linked, None, progress=progress, cancelled=cancelled) as opened:
            found = os.fstat(opened.fd)
            actual = hash_open(opened, progress, cancelled)
            if not same_digest(model.sha256, actual):
                raise HashMismatch(
                    f"{path} has the sha256 {actual} and not {model.sha256}: it is damaged, or not what its"
                    " program says; have that program fetch it again"
                )
        store.install(model.sha256, linked)
        store.write_stamp(model.sha256, found)
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            partial.rmdir()


def _bring(
    store: ModelStore,
    model: CatalogueModel,
    source: Source,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    partial = store.partial_dir(model.sha256)
    data, scratch = partial / "data.tmp", partial / "scratch"
    if partial.is_symlink():
        raise StoreError(f"{partial} is a symbolic link; remove it")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process
    try:
        with store.writing():
            make_dirs(partial)
            scratch.mkdir(mode=0o700)
            held = largest_file(partial) if source.resumable else 0
            check_room(store, max((model.size_bytes or 0) - held, 0) + source.extra_bytes())
        with Sink(
            store, partial, source.url, limit=model.size_bytes, resume=source.resumable, cancelled=cancelled
        ) as sink:
            source.copy(sink, scratch, progress)
            actual = sink.finish()
            if not same_digest(model.sha256, actual) and sink.in_parts:
                _log.warn("fetch_restarted", model=model.name, source=source.url)
                sink.restart()
                source.copy(sink, scratch, progress)
                actual = sink.finish()
        if not same_digest(model.sha256, actual):
            raise set_aside(store, model, data, actual, progress)
        store.install(model.sha256, data)
        store.write_stamp(model.sha256, store.blob_path(model.sha256).lstat())
    finally:
        keep = source.resumable and data.exists() and data.stat().st_size > 0
        shutil.rmtree(scratch if keep else partial, ignore_errors=True)
