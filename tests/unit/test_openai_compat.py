"""The openai-compat backend against a misbehaving server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from inferd.config.entries import OpenAICompatEntry
from inferd.config.kinds import Secret
from inferd.engine.events import Done, Event, Text, Usage
from inferd.engine.remote import openai as module
from inferd.engine.remote import openai_request, pictures
from inferd.engine.remote.openai import OpenAICompat
from inferd.engine.requests import GenerateRequest, Media, Message
from inferd.errors import (
    BackendInternal,
    ConfigError,
    InferdError,
    InvalidRequest,
    Unavailable,
    Unsupported,
)
from tests.cases import cases
from tests.in_process import Clock, until
from tests.remote_server import DONE, Exchange, RemoteServer, Script, data, delta, finish, says
from tests.requests import generate_request

Start = Callable[..., RemoteServer]


def entry(url: str = "http://far.invalid", **fields: Any) -> OpenAICompatEntry:
    return OpenAICompatEntry(**{"name": "far", "base_url": url, "model": "m", "timeout_secs": 30.0, **fields})


@contextlib.asynccontextmanager
async def backend(server: RemoteServer, **fields: Any) -> AsyncIterator[OpenAICompat]:
    backend = OpenAICompat(entry(server.url, **fields))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def ask(**fields: Any) -> GenerateRequest:
    return generate_request(**fields)


async def collect(backend: OpenAICompat, **fields: Any) -> list[Event]:
    stream = await backend.generate(ask(**fields))
    try:
        return [event async for event in stream]
    finally:
        stream.close()


async def answer(remote: Start, script: Script, **fields: Any) -> list[Event]:
    async with backend(remote(script), **fields) as far:
        return await collect(far)


def ended(events: list[Event], reason: str, *texts: str) -> None:
    """Asserts that the answer consists of these texts."""
    *others, done = events
    assert [event.text for event in others if isinstance(event, Text)] == list(texts)
    assert isinstance(done, Done)
    assert done.stop_reason == reason


# Answers.


@pytest.mark.both_loops
async def test_an_answer_streams(remote: Start) -> None:
    server = remote(says("Hel", "lo"))
    async with backend(server, api_key=Secret("sk-1")) as far:
        events = await collect(far, max_tokens=9)
    ended(events, "end", "Hel", "lo")
    assert isinstance(events[-1], Done)
    assert events[-1].usage == Usage(3, 2)
    assert events[-1].timings is not None
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.headers["content-type"] == "application/json"
    assert request.json["max_tokens"] == 9


async def test_without_a_key_none_is_sent(remote: Start) -> None:
    server = remote(says("x"))
    async with backend(server) as far:
        await collect(far)
    assert "authorization" not in server.requests[0].headers


async def test_one_byte_at_a_time(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        for byte in data(delta(content="Grüße")) + data(finish("stop")) + DONE:
            exchange.chunk(bytes([byte]))
        exchange.end()

    ended(await answer(remote, script), "end", "Grüße")


@pytest.mark.parametrize("large", [True, False])
async def test_images_are_sent_as_data_urls(
    remote: Start, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Large ones are made off the event loop."""
    threads = set()

    def encode(image: Media) -> tuple[str, str]:
        threads.add(threading.get_ident())
        return pictures.as_base64(image)

    monkeypatch.setattr(pictures, "_LARGE_BYTES", 3 if large else 4)
    monkeypatch.setattr(openai_request, "as_base64", encode)
    server = remote(says("red"))
    pixel = Media("image", memoryview(b"\xff\0\0"), width=1, height=1)
    async with backend(server) as far:
        ended(await collect(far, messages=(Message("user", ("what", pixel)),)), "end", "red")
    image = server.requests[0].json["messages"][0]["content"][1]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert (threads != {threading.get_ident()}) is large


async def test_no_token_needs_no_server(remote: Start) -> None:
    server = remote(says("x"))
    async with backend(server) as far:
        ended(await collect(far, max_tokens=0), "length")
    assert server.accepted == 0


async def test_a_connection_is_kept_for_the_next_request(remote: Start) -> None:
    server = remote(says("x"))
    async with backend(server) as far:
        for _ in range(3):
            ended(await collect(far), "end", "x")
    assert (len(server.requests), server.accepted) == (3, 1)


async def test_a_response_that_does_not_end_holds_no_answer(
    remote: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLING_SECS", 1000.0)

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")) + data(finish("stop")) + DONE)
        exchange.wait_until_left()

    server = remote(script)
    async with backend(server, timeout_secs=1000.0) as far:
        ended(await collect(far), "end", "x")
        await until(server.left.is_set)


async def test_an_end_without_its_mark(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.whole(200, data(delta(content="x")) + data(finish("length")).rstrip())

    ended(await answer(remote, script), "length", "x")


async def test_a_cut_after_the_end_loses_nothing(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")) + data(finish("stop")))
        exchange.cut()

    ended(await answer(remote, script), "end", "x")


async def test_a_stall_after_the_end_takes_no_time(remote: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")) + data(finish("stop")))
        exchange.wait_until_left()

    monkeypatch.setattr(module, "_SETTLING_SECS", 0.05)
    server = remote(script)
    async with backend(server, timeout_secs=1000.0) as far:
        ended(await collect(far), "end", "x")
        await until(server.left.is_set)


async def test_comments_keep_a_slow_answer_alive(remote: Start) -> None:
    pause = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        for _ in range(5):
            pause.wait(0.3)
            exchange.chunk(b": still here\n\n")
        exchange.chunk(data(delta(content="x")) + data(finish("stop")) + DONE)
        exchange.end()

    ended(await answer(remote, script, timeout_secs=1.0), "end", "x")


# Failures.


async def fails(remote: Start, script: Script, **fields: Any) -> tuple[list[Event], InferdError]:
    """The events before the failure, and the failure."""
    events: list[Event] = []
    async with backend(remote(script), **fields) as far:
        stream = await far.generate(ask())
        try:
            async for event in stream:
                events.append(event)
        except InferdError as error:
            return events, error
    pytest.fail("the answer had an end")


async def test_a_refusal_is_the_streams(remote: Start) -> None:
    body = orjson.dumps({"error": {"message": "too long"}})
    events, error = await fails(remote, lambda exchange: exchange.whole(400, body))
    assert events == []
    assert type(error) is InvalidRequest
    assert str(error).endswith("refused the request with status 400: too long")


async def test_too_many_requests(remote: Start) -> None:
    _, error = await fails(remote, lambda exchange: exchange.whole(429, b"", retry_after="3"))
    assert type(error) is Unavailable
    assert error.retryable
    assert str(error).endswith("answered with status 429; it asks to wait 3 s")


async def test_a_stall_before_the_first_token(remote: Start) -> None:
    events, error = await fails(remote, Exchange.wait_until_left, timeout_secs=0.05)
    assert events == []
    assert "was silent for 0.05 s" in str(error)


async def test_a_stall_after_the_first_token(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")))
        exchange.wait_until_left()

    async with backend(remote(script), timeout_secs=1000.0) as far:
        clock = Clock()
        stream = await far.generate(ask())
        assert await anext(stream) == Text("x")
        end = asyncio.ensure_future(anext(stream))
        while not end.done():
            await clock.advance(1000.0)
        with pytest.raises(InferdError, match="was silent for 1000 s"):
            await end


async def test_a_cut_in_the_middle(remote: Start) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")))
        exchange.cut()

    events, error = await fails(remote, script)
    assert events == [Text("x")]
    assert type(error) is Unavailable
    assert "broke off the connection" in str(error)


async def test_the_mark_of_the_end_ends_an_answer(remote: Start) -> None:
    text, done = await answer(remote, lambda exchange: exchange.stream(delta(content="x")))
    assert text == Text("x")
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("end", Usage(0, 1))


async def test_an_answer_that_was_not_streamed(remote: Start) -> None:
    message = {"role": "assistant", "content": "x"}
    whole = orjson.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "usage": {"completion_tokens": 4},
        }
    )
    text, done = await answer(
        remote, lambda exchange: exchange.whole(200, whole, content_type="application/json")
    )
    assert text == Text("x")
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("length", Usage(0, 4))


async def test_a_page_in_place_of_an_answer_has_no_end(remote: Start) -> None:
    assert await answer(remote, lambda exchange: exchange.whole(200, b"<html>\n\nHello</html>")) == []


@cases(
    "junk",
    [
        b"data: {\n\n",
        b"data: nonsense\n\n",
        b"data: \xff\n\n",
        b'data: "x"\n\n',
        b'data: {"more":' + b"[" * 100_000 + b"\n\n",
    ],
)
async def test_unreadable_chunks(remote: Start, junk: bytes) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(data(delta(content="x")))
        exchange.chunk(junk)
        exchange.wait_until_left()

    events, error = await fails(remote, script)
    assert events in ([], [Text("x")])
    assert type(error) is BackendInternal
    assert error.counts
    assert str(error).endswith(" sent an answer that cannot be read")


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_the_key_is_in_no_error(remote: Start, status: int) -> None:
    def echo(exchange: Exchange) -> None:
        given = exchange.request.headers["authorization"]
        key = given.removeprefix("Bearer ")
        exchange.whole(status, orjson.dumps({"error": {"code": given, "message": f"{key} is not a key"}}))

    _, error = await fails(remote, echo, api_key=Secret("sk-1"))
    assert f"status {status}" in str(error)
    assert "… is not a key" in str(error)
    assert "sk-1" not in str(error)


async def test_the_key_is_in_no_error_of_a_stream(remote: Start) -> None:
    def echo(exchange: Exchange) -> None:
        key = exchange.request.headers["authorization"].removeprefix("Bearer ")
        exchange.head()
        exchange.chunk(data(delta(content="x")))
        exchange.chunk(data({"error": {"code": 400, "message": f"{key} is not a key"}}))

    _, error = await fails(remote, echo, api_key=Secret("sk-1"))
    assert "… is not a key" in str(error)
    assert "sk-1" not in str(error)


# The entry.


@cases(
    "of_entry, able",
    [
        ({}, {"v2", "embed"}),
        ({"embed": False}, {"v2"}),
        ({"embed": True}, {"embed"}),
        ({"rerank": True}, {"rerank"}),
        ({"rerank": True, "embed": True}, {"rerank", "embed"}),
    ],
)
def test_capabilities_of_an_entry(of_entry: dict[str, bool], able: set[str]) -> None:
    capabilities = OpenAICompat(entry(**of_entry), embed=True).capabilities()
    assert {name for name in ("v2", "embed", "rerank") if getattr(capabilities, name)} == able
    for ability in ("vision", "tools", "thinking"):
        assert getattr(capabilities, ability) is capabilities.v2
    assert capabilities.accelerator.kind == "remote"


async def test_a_model_that_embeds_is_not_asked_for_text(remote: Start) -> None:
    async with backend(remote(says("x")), embed=True) as far:
        with pytest.raises(Unsupported):
            await far.generate(ask())


def test_a_key_that_no_header_can_carry() -> None:
    with pytest.raises(
        ConfigError, match="the API key of backend 'far' has characters that HTTP cannot"
    ) as raised:
        OpenAICompat(entry(api_key=Secret("schlüssel")))
    assert "schl" not in str(raised.value)
