"""The validation of v2 requests: every rule with its message, and the order of the rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.errors import AttachmentTooLarge, AttachmentUnsupported, DecodeError, InvalidRequest
from inferd.wire import attachments, v2, v2_rules
from tests.cases import cases

TEXT = {"type": "text", "text": "hi"}
USE = {"type": "tool_use", "tool_call_id": "c", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_call_id": "c", "content": []}
IMAGE = {"kind": "image", "id": "i", "width": 1, "height": 1, "bytes": "AAAA"}
SOUND = {"kind": "audio", "id": "a", "sample_rate": 16000, "bytes": "AACAPw=="}
NOTE = {"kind": "text", "id": "t", "bytes": "aGk="}
VIDEO = {"kind": "video", "id": "v"}
SHOW = {"type": "image", "attachment_id": "i"}
SCHEMA = {"type": "json_object"}


def user(*blocks: object) -> dict[str, object]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: object) -> dict[str, object]:
    return {"role": "assistant", "content": list(blocks)}


def tool(name: str = "f") -> dict[str, object]:
    return {"name": name, "description": "", "input_schema": {}}


def request(**fields: object) -> v2.Request:
    return v2.parse(json.dumps({"id": "q", "messages": [user(TEXT)], **fields}).encode())


def nested(block: object) -> dict[str, object]:
    return {**RESULT, "content": [TEXT, {**RESULT, "content": [block]}]}


# In the order of the checks.
RULES: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages must not be empty"),
    ({"attachments": [NOTE] * 33}, "attachments must hold at most 32"),
    ({"attachments": [{"kind": "hologram", "id": "h"}]}, "attachments contain an unknown kind"),
    ({"attachments": [{**NOTE, "id": ""}]}, "attachments must have non-empty id"),
    ({"attachments": [NOTE, {**IMAGE, "id": "t"}]}, "duplicate attachment id: t"),
    ({"tools": [tool(), tool("g"), tool()]}, "duplicate tool name: f"),
    ({"tools": [tool(f"t{n}") for n in range(129)]}, "tools must hold at most 128"),
    ({"tools": [tool("")]}, "tools must have non-empty name"),
    ({"messages": [user(TEXT), user()]}, "messages[1].content must not be empty"),
    ({"messages": [user(TEXT, {"type": "odd"})]}, "messages[0].content[1] uses unknown content-block type"),
    (
        {"messages": [user({"type": "text"})]},
        "messages[0].content[0] must have one of text and attachment_id",
    ),
    (
        {"messages": [user({"type": "text", "text": "", "attachment_id": "t"})]},
        "messages[0].content[0] must have one of text and attachment_id",
    ),
    ({"messages": [user(SHOW)]}, 'messages[0].content[0] references unknown attachment_id "i"'),
    *(
        (
            {"messages": [user({"type": kind, "attachment_id": "x"})], "attachments": [{**other, "id": "x"}]},
            f'messages[0].content[0] block expects {kind} attachment but "x" is a different kind',
        )
        for kind, other in (("image", SOUND), ("audio", NOTE), ("text", IMAGE), ("video", IMAGE))
    ),
    (
        {"messages": [user(nested({"type": "odd"}))]},
        "messages[0].content[0].content[1].content[0] uses unknown content-block type",
    ),
    (
        {"messages": [user(nested(SHOW))]},
        'messages[0].content[0].content[1].content[0] references unknown attachment_id "i"',
    ),
    (
        {"messages": [user(nested(SHOW))], "attachments": [{**NOTE, "id": "i"}]},
        "messages[0].content[0].content[1].content[0] block expects image attachment but"
        ' "i" is a different kind',
    ),
    (
        {"attachments": [{**IMAGE, "width": 0}]},
        "attachments[0].width and attachments[0].height must be at least 1",
    ),
    ({"attachments": [{**IMAGE, "width": 2}]}, "attachments[0] must hold 2*1*3 = 6 bytes, not 3"),
    (
        {"attachments": [{**IMAGE, "mime": "image/bmp"}]},
        "attachments[0].mime must be one of image/png, image/jpeg, image/webp, image/gif",
    ),
    ({"attachments": [{**IMAGE, "mime": "image/png", "bytes": ""}]}, "attachments[0] must not be empty"),
    ({"attachments": [{**SOUND, "sample_rate": 0}]}, "attachments[0].sample_rate must be at least 1"),
    (
        {"attachments": [{**SOUND, "bytes": "AACAPwA="}]},
        "attachments[0] must hold whole float32 samples, 4 bytes each, at least one",
    ),
    (
        {"attachments": [{**SOUND, "bytes": ""}]},
        "attachments[0] must hold whole float32 samples, 4 bytes each, at least one",
    ),
    (
        {"attachments": [{**SOUND, "mime": "audio/ogg"}]},
        "attachments[0].mime must be one of audio/wav, audio/mpeg, audio/flac",
    ),
    ({"attachments": [NOTE, {**NOTE, "id": "u", "bytes": "/w=="}]}, "attachments[1] is not valid UTF-8"),
    (
        {"messages": [user({"type": "thinking", "text": "hm"})]},
        "messages[0].content[0] is allowed only in an assistant message",
    ),
    ({"messages": [user(USE)]}, "messages[0].content[0] is allowed only in an assistant message"),
    (
        {"messages": [assistant(USE), assistant(RESULT)]},
        "messages[1].content[0] is allowed only in a user message",
    ),
    (
        {"messages": [assistant(USE, {**USE, "input": "{}"})]},
        "messages[0].content[1].input must be an object",
    ),
    (
        {"messages": [assistant({**USE, "name": ""})]},
        "messages[0].content[0] must have non-empty tool_call_id and name",
    ),
    (
        {"messages": [assistant(USE), user(RESULT), assistant(USE)]},
        'messages[2].content[0] repeats the tool_call_id "c"',
    ),
    (
        {"messages": [user(RESULT), assistant(USE)]},
        'messages[0].content[0] has no tool_use before it with tool_call_id "c"',
    ),
    ({"tools": [tool()], "tool_choice": {"name": "g"}}, 'tool_choice names the unknown tool "g"'),
    ({"tool_choice": "required"}, "tool_choice is required but there are no tools"),
    (
        {"response_format": SCHEMA, "json_schema": {}},
        "response_format and json_schema exclude each other",
    ),
    ({"grammar": "x", "json_schema": {}}, "grammar and json_schema exclude each other"),
    ({"grammar": "x", "response_format": SCHEMA}, "grammar and response_format exclude each other"),
    *(
        (
            {"tools": [tool()], name: value},
            f"{name} and tools exclude each other, since the answer could be either what {name} describes or"
            ' a tool call; leave one out, or set tool_choice to "none"',
        )
        for name, value in (("grammar", "x"), ("json_schema", {}), ("response_format", SCHEMA))
    ),
    ({"suffix": "b"}, "suffix is for raw prompts; set raw to true"),
    ({"raw": True, "begun": True}, "raw and begun exclude each other"),
    *(
        (
            {"raw": True, "messages": messages},
            "with raw, messages must be one user message of text only",
        )
        for messages in ([user(TEXT), user(TEXT)], [assistant(TEXT)])
    ),
    ({"begun": True}, "with begun, the last message must be an assistant message of text only"),
    (
        {"begun": True, "messages": [user(TEXT), assistant(USE)]},
        "with begun, the last message must be an assistant message of text only",
    ),
    (
        {"begun": True, "messages": [assistant(TEXT)]},
        "with begun, messages must hold another message before the last one",
    ),
    (
        {"begun": True, "messages": [user(TEXT), assistant(TEXT)], "json_schema": {}},
        "begun excludes grammar and schema, which apply to a whole answer",
    ),
    (
        {"begun": True, "tools": [tool()], "messages": [user(TEXT), assistant(TEXT)]},
        'begun and tools exclude each other; leave one out, or set tool_choice to "none"',
    ),
    ({"raw": True, "thinking": True}, "raw and thinking exclude each other; leave one out"),
    ({"temperature": -1}, "temperature must be between 0 and 100"),
    ({"stop": [""]}, "stop[0] must not be empty"),
    ({"session": "x" * 129}, "session must be at most 128 bytes"),
]


def refusal(**fields: object) -> str:
    parsed = request(**fields)
    with pytest.raises(InvalidRequest) as caught:
        v2_rules.validate(parsed)
    assert not isinstance(caught.value, DecodeError)
    return str(caught.value)


@cases("fields, reason", RULES)
def test_each_rule(fields: dict[str, Any], reason: str) -> None:
    assert refusal(**fields) == f"invalid request: {reason}"


STEPS: list[tuple[dict[str, Any], str]] = [
    ({"attachments": [{"kind": "hologram", "id": ""}]}, "attachments contain"),
    ({"tools": [tool(), tool()]}, "duplicate tool name"),
    ({"messages": [user()]}, "messages[0].content must not be empty"),
    ({"messages": [user({"type": "odd"})]}, "messages[0].content[0] uses unknown"),
    ({"attachments": [{**IMAGE, "width": 9}]}, "attachments[0] must hold"),
    ({"messages": [user(RESULT)]}, "messages[0].content[0] has no tool_use"),
    ({"tool_choice": "required"}, "tool_choice is required"),
    ({"temperature": -1}, "temperature must be"),
]


@cases("first", range(len(STEPS)))
def test_the_first_fault_in_order_is_reported(first: int) -> None:
    for fields, _ in STEPS[first + 1 :]:
        both = {**fields, **STEPS[first][0]}
        assert refusal(**both).startswith(f"invalid request: {STEPS[first][1]}")


def test_messages_are_checked_in_order() -> None:
    faults = [user({"type": "odd"}), user(), user(SHOW)]
    texts = ["uses unknown", "must not be empty", "references unknown"]
    for first in range(3):
        messages = faults[first:] + faults[:first]
        assert texts[first] in refusal(messages=messages)


VALID: list[dict[str, Any]] = [
    {"raw": True, "suffix": "", "logprobs": 20, "thinking": False, "tools": [tool()], "tool_choice": "none"},
    {"begun": True, "messages": [user(TEXT), assistant(TEXT, TEXT)], "logprobs": None, "tools": []},
    {"messages": [user({"type": "text", "text": ""})]},
    {"attachments": [IMAGE, SOUND, NOTE], "messages": [
        user(TEXT, SHOW, {"type": "audio", "attachment_id": "a"}, {"type": "text", "attachment_id": "t"})]},
    {"attachments": [{**NOTE, "id": str(n)} for n in range(32)]},
    {"attachments": [{**NOTE, "bytes": ""}]},
    {"tools": [tool(f"t{n}") for n in range(128)]},
    {"messages": [assistant({"type": "thinking", "text": ""}, TEXT, USE), user(RESULT, TEXT)]},
    {"messages": [assistant(USE, {**USE, "tool_call_id": "d"}), user({**RESULT, "tool_call_id": "d"}),
                  user(nested(SHOW))], "attachments": [IMAGE]},
    {"tools": [tool()], "tool_choice": "required", "logprobs": 2},
    {"tools": [tool()], "tool_choice": {"name": "f"}},
    {"tools": [tool()], "tool_choice": "none", "grammar": "x"},
    {"tools": [tool()], "tool_choice": "none", "response_format": SCHEMA},
    {"tool_choice": "none"},
    {"response_format": SCHEMA, "thinking": True},
]  # fmt: skip


@cases("fields", VALID)
def test_valid_requests(fields: dict[str, Any]) -> None:
    v2_rules.validate(request(**fields))


def test_video_is_refused_with_its_own_code() -> None:
    block = {"type": "video", "attachment_id": "v"}
    with pytest.raises(AttachmentUnsupported) as caught:
        v2_rules.validate(request(attachments=[VIDEO], messages=[user(block)]))
    assert caught.value.code == "attachment_unsupported"


# Sizes.


def out_of_line(*sizes: int, kind: str = "text") -> list[attachments.Attachment]:
    items = [{"kind": kind, "id": str(n), "size": size} for n, size in enumerate(sizes)]
    return list(request(attachments=items).attachments or ())


def test_sizes_are_refused_before_anything_is_read() -> None:
    assert attachments.raw_size(out_of_line(100, 0, 100), 100) == 200
    with pytest.raises(AttachmentTooLarge, match=r"^attachments\[1\] exceeds 100 byte cap$") as caught:
        attachments.raw_size(out_of_line(100, 101), 100)
    assert (caught.value.code, caught.value.cap) == ("frame_too_large", 100)
    half = attachments.MAX_TOGETHER_BYTES // 2
    assert attachments.raw_size(out_of_line(half, half), half) == 2 * half
    with pytest.raises(AttachmentTooLarge, match=r"^attachments exceed 134217728 byte cap$"):
        attachments.raw_size(out_of_line(half, half, 1), half)
    with pytest.raises(AttachmentTooLarge):
        attachments.raw_size(out_of_line(2**70), half)


def test_each_attachment_gets_its_part_without_a_copy() -> None:
    raw = bytearray(b"abcdef")
    one, two, three = found = out_of_line(1, 0, 5)
    attachments.assign(found, memoryview(raw).toreadonly())
    assert isinstance(one, attachments.Text)
    assert isinstance(two, attachments.Text)
    assert isinstance(three, attachments.Text)
    raw[1] = ord("X")
    assert [one.content.tobytes(), two.content.tobytes(), three.content.tobytes()] == [b"a", b"", b"Xcdef"]


def test_inline_and_raw_bytes_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_TOGETHER_BYTES", 5)
    fields = request(attachments=[NOTE, {**NOTE, "id": "u"}])
    v2_rules.validate(fields)
    fields = request(attachments=[NOTE, {**NOTE, "id": "u"}, {**NOTE, "id": "w"}])
    with pytest.raises(InvalidRequest, match="attachments must hold at most 5 bytes together"):
        v2_rules.validate(fields)
