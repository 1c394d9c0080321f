"""Builds requests for OpenAI's chat completions.

Options that the request leaves open are not sent, except ``max_tokens`` for v1. ``top_k``, ``min_p``,
``repeat_penalty``, ``grammar`` and the switch for thinking are common extensions of OpenAI's API; a server
without these extensions refuses the request.
"""

from __future__ import annotations

from typing import Any

import orjson
from msgspec.structs import asdict

from inferd.engine.remote.pictures import as_base64
from inferd.engine.requests import GenerateRequest, Media, Message, Tool
from inferd.sampling import MAX_TOKENS, SamplingParams

_NEUTRAL = {"min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def chat(model: str, request: GenerateRequest, *, top_k: bool = False) -> bytes:
    """Returns the body of the request. ``top_k`` says whether the server supports the option ``top_k``."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    max_tokens = request.max_tokens
    if max_tokens is None and not request.typed:
        max_tokens = MAX_TOKENS
    given = {
        "max_tokens": max_tokens,
        **_sampling(request.sampling),
        "stop": list(request.stop) or None,
        "grammar": request.grammar or None,
    }
    if not top_k:
        given["top_k"] = None
    body.update((key, value) for key, value in given.items() if value is not None)
    if request.json_schema:
        body["response_format"] = _format(request.json_schema)
    if request.typed and request.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": request.thinking}
    if request.tools:
        _add_tools(body, request)
    return orjson.dumps(body)


def _sampling(sampling: SamplingParams) -> dict[str, float | None]:
    """Returns the request's sampling settings. A neutral value becomes ``None`` and is not sent, because the
    server may not support the setting."""
    given = asdict(sampling)
    return {name: None if value == _NEUTRAL.get(name) else value for name, value in given.items()}


def _format(schema: str) -> dict[str, Any]:
    if orjson.loads(schema) == {"type": "object"}:
        return {"type": "json_object"}
    named = {"name": "answer", "schema": orjson.Fragment(schema), "strict": True}
    return {"type": "json_schema", "json_schema": named}


def _add_tools(body: dict[str, Any], request: GenerateRequest) -> None:
    tools, choice = request.tools, request.tool_choice
    if request.tool_name:
        # Some servers ignore a choice by name. Sending only that tool, as required, works everywhere.
        tools, choice = tuple(tool for tool in tools if tool.name == request.tool_name), "required"
    body["tools"] = [_tool(tool) for tool in tools]
    body["tool_choice"] = choice


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = orjson.Fragment(tool.schema)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        out["content"] = out["content"] or None
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return out


def _content(content: str | tuple[str | Media, ...]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: str | Media) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    mime, data = as_base64(part)
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}
