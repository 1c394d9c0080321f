"""The rerank surface on the wire: requests, refusals with their messages, and the form of results."""

from __future__ import annotations

from array import array

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import DecodeError, InvalidRequest
from inferd.wire import rerank
from tests.cases import cases
from tests.unit.test_wire_embed import TEXTS, VALUES, check, near_valid


def line(**fields: object) -> bytes:
    return orjson.dumps({"id": "r1", "query": "q", "documents": ["a", "b"], **fields})


def request(**fields: object) -> rerank.Request:
    return rerank.parse(line(**fields))


def refusal(**fields: object) -> str:
    with pytest.raises(InvalidRequest) as error:
        rerank.validate(request(**fields))
    return str(error.value)


def test_a_request_with_every_field() -> None:
    found = request(top_n=1, priority="batch", deadline_ms=5)
    rerank.validate(found)
    assert (found.id, found.query, found.documents, found.top_n) == ("r1", "q", ["a", "b"], 1)
    assert (found.priority, found.deadline_ms) == ("batch", 5)


def test_null_is_absent_and_unknown_keys_are_ignored() -> None:
    found = request(top_n=None, priority=None, deadline_ms=None, more=[])
    rerank.validate(found)
    assert found == rerank.Request(id="r1", query="q", documents=["a", "b"])


@cases(
    "raw, message",
    [
        (b'{"query":"q"}', "decode: Object missing required field `documents`"),
        (b'{"documents":["a"]}', "decode: Object missing required field `query`"),
        (line(query=None), "decode: Expected `str`, got `null` - at `$.query`"),
        (line(documents=["a", None]), "decode: Expected `str`, got `null` - at `$.documents[1]`"),
        (line(top_n=-1), "decode: Expected `int` >= 0 - at `$.top_n`"),
        (line(priority="now"), "decode: Expected `interactive` or `batch` - at `$.priority`"),
        (b'{"query":"q","documents":["a"],"query":"p"}', "decode: key `query` is given twice - at `$`"),
    ],
)
def test_malformed_requests(raw: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as error:
        rerank.parse(raw)
    assert str(error.value) == message


def test_invalid_requests() -> None:
    assert refusal(query="") == "invalid request: query must not be empty"
    assert refusal(documents=[]) == "invalid request: documents must not be empty"
    assert refusal(documents=["a", ""]) == "invalid request: documents[1] must not be empty"
    assert refusal(documents=["a"] * 257) == "invalid request: documents must hold at most 256 strings"
    assert refusal(top_n=0) == "invalid request: top_n must be at least 1"
    rerank.validate(request(documents=["a"] * 256, top_n=2**32 - 1))


def encoded(scores: list[float], **fields: object) -> bytes:
    return rerank.encode_rerank(request(**fields), scores, input_tokens=9, model="tiny", backend="llamacpp")


def test_the_frame() -> None:
    assert encoded([0.5, -0.25]) == (
        b'{"type":"rerank","id":"r1","results":[{"index":0,"score":0.5},{"index":1,"score":-0.25}],'
        b'"model":"tiny","usage":{"input_tokens":9},"backend":"llamacpp"}\n'
    )


def test_the_best_come_first_and_equals_keep_their_order() -> None:
    results = orjson.loads(encoded([1.0, 3.0, 1.0, 2.0, 3.0]))["results"]
    assert [result["index"] for result in results] == [1, 4, 3, 0, 2]


def test_top_n_cuts() -> None:
    results = orjson.loads(encoded([1.0, 3.0, 2.0], top_n=2))["results"]
    assert [result["index"] for result in results] == [1, 2]
    assert len(orjson.loads(encoded([1.0, 3.0], top_n=9))["results"]) == 2


def test_scores_are_float32() -> None:
    assert b'"score":0.1}' in encoded(array("f", [0.1]).tolist())


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(scores=st.lists(FLOATS, min_size=1, max_size=256))
def test_any_scores(scores: list[float]) -> None:
    results = orjson.loads(encoded(scores))["results"]
    assert sorted(result["index"] for result in results) == list(range(len(scores)))
    assert all(result["score"] == pytest.approx(scores[result["index"]], rel=1e-6) for result in results)
    ordered = [(-scores[result["index"]], result["index"]) for result in results]
    assert ordered == sorted(ordered)


@given(raw=near_valid(rerank.Request, {"query": st.text(max_size=8), "documents": st.one_of(TEXTS, VALUES)}))
def test_any_line(raw: bytes) -> None:
    found = check(raw, rerank.parse, rerank.validate, rerank.Request.__struct_fields__)
    if found is not None:
        assert 1 <= len(found.documents) <= 256
        assert found.query
        assert all(found.documents)
        scores = [0.0] * len(found.documents)
        frame = rerank.encode_rerank(found, scores, input_tokens=1, model="m", backend="mock")
        results = orjson.loads(frame)["results"]
        assert [result["index"] for result in results] == list(range(len(scores)))[: found.top_n]


@given(raw=st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    check(raw, rerank.parse, rerank.validate, rerank.Request.__struct_fields__)
