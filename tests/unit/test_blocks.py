"""v2 blocks on their way to the engine and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.engine.events import Done, Text, Thinking, ToolUse, Usage
from inferd.engine.mock import Mock
from inferd.engine.requests import FrameTemplate, GenerateRequest, Media, Message, Tool, ToolCall
from inferd.serve.surfaces.v2 import BlockSurface, BlockWriter, conversation
from inferd.wire import v2, v2_rules
from tests.cases import cases
from tests.requests import generate_request

TEXT = {"type": "text", "text": "hi"}


def user(*blocks: object) -> dict[str, object]:
    return {"role": "user", "content": list(blocks)}


def text(value: str) -> dict[str, object]:
    return {"type": "text", "text": value}


def request(**fields: object) -> v2.Request:
    parsed = v2.parse(json.dumps({"id": "q", "messages": [user(TEXT)], **fields}).encode())
    v2_rules.validate(parsed)
    return parsed


# To the engine.


def test_absent_fields_are_left_to_the_backend() -> None:
    got = BlockSurface().engine_request(request(), None)
    assert got == GenerateRequest(messages=(Message("user", "hi"),), typed=True, model_defaults=True)


def test_every_field_arrives() -> None:
    tool = {"name": "f", "description": "does f", "input_schema": {"type": "object"}}
    template = FrameTemplate(b"<", b">")
    got = BlockSurface().engine_request(
        request(
            temperature=0.5, top_p=0.5, top_k=5, max_tokens=7, min_p=0.25, repeat_penalty=1.25,
            presence_penalty=-1, frequency_penalty=2, seed=9, stop=["x"], session="s", lora="l",
            thinking=False, tools=[tool], tool_choice={"name": "f"},
        ),
        template,
    )  # fmt: skip
    assert got == generate_request(
        messages=(Message("user", "hi"),), max_tokens=7, temperature=0.5, top_p=0.5, top_k=5, min_p=0.25,
        repeat_penalty=1.25, presence_penalty=-1.0, frequency_penalty=2.0, seed=9, stop=("x",), session="s",
        lora="l", frame=template, typed=True, model_defaults=True, thinking=False,
        tools=(Tool("f", "does f", '{"type": "object"}'),), tool_name="f",
    )  # fmt: skip


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_the_choice_of_tools(choice: str) -> None:
    tool = {"name": "f", "description": "", "input_schema": {}}
    got = BlockSurface().engine_request(request(tools=[tool], tool_choice=choice), None)
    assert (got.tool_choice, got.tool_name) == (choice, "")


@pytest.mark.parametrize("field", ["json_schema", "response_format"])
def test_a_schema_arrives_as_text(field: str) -> None:
    schema = {"type": "integer"}
    value = schema if field == "json_schema" else {"type": "json_schema", "schema": schema}
    assert BlockSurface().engine_request(request(**{field: value}), None).json_schema == '{"type": "integer"}'


def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "system", "content": [text("Be brief."), text("Be kind.")]},
        user(text("Weather?")),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "text": "I could"},
                {"type": "thinking", "text": "look."},
                text("Let me see."),
                {"type": "tool_use", "tool_call_id": "c1", "name": "w", "input": {"at": "here"}},
                {"type": "tool_use", "tool_call_id": "c2", "name": "t", "input": {}},
            ],
        },
        user(
            text("Before."),
            {"type": "tool_result", "tool_call_id": "c1", "content": [text("sun"), text("24 °C")]},
            {"type": "tool_result", "tool_call_id": "c2", "content": []},
            text("After."),
        ),
        {"role": "assistant", "content": [text("Sunny.")]},
    ]
    calls = (ToolCall("c1", "w", '{"at": "here"}'), ToolCall("c2", "t", "{}"))
    assert conversation(request(messages=messages)) == [
        Message("system", "Be brief.\nBe kind."),
        Message("user", "Weather?"),
        Message("assistant", "Let me see.", thinking="I could\nlook.", tool_calls=calls),
        Message("user", "Before."),
        Message("tool", "sun\n24 °C", tool_call_id="c1"),
        Message("tool", "", tool_call_id="c2"),
        Message("user", "After."),
        Message("assistant", "Sunny."),
    ]


def test_attachments_stand_where_their_blocks_do() -> None:
    attached = [
        {"kind": "image", "id": "i", "width": 1, "height": 1, "bytes": "AAEC"},
        {"kind": "image", "id": "p", "mime": "image/png", "bytes": "iVA="},
        {"kind": "audio", "id": "a", "sample_rate": 16000, "bytes": "AACAPw=="},
        {"kind": "text", "id": "t", "bytes": "w6k="},
    ]
    blocks = [
        {"type": "image", "attachment_id": "i"},
        text("and"),
        {"type": "text", "attachment_id": "t"},
        {"type": "audio", "attachment_id": "a"},
        {"type": "image", "attachment_id": "p"},
    ]
    (message,) = conversation(request(messages=[user(*blocks)], attachments=attached))
    rgb, words, sound, png = message.content
    assert words == "and\né"
    assert (facts(rgb), facts(sound), facts(png)) == (
        ("image", b"\0\1\2", "", 1, 1, 0),
        ("audio", b"\0\0\x80?", "", 0, 0, 16000),
        ("image", b"\x89P", "image/png", 0, 0, 0),
    )


def facts(media: Any) -> tuple[str, bytes, str, int, int, int]:
    assert isinstance(media, Media)
    return media.kind, bytes(media.data), media.mime, media.width, media.height, media.sample_rate


def test_a_result_may_show_pictures() -> None:
    use = {"type": "tool_use", "tool_call_id": "c", "name": "f", "input": {}}
    seen = {"type": "tool_result", "tool_call_id": "c", "content": [{"type": "image", "attachment_id": "i"}]}
    outer = {"type": "tool_result", "tool_call_id": "c", "content": [text("see:"), seen]}
    image = {"kind": "image", "id": "i", "width": 1, "height": 1, "bytes": "AAEC"}
    messages = [{"role": "assistant", "content": [use]}, user(outer)]
    got = request(messages=messages, attachments=[image])
    result = conversation(got)[-1]
    assert (result.role, result.tool_call_id) == ("tool", "c")
    assert result.content[0] == "see:"
    assert isinstance(result.content[1], Media)
    assert BlockSurface().needs(got) == {"v2", "vision"}


def test_capabilities_that_a_request_needs() -> None:
    needs = BlockSurface().needs
    tool = {"name": "f", "description": "", "input_schema": {}}
    image = {"kind": "image", "id": "i", "width": 1, "height": 1, "bytes": "AAEC"}
    sound = {"kind": "audio", "id": "a", "sample_rate": 16000, "bytes": "AACAPw=="}
    assert needs(request()) == {"v2"}
    assert needs(request(tools=[tool])) == {"v2", "tools"}
    assert needs(request(tools=[tool], tool_choice="none")) == {"v2"}
    assert needs(request(attachments=[image, sound])) == {"v2"}
    blocks = [{"type": "image", "attachment_id": "i"}, {"type": "audio", "attachment_id": "a"}]
    assert needs(request(messages=[user(*blocks)], attachments=[image, sound])) == {"v2", "vision", "audio"}


# And back.

CALL = ToolUse(ToolCall("c1", "f", '{"k": 1}'))
DONE = Done("end", Usage(31, 4))


def written(writer: BlockWriter, *events: Text | Thinking | ToolUse, done: Done = DONE) -> list[list[Any]]:
    """The frames of each write."""
    writes = [*map(writer.event, events), writer.end(done, Mock(), None)]
    return [[json.loads(line) for line in data.splitlines()] for data in writes]


def block(**fields: object) -> dict[str, object]:
    return {"type": "frame", "id": "q", "block": fields}


END = {
    "type": "done", "id": "q", "usage": {"input_tokens": 31, "output_tokens": 4}, "stop_reason": "end_turn",
    "backend": "mock", "model": "mock",
}  # fmt: skip
USE = block(type="tool_use", tool_call_id="c1", name="f", input={"k": 1})


def test_each_event_is_a_frame() -> None:
    events = [Thinking("hm"), Text('a"'), Text("b\n"), CALL, Text("c")]
    assert written(BlockWriter(request()), *events) == [
        [block(type="thinking", delta="hm")],
        [block(type="text", delta='a"')],
        [block(type="text", delta="b\n")],
        [USE],
        [block(type="text", delta="c")],
        [END],
    ]


def test_without_stream_each_block_is_a_frame() -> None:
    events = [Thinking("h"), Thinking("m"), Text('a"'), Text("b\n"), CALL, CALL, Text("c"), Text("d")]
    assert written(BlockWriter(request(stream=False)), *events) == [
        [],
        [],
        [block(type="thinking", delta="hm")],
        [],
        [block(type="text", delta='a"b\n'), USE],
        [USE],
        [],
        [],
        [block(type="text", delta="cd"), END],
    ]


def test_the_whole_text_of_a_backend_with_a_fast_path() -> None:
    done = Done("end", Usage(31, 4), content=b'a\\"\\n')
    assert written(BlockWriter(request(stream=False)), done=done) == [[block(type="text", delta='a"\n'), END]]
    assert written(BlockWriter(request()), done=done) == [[END]]
    assert written(BlockWriter(request(stream=False)), done=Done("end", Usage(31, 4), content=b"")) == [[END]]


def test_the_template_makes_the_frame_of_a_text() -> None:
    template = BlockWriter(request()).template
    assert template is not None
    assert json.loads(template.prefix + b"Hel" + template.suffix) == block(type="text", delta="Hel")
    assert BlockWriter(request(stream=False)).template is None


@cases(
    "reason, said",
    [
        ("end", "end_turn"), ("length", "max_tokens"), ("tool_use", "tool_use"), ("stop", "stop_sequence"),
        ("cancelled", "cancelled"), ("error", "error"),
    ],
)  # fmt: skip
def test_stop_reasons(reason: Any, said: str) -> None:
    ((end,),) = written(BlockWriter(request()), done=Done(reason, Usage(1, 1)))
    assert end["stop_reason"] == said


def test_an_unsatisfied_tool_choice_is_reported() -> None:
    ((end,),) = written(BlockWriter(request()), done=Done("length", Usage(1, 1), tool_missing=True))
    assert end["tool_choice_unsatisfied"] is True
