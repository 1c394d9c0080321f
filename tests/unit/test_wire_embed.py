"""The embed surface on the wire: requests, refusals with their messages, and the form of vectors."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferd.errors import DecodeError, InvalidRequest
from inferd.wire import embed
from inferd.wire.flat import Flat
from tests.cases import cases

HALVES = array("f", [0.5, -0.25]).tobytes()


def line(**fields: object) -> bytes:
    return orjson.dumps({"id": "e1", "input": ["a"], **fields})


def request(**fields: object) -> embed.Request:
    return embed.parse(line(**fields))


def refusal(**fields: object) -> str:
    with pytest.raises(InvalidRequest) as error:
        embed.validate(request(**fields))
    return str(error.value)


def test_a_request_with_every_field() -> None:
    found = request(
        input=["a", "b"], dimensions=2, task="similarity", encoding="base64", priority="batch", deadline_ms=5
    )
    embed.validate(found)
    assert (found.id, found.input, found.dimensions) == ("e1", ["a", "b"], 2)
    assert (found.task, found.encoding, found.priority, found.deadline_ms) == (
        "similarity",
        "base64",
        "batch",
        5,
    )


def test_null_is_absent_and_unknown_keys_are_ignored() -> None:
    found = request(dimensions=None, task=None, encoding=None, priority=None, deadline_ms=None, more={"x": 1})
    embed.validate(found)
    assert found == embed.Request(id="e1", input=["a"])


@cases(
    "raw, message",
    [
        (b"", "decode: expected one JSON object on the line: the line is blank"),
        (b'{"id":"e1"}', "decode: Object missing required field `input`"),
        (b'{"input":"a"}', "decode: Expected `array`, got `str` - at `$.input`"),
        (b'{"input":["a",1]}', "decode: Expected `str`, got `int` - at `$.input[1]`"),
        (line(dimensions=-1), "decode: Expected `int` >= 0 - at `$.dimensions`"),
        (line(dimensions=1.5), "decode: Expected `int | null`, got `float` - at `$.dimensions`"),
        (line(dimensions=2**32), "decode: Expected `int` <= 4294967295 - at `$.dimensions`"),
        (line(priority="now"), "decode: Expected `interactive` or `batch` - at `$.priority`"),
        (b'{"input":["a"],"input":["b"]}', "decode: key `input` is given twice - at `$`"),
        (b'{"input":["a"],"task":null,"task":null}', "decode: key `task` is given twice - at `$`"),
        (b'{"input":["a"],"inpu\\u0074":["b"]}', "decode: key `input` is given twice - at `$`"),
        (b'{"input":["\xff"]}', "decode: the line is not valid UTF-8 at byte 11"),
        (b'{"input":["a"]} x', None),
        (b'["a"]', None),
    ],
)
def test_malformed_requests(raw: bytes, message: str | None) -> None:
    with pytest.raises(DecodeError) as error:
        embed.parse(raw)
    assert str(error.value).startswith("decode: ")
    if message is not None:
        assert str(error.value) == message


def test_a_text_may_contain_the_name_of_a_key() -> None:
    assert request(input=["input", "id", '"input":']).input == ["input", "id", '"input":']


def test_a_refused_line_keeps_its_id() -> None:
    with pytest.raises(DecodeError) as error:
        request(dimensions="two")
    assert error.value.request_id == "e1"


def test_invalid_requests() -> None:
    assert refusal(input=[]) == "invalid request: input must not be empty"
    assert refusal(input=["a", ""]) == "invalid request: input[1] must not be empty"
    assert refusal(input=["a"] * 2049) == "invalid request: input must hold at most 2048 strings"
    assert refusal(dimensions=0) == "invalid request: dimensions must be at least 1"
    assert refusal(task="poetry") == "invalid request: task uses an unknown variant"
    assert refusal(encoding="hex") == "invalid request: encoding must be `float` or `base64`"
    embed.validate(request(input=["a"] * 2048))


@cases("task", sorted(embed.TASKS))
def test_every_task_is_known(task: str) -> None:
    embed.validate(request(task=task))


def encoded(vectors: bytes, width: int, **fields: object) -> bytes:
    return embed.encode_embeddings(
        request(**fields), vectors, width, input_tokens=5, model="all-MiniLM-L6-v2", backend="llamacpp"
    )


def test_the_frame() -> None:
    assert encoded(HALVES, 2) == (
        b'{"type":"embeddings","id":"e1","embeddings":[[0.5,-0.25]],"dimensions":2,'
        b'"model":"all-MiniLM-L6-v2","usage":{"input_tokens":5},"backend":"llamacpp"}\n'
    )


def test_numbers_are_float32() -> None:
    assert b'"embeddings":[[0.1],[0.2]]' in encoded(array("f", [0.1, 0.2]).tobytes(), 1)


def test_base64_carries_the_same_numbers() -> None:
    vectors = array("f", [0.1, 0.2, 0.3, 0.4]).tobytes()
    as_numbers = orjson.loads(encoded(vectors, 2))
    as_text = orjson.loads(encoded(vectors, 2, encoding="base64"))
    rows = [struct.unpack("<2f", base64.b64decode(row)) for row in as_text.pop("embeddings")]
    assert [array("f", row) for row in rows] == [array("f", row) for row in as_numbers.pop("embeddings")]
    assert as_text == as_numbers


# Any line gives a request, a DecodeError or an InvalidRequest.

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**32 - 1, 2**32, 2**64]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["interactive", "batch", "float", "base64", "similarity", "query", "input"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4), st.dictionaries(st.text(max_size=6), SCALARS))
TEXTS = st.lists(st.text(max_size=8), max_size=4)


@st.composite
def near_valid(draw: st.DrawFn, kind: type[Flat], required: dict[str, st.SearchStrategy[Any]]) -> bytes:
    """Keys of ours with any value, sometimes twice, sometimes with escaped letters, sometimes damaged."""
    keys = [*kind.__struct_fields__, "unknown"]
    members = draw(st.lists(st.tuples(st.sampled_from(keys), VALUES), max_size=4))
    members += [(key, draw(values)) for key, values in required.items()]
    parts = []
    for key, value in draw(st.permutations(members)):
        name = json.dumps(key)
        if draw(st.integers(0, 9)) == 0:
            name = '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"'
        parts.append(name + ":" + json.dumps(value, ensure_ascii=draw(st.booleans())))
    made = ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(made)))
        made = made[:start] + draw(st.binary(max_size=4)) + made[start + draw(st.integers(0, 4)) :]
    return made.replace(b"\n", b" ")


def check(
    raw: bytes, parse: Callable[[bytes], Any], validate: Callable[[Any], None], keys: tuple[str, ...]
) -> Any:
    """The request if the line is valid. It must equal the result of an independent parser, with each key
    once."""
    found = result_of(parse, raw)
    if isinstance(found, InvalidRequest):
        assert isinstance(found, DecodeError)
        return None
    pairs = json.loads(raw.decode(), object_pairs_hook=list, parse_int=str, parse_float=str)
    known = [key for key, _ in pairs if key in keys]
    assert len(known) == len(set(known))
    seen = dict(pairs)
    assert found.id == seen.get("id", "")
    for key in known:
        value = getattr(found, key)
        if isinstance(value, float):
            assert value == float(seen[key])
        else:
            assert (str(value) if type(value) is int else value) == seen[key]
    problem = result_of(validate, found)
    if problem is not None:
        assert str(problem).startswith("invalid request: ")
        return None
    return found


def result_of(call: Callable[[Any], Any], argument: object) -> Any:
    try:
        return call(argument)
    except InvalidRequest as error:
        return error


@given(raw=near_valid(embed.Request, {"input": st.one_of(TEXTS, VALUES)}))
@example(raw=b'{"input":' + b"[" * 60_000)
@example(raw=b'{"input":["a"],"x":' + b"[" * 30_000 + b"]" * 30_000 + b',"id":"a","id":"b"}')
@example(raw=b'{"input":["a"],"dimensions":' + b"9" * 60_000 + b"}")
@example(raw=b'{"input":["\\ud800"]}')
@example(raw=b'\xef\xbb\xbf{"input":["a"]}')
def test_any_line(raw: bytes) -> None:
    found = check(raw, embed.parse, embed.validate, embed.Request.__struct_fields__)
    if found is not None:
        assert 1 <= len(found.input) <= 2048
        assert all(found.input)
        "".join(found.input).encode()  # what the tokenizer gets
        frame = embed.encode_embeddings(found, HALVES, 2, input_tokens=1, model="m", backend="mock")
        assert frame.count(b"\n") == 1
        assert orjson.loads(frame)["id"] == found.id


@given(raw=st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    check(raw, embed.parse, embed.validate, embed.Request.__struct_fields__)
