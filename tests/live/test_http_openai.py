"""OpenAI's SDK, unmodified, against a small random model, and the default model where its text matters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from inferd.config import paths
from inferd.store.catalogue import DEFAULT_MODEL
from tests.demo_model import demo_model
from tests.http_bridge import BridgeProcess
from tests.lazy import Lazy
from tests.tiny_llama import random_llama

openai = Lazy("openai")

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    demo_model()
    with BridgeProcess(model_path=random_llama(), MODELS_HOME=paths.models_home(), n_ctx=2048) as process:
        yield process


@pytest.fixture
def client(bridge: BridgeProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{bridge.base}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    name = client.models.list().data[0].id
    assert name == random_llama().stem
    return name


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    assert client.models.retrieve("default").id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("none/such")
    assert caught.value.code == "model_not_found"
    assert model in str(caught.value)


def test_a_chat_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ask("Say hello."), max_tokens=8, temperature=0, seed=1
    )
    again = client.chat.completions.create(
        model="default", messages=ask("Say hello."), max_completion_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == model


def test_a_stream_equals_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=ask("Count to five."), max_tokens=12, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=ask("Count to five."),
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_helper(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=ask("Hi."), max_tokens=200, temperature=0, stop=["e"]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content


def test_a_tool_call_and_its_result(client: openai.OpenAI, model: str) -> None:
    first = client.chat.completions.create(
        model=model,
        messages=ask("What is the weather in Paris?"),
        tools=[TOOL],
        tool_choice="required",
        max_tokens=80,
        temperature=0,
    )
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls
    call = message.tool_calls[0]
    assert set(json.loads(call.function.arguments)) == {"city"}
    second = client.chat.completions.create(
        model=model,
        messages=[
            *ask("What is the weather in Paris?"),
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "-4 degrees, snow"},
        ],
        tools=[TOOL],
        tool_choice="none",
        max_tokens=10,
    )
    assert second.choices[0].message.content is not None


def test_a_streamed_tool_call(client: openai.OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=ask("What is the weather in Paris?"),
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_tokens=80,
            temperature=0,
            stream=True,
        )
    )
    calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert calls[0].id
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert set(json.loads(arguments)) == {"city"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("strict", [True, None])
def test_a_schema_holds(client: openai.OpenAI, model: str, strict: bool | None) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=ask("Name a colour."),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "colour", "schema": SCHEMA, "strict": strict},
        },
        max_tokens=40,
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "green")


def test_a_stop_string(client: openai.OpenAI, model: str) -> None:
    plain = client.chat.completions.create(
        model=model, messages=ask("Tell me a story."), max_tokens=100, temperature=0
    )
    text = plain.choices[0].message.content or ""
    word = next(word for word in text.split()[3:] if word.isalpha())
    stopped = client.chat.completions.create(
        model=model, messages=ask("Tell me a story."), max_tokens=100, temperature=0, stop=word
    )
    assert stopped.choices[0].message.content == text.partition(word)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=DEFAULT_MODEL, prompt="Say hello.", max_tokens=6, temperature=0)
    assert answer.choices[0].text
    chunks = list(
        client.completions.create(
            model=DEFAULT_MODEL, prompt="Say hello.", max_tokens=6, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    raw = client.completions.create(
        model=DEFAULT_MODEL, prompt="The capital of France is", max_tokens=6, temperature=0
    )
    assert "Paris" in raw.choices[0].text
    with pytest.raises(openai.BadRequestError, match="no tokens for a text that is to be filled in"):
        client.completions.create(model=DEFAULT_MODEL, prompt="a", suffix="b", max_tokens=1)


def test_logprobs(client: openai.OpenAI) -> None:
    options: Any = {"model": DEFAULT_MODEL, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(
        messages=ask("Say hello."), logprobs=True, top_logprobs=3, **options
    ).choices[0]
    assert whole.logprobs is not None
    tokens = whole.logprobs.content or []
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in tokens)
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    chunks = client.chat.completions.create(
        messages=ask("Say hello."), logprobs=True, top_logprobs=3, stream=True, **options
    )
    told = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for logprobs in told if logprobs for token in logprobs.content or []] == tokens
    function: Any = {"type": "function", "function": {"name": "clock"}}
    for choice in ("auto", "required"):
        beside = client.chat.completions.create(
            messages=ask("Say hello."), logprobs=True, tools=[function], tool_choice=choice, **options
        ).choices[0]
        tokens = (beside.logprobs and beside.logprobs.content) or []
        assert "".join(token.token for token in tokens) == (beside.message.content or "")
        assert bool(tokens) == (choice == "auto")
    legacy = client.completions.create(prompt="Say hello.", logprobs=2, **options).choices[0]
    assert legacy.logprobs is not None
    assert "".join(legacy.logprobs.tokens or []) == legacy.text
    assert [len(best) for best in legacy.logprobs.top_logprobs or []] == [2] * 6
    response = client.responses.create(
        model=DEFAULT_MODEL,
        input="Say hello.",
        include=["message.output_text.logprobs"],
        max_output_tokens=16,
        temperature=0,
    )
    part = response.output[0].content[0]  # type: ignore[union-attr, index]
    assert "".join(token.token for token in part.logprobs) == response.output_text  # type: ignore[union-attr]


def test_a_prompt_that_is_too_long(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("word " * 3000), max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_closing_a_stream_frees_the_slot(bridge: BridgeProcess, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=ask("Write a very long story."), max_tokens=1500, stream=True
    )
    next(iter(stream))
    bridge.wait_running(1)
    stream.close()
    bridge.wait_idle()


async def test_cancelling_a_whole_answer_frees_the_slot(bridge: BridgeProcess) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{bridge.base}/v1", api_key="any", max_retries=0) as client:
        request = asyncio.ensure_future(
            client.chat.completions.create(
                model=DEFAULT_MODEL, messages=ask("Write a very long story."), max_tokens=1500
            )
        )
        await asyncio.to_thread(bridge.wait_running, 1)
        request.cancel()
        await asyncio.to_thread(bridge.wait_idle)


def test_unsupported_calls_are_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("Hi."), n=2)
    assert caught.value.param == "n"
    assert caught.value.code == "unsupported_value"


def test_embeddings_of_a_text_model_are_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="hello")


def test_a_response_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    whole = client.responses.create(model=model, input="Say hello.", max_output_tokens=6, temperature=0)
    assert whole.output_text
    assert whole.usage is not None
    with client.responses.stream(
        model=model, input="Say hello.", max_output_tokens=6, temperature=0
    ) as stream:
        events = list(stream)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    counted = client.responses.input_tokens.count(model=model, input="Say hello.")
    assert counted.input_tokens == whole.usage.input_tokens


def test_a_response_with_a_tool(client: openai.OpenAI, model: str) -> None:
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    asked: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.responses.create(
        model=model, input=asked, tools=[tool], tool_choice="required", max_output_tokens=60, temperature=0
    )
    call = next(item for item in first.output if item.type == "function_call")
    assert set(json.loads(call.arguments)) == {"city"}
    second = client.responses.create(
        model=model,
        input=[
            *asked,
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "snow"},
        ],
        tools=[tool],
        tool_choice="none",
        max_output_tokens=3,
        store=True,
    )
    assert second.status in ("completed", "incomplete")


def test_a_refused_stream_raises(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input="word " * 3000, stream=True)
    assert caught.value.code == "context_length_exceeded"
