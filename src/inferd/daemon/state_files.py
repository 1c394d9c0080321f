"""Keeps the KV cache of config entries in files, behind the interface that the engine uses."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from inferd import log
from inferd.config import paths
from inferd.config.settings import Settings
from inferd.engine.local.child.messages import KeptState, LeavingState
from inferd.errors import StoreError
from inferd.store import verify
from inferd.store.states import Head, Kept, StateFiles

_log = log.get("cache")


class EntryStates:
    """Stores and finds the KV cache files of one config entry."""

    def __init__(self, files: StateFiles, owner: str, model: str) -> None:
        self._files = files
        self._owner = owner
        self._model = model
        self._made_by = ""

    def open(self, made_by: str) -> list[KeptState]:
        self._made_by = f"{self._model} {made_by}"
        usable, outdated = self._files.of(self._owner, self._made_by)
        return [_kept(file, True) for file in usable] + [_kept(file, False) for file in outdated]

    def fetch(self, number: int) -> tuple[int, int, int] | None:
        return self._files.fetch(number, self._owner)

    def save(self, state: LeavingState, fd: int) -> tuple[int, list[int]]:
        head = Head(
            owner=self._owner,
            made_by=self._made_by,
            scope=state.scope,
            session=state.session,
            tokens=state.tokens,
            size=os.fstat(fd).st_size,
        )
        return self._files.save(head, fd, state.replaces)

    def bytes(self) -> int:
        return sum(file.bytes for file in self._files.files() if file.head.owner == self._owner)

    def removed(self) -> int:
        return self._files.removed


def _kept(file: Kept, usable: bool) -> KeptState:
    head = file.head
    return KeptState(
        number=file.number,
        scope=head.scope,
        session=head.session,
        tokens=head.tokens,
        size=head.size,
        usable=usable,
    )


def state_files(settings: Settings, owner: str, model: verify.OpenModel) -> EntryStates | None:
    """Returns the KV cache files of ``model`` in the config entry ``owner``, or ``None`` if the disk cache is
    off or its directory cannot be used."""
    if not settings.cache_disk_mib or not settings.cache_mib:
        return None
    try:
        files = _state_files(paths.cache_dir(), settings.cache_disk_mib << 20)
    except (OSError, StoreError) as error:
        _log.warn("cache_off", error=str(error))
        return None
    return EntryStates(files, owner, model.sha256 or look_of(model.fd))


@lru_cache(maxsize=4)
def _state_files(directory: Path, budget: int) -> StateFiles:
    return StateFiles(directory, budget)


def look_of(fd: int) -> str:
    """Returns a string that identifies a model or adapter file: its size, its modification time and a digest
    of its first MiB."""
    found = os.fstat(fd)
    start = hashlib.sha256(os.pread(fd, 1 << 20, 0)).hexdigest()
    return f"{found.st_size} {found.st_mtime_ns} {start}"
