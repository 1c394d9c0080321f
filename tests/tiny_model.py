"""A model of 16 KiB for tests of the store and of downloads, which do not read the content of files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from inferd.store import fetch
from inferd.store.catalogue import CatalogueModel
from inferd.store.models import Manifest, ModelStore
from inferd.store.verify import OpenModel

CONTENT = bytes(range(256)) * 64
DIGEST = hashlib.sha256(CONTENT).hexdigest()
EVIL = CONTENT[::-1]


def tiny(*sources: str, size: int | None = len(CONTENT), name: str = "tiny") -> CatalogueModel:
    """The catalogue entry of CONTENT with these sources."""
    return CatalogueModel(name=name, sha256=DIGEST, size_bytes=size, license="MIT", sources=sources)


def stock(store: ModelStore, name: str, content: bytes) -> Path:
    """Puts a model into the store; returns the path of its blob."""
    digest = hashlib.sha256(content).hexdigest()
    blob = store.blob_path(digest)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    store.write_manifest(Manifest(name=name, blob=f"sha256:{digest}", size_bytes=len(content)))
    return blob


def put(store: ModelStore, content: bytes) -> Path:
    """Writes ``content`` to the path of the tiny model's blob, as a broken disk or another tool might."""
    path = store.blob_path(DIGEST)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(directory: Path) -> list[str]:
    """Every file under ``directory``, as paths relative to it."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


class Phases(list[tuple[str, dict[str, object]]]):
    """A progress callback that records phases, and calls ``on[phase]`` in that phase."""

    def __init__(self, **on: Callable[[], object]) -> None:
        self.on = on

    def __call__(self, phase: str, details: dict[str, object]) -> None:
        self.append((phase, details))
        if phase in self.on:
            self.on[phase]()

    @property
    def names(self) -> list[str]:
        """The phases without their details."""
        return [name for name, _ in self]


def load(
    store: ModelStore,
    model: CatalogueModel | None = None,
    progress: Phases | None = None,
    *,
    auto_pull: bool = False,
    verify: str = "auto",
    cancelled: threading.Event | None = None,
) -> OpenModel:
    """``ensure_model`` with defaults."""
    return fetch.ensure_model(
        store,
        tiny() if model is None else model,
        auto_pull=auto_pull,
        verify=verify,
        progress=Phases() if progress is None else progress,
        cancelled=cancelled or threading.Event(),
    )
