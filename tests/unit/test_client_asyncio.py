"""Features of the asyncio client alone: cancellation, close by another task, a change of event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import AsyncClient, Token, errors
from tests.in_process import until
from tests.scripted_peer import Peer, Script, frames
from tests.unit.test_client import DONE, token

Start = Callable[[Script], Peer]

pytestmark = pytest.mark.both_loops


async def closed_by_client(server: Peer) -> None:
    await until(server.closed_by_client.is_set)


async def test_nothing_is_sent_before_a_reply_is_entered(peer: Start) -> None:
    server = peer(frames(DONE))
    async with AsyncClient(server.path) as client:
        client.generate("unused")
        async with client.generate("used") as answer:
            assert (await answer.result()).content == "Hello"
    assert server.accepted == 1
    assert b"unused" not in b"".join(server.lines)


async def test_cancelling_the_task_that_reads_cancels_the_request(peer: Start) -> None:
    server = peer(frames(token("a")))
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate("Hi"):
            seen.set()

    async with AsyncClient(server.path, timeout=60) as client:
        task = asyncio.create_task(read())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed_by_client(server)


async def test_another_task_can_close_a_reply_that_is_being_read(peer: Start) -> None:
    server = peer(frames(token("a")))
    async with AsyncClient(server.path) as client, client.generate("Hi") as answer:
        assert await anext(answer) == Token("a")
        reading = asyncio.create_task(anext(answer, None))
        await asyncio.sleep(0)
        await answer.aclose()
        assert await reading is None
        await closed_by_client(server)
        with pytest.raises(errors.ConnectionLost, match="closed before it was complete"):
            await answer.result()


async def test_a_reply_that_is_closed_while_it_connects_is_not_started(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as ahead:
        busy.bind(str(short_dir / "busy"))
        busy.listen(0)
        ahead.connect(str(short_dir / "busy"))
        answer = AsyncClient(short_dir / "busy").generate("Hi")
        entering = asyncio.create_task(answer.__aenter__())
        await asyncio.sleep(0)
        await answer.aclose()
        busy.accept()[0].close()
        with pytest.raises(errors.ConnectionLost, match="closed before it was complete"):
            await entering
        busy.setblocking(True)
        connection = busy.accept()[0]
        with connection, connection.makefile("rb") as reader:
            reader.read()


async def test_two_tasks_cannot_read_one_reply(peer: Start) -> None:
    server = peer(frames(token("a")))
    async with AsyncClient(server.path) as client, client.generate("Hi") as answer:
        await anext(answer)
        first = asyncio.create_task(anext(answer, None))
        await asyncio.sleep(0)
        with pytest.raises(errors.UsageError, match="a request of its own"):
            await anext(answer)
        assert await first is None


async def test_many_requests_at_once_share_a_client(peer: Start) -> None:
    server = peer(frames(token("a"), DONE))
    async with AsyncClient(server.path) as client:
        for _ in range(2):
            answers = await asyncio.gather(*(client.generate("Hi").result() for _ in range(10)))
            assert [answer.content for answer in answers] == ["Hello"] * 10
    assert server.accepted <= 10


async def test_a_daemon_that_does_not_read_times_out(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(short_dir / "deaf"))
        deaf.listen()
        async with AsyncClient(short_dir / "deaf", timeout=0.05) as client:
            with pytest.raises(errors.ConnectionLost, match="did not take the request in time"):
                await client.generate("x" * 10_000_000).result()


async def test_connecting_waits_until_the_daemon_takes_more(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(short_dir / "busy"))
        busy.listen(0)
        ahead = [socket.socket(socket.AF_UNIX)]
        ahead[0].connect(str(short_dir / "busy"))
        client = AsyncClient(short_dir / "busy")
        connecting = asyncio.create_task(client.connect())
        await asyncio.sleep(0)
        assert not connecting.done()
        busy.accept()[0].close()
        await connecting
        await client.aclose()
        ahead[0].close()


def test_a_client_outlives_its_event_loop(peer: Start) -> None:
    server = peer(frames(DONE))
    client = AsyncClient(server.path)
    for _ in range(2):
        assert asyncio.run(client.generate("Hi").result()).content == "Hello"
    asyncio.run(client.aclose())
    assert server.accepted == 1
