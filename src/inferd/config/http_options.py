"""The options of the HTTP bridge: its address and certificate, the clients that may use the bridge, and the
model names and the Ollama version that the bridge reports to clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inferd.config.addresses import HttpAddress
from inferd.config.kinds import Aliases, FilePath, Text, Words
from inferd.config.option import option

_HTTP = "HTTP"

QUEUE_DEPTH = 64
"""The default of ``queue_depth`` if the HTTP bridge runs, since one coding agent sends several requests at
once."""


def _no_aliases(env: Mapping[str, str] | None = None) -> Mapping[str, str]:
    return {}


class HttpOptions:
    """A part of the option table. See :class:`inferd.config.settings.Settings`."""

    http: str | None = option(
        _HTTP,
        HttpAddress(),
        None,
        "Serve the APIs of OpenAI, Anthropic and Ollama over HTTP on this address. Without an address, the "
        "flag means 127.0.0.1:11434. This option needs the extra `inferd[http]` of the package. An address "
        "beyond loopback requires an API key or `--http-key-file`.",
        key="http.addr",
    )
    http_key_file: Path | None = option(
        _HTTP,
        FilePath(),
        None,
        "The file with the keys for HTTP clients. Each line has a name, a key, scopes and limits. The "
        "bridge reads the file again when the file changes. Without this file, HTTP clients use the "
        "daemon's API key, if one is set.",
        key="http.key_file",
    )
    http_cert: Path | None = option(
        _HTTP,
        FilePath(),
        None,
        "The certificate chain (PEM) for HTTP over TLS.",
        key="http.cert",
    )
    http_key: Path | None = option(
        _HTTP,
        FilePath(),
        None,
        "The private key (PEM) of the certificate. By default the private key is in the file of the "
        "certificate.",
        key="http.key",
    )
    http_hosts: tuple[str, ...] = option(
        _HTTP,
        Words("NAME"),
        (),
        "Host names that HTTP clients may send in `Host`, in addition to localhost and IP addresses.",
        key="http.hosts",
        default_doc="none",
    )
    http_origins: tuple[str, ...] = option(
        _HTTP,
        Words("ORIGIN"),
        (),
        "Web pages of these origins may use the HTTP bridge, in addition to pages from this machine.",
        key="http.origins",
        default_doc="none",
    )
    http_ollama_version: str = option(
        _HTTP,
        Text("VERSION", needed=True),
        "0.13.5",
        "The version of Ollama that /api/version reports. Some clients refuse old versions.",
        key="http.ollama_version",
    )
    http_aliases: Mapping[str, str] = option(
        _HTTP,
        Aliases(),
        _no_aliases,
        "Additional model names for HTTP clients, as patterns: `claude-*=NAME,gpt-*=NAME`.",
        key="http.aliases",
        default_doc="none",
    )
