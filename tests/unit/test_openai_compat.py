"""The openai-compat backend against a misbehaving server.

(Over 400 lines, because text, vectors and scores share the server and its failures.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from inferd.config.entries import OpenAICompatEntry
from inferd.config.kinds import Secret
from inferd.engine.backend import (
    Done,
    EmbedRequest,
    Event,
    GenerateRequest,
    Media,
    Message,
    RankRequest,
    Text,
    Thinking,
    Usage,
)
from inferd.engine.remote import openai as module
from inferd.engine.remote import openai_request, pictures
from inferd.engine.remote.openai import OpenAICompat
from inferd.errors import (
    BackendInternal,
    ConfigError,
    EmbedUnsupported,
    InferdError,
    InvalidRequest,
    NotReady,
    RerankUnsupported,
    Unavailable,
    Unsupported,
)
from tests.cases import cases
from tests.in_process import until
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
    """Asserts that these texts were the answer."""
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

    events, error = await fails(remote, script, timeout_secs=0.2)
    assert events == [Text("x")]
    assert "was silent for 0.2 s" in str(error)


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


async def test_the_key_is_in_no_error(remote: Start) -> None:
    def echo(exchange: Exchange) -> None:
        quoted = orjson.dumps({"error": {"code": exchange.request.headers["authorization"], "message": "no"}})
        exchange.whole(401, quoted)

    _, error = await fails(remote, echo, api_key=Secret("sk-1"))
    assert "does not accept the key: status 401" in str(error)
    assert "sk-1" not in str(error)


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


# Vectors and scores.


def vectors(*rows: list[float], **more: Any) -> Script:
    items = [{"index": i, "embedding": row} for i, row in reversed(list(enumerate(rows)))]
    return lambda exchange: exchange.whole(200, orjson.dumps({"data": items, **more}))


async def embed(remote: Start, script: Script, *inputs: str, **fields: Any) -> tuple[array[float], int, int]:
    async with backend(remote(script), embed=True) as far:
        found = await far.embed(EmbedRequest(inputs=inputs or ("a",), **fields))
    return array("f", found.vectors), found.width, found.input_tokens


async def test_vectors_come_in_order_and_of_length_one(remote: Start) -> None:
    server = remote(vectors([3.0, 4.0], [0.0, 2.0], usage={"prompt_tokens": 5, "total_tokens": 5}))
    async with backend(server, embed=True) as far:
        found = await far.embed(EmbedRequest(inputs=("a", "b")))
    assert array("f", found.vectors) == array("f", [0.6, 0.8, 0.0, 1.0])
    assert (found.width, found.input_tokens) == (2, 5)
    assert server.requests[0].path == "/v1/embeddings"
    assert server.requests[0].json == {"model": "m", "input": ["a", "b"], "encoding_format": "float"}


async def test_fewer_dimensions_are_of_length_one_too(remote: Start) -> None:
    found = await embed(remote, vectors([3.0, 4.0, 12.0]), dimensions=2)
    assert found == (array("f", [0.6, 0.8]), 2, 0)


async def test_too_many_dimensions(remote: Start) -> None:
    with pytest.raises(
        InvalidRequest, match="dimensions is 4 and the vectors of this model have 3: ask for 1 to 3"
    ):
        await embed(remote, vectors([3.0, 4.0, 12.0]), dimensions=4)


async def test_a_large_response_is_parsed_in_a_thread(remote: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ASIDE_BYTES", 1)
    assert await embed(remote, vectors([0.0, 2.0])) == (array("f", [0.0, 1.0]), 2, 0)


@cases(
    "body",
    [
        b"no",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"index":1,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[]}]}',
        b'{"data":[{"index":0,"embedding":[0,0]}]}',
        b'{"data":[{"index":0,"embedding":[1e308,1e308,1e308,1e308]}]}',
        b'{"data":[{"index":0,"embedding":["a"]}]}',
        b'{"more":' + b"[" * 100_000,
        b'{"data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":-1}}',
    ],
)
async def test_malformed_vectors(remote: Start, body: bytes) -> None:
    with pytest.raises(BackendInternal, match="sent an answer that cannot be read"):
        await embed(remote, lambda exchange: exchange.whole(200, body))


@pytest.mark.parametrize("rows", [[[1.0], [1.0, 2.0]], [[1.0]]])
async def test_vectors_of_different_lengths_or_too_few(remote: Start, rows: list[list[float]]) -> None:
    with pytest.raises(BackendInternal):
        await embed(remote, vectors(*rows), "a", "b")


async def test_scores_come_in_the_order_of_the_documents(remote: Start) -> None:
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -2}]
    body = {"results": results, "usage": {"total_tokens": 4}}
    server = remote(lambda exchange: exchange.whole(200, orjson.dumps(body)))
    async with backend(server, rerank=True) as far:
        found = await far.rank(RankRequest("q", ("a", "b")))
    assert (found.scores, found.input_tokens) == ((-2.0, 0.5), 4)
    assert server.requests[0].path == "/v1/rerank"
    assert server.requests[0].json == {"model": "m", "query": "q", "documents": ["a", "b"]}


@cases(
    "results",
    [
        [],
        [{"index": 0, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 2, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 1, "relevance_score": 1e39}],
        [{"index": 0, "relevance_score": 1}, {"index": 1, "relevance_score": None}],
    ],
)
async def test_malformed_scores(remote: Start, results: list[dict[str, Any]]) -> None:
    server = remote(lambda exchange: exchange.whole(200, orjson.dumps({"results": results})))
    async with backend(server, rerank=True) as far:
        with pytest.raises(BackendInternal):
            await far.rank(RankRequest("q", ("a", "b")))


async def test_a_server_without_vectors_and_scores(remote: Start) -> None:
    async with backend(remote(lambda exchange: exchange.whole(501, b"")), embed=True, rerank=True) as far:
        with pytest.raises(EmbedUnsupported):
            await far.embed(EmbedRequest(inputs=("a",)))
        with pytest.raises(RerankUnsupported):
            await far.rank(RankRequest("q", ("a",)))


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
