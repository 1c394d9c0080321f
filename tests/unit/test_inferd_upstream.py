"""An inferd as the upstream of an inferd: no field of a request or of an answer is lost between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields, replace

from inferd.config.entries import InferdEntry
from inferd.config.kinds import Secret
from inferd.engine.backend import Stream
from inferd.engine.events import Done, Text, Thinking, ToolUse, Usage
from inferd.engine.mock import Mock
from inferd.engine.remote.failed import error_of
from inferd.engine.remote.inferd import Inferd
from inferd.engine.requests import EmbedRequest, GenerateRequest, Media, Message, RankRequest, Tool, ToolCall
from inferd.errors import InferdError, PromptTooLong, QueueFull, RequestFailed, Unavailable, UpstreamFull
from inferd.sampling import SamplingParams
from inferd.serve.surface import RequestContext
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.serve.surfaces.vectors import EmbedSurface, RerankSurface
from tests.in_process import Gate, Server, ask, serving, until


class Recorder(Mock):
    """Records its request."""

    asked: GenerateRequest

    async def generate(self, request: GenerateRequest) -> Stream:
        self.asked = request
        return await super().generate(request)


@contextlib.asynccontextmanager
async def behind(
    there: Path | str, backend: Mock, key: str | None = None, **more: Any
) -> AsyncIterator[tuple[Server, Inferd]]:
    """A daemon at ``there``, and a backend that uses it as its upstream."""
    async with serving(there, backend, surface=BlockSurface(), api_key=key, **more) as server:
        entry = InferdEntry(
            name="up", address=server.listener.address, api_key=None if key is None else Secret(key)
        )
        upstream = Inferd(entry)
        await upstream.start()
        try:
            yield server, upstream
        finally:
            await upstream.close()


def plain(request: GenerateRequest) -> GenerateRequest:
    """The request in a form that compares by value, without the fields that the receiving side sets."""

    def part(content: Any) -> Any:
        return content if isinstance(content, str) else (content.kind, bytes(content.data), content.mime)

    def whole(content: Any) -> Any:
        return content if isinstance(content, str) else tuple(map(part, content))

    messages = tuple(replace(message, content=whole(message.content)) for message in request.messages)
    return replace(request, messages=messages, scope="", frame=None)


SAMPLED = SamplingParams(
    temperature=0.5,
    top_p=0.5,
    top_k=3,
    min_p=0.25,
    repeat_penalty=1.5,
    presence_penalty=1.0,
    frequency_penalty=1.0,
    seed=7,
)
SCHEMA = '{"type":"object"}'
CONVERSATION = (
    Message("system", "Be brief."),
    Message("user", ("What is this?", Media("image", memoryview(b"\x89PNG"), mime="image/png"))),
    Message("assistant", "Let me look.", thinking="hm", tool_calls=(ToolCall("c1", "look", '{"at":1.0}'),)),
    Message("tool", "a cat", tool_call_id="c1"),
    Message("user", "x" * 200_000),  # more than a line holds
)
REQUESTS = {
    "tools": GenerateRequest(
        messages=CONVERSATION,
        max_tokens=9,
        sampling=SAMPLED,
        stop=("a", "b"),
        session="s",
        cache=False,
        priority="batch",
        typed=True,
        thinking=True,
        tools=(Tool("look", "Looks.", SCHEMA),),
        tool_name="look",
    ),
    "schema": GenerateRequest(
        messages=CONVERSATION[:1],
        json_schema=SCHEMA,
        schema_lenient=True,
        model_defaults=True,
        typed=True,
        tool_choice="auto",
    ),
    "grammar": GenerateRequest(messages=CONVERSATION[:1], grammar='root ::= "a"', typed=True, thinking=False),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_field_arrives(short_dir: Path, name: str) -> None:
    backend = Recorder()
    wanted = REQUESTS[name]
    async with behind(short_dir / "s", backend) as (_, upstream):
        async for _event in await upstream.generate(wanted):
            pass
    assert plain(backend.asked) == plain(wanted)


def test_no_field_is_left_out() -> None:
    """Each field of a request differs from its default in one of the requests above."""
    given = {
        field.name
        for field in fields(GenerateRequest)
        for request in REQUESTS.values()
        if getattr(request, field.name) != field.default
    }
    assert given == set(GenerateRequest.__struct_fields__) - {
        "scope",
        "frame",
        "tool_choice",
        *("lora", "raw", "suffix", "begun", "logprobs"),  # the router sends such a request to a local model
    }


async def test_a_text_request_disables_thinking_and_has_a_limit(short_dir: Path) -> None:
    backend = Recorder()
    async with behind(short_dir / "s", backend) as (_, upstream):
        async for _event in await upstream.generate(GenerateRequest(messages=CONVERSATION[:1])):
            pass
    assert (backend.asked.thinking, backend.asked.max_tokens) == (False, 1000)


class Measured(Mock):
    """Ends with every optional field set."""

    async def generate(self, request: GenerateRequest) -> Stream:
        stream = await super().generate(request)
        return _Ended(stream)


class _Ended(Stream):
    def __init__(self, inner: Stream) -> None:
        self._inner = inner

    async def __anext__(self) -> Any:
        event = await anext(self._inner)
        if isinstance(event, Done):
            return replace(event, usage=Usage(9, 4, 3), unenforced=("#/a",), tool_missing=True)
        return event

    def cancel(self) -> None:
        self._inner.cancel()

    def close(self) -> None:
        self._inner.close()


async def test_every_event_comes_back(short_dir: Path) -> None:
    call = ToolUse(ToolCall("c", "look", '{"at":1}'))
    tape = (Thinking("hm"), "é", call)
    async with behind(short_dir / "s", Measured(tape=tape)) as (_, upstream):
        request = GenerateRequest(messages=CONVERSATION[:1], typed=True)
        *events, done = [event async for event in await upstream.generate(request)]
    assert events == [Thinking("hm"), Text("é"), call]
    assert isinstance(done, Done)
    assert (done.usage, done.unenforced, done.tool_missing) == (Usage(9, 4, 3), ("#/a",), True)


async def test_over_tcp_with_a_key_and_without(short_dir: Path) -> None:
    async with behind("127.0.0.1:0", Mock(), key="sesame") as (server, upstream):
        *_, done = [e async for e in await upstream.generate(GenerateRequest(messages=CONVERSATION[:1]))]
        assert isinstance(done, Done)
        stranger = Inferd(InferdEntry(name="x", address=server.listener.address))
        await stranger.start()
        with pytest.raises(Unavailable, match="key"):
            async for _ in await stranger.generate(GenerateRequest(messages=CONVERSATION[:1])):
                pass
        await stranger.close()


async def test_an_error_keeps_its_code_and_its_details(short_dir: Path) -> None:
    error = PromptTooLong("too long", 9, 8)
    async with behind(short_dir / "s", Mock(error=error)) as (_, upstream):
        with pytest.raises(InferdError) as caught:
            async for _event in await upstream.generate(GenerateRequest(messages=CONVERSATION[:1])):
                pass
    assert (caught.value.code, str(caught.value)) == ("invalid_request", "too long")
    assert caught.value.details == error.details


def test_every_code_is_passed_on() -> None:
    from inferd import errors

    for code in errors._MEANING:
        kept = error_of("up", RequestFailed(code, "why", 2.0))
        if code not in ("model_not_found", "wire_version_unsupported"):  # the entry's doing, not the client's
            assert kept.code == code
        assert "why" in str(kept)
        assert "why" not in (kept.logged or "")
    full = error_of("up", RequestFailed("queue_full", "why", 2.0))
    assert isinstance(full, UpstreamFull)
    assert (full.retry_after_secs, full.counts, full.elsewhere) == (2.0, False, True)


async def test_no_daemon(short_dir: Path) -> None:
    upstream = Inferd(InferdEntry(name="up", address=str(short_dir / "none")))
    await upstream.start()
    with pytest.raises(Unavailable):
        await upstream.look()
    with pytest.raises(Unavailable):
        async for _ in await upstream.generate(GenerateRequest(messages=CONVERSATION[:1])):
            pass


async def test_a_client_that_leaves_cancels_at_the_far_end(short_dir: Path) -> None:
    gate = Gate()
    there = Mock(pace=gate)
    async with (
        behind(short_dir / "far", there) as (far, upstream),
        serving(short_dir / "near", upstream) as near,
    ):
        client = await near.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        client.close()
        await until(lambda: not there.open_streams and not far.admission.running)


async def test_a_full_upstream_queue_is_reported(short_dir: Path) -> None:
    async with (
        behind(short_dir / "far", Mock(), queue_depth=0) as (far, upstream),
        serving(short_dir / "near", upstream, surface=TextSurface()) as near,
    ):
        with await far.admission.of("mock").admit("another"):
            client = await near.connect()
            await client.send(ask())
            assert (await client.frame())["code"] == QueueFull.code
            assert not near.service.metrics.backends["up"].breaker


async def test_the_place_in_the_upstream_queue_is_shown_and_listed(short_dir: Path) -> None:
    def step(phase: str, **more: int) -> dict[str, object]:
        return {"type": "progress", "id": "q", "model": "", "phase": phase, **more}

    async with (
        behind(short_dir / "far", Mock()) as (far, upstream),
        serving(short_dir / "near", upstream) as near,
    ):
        client = await near.connect()
        with await far.admission.of("mock").admit("another"):
            await client.send(ask(progress=True))
            assert await client.frame() == step("queued", position=1)
            (context,) = near.admission.running_requests()
            assert isinstance(context, RequestContext)
            assert context.row(None)["position"] == 1
        assert await client.frame() == step("started")
        assert (await client.frame())["type"] == "token"
        assert context.row(None)["position"] is None
        assert (await client.frame())["type"] == "done"
        del context
        await upstream.close()  # its idle connection would outlive the daemon that is near


async def test_vectors_and_scores(short_dir: Path) -> None:
    local = Mock()
    async with (
        serving(short_dir / "e", local, surface=EmbedSurface()),
        serving(short_dir / "r", local, surface=RerankSurface()),
    ):
        entry = InferdEntry(
            name="up", embed_address=str(short_dir / "e"), rerank_address=str(short_dir / "r")
        )
        upstream = Inferd(entry)
        await upstream.start()
        assert not upstream.capabilities().v2
        wanted = EmbedRequest(inputs=("a", "bcd"), dimensions=4)
        assert await upstream.embed(wanted) == await local.embed(wanted)
        ranked = RankRequest("q", ("long text", "b", "cd"))
        found, wanted_scores = await upstream.rank(ranked), await local.rank(ranked)
        assert found.scores == pytest.approx(wanted_scores.scores)
        assert found.input_tokens == wanted_scores.input_tokens
        await asyncio.wait_for(upstream.look(), 10)
        await upstream.close()
