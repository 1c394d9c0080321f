"""Access control for every request, before its endpoint runs.

The gate checks, in this order, the name in ``Host`` (against DNS rebinding), the ``Origin`` of a web page,
and the key with its scope and limits. If no keys are configured, the gate accepts only loopback connections
of the bridge's own user or root. The paths in ``OPEN_PATHS`` and the files of the web page are open to every
client, without a key. The gate also adds a request id to each response, writes the access log (never a body,
a query or a key), and updates the metrics.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferd import log
from inferd.http import failures, local_user
from inferd.http.answer import log_line, send_failure
from inferd.http.body import ClientGone
from inferd.http.exchange import Exchange, api_of, asker_of, header, headers_of
from inferd.http.failures import HttpFailure
from inferd.http.keys import Key, Keys
from inferd.http.metrics import Metrics, family_of

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/health", "/api/hello", "/api/version"})
"""Paths that reveal nothing about models or clients. They need no key, and neither do the files of the web
page."""

QUIET_PATHS = frozenset({"/status"})
"""The web page polls these paths every second. Such requests are logged only at debug level."""

_ALLOWED_HEADERS = (
    b"authorization, content-type, x-api-key, x-inferd-priority, x-inferd-deadline-ms, x-inferd-lora"
)
_ALLOWED_METHODS = b"GET, POST, HEAD, OPTIONS"
_OWNERS = (os.getuid(), 0)

_log = log.get("http")


class Gate:
    """ASGI middleware around ``app``. ``hosts`` and ``origins`` are allowed in addition to those of the
    loopback interface. ``scope_of`` returns the scope that a key needs for a path."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        metrics: Metrics,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        scope_of: Callable[[str], str] = lambda path: "generate",
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._hosts = frozenset(name.lower() for name in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._scope_of = scope_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        headers = headers_of(scope)
        agent = family_of(header(headers, b"user-agent"))
        exchange = Exchange(scope["method"], path, api_of(path), headers, agent)
        scope["exchange"] = exchange
        self._metrics.begin()
        origin = header(headers, b"origin")
        answered = self._with_headers(send, exchange, origin)
        try:
            host = header(headers, b"host")
            self._check_host(host)
            self._check_origin(origin, host)
            if scope["method"] == "OPTIONS":
                await _preflight(answered, exchange)
                return
            self._identify(scope, exchange)
            await self._app(scope, receive, answered)
        except ClientGone:
            exchange.gone = True
        except Exception as error:
            if not isinstance(error, HttpFailure):
                _log.error("request_failed", id=exchange.id, error=log_line(error))
            if exchange.status:
                raise  # the response has begun, so only closing the connection can signal the error
            await send_failure(answered, failures.of(error), exchange)
        finally:
            # After the last bytes of the response, which are written at the end of this iteration of the
            # event loop.
            asyncio.get_running_loop().call_soon(self._finish, exchange)

    # Host and origin.

    def _check_host(self, host: str) -> None:
        if host and not self._is_known(_name_of(host)):
            raise HttpFailure(
                "forbidden",
                "the Host of the request is not one of this server's names; allow it by --http-hosts",
            )

    def _is_known(self, name: str) -> bool:
        if name in LOOPBACK_NAMES or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # unlike a name, an address cannot be rebound

    def _check_origin(self, origin: str, host: str) -> None:
        if origin and not self._allows(origin, host):
            raise HttpFailure(
                "forbidden", "web pages of this origin may not use this server; allow it by --http-origins"
            )

    def _allows(self, origin: str, host: str) -> bool:
        if origin.lower() in self._origins:
            return True
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https"):
            return False
        return parts.hostname in LOOPBACK_NAMES or parts.netloc.lower() == host.lower()

    # Key or local user.

    def _identify(self, scope: Scope, exchange: Exchange) -> None:
        path = scope["path"]
        if self._keys.any:
            secret = _secret_of(exchange.headers)
            key = self._keys.find(secret) if secret else None
            if key is not None:
                self._use(key, path, exchange)
            elif not _is_open(path):
                reason = "the API key is not valid" if secret else "an API key is needed"
                raise HttpFailure("unauthorized", f"{reason}; send it as Authorization: Bearer KEY")
            caller = "" if key is None else f"key:{key.name}"
        else:
            caller = _local_caller(scope, needs_owner=not _is_open(path))
        exchange.asker = asker_of(exchange.headers, caller)

    def _use(self, key: Key, path: str, exchange: Exchange) -> None:
        needed = self._scope_of(path)
        if not _is_open(path):
            if needed and needed not in key.scopes:
                raise HttpFailure("forbidden", f"the key {key.name} lacks the scope {needed}")
            if wait := key.admit():
                limits = f"the key {key.name} has used up its requests or tokens of this minute"
                raise HttpFailure("rate_limited", limits, retry_after=wait)
        exchange.key = key

    # Headers, metrics, log.

    def _with_headers(self, send: Send, exchange: Exchange, origin: str) -> Send:
        name = exchange.id.encode()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", name), (b"request-id", name)]
                if origin and message["status"] != 403:
                    headers += [
                        (b"access-control-allow-origin", origin.encode("latin-1")),
                        (b"vary", b"Origin"),
                    ]
                message["headers"] = headers
            await send(message)

        return sending

    def _finish(self, exchange: Exchange) -> None:
        if exchange.key is not None:
            exchange.key.spend(exchange.input_tokens + exchange.output_tokens)
        seconds = time.monotonic() - exchange.started
        self._metrics.observe(exchange, seconds)
        write = _log.debug if exchange.path in QUIET_PATHS and exchange.status == 200 else _log.info
        write(
            "http_request",
            id=exchange.id,
            method=exchange.method,
            path=exchange.path if exchange.routed else None,
            status=exchange.status,
            error=exchange.error or None,
            gone=exchange.gone,
            caller=exchange.asker.caller or None,
            agent=exchange.agent,
            stream=exchange.stream,
            model=exchange.model or None,
            ignored=exchange.ignored or None,
            input_tokens=exchange.input_tokens,
            output_tokens=exchange.output_tokens,
            cached_tokens=exchange.cached_tokens,
            ttft_ms=None if exchange.ttft_secs is None else round(exchange.ttft_secs * 1e3, 3),
            total_ms=round(seconds * 1e3, 3),
        )


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/page/")


def _name_of(host: str) -> str:
    """Returns the name in a Host header, without the port and without the brackets of an IPv6 address."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _secret_of(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, secret = header(headers, b"authorization").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else header(headers, b"x-api-key")


def _local_caller(scope: Scope, *, needs_owner: bool) -> str:
    """Returns the user at the other end of a loopback connection as ``uid:N``, or an empty text if the user
    is unknown. With ``needs_owner``, raises HttpFailure unless this user is the bridge's own user or root."""
    peer: local_user.Peer = scope["peer"]
    uid = peer.uid(scope["client"], scope["server"]) if scope["client"] else None
    if needs_owner and uid not in _OWNERS:
        whom = "this connection's user is unknown" if uid is None else "this server belongs to another user"
        raise HttpFailure("unauthorized", f"{whom}; start it with --http-key-file and send a key")
    return "" if uid is None else f"uid:{uid}"


async def _preflight(send: Send, exchange: Exchange) -> None:
    """Answers an OPTIONS request whose origin has been checked."""
    headers = [
        (b"access-control-allow-methods", _ALLOWED_METHODS),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
