"""The v2 codec: the parsing of requests, and the bytes of each frame."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import DecodeError, InvalidRequest
from inferd.wire import attachments, v2, v2_rules
from tests.cases import cases

TEXT = {"type": "text", "text": "hi"}
IMAGE = {"kind": "image", "id": "i", "width": 1, "height": 1, "bytes": "AAAA"}


def user(*blocks: object) -> dict[str, object]:
    return {"role": "user", "content": list(blocks)}


def line(**fields: object) -> bytes:
    return json.dumps({"id": "q", "messages": [user(TEXT)], **fields}).encode()


def refusal(raw: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        v2.parse(raw)
    return str(caught.value), caught.value.request_id


# Reading.


def test_every_kind_of_block() -> None:
    request = v2.parse(
        line(
            messages=[
                user(TEXT, {"type": "text", "attachment_id": "t"}, {"type": "image", "attachment_id": "i"}),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "text": "hm"},
                        {"type": "tool_use", "tool_call_id": "c", "name": "f", "input": {"a": 1}},
                    ],
                },
                user({"type": "tool_result", "tool_call_id": "c", "content": [TEXT, {"type": "audio",
                      "attachment_id": "a"}]}, {"type": "video", "attachment_id": "v"}),
            ]
        )
    )  # fmt: skip
    first, second, third = (message.content for message in request.messages)
    assert first == [v2.Text(text="hi"), v2.Text(attachment_id="t"), v2.Image(attachment_id="i")]
    assert second[0] == v2.Thinking(text="hm")
    use = second[1]
    assert isinstance(use, v2.ToolUse)
    assert (use.tool_call_id, use.name, bytes(use.input)) == ("c", "f", b'{"a": 1}')
    result = v2.ToolResult(tool_call_id="c", content=[v2.Text(text="hi"), v2.Audio(attachment_id="a")])
    assert third == [result, v2.Video(attachment_id="v")]


def test_absent_fields_stay_absent() -> None:
    request = v2.parse(line())
    values = {name: getattr(request, name) for name in request.__struct_fields__}
    given_or_text = {"id", "messages", "grammar", "json_schema"}
    assert {name for name, value in values.items() if value is not None} == given_or_text
    assert request.schema == ""


def test_null_is_absent() -> None:
    names = [name for name in v2.Request.__struct_fields__ if name not in ("id", "messages", "grammar")]
    request = v2.parse(line(**dict.fromkeys(names)))
    assert request.schema == ""
    assert request.tools is None


def test_attachments_inline() -> None:
    sound = {"kind": "audio", "id": "a", "sample_rate": 16000, "bytes": "AACAPw=="}
    picture = {
        "kind": "image",
        "id": "p",
        "mime": "image/png",
        "bytes": base64.b64encode(b"\x89PNG").decode(),
    }
    text = {"kind": "text", "id": "t", "bytes": "aGk="}
    request = v2.parse(line(attachments=[IMAGE, sound, picture, text, {"kind": "video", "id": "v"}]))
    assert request.attachments is not None
    contents = [a.content.tobytes() for a in request.attachments if not isinstance(a, attachments.Unknown)]
    assert contents == [b"\0\0\0", b"\0\0\x80?", b"\x89PNG", b"hi", b""]


def test_accepts_fields_in_openais_form() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"name": "answer", "strict": True, "schema": schema}
    request = v2.parse(line(response_format={"type": "json_schema", "json_schema": named}))
    assert json.loads(request.schema) == schema
    assert v2.parse(line(response_format={"type": "text"})).schema == ""
    choice = {"type": "function", "function": {"name": "weather"}}
    request = v2.parse(line(tool_choice=choice, stop="x", seed=-1))
    assert isinstance(request.tool_choice, v2.ToolName)
    assert request.tool_choice.name == "weather"
    assert (request.stop, request.seed) == (["x"], None)


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {}}
    request = v2.parse(line(response_format={"type": "json_schema", "schema": schema}))
    assert json.loads(request.schema) == schema
    assert v2.parse(line(response_format={"type": "json_object"})).schema == '{"type":"object"}'
    assert json.loads(v2.parse(line(json_schema=schema)).schema) == schema


def test_unknown_keys_are_ignored_everywhere() -> None:
    v2.parse(
        b'{"x":1,"x":2,"messages":[{"role":"user","y":1,"y":2,"content":[{"type":"text","text":"hi","z":1,"z":2}]}]'
        b',"tools":[{"name":"f","description":"","input_schema":{"type":1,"type":2},"n":1,"n":2}]}'
    )


@pytest.mark.parametrize("where", ["text", "image", "assistant"])
def test_unknown_kinds_parse_with_any_content(where: str) -> None:
    odd = {"type": "hologram", "text": 7, "attachment_id": [], "content": "x", "input": None}
    if where == "image":
        raw = line(attachments=[{"kind": "hologram", "id": 7, "bytes": [], "width": "wide"}])
    else:
        raw = line(messages=[user({"type": "tool_result", "tool_call_id": "c", "content": [odd]}, odd)])
    with pytest.raises(InvalidRequest, match="unknown") as caught:
        v2_rules.validate(v2.parse(raw))
    assert not isinstance(caught.value, DecodeError)


def test_an_unknown_kind_hides_no_other_fault() -> None:
    odd = {"type": "hologram"}
    message, request_id = refusal(line(messages=[user(odd, {"type": "text", "text": 7})]))
    assert message == "decode: Expected `str | null`, got `int` - at `$.messages[0].content[1].text`"
    assert request_id == "q"


def test_the_size_of_an_unknown_attachment_is_known() -> None:
    request = v2.parse(line(attachments=[{"kind": "hologram", "id": "h", "size": 7}]))
    assert attachments.raw_size(request.attachments or (), 100) == 7


# Refusing.

TOOL = {"name": "f", "description": "d", "input_schema": {}}
WRONG_TYPES = [
    ("messages", 7, "messages"),
    ("messages", [{"role": "tool", "content": [TEXT]}], "messages[0].role"),
    ("messages", [{"role": "user", "content": "hi"}], "messages[0].content"),
    ("messages", [{"role": "user"}], "messages[0]"),
    ("messages", [user("hi")], "messages[0].content[0]"),
    ("messages", [user({"text": "hi"})], "messages[0].content[0]"),
    ("messages", [user({"type": 7})], "messages[0].content[0].type"),
    ("messages", [user({"type": "image"})], "messages[0].content[0]"),
    ("messages", [user({"type": "thinking"})], "messages[0].content[0]"),
    ("messages", [user({"type": "tool_use", "tool_call_id": "c", "name": "f"})], "messages[0].content[0]"),
    ("messages", [user({"type": "tool_result", "tool_call_id": "c"})], "messages[0].content[0]"),
    ("attachments", {}, "attachments"),
    ("attachments", [{"id": "i"}], "attachments[0]"),
    ("attachments", [{"kind": "image", "width": 1, "height": 1, "bytes": ""}], "attachments[0]"),
    ("attachments", [{**IMAGE, "width": None}], "attachments[0]"),
    ("attachments", [{**IMAGE, "width": -1}], "attachments[0].width"),
    ("attachments", [{**IMAGE, "height": "1"}], "attachments[0].height"),
    ("attachments", [{**IMAGE, "bytes": None}], "attachments[0]"),
    ("attachments", [{**IMAGE, "size": 3}], "attachments[0]"),
    ("attachments", [{"kind": "text", "id": "t", "size": -1}], "attachments[0].size"),
    ("attachments", [{"kind": "text", "id": "t", "size": 1.5}], "attachments[0].size"),
    ("attachments", [{"kind": "audio", "id": "a", "bytes": ""}], "attachments[0]"),
    ("attachments", [{"kind": "audio", "id": "a", "sample_rate": 2**32, "bytes": ""}], "attachments[0]"),
    ("tools", [{**TOOL, "input_schema": []}], "tools[0].input_schema"),
    ("tools", [{"name": "f", "description": "d"}], "tools[0]"),
    ("tools", [{"name": "f", "input_schema": {}}], "tools[0]"),
    ("tool_choice", "maybe", "tool_choice"),
    ("tool_choice", {}, "tool_choice"),
    ("tool_choice", 7, "tool_choice"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("tool_choice", {"type": "function", "function": {}}, "tool_choice.function"),
    ("thinking", {"type": "enabled"}, "thinking"),
    ("response_format", {"type": "json_schema"}, "response_format.schema"),
    ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
    ("response_format", {"type": "json_schema", "schema": 7}, "response_format.schema"),
    ("thinking", "yes", "thinking"),
    ("json_schema", [], "json_schema"),
    ("priority", "urgent", "priority"),
    ("temperature", "hot", "temperature"),
]


@cases("key, value, path", WRONG_TYPES)
def test_a_wrong_type_is_refused_by_its_path(key: str, value: object, path: str) -> None:
    message, request_id = refusal(line(**{key: value}))
    assert message.startswith("decode: ")
    assert f"`$.{path}" in message
    assert request_id == "q"


# Each is the encoding of something, but not the standard, padded, canonical one.
@cases(
    "text", ["AAA", "AAA=A", "A AA", "AAAA\n", "AAAA====", "AA-_", "AB==", "AAB=", "Ä===", "=", "A", "A==="]
)
def test_base64_is_read_strictly(text: str) -> None:
    message, request_id = refusal(line(attachments=[{"kind": "text", "id": "t", "bytes": text}]))
    assert message == "decode: Invalid base64 encoded string - at `$.attachments[0].bytes`"
    assert request_id == "q"


@given(st.binary())
def test_valid_base64(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    (found,) = v2.parse(line(attachments=[{"kind": "text", "id": "t", "bytes": text}])).attachments or ()
    assert isinstance(found, attachments.Text)
    assert found.content == data


DOUBLES = [
    b'{"id":"a","id":"a","messages":[]}',
    b'{"messages":[],"tools":[],"tools":[]}',
    b'{"messages":[{"role":"user","content":[],"content":[]}]}',
    b'{"messages":[{"role":"user","content":[{"type":"text","type":"text","text":"x"}]}]}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"x","t\\u0065xt":"y"}]}]}',
    b'{"messages":[{"role":"user","content":[{"type":"tool_result","tool_call_id":"c","content":'
    b'[{"type":"image","attachment_id":"a","attachment_id":"b"}]}]}]}',
    b'{"messages":[],"attachments":[{"kind":"text","id":"a","id":"b","bytes":""}]}',
    b'{"messages":[],"attachments":[{"kind":"text","id":"a","size":1,"size":2}]}',
    b'{"messages":[],"tools":[{"name":"a","name":"b","description":"","input_schema":{}}]}',
    b'{"messages":[],"tool_choice":{"name":"a","name":"b"}}',
    b'{"messages":[],"response_format":{"type":"json_object","type":"json_object"}}',
    b'{"messages":[{"role":"user","content":[{"type":"odd"}]}],"seed":1,"seed":1}',
]


@cases("raw", DOUBLES)
def test_a_repeated_known_key_is_refused(raw: bytes) -> None:
    message, request_id = refusal(raw)
    assert "is given twice - at `$" in message
    assert request_id == ""


def test_opaque_objects_may_repeat_keys() -> None:
    v2.parse(
        b'{"messages":[{"role":"assistant","content":[{"type":"tool_use","tool_call_id":"c","name":"f",'
        b'"input":{"text":1,"text":2}}]}],"json_schema":{"type":1,"type":2}}'
    )


@cases("raw", [b"", b"[]", b"7", b"{", b'{"messages":[]} x', b'{"messages":["\xff"]}'])
def test_malformed_requests(raw: bytes) -> None:
    assert refusal(raw)[0].startswith("decode: ")


@pytest.mark.parametrize("depth", [17, 500, 5000])
def test_deep_nesting_is_refused(depth: int) -> None:
    opening = b'[{"type":"tool_result","tool_call_id":"c","content":'
    content = opening * depth + b"[]" + b"}]" * depth
    raw = b'{"messages":[{"role":"user","content":' + content + b"}]}"
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        v2_rules.validate(v2.parse(raw))


@pytest.mark.parametrize(("opening", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_of_what_only_passes_through_is_refused(opening: bytes, end: bytes) -> None:
    schema = b'{"x":' + opening * 5000 + b"1" + end * 5000 + b"}"
    tool = b'{"name":"f","description":"","input_schema":' + schema + b"}"
    message, _ = refusal(b'{"messages":[],"tools":[' + tool + b"]}")
    assert message == "decode: the line is nested too deeply"


def test_whether_bytes_may_follow_a_line() -> None:
    assert v2.may_carry_raw(b'{"attachments":[{"size" : 3}]}')
    assert v2.may_carry_raw(b'{"attachments":[{"\\u0073ize":3}]}')
    assert not v2.may_carry_raw(b'{"messages":[{"content":[{"text":"what \\"size\\" is it? \\u00e9"}]}]}')


# Writing.


@pytest.mark.parametrize("kind", ["text", "thinking"])
@given(request_id=st.text(), text=st.text())
def test_a_delta_equals_the_output_of_a_json_library(kind: Any, request_id: str, text: str) -> None:
    prefix = v2.delta_prefix(request_id, kind)
    frame = {"type": "frame", "id": request_id, "block": {"type": kind, "delta": text}}
    assert prefix + orjson.dumps(text)[1:-1] + v2.TEXT_SUFFIX == orjson.dumps(frame) + b"\n"


def test_a_tool_use_byte_for_byte() -> None:
    assert v2.encode_tool_use(
        "a1", "tc-1", "lookup", '{ "k" : [ 1, 2e400, "a b" ],\n "n": 1234567890123456789012 }'
    ) == (
        b'{"type":"frame","id":"a1","block":{"type":"tool_use","tool_call_id":"tc-1","name":"lookup",'
        b'"input":{"k":[1,2e400,"a b"],"n":1234567890123456789012}}}\n'
    )


def test_done_byte_for_byte() -> None:
    def done(**changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "input_tokens": 31, "output_tokens": 4, "cached_tokens": 0, "stop_reason": "end_turn",
            "backend": "llamacpp", "model": "m", "timings": None, "tool_choice_unsatisfied": False,
        }  # fmt: skip
        return v2.encode_done("a1", **{**fields, **changes})

    head = b'{"type":"done","id":"a1","usage":{"input_tokens":31,"output_tokens":4'
    tail = b'},"stop_reason":"end_turn","backend":"llamacpp","model":"m"'
    assert done() == head + tail + b"}\n"
    assert done(cached_tokens=7, timings={"ttft_ms": 2.5}, tool_choice_unsatisfied=True) == (
        head + b',"cached_tokens":7' + tail + b',"timings":{"ttft_ms":2.5},"tool_choice_unsatisfied":true}\n'
    )
