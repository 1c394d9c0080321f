"""An answer in the next prompt keeps its tokens, even if the client or the template rewrites its text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from inferd.engine.events import Done, Text, ToolUse
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.past.answers import Answers, Turn
from inferd.engine.requests import GenerateRequest, Message, Tool, ToolCall
from tests.requests import generate_request
from tests.tiny_llama import write_llama
from tests.unit.test_llamacpp import backend

TEMPLATE = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"
PROPERTIES = {
    "path": {"type": "string", "maxLength": 12},
    "line": {"enum": [1, 2]},
    "place": {"enum": [{"x": 2.5}]},
}
EDIT = {
    "type": "object",
    "properties": PROPERTIES,
    "required": list(PROPERTIES),
    "additionalProperties": False,
}
TOOLS = (Tool("edit_file", "Changes a file.", json.dumps(EDIT)),)
SYSTEM = Message("system", "You are an agent. " + "Work step by step. " * 20)

Manner = Callable[[Message], Message]


def as_it_came(message: Message) -> Message:
    return message


def in_other_words(message: Message) -> Message:
    """The same answers with arguments in another order, with spaces, whole numbers as floats; other ids; text
    in parts."""

    def floats(value: object) -> object:
        if isinstance(value, dict):
            return {key: floats(value[key]) for key in sorted(value, reverse=True)}
        return float(value) if type(value) is int and abs(value) < 2**53 else value

    calls = [
        ToolCall(f"call_{n}", call.name, json.dumps(floats(json.loads(call.arguments)), indent=1))
        for n, call in enumerate(message.tool_calls)
    ]
    text = str(message.content).strip()
    return replace(message, content=(text[:3], text[3:]) if text else "", tool_calls=tuple(calls))


async def answer(engine: LlamaCpp, request: GenerateRequest) -> tuple[Message, Done]:
    text, calls = "", []
    async for event in await engine.generate(request):
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, ToolUse):
            calls.append(event.call)
        elif isinstance(event, Done):
            if event.content is not None:
                text = json.loads(b'"' + event.content + b'"')
            return Message("assistant", text, tool_calls=tuple(calls)), event
    raise AssertionError("no end")


@pytest.mark.parametrize("manner", [as_it_came, in_other_words])
async def test_an_agent_session_computes_only_new_tokens(manner: Manner, tmp_path: Path) -> None:
    await session(tmp_path, manner, {"tools": TOOLS, "tool_choice": "required"})


async def test_a_session_with_schemas_computes_only_new_tokens(tmp_path: Path) -> None:
    await session(tmp_path, in_other_words, {"json_schema": json.dumps(EDIT)})


async def session(directory: Path, manner: Manner, more: Mapping[str, object]) -> None:
    """Four turns, each answered by the results of its calls, or by the user."""
    path = write_llama(directory / "model.gguf", eager=True, whole=True)
    history: tuple[Message, ...] = (SYSTEM, Message("user", "Mend the parser."))
    held = 0
    async with backend(path, n_parallel=1, n_ctx=8192, chat_template=TEMPLATE.read_text()) as engine:
        for turn in range(4):
            asked = generate_request(
                messages=history, typed=True, max_tokens=1000, temperature=1.0, seed=turn, **more
            )
            said, done = await answer(engine, asked)
            assert done.stop_reason in ("end", "tool_use")
            if turn > 0:
                computed = done.usage.prompt_tokens - done.usage.cached_tokens
                assert computed <= 1.02 * (done.usage.prompt_tokens - held) + 2
            held = done.usage.prompt_tokens + done.usage.completion_tokens
            user = Message("user", f"And now line {turn}.")
            again = manner(said)
            results = [Message("tool", "ok", tool_call_id=call.id) for call in again.tool_calls]
            history += (again, *results, *([user] if turn == 1 or not results else []))


def request(*messages: Message, **more: object) -> GenerateRequest:
    return generate_request(messages=(Message("user", "hi"), *messages), **more)


CALLED = Message("assistant", " So: ", tool_calls=(ToolCall("a", "f", '{"x": 1, "y": [2.0]}'),))


def kept(**more: int) -> Answers:
    answers = Answers(**more)
    turn = Turn(text=[" So", ": "], calls=list(CALLED.tool_calls))
    answers.keep(request(), (10, 99), turn, b"\1\0\0\0")
    return answers


def test_an_answer_is_known_by_its_meaning_and_its_place() -> None:
    answers = kept()
    same = replace(CALLED, content="So:", tool_calls=(ToolCall("b", "f", '{"y":[2],"x":1.0}'),))
    assert answers.of(request(CALLED)) == answers.of(request(same)) == [(10, 99, b"\1\0\0\0")]
    for other in (
        replace(CALLED, content="So."),
        replace(CALLED, tool_calls=()),
        replace(CALLED, tool_calls=(ToolCall("a", "f", '{"x": 1, "y": [3]}'),)),
        replace(CALLED, tool_calls=(ToolCall("a", "f", '{"x": true, "y": [2.0]}'),)),
        replace(CALLED, thinking="hm"),
    ):
        assert answers.of(request(other)) == []
    assert answers.of(request(Message("user", "more"), CALLED)) == []
    assert answers.of(request(CALLED, scope="unix:7")) == []


def test_the_budget_keeps_the_most_recently_used_answers() -> None:
    answers = Answers(3 * 300)
    asked = [request(scope=str(n)) for n in range(4)]
    for n in (0, 1, 2):
        answers.keep(asked[n], (1, 1), Turn(text=["yes"]), bytes(100))
    said = Message("assistant", "yes")
    again = [request(said, scope=str(n)) for n in range(4)]
    assert answers.of(again[0])
    answers.keep(asked[3], (1, 1), Turn(text=["yes"]), bytes(100))
    assert [bool(answers.of(each)) for each in again] == [True, False, True, True]
