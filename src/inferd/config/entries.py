"""The backends that the configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model by name; without ``sha256`` the name is looked up in the store and the catalogue."""

    name: str
    sha256: str | None = None
    source_url: str = ""
    size_bytes: int | None = None
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """A backend to build; ``llamacpp`` has exactly one of ``model`` and ``model_path``, ``mock`` neither.

    ``embed``: the model makes vectors instead of text, or scores when ``embed_pooling`` is ``rank``; ``None``
    leaves that to the model where embedding or ranking is asked for. ``mmproj`` is the projector's file.
    """

    kind: str
    name: str
    model: ModelSpec | None = None
    model_path: Path | None = None
    model_sha256: str | None = None
    n_ctx: int = 8192
    n_gpu_layers: int = -1
    embed: bool | None = None
    embed_pooling: str | None = None
    embed_n_ctx: int = 2048
    mmproj: Path | None = None
