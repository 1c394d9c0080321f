"""v2 with the real default model: text, tools, structured answers, tool results that are sent back, and the
ends of answers."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess, Wire
from tests.demo_model import demo_model

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
WEATHER = {"name": "weather", "description": "The weather of the days to come.", "input_schema": SCHEMA}
CLOCK = {"name": "clock", "description": "The time.", "input_schema": {"type": "object", "properties": {}}}
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        options = {"backend": "llamacpp", "model_path": demo_model(), "n_ctx": 1024, "threads": 1}
        process = DaemonProcess(Path(directory) / "0", options, {}).wait_ready()
        with process.connect("v2") as connected:
            yield connected
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.end() == []


def user(*blocks: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks],
    }


def ask(
    wire: Wire, *turns: dict[str, Any], raw: bytes = b"", **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sends a request; returns the blocks of the frames, and the last frame."""
    wire.send(json.dumps({"id": "q", "messages": turns, **GREEDY, **fields}).encode() + b"\n" + raw)
    *frames, last = wire.frames()
    return [frame["block"] for frame in frames], last


def text(blocks: list[dict[str, Any]]) -> str:
    assert {block["type"] for block in blocks} <= {"text"}
    return "".join(block["delta"] for block in blocks)


def test_the_same_text_as_v1_with_and_without_deltas(wire: Wire) -> None:
    deltas, done = ask(wire, user("Say hello."), max_tokens=20)
    assert len(deltas) > 5
    assert done["usage"]["output_tokens"] == 20
    assert done["stop_reason"] == "max_tokens"
    (whole,), last = ask(wire, user("Say hello."), max_tokens=20, stream=False)
    assert whole["delta"] == text(deltas)
    assert last["usage"].pop("cached_tokens") > 0
    assert last["usage"] == done["usage"]
    v1 = Path(wire.sock.getpeername()).with_name("infer.sock")
    with Wire(v1) as plain:
        plain.send({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 20, **GREEDY})
        assert [*plain.frames()][-1]["content"] == whole["delta"]


@pytest.mark.parametrize("choice", ["required", {"name": "weather"}])
def test_a_tool_that_must_be_called_is_called(wire: Wire, choice: Any) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    question = user("What will the weather in Paris be for 3 days?")
    blocks, done = ask(wire, question, tools=tools, tool_choice=choice, max_tokens=100)
    (call,) = blocks
    assert list(call) == ["type", "tool_call_id", "name", "input"]
    assert (call["type"], call["name"]) == ("tool_use", "weather")
    assert call["tool_call_id"]
    assert isinstance(call["input"]["city"], str)
    assert isinstance(call["input"]["days"], int)
    assert done["stop_reason"] == "tool_use"
    assert "tool_choice_unsatisfied" not in done


def test_a_budget_that_ends_before_the_call(wire: Wire) -> None:
    blocks, done = ask(wire, user("Weather?"), tools=[WEATHER], tool_choice="required", max_tokens=2)
    assert blocks == []
    assert done["stop_reason"] == "max_tokens"
    assert done["tool_choice_unsatisfied"] is True


def test_a_call_and_its_result_are_replayed(wire: Wire) -> None:
    question = user("What is the weather in Oslo?")
    call = {"type": "tool_use", "tool_call_id": "c1", "name": "weather", "input": {"city": "Oslo", "days": 1}}
    result = {"type": "tool_result", "tool_call_id": "c1", "content": [{"type": "text", "text": "Snow."}]}
    alone, first = ask(wire, question, tools=[WEATHER], max_tokens=1)
    _, last = ask(
        wire, question, {"role": "assistant", "content": [call]}, user(result), tools=[WEATHER], max_tokens=30
    )
    assert last["type"] == "done"
    assert last["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 10
    assert alone is not None


@pytest.mark.parametrize(
    "how",
    [
        {"json_schema": SCHEMA},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"json_schema": SCHEMA, "stream": False},
        {"json_schema": SCHEMA, "tools": [CLOCK], "tool_choice": "none"},
    ],
)
def test_an_answer_follows_its_schema(wire: Wire, how: dict[str, Any]) -> None:
    blocks, done = ask(wire, user("Name a city and a number of days, in JSON."), max_tokens=120, **how)
    found = json.loads(text(blocks))
    assert isinstance(found["city"], str)
    assert isinstance(found["days"], int)
    assert done["stop_reason"] == "end_turn"


def test_any_json_object(wire: Wire) -> None:
    form = {"type": "json_object"}
    blocks, done = ask(wire, user("Give an empty JSON object."), max_tokens=200, response_format=form)
    if done["stop_reason"] == "end_turn":
        assert isinstance(json.loads(text(blocks)), dict)
    assert text(blocks).startswith("{")


def test_a_grammar(wire: Wire) -> None:
    blocks, done = ask(wire, user("Yes or no?"), grammar='root ::= "yes" | "no"', max_tokens=20)
    assert text(blocks) in ("yes", "no")
    assert done["stop_reason"] == "end_turn"


def test_a_stop_string_ends_the_answer(wire: Wire) -> None:
    blocks, _ = ask(wire, user("Count to ten."), max_tokens=40)
    before = text(blocks)
    stop = before[8:12]
    blocks, done = ask(wire, user("Count to ten."), max_tokens=40, stop=[stop])
    assert text(blocks) == before[: before.index(stop)]
    assert done["stop_reason"] == "stop_sequence"


def test_a_text_after_the_line_is_read(wire: Wire) -> None:
    inline, told = ask(wire, user("Repeat:\nhello\nworld"), max_tokens=12)
    note = {"kind": "text", "id": "t", "size": 11}
    block = {"type": "text", "attachment_id": "t"}
    blocks, done = ask(wire, user("Repeat:", block), raw=b"hello\nworld", attachments=[note], max_tokens=12)
    for usage in (done["usage"], told["usage"]):
        usage.pop("cached_tokens", None)
    assert (text(blocks), done["usage"]) == (text(inline), told["usage"])


def test_an_image_for_a_model_without_vision_is_refused(wire: Wire) -> None:
    image = {"kind": "image", "id": "i", "width": 1, "height": 1, "size": 3}
    block = {"type": "image", "attachment_id": "i"}
    _, refused = ask(wire, user("What is this?", block), raw=b"\n\n\n", attachments=[image])
    assert refused["code"] == "attachment_unsupported"
    assert ask(wire, user("Say hello."), max_tokens=1)[1]["type"] == "done"


def test_a_prompt_beyond_the_context_names_both_numbers(wire: Wire) -> None:
    _, refused = ask(wire, user("word " * 3000))
    assert refused["code"] == "invalid_request"
    assert "1024" in refused["message"]
    assert "30" in refused["message"]
