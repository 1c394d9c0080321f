"""The APIs as pure functions: from bodies to turns and options, from events to the bytes of a stream."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from inferd.client.messages import MessageDone, Text, Thinking, ToolUse
from inferd.http import failures
from inferd.http.api import chat, responses
from inferd.http.api.canonical import Turns, text_block
from inferd.http.api.request import Dialect
from inferd.http.failures import BadField, Failure, HttpFailure, UnknownModel
from inferd.http.models import Models
from tests.cases import cases

HI = [{"role": "user", "content": "hi"}]
EVENTS = [Thinking("hm"), Text("Hel"), Text("lo"), ToolUse("tc-1", "f", {"a": 1})]
DONE = MessageDone(
    content=(
        {"type": "thinking", "text": "hm"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "tool_call_id": "tc-1", "name": "f", "input": {"a": 1}},
    ),
    stop_reason="tool_use",
    input_tokens=10,
    output_tokens=5,
    cached_tokens=4,
)


def plain(turns: list[dict[str, Any]]) -> Any:
    """Turns in wire form."""
    return orjson.loads(orjson.dumps(turns))


def events_of(data: bytes) -> list[tuple[str | None, Any]]:
    """The server-sent events in some bytes: name and data."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            data_ = fields["data"]
            found.append((fields.get("event"), data_ if data_ == "[DONE]" else json.loads(data_)))
    return found


def streamed(dialect: Dialect) -> list[tuple[str | None, Any]]:
    told = dialect.start() + b"".join(map(dialect.event, EVENTS)) + dialect.end(DONE)
    return events_of(told)


# The canonical form.


def test_system_texts_at_the_beginning_are_one() -> None:
    turns = Turns()
    turns.system("x-anthropic-billing-header: cc_version=2.1.332.629; cc_entrypoint=sdk-cli;")
    turns.system("A")
    # A system message of several blocks may begin with that line.
    turns.system("x-anthropic-billing-header: cc_version=2.1.332.197;\n\nB")
    turns.user([text_block("hi")])
    assert plain(turns.finish())[0] == {"role": "system", "content": [{"type": "text", "text": "A\n\nB"}]}


def test_a_later_system_text_is_the_users() -> None:
    turns = Turns()
    turns.user([text_block("hi")])
    turns.system("first")
    turns.assistant([text_block("yes")])
    turns.system("second")
    turns.user([text_block("more")])
    texts = [[block["text"] for block in turn["content"]] for turn in turns.finish()]
    assert texts == [["first", "hi"], ["yes"], ["second", "more"]]


def test_results_stay_after_their_calls() -> None:
    turns = Turns()
    turns.user([text_block("hi")])
    turns.call("c1", "f", '{"b":1,"a":2}', "x")
    turns.result("c1", None, [text_block("r")], "x")
    turns.system("note")
    turns.call("c1", "f", "{}", "x")  # some clients number the calls of each turn anew
    turns.result("c1", None, [text_block("s")], "x")
    turned = plain(turns.finish())
    assert list(turned[1]["content"][0]["input"]) == ["b", "a"]
    assert [block["type"] for block in turned[2]["content"]] == ["tool_result", "text"]
    first, second = turned[1]["content"][0]["tool_call_id"], turned[3]["content"][0]["tool_call_id"]
    assert first != second
    assert turned[4]["content"][0]["tool_call_id"] == second


def test_an_impossible_history_is_refused_with_its_place() -> None:
    turns = Turns()
    with pytest.raises(BadField, match=r"messages\[1\] answers no tool call"):
        turns.result("c9", None, [], "messages[1]")
    with pytest.raises(BadField, match="arguments must be the JSON text of an object"):
        turns.call("c1", "f", "[1]", "arguments")


# OpenAI: chat.


def test_fields_that_mean_nothing_here_are_ignored() -> None:
    request = chat.read(
        {
            "model": "m",
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": "a"},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": None, "reasoning_content": "hm", "refusal": None},
            ],
            "tools": [{"type": "web_search"}, {"type": "function", "function": {"name": "f"}}],
            "logit_bias": {},
            "logprobs": False,
            "store": True,
            "metadata": {"a": "b"},
            "modalities": ["text"],
            "top_p": 0,
            "seed": -1,
            "max_tokens": 10**12,
        }
    ).generation
    assert [turn["role"] for turn in request.turns] == ["system", "user", "assistant"]
    assert request.turns[2]["content"] == [{"type": "thinking", "text": "hm"}]
    assert request.options["tools"][0]["input_schema"] == {"type": "object", "properties": {}}
    assert request.options["top_p"] > 0
    assert request.options["seed"] == 2**32 - 1
    assert request.max_tokens == 2**31 - 1


def test_a_schema_with_strict_false_is_lenient() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "array", "uniqueItems": True}}
    for strict, lenient in ((None, None), (True, None), (False, True)):
        given = {**form, "strict": strict}
        requests = (
            chat.read({"model": "m", "messages": HI, "response_format": {**form, "json_schema": given}}),
            responses.read({"model": "m", "input": "hi", "text": {"format": given}}),
        )
        for request in requests:
            assert request.generation.options["response_format"]["schema"] == form["schema"]
            assert request.generation.options.get("schema_lenient") == lenient


@cases(
    "more, param",
    [
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"stop": [1]}, "stop[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_a_wrong_field_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadField) as caught:
        chat.read({"model": "m", "messages": HI, **more})
    assert caught.value.param == param
    assert param in str(caught.value)


def test_the_chunks_of_a_chat() -> None:
    body = {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    told = [data for _, data in streamed(chat.read(body))]
    assert told.pop() == "[DONE]"
    usage = told.pop()
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "hm"}
    assert deltas[4]["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}
    assert deltas[5]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a":1}'}}]
    assert deltas[6] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None] * 6 + ["tool_calls"]


def test_allowed_tools_restrict() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    request = chat.read({"model": "m", "messages": HI, "tools": tools, "tool_choice": allowed}).generation
    assert [tool["name"] for tool in request.options["tools"]] == ["g"]
    assert request.options["tool_choice"] == "required"


# OpenAI: responses.


def test_the_events_of_a_response() -> None:
    dialect = responses.read(
        {"model": "m", "input": "hi", "stream": True, "include": ["reasoning.encrypted_content"]}
    )
    told = streamed(dialect)
    assert [name for name, _ in told] == [data["type"] for _, data in told]
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert [name.removeprefix("response.") for name, _ in told if name] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    items = [data["item"] for name, data in told if name == "response.output_item.done"]
    last = told[-1][1]["response"]
    assert last["output"] == items
    assert last["id"] == told[0][1]["response"]["id"]
    assert items[0]["encrypted_content"] == "hm"
    assert items[1]["content"][0]["text"] == "Hello"
    assert [data["output_index"] for name, data in told if name == "response.output_item.done"] == [0, 1, 2]
    whole = responses.read({"model": "m", "input": "hi"}).whole(DONE)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    assert whole["usage"]["total_tokens"] == 15
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}  # 2 of 15 characters


def test_a_namespace_and_a_custom_tool_come_back() -> None:
    tools = [
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "close"}]},
        {"type": "custom", "name": "patch"},
        {"type": "web_search"},
    ]
    dialect = responses.read({"model": "m", "input": "hi", "tools": tools})
    names = [tool["name"] for tool in dialect.generation.options["tools"]]
    assert names[1:] == ["patch"]
    dialect.event(ToolUse("c1", names[0], {}))
    dialect.event(ToolUse("c2", "patch", {"input": "x"}))
    output = dialect.whole(MessageDone(content=(), stop_reason="tool_use", input_tokens=1, output_tokens=1))[
        "output"
    ]
    assert (output[0]["name"], output[0]["namespace"]) == ("close", "agents")
    assert (output[1]["type"], output[1]["input"]) == ("custom_tool_call", "x")
    again = responses.read(
        {
            "model": "m",
            "tools": tools,
            "input": [
                {"role": "user", "content": "hi"},
                *output,
                {"type": "function_call_output", "call_id": "c1", "output": "done"},
                {
                    "type": "custom_tool_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "y"}],
                },
            ],
        }
    ).generation.turns
    assert [turn["role"] for turn in again] == ["user", "assistant", "user"]
    assert [block["name"] for block in again[1]["content"]] == names


def test_reasoning_message_and_call_are_one_turn() -> None:
    turns = responses.read(
        {
            "model": "m",
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "A"}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "hm"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
        }
    ).generation.turns
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]
    assert [block["type"] for block in turns[2]["content"]] == ["thinking", "text", "tool_use"]


def test_state_is_refused() -> None:
    with pytest.raises(BadField) as caught:
        responses.read({"model": "m", "input": "hi", "previous_response_id": "resp_1"})
    assert caught.value.api_code == "unsupported_parameter"
    assert responses.read({"model": "m", "input": "hi", "previous_response_id": None, "store": True})


def test_the_last_item_of_a_response_that_was_cut_is_incomplete() -> None:
    for reason, status in (("max_tokens", "incomplete"), ("end_turn", "completed")):
        done = MessageDone(
            content=({"type": "thinking", "text": "hm"}, {"type": "text", "text": "He"}),
            stop_reason=reason,
            input_tokens=1,
            output_tokens=2,
        )
        dialect = responses.read({"model": "m", "input": "hi", "stream": True})
        told = b"".join(map(dialect.event, (Thinking("hm"), Text("He")))) + dialect.end(done)
        whole = responses.read({"model": "m", "input": "hi"}).whole(done)
        for answer in (events_of(told)[-1][1]["response"], whole):
            assert answer["status"] == status
            assert [item["status"] for item in answer["output"]] == ["completed", status]


def test_a_failed_response_marks_errors_that_are_not_retryable() -> None:
    for kind, code in (
        ("prompt_too_long", "context_length_exceeded"),
        ("useless_answer", "invalid_prompt"),
        ("unavailable", "unavailable"),
        ("internal", "server_error"),
    ):
        dialect = responses.read({"model": "m", "input": "hi", "stream": True})
        told = events_of(dialect.start() + dialect.failed(Failure(kind=kind, message="x")))
        assert told[-1][0] == "response.failed"
        assert told[-1][1]["response"]["error"]["code"] == code
        assert told[-1][1]["response"]["id"] == told[0][1]["response"]["id"]


# Models and errors.


def test_names_of_models() -> None:
    models = Models({"claude-*": "m"})
    with pytest.raises(HttpFailure, match="no daemon is running"):
        models.find("m")
    models.ready = True
    models.update(
        [
            {"backend": "llamacpp", "model": "m", "v2": True, "n_ctx": 64},
            {"backend": "llamacpp", "model": "e", "embed": True},
            {"backend": "llamacpp", "model": "other", "name": "b", "v2": True},
        ]
    )
    cold = {"name": "s", "aliases": ["sorter"], "bytes": 7, "rerank": True, "resident": False}
    models.update_stored([{"name": "m", "resident": True}, cold])
    assert [(model.name, model.wire_name, model.loaded) for model in models.all()] == [
        ("m", "", True),
        ("e", "", True),
        ("other", "b", True),
        ("s", "s", False),
    ]
    assert models.find("s", "rerank").name == models.find("sorter").name == "s"
    assert [model.size for model in models.all()] == [0, 0, 0, 7]
    thinker = {"name": "t", "tools": False, "thinking": True, "resident": True}
    models.update_stored([thinker, cold])
    assert models.find("t").capabilities == ["completion", "tools", "thinking"]
    assert models.find("s").capabilities == []
    models.update_stored([{"name": "m", "resident": True}, cold])
    for name in ("m", "m:latest", "default", "claude-sonnet-9"):
        assert models.find(name, "v2").name == "m"
    assert models.find("default", "embed").name == "e"
    for name in ("M", "s", "gpt-9", "e"):
        with pytest.raises(UnknownModel) as caught:
            models.find(name, "v2")
        told = failures.of(caught.value).ollama()
        assert told == (
            f"the model '{name}' generates no text; served are: m, other"
            if name in "es"
            else f"model '{name}' not found"
        )


def test_each_kind_of_failure_has_its_retry_headers_and_shapes() -> None:
    for kind, row in failures.ROWS.items():
        failure = Failure(kind=kind, message="m", retry_after=900)
        headers = dict(failure.headers())
        assert ("retry-after" in headers) is row.retry
        assert headers.get("x-should-retry") == (None if row.retry else "false")
        assert int(headers.get("retry-after", "1")) <= 30
        assert set(failure.body("openai", "r")["error"]) == {"message", "type", "param", "code"}
        assert failure.body("anthropic", "r")["request_id"] == "r"
        assert isinstance(failure.body("ollama", "r")["error"], str)
    assert failures.of(ValueError("secret")).message.find("secret") < 0
