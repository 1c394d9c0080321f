"""Requests in the form of OpenAI's API."""

from __future__ import annotations

import base64
import io
from typing import Any

import orjson
import pytest
from PIL import Image

from inferd.engine.remote import openai_request
from inferd.engine.requests import Media, Message, Tool, ToolCall
from tests.requests import generate_request

HI = (Message("user", "hi"),)
LOOK = Tool("look", "Looks.", '{"type":"object","properties":{"at":{"type":"string"}}}')
TIME = Tool("time", "", '{"type":"object"}')


def body(**fields: Any) -> dict[str, Any]:
    request = generate_request(**{"typed": True, **fields})
    made: dict[str, Any] = orjson.loads(openai_request.chat("m", request, top_k=True))
    return made


BARE = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def test_absent_fields_are_not_sent() -> None:
    assert body() == BARE


def test_an_answer_in_text_has_an_end() -> None:
    assert body(typed=False) == {**BARE, "max_tokens": 1000}
    assert body(typed=False, max_tokens=7)["max_tokens"] == 7


def test_given_fields_are_sent() -> None:
    given = {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "seed": 0,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "grammar": 'root ::= "a"',
    }
    assert body(**given, stop=("x", "y")) == {**BARE, **given, "stop": ["x", "y"]}


def test_top_k_is_for_servers_that_know_it() -> None:
    request = generate_request(typed=True, top_k=5)
    assert orjson.loads(openai_request.chat("m", request)) == BARE


def test_schemas_are_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert body(json_schema=orjson.dumps(schema).decode())["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def test_any_object_is_json_mode() -> None:
    assert body(json_schema='{"type": "object"}')["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("thinking", [True, False])
def test_the_switch_for_thinking_is_sent_when_it_was_given(thinking: bool) -> None:
    assert body(thinking=thinking)["chat_template_kwargs"] == {"enable_thinking": thinking}
    assert "chat_template_kwargs" not in body(thinking=thinking, typed=False)


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_tools(choice: str) -> None:
    made = body(tools=(LOOK, TIME), tool_choice=choice)
    assert made["tool_choice"] == choice
    assert [tool["function"]["name"] for tool in made["tools"]] == ["look", "time"]
    assert made["tools"][0] == {
        "type": "function",
        "function": {"name": "look", "description": "Looks.", "parameters": orjson.loads(LOOK.schema)},
    }


def test_a_choice_by_name_leaves_no_other_tool() -> None:
    made = body(tools=(LOOK, TIME), tool_name="time")
    assert [tool["function"]["name"] for tool in made["tools"]] == ["time"]
    assert made["tool_choice"] == "required"


def test_a_conversation_with_calls_and_thoughts() -> None:
    calls = (ToolCall("c1", "look", '{"at":"it"}'),)
    history = (
        Message("system", "be brief"),
        Message("user", "look"),
        Message("assistant", "", thinking="hm", tool_calls=calls),
        Message("tool", "it is red", tool_call_id="c1"),
        Message("assistant", "Wait", tool_calls=calls),
    )
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"it"}'}}
    assert body(messages=history)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "it is red", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Wait", "tool_calls": [call]},
    ]


def test_images_are_data_urls_in_their_places() -> None:
    pixels = bytes(range(18))
    raw = Media("image", memoryview(pixels), width=3, height=2)
    file = Media("image", memoryview(b"\xff\xd8jpeg"), mime="image/jpeg")
    made = body(messages=(Message("user", ("see", raw, "and", file)),))
    see, first, and_, second = made["messages"][0]["content"]
    assert see == {"type": "text", "text": "see"}
    assert and_ == {"type": "text", "text": "and"}
    encoded = base64.b64encode(b"\xff\xd8jpeg").decode()
    assert second == {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}
    head, _, png = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        assert (picture.format, picture.size, picture.tobytes()) == ("PNG", (3, 2), pixels)
