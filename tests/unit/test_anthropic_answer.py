"""Answers of Anthropic's Messages API, event by event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.engine.events import Done, Event, Text, Thinking, ToolUse, Usage
from inferd.engine.remote.anthropic_answer import Answer
from inferd.engine.requests import Message, Tool, ToolCall
from inferd.errors import BackendInternal, InferdError, InvalidRequest, ToolCallMalformed, Unavailable
from tests.bedrock_server import answer, end
from tests.cases import cases
from tests.requests import generate_request

HI = Message("user", "hi")
WEATHER = Tool("weather", "The weather.", '{"type":"object","properties":{"at":{"type":"string"}}}')


def read(*events: dict[str, Any] | bytes, **request: Any) -> list[Event]:
    reading = Answer(generate_request(messages=(HI,), **request))
    return [
        got
        for event in events
        for got in reading.feed(event if isinstance(event, bytes) else json.dumps(event).encode())
    ]


def call_events(index: int, *pieces: str) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": f"c{index}", "name": "weather", "input": {}}
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *(
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": index},
    ]


def test_a_text() -> None:
    assert read(*answer("Hel", "lo")) == [Text("Hel"), Text("lo"), Done("end", Usage(9, 2))]


@cases(
    "said, reason",
    [
        ("end_turn", "end"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_use"),
        ("model_context_window_exceeded", "length"), ("refusal", "error"), ("something_new", "end"),
    ],
)  # fmt: skip
def test_stop_reasons(said: str, reason: str) -> None:
    done = read(*answer("a", stop_reason=said))[-1]
    assert isinstance(done, Done)
    assert done.stop_reason == reason


def test_thinking_is_returned_and_its_signature_skipped() -> None:
    deltas = [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "EqQBCgIYAhIM"},
    ]
    got = read(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "redacted_thinking", "data": "E"},
        },
        *end("end_turn", 5),
    )
    assert got == [Thinking("hm"), Done("end", Usage(0, 5))]


def test_calls_are_gathered_by_index() -> None:
    first, second = call_events(1, "", '{"at":', '"here"}'), call_events(2)
    got = read(first[0], second[0], *first[1:3], second[1], *first[3:], *end("tool_use", 3), tools=(WEATHER,))
    assert got == [
        ToolUse(ToolCall("c2", "weather", "{}")),
        ToolUse(ToolCall("c1", "weather", '{"at":"here"}')),
        Done("tool_use", Usage(0, 3)),
    ]


@pytest.mark.parametrize("arguments", ['{"at":', "[]", "nonsense"])
def test_a_call_that_is_not_an_object_is_an_error(arguments: str) -> None:
    with pytest.raises(ToolCallMalformed):
        read(*call_events(0, arguments), *end("tool_use", 3))


def test_a_call_that_the_budget_cut_off_is_missing() -> None:
    got = read(*call_events(0, '{"at":'), *end("max_tokens", 3), tool_choice="required")
    assert got == [Done("length", Usage(0, 3), tool_missing=True)]


@pytest.mark.parametrize("choice", [{"tool_choice": "required"}, {"tool_name": "weather"}])
def test_a_required_call_is_not_missing_once_made(choice: dict[str, str]) -> None:
    done = read(*call_events(0, "{}"), *end("tool_use", 3), **choice)[-1]
    assert isinstance(done, Done)
    assert not done.tool_missing
    done = read(*answer("no"), **choice)[-1]
    assert isinstance(done, Done)
    assert done.tool_missing


def test_tokens_of_the_cache_are_tokens_of_the_prompt() -> None:
    usage = {
        "input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 40,
        "cache_creation_input_tokens": 500, "service_tier": "standard",
    }  # fmt: skip
    got = read({"type": "message_start", "message": {"usage": usage}}, *end("end_turn", 7))
    assert got == [Done("end", Usage(543, 7, 40))]


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        ("invalid_request_error", InvalidRequest, "too long"),
        ("overloaded_error", Unavailable, "overloaded_error"),
        ("api_error", Unavailable, "api_error"),
    ],
)
def test_a_reported_fault(kind: str, expected: type[InferdError], words: str) -> None:
    with pytest.raises(expected, match=words):
        read({"type": "error", "error": {"type": kind, "message": "too long"}})


def test_a_reported_reason_is_one_line_that_ends() -> None:
    with pytest.raises(InvalidRequest, match=r"refused the request: a b x{496}…$"):
        read({"type": "error", "error": {"type": "invalid_request_error", "message": "a\nb " + "x" * 9999}})


def test_unknown_events_are_skipped() -> None:
    assert read(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "new_block", "x": 1}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "new_event", "what": [1]},
    ) == []  # fmt: skip


@cases(
    "data",
    [
        b"",
        b"null",
        b"{",
        b"{}",
        b'{"type":"a","index":"x"}',
        b'{"type":"a","usage":[]}',
        b'{"type":"a","usage":{"input_tokens":-1}}',
        b'{"type":"a","more":' + b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_malformed_event_is_an_error(data: bytes) -> None:
    with pytest.raises(BackendInternal, match="Messages API"):
        read(data)
