"""The options of the HTTP bridge: the address that it serves, and the clients that may use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inferd.config.addresses import HttpAddress
from inferd.config.kinds import Aliases, FilePath, Text, Words
from inferd.config.option import option

_HTTP = "HTTP"

QUEUE_DEPTH = 64
"""The default of ``queue_depth`` with the bridge: a single agent sends several requests at once."""


def _no_aliases(env: Mapping[str, str] | None = None) -> Mapping[str, str]:
    return {}


class HttpOptions:
    """Part of the option table, see :class:`inferd.config.settings.Settings`."""

    http: str | None = option(
        _HTTP,
        HttpAddress(),
        None,
        "Serve the APIs of OpenAI, Anthropic and Ollama over HTTP on this address; the flag alone means"
        " 127.0.0.1:11434. Needs the extra inferd[http]; beyond loopback keys are required.",
        key="http.addr",
    )
    http_key_file: Path | None = option(
        _HTTP,
        FilePath(),
        None,
        "The file of the keys for HTTP clients, one key a line: name, key, scopes, limits. The bridge "
        "reads this file again when it changes. Without this file the API key, if set, is the only key.",
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
        "The host names that HTTP clients may send in `Host`, besides localhost and IP addresses.",
        key="http.hosts",
        default_doc="none",
    )
    http_origins: tuple[str, ...] = option(
        _HTTP,
        Words("ORIGIN"),
        (),
        "The origins of web pages that may use the HTTP bridge, besides the origins on this machine.",
        key="http.origins",
        default_doc="none",
    )
    http_ollama_version: str = option(
        _HTTP,
        Text("VERSION", needed=True),
        "0.13.5",
        "The version of Ollama that /api/version reports. Some clients refuse an old one.",
        key="http.ollama_version",
    )
    http_aliases: Mapping[str, str] = option(
        _HTTP,
        Aliases(),
        _no_aliases,
        "Further names of models for HTTP clients, by patterns: `claude-*=NAME,gpt-*=NAME`.",
        key="http.aliases",
        default_doc="none",
    )
