"""Vectors and scores of an OpenAI-compatible server."""

from __future__ import annotations

from array import array
from typing import Any

import orjson
import pytest

from inferd.engine.remote import openai as module
from inferd.engine.requests import EmbedRequest, RankRequest
from inferd.errors import (
    BackendInternal,
    EmbedUnsupported,
    InvalidRequest,
    RerankUnsupported,
)
from tests.cases import cases
from tests.remote_server import Script
from tests.unit.test_openai_compat import Start, backend

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
