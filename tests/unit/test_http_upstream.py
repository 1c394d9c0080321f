"""The requests of the bridge to the daemon, and their connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from inferd.client.protocol import Incoming
from inferd.errors import ConnectionLost
from inferd.http.lasting import LastingConnection
from inferd.http.models import Model, Models
from inferd.http.upstream import Asker, Upstream
from tests.in_process import until
from tests.scripted_peer import Peer, Script, frames

VECTORS: dict[str, object] = {
    "type": "embeddings",
    "embeddings": [[1.0]],
    "dimensions": 1,
    "usage": {"input_tokens": 1},
    "backend": "b",
    "model": "a",
}


async def test_a_key_says_how_long_a_model_stays_only_with_a_token(
    peer: Callable[[Script], Peer],
) -> None:
    server = peer(frames(VECTORS))
    model = Model(name="a", tasks=frozenset({"embed"}), wire_name="a")

    async def passes(caller: str, token: str = "") -> bool:
        upstream = Upstream({"embed": str(server.path)}, Models({}), token)
        await upstream.embed(["text"], None, Asker(caller=caller), model, keep_alive=-1.0)
        await upstream.aclose()
        request = orjson.loads(server.lines[-1])
        assert ("on_behalf_of" in request) is bool(token)
        return request.get("keep_alive") == -1.0

    assert not await passes("key:bob")
    assert not await passes("")
    assert not await passes("uid:4294967294")
    assert await passes(f"uid:{os.getuid()}")
    assert await passes("uid:0")
    assert await passes("key:bob", token="t" * 64)  # the daemon knows that this is a key


async def test_the_bridge_says_why_it_cannot_serve(short_dir: Path) -> None:
    async def boot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"id":"admin","type":"status","status":"starting"}\n')
        await reader.read()
        writer.close()

    models, address = Models({}), short_dir / "admin.sock"
    upstream = Upstream({"admin": str(address)}, models)
    assert "no daemon is running" in models.why_not
    async with await asyncio.start_unix_server(boot, address):
        await upstream.start()
        await until(lambda: "its models are being loaded" in models.why_not)
        await upstream.aclose()
    await upstream.start()
    await until(lambda: "no daemon is running" in models.why_not)
    await upstream.aclose()


@contextlib.contextmanager
def pair() -> Iterator[tuple[LastingConnection, socket.socket]]:
    """A connection of the bridge, and the daemon's end of it."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    connection = LastingConnection(near, Incoming("the daemon", tcp=False), None)
    with far:
        yield connection, far
        connection.close()


async def turns() -> None:
    """Returns after the loop has processed all data that has arrived."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_connection_is_registered_once_with_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, registered = asyncio.get_running_loop(), []
    add = loop.add_reader
    monkeypatch.setattr(loop, "add_reader", lambda *of: (registered.append(of), add(*of)))
    with pair() as (connection, far):
        for number in range(3):
            assert connection.alive()
            await connection.ask([b"%d\n" % number])
            assert far.recv(100) == b"%d\n" % number
            reading = asyncio.create_task(connection.line())
            await asyncio.sleep(0)
            far.sendall(b"answer\n")
            assert await reading == b"answer"
    assert len(registered) == 1


async def test_an_idle_connection_that_the_daemon_closed_is_not_used() -> None:
    with pair() as (connection, far):
        assert connection.alive()
        reading = asyncio.create_task(connection.line())
        await asyncio.sleep(0)
        far.sendall(b"answer\n")
        assert await reading == b"answer"
        far.shutdown(socket.SHUT_WR)
        await turns()
        assert not connection.alive()


async def test_nothing_is_read_until_a_task_waits_for_it() -> None:
    """Backpressure: a client that does not read must slow the daemon down."""
    with pair() as (connection, far):
        far.sendall(b"first\n")
        assert await connection.line() == b"first"
        sent = 0
        for _ in range(3):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += far.send(b"x" * 4095 + b"\n")
            await turns()
        with pytest.raises(BlockingIOError):
            far.send(b"x")
        for _ in range(sent // 4096):
            assert len(await connection.line()) == 4095


async def test_closing_a_connection_ends_the_wait_for_it() -> None:
    with pair() as (connection, far):
        reading = asyncio.create_task(connection.line())
        await asyncio.sleep(0)
        connection.close()
        with pytest.raises(ConnectionLost):
            await reading
        assert far.recv(1) == b""


async def test_a_large_request_waits_for_the_daemon_to_read() -> None:
    request = bytes(range(256)) * 16384
    with pair() as (connection, far):
        sending = asyncio.create_task(connection.ask([request, b"end"]))
        received = b""
        while len(received) < len(request) + 3:
            received += await asyncio.get_running_loop().sock_recv(far, 1 << 20)
        await sending
        assert received == request + b"end"
        assert connection.alive()
