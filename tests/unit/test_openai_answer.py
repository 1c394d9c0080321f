"""Answers that are assembled from the streams of servers with OpenAI's API, including unusual streams."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from inferd.engine.events import Done, Event, Text, Thinking, ToolUse, Usage
from inferd.engine.remote.http import UNREADABLE
from inferd.engine.remote.openai_answer import Answer
from inferd.engine.requests import ToolCall
from inferd.errors import BackendError, InferdError, InvalidRequest, ToolCallMalformed, Unavailable
from tests.cases import cases
from tests.remote_server import delta, finish, usage


def read(*pieces: dict[str, Any], tool_required: bool = False) -> list[Event]:
    answer = Answer("far", tool_required=tool_required)
    events = [event for piece in pieces for event in answer.feed(json.dumps(piece))]
    return events + list(answer.end())


def call(**fields: Any) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return delta(tool_calls=[{**fields, "function": function}])


def calls(*pieces: dict[str, Any], reason: str = "tool_calls") -> list[ToolCall]:
    return [event.call for event in read(*pieces, finish(reason)) if isinstance(event, ToolUse)]


def last(*pieces: dict[str, Any], **options: bool) -> Done:
    done = read(*pieces, **options)[-1]
    assert isinstance(done, Done)
    return done


def test_text_and_thinking_in_their_order() -> None:
    assert read(
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(reasoning="so"),
        delta(content=""),
        delta(content="Hel", tool_calls=None),
        delta(content="lo"),
        finish("stop"),
        usage(7, 4, cached=2),
    ) == [Thinking("hm"), Thinking("so"), Text("Hel"), Text("lo"), Done("end", Usage(7, 4, 2))]


@cases(
    "reason, meaning",
    [
        ("stop", "end"),
        ("length", "length"),
        ("content_filter", "error"),
        ("eos", "end"),
        ("tool_calls", "end"),
    ],
)
def test_stop_reasons(reason: str, meaning: str) -> None:
    assert last(delta(content="x"), finish(reason)).stop_reason == meaning


def test_without_a_finish_reason_the_answer_does_not_end() -> None:
    assert read(delta(content="x"), usage(1, 1)) == [Text("x")]


def test_without_usage_each_chunk_counts_as_a_token() -> None:
    assert last(delta(content="a"), delta(reasoning="b"), finish("stop")).usage == Usage(0, 2)


def test_counts_may_be_null() -> None:
    counts = {"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": None}
    assert last(finish("stop"), {"choices": None, "usage": counts}).usage == Usage(3, 0)


def test_only_the_first_choice_is_used() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]}
    assert read(delta(content="yes"), other, finish("stop"))[:1] == [Text("yes")]
    assert read(other) == []


def test_a_call_in_chunks_is_assembled() -> None:
    events = read(
        call(index=0, id="a", name="look", arguments=""),
        call(index=0, arguments='{"ci'),
        call(index=0, id="a", name="look", arguments='ty":1}'),
        finish("tool_calls"),
    )
    assert events[0] == ToolUse(ToolCall("a", "look", '{"city":1}'))
    assert isinstance(events[1], Done)
    assert events[1].stop_reason == "tool_use"


def test_several_calls_mixed() -> None:
    assert calls(
        call(index=0, id="a", name="f", arguments="{"),
        call(index=1, id="b", name="g", arguments="{}"),
        call(index=0, arguments="}"),
    ) == [ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}")]


def test_calls_that_share_an_index_differ_by_their_ids() -> None:
    found = calls(
        call(index=0, id="a", name="f", arguments="{}"), call(index=0, id="b", name="f", arguments="{}")
    )
    assert [one.id for one in found] == ["a", "b"]


def test_calls_without_an_index() -> None:
    found = calls(
        call(id="a", name="f", arguments='{"x":'), call(arguments="1}"), call(name="g", arguments="{}")
    )
    assert [(one.name, one.arguments) for one in found] == [("f", '{"x":1}'), ("g", "{}")]


def test_arguments_may_be_an_object_or_nothing() -> None:
    assert calls(call(index=0, id="a", name="f", arguments={"x": 1})) == [ToolCall("a", "f", '{"x":1}')]
    assert calls(call(index=0, id="a", name="f")) == [ToolCall("a", "f", "{}")]


def test_a_call_without_an_id_gets_one() -> None:
    first, second = calls(call(index=0, name="f"), call(index=1, name="f"))
    assert first.id != second.id
    assert first.id.startswith("tc-")


def test_calls_decide_the_reason_where_the_server_says_stop() -> None:
    assert last(call(index=0, id="a", name="f"), finish("stop")).stop_reason == "tool_use"


@pytest.mark.parametrize(
    "broken",
    [{"name": "f", "arguments": '{"x":'}, {"name": "f", "arguments": "[1]"}, {"arguments": "{}"}],
    ids=["cut", "no object", "no name"],
)
def test_a_call_that_cannot_be_read(broken: dict[str, str]) -> None:
    with pytest.raises(ToolCallMalformed) as raised:
        read(call(index=0, id="a", **broken), finish("tool_calls"))
    assert not raised.value.counts


def test_a_call_cut_by_the_budget_is_left_out() -> None:
    events = read(
        call(index=0, id="a", name="f", arguments="{}"),
        call(index=1, id="b", name="f", arguments='{"x'),
        finish("length"),
    )
    assert events[:-1] == [ToolUse(ToolCall("a", "f", "{}"))]
    assert isinstance(events[-1], Done)
    assert events[-1].stop_reason == "length"


def test_a_missing_required_call_is_reported() -> None:
    assert last(delta(content="no"), finish("stop"), tool_required=True).tool_missing
    assert not last(call(index=0, name="f"), finish("stop"), tool_required=True).tool_missing
    assert not last(delta(content="no"), finish("stop")).tool_missing


@cases(
    "error, kind, message",
    [
        (
            {"code": 400, "message": "too long"},
            InvalidRequest,
            "far refused the request with status 400: too long",
        ),
        (
            {"code": 429, "type": "slow_down", "message": "secret"},
            Unavailable,
            "far answered with status 429 (slow_down); it says: secret",
        ),
        ({"code": 503, "type": "down", "at": 10**30}, Unavailable, "far answered with status 503 (down)"),
        (
            {"code": "overloaded", "message": "secret"},
            Unavailable,
            "far broke off its answer (overloaded)",
        ),
        ("secret", Unavailable, "far broke off its answer"),
    ],
)
def test_an_error_in_the_stream(error: Any, kind: type[InferdError], message: str) -> None:
    with pytest.raises(BackendError if kind is Unavailable else kind) as raised:
        read(delta(content="x"), {"error": error})
    assert type(raised.value) is kind
    assert str(raised.value) == message


@cases(
    "data",
    [
        "",
        "null",
        "[]",
        "{",
        '{"choices":1}',
        '{"choices":[{"delta":{"content":1}}]}',
        '{"error":' + "[" * 100_000,
    ],
)
def test_a_malformed_chunk(data: str) -> None:
    with pytest.raises(UNREADABLE):
        list(Answer("far", tool_required=False).feed(data))


@cases(
    "usage, counted",
    [
        (None, Usage(0, 1)),
        ([], Usage(0, 1)),
        ({"prompt_tokens": None, "completion_tokens": None}, Usage(0, 1)),
        ({"prompt_tokens": 3.0, "completion_tokens": 7.0}, Usage(3, 7)),
        ({"prompt_tokens": -1, "completion_tokens": 10**20}, Usage(0, 1)),
        ({"prompt_tokens": "3", "completion_tokens": 2, "prompt_tokens_details": None}, Usage(0, 2)),
    ],
)
def test_counts_are_optional(usage: object, counted: Usage) -> None:
    events = read(delta(content="x"), {"usage": usage}, finish("stop"))
    assert events[-1] == Done("end", counted)


def test_the_mark_of_the_end_ends_an_answer() -> None:
    answer = Answer("far", tool_required=False)
    events = [*answer.feed(orjson.dumps(delta(content="x")).decode()), *answer.feed("[DONE]"), *answer.end()]
    assert events == [Text("x"), Done("end", Usage(0, 1))]


def test_an_answer_may_come_unstreamed() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call]}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert read(whole) == [Text("x"), ToolUse(ToolCall("c", "f", "{}")), Done("tool_use", Usage(0, 1))]
