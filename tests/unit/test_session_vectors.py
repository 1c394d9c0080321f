"""Embed and rerank through a session: one frame per request, refusals and cancellations."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import Capabilities
from inferd.engine.events import Embeddings
from inferd.engine.mock import Mock
from inferd.engine.requests import EmbedRequest
from inferd.errors import Unavailable
from inferd.serve.surfaces.vectors import EmbedSurface, RerankSurface
from tests.cases import cases
from tests.in_process import Gate, serving, until

pytestmark = pytest.mark.both_loops

EMBED, RERANK = EmbedSurface(), RerankSurface()
ASK = {"id": "e", "input": ["a", "bcd"], "dimensions": 2}
RANK = {"id": "e", "query": "q", "documents": ["abc", "a", "ab", "x"]}
ANSWER = {
    "type": "embeddings", "id": "e", "embeddings": [[0.5, 1.0], [0.25, 0.5]], "dimensions": 2,
    "model": "mock", "usage": {"input_tokens": 4}, "backend": "mock",
}  # fmt: skip


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


def error(code: str, message: str) -> dict[str, str]:
    return {"type": "error", "id": "e", "code": code, "message": message}


async def test_one_request_one_frame(path: Path) -> None:
    async with serving(path, surface=EMBED) as server:
        client = await server.connect()
        await client.send(ASK, {**ASK, "input": []}, ASK)
        assert await client.frame() == ANSWER
        assert await client.frame() == error("invalid_request", "invalid request: input must not be empty")
        assert await client.frame() == ANSWER


async def test_ranking(path: Path) -> None:
    async with serving(path, surface=RERANK) as server:
        client = await server.connect()
        await client.send({**RANK, "top_n": 3})
        assert await client.line() == (
            b'{"type":"rerank","id":"e","results":[{"index":1,"score":0.5},{"index":3,"score":0.5},'
            b'{"index":2,"score":0.33333334}],"model":"mock","usage":{"input_tokens":11},"backend":"mock"}\n'
        )


async def test_an_answer_larger_than_one_write(path: Path) -> None:
    async with serving(path, surface=EMBED) as server:
        client = await server.connect()
        await client.send({"id": "e", "input": ["a"] * 4, "dimensions": 65_536})
        frame = await client.frame()
        assert [len(row) for row in frame["embeddings"]] == [65_536] * 4
        assert frame["embeddings"][3][:3] == [0.5, 1.0, 1.5]


@cases(
    "surface, request_, code, message",
    [
        (EMBED, ASK, "embed_unsupported", 'backend "m" cannot embed'),
        (RERANK, RANK, "rerank_unsupported", 'backend "m" cannot rerank'),
    ],
)
async def test_unsupported_requests_are_refused(
    path: Path, surface: Any, request_: dict[str, Any], code: str, message: str
) -> None:
    backend = Mock("m", capabilities=Capabilities(v2=True))
    async with serving(path, backend, surface=surface) as server:
        client = await server.connect()
        await client.send(request_)
        assert await client.frame() == error(code, message)


async def test_the_first_capable_backend_serves(path: Path) -> None:
    chat = Mock("chat", capabilities=Capabilities(v2=True))
    async with serving(path, chat, Mock("vectors"), surface=EMBED) as server:
        client = await server.connect()
        await client.send(ASK)
        assert await client.frame() == ANSWER


async def test_failures_of_the_backend_open_its_breaker(path: Path) -> None:
    async with serving(path, Mock(error=Unavailable("down")), surface=EMBED) as server:
        client = await server.connect()
        for message in ("down", "down", "down", "no backend available"):
            await client.send(ASK)
            assert await client.frame() == error("backend_unavailable", message)


async def test_a_deadline_ends_a_running_request(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=EMBED) as server:
        client = await server.connect()
        await client.send({**ASK, "deadline_ms": 20})
        frame = await client.frame()
        assert frame == error("deadline_exceeded", "the deadline passed while the request ran")
        assert gate.waiting == 0
        await client.send(ASK)
        await until(lambda: gate.waiting == 1)
        gate.open()
        assert await client.frame() == ANSWER


async def test_an_interrupt_is_an_error_and_ends_the_connection(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=EMBED) as server:
        client, waiting = await server.connect(), await server.connect()
        await client.send(ASK)
        await until(lambda: gate.waiting == 1)
        await waiting.send(ASK)
        await until(lambda: server.admission.waiting == 1)
        server.service.interrupt()
        for one in (client, waiting):
            assert await one.frame() == error("backend_unavailable", "admission closed")
            assert await one.rest() == b""


async def test_a_client_that_leaves_cancels(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=EMBED) as server:
        client = await server.connect()
        await client.send(ASK)
        await until(lambda: gate.waiting == 1)
        client.close()
        await until(lambda: gate.waiting == 0)


async def test_an_error_after_the_client_has_left_is_dropped(path: Path) -> None:
    gate = Gate()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    class Stubborn(Mock):
        async def embed(self, request: EmbedRequest) -> Embeddings:
            try:
                return await super().embed(request)
            finally:
                raise Unavailable("too late")

    async with serving(path, Stubborn(pace=gate), surface=EMBED) as server:
        client = await server.connect()
        await client.send(ASK)
        await until(lambda: gate.waiting == 1)
        client.close()
        await until(lambda: not server.service.sessions)
    gc.collect()
    assert complaints == []


@cases("surface", [EMBED, RERANK])
async def test_a_wrong_field_leaves_the_connection_open_and_a_broken_line_closes_it(
    path: Path, surface: Any
) -> None:
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(json.dumps({"id": "e"}).encode() + b"\n")
            frame = await client.frame()
            assert frame["code"] == "invalid_request"
            assert frame["message"].startswith("decode: Object missing required field")
        await client.send(b"{\n")
        assert (await client.frame())["code"] == "invalid_request"
        assert await client.rest() == b""
