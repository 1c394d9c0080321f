"""A process that floods the daemon leaves another process its share of the service."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from inferd.engine.mock import Mock
from inferd.serve import session, shares
from inferd.serve.peer import Peer
from tests.in_process import Client, Gate, Server, ask, serving, until

FLOOD, HONEST = Peer("unix", uid=1, gid=1, pid=1), Peer("unix", uid=1, gid=1, pid=2)
STRANGER = Peer("unix", uid=2, gid=2, pid=3)


@contextlib.asynccontextmanager
async def as_peer(server: Server, peer: Peer):  # type: ignore[no-untyped-def]
    """A connection that appears to come from ``peer``."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    served = asyncio.ensure_future(server.service.serve(ours, peer, 1))
    try:
        yield Client(theirs)
    finally:
        theirs.close()
        await served


async def served(client: Client) -> bool:
    """Sends a request; returns whether it was answered, not refused."""
    await client.send(ask())
    while (frame := await client.frame())["type"] == "token":
        continue
    return frame["type"] == "done"


async def turn() -> None:
    """An event of an answer takes some turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("peer", "permits"), [(HONEST, 1), (STRANGER, 4)], ids=["process", "user"])
async def test_a_flood_leaves_a_quarter_of_the_service_to_another(
    short_dir: Path, peer: Peer, permits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "STAY_SECS", 3600.0)
    answered = 0
    over = asyncio.Event()

    async def flood(client: Client) -> None:
        nonlocal answered
        while not over.is_set():
            done = await served(client)
            answered += done  # in a statement of its own: += reads the old value before it awaits

    mock = Mock(pace=turn)
    async with (
        serving(short_dir / "s", mock, active_permits=permits) as server,
        contextlib.AsyncExitStack() as held,
    ):
        clients = [await held.enter_async_context(as_peer(server, FLOOD)) for _ in range(30)]
        honest = await held.enter_async_context(as_peer(server, peer))
        floods = [asyncio.ensure_future(flood(client)) for client in clients]
        held.push_async_callback(asyncio.wait, floods)
        held.callback(over.set)
        await until(lambda: answered > 0)
        before = answered
        for _ in range(8):
            assert await served(honest)  # never once refused
        assert answered - before <= permits + 3 * 8  # those that ran at first, and three of four after that


async def test_a_refused_connection_is_not_read_again_at_once(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FIRST_PAUSE_SECS", 3600.0)
    monkeypatch.setattr(session, "LONGEST_PAUSE_SECS", 3600.0)
    gate = Gate()
    async with serving(short_dir / "s", Mock(pace=gate), queue_depth=0) as server:
        running, insistent, other = [await server.connect() for _ in range(3)]
        await running.send(ask())
        await until(lambda: gate.waiting == 1)
        await insistent.send(ask(), ask())
        assert (await insistent.frame())["code"] == "queue_full"
        await other.send(ask())
        assert (await other.frame())["code"] == "queue_full"
        with pytest.raises(BlockingIOError):
            insistent.sock.recv(1)
