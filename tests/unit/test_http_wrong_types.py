"""A value of any type, anywhere in a body, is accepted or refused, and never an internal error of the
bridge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from inferd.http.api import chat, completions, embeddings, messages, ollama, responses
from inferd.http.failures import HttpFailure
from tests.cases import cases

PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object"}
VALUES = (None, True, -1, 1.5, 1e308, "", "x", [], [None], [[]], [{}], {}, {"type": "text"}, {"name": 1})

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "r",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ],
    "max_tokens": 5,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "seed": 1,
    "stop": ["a"],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "logit_bias": {},
    "reasoning_effort": "low",
    "modalities": ["text"],
}
MESSAGES = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "a"}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "data": PNG}},
                {"type": "document", "source": {"type": "text", "data": "d"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "is_error": True,
                    "content": [{"type": "text", "text": "r"}],
                }
            ],
        },
        {"role": "system", "content": "late"},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled"},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["x"],
}
RESPONSES = {
    "model": "m",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": None,
            "encrypted_content": "e",
        },
        {"type": "function_call", "call_id": "c", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ],
    "instructions": "i",
    "tools": [
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
        {"type": "web_search"},
        {"type": "custom", "name": "c"},
    ],
    "tool_choice": "auto",
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "text"}},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 3,
}
OLLAMA = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "x", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "t",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_name": "f", "content": "r"},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "format": "json",
    "options": {"temperature": 1, "num_ctx": 5, "num_predict": -1, "stop": ["a"]},
    "keep_alive": "5m",
    "think": True,
}
GENERATE = {"model": "m", "prompt": "p", "system": "s", "images": [PNG], "format": SCHEMA, "options": {}}
COMPLETION = {"model": "m", "prompt": "p", "max_tokens": 3, "logprobs": 1, "suffix": None}
EMBEDDING = {"model": "m", "input": ["a"], "dimensions": 4, "encoding_format": "float"}
RERANK = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value of a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*before, key)
        yield from places(each, (*before, key))


@cases(
    "read, body",
    [
        (chat.read, CHAT),
        (messages.read, MESSAGES),
        (responses.read, RESPONSES),
        (ollama.read_chat, OLLAMA),
        (ollama.read_generate, GENERATE),
        (completions.read, COMPLETION),
        (embeddings.read, EMBEDDING),
        (embeddings.read_rerank, RERANK),
    ],
)
def test_a_value_of_any_type_in_any_place_is_no_error_of_the_bridge(
    read: Callable[[Any], object], body: dict[str, Any]
) -> None:
    read(copy.deepcopy(body))
    refused = 0
    for place in places(body):
        for value in VALUES:
            changed = copy.deepcopy(body)
            inner: Any = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = copy.deepcopy(value)
            try:
                read(changed)
            except HttpFailure:
                refused += 1
    for value in VALUES:
        try:
            read(value)
        except HttpFailure:
            refused += 1
    assert refused
