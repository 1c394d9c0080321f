"""HTTP client code shared by the remote backends.

An :class:`Upstream` is one server. The methods of ``Upstream`` convert every failure to an error of
:mod:`inferd.errors`. If the caller stops reading a response early, the response's connection is closed at
once.

If the server explains an error status, the client gets the explanation. The explanation is not logged,
because it may quote the prompt.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import anyio
import httpx
import msgspec
import orjson
import truststore

from inferd.errors import BackendInternal, ConfigError, InferdError, InvalidRequest, Unavailable, Unsupported
from inferd.redaction import redact

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A token count from a server, limited to the integers that JSON carries exactly."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The exceptions that decoding raises for malformed, unexpected or too deeply nested JSON."""

CONNECT_SECS = 10.0
# Servers commonly close a connection after 5 s of idling; a request must not race with that.
_KEEP_IDLE_SECS = 4.0

_MAX_ERROR_BYTES = 64 * 1024
_MAX_ERROR_CHARS = 500
_ERROR_BODY_SECS = 5.0
_FAULT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# The statuses from 400 to 499 that the operator or the server must fix, not the client.
_NOT_THE_CLIENTS_FAULT = frozenset({401, 403, 408, 429})

# The errors of a connection that the server has closed.
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)

# The longest wait for the end of a response after the end of the answer, to keep the connection.
_ENDING_SECS = 0.1


class _PooledClient:
    """An HTTP client that has at most one connection.

    httpx's connection pool can lose the connection of a cancelled request. And the pool closes an expired
    connection only when the pool is used again. So each connection gets its own pool and is closed with this
    pool.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.reused = False
        self._opened: Any = None

    async def trace(self, event: str, details: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._opened = details["return_value"]

    async def close(self) -> None:
        await self.client.aclose()
        if self._opened is not None:  # no pool has a connection whose handshake was cancelled
            await self._opened.aclose()


class Upstream:
    """The server at ``base_url``.

    Connecting may take at most ``CONNECT_SECS``. After that, the server may be silent for at most
    ``timeout_secs`` before the first byte and between two reads. The whole response may take longer.
    Redirects are not followed, because the API key may not be meant for the host of the new address. Raises
    ConfigError for an invalid ``base_url``.
    """

    def __init__(self, base_url: str, timeout_secs: float) -> None:
        try:
            self._url = httpx.URL(base_url)
            host = self._url.host
        except (httpx.InvalidURL, UnicodeError) as reason:
            raise ConfigError(
                f"{_shortened(base_url)} is not the address of a server ({_shortened(str(reason))})"
            ) from None
        self.host = f"{host}:{self._url.port}" if self._url.port else host
        self._timeout_secs = timeout_secs
        self._tls = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._open = True
        # Idle connections, and the timer that closes each.
        self._idle: dict[_PooledClient, asyncio.TimerHandle] = {}
        self._dropping: set[asyncio.Future[None]] = set()

    def _new_line(self) -> _PooledClient:
        client = httpx.AsyncClient(
            verify=self._tls,
            timeout=httpx.Timeout(self._timeout_secs, connect=CONNECT_SECS, pool=None),
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_IDLE_SECS),
            follow_redirects=False,
            # A proxy from the environment is for other machines only.
            trust_env=self._url.host not in ("localhost", "127.0.0.1", "::1"),
        )
        return _PooledClient(client)

    @contextmanager
    def _checkout(self) -> Iterator[_PooledClient]:
        """Lends a client for one request. If the request succeeds, keeps the client and its connection for
        the next request."""
        if self._idle:
            line, expiry = self._idle.popitem()
            expiry.cancel()
            line.reused = True
        else:
            line = self._new_line()
        sound = False
        try:
            yield line
            sound = self._open
        finally:
            if sound:
                loop = asyncio.get_running_loop()
                self._idle[line] = loop.call_later(_KEEP_IDLE_SECS, self._expire, line)
            else:
                self._drop(line)

    def _expire(self, line: _PooledClient) -> None:
        del self._idle[line]
        self._drop(line)

    def _drop(self, line: _PooledClient) -> None:
        """Closes the client in a separate task, so that a second cancellation of the request does not
        interrupt the closing."""
        dropping = asyncio.ensure_future(line.close())
        self._dropping.add(dropping)
        dropping.add_done_callback(self._dropping.discard)

    @asynccontextmanager
    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """Sends a request and yields the response. Read the body with ``aiter_raw``.

        Raises InvalidRequest if the server refuses this request, Unsupported if the server does not implement
        this kind of request, and Unavailable for any other failure. Reading the body may also raise
        Unavailable.
        """
        async with self._ask("POST", url, body, headers) as response:
            if response.status_code != 200:
                raise await self._refusal(response)
            yield response

    async def get(self, url: str, headers: Mapping[str, str], *, at_most: int) -> tuple[int, bytes]:
        """Returns the status and the body of the response, also for an error status.

        Raises Unavailable and BackendInternal.
        """
        async with self._ask("GET", url, b"", headers) as response:
            return response.status_code, await self.read_all(response, at_most=at_most)

    @asynccontextmanager
    async def _ask(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        headers = {"accept-encoding": "identity", **headers}
        try:
            with without_keys(headers), self._checkout() as line:
                request = line.client.build_request(
                    method, url, content=body, headers=headers, extensions={"trace": line.trace}
                )
                try:
                    response = await line.client.send(request, stream=True)
                except _CLOSED:
                    if not line.reused:
                        raise
                    # The server closed the idle connection as the request came. Sending again opens a new
                    # connection.
                    response = await line.client.send(request, stream=True)
                try:
                    yield response
                finally:
                    await response.aclose()
        except httpx.ConnectTimeout:
            raise Unavailable(f"{self.host} did not take a connection within {CONNECT_SECS:g} s") from None
        except httpx.ConnectError as error:
            raise Unavailable(f"{self.host} cannot be reached: {_reason(error)}") from None
        except httpx.TimeoutException:
            raise Unavailable(f"{self.host} was silent for {self._timeout_secs:g} s") from None
        except httpx.HTTPError as error:
            what = type(error).__name__
            raise Unavailable(f"{self.host} broke off the connection ({what})") from None

    async def read(self, url: str, body: bytes, headers: Mapping[str, str], *, at_most: int) -> bytes:
        """Returns the whole body of the response. Raises the errors of :meth:`post`, and BackendInternal if
        the body is longer than ``at_most`` bytes."""
        async with self.post(url, body, headers) as response:
            return await self.read_all(response, at_most=at_most)

    async def read_all(self, response: httpx.Response, *, at_most: int) -> bytes:
        """Returns the whole body of a response. Raises BackendInternal if the body is longer than ``at_most``
        bytes."""
        answer = bytearray()
        async for chunk in response.aiter_raw():
            answer += chunk
            if len(answer) > at_most:
                raise BackendInternal(f"{self.host} sent more than {at_most} bytes")
        return bytes(answer)

    async def _refusal(self, response: httpx.Response) -> InferdError:
        body = bytearray()
        # If the explanation does not come in time, the status suffices.
        with anyio.move_on_after(_ERROR_BODY_SECS), suppress(httpx.HTTPError):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _MAX_ERROR_BYTES:
                    break
        return refusal(self.host, response.status_code, response.headers, bytes(body))

    async def close(self) -> None:
        self._open = False
        while self._idle:
            line, expiry = self._idle.popitem()
            expiry.cancel()
            self._drop(line)
        if self._dropping:
            await asyncio.wait(self._dropping)


@contextmanager
def without_keys(headers: Mapping[str, str]) -> Iterator[None]:
    """If the block raises an InferdError, removes the API keys of a request from the error's message.
    ``headers`` are the headers of the request, which contain the keys. The message may quote the server's
    response, which may repeat a key."""
    try:
        yield
    except InferdError as error:
        sent = httpx.Headers(headers)
        for name in ("authorization", "x-amz-security-token"):
            if key := sent.get(name, "").removeprefix("Bearer "):
                error.args = tuple(text.replace(key, "…") for text in error.args)
        raise


async def let_end(chunks: AsyncIterator[bytes]) -> None:
    """Reads the rest of the response, so that the connection can be reused. Gives up after
    ``_ENDING_SECS``."""
    with anyio.move_on_after(_ENDING_SECS):
        async for _ in chunks:
            pass


def _reason(error: BaseException) -> str:
    """Returns the reason for a failed connect, as the system or the TLS library reports it."""
    while root := error.__cause__ or error.__context__:
        error = root
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it ({error.reason})"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def refusal(host: str, status: int, headers: Mapping[str, str], body: bytes) -> InferdError:
    """Returns the error for a response with an error status. The names in ``headers`` are in lower case.

    The error's message contains the server's explanation. If the request is not at fault, text that looks
    like a key is removed from the explanation. The log does not get the explanation, which may quote the
    request.
    """
    name, text = _explanation(body)
    name = name or _name_in(headers.get("x-amzn-errortype", ""))
    if status == 501:
        return Unsupported(f"{host} does not implement this kind of request")
    if 400 <= status < 500 and status not in _NOT_THE_CLIENTS_FAULT:
        reason = text or "it gave no reason; are the configured address and model right?"
        return InvalidRequest(f"{host} refused the request with status {status}: {reason}")
    why = f" ({name})" if name else ""
    if 300 <= status < 400:
        return Unavailable(
            f"{host} redirects elsewhere (status {status}); configure the address that it redirects to"
        )
    text = redact(text)
    said = f"; it says: {text}" if text else ""
    if status in (401, 403):
        refused = f"{host} does not accept the key: status {status}{why}; check the configured one"
    else:
        wait = _retry_after_secs(headers.get("retry-after", ""))
        when = "" if wait is None else f"; it asks to wait {wait} s"
        refused = f"{host} answered with status {status}{why}{when}"
    error = Unavailable(refused + said)
    error.logged = refused
    return error


def _explanation(body: bytes) -> tuple[str, str]:
    """Returns the result of :func:`fault_of` for the error in the body of a response."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    return fault_of(answer.get("error", answer)) if isinstance(answer, dict) else ("", "")


def fault_of(error: Any) -> tuple[str, str]:
    """Returns the name of a fault, such as ``rate_limit_exceeded``, and its description. Each is empty if
    missing.

    ``error`` is a text or an object. An object has the name in ``code`` or ``type``, and the description in
    ``message`` or ``detail``.
    """
    if isinstance(error, str):
        return "", _shortened(error)
    if not isinstance(error, dict):
        return "", ""
    names = (error.get("code"), error.get("type"))
    name = next((n for n in names if isinstance(n, str) and _FAULT_NAME.fullmatch(n)), "")
    texts = (error.get("message"), error.get("detail"))
    return name, next((_shortened(text) for text in texts if isinstance(text, str)), "")


def _name_in(error_type: str) -> str:
    """Returns the name of the fault from AWS's header ``x-amzn-errortype``, in which a colon and a URL may
    follow the name."""
    name = error_type.partition(":")[0]
    return name if _FAULT_NAME.fullmatch(name) else ""


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ERROR_CHARS else line[:_MAX_ERROR_CHARS] + "…"


def _retry_after_secs(value: str) -> int | None:
    """Returns how many seconds to wait according to a ``Retry-After`` value, which is a number or a date.
    Returns ``None`` for any other value."""
    if value.isascii() and value.isdigit():
        return int(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        return None
    return max(0, round((date - datetime.now(timezone.utc)).total_seconds()))
