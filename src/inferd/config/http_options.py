"""The HTTP bridge: its address, and the clients that may use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inferd.config.addresses import HttpAddress
from inferd.config.kinds import Aliases, FilePath, Words
from inferd.config.option import option

_HTTP = "HTTP"

QUEUE_DEPTH = 64
"""The default of ``queue_depth`` with the bridge: a single agent sends several requests at once."""


def _no_aliases(env: Mapping[str, str] | None = None) -> Mapping[str, str]:
    return {}


class HttpOptions:
    """Rows of :class:`inferd.config.settings.Settings`."""

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
        "The file of the keys for HTTP clients, one a line: name, key, scopes, limits. It is read "
        "again when it changes. Without it the API key, if set, is the only key.",
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
        "The private key (PEM) of the certificate; by default it is in the certificate's file.",
        key="http.key",
    )
    http_hosts: tuple[str, ...] = option(
        _HTTP,
        Words("NAME"),
        (),
        "Host names that HTTP clients may use for the server, besides localhost and IP addresses.",
        key="http.hosts",
        default_doc="none",
    )
    http_origins: tuple[str, ...] = option(
        _HTTP,
        Words("ORIGIN"),
        (),
        "Origins of web pages that may use the server, besides those of this machine.",
        key="http.origins",
        default_doc="none",
    )
    http_aliases: Mapping[str, str] = option(
        _HTTP,
        Aliases(),
        _no_aliases,
        "Other names of models, with patterns: `claude-*=NAME,gpt-*=NAME`.",
        key="http.aliases",
        default_doc="none",
    )
