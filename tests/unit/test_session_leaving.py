"""Clients that leave, and connections that end, over a real socket, on both event loops."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import closing
from pathlib import Path

import pytest

from inferd.engine.mock import Mock
from inferd.serve import connection
from inferd.serve.hangup import HangupWatch
from inferd.serve.output import FLUSH_BYTES
from tests.cases import cases
from tests.in_process import DONE, TOKEN, Gate, ask, serving, until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# Leaving.


async def test_a_client_that_ends_both_sides_after_an_error_still_gets_it(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b"nonsense\n" + b"x" * 100_000)
        client.finish_sending()
        await until(lambda: not server.service.sessions)
        assert (await client.rest()).count(b"\n") == 1


@cases("state", ["running", "queued", "with more lines waiting", "after a half-close"])
async def test_a_client_that_closes_its_socket_cancels_its_request(path: Path, state: str) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        other, client = await server.connect(), await server.connect()
        if state == "queued":
            await other.send(ask())
            await until(lambda: gate.waiting == 1)
        await client.send(ask())
        if state == "with more lines waiting":
            await until(lambda: gate.waiting == 1)
            await client.send(ask(), ask())
        if state == "after a half-close":
            client.finish_sending()
        await until(lambda: server.admission.waiting == 1 if state == "queued" else gate.waiting == 1)
        client.close()
        if state == "queued":
            await until(lambda: server.admission.waiting == 0)
            gate.open(2)
            assert await other.line() + await other.line() == TOKEN + DONE
        else:
            await until(lambda: server.admission.running == 0)
            await until(lambda: gate.waiting == 0)
        await until(lambda: len(server.service.sessions) == 1)


async def test_a_half_close_does_not_cancel(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        await until(lambda: gate.waiting == 1)
        await asyncio.sleep(0.01)
        gate.open(2)
        assert await client.rest() == TOKEN + DONE


async def test_a_reset_on_tcp_cancels(short_dir: Path) -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: server.admission.running == 0)


async def test_a_close_on_tcp_cancels_with_the_first_failed_write() -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(tape=["x"] * 1000, pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        client.close()
        while server.admission.running:
            gate.open()
            await asyncio.sleep(0.001)


async def test_a_half_close_on_tcp_does_not_cancel() -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        await until(lambda: gate.waiting == 1)
        gate.open(2)
        assert await client.rest() == TOKEN + DONE


async def test_nothing_is_written_after_a_cancellation(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        (session,) = server.service.sessions
        written: list[bytes] = []
        session._conn.write = written.append  # type: ignore[method-assign]
        client.close()
        await until(lambda: not server.service.sessions)
        assert written == []


# The end after an error.


async def test_the_error_frame_arrives_while_the_client_keeps_sending() -> None:
    async with serving("127.0.0.1:0") as server:
        client = await server.connect()
        await client.send(b"nonsense\n" + b"x" * 300_000)
        frame = await client.frame()
        assert frame["code"] == "invalid_request"
        assert await client.receive() == b""  # the write side is shut down, not reset
        await client.send(b"x" * 100_000)
        client.finish_sending()
        await until(lambda: not server.service.sessions)


async def test_a_client_that_never_stops_sending_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECS", 0.05)
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b"nonsense\n")

        async def send_for_ever() -> None:
            while True:
                await client.send(b"x" * 1000)
                await asyncio.sleep(0)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await send_for_ever()


async def test_what_is_written_to_a_closed_connection_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(HangupWatch(asyncio.get_running_loop())) as hangups:
        lost = connection.Connection(100, 0.0, hangups)
        await lost.open(ours, lambda: None)
        lost._transport.abort()
        await lost.closed
        lost.write(b"x" * FLUSH_BYTES)
