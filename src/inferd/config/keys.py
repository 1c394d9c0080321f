"""The keys of the objects in the config file that describe a backend of each kind, a model, or an adapter.

Each key has a kind, which checks and describes its value, and a sentence for the documentation.
"""

from __future__ import annotations

from typing import NamedTuple

from inferd.config.addresses import DaemonAddress, Endpoint, HttpsUrl, ServerUrl, Workers
from inferd.config.entries import MAX_REQUESTS
from inferd.config.kinds import Boolean, Choice, FilePath, Kind, Name, Paragraphs, Sha256, Text, Words
from inferd.config.numbers import Integer, Number
from inferd.config.settings import OPTIONS


class Key(NamedTuple):
    """One key of such an object."""

    name: str
    kind: Kind
    doc: str
    required: bool = False


_KINDS = {option.name: option.kind for option in OPTIONS}
_NAME = Key("name", Name(), "The name of the entry, unique in the file.", required=True)

MODEL_KEYS = (
    Key("name", Name(), "The model's name in the store or the catalogue.", required=True),
    Key(
        "sha256",
        Sha256(),
        "The hash of the file; without it inferd looks the name up in the store and the catalogue.",
    ),
    Key("source_url", HttpsUrl(), "The address of the file; empty if it is in the store."),
    Key("size_bytes", Integer(1, 2**63 - 1), "The size of the file in bytes."),
    Key("license", Text(), "The licence, stored with the file."),
)

LORA_KEYS = (
    Key("name", Name(), "The name by which a request asks for the adapter.", required=True),
    Key("path", FilePath(), "The GGUF file of the adapter.", required=True),
    Key("scale", Number(-100, 100), "The strength of the adapter; 1 when absent."),
)

_SERVES = Key(
    "serves",
    Name(),
    "A further name by which requests may ask for the entry, besides its own name and its model's. "
    "Entries with the same `serves` form a pool (docs/scale.md). When absent: the model's name, if the entry "
    "names a model.",
)
_MAX_REQUESTS = Key(
    "max_requests",
    Integer(1, 1_000_000),
    f"The maximum number of requests that the entry runs at once in its pool; {MAX_REQUESTS} when absent.",
)

BACKEND_KEYS: dict[str, tuple[Key, ...]] = {
    "llamacpp": (
        _NAME,
        Key("model_path", FilePath(), "A GGUF file; excludes `model`."),
        Key("aliases", Words("NAME"), "Further names by which a request may ask for the entry."),
        Key(
            "preload",
            Boolean(),
            "`true`, the default: the daemon loads the model at its start and keeps it loaded. `false`: the "
            "daemon loads the model when a request names it.",
        ),
        Key("pin", Boolean(), "The daemon keeps the model loaded once a request has loaded it."),
        Key("system", Paragraphs(), "The system prompt for requests that have no system message."),
        Key("chat_template_file", FilePath(), "A Jinja template to use instead of the model's own."),
        Key(
            "n_ctx",
            _KINDS["n_ctx"],
            "The context of one request in tokens; the top-level `n_ctx` when absent.",
        ),
        Key(
            "n_gpu_layers",
            _KINDS["n_gpu_layers"],
            "The number of layers to keep on a GPU; the top-level `n_gpu_layers` when absent.",
        ),
        Key("mmproj", FilePath(), "The GGUF file of the projector for pictures or sounds."),
        Key(
            "draft",
            Name(),
            "A small model with the same vocabulary, by its name in the store or the catalogue; it drafts "
            "tokens for this model, as `engine.drafts` says.",
        ),
        Key(
            "draft_path",
            FilePath(),
            "The GGUF file of the small model that drafts tokens for this model; excludes `draft`.",
        ),
        Key("embed", Boolean(), "The model makes embeddings, or ranks documents, instead of text."),
        Key(
            "embed_pooling",
            Choice(("mean", "cls", "last", "rank"), numbers={1: "mean", 2: "cls", 3: "last", 4: "rank"}),
            "How the vectors of the tokens are pooled, `rank` for a ranking model; llama.cpp's "
            "numbers 1 to 4 mean the same. The model file's value when absent.",
        ),
        Key(
            "embed_n_ctx", Integer(1), "The maximum number of tokens of one input to embed; 2048 when absent."
        ),
        Key(
            "rpc",
            Workers(),
            "The workers on other hosts that compute a part of the model (docs/rpc.md). Without a GPU on "
            "this host, each worker and this host get an equal share of the layers; `n_gpu_layers` sets the "
            "number of layers for all workers together.",
        ),
        Key(
            "rpc_unprotected",
            Boolean(),
            "The entry may name workers outside this machine and WireGuard, although the protocol of the "
            "workers has no encryption and no keys.",
        ),
        _SERVES,
    ),
    "openai-compat": (
        _NAME,
        Key("base_url", ServerUrl(), "The server, without the `/v1` of its API.", required=True),
        Key("model", _KINDS["openai_model"], "The server's name of the model.", required=True),
        Key(
            "api_key_env",
            Name(),
            "The name of the environment variable that holds the key; see below for the default.",
        ),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "The maximum time without a byte from the server, in seconds; then the request fails. 300 when "
            "absent.",
        ),
        Key(
            "embed",
            Boolean(),
            "Whether the server makes embeddings; when absent, the option `embed` decides.",
        ),
        Key(
            "rerank",
            Boolean(),
            "Whether the server ranks documents; when absent, the option `rerank` decides.",
        ),
        Key(
            "top_k",
            Boolean(),
            "Whether the server accepts the field `top_k`, which OpenAI refuses. When absent, `top_k` is not "
            "sent.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "bedrock-invoke": (
        _NAME,
        Key("region", _KINDS["bedrock_region"], "The AWS region of the model.", required=True),
        Key("model_id", _KINDS["bedrock_model_id"], "The id of the model.", required=True),
        Key(
            "bearer_token_env",
            Name(),
            "The name of the environment variable that holds a bearer token; see below for the default.",
        ),
        Key("endpoint", Endpoint(), "A server to use instead of AWS's own."),
        Key(
            "timeout_secs",
            _KINDS["bedrock_timeout_secs"],
            "The maximum time without a byte from the server, in seconds; then the request fails. 300 when "
            "absent.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "inferd": (
        _NAME,
        Key("address", DaemonAddress(), "The address of the other daemon's v2 surface, for text."),
        Key(
            "embed_address",
            DaemonAddress(),
            "The address of the other daemon's embed surface, for embeddings.",
        ),
        Key(
            "rerank_address",
            DaemonAddress(),
            "The address of the other daemon's rerank surface, for rankings.",
        ),
        Key("model", Name(), "The model to ask for; the other daemon's first model when absent."),
        Key(
            "api_key_env",
            Name(),
            "The name of the environment variable that holds the key of the other daemon. A TCP address "
            "requires a key.",
        ),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "The maximum time without a byte from the server, in seconds; then the request fails. 300 when "
            "absent.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "mock": (_NAME, _SERVES),
}

TAKES_MODEL = frozenset({"llamacpp"})
"""The kinds of backend that have a ``model`` object and ``lora``."""
