"""The types of options whose values are addresses: URLs, TCP addresses and socket paths."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from inferd.config.kinds import Kind, Words


class HttpsUrl(Kind):
    """An https address, or an empty string."""

    @property
    def metavar(self) -> str:
        return "URL"

    @property
    def description(self) -> str:
        return "an https:// address or empty"

    @property
    def file_type(self) -> Any:
        return str

    def parse(self, text: str) -> str:
        if text and not re.fullmatch(r"https://[^/\s]+/\S+", text):
            raise ValueError(self.description)
        return text


class TcpAddress(Kind):
    """A literal ``IP:port``, with an IPv6 address in brackets. Host names are refused, since a name lookup
    could lead to another host."""

    @property
    def metavar(self) -> str:
        return "IP:PORT"

    @property
    def description(self) -> str:
        return "a literal IP:port such as 127.0.0.1:47321 or [::1]:47321"

    def parse(self, text: str) -> str:
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            raise ValueError(self.description) from None
        if bracketed != (address.version == 6) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(self.description)
        return text


class Workers(Words):
    """Addresses of RPC workers. The protocol between llama.cpp and its RPC workers supports only IPv4."""

    def __init__(self) -> None:
        super().__init__("IP:PORT")

    @property
    def description(self) -> str:
        return "literal IPv4 addresses with ports, such as 127.0.0.1:50052"

    def _checked(self, words: Sequence[str]) -> tuple[str, ...]:
        try:
            found = tuple(TcpAddress().parse(word) for word in words)
        except ValueError:
            raise ValueError(self.description) from None
        if any(word.startswith("[") for word in found) or len(set(found)) < len(found):
            raise ValueError(f"{self.description}, each once")
        return found


class HttpAddress(TcpAddress):
    """An address on which to serve HTTP. If the option is given without a value, its value is ``bare``, the
    address that Ollama clients use by default."""

    bare = "127.0.0.1:11434"

    def parse(self, text: str) -> str:
        return super().parse(text or self.bare)


class LocalAddress(Kind):
    """The path of a Unix socket, or a TCP address on the loopback interface."""

    @property
    def metavar(self) -> str:
        return "PATH|IP:PORT"

    @property
    def description(self) -> str:
        return "the path of a Unix socket, with a slash in it, or a loopback address such as 127.0.0.1:9464"

    def parse(self, text: str) -> str:
        if "/" in text and text.isprintable():
            return text
        try:
            host = TcpAddress().parse(text).rpartition(":")[0].strip("[]")
        except ValueError:
            raise ValueError(self.description) from None
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(self.description)
        return text


class DaemonAddress(Kind):
    """The address of another daemon's surface: the path of a Unix socket, or a literal ``IP:port``."""

    @property
    def metavar(self) -> str:
        return "PATH|IP:PORT"

    @property
    def description(self) -> str:
        return "the path of a Unix socket, with a slash in it, or a literal IP:port"

    def parse(self, text: str) -> str:
        if "/" in text and text.isprintable():
            return text
        try:
            return TcpAddress().parse(text)
        except ValueError:
            raise ValueError(self.description) from None


CALLS = ("/chat/completions", "/completions", "/embeddings", "/rerank", "/messages")
"""Endings of addresses that were copied from an example of a call."""


class ServerUrl(Kind):
    """The address of a remote server: scheme, host, and the base path of its API.

    A trailing slash and a trailing ``/v1`` are removed. ``/v1`` is accepted because other tools require it in
    the address. An address with a user name is refused, since it may also contain a password. An address with
    a query or a fragment is refused, since inferd appends paths to the address.
    """

    @property
    def metavar(self) -> str:
        return "URL"

    @property
    def description(self) -> str:
        return "an http:// or https:// address without user name, query and fragment"

    def parse(self, text: str) -> str:
        try:
            parts = urlsplit(text)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        if not sound or not text.isprintable() or set(text) & set("@?# \\"):
            raise ValueError(self.description)
        base = text.rstrip("/")
        for call in CALLS:
            if base.endswith(call):
                raise ValueError(f"the address of the server alone, without {call!r} at its end")
        return base.removesuffix("/v1").rstrip("/")


class Endpoint(ServerUrl):
    """An address to use instead of a service's own endpoint. The empty string means the service's own
    endpoint. A host without a scheme means https."""

    @property
    def description(self) -> str:
        return "a host, or an http:// or https:// address without user name, query and fragment"

    @property
    def file_type(self) -> Any:
        return str

    def parse(self, text: str) -> str:
        if not text:
            return text
        return super().parse(text if "://" in text else f"https://{text}")
