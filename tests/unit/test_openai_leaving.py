"""Requests to an OpenAI-compatible server if the client leaves or does not read."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inferd.engine.events import Text, Thinking
from inferd.engine.requests import EmbedRequest
from inferd.errors import (
    NotReady,
)
from tests.in_process import until
from tests.remote_server import Exchange, data, delta
from tests.unit.test_openai_compat import Start, ask, backend, ended

# Leaving.


def begins(exchange: Exchange) -> None:
    exchange.head()
    exchange.chunk(data(delta(reasoning_content="hm")) + data(delta(content="x")))
    exchange.wait_until_left()


@pytest.mark.both_loops
async def test_cancel_closes_the_request_at_once(remote: Start) -> None:
    server = remote(begins)
    async with backend(server) as far:
        stream = await far.generate(ask())
        assert [await anext(stream), await anext(stream)] == [Thinking("hm"), Text("x")]
        stream.cancel()
        ended([event async for event in stream], "cancelled")
        await until(server.left.is_set)


async def test_cancel_while_the_server_is_silent(remote: Start) -> None:
    server = remote(Exchange.wait_until_left)
    async with backend(server) as far:
        stream = await far.generate(ask())
        await until(lambda: bool(server.requests))
        stream.cancel()
        ended([event async for event in stream], "cancelled")
        await until(server.left.is_set)


@pytest.mark.both_loops
async def test_close_closes_the_request_at_once(remote: Start) -> None:
    server = remote(begins)
    async with backend(server) as far:
        stream = await far.generate(ask())
        await anext(stream)
        stream.close()
        await until(server.left.is_set)


async def test_close_ends_running_requests(remote: Start) -> None:
    server = remote(begins)
    async with backend(server) as far:
        stream = await far.generate(ask())
        await anext(stream)
    assert [event async for event in stream] == []
    await until(server.left.is_set)
    assert not far.ready()
    with pytest.raises(NotReady):
        await far.generate(ask())
    with pytest.raises(NotReady):
        await far.embed(EmbedRequest(inputs=("x",)))


async def test_an_embedding_that_is_cancelled_closes_its_request(remote: Start) -> None:
    server = remote(Exchange.wait_until_left)
    async with backend(server, embed=True) as far:
        call = asyncio.ensure_future(far.embed(EmbedRequest(inputs=("x",))))
        await until(lambda: bool(server.requests))
        call.cancel()
        await until(server.left.is_set)


async def test_a_slow_consumer_slows_the_server(remote: Start) -> None:
    held = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        piece = data(delta(content="x" * 1000)) * 100
        exchange.connection.settimeout(0.3)
        try:
            for _ in range(1000):
                exchange.chunk(piece)
        except TimeoutError:
            held.set()
        exchange.cut()

    server = remote(script)
    async with backend(server) as far:
        stream = await far.generate(ask())
        await anext(stream)
        await until(lambda: held.is_set() or server.left.is_set())
        assert held.is_set()
