"""Anthropic's SDK, unmodified, against a small random model, and the default model where its text matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from inferd.config import paths
from inferd.store.catalogue import DEFAULT_MODEL
from tests.demo_model import demo_model
from tests.http_bridge import BridgeProcess, web
from tests.tiny_llama import random_llama

if TYPE_CHECKING:
    import anthropic  # imported here, since it takes six seconds in each worker of a run

TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
MODEL = "random"
ASK: list[Any] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    demo_model()
    options = {"n_ctx": 1024, "http_aliases": f"claude-*={MODEL}"}
    with BridgeProcess(model_path=random_llama(), MODELS_HOME=paths.models_home(), **options) as process:
        yield process


@pytest.fixture
def client(bridge: BridgeProcess) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(base_url=bridge.base, api_key="any", max_retries=0) as client:
        yield client


def test_a_message_whole_and_streamed(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, max_tokens=6, messages=ASK, extra_body={"temperature": 0})
    assert whole.content[0].type == "text"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(
        model=MODEL, max_tokens=6, messages=ASK, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=ASK)
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_a_prefill_is_continued(client: anthropic.Anthropic) -> None:
    question = {"role": "user", "content": "Which city is the capital of France?"}
    begun = {"role": "assistant", "content": "The capital of France is"}
    answer = client.messages.create(
        model=DEFAULT_MODEL, max_tokens=6, messages=[question, begun], extra_body={"temperature": 0}
    )
    assert "Paris" in answer.content[0].text
    counted = client.messages.count_tokens(model=DEFAULT_MODEL, messages=[question, begun])
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_models(client: anthropic.Anthropic) -> None:
    listed = [model.id for model in client.models.list()]
    assert (listed[0], listed.count(MODEL), listed.count(DEFAULT_MODEL)) == (MODEL, 1, 1)
    assert client.models.retrieve("claude-sonnet-9").id == MODEL


def test_a_tool_call_whole_and_streamed(client: anthropic.Anthropic) -> None:
    ask: Any = {
        "model": "claude-any",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [TOOL, {"type": "bash_20250124", "name": "bash"}],
        "tool_choice": {"type": "tool", "name": "weather"},
        "extra_body": {"temperature": 0},
    }
    with client.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    call = next(block for block in final.content if block.type == "tool_use")
    assert call.name == "weather"
    assert set(call.input) == {"city"}
    ask["messages"] += [
        {"role": "assistant", "content": [block.model_dump() for block in final.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [{"type": "text", "text": "snow"}],
                },
                {"type": "text", "text": "Answer briefly."},
            ],
        },
    ]
    ask |= {"tool_choice": {"type": "none"}, "max_tokens": 3}
    assert client.messages.create(**ask).content


def test_structured_output(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        model=MODEL,
        max_tokens=30,
        messages=[{"role": "user", "content": "Name a colour."}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert '"colour"' in message.content[0].text  # type: ignore[union-attr]


def test_errors(client: anthropic.Anthropic, bridge: BridgeProcess) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match="model: none"):
        client.messages.create(model="none", max_tokens=5, messages=ASK)
    long: Any = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1024 maximum"):
        client.messages.create(model=MODEL, max_tokens=5, messages=long)
    for version in ("2023-06-01", "2026-10-21", None):
        headers = {} if version is None else {"anthropic-version": version, "x-api-key": "any"}
        answer = web.post(f"{bridge.base}/v1/messages?beta=true", headers=headers, json={"model": MODEL})
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["request_id"] == answer.headers["request-id"]


def test_a_system_message_among_the_others_is_taken(client: anthropic.Anthropic) -> None:
    first = [{"type": "text", "text": "Reminder.", "cache_control": {"type": "ephemeral"}}]
    counts = [
        client.messages.count_tokens(
            model=MODEL,
            system=[
                {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.332.{number};"},
                {"type": "text", "text": "Be brief."},
            ],
            messages=[*ASK, {"role": "system", "content": content}],  # type: ignore[list-item]
        ).input_tokens
        for number, content in ((629, first), (1, "Reminder."))
    ]
    assert counts[0] == counts[1]
