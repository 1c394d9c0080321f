"""The options for the daemon's sockets, and for the clients that may connect to them."""

from __future__ import annotations

from pathlib import Path

from inferd.config import paths
from inferd.config.addresses import LocalAddress, TcpAddress
from inferd.config.kinds import Boolean, FilePath, Name, Secret, SecretText
from inferd.config.option import option

_SOCKETS = "Sockets"


class SocketOptions:
    """A part of the option table. See :class:`inferd.config.settings.Settings`."""

    lock: Path = option(
        _SOCKETS,
        FilePath(),
        paths.lock_path,
        "The lock file, which prevents a second daemon from starting.",
        default_doc="`inferd.lock` in the runtime directory",
    )
    tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve the protocol v1 (text) on this TCP address instead of a Unix socket. An address beyond "
        "loopback requires an API key.",
        key="listen.tcp",
    )
    uds: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.inference_socket_path,
        "The path of the Unix socket for the protocol v1, which serves text.",
        default_doc="`infer.sock` in the runtime directory",
    )
    v2: bool = option(
        _SOCKETS,
        Boolean(),
        True,
        "Serve the protocol v2 (typed blocks, tools, attachments) on a separate socket.",
    )
    v2_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve the protocol v2 on this TCP address instead of a Unix socket. An address beyond loopback "
        "requires an API key.",
        key="listen.tcp_v2",
    )
    v2_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.v2_socket_path,
        "The path of the Unix socket for the protocol v2.",
        default_doc=(
            "`infer.v2.sock` in the directory of `--uds` if that is given, else in the runtime directory"
        ),
    )
    framed_addr: Path = option(
        _SOCKETS,
        FilePath(),
        paths.framed_socket_path,
        "The path of the Unix socket for length-prefixed frames, which clients of inferd 0.4 to 0.8 send.",
        default_doc=(
            "`inferd.sock` in the directory of `--uds` if that is given, else in the runtime directory"
        ),
    )
    embed: bool = option(
        _SOCKETS,
        Boolean(),
        False,
        "Serve embeddings on a separate socket, if a model computes embeddings. These backends in the "
        "config file also enable this socket: a local model with `embed: true` and without `embed_pooling: "
        "rank`; another server with `embed: true`; another inferd with `embed_address`. If the config entry "
        "of a local model has no key `embed`, the model file says whether the model computes embeddings.",
    )
    embed_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve embeddings on this TCP address instead of a Unix socket. An address beyond loopback requires "
        "an API key.",
        key="listen.tcp_embed",
    )
    embed_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.embed_socket_path,
        "The path of the Unix socket for embeddings.",
        default_doc="`infer.embed.sock` in the runtime directory",
    )
    rerank: bool = option(
        _SOCKETS,
        Boolean(),
        False,
        "Serve rankings of documents on a separate socket, if a model ranks documents. These backends in "
        "the config file also enable this socket: a local model with `embed: true` and `embed_pooling: "
        "rank`; another server with `rerank: true`; another inferd with `rerank_address`. If the config "
        "entry of a local model has no key `embed`, the model file says whether the model ranks documents.",
    )
    rerank_tcp: str | None = option(
        _SOCKETS,
        TcpAddress(),
        None,
        "Serve rankings on this TCP address instead of a Unix socket. An address beyond loopback requires "
        "an API key.",
        key="listen.tcp_rerank",
    )
    rerank_addr: Path | None = option(
        _SOCKETS,
        FilePath(),
        paths.rerank_socket_path,
        "The path of the Unix socket for rankings.",
        default_doc="`infer.rerank.sock` in the runtime directory",
    )
    group: str | None = option(
        _SOCKETS,
        Name("GROUP"),
        None,
        "The members of this Unix group may connect to all Unix sockets of the daemon except the admin "
        "socket.",
    )
    admin_addr: Path = option(
        _SOCKETS,
        FilePath(),
        paths.admin_socket_path,
        "The path of the admin socket. Clients read the daemon's state from this Unix socket.",
        key="admin_addr",
        default_doc="`admin.sock` in the runtime directory",
    )
    metrics_addr: str | None = option(
        _SOCKETS,
        LocalAddress(),
        None,
        "Serve metrics for Prometheus on this Unix socket or loopback address.",
        key="metrics_addr",
    )
    api_key: Secret | None = option(
        _SOCKETS,
        SecretText(),
        None,
        "The API key that a TCP client must send. Prefer the variable or `--api-key-file` to this flag, "
        "because every user of the machine can see the value of a flag.",
        reload=True,
    )
    api_key_file: Path | None = option(
        _SOCKETS,
        FilePath(),
        None,
        "A file whose first line is the API key for TCP clients.",
        reload=True,
    )
    api_key_env: str | None = option(
        _SOCKETS,
        Name("VARIABLE"),
        None,
        "The name of the environment variable that holds the API key for TCP clients.",
        flag=False,
        env=None,
        key="listen.api_key_env",
        reload=True,
    )
