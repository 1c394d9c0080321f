"""The v1 request parser: any line gives a request, a DecodeError or an InvalidRequest."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from inferd import _purepath
from inferd.errors import DecodeError, InvalidRequest
from inferd.wire import v1
from tests.fuzz.lines import damaged, line_of, outcome

KEYS = frozenset(v1.Request.__struct_fields__)


def check(data: bytes) -> None:
    """One line, as the splitter would hand it on."""
    line = data.replace(b"\n", b" ")
    request = outcome(v1.parse, memoryview(line))
    if isinstance(request, InvalidRequest):
        assert isinstance(request, DecodeError)
        assert str(request).startswith("decode: ")
        refused(request.request_id, request)
        return
    accepted(line, request)
    problem = outcome(v1.validate, request)
    if problem is not None:
        assert not isinstance(problem, DecodeError)
        assert str(problem).startswith("invalid request: ")
        refused(request.id, problem)
        return
    frame = _purepath.token_frame(v1.token_prefix(request.id), "x", v1.TOKEN_SUFFIX)
    assert orjson.loads(frame) == {"type": "token", "id": request.id, "content": "x"}


def refused(request_id: str, error: InvalidRequest) -> None:
    """The error frame can be written, on one line."""
    frame = v1.encode_error(request_id, error.code, str(error))
    assert frame.count(b"\n") == 1
    assert orjson.loads(frame) == {
        "type": "error",
        "id": request_id,
        "code": "invalid_request",
        "message": str(error),
    }


def accepted(line: bytes, request: v1.Request) -> None:
    """The result equals that of an independent parser, and no known key is repeated."""
    pairs = json.loads(line.decode(), object_pairs_hook=list, parse_int=str, parse_float=str)
    assert_unique(pairs, KEYS)
    seen = dict(pairs)
    for message in seen["messages"]:
        assert_unique(message, {"role", "content"})
    turns = [dict(message) for message in seen["messages"]]
    assert [(m.role, m.content) for m in request.messages] == [(t["role"], t["content"]) for t in turns]
    assert {m.role for m in request.messages} <= {"system", "user", "assistant"}
    assert request.id == seen.get("id", "")
    assert request.grammar == seen.get("grammar", "")
    for key in ("session", "priority", "stop"):
        assert getattr(request, key) == seen.get(key)
    for key in ("top_k", "max_tokens", "seed", "deadline_ms"):
        value = getattr(request, key)
        assert value is None if seen.get(key) is None else 0 <= value < 2**32


def assert_unique(pairs: list[tuple[str, Any]], keys: frozenset[str] | set[str]) -> None:
    known = [key for key, _ in pairs if key in keys]
    assert len(known) == len(set(known))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**32 - 1, 2**32, 2**64, 70, 101]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["user", "system", "assistant", "interactive", "batch", "root ::= x"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=20)}
    ),
    max_size=3,
)
FIELDS = st.lists(st.tuples(st.sampled_from([*sorted(KEYS), "unknown", "role"]), VALUES), max_size=6)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Near-valid requests: keys of ours with any value, sometimes twice."""
    members = [*draw(FIELDS), ("messages", draw(st.one_of(MESSAGES, VALUES)))]
    return line_of(draw, members)


@given(line=lines())
def test_near_valid_requests(line: bytes) -> None:
    check(line)


@given(line=damaged(lines()))
def test_damaged_requests(line: bytes) -> None:
    check(line)


@given(data=st.binary(max_size=200))
@example(data=b"[" * 60_000)
@example(data=b'{"messages":' + b"[" * 60_000)
@example(data=b'{"x":' * 10_000 + b"1" + b"}" * 10_000)
@example(data=b'{"messages":[],"x":' + b"[" * 30_000 + b"]" * 30_000 + b',"id":"a","id":"b"}')
@example(data=b'{"messages":[],"seed":' + b"9" * 60_000 + b"}")
@example(data=b'{"messages":[],"temperature":1e999}')
@example(data=b'{"messages":[],"id":"\\ud800"}')
@example(data=b'{"messages":[],"id":"\xed\xa0\x80"}')
@example(data=b'\xef\xbb\xbf{"messages":[]}')
@example(data=b'{"messages":[],"temperature":NaN}')
def test_arbitrary_bytes(data: bytes) -> None:
    check(data)
