"""The backends that the configuration asks for: one class for each kind.

An entry is complete: defaults are filled in, and secrets have been looked up, so that who builds a backend
reads nothing else but the settings that all backends share. ``serves`` is the name by which requests may ask
for the entry beside its own, and entries of one such name form a pool; ``None`` is the name of its model.
``max_requests`` is how many requests of a pool a remote entry is sent at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from inferd.config.kinds import Secret


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model by name; without ``sha256`` the name is looked up in the store and the catalogue."""

    name: str
    sha256: str | None = None
    source_url: str = ""
    size_bytes: int | None = None
    license: str = ""


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter: a GGUF file, and the name by which a request asks for it."""

    name: str
    path: Path


MAX_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MockEntry:
    """Answers without a model, for tests and for trying out a client."""

    kind: ClassVar[str] = "mock"
    name: str
    serves: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppEntry:
    """A model of our own; exactly one of ``model`` and ``model_path`` is set.

    ``embed``: the model makes vectors instead of text, or scores when ``embed_pooling`` is ``rank``; ``None``
    leaves that to the model where embedding or ranking is asked for. ``mmproj`` is the projector, a file of
    its own or one of the store. ``n_ctx`` ``None``: up to 16,384, as the model and the memory allow.
    ``preload``: it is loaded at the start and stays; else when a request names it, and ``pin`` lets it stay
    then. ``system`` is the system prompt of requests that have none. ``chat_template_file`` replaces the
    model's own template. ``lora`` are adapters that requests may choose from.
    """

    kind: ClassVar[str] = "llamacpp"
    name: str
    model: ModelSpec | None = None
    model_path: Path | None = None
    model_sha256: str | None = None
    n_ctx: int | None = None
    n_gpu_layers: int = -1
    embed: bool | None = None
    embed_pooling: str | None = None
    embed_n_ctx: int = 2048
    mmproj: Path | ModelSpec | None = None
    preload: bool = True
    pin: bool = False
    aliases: tuple[str, ...] = ()
    system: str = ""
    chat_template_file: Path | None = None
    lora: tuple[Adapter, ...] = ()
    serves: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAICompatEntry:
    """A server that speaks the OpenAI API below ``base_url``, which has no path ``/v1`` of its own.

    ``embed`` and ``rerank``: whether the server does that; ``None`` is as the settings of the same name ask.
    ``top_k``: whether the server knows that setting. ``timeout_secs`` is the longest silence.
    """

    kind: ClassVar[str] = "openai-compat"
    name: str
    base_url: str
    model: str
    api_key: Secret | None = None
    timeout_secs: float = 300.0
    embed: bool | None = None
    rerank: bool | None = None
    top_k: bool = False
    serves: str | None = None
    max_requests: int = MAX_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class BedrockEntry:
    """A model of AWS Bedrock; either ``bearer_token`` or both parts of the access key are set.

    ``endpoint`` replaces the address of the region's own service. ``timeout_secs`` is the longest silence.
    """

    kind: ClassVar[str] = "bedrock-invoke"
    name: str
    region: str
    model_id: str
    endpoint: str | None = None
    timeout_secs: float = 300.0
    bearer_token: Secret | None = None
    access_key_id: str | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    serves: str | None = None
    max_requests: int = MAX_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class InferdEntry:
    """Another daemon: the path of a Unix socket or ``IP:port`` of its v2 surface, and of those for vectors
    and scores, at least one of them. ``model`` is what it is asked for, empty for its first one."""

    kind: ClassVar[str] = "inferd"
    name: str
    address: str | None = None
    embed_address: str | None = None
    rerank_address: str | None = None
    model: str = ""
    api_key: Secret | None = None
    timeout_secs: float = 300.0
    serves: str | None = None
    max_requests: int = MAX_REQUESTS


BackendEntry = MockEntry | LlamaCppEntry | OpenAICompatEntry | BedrockEntry | InferdEntry


def surfaces_of(entry: BackendEntry) -> frozenset[str]:
    """Which of ``embed`` and ``rerank`` the entry itself asks to be served."""
    if isinstance(entry, LlamaCppEntry):
        if not entry.embed:
            return frozenset()
        return frozenset(("rerank" if entry.embed_pooling == "rank" else "embed",))
    if isinstance(entry, OpenAICompatEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, name))
    if isinstance(entry, InferdEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, f"{name}_address"))
    return frozenset()
