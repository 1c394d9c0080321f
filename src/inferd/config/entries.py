"""The entries of configured backends, with one class for each kind.

An entry is complete: defaults are filled in and secrets are looked up. So a backend can be built from its
entry and the common settings alone. Requests may address an entry by its own name, by the name of its model,
or by ``serves``. A ``serves`` of ``None`` means the name of the model, if the entry names a model. Several
entries with the same ``serves``, at least one of them remote, form a pool. ``max_requests`` limits the
concurrent requests that a pool sends to a remote entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from inferd.config.kinds import Secret


class ModelSpec(NamedTuple):
    """A model by its name. Without ``sha256``, its hash comes from the catalogue or the store."""

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
    """A backend that answers without a model, for tests and for trying out a client."""

    name: str
    serves: str | None = None


class LlamaCppEntry(NamedTuple):
    """A local model. Either ``model`` or ``model_path`` is set.

    With ``embed``, the model makes embeddings instead of text, or rerank scores if ``embed_pooling`` is
    ``rank``. If ``embed`` is ``None`` and embedding or reranking is enabled, the model's file decides.
    ``mmproj`` is the projector, a file or a model of the store. If ``n_ctx`` is ``None``, the context has up
    to 16,384 tokens, as far as model and memory allow. With ``preload``, the model is loaded at the start and
    stays loaded. Without ``preload``, the model is loaded on demand, and with ``pin`` it then stays loaded.
    ``system`` is the system prompt of requests that have none. ``chat_template_file`` replaces the model's
    chat template. ``lora`` are the adapters that requests may select. ``draft`` is a small model for
    speculative decoding. ``rpc`` are the addresses (``IP:port``) of workers that hold a part of the model.
    ``rpc_unprotected`` also permits workers that are neither on this machine nor behind an encrypted tunnel.
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

    ``embed`` and ``rerank`` say whether the server offers these surfaces. ``None`` means the setting of the
    same name, or false if another entry enables the surface. ``top_k`` says whether the server supports that
    parameter. ``timeout_secs`` is how long the server may send nothing.
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
    """A model of AWS Bedrock. Either ``bearer_token`` or both parts of the access key are set.

    ``endpoint`` replaces the region's endpoint. ``timeout_secs`` is how long the server may send nothing.
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
    """Another daemon. The three addresses are those of its v2, embed and rerank surfaces, each a socket path
    or ``IP:port``. At least one is set. ``model`` is the model to request. An empty ``model`` means the
    daemon's first model."""

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
    """Returns the ``kind`` that an entry has in the config file."""
    return _KINDS[type(entry)]


def surfaces_of(entry: BackendEntry) -> frozenset[str]:
    """Returns which of the surfaces ``embed`` and ``rerank`` the entry itself enables."""
    if isinstance(entry, LlamaCppEntry):
        if not entry.embed:
            return frozenset()
        return frozenset(("rerank" if entry.embed_pooling == "rank" else "embed",))
    if isinstance(entry, OpenAICompatEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, name))
    if isinstance(entry, InferdEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, f"{name}_address"))
    return frozenset()
