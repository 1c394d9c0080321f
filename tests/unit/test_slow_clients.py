"""Clients that send slowly, send nothing, send too much or vanish, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferd import log
from inferd.engine.mock import Mock
from inferd.serve import auth, connection, listener, log_limit, session
from inferd.serve.listener import ConnectionLimit
from inferd.serve.strangers import Strangers
from inferd.serve.surfaces.v2 import BlockSurface
from tests.in_process import DONE, TOKEN, Clock, Gate, ask, serving, until

both_loops = pytest.mark.both_loops
NOTE = {"kind": "text", "id": "t", "size": 9}
BLOCKS = [{"role": "user", "content": [{"type": "text", "attachment_id": "t"}]}]


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# Trickling.


@both_loops
@pytest.mark.parametrize("address", ["unix", "tcp"])
async def test_a_client_that_does_not_end_a_line_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(connection, "PIECE_SECS", 0.2)
    async with serving(path if address == "unix" else "127.0.0.1:0") as server:
        client = await server.connect()
        await until(lambda: server.places.taken == 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while server.places.taken:  # each byte alone is in time
                await client.send(b" ")
                await asyncio.sleep(0.02)


@both_loops
async def test_a_client_that_does_not_send_all_attachment_bytes_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PIECE_SECS", 0.1)
    async with serving(path, surface=BlockSurface()) as server:
        client = await server.connect()
        await client.send({"id": "q", "messages": BLOCKS, "attachments": [NOTE]}, b"12345678")
        assert await client.receive() == b""
        assert server.admission.running == 0


async def test_a_client_that_keeps_sending_may_take_longer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PIECE_BYTES", 1)
    clock = Clock()
    async with serving(path) as server:
        client = await server.connect()
        for sent in range(1, 5):
            await client.send(b" ")
            await until(lambda: bool(server.service.sessions))
            (session,) = server.service.sessions
            await until(lambda: session._conn._splitter.buffered == sent)  # noqa: B023
            await clock.advance(0.6 * connection.PIECE_SECS)
        await client.send(ask())
        assert await client.line() == TOKEN


async def test_the_time_is_that_of_one_request(path: Path) -> None:
    gate, clock = Gate(), Clock()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask(), b'{"id":"q",')  # the second one is begun while the first one runs
        await until(lambda: gate.waiting == 1)
        await clock.advance(2 * connection.PIECE_SECS)
        gate.open(2)
        assert await client.line() + await client.line() == TOKEN + DONE
        (session,) = server.service.sessions
        await until(lambda: session._conn._read_alarm is not None)
        await clock.advance(2 * connection.PIECE_SECS)
        assert await client.receive() == b""  # and from here on it takes too long


async def test_silence_between_requests_does_not_count(path: Path) -> None:
    clock = Clock()
    async with serving(path) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(ask())
            assert await client.line() + await client.line() == TOKEN + DONE
            await clock.advance(2 * connection.PIECE_SECS)
        await client.send(ask())
        assert await client.line() == TOKEN


async def test_after_the_key_silence_is_allowed() -> None:
    clock = Clock()
    async with serving("127.0.0.1:0", api_key="k" * 32) as server:
        client = await server.connect()
        await client.send({"type": "auth", "key": "k" * 32}, ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        await clock.advance(2 * auth.TIMEOUT_SECS)
        await client.send(ask())
        assert await client.line() == TOKEN


# Not reading.


@both_loops
async def test_readers_that_do_not_read_give_way_to_a_request_that_waits(path: Path) -> None:
    tape = ["x" * 20_000] * 40
    mock = Mock(tape=tape)
    async with serving(path, mock, active_permits=4) as server:
        readers = [await server.connect() for _ in range(4)]
        for reader in readers:
            await reader.send(ask())
        await until(
            lambda: (
                len(server.service.sessions) == 4 and all(s._conn.blocked for s in server.service.sessions)
            )
        )
        mock.tape = ("mock-response",)
        honest = await server.connect()
        await honest.send(ask())
        assert await honest.line() + await honest.line() == TOKEN + DONE
        ends = 0
        for reader in readers:  # each is told why its answer ends, or has all of it
            frames = [await reader.frame()]
            while frames[-1]["type"] == "token":
                frames.append(await reader.frame())
            if frames[-1]["type"] == "error":
                ends += 1
                assert frames[-1]["code"] == "queue_full"
                assert frames[-1]["message"].startswith("the answer was not read while other requests waited")
                assert len(frames) < len(tape)
            await reader.send(ask("again"))
            assert (await reader.frame())["id"] == "again"
        assert ends == 1


@both_loops
async def test_a_deadline_ends_a_request_that_waits_for_its_reader(path: Path) -> None:
    async with serving(path, Mock(tape=["x" * 20_000] * 40)) as server:
        reader = await server.connect()
        await reader.send(ask(deadline_ms=50))
        await until(lambda: server.admission.running == 1)
        await until(lambda: server.admission.running == 0)
        while (frame := await reader.frame())["type"] == "token":
            continue
        assert (frame["type"], frame["stop_reason"]) == ("done", "cancelled")


@both_loops
async def test_an_id_is_bounded_since_every_frame_repeats_it(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        for long in ("i" * 1025, "é" * 513):
            await client.send(ask(long))
            frame = await client.frame()
            assert (frame["code"], frame["message"]) == (
                "invalid_request",
                "invalid request: id must have at most 1024 bytes",
            )
        await client.send(ask("i" * 1024))
        assert (await client.frame())["type"] == "token"


# Idling.


@both_loops
async def test_an_idle_connection_is_closed(path: Path) -> None:
    async with serving(path, idle_timeout_secs=0.2) as server:
        client = await server.connect()
        await client.send(ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        assert await client.receive() == b""


async def test_a_request_that_runs_is_not_idle(path: Path) -> None:
    gate, clock = Gate(), Clock()
    async with serving(path, Mock(pace=gate), idle_timeout_secs=10) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        await clock.advance(30)
        gate.open(2)
        assert await client.line() + await client.line() == TOKEN + DONE


# Flooding.


@both_loops
async def test_one_user_cannot_take_every_place(path: Path) -> None:
    async with serving(path, max_connections_per_uid=2) as server:
        clients = [await server.connect() for _ in range(2)]
        await until(lambda: server.places.taken == 2)
        third = await server.connect()
        assert await third.receive() == b""
        clients[0].close()
        await until(lambda: server.places.taken == 1)
        fourth = await server.connect()
        await fourth.send(ask())
        assert await fourth.line() == TOKEN


KEY = "k" * 32


@both_loops
async def test_silent_clients_without_the_key_do_not_block_the_keyholder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth, "TIMEOUT_SECS", 3600.0)
    async with serving("127.0.0.1:0", api_key=KEY, max_connections=2, max_strangers=4) as server:
        strangers = [await server.connect() for _ in range(12)]
        for stranger in strangers[:8]:  # each newcomer beyond four displaces the oldest
            assert await stranger.receive() == b""
        assert server.places.taken == 0
        for _ in range(2):
            client = await server.connect()
            await client.send({"type": "auth", "key": KEY}, ask())
            assert await client.line() == TOKEN
        assert server.places.taken == 2
        third = await server.connect()
        await third.send({"type": "auth", "key": KEY})
        assert await third.receive() == b""  # the places of those with a key are taken
        client.close()
        await until(lambda: server.places.taken == 1)


def test_the_oldest_unauthenticated_client_of_the_busiest_host_is_dropped() -> None:
    closed: list[str] = []
    strangers = Strangers(3)
    for name in ("a1", "b1", "b2", "c1", "b3"):
        strangers.add(name[0], name, functools.partial(closed.append, name))
    assert closed == ["b1", "a1"]  # then one each, and the host that came first
    assert len(strangers) == 3
    assert strangers.discard("c", "c1")
    assert not strangers.discard("c", "c1")
    assert len(strangers) == 2


def test_places_are_counted_by_owner() -> None:
    places = ConnectionLimit(3, per_owner=2)
    assert [places.take(owner) for owner in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    places.leave("a")
    assert places.take("b")
    assert places.taken == 3
    places.per_owner = 0
    places.limit = 9
    assert places.take("b")


async def test_a_flood_does_not_fill_the_log(path: Path, short_dir: Path) -> None:
    clock = Clock()
    activity = log.setup("info", short_dir, stderr=False)
    try:
        async with serving(path, max_connections=1) as server:
            await server.connect()
            await until(lambda: server.places.taken == 1)
            for _ in range(50):
                assert await (await server.connect()).receive() == b""
            await clock.advance(listener.REFUSALS_SECS)
    finally:
        activity.close()
    records = (short_dir / log.FILE_NAME).read_text()
    assert 1 <= records.count('"too_many_connections"') <= 10
    assert records.count('"connections_refused"') >= 1


async def test_a_flood_of_connections_does_not_fill_the_log(
    path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_limit, "SPAN_SECS", 3600.0)
    for name in ("accepted", "closed"):
        counter = log_limit.Burst(log.get("session"), f"connection_{name}", f"connections_{name}")
        monkeypatch.setattr(session, f"_{name}", counter)
    activity = log.setup("info", short_dir, stderr=False)
    try:
        async with serving(path) as server:
            for _ in range(200):
                client = await server.connect()
                client.finish_sending()
                assert await client.receive() == b""
            await until(lambda: server.places.taken == 0)
    finally:
        activity.close()
    written = [event["msg"] for event in events(short_dir)]
    assert written.count("connection_accepted") == written.count("connection_closed") == log_limit.LIMIT


async def test_log_lines_dropped_in_a_flood_are_counted(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_limit, "SPAN_SECS", 0.05)
    counter = log_limit.Burst(log.get("session"), "came", "came_too")
    activity = log.setup("info", short_dir, stderr=False)
    try:
        for _ in range(1000):
            counter.info()

        def total() -> int:
            return sum(event.get("count", 1) for event in events(short_dir))

        await until(lambda: total() == 1000)
    finally:
        activity.close()
    assert len([event for event in events(short_dir) if event["msg"] == "came"]) < 1000


def test_a_flood_that_lasts_is_one_record_a_second(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, due = 100.0, list[Callable[[], object]]()
    loop = SimpleNamespace(time=lambda: now, call_at=lambda when, call: due.append(call))
    monkeypatch.setattr(log_limit, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    counter = log_limit.Burst(log.get("session"), "came", "came_too")
    activity = log.setup("info", short_dir, stderr=False)
    try:
        for number in (100, 100, 100, 1, 2):
            for _ in range(number):
                counter.info()
            now += log_limit.SPAN_SECS
            while due:
                due.pop()()
    finally:
        activity.close()
    counts = [event["count"] for event in events(short_dir) if event["msg"] == "came_too"]
    assert counts == [100 - log_limit.LIMIT, 100, 100, 1]
    assert [event["msg"] for event in events(short_dir)].count("came") == log_limit.LIMIT + 2


def events(directory: Path) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    path = directory / log.FILE_NAME
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


# Vanishing.


@both_loops
async def test_tcp_keepalive_is_on() -> None:
    async with serving("127.0.0.1:0") as server:
        await server.connect()
        await until(lambda: len(server.service.sessions) == 1)
        (session,) = server.service.sessions
        assert session._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options: dict[str, Any] = {
            name: session._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in listener.KEEPALIVE
        }
        assert options == listener.KEEPALIVE
        assert sum((options["TCP_KEEPIDLE"], options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"])) <= 120


@both_loops
async def test_many_bad_clients_leak_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PIECE_SECS", 0.1)
    async with serving(path, max_connections=50, idle_timeout_secs=0.1) as server:
        for number in range(200):
            client = await server.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await client.send(b"{" * (number % 3))
            if number % 5 == 0:
                client.close()
        await until(lambda: server.places.taken == 0)
        server.service.idle_timeout_secs = connection.PIECE_SECS = 100.0
        client = await server.connect()
        await client.send(ask())
        assert await client.line() == TOKEN
