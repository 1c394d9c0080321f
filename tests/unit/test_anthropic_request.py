"""Requests in the form of Anthropic's Messages API."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from inferd.engine.remote.anthropic_request import request_body
from inferd.engine.requests import Media, Message, Tool, ToolCall
from inferd.errors import AttachmentUnsupported, InvalidRequest
from tests.cases import cases
from tests.requests import generate_request

HI = Message("user", "hi")
WEATHER = Tool("weather", "The weather.", '{"type":"object","properties":{"at":{"type":"string"}}}')


def body(*messages: Message, **more: Any) -> dict[str, Any]:
    request = generate_request(messages=messages or (HI,), **more)
    said: dict[str, Any] = json.loads(request_body(request))
    return said


def conversation(*messages: Message) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = body(*messages)["messages"]
    return turns


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_absent_fields_are_not_sent() -> None:
    assert body() == {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": [text("hi")]}],
    }


def test_every_supported_field_is_sent() -> None:
    said = body(max_tokens=7, temperature=0.0, top_p=0.5, top_k=5, stop=("x", "y"), seed=1, min_p=0.5)
    del said["messages"], said["anthropic_version"]
    assert said == {
        "max_tokens": 7, "temperature": 0.0, "top_p": 0.5, "top_k": 5, "stop_sequences": ["x", "y"],
    }  # fmt: skip
    assert "top_k" not in body(top_k=0)


def test_system_messages_are_one_prompt() -> None:
    said = body(Message("system", "Be brief."), HI, Message("system", ""), Message("system", "Be kind."))
    assert said["system"] == "Be brief.\n\nBe kind."
    assert said["messages"] == [{"role": "user", "content": [text("hi")]}]


def test_turns_alternate_and_empty_texts_are_left_out() -> None:
    assert conversation(
        Message("user", "a"),
        Message("user", "b"),
        Message("assistant", ""),
        Message("user", "c"),
        Message("assistant", "d"),
        Message("user", ""),
    ) == [
        {"role": "user", "content": [text("a"), text("b"), text("c")]},
        {"role": "assistant", "content": [text("d")]},
    ]


def test_a_conversation_without_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no text"):
        body(Message("system", "Be brief."), Message("user", ""))


def test_calls_and_their_results() -> None:
    turns = conversation(
        Message("user", "Weather?"),
        Message(
            "assistant",
            "Let me see.",
            thinking="I could look.",
            tool_calls=(ToolCall("c1", "weather", '{"at":"here"}'), ToolCall("c2", "time", "{}")),
        ),
        Message("user", "Well?"),
        Message("tool", "sun", tool_call_id="c1"),
        Message("tool", "", tool_call_id="c2"),
    )
    assert turns[1:] == [
        {
            "role": "assistant",
            "content": [
                text("Let me see."),
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "here"}},
                {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [text("sun")]},
                {"type": "tool_result", "tool_use_id": "c2"},
                text("Well?"),
            ],
        },
    ]


TOOL = {
    "name": "weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}


@cases(
    "choice, said",
    [
        ({}, {"tools": [TOOL]}),
        ({"tool_choice": "required"}, {"tools": [TOOL], "tool_choice": {"type": "any"}}),
        ({"tool_name": "weather"}, {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}),
        ({"tool_choice": "none"}, {}),
    ],
)
def test_the_choice_of_tools(choice: dict[str, str], said: dict[str, Any]) -> None:
    got = body(tools=(WEATHER,), typed=True, **choice)
    assert {key: got[key] for key in got if key.startswith("tool")} == said


def test_tools_of_the_history_are_named_even_if_none_may_be_called() -> None:
    got = body(
        HI,
        Message("assistant", "", tool_calls=(ToolCall("c1", "weather", "{}"),)),
        Message("tool", "sun", tool_call_id="c1"),
        tools=(Tool("weather", "", "{}"),),
        tool_choice="none",
    )
    assert got["tools"] == [{"name": "weather", "input_schema": {}}]
    assert got["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize(
    ("given", "limit", "budget"), [(None, 2048, 1024), (1025, 1025, 1024), (8000, 8000, 4000)]
)
def test_thinking_gets_its_share_of_the_budget(given: int | None, limit: int, budget: int) -> None:
    got = body(max_tokens=given, thinking=True)
    assert got["max_tokens"] == limit
    assert got["thinking"] == {"type": "enabled", "budget_tokens": budget}


@pytest.mark.parametrize("thinking", [None, False])
def test_thinking_is_not_asked_for(thinking: bool | None) -> None:
    assert "thinking" not in body(thinking=thinking)


def test_thinking_needs_room() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens is 1024"):
        body(max_tokens=1024, thinking=True)


def test_the_result_of_a_tool_is_answered_without_thinking() -> None:
    """The API requires the signed thoughts before the call, and the signature was not kept."""
    called = Message("assistant", "", thinking="hm", tool_calls=(ToolCall("c1", "weather", "{}"),))
    got = body(HI, called, Message("tool", "sun", tool_call_id="c1"), tools=(WEATHER,), thinking=True)
    assert "thinking" not in got
    assert got["max_tokens"] == 1024


def test_a_schema_is_passed_on() -> None:
    got = body(json_schema='{"type":"object"}')
    assert got["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


def test_a_grammar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="grammar"):
        body(grammar='root ::= "a"')


def test_an_encoded_image_is_sent_unchanged() -> None:
    picture = Media("image", memoryview(b"\x89PNG..."), mime="image/png")
    turns = conversation(Message("user", ("Look:", picture, "What is it?")))
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG...").decode()}
    content = [text("Look:"), {"type": "image", "source": source}, text("What is it?")]
    assert turns == [{"role": "user", "content": content}]


def test_pixels_become_a_file_also_in_a_result() -> None:
    pixels = bytes(range(18))
    picture = Media("image", memoryview(pixels), width=3, height=2)
    called = Message("assistant", "", tool_calls=(ToolCall("c1", "weather", "{}"),))
    turns = conversation(HI, called, Message("tool", (picture,), tool_call_id="c1"))
    (image,) = turns[2]["content"][0]["content"]
    assert image["source"]["media_type"] == "image/png"
    with Image.open(io.BytesIO(base64.b64decode(image["source"]["data"]))) as seen:
        assert (seen.size, seen.tobytes()) == ((3, 2), pixels)


def test_a_sound_and_a_picture_in_the_system_prompt_are_refused() -> None:
    with pytest.raises(AttachmentUnsupported, match="audio"):
        body(Message("user", (Media("audio", b"", mime="audio/wav"),)))
    with pytest.raises(InvalidRequest, match="system"):
        body(Message("system", (Media("image", b"", mime="image/png"),)), HI)
