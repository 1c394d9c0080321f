"""The bedrock-invoke backend against a server that checks its signatures and speaks its event stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inferd.config.entries import BedrockEntry
from inferd.config.kinds import Secret
from inferd.engine.backend import Accelerator, Capabilities
from inferd.engine.events import Done, Event, Text, Usage
from inferd.engine.remote.bedrock import Bedrock
from inferd.engine.requests import GenerateRequest, Media, Message
from inferd.errors import BackendInternal, InferdError, InvalidRequest, NotReady, Unavailable
from tests import bedrock_server
from tests.bedrock_server import BedrockServer, Exchange, Script, answer, chunk, exception, message
from tests.cases import cases
from tests.in_process import Clock

MODEL = "anthropic.claude-3-5-sonnet-20241022-v2:0"
KEYS: dict[str, Any] = {
    "access_key_id": bedrock_server.ACCESS_KEY_ID,
    "secret_access_key": Secret(bedrock_server.SECRET_ACCESS_KEY),
}
REQUEST = GenerateRequest(messages=(Message("user", "hi"),), max_tokens=50)
PATIENCE_SECS = 100.0


def entry(endpoint: str | None = None, **more: Any) -> BedrockEntry:
    values = {"region": bedrock_server.REGION, "model_id": MODEL, **KEYS, **more}
    return BedrockEntry(name="cloud", endpoint=endpoint, **values)


@asynccontextmanager
async def serving(script: Script, **more: Any) -> AsyncIterator[tuple[Bedrock, BedrockServer]]:
    """A started backend, and the server it talks to."""
    with BedrockServer(script) as server:
        backend = Bedrock(entry(server.url, **more))
        await backend.start()
        try:
            yield backend, server
        finally:
            await backend.close()


async def events(backend: Bedrock, request: GenerateRequest = REQUEST) -> list[Event]:
    stream = await backend.generate(request)
    try:
        return [event async for event in stream]
    finally:
        stream.close()


def says(*texts: str) -> Script:
    def script(exchange: Exchange) -> None:
        exchange.events(*answer(*texts))
        exchange.finish()

    return script


async def failure(script: Script, **more: Any) -> InferdError:
    async with serving(script, **more) as (backend, _):
        with pytest.raises(InferdError) as caught:
            await events(backend)
    return caught.value


# Authentication.


@pytest.mark.both_loops
@cases(
    "more",
    [
        {},
        {"session_token": Secret(bedrock_server.SESSION_TOKEN)},
        {"bearer_token": Secret(bedrock_server.BEARER_TOKEN)},
        {"model_id": "arn:aws:bedrock:us-east-1:1234:inference-profile/us.anthropic.claude-v1:0"},
    ],
)
async def test_a_request_is_accepted_and_answered(more: dict[str, Any]) -> None:
    async with serving(says("Hel", "lo"), **more) as (backend, server):
        *texts, done = await events(backend)
    assert texts == [Text("Hel"), Text("lo")]
    assert isinstance(done, Done)
    assert (done.stop_reason, done.usage) == ("end", Usage(9, 2))
    assert done.timings is not None
    (exchange,) = server.exchanges
    assert exchange.body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert exchange.headers["accept"] == "application/vnd.amazon.eventstream"
    model = more.get("model_id", MODEL).replace(":", "%3A").replace("/", "%2F")
    assert exchange.target == f"/model/{model}/invoke-with-response-stream"


@cases(
    "more, name",
    [
        ({"secret_access_key": Secret("wrong")}, "InvalidSignatureException"),
        ({"access_key_id": "AKIDOTHER"}, "UnrecognizedClientException"),
        ({"session_token": Secret("expired")}, "ExpiredTokenException"),
        ({"bearer_token": Secret("wrong")}, "UnrecognizedClientException"),
        ({"region": "eu-central-1"}, "InvalidSignatureException"),
    ],
)
async def test_a_wrong_key_is_the_backends_fault_and_is_not_shown(more: dict[str, Any], name: str) -> None:
    error = await failure(says("no"), **more)
    assert isinstance(error, Unavailable)
    assert f"status 403 ({name})" in str(error)
    assert bedrock_server.SESSION_TOKEN not in str(error)  # though the server has repeated it


async def test_each_request_is_signed_anew() -> None:
    async with serving(says("a")) as (backend, server):
        await events(backend)
        await events(backend, GenerateRequest(messages=(Message("user", "another"),)))
    first, second = (exchange.headers["authorization"] for exchange in server.exchanges)
    assert first != second
    assert server.exchanges[0].sock is server.exchanges[1].sock  # one connection serves both


# Failures.


@cases(
    "name, kind, words",
    [
        ("validationException", InvalidRequest, "too long"),
        ("throttlingException", Unavailable, "throttlingException"),
        ("modelStreamErrorException", Unavailable, "modelStreamErrorException"),
        ("modelTimeoutException", Unavailable, "modelTimeoutException"),
        ("internalServerException", Unavailable, "internalServerException"),
        ("serviceUnavailableException", Unavailable, "serviceUnavailableException"),
        ("new\nException: a secret", Unavailable, "no reason"),
    ],
)
async def test_an_exception_ends_the_stream_with_its_error(
    name: str, kind: type[InferdError], words: str
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.events(*answer("a")[:4])
        exchange.send(exception(name, "too long"))
        exchange.finish()

    async with serving(script) as (backend, _):
        stream = await backend.generate(REQUEST)
        assert await anext(stream) == Text("a")
        with pytest.raises(kind, match=words):
            await anext(stream)
        stream.close()


async def test_an_unmodelled_error() -> None:
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "oh"}
    error = await failure(lambda exchange: exchange.send(message(headers, b"")))
    assert isinstance(error, Unavailable)
    assert "InternalFailure" in str(error)


@cases(
    "status, name, kind, words",
    [
        (400, "ValidationException", InvalidRequest, "status 400: because"),
        (404, "ResourceNotFoundException", InvalidRequest, "status 404: because"),
        (403, "AccessDeniedException", Unavailable, r"403 \(AccessDeniedException\)"),
        (408, "ModelTimeoutException", Unavailable, r"408 \(ModelTimeoutException\)"),
        (429, "ThrottlingException", Unavailable, r"429 \(ThrottlingException\); it asks to wait 7 s"),
        (500, "InternalServerException", Unavailable, r"500 \(InternalServerException\)"),
        (503, "ServiceUnavailableException", Unavailable, r"503 \(ServiceUnavailableException\)"),
    ],
)
async def test_a_refusal(status: int, name: str, kind: type[InferdError], words: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.refuse(status, name, "because", **({"retry_after": "7"} if status == 429 else {}))

    async with serving(script) as (backend, _):
        with pytest.raises(kind, match=words):
            await events(backend)


@pytest.mark.parametrize("cut", ["between", "within"])
async def test_a_stream_that_ends_early_has_no_done(cut: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.events(*answer("a")[:4])
        if cut == "within":
            exchange.send(chunk(b"rest")[:10])
        exchange.finish()

    async with serving(script) as (backend, _):
        assert await events(backend) == [Text("a")]


async def test_a_cut_connection_is_unavailable() -> None:
    def script(exchange: Exchange) -> None:
        exchange.events(*answer("a")[:4])
        exchange.sock.shutdown(bedrock_server.socket.SHUT_RDWR)

    assert isinstance(await failure(script), Unavailable)


async def test_damage_is_the_servers_own_fault() -> None:
    error = await failure(lambda exchange: exchange.send(b"HTTP is not enough here"))
    assert isinstance(error, BackendInternal)


@pytest.mark.parametrize("before", [0, 4], ids=["first", "between"])
async def test_silence_times_out(before: int) -> None:
    sent = threading.Event()

    def script(exchange: Exchange) -> None:
        if before:
            exchange.events(*answer("a")[:before])
        sent.set()
        exchange.until_left()

    async with serving(script, timeout_secs=1000.0) as (backend, _):
        clock = Clock()
        asking = asyncio.ensure_future(events(backend))
        await asyncio.to_thread(sent.wait, PATIENCE_SECS)
        while not asking.done():
            await clock.advance(1000.0)
        with pytest.raises(Unavailable, match="silent for 1000 s"):
            await asking


async def test_a_slow_answer_is_not_silence() -> None:
    """Each chunk comes within the time-out; all together take longer."""
    texts, limit, clock = "abcdefgh", 1000.0, Clock()
    beats = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        for event in answer(*texts):
            if event["type"] == "content_block_delta":
                assert beats.acquire(timeout=PATIENCE_SECS)
            exchange.events(event)
        exchange.finish()

    async with serving(script, timeout_secs=limit) as (backend, _):
        stream = await backend.generate(REQUEST)
        for number, text in enumerate(texts):
            event = asyncio.ensure_future(anext(stream))
            if number:  # it is connected
                await clock.advance(0)  # it has begun to wait
                await clock.advance(0.6 * limit)
            beats.release()
            assert await event == Text(text)
        assert isinstance(await anext(stream), Done)
        stream.close()


async def test_connection_refused() -> None:
    with BedrockServer(says("no")) as server:
        url = server.url
    backend = Bedrock(entry(url))
    await backend.start()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await events(backend)
    await backend.close()


# Ending it.


class Held:
    """A server that sends one word, or nothing if ``mute``, and waits until the client has gone."""

    def __init__(self, *, mute: bool = False) -> None:
        self.mute = mute
        self.asked, self.left = threading.Event(), threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if not self.mute:
            exchange.events(*answer("a")[:4])
        self.asked.set()
        exchange.until_left()
        self.left.set()


async def happened(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_SECS)


@pytest.mark.both_loops
@cases("mute", [False, True])
async def test_cancel_ends_the_upstream_request(mute: bool) -> None:
    held = Held(mute=mute)
    async with serving(held) as (backend, _):
        stream = await backend.generate(REQUEST)
        if not mute:
            assert await anext(stream) == Text("a")
        await happened(held.asked)
        stream.cancel()
        done = await anext(stream)
        assert isinstance(done, Done)
        assert done.stop_reason == "cancelled"
        await happened(held.left)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        stream.close()


@pytest.mark.both_loops
@cases("end", ["stream", "backend"])
async def test_close_ends_the_upstream_request(end: str) -> None:
    held = Held()
    async with serving(held) as (backend, _):
        stream = await backend.generate(REQUEST)
        await happened(held.asked)
        if end == "stream":
            stream.close()
        else:
            await backend.close()
        await happened(held.left)
        assert [event async for event in stream] == []


async def test_without_a_budget_no_request_is_sent() -> None:
    async with serving(says("no")) as (backend, server):
        request = GenerateRequest(messages=REQUEST.messages, max_tokens=0)
        assert await events(backend, request) == [Done("length", Usage(0, 0))]
    assert server.exchanges == []


async def test_many_pixels_are_encoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.get_ident()
    there: list[int] = []

    def encode(_: Media) -> tuple[str, str]:
        there.append(threading.get_ident())
        return "image/png", "iVBO"

    monkeypatch.setattr("inferd.engine.remote.anthropic_request.as_base64", encode)
    picture = Media("image", bytes(3 << 20), width=1024, height=1024)
    async with serving(says("nice")) as (backend, server):
        await events(backend, GenerateRequest(messages=(Message("user", (picture,)),)))
    assert len(there) == 1
    assert there[0] != here
    assert server.exchanges[0].body["messages"][0]["content"][0]["source"]["data"] == "iVBO"


async def test_an_inexpressible_request_is_refused_before_it_is_sent() -> None:
    async with serving(says("no")) as (backend, server):
        with pytest.raises(InvalidRequest, match="grammar"):
            await backend.generate(GenerateRequest(messages=REQUEST.messages, grammar='root ::= "a"'))
    assert server.exchanges == []


def test_capabilities() -> None:
    assert Bedrock(entry()).capabilities() == Capabilities(
        v2=True, vision=True, tools=True, thinking=True, accelerator=Accelerator(kind="remote")
    )


async def test_it_is_ready_between_start_and_close() -> None:
    backend = Bedrock(entry("http://127.0.0.1:9"))
    assert not backend.ready()
    with pytest.raises(NotReady):
        await backend.generate(REQUEST)
    await backend.start()
    assert backend.ready()
    await backend.close()
    await backend.close()
    assert not backend.ready()
