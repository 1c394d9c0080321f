"""Finds the models of other programs on this machine: Ollama, the cache of the Hugging Face hub, and LM
Studio.

:func:`find` lists these models and writes nothing. An import verifies a model's file, and hard-links the file
into the store if the file and the store are on one file system. With a hard link, nothing is copied, and the
store keeps the model if the other program deletes its file. If the other program changes the file later, the
hash no longer matches, and the store refuses the model like any damaged file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inferd.errors import StoreError
from inferd.store.gguf import part_names, plain_name
from inferd.store.models import MAX_MANIFEST_BYTES, UNREADABLE

_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_PROJECTOR = "application/vnd.ollama.image.projector"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAMED_BY_DIGEST = re.compile(r"(?:sha256-)?([0-9a-f]{64})")
_UNFIT = re.compile(r"[^\w.+:@-]+")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model of another program. ``files`` has one file, or all files of a split model in order. ``digests``
    has one entry for each file: its sha256, or ``None`` if the program does not record the sha256."""

    name: str
    files: tuple[Path, ...]
    digests: tuple[str | None, ...]
    projector: Path | None = None

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


class _Layer(msgspec.Struct):
    digest: str
    mediaType: str = ""


class _OllamaManifest(msgspec.Struct):
    layers: list[_Layer]


def home_of(program: str, env: Mapping[str, str]) -> Path:
    """Returns the directory in which ``program`` (``ollama``, ``hub`` or ``lmstudio``) keeps its models."""
    home = Path(env.get("HOME") or Path.home())
    if program == "ollama":
        return Path(env.get("OLLAMA_MODELS") or home / ".ollama" / "models")
    if program == "hub":
        cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
        return Path(env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or cache / "huggingface") / "hub")
    older = home / ".cache" / "lm-studio" / "models"
    return older if older.is_dir() else home / ".lmstudio" / "models"


def find(program: str, home: Path) -> list[Foreign]:
    """Returns the GGUF models of ``program`` in the directory ``home``, sorted by name. Raises StoreError if
    the directory does not exist."""
    if not home.is_dir():
        raise StoreError(f"there is no folder {home}; name that of {program} with --path")
    finders = {"ollama": _ollama, "hub": _hub, "lmstudio": _lm_studio}
    return sorted(finders[program](home), key=lambda model: model.name)


def _ollama(home: Path) -> Iterator[Foreign]:
    """Finds the models of Ollama. A manifest ``manifests/HOST/NAMESPACE/MODEL/TAG`` names the files of a
    model. These files are at ``blobs/sha256-HEX``."""
    for path in (home / "manifests").glob("*/*/*/*"):
        with suppress(OSError, *UNREADABLE):
            with path.open("rb") as file:
                manifest = msgspec.json.decode(file.read(MAX_MANIFEST_BYTES), type=_OllamaManifest)
            blobs = {kind: _ollama_blobs(home, manifest, kind) for kind in (_OLLAMA_MODEL, _OLLAMA_PROJECTOR)}
            models, projectors = blobs[_OLLAMA_MODEL], blobs[_OLLAMA_PROJECTOR]
            if len(models) == 1:
                digest, blob = models[0]
                tag = "" if path.name == "latest" else f":{path.name}"
                projector = projectors[0][1] if projectors else None
                yield Foreign(_fit(path.parent.name + tag), (blob,), (digest,), projector)


def _ollama_blobs(home: Path, manifest: _OllamaManifest, kind: str) -> list[tuple[str, Path]]:
    found = []
    for layer in manifest.layers:
        match = _DIGEST.fullmatch(layer.digest)
        if layer.mediaType == kind and match is not None:
            blob = home / "blobs" / f"sha256-{match[1]}"
            if blob.is_file():
                found.append((match[1], blob))
    return found


def _hub(home: Path) -> Iterator[Foreign]:
    """Finds the models in the cache of the Hugging Face hub. Each file
    ``models--ORG--REPO/snapshots/COMMIT/FILE`` is a link to ``blobs/SHA256``."""
    for snapshot in home.glob("models--*/snapshots/*"):
        yield from _in_folder(snapshot)


def _lm_studio(home: Path) -> Iterator[Foreign]:
    """Finds the models of LM Studio, which are at ``ORG/REPO/FILE``."""
    for folder in home.glob("*/*"):
        yield from _in_folder(folder)


def _in_folder(folder: Path) -> Iterator[Foreign]:
    """Finds the models in the directory of one repository. If the directory has a projector, the projector
    belongs to every model in the directory."""
    names = sorted(path for path in folder.rglob("*.gguf") if path.is_file())
    projectors = [path for path in names if path.name.lower().startswith("mmproj")]
    for path in names:
        parts = part_names(path.name)
        if path in projectors or (not parts and plain_name(path.name) != path.name.removesuffix(".gguf")):
            continue
        files = tuple(path.with_name(name) for name in parts or [path.name])
        if all(file.is_file() for file in files):
            projector = projectors[0] if projectors else None
            yield Foreign(_fit(plain_name(path.name)), files, tuple(map(told_digest, files)), projector)


def told_digest(path: Path) -> str | None:
    """Returns the sha256 in the file name of ``path``, after links are resolved, or ``None`` if the name has
    no sha256. The hub's cache and Ollama name a file by its sha256."""
    match = _NAMED_BY_DIGEST.fullmatch(Path(os.path.realpath(path)).name)
    return None if match is None else match[1]


def _fit(name: str) -> str:
    """Returns ``name`` as a valid name of a model in the store: replaces the characters that are not
    allowed."""
    return _UNFIT.sub("-", name).strip(".-") or "model"
