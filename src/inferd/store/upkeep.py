"""Removes models and unused files from the store.

``remove`` deletes the model that the user names, even if another program put the model into the store.
``collect`` deletes only files of inferd: blobs to which no name refers, unfinished downloads and, on request,
quarantined files. Neither function deletes a file that another process is fetching. A manifest is always
removed before its blobs, so that no manifest refers to a missing blob.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import LockHeld, StoreError
from inferd.store.catalogue import lookup
from inferd.store.models import ModelStore
from inferd.store.partial import largest_file
from inferd.store.runtime import Lock, holder

_DIGEST = re.compile(r"[0-9a-f]{64}")
_QUARANTINED = re.compile(r"\d{8}T\d{6}Z-sha-mismatch(-\d+)?\.bin")


@dataclass(frozen=True)
class Removed:
    """The result of ``remove``: the number of bytes freed, and the names of other models that still need a
    file of the removed model (``kept_for``)."""

    name: str
    freed_bytes: int
    kept_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rubbish:
    """An unused file or directory. ``what`` describes its kind for users."""

    what: str
    path: Path
    size_bytes: int


def remove(store: ModelStore, name: str) -> Removed:
    """Deletes the manifest of the model ``name``, and the model's files that no other model uses.

    Raises StoreError if the name is invalid, if the model does not exist, if the store cannot be written, or
    if another process fetches, removes or quarantines the model or one of its files.
    """
    known = lookup(name)
    if known is not None and not store.manifest_path(name).exists():
        name = known.name
    has_part = any(store.partial_dir(digest).is_dir() for digest in _digests(store, name))
    if not store.manifest_path(name).exists() and not has_part:
        raise StoreError(f"no model {name!r} is in the store at {store.home}; `inferd list` shows which are")
    with _held(store.name_lock(name), f"model {name!r}"):
        freed, kept_for = 0, set[str]()
        with contextlib.ExitStack() as locks:
            digests = _digests(store, name)  # read again under the lock
            for digest in sorted(set(digests)):
                locks.enter_context(_held(store.blob_lock(digest), f"the file of model {name!r}"))
            store.remove_manifest(name)
            for digest in set(digests):
                if others := store.names_of(digest):
                    kept_for |= set(others)
                else:
                    freed += store.remove_blob(digest) + _discard(store.partial_dir(digest))
        return Removed(name, freed, tuple(sorted(kept_for)))


def _digests(store: ModelStore, name: str) -> tuple[str, ...]:
    """Returns the sha256 of every file of the model ``name``, or nothing if the manifest is unreadable.

    If the manifest is unreadable, :func:`remove` deletes only the manifest, and no model file.
    """
    try:
        manifest = store.manifest(name)
    except StoreError:
        return ()
    if manifest is not None:
        return manifest.digests
    known = lookup(name)
    return () if known is None else (known.sha256,)


def collect(store: ModelStore, *, quarantine: bool, dry_run: bool) -> Iterator[Rubbish]:
    """Finds the unused files that inferd wrote. Yields each unused file and then deletes it.

    With ``dry_run``, deletes nothing.

    While any manifest is unreadable, no blob is deleted, since the unreadable manifest may refer to any blob.
    """
    for path in sorted((store.home / "blobs" / "sha256").glob("[0-9a-f][0-9a-f]/*")):
        if rubbish := _rubbish(store, path):
            with suppress(LockHeld), Lock.acquire(store.blob_lock(_digest_in(path))):
                if _rubbish(store, path):  # the directory has not come into use meanwhile
                    yield rubbish
                    if not dry_run:
                        _discard(path) if path.name.startswith(".") else store.remove_blob(path.name)
    for path in sorted((store.home / "locks" / "quarantine").glob("*.bin")) if quarantine else ():
        if _QUARANTINED.fullmatch(path.name):
            yield Rubbish("quarantined file", path, path.lstat().st_size)
            if not dry_run:
                with store.writing():
                    path.unlink(missing_ok=True)


def _digest_in(path: Path) -> str:
    return path.name.removeprefix(".partial-")


def _rubbish(store: ModelStore, path: Path) -> Rubbish | None:
    """Describes ``path``, a directory in ``blobs/sha256/AA``, if the directory is unused. Returns ``None`` if
    the directory must stay."""
    digest = _digest_in(path)
    if not _DIGEST.fullmatch(digest) or path.is_symlink() or not path.is_dir():
        return None
    if path.name != digest:
        return Rubbish("part of a download", path, largest_file(path)) if _is_ours(path) else None
    if (path / "produced_by").exists() and not store.names_of(digest):
        return Rubbish("model without a name", path, store.blob_size(digest) or 0)
    return None


def _held(lock: Path, what: str) -> Lock:
    try:
        return Lock.acquire(lock)
    except LockHeld:
        raise StoreError(
            f"{what} is in use by process {holder(lock) or '?'}; wait for it or stop it first"
        ) from None


def _is_ours(partial: Path) -> bool:
    """Whether the download directory ``partial`` is empty, or contains a ``scratch`` or ``source.json`` of
    inferd."""
    names = {path.name for path in partial.iterdir()}
    return not names or bool(names & {"scratch", "source.json"})


def _discard(partial: Path) -> int:
    """Deletes a download directory. Returns the size of the directory in bytes. The caller holds the blob's
    lock."""
    if not partial.is_dir() or partial.is_symlink():
        return 0
    size = largest_file(partial)
    shutil.rmtree(partial, ignore_errors=True)
    return size
