"""The bodies of Anthropic's and Ollama's APIs, and the options that several APIs share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.client.messages import MessageDone, Text
from inferd.http.api import chat, completions, messages, ollama, responses
from inferd.http.api.canonical import text_block
from inferd.http.api.request import Dialect
from inferd.http.failures import BadField
from tests.cases import cases
from tests.unit.test_http_api import DONE, EVENTS, HI, events_of, streamed

# Anthropic.


def test_the_events_of_a_message() -> None:
    dialect = messages.read({"model": "m", "max_tokens": 9, "messages": HI, "stream": True})
    told = streamed(dialect)
    assert [name for name, _ in told] == [data["type"] for _, data in told]
    assert [name for name, _ in told] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [data["index"] for name, data in told if name == "content_block_start"] == [0, 1, 2]
    assert told[3][1]["delta"]["signature"]
    assert told[-2][1]["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }
    assert dialect.whole(DONE)["content"][2] == {
        "type": "tool_use",
        "id": "tc-1",
        "name": "f",
        "input": {"a": 1},
    }


def test_a_full_context_differs_from_the_clients_limit() -> None:
    dialect = messages.read({"model": "m", "max_tokens": 9, "messages": HI, "stop_sequences": ["x"]})
    for reason, tokens, told in (
        ("max_tokens", 9, "max_tokens"),
        ("max_tokens", 5, "model_context_window_exceeded"),
        ("end_turn", 5, "end_turn"),
        ("stop_sequence", 5, "stop_sequence"),
    ):
        done = MessageDone(content=(), stop_reason=reason, input_tokens=1, output_tokens=tokens)
        answer = dialect.whole(done)
        assert answer["stop_reason"] == told
        assert answer["stop_sequence"] == ("x" if reason == "stop_sequence" else None)


def test_requests_of_claude_code_are_accepted() -> None:
    request = messages.read(
        {
            "model": "m",
            "max_tokens": 32000,
            "system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
                {"role": "user", "content": "go on"},
            ],
            "tools": [{"name": "t", "input_schema": {"type": "object"}, "defer_loading": True}],
            "thinking": {"type": "adaptive", "display": "omitted"},
            "context_management": {"edits": []},
            "output_config": {"effort": "high"},
            "metadata": {"user_id": '{"session_id":"s"}'},
        }
    ).generation
    assert request.options["thinking"] is True
    assert request.options["session"] == '{"session_id":"s"}'
    assert request.ignored == {"redacted_thinking"}
    assert [turn["role"] for turn in request.turns] == ["system", "user", "assistant", "user"]


def test_new_sessions_of_claude_code_in_one_project_have_one_head() -> None:
    """The environment is behind the system prompt, and so behind the tools in the template."""

    def session(number: int, status: str, prompt: str) -> list[dict[str, Any]]:
        billing = f"x-anthropic-billing-header: cc_version=2.1.332.{number};"
        body = {
            "model": "m",
            "max_tokens": 1,
            "system": [{"type": "text", "text": billing}, {"type": "text", "text": "A"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": prompt}]},
                {"role": "system", "content": [{"type": "text", "text": f"# Environment\n{status}"}]},
            ],
        }
        return messages.read(body).generation.turns

    one, other = session(629, "clean", "hi"), session(197, "M a.py", "go on")
    assert one[0] == other[0] == {"role": "system", "content": [text_block("A")]}
    assert one[1] == {"role": "user", "content": [text_block("# Environment\nclean"), text_block("hi")]}
    assert other[1]["content"] == [text_block("# Environment\nM a.py"), text_block("go on")]


def test_a_message_of_the_assistant_at_the_end_is_continued() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [*HI, {"role": "assistant", "content": "{"}]}
    request = messages.read(body).generation
    assert request.options["begun"] is True
    assert request.turns[-1] == {"role": "assistant", "content": [text_block("{")]}
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    for more, reason in (
        ({"tools": [{"name": "f"}]}, "tools cannot be combined with a last message of the assistant"),
        ({"thinking": {"type": "adaptive"}}, "thinking cannot be combined"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config cannot be combined",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": [call]}]}, "only if that message is text"),
        ({"messages": [{"role": "assistant", "content": "{"}]}, "must have a message before that"),
    ):
        with pytest.raises(BadField, match=reason):
            messages.read(body | more)


def test_a_missing_limit_is_refused() -> None:
    with pytest.raises(BadField, match="max_tokens is required"):
        messages.read({"model": "m", "messages": HI})
    assert messages.read_for_count({"model": "m", "messages": HI}).max_tokens == 0


# Probabilities, and prompts without a template.


def token(text: str, *others: str) -> dict[str, Any]:
    best = [{"token": other, "bytes": list(other.encode()), "logprob": -1.0} for other in others]
    return {"token": text, "bytes": list(text.encode()), "logprob": -0.5, "top_logprobs": best}


TOKENS = (token("Hel", "Hel", "Hi"), token("lo"))
WITH_TOKENS = MessageDone(
    content=({"type": "text", "text": "Hello"},),
    stop_reason="end_turn",
    input_tokens=1,
    output_tokens=2,
    logprobs=TOKENS,
)


def test_each_api_reports_logprobs_in_its_own_form() -> None:
    asked = {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 2}
    completion = {"model": "m", "prompt": "hi", "logprobs": 2}
    response = {"model": "m", "input": "hi", "top_logprobs": 2}

    def both(read: Any, body: dict[str, Any]) -> tuple[Any, Dialect]:
        whole, parts = read(body), read({**body, "stream": True})
        assert whole.generation.options["logprobs"] == 2
        return whole.whole(WITH_TOKENS), parts

    whole, parts = both(chat.read, asked)
    assert whole["choices"][0]["logprobs"] == {"content": TOKENS, "refusal": None}
    ((_, chunk),) = events_of(parts.event(Text("Hel", TOKENS[:1])))
    assert chunk["choices"][0]["logprobs"] == {"content": [TOKENS[0]], "refusal": None}
    assert events_of(parts.event(Text("lo")))[0][1]["choices"][0]["logprobs"] is None

    whole, parts = both(completions.read, completion)
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"Hel": -1.0, "Hi": -1.0}, {}],
        "text_offset": [0, 3],
    }
    parts.event(Text("Hel", TOKENS[:1]))
    ((_, chunk),) = events_of(parts.event(Text("lo", TOKENS[1:])))
    assert chunk["choices"][0]["logprobs"]["text_offset"] == [3]

    whole, parts = both(responses.read, response)
    assert tuple(whole["output"][0]["content"][0]["logprobs"]) == TOKENS
    told = parts.start() + parts.event(Text("Hel", TOKENS[:1])) + parts.end(WITH_TOKENS)
    by_name = dict(events_of(told))
    for event in ("response.output_text.delta", "response.output_text.done"):
        assert by_name[event]["logprobs"] == [TOKENS[0]]
    assert by_name["response.content_part.done"]["part"]["logprobs"] == [TOKENS[0]]

    whole, parts = both(ollama.read_chat, asked)
    assert whole["logprobs"] == TOKENS
    assert json.loads(parts.event(Text("Hel", TOKENS[:1])))["logprobs"] == [TOKENS[0]]
    assert "logprobs" not in json.loads(parts.event(Text("lo")))


@pytest.mark.parametrize(
    ("read", "more", "param"),
    [
        (chat.read, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (chat.read, {"top_logprobs": 1}, "top_logprobs"),
        (chat.read, {"logprobs": True, "reasoning_effort": "low"}, "logprobs"),
        (chat.read, {"grammar": 1}, "grammar"),
        (chat.read, {"json_schema": []}, "json_schema"),
        (completions.read, {"prompt": "hi", "json_schema": "{}"}, "json_schema"),
        (completions.read, {"prompt": "hi", "logprobs": 21}, "logprobs"),
        (completions.read, {"prompt": "hi", "logprobs": 1, "echo": True}, "echo"),
        (responses.read, {"input": "hi", "top_logprobs": 21}, "top_logprobs"),
        (ollama.read_chat, {"top_logprobs": 1}, "top_logprobs"),
        (ollama.read_generate, {"prompt": "hi", "raw": True, "system": "Be brief."}, "system"),
        (ollama.read_generate, {"prompt": "hi", "suffix": "x", "think": True}, "think"),
        (ollama.read_generate, {"prompt": "hi", "template": "x"}, "template"),
        (ollama.read_chat, {"think": "most"}, "think"),
        (ollama.read_chat, {"think": []}, "think"),
        (ollama.read_chat, {"format": "xml"}, "format"),
        (ollama.read_chat, {"format": []}, "format"),
    ],
)
def test_invalid_and_contradictory_options_are_refused(read: Any, more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadField) as caught:
        read({"model": "m", "messages": HI, **more})
    assert caught.value.param == param


def test_logprobs_are_allowed_with_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": "m", "messages": HI, "logprobs": True, "tools": tools}
    assert chat.read(body).generation.options["logprobs"] == 0
    assert ollama.read_chat(body).generation.options["logprobs"] == 0
    function = {"type": "function", "name": "f"}
    named = {"model": "m", "input": "hi", "include": ["message.output_text.logprobs"], "tools": [function]}
    assert responses.read(named).generation.options["logprobs"] == 0


def test_the_form_of_an_answer_as_clients_of_llama_server_ask_for_it() -> None:
    schema = {"type": "object", "required": ["a"]}
    form = {"response_format": {"type": "json_object", "schema": schema}}
    asked = chat.read({"model": "m", "messages": HI, **form}).generation
    assert asked.options["response_format"] == {"type": "json_schema", "schema": schema}
    for read, prompt in ((chat.read, {"messages": HI}), (completions.read, {"prompt": "hi"})):
        for field in ({"grammar": 'root ::= "a"'}, {"json_schema": schema}):
            assert field.items() <= read({"model": "m", **prompt, **field}).generation.options.items()


def test_prompts_without_a_template() -> None:
    completion = completions.read({"model": "m", "prompt": "a", "suffix": "b"}).generation
    generated = ollama.read_generate({"model": "m", "prompt": "a", "suffix": "b"}).generation
    for request in (completion, generated):
        assert request.options["raw"] is True
        assert request.options["suffix"] == "b"
        assert request.turns == [{"role": "user", "content": [text_block("a")]}]
    assert ollama.read_generate({"model": "m", "prompt": "a", "raw": True}).generation.options["raw"] is True
    assert "raw" not in ollama.read_generate({"model": "m", "prompt": "a", "raw": False}).generation.options


# Ollama.


def test_the_lines_of_an_ollama_chat() -> None:
    dialect = ollama.read_chat({"model": "m", "messages": HI, "tools": [], "format": "", "keep_alive": -1.0})
    assert dialect.generation.stream
    told = dialect.start() + b"".join(map(dialect.event, EVENTS)) + dialect.end(DONE)
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert lines[0]["message"]["thinking"] == "hm"
    assert lines[3]["message"]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert lines[-1]["eval_count"] == 5


@cases(
    "given, secs",
    [
        (None, None), (0, 0), ("0", 0), (-1.0, -1), ("-1", -1), ("-5m", -1), (90, 90), ("24h", 86400),
        ("1h30m", 5400), ("1.5s", 1.5), ("500ms", 0.5), (1e300, 1e9),
    ],
)  # fmt: skip
def test_ollama_says_how_long_a_model_stays(given: object, secs: float | None) -> None:
    assert ollama.read_chat({"model": "m", "messages": HI, "keep_alive": given}).generation.keep_alive == secs


@cases("given", [True, [], "soon", "5 m", "m5", "1d", "", float("nan")])
def test_ollama_refuses_an_invalid_duration(given: object) -> None:
    with pytest.raises(BadField, match="keep_alive"):
        ollama.read_chat({"model": "m", "messages": HI, "keep_alive": given})
