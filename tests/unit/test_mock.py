"""The mock backend keeps the contract of the interface, with each of its settings."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from inferd.engine.events import Done, Event, Text, Usage
from inferd.engine.mock import Mock
from inferd.engine.requests import EmbedRequest, GenerateRequest, Message, RankRequest
from inferd.errors import InvalidRequest, NotReady, Unavailable
from tests.in_process import Gate, until
from tests.requests import generate_request


def request(max_tokens: int = 1000) -> GenerateRequest:
    return generate_request(
        messages=(Message("user", "hi"),), max_tokens=max_tokens, temperature=1.0, top_p=0.95, top_k=64
    )


async def events(mock: Mock, max_tokens: int = 1000) -> list[Event]:
    return [event async for event in await mock.generate(request(max_tokens))]


async def test_the_tape_and_its_end() -> None:
    mock = Mock()
    assert (mock.name, mock.kind, mock.model, mock.ready()) == ("mock", "mock", "mock", True)
    assert await events(mock) == [Text("mock-response"), Done("end", Usage(0, 1))]
    assert not mock.open_streams


async def test_max_tokens_cuts_the_tape() -> None:
    mock = Mock(tape=("a", "b", "c"))
    assert await events(mock, 2) == [Text("a"), Text("b"), Done("length", Usage(0, 2))]
    assert await events(mock, 0) == [Done("length", Usage(0, 0))]
    assert await events(mock, 3) == [Text("a"), Text("b"), Text("c"), Done("end", Usage(0, 3))]


async def test_drop_after_ends_without_done() -> None:
    assert await events(Mock(tape=("a", "b"), drop_after=1)) == [Text("a")]
    assert await events(Mock(drop_after=0)) == []


async def test_errors_before_the_stream() -> None:
    with pytest.raises(Unavailable, match="down"):
        await events(Mock(error=Unavailable("down")))
    with pytest.raises(NotReady):
        await events(Mock(is_ready=False))


async def test_the_pace_is_awaited_before_each_event() -> None:
    gate = Gate()
    stream = await Mock(pace=gate).generate(request())
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: gate.waiting == 1)
    assert not first.done()
    gate.open()
    assert await first == Text("mock-response")
    last = asyncio.ensure_future(anext(stream))
    await until(lambda: gate.waiting == 1)
    gate.open()
    assert await last == Done("end", Usage(0, 1))


async def test_a_cancelled_stream_says_so() -> None:
    mock = Mock(tape=("a", "b"))
    stream = await mock.generate(request())
    assert await anext(stream) == Text("a")
    stream.cancel()
    assert await anext(stream) == Done("cancelled", Usage(0, 1))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_cancel_does_not_wait_for_the_pace() -> None:
    gate = Gate()
    stream = await Mock(pace=gate).generate(request())
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: gate.waiting == 1)
    stream.cancel()
    assert await first == Done("cancelled", Usage(0, 0))
    assert gate.waiting == 0


async def test_a_cancelled_reader_leaks_nothing() -> None:
    gate = Gate()
    stream = await Mock(pace=gate).generate(request())
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: gate.waiting == 1)
    first.cancel()
    await until(lambda: first.done() and gate.waiting == 0)


async def test_a_closed_stream_is_over() -> None:
    mock = Mock()
    stream = await mock.generate(request())
    assert mock.open_streams == {stream}
    stream.close()
    stream.close()
    assert not mock.open_streams
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_the_backend_closes_its_streams() -> None:
    mock = Mock()
    stream = await mock.generate(request())
    await mock.close()
    await mock.close()
    assert not mock.open_streams
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_vectors_encode_the_length_of_a_text() -> None:
    made = await Mock().embed(EmbedRequest(inputs=("abc", "é")))
    expected = [(i + 1) / 4 for i in range(8)] + [(i + 1) / 3 for i in range(8)]
    assert array("f", made.vectors) == array("f", expected)
    assert (made.width, made.input_tokens) == (8, 5)
    assert (await Mock().embed(EmbedRequest(inputs=("abc",), dimensions=2))).vectors == made.vectors[:8]
    assert (await Mock().embed(EmbedRequest(inputs=("a",), dimensions=65_536))).width == 65_536
    with pytest.raises(InvalidRequest, match="dimensions is 65537"):
        await Mock().embed(EmbedRequest(inputs=("a",), dimensions=65_537))


async def test_scores_prefer_short_documents() -> None:
    made = await Mock().rank(RankRequest("qq", ("abc", "", "a")))
    assert made.scores == (0.25, 1.0, 0.5)
    assert made.input_tokens == 3 * 2 + 4


@pytest.mark.parametrize("knobs", [{"error": Unavailable("down")}, {"is_ready": False}])
async def test_errors_instead_of_vectors_and_scores(knobs: dict[str, object]) -> None:
    mock = Mock(**knobs)  # type: ignore[arg-type]
    expected = NotReady if mock.error is None else Unavailable
    with pytest.raises(expected):
        await mock.embed(EmbedRequest(inputs=("a",)))
    with pytest.raises(expected):
        await mock.rank(RankRequest("q", ("a",)))


async def test_vectors_and_scores_wait_for_the_pace() -> None:
    gate = Gate()
    mock = Mock(pace=gate)
    both = asyncio.gather(mock.embed(EmbedRequest(inputs=("a",))), mock.rank(RankRequest("q", ("a",))))
    await until(lambda: gate.waiting == 2)
    assert not both.done()
    gate.open(2)
    await both
