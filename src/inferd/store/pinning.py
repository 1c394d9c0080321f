"""Makes a pinned model from a source that a user names. A pinned model has a name, and the sha256 of each
file.

A local file is hashed. For a file of the Hugging Face hub, the hub reports the sha256. For any other source,
the user must give the sha256.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from inferd.errors import FetchError, ModelError, StoreError
from inferd.progress import Progress
from inferd.store import hub, sources
from inferd.store.catalogue import CatalogueModel, HubModel, lookup
from inferd.store.foreign import Foreign, told_digest
from inferd.store.gguf import part_names, plain_name, read_card
from inferd.store.https import Https
from inferd.store.models import ModelStore, check_name, check_sha256, same_digest
from inferd.store.source import Source
from inferd.store.sources import LocalFile
from inferd.store.verify import OpenModel, hash_open, open_file

_MAGIC = b"GGUF"


def pin(
    store: ModelStore,
    text: str,
    *,
    name: str | None,
    sha256: str | None,
    license: str,
    progress: Progress,
    cancelled: threading.Event,
) -> CatalogueModel:
    """Pins the model that the source ``text`` names, and returns the model. The model gets the name ``name``,
    or if ``name`` is ``None``, the name of its file.

    Raises StoreError if the name belongs to another model, or if the sha256 is unknown or wrong. Raises
    FetchError if the source cannot be reached, ModelError if a local file is not a GGUF file, and
    BootCancelled after a cancellation.
    """
    if hub.is_repository(text):
        return _pin_repository(store, text, name, sha256, license, progress, cancelled)
    try:
        source = sources.parse(text)
    except FetchError as error:
        raise FetchError(f"cannot fetch from {sources.shown(text)}: {error}") from error
    file = PurePosixPath(source.provenance().filename)
    called = check_name(plain_name(file.name) if name is None else name)
    if known := lookup(called):
        called = known.name
    expected = None if sha256 is None else check_sha256(sha256)
    size: int | None = None
    if isinstance(source, LocalFile):
        digest, size = _look_at(source.path, progress, cancelled)
        if expected is not None and not same_digest(expected, digest):
            raise StoreError(f"{source.path} has the sha256 {digest} and not {expected}; check both")
    elif expected is not None:
        digest = expected
    elif isinstance(source, Https) and source.origin.registry == "hf":
        source, digest, size = hub.digest_of(source, cancelled)
        text = source.origin.text
    else:
        raise StoreError(
            f"no sha256 is known for {source.url}; give its sha256 with --sha256, "
            "or name a file of the hub as hf:ORG/REPO/FILE"
        )
    _check_free(store, called, digest)
    if known is not None:
        license = license or known.license
    model = CatalogueModel(name=called, sha256=digest, size_bytes=size, license=license, sources=(text,))
    names = part_names(file.name)[1:]
    if not names:
        return model
    parts = [_pin_part(model, source, name, progress, cancelled) for name in names]
    return replace(model, parts=tuple(parts))


def _pin_repository(
    store: ModelStore,
    text: str,
    name: str | None,
    sha256: str | None,
    license: str,
    progress: Progress,
    cancelled: threading.Event,
) -> CatalogueModel:
    """Pins a model and its projector. Both are files of one repository of the Hugging Face hub."""
    chosen = hub.choose(text, cancelled)
    license = license or chosen.license
    model = pin(
        store,
        chosen.source,
        name=name,
        sha256=sha256,
        license=license,
        progress=progress,
        cancelled=cancelled,
    )
    if chosen.projector is None:
        return model
    source, digest, size = hub.digest_of(Https.of_hub(chosen.projector.removeprefix("hf:")), cancelled)
    text = source.origin.text
    projector = replace(model, sha256=digest, size_bytes=size, sources=(text,), parts=())
    return replace(model, projector=projector)


def pin_known(
    store: ModelStore, model: HubModel, progress: Progress, cancelled: threading.Event
) -> CatalogueModel:
    """Pins a model of the catalogue at its current version on the Hugging Face hub. Raises the same errors as
    :func:`pin`."""
    found = _pin_repository(store, model.source, model.name, None, "", progress, cancelled)
    return found if found.license else replace(found, license=model.license)


def pin_foreign(
    store: ModelStore, model: Foreign, *, name: str, progress: Progress, cancelled: threading.Event
) -> CatalogueModel:
    """Pins ``model``, a model of another program such as Ollama, under ``name``. Hashes each file for which
    the other program records no sha256.

    Raises the same errors as :func:`pin`.
    """

    def file(path: Path, digest: str | None) -> CatalogueModel:
        if digest is None:
            digest, _ = _look_at(path, progress, cancelled, first=False)
        else:
            with open_file(path, None, progress=progress, cancelled=cancelled) as opened:
                _check_magic(opened)
        size = path.stat().st_size
        return CatalogueModel(
            name=called, sha256=digest, size_bytes=size, license="", sources=(f"link:{path}",)
        )

    called = check_name(name)
    first, *parts = map(file, model.files, model.digests)
    _check_free(store, called, first.sha256)
    projector = None if model.projector is None else file(model.projector, told_digest(model.projector))
    return replace(first, parts=tuple(parts), projector=projector)


def _pin_part(
    model: CatalogueModel, first: Source, name: str, progress: Progress, cancelled: threading.Event
) -> CatalogueModel:
    """Pins the file ``name`` of a split model. The file is in the same directory as the split model's first
    file."""
    size: int | None
    if isinstance(first, LocalFile):
        path = first.path.with_name(name)
        digest, size = _look_at(path, progress, cancelled, first=False)
        text = f"file:{path}"
    elif isinstance(first, Https) and first.origin.registry == "hf":
        origin = first.origin
        beside = PurePosixPath(origin.filename).with_name(name)
        source, digest, size = hub.digest_of(
            Https.of_hub(f"{origin.repo}/{beside}@{origin.revision}"), cancelled
        )
        text = source.origin.text
    else:
        raise StoreError(
            f"{first.url} is the first file of a split model; fetch its files and import the first, or name"
            " it as hf:ORG/REPO/FILE"
        )
    return replace(model, sha256=digest, size_bytes=size, sources=(text,))


def _check_free(store: ModelStore, name: str, digest: str) -> None:
    """Raises StoreError if ``name`` is already the name of a model with another sha256."""
    known = lookup(name)
    taken = known is not None and known.sha256 != digest
    with suppress(StoreError):  # an unreadable manifest is rewritten
        manifest = store.manifest(name)
        taken = taken or (manifest is not None and manifest.sha256 != digest)
    if taken:
        raise StoreError(
            f"the name {name!r} means another model; choose one with --name, or `inferd rm` that"
        )


def _look_at(
    path: Path, progress: Progress, cancelled: threading.Event, *, first: bool = True
) -> tuple[str, int]:
    """Returns the sha256 and the size in bytes of a local model file. With ``first``, raises StoreError if
    the file belongs to a split model but is not the first file of the split model."""
    with open_file(path, None, progress=progress, cancelled=cancelled) as opened:
        _check_magic(opened)
        with suppress(ModelError):  # llama.cpp may read a header that inferd cannot read
            card = read_card(opened.fd, path)
            if first and card.parts > 1 and len(opened.parts) != card.parts - 1:
                raise StoreError(
                    f"{path} is one of the {card.parts} files of a split model; name the first of them, whose"
                    f" name ends in -00001-of-{card.parts:05}.gguf"
                )
            if card.cut_short:
                raise StoreError(f"{path} is cut short: it ends before its last tensor; get the file again")
        return hash_open(opened, progress, cancelled), opened.size_bytes


def _check_magic(opened: OpenModel) -> None:
    try:
        magic = os.pread(opened.fd, len(_MAGIC), 0)
    except OSError as error:
        raise ModelError(f"cannot read the model file {opened.path}: {error.strerror}") from error
    if magic != _MAGIC:
        raise ModelError(f"{opened.path} is not a GGUF file; convert the model to GGUF first")
