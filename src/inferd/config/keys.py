"""The keys of three kinds of objects in the config file: config entries (of backends), models and adapters.

Each :class:`Key` has a value type (:mod:`inferd.config.kinds`), which checks and describes the key's value,
and a text for the documentation.
"""

from __future__ import annotations

from typing import NamedTuple

from inferd.config.addresses import DaemonAddress, Endpoint, HttpsUrl, ServerUrl, Workers
from inferd.config.entries import MAX_REQUESTS
from inferd.config.kinds import Boolean, Choice, FilePath, Kind, Name, Paragraphs, Sha256, Text, Words
from inferd.config.numbers import Integer, Number
from inferd.config.settings import OPTIONS


class Key(NamedTuple):
    """One key of an object in the config file."""

    name: str
    kind: Kind
    doc: str
    required: bool = False


_KINDS = {option.name: option.kind for option in OPTIONS}
_NAME = Key("name", Name(), "The name of the config entry, unique in the file.", required=True)

MODEL_KEYS = (
    Key("name", Name(), "The model's name in the store or the catalogue.", required=True),
    Key(
        "sha256",
        Sha256(),
        "The SHA-256 of the file. If absent, inferd takes the hash from the store or the catalogue.",
    ),
    Key("source_url", HttpsUrl(), "The address of the file, or empty if the file is in the store."),
    Key("size_bytes", Integer(1, 2**63 - 1), "The size of the file in bytes."),
    Key("license", Text(), "The licence, which is stored with the file."),
)

LORA_KEYS = (
    Key("name", Name(), "The name that requests use for the adapter.", required=True),
    Key("path", FilePath(), "The GGUF file of the adapter.", required=True),
    Key("scale", Number(-100, 100), "The strength of the adapter. The default is 1."),
)

_SERVES = Key(
    "serves",
    Name(),
    "A name that requests may use for the backend, in addition to the name of the config entry and the name "
    "of the model. Backends that serve the same name form a pool if at least one of the backends is remote "
    "(docs/scale.md). The default is the model's name, if the config entry names a model.",
)
_MAX_REQUESTS = Key(
    "max_requests",
    Integer(1, 1_000_000),
    "The maximum number of requests that a pool sends to this backend at the same time. The default is "
    f"{MAX_REQUESTS}.",
)

BACKEND_KEYS: dict[str, tuple[Key, ...]] = {
    "llamacpp": (
        _NAME,
        Key("model_path", FilePath(), "A GGUF file to serve. Cannot be combined with `model`."),
        Key("aliases", Words("NAME"), "Additional names that requests may use for the model."),
        Key(
            "preload",
            Boolean(),
            "`true`, the default: the daemon loads the model when it starts, and keeps it loaded. `false`: "
            "the daemon loads the model when a request names it.",
        ),
        Key("pin", Boolean(), "Whether the daemon keeps the model loaded after a request has loaded it."),
        Key("system", Paragraphs(), "The system prompt for requests that have no system message."),
        Key("chat_template_file", FilePath(), "A Jinja template to use instead of the model's own template."),
        Key(
            "n_ctx",
            _KINDS["n_ctx"],
            "The maximum number of tokens of one request. The default is the top-level `n_ctx`.",
        ),
        Key(
            "n_gpu_layers",
            _KINDS["n_gpu_layers"],
            "The number of layers to keep on a GPU. The default is the top-level `n_gpu_layers`.",
        ),
        Key("mmproj", FilePath(), "The GGUF file of the projector, which encodes pictures or sounds."),
        Key(
            "draft",
            Name(),
            "The name of a draft model in the store or the catalogue: a small model with the same "
            "vocabulary, which drafts tokens. The option `drafts` says when the drafts are used.",
        ),
        Key(
            "draft_path",
            FilePath(),
            "The GGUF file of the draft model. Cannot be combined with `draft`.",
        ),
        Key(
            "embed",
            Boolean(),
            "`true` for a model that computes embeddings or ranks documents; `false` for a model that "
            "generates text.",
        ),
        Key(
            "embed_pooling",
            Choice(("mean", "cls", "last", "rank"), numbers={1: "mean", 2: "cls", 3: "last", 4: "rank"}),
            "How the embedding of a text is computed from the vectors of its tokens; `rank` is for a "
            "reranking model. The config file may also name these values by llama.cpp's numbers: 1 for "
            "`mean`, 2 for `cls`, 3 for `last`, 4 for `rank`. The default is the value in the model file.",
        ),
        Key(
            "embed_n_ctx",
            Integer(1),
            "The maximum number of tokens of one input to embed. The default is 2048.",
        ),
        Key(
            "rpc",
            Workers(),
            "The addresses of workers on other hosts, which compute a part of the model (docs/rpc.md). If "
            "this host has no GPU, this host and each worker get an equal share of the layers, unless "
            "`n_gpu_layers` sets the number of layers of all workers together.",
        ),
        Key(
            "rpc_unprotected",
            Boolean(),
            "Whether `rpc` may contain addresses on an unprotected network, which is any network except "
            "loopback and WireGuard. The protocol of the workers has no encryption and no authentication.",
        ),
        _SERVES,
    ),
    "openai-compat": (
        _NAME,
        Key(
            "base_url", ServerUrl(), "The address of the server, without the `/v1` of its API.", required=True
        ),
        Key("model", _KINDS["openai_model"], "The name of the model on the server.", required=True),
        Key(
            "api_key_env",
            Name(),
            "The name of the environment variable that holds the API key. The default is described below.",
        ),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "A request fails after this many seconds without a byte from the server. The default is 300.",
        ),
        Key(
            "embed",
            Boolean(),
            "Whether the server computes embeddings. The default is `true` if the option `embed` "
            "(`--embed`) is set, `rerank` is not `true`, and no other config entry enables embeddings. "
            "Otherwise the default is `false`.",
        ),
        Key(
            "rerank",
            Boolean(),
            "Whether the server ranks documents. The default is `true` if the option `rerank` (`--rerank`) "
            "is set, `embed` is not `true`, and no other config entry enables rankings. Otherwise the "
            "default is `false`.",
        ),
        Key(
            "top_k",
            Boolean(),
            "Whether to send the field `top_k`, which OpenAI refuses. The default is `false`.",
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
            "The name of the environment variable that holds the bearer token. The default is described "
            "below.",
        ),
        Key("endpoint", Endpoint(), "The address of a server to use instead of AWS's own server."),
        Key(
            "timeout_secs",
            _KINDS["bedrock_timeout_secs"],
            "A request fails after this many seconds without a byte from the server. The default is 300.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "inferd": (
        _NAME,
        Key("address", DaemonAddress(), "The other daemon's address for text (its v2 surface)."),
        Key(
            "embed_address",
            DaemonAddress(),
            "The other daemon's address for embeddings (its embed surface).",
        ),
        Key(
            "rerank_address",
            DaemonAddress(),
            "The other daemon's address for rankings (its rerank surface).",
        ),
        Key(
            "model",
            Name(),
            "The name of the model on the other daemon. The default is the other daemon's first model.",
        ),
        Key(
            "api_key_env",
            Name(),
            "The name of the environment variable that holds the API key of the other daemon. If the other "
            "daemon listens on a TCP address beyond loopback, it requires a key.",
        ),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "A request fails after this many seconds without a byte from the other daemon. The default is "
            "300.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "mock": (_NAME, _SERVES),
}

TAKES_MODEL = frozenset({"llamacpp"})
"""The kinds of backend that have a ``model`` object and ``lora``."""
