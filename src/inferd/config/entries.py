"""The configured backends: one class per kind.

An entry is complete: defaults are filled in and secrets looked up, so that a backend is built from its entry
and the common settings alone. ``serves`` is a further name by which requests may ask for the entry, besides
its own name and its model's. Entries with the same ``serves`` form a pool. ``None``: the model's name, if the
entry names a model. ``max_requests`` limits the concurrent requests of a pool to a remote entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from inferd.config.kinds import Secret


class ModelSpec(NamedTuple):
    """A model by name; without ``sha256``, the catalogue or the store gives its hash."""

    name: str
    sha256: str | None = None
    source_url: str = ""
    size_bytes: int | None = None
    license: str = ""


class Adapter(NamedTuple):
    """A LoRA adapter: a GGUF file, its strength, and the name by which a request selects it."""

    name: str
    path: Path
    scale: float = 1.0


MAX_REQUESTS = 64


class MockEntry(NamedTuple):
    """Answers without a model, for tests and for trying out a client."""

    name: str
    serves: str | None = None


class LlamaCppEntry(NamedTuple):
    """A local model; exactly one of ``model`` and ``model_path`` is set.

    ``embed``: the model makes vectors instead of text, or scores if ``embed_pooling`` is ``rank``; with
    ``None`` the model decides, if embedding or ranking is enabled. ``mmproj`` is the projector, a file or a
    model of the store. ``n_ctx`` ``None``: up to 16,384, as far as model and memory allow. ``preload``: load
    at the start and keep loaded; else load on demand, and with ``pin`` keep loaded then. ``system`` is the
    system prompt of requests that have none. ``chat_template_file`` replaces the model's template. ``lora``
    are adapters that requests may select. ``draft`` is a small model that drafts for this one.
    ``rpc`` are the addresses (``IP:port``) of workers that compute a part of the model; ``rpc_unprotected``
    permits those whose network is neither local nor a tunnel.
    """

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
    draft: Path | ModelSpec | None = None
    rpc: tuple[str, ...] = ()
    rpc_unprotected: bool = False
    serves: str | None = None


class OpenAICompatEntry(NamedTuple):
    """A server with the OpenAI API below ``base_url``, which does not include ``/v1``.

    ``embed`` and ``rerank``: whether the server offers it; ``None`` follows the setting of the same name.
    ``top_k``: whether the server supports that parameter. ``timeout_secs`` limits the silence of the server.
    """

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


class BedrockEntry(NamedTuple):
    """A model of AWS Bedrock; either ``bearer_token`` or both parts of the access key are set.

    ``endpoint`` replaces the region's endpoint. ``timeout_secs`` limits the silence of the server.
    """

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


class InferdEntry(NamedTuple):
    """Another daemon: the addresses (socket path or ``IP:port``) of its v2, embed and rerank surfaces, at
    least one of them. ``model`` is the model to request; empty for the daemon's first one."""

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

_KINDS: dict[type[BackendEntry], str] = {
    MockEntry: "mock",
    LlamaCppEntry: "llamacpp",
    OpenAICompatEntry: "openai-compat",
    BedrockEntry: "bedrock-invoke",
    InferdEntry: "inferd",
}


def kind_of(entry: BackendEntry) -> str:
    """The ``kind`` of an entry in the config file."""
    return _KINDS[type(entry)]


def surfaces_of(entry: BackendEntry) -> frozenset[str]:
    """The surfaces, of ``embed`` and ``rerank``, that the entry itself enables."""
    if isinstance(entry, LlamaCppEntry):
        if not entry.embed:
            return frozenset()
        return frozenset(("rerank" if entry.embed_pooling == "rank" else "embed",))
    if isinstance(entry, OpenAICompatEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, name))
    if isinstance(entry, InferdEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, f"{name}_address"))
    return frozenset()
