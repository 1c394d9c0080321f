"""The upstream of a remote backend: its failures, and the clean-up of its streams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import orjson
import pytest
import trustme

from inferd.engine.remote import http as module
from inferd.engine.remote.http import Upstream
from inferd.errors import BackendInternal, ConfigError, InferdError, InvalidRequest, Unavailable, Unsupported
from tests.cases import cases
from tests.in_process import until
from tests.remote_server import Exchange, RemoteServer

Start = Callable[..., RemoteServer]

KEY = "key-7"  # no error has it by chance
HEADERS = {"authorization": f"Bearer {KEY}"}


async def ask(server: RemoteServer, *, timeout_secs: float = 30.0, at_most: int = 10**6) -> bytes:
    upstream = Upstream(server.url, timeout_secs)
    try:
        return await upstream.read(f"{server.url}/x", b"{}", HEADERS, at_most=at_most)
    finally:
        await upstream.close()


async def failure(server: RemoteServer, *, timeout_secs: float = 30.0) -> InferdError:
    with pytest.raises(InferdError) as raised:
        await ask(server, timeout_secs=timeout_secs)
    return raised.value


@pytest.mark.both_loops
async def test_an_answer_is_read(remote: Start) -> None:
    server = remote(lambda exchange: exchange.whole(200, b"yes"))
    assert await ask(server) == b"yes"
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/x", b"{}")
    assert request.headers["authorization"] == HEADERS["authorization"]
    assert request.headers["accept-encoding"] == "identity"


# Statuses.

REASON = orjson.dumps({"error": {"message": "the  reason\nis secret", "type": "some_name", "code": None}})


@cases("status", [400, 404, 405, 409, 413, 415, 422])
async def test_a_client_fault_is_reported_to_the_client(remote: Start, status: int) -> None:
    error = await failure(remote(lambda exchange: exchange.whole(status, REASON)))
    assert type(error) is InvalidRequest
    assert str(error).endswith(f" refused the request with status {status}: the reason is secret")


@cases("status", [401, 403, 408, 429, 500, 502, 503, 504])
async def test_another_fault_counts_and_its_reason_is_for_the_client_alone(
    remote: Start, status: int
) -> None:
    error = await failure(remote(lambda exchange: exchange.whole(status, REASON)))
    assert type(error) is Unavailable
    assert error.counts
    assert f"status {status} (some_name)" in str(error)
    assert str(error).endswith("; it says: the reason is secret")
    assert error.logged is not None
    assert "secret" not in error.logged


async def test_no_key_is_shown_to_the_client(remote: Start) -> None:
    said = orjson.dumps({"error": {"message": f"{KEY} is wrong, and so is sk-" + "a1" * 20}})
    error = await failure(remote(lambda exchange: exchange.whole(401, said)))
    assert "it says: … is wrong, and so is " in str(error)
    assert "a1a1" not in str(error)


async def test_success_of_another_kind_is_a_failure(remote: Start) -> None:
    error = await failure(remote(lambda exchange: exchange.send(b"HTTP/1.1 204 None\r\n\r\n")))
    assert str(error).endswith("answered with status 204")


async def test_not_implemented_does_not_count(remote: Start) -> None:
    error = await failure(remote(lambda exchange: exchange.whole(501, REASON)))
    assert type(error) is Unsupported


@cases(
    "body, reason",
    [
        (b'{"error":"text"}', "text"),
        (b'{"message":"text"}', "text"),
        (b'{"detail":"text"}', "text"),
        (b'{"error":{"message":5}}', "it gave no reason; are the configured address and model right?"),
        (b"<html>", "it gave no reason; are the configured address and model right?"),
        (b"[]", "it gave no reason; are the configured address and model right?"),
        (orjson.dumps({"message": "x" * 1000}), "x" * 500 + "…"),
    ],
)
async def test_forms_of_a_reason(remote: Start, body: bytes, reason: str) -> None:
    error = await failure(remote(lambda exchange: exchange.whole(400, body)))
    assert str(error).partition(": ")[2] == reason


async def test_the_name_of_a_fault_is_a_name(remote: Start) -> None:
    body = orjson.dumps({"error": {"code": "a prompt, quoted", "type": "server_error"}})
    error = await failure(remote(lambda exchange: exchange.whole(500, body)))
    assert str(error).endswith("answered with status 500 (server_error)")


@cases(
    "value, told",
    [
        ("7", "; it asks to wait 7 s"),
        ("soon", ""),
        ("-1", ""),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "; it asks to wait 0 s"),
    ],
)
async def test_retry_after_is_passed_on(remote: Start, value: str, told: str) -> None:
    error = await failure(remote(lambda exchange: exchange.whole(429, b"", retry_after=value)))
    assert str(error).endswith(f"answered with status 429{told}")


async def test_a_retry_after_date_becomes_seconds(remote: Start) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    error = await failure(remote(lambda exchange: exchange.whole(503, b"", retry_after=date)))
    secs = int(str(error).split()[-2])
    assert 3500 < secs <= 3600


async def test_an_endless_error_body(remote: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head(400)
        exchange.chunk(b'{"message":')
        exchange.wait_until_left()

    monkeypatch.setattr(module, "_ERROR_BODY_SECS", 0.05)
    assert type(await failure(remote(script))) is InvalidRequest


async def test_an_error_body_without_bounds(remote: Start) -> None:
    sent = 0

    def script(exchange: Exchange) -> None:
        nonlocal sent
        exchange.head(400)
        for _ in range(1000):
            exchange.chunk(b"x" * 65536)
            sent += 1
        exchange.wait_until_left()

    server = remote(script)
    assert type(await failure(server)) is InvalidRequest
    await until(server.left.is_set)
    assert sent < 1000


@cases("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(remote: Start, status: int) -> None:
    """The key must not reach another host."""
    elsewhere = remote(lambda exchange: exchange.whole(200, b"gotcha"))
    server = remote(lambda exchange: exchange.whole(status, b"", location=f"{elsewhere.url}/x"))
    error = await failure(server)
    assert type(error) is Unavailable
    assert "redirects elsewhere" in str(error)
    assert elsewhere.accepted == 0


# The connection.


async def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    upstream = Upstream(f"http://127.0.0.1:{port}", 30.0)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} cannot be reached: Connection refused"):
        await upstream.read(f"http://127.0.0.1:{port}/x", b"", {}, at_most=1)
    await upstream.close()


@pytest.mark.parametrize("url", ["http://xn--", "http://[v1.x]", "http://a/" + "x" * 70_000])
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a server"):
        Upstream(url, 30.0)


async def test_an_unresolvable_name() -> None:
    upstream = Upstream("http://nobody.invalid", 30.0)
    with pytest.raises(Unavailable, match=r"^nobody\.invalid cannot be reached: "):
        await upstream.read("http://nobody.invalid/x", b"", {}, at_most=1)
    await upstream.close()


async def test_a_full_listen_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECS", 0.05)
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        first.connect(("127.0.0.1", port))
        upstream = Upstream(f"http://127.0.0.1:{port}", 30.0)
        with pytest.raises(Unavailable, match=r"did not take a connection within 0\.05 s"):
            await upstream.read(f"http://127.0.0.1:{port}/x", b"", {}, at_most=1)
        await upstream.close()


async def test_silence_before_the_first_byte(remote: Start) -> None:
    server = remote(Exchange.wait_until_left)
    error = await failure(server, timeout_secs=0.05)
    assert type(error) is Unavailable
    assert str(error) == f"{server.host} was silent for 0.05 s"
    await until(server.left.is_set)


async def test_silence_in_the_middle(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(b"x")
        exchange.wait_until_left()

    server = remote(script)
    assert "was silent for 0.05 s" in str(await failure(server, timeout_secs=0.05))
    await until(server.left.is_set)


@cases(
    "begin", [b"", b"HTTP/1.1 200 OK\r\n", b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nxx"]
)
async def test_the_connection_is_cut(remote: Start, begin: bytes) -> None:
    def script(exchange: Exchange) -> None:
        exchange.send(begin)
        exchange.cut()

    error = await failure(remote(script))
    assert type(error) is Unavailable
    assert "broke off the connection" in str(error)


async def test_more_than_was_allowed(remote: Start) -> None:
    server = remote(lambda exchange: exchange.whole(200, b"x" * 101))
    with pytest.raises(BackendInternal, match="more than 100 bytes"):
        await ask(server, at_most=100)


async def test_no_connection_stays_when_it_is_not_used(
    remote: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that the server closes when idle would stay half open here."""
    monkeypatch.setattr(module, "_KEEP_IDLE_SECS", 0.05)
    server = remote(lambda exchange: exchange.whole(200, b"yes"))
    upstream = Upstream(server.url, 30.0)
    for times in (1, 2):
        assert await upstream.read(f"{server.url}/x", b"", {}, at_most=9) == b"yes"
        await until(server.left.is_set)
        server.left.clear()
        assert server.accepted == times
    await upstream.close()


async def test_a_request_is_sent_again_when_its_idle_connection_was_closed(remote: Start) -> None:
    served: list[socket.socket] = []

    def script(exchange: Exchange) -> None:
        if exchange.connection in served:
            exchange.cut()
        served.append(exchange.connection)
        exchange.whole(200, b"yes")

    server = remote(script)
    upstream = Upstream(server.url, 30.0)
    for _ in range(3):
        assert await upstream.read(f"{server.url}/x", b"{}", {}, at_most=9) == b"yes"
    assert (server.accepted, len(server.requests)) == (3, 5)
    await upstream.close()


async def test_a_request_on_a_new_connection_is_sent_once(remote: Start) -> None:
    server = remote(lambda exchange: exchange.cut())
    assert type(await failure(server)) is Unavailable
    assert len(server.requests) == 1


async def test_no_connection_is_lost_by_a_cancellation(remote: Start) -> None:
    """At any time: while connecting, sending, waiting, reading or closing."""
    server = remote(lambda exchange: exchange.whole(200, b"yes"))
    upstream = Upstream(server.url, 30.0)
    for steps in range(60):
        call = asyncio.ensure_future(upstream.read(f"{server.url}/x", b"{}", {}, at_most=9))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    assert await upstream.read(f"{server.url}/x", b"{}", {}, at_most=9) == b"yes"
    await until(lambda: server.open == 1)
    await upstream.close()


# TLS.


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(remote: Start, authority: trustme.CA) -> RemoteServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return remote(lambda exchange: exchange.whole(200, b"safe"), context)


async def test_the_systems_trust_store_decides(
    tls_server: RemoteServer, authority: trustme.CA, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failure(tls_server)
    assert "cannot be reached: its certificate is not trusted" in str(error)
    authority.cert_pem.write_to_path(str(short_dir / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(short_dir / "ca.pem"))  # where OpenSSL looks for the system's
    assert await ask(tls_server) == b"safe"


async def test_a_server_without_tls() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1") as plain:
        url = "https://127.0.0.1:{1}".format(*plain.sockets[0].getsockname())
        upstream = Upstream(url, 30.0)
        with pytest.raises(Unavailable, match="cannot be reached: no TLS with it"):
            await upstream.read(url, b"", {}, at_most=1)
        await upstream.close()


@pytest.mark.both_loops
async def test_a_handshake_that_is_cancelled_leaves_no_connection() -> None:
    met, left = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        met.set()
        await reader.read()
        writer.close()
        left.set()

    async with await asyncio.start_server(stall, "127.0.0.1") as silent:
        url = "https://127.0.0.1:{1}".format(*silent.sockets[0].getsockname())
        upstream = Upstream(url, 30.0)
        call = asyncio.ensure_future(upstream.read(url, b"", {}, at_most=1))
        await met.wait()
        call.cancel()
        await asyncio.wait((call,))
        await until(left.is_set)
        await upstream.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_this_machine_needs_no_proxy(
    remote: Start, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = remote(lambda exchange: exchange.whole(200, b"proxied"))
    monkeypatch.setenv(variable, proxy.url)
    assert await ask(remote(lambda exchange: exchange.whole(200, b"direct"))) == b"direct"
    upstream = Upstream("http://far.invalid", 30.0)
    assert await upstream.read("http://far.invalid/x", b"", {}, at_most=10) == b"proxied"
    await upstream.close()
