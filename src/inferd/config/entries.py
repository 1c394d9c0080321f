"""The config entries, with one class for each kind of backend. A config entry configures one backend.

A config entry is complete: its defaults are filled in and its secrets are looked up. So a backend can be
built from its config entry and the daemon's settings alone. Requests may address a backend by the name of the
config entry, by the name of the model, or by the name in ``serves``. If ``serves`` is ``None`` and the config
entry names a model, the name of the model is used instead. Backends with the same ``serves`` form a pool if
at least one of these backends is remote. ``max_requests`` limits the concurrent requests that a pool sends to
a remote backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from inferd.config.kinds import Secret


class ModelSpec(NamedTuple):
    """A model and its name. If ``sha256`` is ``None``, the model's hash comes from the catalogue or the
    store."""

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

    If ``embed`` is true, the model computes no text. It computes scores for reranking if ``embed_pooling`` is
    ``rank``, and embeddings otherwise. If ``embed`` is ``None`` and the daemon serves embeddings or rankings,
    the model's file says what the model computes. ``mmproj`` is the projector for pictures or sounds: a file
    or a model of the store. If ``n_ctx`` is ``None``, the context has up to 16,384 tokens, as far as the
    model and the memory allow. With ``preload``, the model is loaded when the daemon starts, and stays
    loaded. Without ``preload``, the model is loaded when a request names it; with ``pin``, it then stays
    loaded. ``system`` is the system prompt for requests without a system message. ``chat_template_file``
    replaces the model's chat template. ``lora`` are the adapters that requests may select. ``draft`` is a
    small model for speculative decoding. ``rpc`` are the addresses (``IP:port``) of RPC workers that hold a
    part of the model. ``rpc_unprotected`` also permits workers that are neither on this machine nor behind an
    encrypted tunnel.
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

    ``embed`` and ``rerank`` say whether the server computes embeddings and rankings. If one of the two is
    ``None``, it has the value of the daemon's option of the same name. But it is false if another config
    entry enables the same surface, or if the other of the two is true. ``top_k`` says whether the server
    supports the sampling parameter ``top_k``. A request fails if the server sends nothing for
    ``timeout_secs``.
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
    """A model of AWS Bedrock. Either ``bearer_token`` is set, or ``access_key_id`` and ``secret_access_key``.

    ``endpoint`` replaces the region's endpoint. A request fails if the server sends nothing for
    ``timeout_secs``.
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
    """Another inferd daemon. ``address``, ``embed_address`` and ``rerank_address`` are the addresses of the
    other daemon's v2, embed and rerank surfaces, each a socket path or ``IP:port``. At least one of the three
    is set. ``model`` is the model to request. An empty ``model`` means the other daemon's first model."""

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
    """Returns the ``kind`` of a config entry in the config file."""
    return _KINDS[type(entry)]


def surfaces_of(entry: BackendEntry) -> frozenset[str]:
    """Returns the surfaces that a config entry itself enables: ``embed``, ``rerank``, both, or none."""
    if isinstance(entry, LlamaCppEntry):
        if not entry.embed:
            return frozenset()
        return frozenset(("rerank" if entry.embed_pooling == "rank" else "embed",))
    if isinstance(entry, OpenAICompatEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, name))
    if isinstance(entry, InferdEntry):
        return frozenset(name for name in ("embed", "rerank") if getattr(entry, f"{name}_address"))
    return frozenset()
