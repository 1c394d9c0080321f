"""Every option of the daemon, defined once.

A field of :class:`Settings` says what the option is: its type and bounds, its default, its flag, its
environment variable, its key in ``config.json``, whether it is secret, and a sentence for people.
``OPTIONS`` is that table; the flags of ``inferd serve``, the reading of the environment and of the config
file, and docs/config.md are made from it, and nothing else knows a default or a bound.
"""

# ruff: noqa: RUF009 - a field is made by a function here, so that its row of the table stands beside it
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from inferd.config import paths
from inferd.config.entries import BackendEntry, surfaces_of
from inferd.config.kinds import (
    Boolean,
    Choice,
    FilePath,
    Integer,
    Name,
    Seconds,
    Secret,
    SecretText,
    Sha256,
    TcpAddress,
)
from inferd.config.option import Option, option

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The catalogue name of the model that is served when none is named."""


_MODEL, _ENGINE, _SOCKETS, _LIMITS, _STORE, _LOG = "Model", "Engine", "Sockets", "Limits", "Store", "Log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the daemon runs with; made by :func:`inferd.config.sources.read`.

    Of the TCP address and the Unix socket of a surface exactly one is set, and ``backends`` is never empty.
    Spans are in seconds, sizes in bytes.
    """

    backends: tuple[BackendEntry, ...] = ()

    backend: str = option(
        _MODEL,
        Choice(("llamacpp", "mock")),
        "llamacpp",
        "The kind of backend to serve; of a config file, only the entries of that kind are served then.",
    )
    model: str = option(
        _MODEL,
        Name(),
        DEFAULT_MODEL,
        "The model to serve, by its name in the catalogue or the store.",
    )
    model_path: Path | None = option(
        _MODEL,
        FilePath(),
        None,
        "A GGUF file to serve instead of a named model.",
    )
    model_sha256: str | None = option(
        _MODEL,
        Sha256(),
        None,
        "The SHA-256 that the model file must have; it is checked before the file is loaded.",
    )
    n_ctx: int = option(
        _MODEL,
        Integer(1),
        8192,
        "Tokens of context that one request may use, prompt and answer together.",
        key="n_ctx",
    )
    n_gpu_layers: int = option(
        _MODEL,
        Integer(-1),
        -1,
        "Layers of the model to keep on a GPU; -1 takes all that fit, 0 stays on the CPU.",
        key="n_gpu_layers",
    )
    require_gpu: bool = option(
        _MODEL,
        Boolean(),
        False,
        "Refuse to start when the model would run on the CPU.",
    )

    threads: int = option(
        _ENGINE,
        Integer(0, 512),
        0,
        "Threads of the token loop; 0 chooses the number from the machine and how busy it is.",
        key="engine.threads",
    )
    n_batch: int = option(
        _ENGINE,
        Integer(1, 65536),
        512,
        "Most tokens that one step of the token loop computes.",
        key="engine.n_batch",
    )
    flash_attention: str = option(
        _ENGINE,
        Choice(("auto", "on", "off")),
        "auto",
        "Flash attention; auto is off on a CPU, where it slows decoding, and left to llama.cpp on a GPU.",
        key="engine.flash_attention",
    )
    kv_cache_type: str = option(
        _ENGINE,
        Choice(("f16", "q8_0")),
        "f16",
        "The number format of the KV cache; q8_0 takes half the memory of f16.",
        key="engine.kv_cache_type",
    )
    kv_unified: bool = option(
        _ENGINE,
        Boolean(),
        False,
        "Keep all requests in one KV cache instead of one each.",
        key="engine.kv_unified",
    )

    lock: Path = option(
        _SOCKETS,
        FilePath(),
        paths.lock_path,
        "The lock file that keeps a second daemon from starting.",
        default_doc="`inferd.lock` in the runtime directory",
    )
    tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve on this TCP address instead of the Unix socket; off loopback an API key is needed.",
        key="listen.tcp",
    )
    uds: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.inference_socket_path,
        "The Unix socket to serve on.",
        default_doc="`infer.sock` in the runtime directory",
    )
    v2: bool = option(
        _SOCKETS,
        Boolean(),
        True,
        "Serve typed blocks (v2) on a socket of their own.",
    )
    v2_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve v2 on this TCP address instead of its Unix socket; off loopback an API key is needed.",
        key="listen.tcp_v2",
    )
    v2_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.v2_socket_path,
        "The Unix socket to serve v2 on.",
        default_doc="`infer.v2.sock` in the runtime directory",
    )
    embed: bool = option(
        _SOCKETS,
        Boolean(),
        False,
        "Serve embeddings on a socket of their own, if a model makes them. A backend with `embed`"
        " in the config file asks for that, too; a model without that key is asked what it is made for.",
    )
    embed_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve embed on this TCP address instead of its Unix socket; off loopback an API key is needed.",
        key="listen.tcp_embed",
    )
    embed_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.embed_socket_path,
        "The Unix socket to serve embed on.",
        default_doc="`infer.embed.sock` in the runtime directory",
    )
    rerank: bool = option(
        _SOCKETS,
        Boolean(),
        False,
        "Serve rankings of documents on a socket of their own, if a model makes them. A backend with `embed`"
        " in the config file asks for that, too; a model without that key is asked what it is made for.",
    )
    rerank_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve rerank on this TCP address instead of its Unix socket; off loopback an API key is needed.",
        key="listen.tcp_rerank",
    )
    rerank_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.rerank_socket_path,
        "The Unix socket to serve rerank on.",
        default_doc="`infer.rerank.sock` in the runtime directory",
    )
    group: str | None = option(
        _SOCKETS,
        Name("GROUP"),
        None,
        "The group whose members may connect to the Unix sockets of requests.",
    )
    admin_addr: Path = option(
        _SOCKETS,
        FilePath(),
        paths.admin_socket_path,
        "The Unix socket that reports status.",
        key="admin_addr",
        default_doc="`admin.sock` in the runtime directory",
    )
    api_key: Secret | None = option(
        _SOCKETS,
        SecretText(),
        None,
        "The key that a TCP client must send; a flag is seen by every user of the machine, so prefer the"
        " variable or --api-key-file.",
    )
    api_key_file: Path | None = option(
        _SOCKETS,
        FilePath(),
        None,
        "A file whose first line is the API key.",
    )
    api_key_env: str | None = option(
        _SOCKETS,
        Name("VARIABLE"),
        None,
        "The name of the environment variable that holds the API key.",
        flag=False,
        env=None,
        key="listen.api_key_env",
    )

    active_permits: int = option(
        _LIMITS,
        Integer(0, 256),
        4,
        "Requests that run at the same time; 0 counts as 1.",
        key="engine.active_permits",
    )
    queue_depth: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        10,
        "Requests that may wait for their turn; the next one is refused.",
        key="engine.queue_depth",
    )
    ready_timeout_secs: float = option(
        _LIMITS,
        Seconds(positive=True),
        30.0,
        "How long a built backend may take to become ready.",
    )
    drain_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        10.0,
        "How long requests may go on after a stop was asked for.",
    )
    write_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        60.0,
        "How long a client may leave its answer unread before it is dropped; 0 waits for ever.",
        key="limits.write_timeout_secs",
    )
    idle_exit_secs: float = option(
        _LIMITS,
        Seconds(),
        0.0,
        "Stop when nobody has been connected for this long; 0 never stops.",
    )
    max_frame_bytes: int = option(
        _LIMITS,
        Integer(1024, 64 * 1024 * 1024),
        65536,
        "The longest request line in bytes.",
        key="limits.max_frame_bytes",
    )
    max_attachment_bytes: int = option(
        _LIMITS,
        Integer(1024, 128 * 1024 * 1024),
        64 * 1024 * 1024,
        "The largest attachment behind a request line in bytes.",
        key="limits.max_attachment_bytes",
    )
    max_connections: int = option(
        _LIMITS,
        Integer(1, 1_000_000),
        1024,
        "Connections that may be open; the next one is closed at once.",
        key="limits.max_connections",
    )

    auto_pull: bool = option(
        _STORE,
        Boolean(),
        True,
        "Fetch a model that is not in the store.",
        key="auto_pull",
    )
    models_home: Path = option(
        _STORE,
        FilePath(),
        paths.models_home,
        "The directory of the model store.",
        env="MODELS_HOME",
        key="models_home",
        default_doc="`$XDG_DATA_HOME/models`, else `~/.local/share/models`"
        " (macOS: `~/Library/Application Support/models`)",
    )
    verify: str = option(
        _STORE,
        Choice(("auto", "always")),
        "auto",
        "When to hash a stored model again; auto does so only when the file may have changed.",
    )

    log_level: str = option(
        _LOG,
        Choice(("off", "error", "warn", "info", "debug", "trace"), {"0": "off"}),
        "info",
        "The least severe level that is logged.",
        env="INFERD_LOG",
    )
    log_dir: Path = option(
        _LOG,
        FilePath(),
        paths.log_dir,
        "The directory of the activity log.",
        default_doc="`~/.inferd/logs`",
    )

    @property
    def surfaces(self) -> frozenset[str]:
        """The surfaces that are to be served, where a backend is capable of them."""
        asked = {"v1"}.union(*map(surfaces_of, self.backends))
        return frozenset(asked | {name for name in ("v2", "embed", "rerank") if getattr(self, name)})


def _table() -> tuple[Option, ...]:
    rows: list[Option] = []
    for row in dataclasses.fields(Settings):
        if row.metadata:
            meta = dict(row.metadata)
            upper = row.name.upper()
            meta["flag"] = "--" + row.name.replace("_", "-") if meta["flag"] else None
            meta["env"] = f"INFERD_{upper}" if meta["env"] == "" else meta["env"]
            rows.append(Option(name=row.name, **meta))
    return tuple(rows)


OPTIONS: tuple[Option, ...] = _table()

TRANSPORTS = (
    ("tcp", "uds"),
    ("v2_tcp", "v2_addr"),
    ("embed_tcp", "embed_addr"),
    ("rerank_tcp", "rerank_addr"),
)
"""The TCP address and the Unix socket of each surface; the first, when there is one, replaces the second."""

EXCLUSIVE: tuple[tuple[str, ...], ...] = (
    *TRANSPORTS,
    ("model", "model_path"),
    ("api_key", "api_key_file", "api_key_env"),
)
"""Options of which one excludes the others when they are given in the same place."""
