"""The admin socket: a snapshot on connecting, every event afterwards, and no client that can block it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferd.errors import ModelNotFound
from inferd.serve import bind
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.observe.status import MAX_UNREAD_EVENTS, ShowPull, StatusBoard
from inferd.wire import admin
from tests.in_process import Client, until

pytestmark = pytest.mark.both_loops

REPORT = {"running": [], "waiting": []}.copy
SNAPSHOT = admin.snapshot(admin.STARTING, REPORT())
CAPABILITIES = admin.encode_status("capabilities", {"backend": "mock"})


class Admin:
    def __init__(self, board: StatusBoard, listener: Listener) -> None:
        self.board = board
        self.listener = listener
        self._clients: list[Client] = []

    async def subscribe(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        client = Client(sock)
        self._clients.append(client)
        before = len(self.board._subscribers)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.address)
        await until(lambda: len(self.board._subscribers) > before)
        return client

    async def close(self) -> None:
        await self.listener.close(5)
        for client in self._clients:
            client.close()


@contextlib.asynccontextmanager
async def board_at(path: Path) -> AsyncIterator[Admin]:
    board = StatusBoard(REPORT)
    listener = Listener(bind.bind_unix(path, 0o600), lambda sock, *_: board.serve(sock), ConnectionLimit(100))
    admin_socket = Admin(board, listener)
    try:
        yield admin_socket
    finally:
        await admin_socket.close()
    assert not board._subscribers


async def test_the_snapshot_is_capabilities_and_then_the_lifecycle(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        first = await admin_socket.subscribe()
        assert await first.line() == admin.STARTING
        admin_socket.board.publish(admin.loading_model("mmap", {"path": "m"}))
        admin_socket.board.publish_capabilities(CAPABILITIES)
        admin_socket.board.publish(admin.READY)
        second = await admin_socket.subscribe()
        assert await second.line() + await second.line() == CAPABILITIES + admin.READY
        live = [await first.line() for _ in range(3)]
        assert live == [admin.loading_model("mmap", {"path": "m"}), CAPABILITIES, admin.READY]


async def test_everyone_gets_every_event_in_order(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        clients = [await admin_socket.subscribe() for _ in range(5)]
        frames = [admin.loading_model("verify", {"n": n}) for n in range(200)]
        for frame in frames:
            admin_socket.board.publish(frame)
        for client in clients:
            assert [await client.line() for _ in range(201)] == [admin.STARTING, *frames]


async def test_other_bytes_of_a_subscriber_are_ignored(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        client = await admin_socket.subscribe()
        for line in (b"x" * 100_000, b'{"type":"shutdown"}', b'["snapshot"]', b'"snapshot"', b"snapshot"):
            await client.send(line + b"\n")
        await client.send(b" " * 100_000)
        (subscriber,) = admin_socket.board._subscribers
        await until(lambda: len(subscriber._begun) > admin.MAX_REQUEST_BYTES)
        assert len(subscriber._begun) == admin.MAX_REQUEST_BYTES + 1  # and no more is kept of it
        await client.send(admin.SNAPSHOT_REQUEST, b'{"type":"snapshot"}')
        await until(lambda: subscriber._begun.startswith(b'{"type"'))
        admin_socket.board.publish(admin.READY)
        assert await client.line() + await client.line() == admin.STARTING + admin.READY


async def test_a_snapshot_goes_to_its_requester_once_per_request(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        asking, quiet = await admin_socket.subscribe(), await admin_socket.subscribe()
        assert await asking.line() == admin.STARTING
        await asking.send(b"noise\n" + admin.SNAPSHOT_REQUEST)
        assert await asking.line() == SNAPSHOT
        for byte in b'{"type" : "snapshot", "more": 1}\r\n':
            await asking.send(bytes([byte]))
        assert await asking.line() == SNAPSHOT
        admin_socket.board.publish(admin.READY)
        assert await asking.line() == admin.READY
        assert await quiet.line() + await quiet.line() == admin.STARTING + admin.READY


async def test_the_start_comes_before_the_snapshot(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(admin_socket.listener.address)
        sock.sendall(admin.SNAPSHOT_REQUEST)  # before the connection is accepted
        sock.setblocking(False)
        client = Client(sock)
        assert await client.line() + await client.line() == admin.STARTING + SNAPSHOT
        client.close()
        await until(lambda: not admin_socket.board._subscribers)


async def test_many_requests_in_one_read_get_one_snapshot(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        client = await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        subscriber.data_received(admin.SNAPSHOT_REQUEST * 1000)
        admin_socket.board.publish(admin.READY)
        assert [await client.line() for _ in range(3)] == [admin.STARTING, SNAPSHOT, admin.READY]


async def test_every_unloading_that_is_asked_for_is_answered_one_after_another(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        gate = asyncio.Event()
        at_work: list[str] = []

        async def unload(name: str) -> int:
            at_work.append(name)
            await gate.wait()
            if name == "b":
                raise ModelNotFound(name, loaded=False)
            return len(at_work)

        admin_socket.board.unload = unload
        client = await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        subscriber.data_received(b"".join(map(admin.unload_request, "ab")))
        await until(lambda: bool(at_work))
        subscriber.data_received(admin.unload_request("c"))
        assert at_work == ["a"]
        gate.set()
        refused = admin.refused("b", "model_not_found", str(ModelNotFound("b", loaded=False)))
        answers = [admin.STARTING, admin.unloaded("a", 1), refused, admin.unloaded("c", 3)]
        assert [await client.line() for _ in answers] == answers
        gate.clear()
        subscriber.data_received(admin.unload_request("d") * (MAX_UNREAD_EVENTS + 1))
        assert await client.rest() == b""
        assert at_work == ["a", "b", "c"]


async def test_a_subscriber_has_one_download_which_ends_with_it(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        ended: list[str] = []

        async def pull(name: str, show: ShowPull) -> str:
            show("download", {"downloaded_bytes": 1})
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)
            return name

        admin_socket.board.pull = pull
        client = await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        subscriber.data_received(admin.pull_request("a"))
        subscriber.data_received(admin.pull_request("b"))
        frames = [admin.parse(await client.line()) for _ in range(3)]
        assert [frame["status"] for frame in frames] == ["starting", "refused", "pulling"]
        assert (frames[1]["model"], frames[2]["model"]) == ("b", "a")
        client.close()
        await until(lambda: ended == ["a"])


async def test_new_subscribers_get_no_old_event_and_no_removed_capabilities(
    short_dir: Path,
) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        breaker = admin.encode_status("breaker", {"backend": "b", "state": "open"})
        first = await admin_socket.subscribe()
        admin_socket.board.publish_capabilities(CAPABILITIES)
        admin_socket.board.publish_event(breaker)
        admin_socket.board.forget_capabilities()
        second = await admin_socket.subscribe()
        assert [await first.line() for _ in range(3)] == [admin.STARTING, CAPABILITIES, breaker]
        admin_socket.board.publish(admin.READY)
        assert await second.line() + await second.line() == admin.STARTING + admin.READY


async def test_a_subscriber_that_leaves_is_forgotten(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        leaving, closing, staying = [await admin_socket.subscribe() for _ in range(3)]
        leaving.close()
        closing.finish_sending()
        await until(lambda: len(admin_socket.board._subscribers) == 1)
        admin_socket.board.publish(admin.READY)
        assert await staying.line() + await staying.line() == admin.STARTING + admin.READY


async def test_an_event_during_a_disconnect_is_harmless(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        client = await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        client.close()
        await asyncio.wait_for(asyncio.shield(subscriber.closed), 100)
        for _ in range(3):
            subscriber.send(admin.READY)


async def test_only_a_subscriber_that_lags_is_disconnected(short_dir: Path) -> None:
    frame = admin.loading_model("verify", {"path": "x" * 4000})
    async with board_at(short_dir / "a") as admin_socket:
        slow, quick = await admin_socket.subscribe(), await admin_socket.subscribe()
        assert await quick.line() == admin.STARTING
        published = 0
        while len(admin_socket.board._subscribers) == 2:
            admin_socket.board.publish(frame)
            published += 1
            assert await quick.line() == frame
        received = (await slow.rest()).count(b"\n") - 1
        # One held by the transport, those held by us, and one too many.
        assert published - received == 1 + MAX_UNREAD_EVENTS + 1
        admin_socket.board.publish(admin.READY)
        assert await quick.line() == admin.READY


async def test_a_subscriber_at_the_bound_loses_nothing(short_dir: Path) -> None:
    frame = admin.loading_model("verify", {"path": "x" * 4000})
    async with board_at(short_dir / "a") as admin_socket:
        slow = await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        published = 0
        while len(subscriber._unread) < MAX_UNREAD_EVENTS:
            admin_socket.board.publish(frame)
            published += 1
            await asyncio.sleep(0)
        assert await slow.line() == admin.STARTING
        assert [await slow.line() for _ in range(published)] == [frame] * published
        assert not subscriber._unread


async def test_the_last_event_arrives_before_the_end(short_dir: Path) -> None:
    async with board_at(short_dir / "a") as admin_socket:
        clients = [await admin_socket.subscribe() for _ in range(3)]
        admin_socket.board.publish(admin.DRAINING)
        await admin_socket.listener.close(5)
        for client in clients:
            assert await client.rest() == admin.STARTING + admin.DRAINING


async def test_a_subscriber_that_never_reads_does_not_block_the_shutdown(short_dir: Path) -> None:
    frame = admin.loading_model("verify", {"path": "x" * 4000})
    async with board_at(short_dir / "a") as admin_socket:
        await admin_socket.subscribe()
        (subscriber,) = admin_socket.board._subscribers
        while not subscriber._unread:
            admin_socket.board.publish(frame)
            await asyncio.sleep(0)
        await admin_socket.listener.close(grace=0.05)
        assert not admin_socket.board._subscribers


async def test_a_subscriber_that_is_connecting_gets_the_end(short_dir: Path) -> None:
    board = StatusBoard(REPORT)
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    serving = asyncio.ensure_future(board.serve(theirs))
    await asyncio.sleep(0)
    serving.cancel()  # its connection is being made
    client = Client(ours)
    assert await client.rest() == admin.STARTING
    await serving
    client.close()
    assert not board._subscribers
