"""The v1 and admin wire: accepted and refused requests with their messages, and the exact output bytes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import DecodeError, InvalidRequest, ProtocolError
from inferd.wire import admin, frames, v1
from tests.cases import cases

TURN = b'{"role":"user","content":"hi"}'


def line(**more: Any) -> bytes:
    return json.dumps({"id": "q", "messages": [{"role": "user", "content": "hi"}], **more}).encode()


def refusal(raw: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        v1.parse(raw)
    assert caught.value.code == "invalid_request"
    return str(caught.value), caught.value.request_id


# Reading.


def test_a_request_with_everything() -> None:
    request = v1.parse(
        b'{"id":"q7","messages":[{"role":"system","content":""},{"role":"user","content":"\\u00e9"},'
        b'{"role":"assistant","content":"\xf0\x9f\x8c\x8d"}],"temperature":0,"top_p":1,"top_k":0,'
        b'"max_tokens":4294967295,"stream":false,"image_token_budget":280,"grammar":"root ::= \\"a\\"",'
        b'"seed":0,"stop":["a"],"min_p":0.05,"repeat_penalty":1.1,"presence_penalty":-2,'
        b'"frequency_penalty":2,"priority":"batch","deadline_ms":1,"session":"s"}'
    )
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("system", ""),
        ("user", "é"),
        ("assistant", "🌍"),
    ]
    assert (request.id, request.temperature, request.top_p, request.top_k) == ("q7", 0.0, 1.0, 0)
    assert (request.max_tokens, request.stream, request.image_token_budget) == (2**32 - 1, False, 280)
    assert (request.grammar, request.seed, request.stop) == ('root ::= "a"', 0, ["a"])
    assert (request.min_p, request.repeat_penalty, request.presence_penalty) == (0.05, 1.1, -2.0)
    assert (request.frequency_penalty, request.priority, request.deadline_ms) == (2.0, "batch", 1)
    assert request.session == "s"
    v1.validate(request)


def test_accepts_fields_in_openais_form() -> None:
    request = v1.parse(
        line(stop="x", seed=-1, response_format={"type": "text"}, tool_choice="any", thinking={})
    )
    assert (request.stop, request.seed) == (["x"], None)
    v1.validate(request)


def test_a_request_with_nothing_but_messages() -> None:
    request = v1.parse(b'{"messages":[' + TURN + b"]}")
    assert request.id == ""
    assert request.temperature is request.stream is request.seed is request.priority is None
    assert request.grammar == ""
    v1.validate(request)


NULLABLE = [
    "temperature", "top_p", "top_k", "max_tokens", "stream", "image_token_budget", "seed", "stop", "min_p",
    "repeat_penalty", "presence_penalty", "frequency_penalty", "json_schema", "schema_lenient", "priority",
    "deadline_ms", "session", "cache", "model", "lora", "model_defaults", "keep_alive", "progress",
    "on_behalf_of",
]  # fmt: skip


@cases("key", NULLABLE)
def test_null_is_absent(key: str) -> None:
    request = v1.parse(line(**{key: None}))
    without = v1.parse(line())
    if key == "json_schema":
        assert bytes(request.json_schema) == b""
    else:
        assert getattr(request, key) == getattr(without, key)
    v1.validate(request)


def test_every_field_is_covered_by_the_test_of_null() -> None:
    assert {*NULLABLE, "id", "messages", "grammar"} == set(v1.Request.__struct_fields__)


def test_unknown_keys_are_ignored_everywhere() -> None:
    request = v1.parse(
        b'{"x":1,"x":2,"messages":[{"role":"user","name":"a","name":"b","content":"hi"}],"y":{"id":1,"id":2},'
        b'"z":[[{}]]}'
    )
    assert request.messages == [v1.Message("user", "hi")]


def test_json_schema_is_kept_as_text() -> None:
    request = v1.parse(b'{"messages":[],"json_schema": {"properties":{"id":{"type":"string"}}} ,"id":"q"}')
    assert bytes(request.json_schema) == b'{"properties":{"id":{"type":"string"}}}'


def test_a_memoryview_is_read_like_bytes() -> None:
    assert v1.parse(memoryview(line())) == v1.parse(line())


# Refusing.

WRONG_TYPES = [
    ("messages", 7), ("messages", None), ("messages", {}), ("messages", ["hi"]), ("messages", [[]]),
    ("id", 7), ("id", None), ("temperature", "hot"), ("temperature", True), ("top_p", []), ("top_k", -1),
    ("top_k", 2**32), ("top_k", 1.5), ("max_tokens", "10"), ("max_tokens", -1), ("stream", "yes"),
    ("stream", 0), ("image_token_budget", "70"), ("grammar", None), ("grammar", 1), ("seed", -2),
    ("seed", 2**32), ("stop", 7), ("stop", [1]), ("min_p", "0"), ("repeat_penalty", {}),
    ("presence_penalty", "x"), ("frequency_penalty", "x"), ("json_schema", []), ("json_schema", "x"),
    ("priority", 1), ("priority", "urgent"), ("deadline_ms", -1), ("session", 1),
]  # fmt: skip


@cases("key, value", WRONG_TYPES)
def test_a_wrong_type_is_refused_by_name(key: str, value: object) -> None:
    message, request_id = refusal(line(**{key: value}))
    assert message.startswith("decode: ")
    assert f"$.{key}" in message
    assert request_id == ("q" if key != "id" else "")


def test_errors_name_the_expected_type() -> None:
    assert refusal(line(temperature="hot"))[0] == (
        "decode: Expected `float | null`, got `str` - at `$.temperature`"
    )
    assert refusal(b'{"id":"q"}') == ("decode: Object missing required field `messages`", "q")
    assert refusal(line(messages=[{"role": "tool", "content": "x"}]))[0] == (
        "decode: Expected `system`, `user` or `assistant` - at `$.messages[0].role`"
    )
    assert refusal(line(priority="urgent"))[0] == (
        "decode: Expected `interactive` or `batch` - at `$.priority`"
    )


@cases("turn", [{"role": "user"}, {"content": "x"}, {"role": 1, "content": "x"}, {}])
def test_an_incomplete_turn(turn: dict[str, object]) -> None:
    message, request_id = refusal(line(messages=[{"role": "user", "content": "x"}, turn]))
    assert "$.messages[1]" in message
    assert request_id == "q"


def test_content_must_be_a_string() -> None:
    assert "$.messages[0].content" in refusal(line(messages=[{"role": "user", "content": None}]))[0]


NOT_AN_OBJECT = [
    b"", b" ", b"\r", b"\t\t", b"null", b"7", b'"x"', b"[]", b"hello", b"{", b"}", b'{"id":"q"', b"{'a':1}",
    b'{"id":"q","messages":[],}', b'{"id":"q","messages":[]}{"id":"q"}', b'{"id":"q","messages":[]} x',
    b"\xef\xbb\xbf{}", b'{"id":"\x01","messages":[]}', b'{"id":"q","messages":[],"x":01}',
    b'{"id":"q","messages":[],"x":NaN}', b'{"id":"\\ud800","messages":[]}',
    b'{"id":"\\udc00x","messages":[]}',
    b'{"id":"q","messages":[],"x":"\\ud800"}',
]  # fmt: skip


@cases("raw", NOT_AN_OBJECT)
def test_a_line_that_is_not_one_json_object(raw: bytes) -> None:
    message, request_id = refusal(raw)
    assert message.startswith("decode: ")
    assert request_id == ""


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xc0\xaf", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x8c"]
)
@pytest.mark.parametrize("place", [b'"id":"%b"', b'"x":"%b"', b'"%b":1', b'"x":{"y":["%b"]}'])
def test_the_whole_line_is_utf8(bad: bytes, place: bytes) -> None:
    message, request_id = refusal(b'{"messages":[' + TURN + b"]," + place % bad + b"}")
    assert message.startswith("decode: the line is not valid UTF-8 at byte ")
    assert request_id == ""


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    message, _ = refusal(b'{"id":"q","messages":[],"x":' + opening * 100_000)
    assert message == "decode: the line is nested too deeply"


def test_very_long_numbers_do_not_matter() -> None:
    digits = b"9" * 10_000
    assert v1.parse(b'{"messages":[],"x":' + digits + b"}").id == ""
    assert "`id`" in refusal(b'{"messages":[],"id":"a","id":"b","x":' + digits + b"}")[0]
    assert "$.seed" in refusal(b'{"messages":[],"seed":' + digits + b"}")[0]


DOUBLES = [
    b'{"id":"a","id":"b","messages":[]}',
    b'{"id":"a","messages":[],"messages":[]}',
    b'{"messages":[],"seed":1,"seed":1}',
    b'{"messages":[],"seed":null,"seed":1}',
    b'{"messages":[],"seed":1,"seed":null}',
    b'{"messages":[],"seed":null,"seed":null}',
    b'{"messages":[],"seed" : 1,"seed"\t:1}',
    b'{"\\u0069d":"a","id":"b","messages":[]}',
    b'{"i\\u0064":"a","\\u0069d":"b","messages":[]}',
    b'{"messages":[],"top\\u005fk":1,"top_k":1}',
    b'{"messages":[],"stop":[],"stop":[]}',
    b'{"messages":[],"grammar":"","grammar":""}',
    b'{"messages":[],"json_schema":{},"json_schema":{}}',
    b'{"messages":[{"role":"user","role":"user","content":"x"}]}',
    b'{"messages":[{"role":"user","content":"x","content":"y"}]}',
    b'{"messages":[{"role":"user","content":"x"},{"rol\\u0065":"user","role":"user","content":"y"}]}',
    b'{"messages":[{"role":"user","content":"x"}],"messages":[]}',
]


@cases("raw", DOUBLES)
def test_a_repeated_known_key_is_refused(raw: bytes) -> None:
    message, request_id = refusal(raw)
    assert message.startswith("decode: key `")
    assert "is given twice - at `$" in message
    assert request_id == ""


NO_DOUBLES = [
    b'{"id":"id","messages":[{"role":"user","content":"id"}]}',
    b'{"id":"q","messages":[{"role":"user","content":"\\"id\\":\\"role\\""}]}',
    b'{"id":"q","messages":[],"x":{"id":1,"messages":2,"role":3,"content":4}}',
    b'{"id":"q","messages":[],"json_schema":{"properties":{"id":{},"role":{},"content":{},"seed":{}}},"seed":1}',
    b'{"id":"q","messages":[{"role":"user","content":"\\u0041\\u00e9","x":{"role":1}}],"id\\u0031":1}',
    b'{"stop":["stop","stop"],"messages":[],"id":"null"}',
    b'{"ID":1,"id":"q","messages":[]}',
]


@cases("raw", NO_DOUBLES)
def test_false_duplicate_keys(raw: bytes) -> None:
    v1.parse(raw)


def oracle_has_double(pairs: list[tuple[str, Any]], known: frozenset[str]) -> bool:
    names = [name for name, _ in pairs if name in known]
    return len(names) != len(set(names))


@given(st.lists(st.tuples(st.sampled_from(["id", "seed", "x", "top_k"]), st.sampled_from(["1", "null"]))))
def test_doubles_are_found_exactly(keys: list[tuple[str, str]]) -> None:
    values = [(name, '"a"' if name == "id" else value) for name, value in keys]
    raw = "{" + ",".join(f'"{name}":{value}' for name, value in [("messages", "[]"), *values]) + "}"
    try:
        v1.parse(raw.encode())
        refused = False
    except DecodeError:
        refused = True
    assert refused == oracle_has_double([*values], frozenset(v1.Request.__struct_fields__))


@given(st.binary(max_size=200))
def test_any_line_is_parsed_or_refused(raw: bytes) -> None:
    with contextlib.suppress(DecodeError, InvalidRequest):
        v1.validate(v1.parse(raw))


# Validation.

INVALID = [
    ({"messages": []}, "messages must not be empty"),
    ({"temperature": -0.1}, "temperature must be between 0 and 100"),
    ({"temperature": 100.1}, "temperature must be between 0 and 100"),
    ({"top_p": 0}, "top_p must be above 0 and at most 1"),
    ({"top_p": 1.01}, "top_p must be above 0 and at most 1"),
    ({"image_token_budget": 71}, "image_token_budget must be one of 70, 140, 280, 560, 1120"),
    ({"image_token_budget": 0}, "image_token_budget must be one of 70, 140, 280, 560, 1120"),
    ({"min_p": 1.1}, "min_p must be between 0 and 1"),
    ({"repeat_penalty": 0}, "repeat_penalty must be between 0.01 and 100"),
    ({"presence_penalty": -101}, "presence_penalty must be between -100 and 100"),
    ({"frequency_penalty": 101}, "frequency_penalty must be between -100 and 100"),
    ({"stop": ["x"] * 17}, "stop must hold at most 16 strings"),
    ({"stop": ["x", ""]}, "stop[1] must not be empty"),
    ({"grammar": "x" * 65537}, "grammar must be at most 65536 bytes"),
    ({"grammar": "é" * 32769}, "grammar must be at most 65536 bytes"),
    ({"grammar": "|" * 4097}, "grammar must hold at most 4096 alternatives (`|`)"),
    ({"grammar": "x", "json_schema": {}}, "grammar and json_schema exclude each other"),
    ({"session": "é" * 65}, "session must be at most 128 bytes"),
]


@cases("fields, reason", INVALID)
def test_well_typed_but_not_valid(fields: dict[str, Any], reason: str) -> None:
    request = v1.parse(line(**fields))
    with pytest.raises(InvalidRequest) as caught:
        v1.validate(request)
    assert str(caught.value) == f"invalid request: {reason}"
    assert not isinstance(caught.value, DecodeError)


VALID: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 100}, {"top_p": 1}, {"top_p": 1e-9}, {"top_k": 0}, {"max_tokens": 0},
    {"min_p": 0}, {"min_p": 1}, {"repeat_penalty": 100},
    {"repeat_penalty": 0.01}, {"presence_penalty": -100}, {"stop": []},
    {"stop": ["x"] * 16}, {"grammar": "x" * 65536}, {"grammar": "|" * 4096}, {"json_schema": {}},
    {"session": "é" * 64}, {"session": ""}, {"deadline_ms": 0},
    {"messages": [{"role": "user", "content": ""}]},
    *({"image_token_budget": budget} for budget in (70, 140, 280, 560, 1120)),
]  # fmt: skip


@cases("fields", VALID)
def test_the_bounds_themselves_are_valid(fields: dict[str, Any]) -> None:
    v1.validate(v1.parse(line(**fields)))


def test_the_first_fault_is_reported() -> None:
    with pytest.raises(InvalidRequest, match="messages must not be empty"):
        v1.validate(v1.parse(line(messages=[], temperature=-1)))


# Writing.


@given(st.text(), st.text())
def test_a_token_frame_equals_the_output_of_a_json_library(request_id: str, text: str) -> None:
    prefix = v1.token_prefix(request_id)
    inside = orjson.dumps(text)[1:-1]
    frame = {"type": "token", "id": request_id, "content": text}
    assert prefix + inside + v1.TOKEN_SUFFIX == orjson.dumps(frame) + b"\n"


def done(content: str | bytes, cached: int = 0, timings: dict[str, float] | None = None) -> bytes:
    return v1.encode_done(
        "q7", content, prompt_tokens=9, completion_tokens=2, cached_tokens=cached, stop_reason="end",
        backend="llamacpp", model="m", timings=timings,
    )  # fmt: skip


def test_done_byte_for_byte() -> None:
    assert (
        done("Hel\nlo")
        == done(b"Hel\\nlo")
        == (
            b'{"type":"done","id":"q7","content":"Hel\\nlo","usage":{"prompt_tokens":9,"completion_tokens":2},'
            b'"stop_reason":"end","backend":"llamacpp","model":"m"}\n'
        )
    )
    assert done("", cached=3, timings={"queue_ms": 0.5, "ttft_ms": 2.0}) == (
        b'{"type":"done","id":"q7","content":"","usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"cached_tokens":3},"stop_reason":"end","backend":"llamacpp","model":"m",'
        b'"timings":{"queue_ms":0.5,"ttft_ms":2.0}}\n'
    )


def test_error_byte_for_byte() -> None:
    assert v1.encode_error("q7", "queue_full", "queue full") == (
        b'{"type":"error","id":"q7","code":"queue_full","message":"queue full"}\n'
    )


def test_an_error_may_quote_a_file_name_that_is_not_utf8() -> None:
    frame = orjson.loads(frames.encode_error("q", "internal", "cannot open \udcff"))
    assert frame["message"] == "cannot open \\udcff"


# Admin.


def test_status_frames_byte_for_byte() -> None:
    assert admin.STARTING == b'{"id":"admin","type":"status","status":"starting"}\n'
    assert admin.READY == b'{"id":"admin","type":"status","status":"ready"}\n'
    assert admin.DRAINING == b'{"id":"admin","type":"status","status":"draining"}\n'
    details = {"downloaded_bytes": 0, "total_bytes": None, "source_url": "https://x"}
    assert admin.loading_model("download", details) == (
        b'{"id":"admin","type":"status","status":"loading_model","phase":"download","downloaded_bytes":0,'
        b'"total_bytes":null,"source_url":"https://x"}\n'
    )
    assert admin.failed("no") == b'{"id":"admin","type":"status","status":"failed","message":"no"}\n'


def test_a_status_frame_is_read_back() -> None:
    assert admin.parse(admin.READY) == {"id": "admin", "type": "status", "status": "ready"}


NO_STATUS = [b"", b"x", b"[]", b"{}", b'{"type":"status"}', b'{"type":"token","status":"x"}']


@cases("raw", NO_STATUS)
def test_malformed_status_frames(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        admin.parse(raw)
