"""Builds requests for Anthropic's Messages API on Bedrock.

This module does not repeat the checks of the service. If the service refuses a request, the client gets the
service's reason in an ``InvalidRequest``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from inferd.engine.remote.pictures import as_base64
from inferd.engine.requests import GenerateRequest, Media, Message, ToolCall
from inferd.errors import AttachmentUnsupported, InvalidRequest

VERSION = "bedrock-2023-05-31"
MAX_TOKENS = 1024
MIN_THINKING_TOKENS = 1024

Json = dict[str, Any]


def request_body(request: GenerateRequest) -> bytes:
    """Returns the JSON body of a request. Encoding large images is slow, so call this function in a thread if
    the request has large images.

    Raises InvalidRequest for a GBNF grammar, a conversation without content, an attachment in a system
    message, and a ``max_tokens`` that leaves no room for thinking. Raises AttachmentUnsupported for an audio
    attachment.
    """
    if request.grammar:
        raise InvalidRequest(
            "a GBNF grammar is followed by models of this daemon only; give a json_schema instead, or neither"
        )
    system, messages = _conversation(request.messages)
    if not messages:
        raise InvalidRequest(
            "the conversation has no text for the model; give at least one that is not empty"
        )
    thinking = _thinking(request)
    body: Json = {
        "anthropic_version": VERSION,
        "max_tokens": _max_tokens(request, thinks=thinking is not None),
        "system": system or None,
        "messages": messages,
        "thinking": thinking,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k or None,
        "stop_sequences": request.stop or None,
        **_tools(request),
    }
    if request.json_schema:
        schema = orjson.Fragment(request.json_schema)
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return orjson.dumps({key: value for key, value in body.items() if value is not None})


def _max_tokens(request: GenerateRequest, *, thinks: bool) -> int:
    """Returns the token limit of the answer, which includes the thinking."""
    if request.max_tokens is None:
        return MAX_TOKENS + MIN_THINKING_TOKENS if thinks else MAX_TOKENS
    return request.max_tokens


def _thinking(request: GenerateRequest) -> Json | None:
    """Returns the field ``thinking``, which reserves half of the tokens for thoughts, but at least
    ``MIN_THINKING_TOKENS``. Returns ``None`` if the model does not think.

    After a tool result, the model continues without thinking. With thinking, the API would require the
    signatures of the thoughts that came before the tool call. The request has no signatures.
    """
    if not request.thinking or request.messages[-1].role == "tool":
        return None
    limit = _max_tokens(request, thinks=True)
    if limit <= MIN_THINKING_TOKENS:
        raise InvalidRequest(
            f"max_tokens is {limit} and thinking alone takes up to {MIN_THINKING_TOKENS} of them;"
            " give more, or leave thinking out"
        )
    return {"type": "enabled", "budget_tokens": max(MIN_THINKING_TOKENS, limit // 2)}


def _tools(request: GenerateRequest) -> Json:
    """Returns the fields of the request that concern tools.

    With the tool choice ``none``, the tools are listed only if the conversation contains tool calls, because
    the API refuses calls of unlisted tools.
    """
    called = any(message.tool_calls for message in request.messages)
    if not request.tools or (request.tool_choice == "none" and not called):
        return {}
    tools = [
        {
            "name": tool.name,
            "description": tool.description or None,
            "input_schema": orjson.Fragment(tool.schema),
        }
        for tool in request.tools
    ]
    said: Json = {
        "tools": [{key: value for key, value in tool.items() if value is not None} for tool in tools]
    }
    if request.tool_name:
        said["tool_choice"] = {"type": "tool", "name": request.tool_name}
    elif request.tool_choice == "required":
        said["tool_choice"] = {"type": "any"}
    elif request.tool_choice == "none":
        said["tool_choice"] = {"type": "none"}
    return said


@dataclass(slots=True)
class _Turn:
    role: str
    results: list[Json] = field(default_factory=list)
    content: list[Json] = field(default_factory=list)


def _conversation(messages: Sequence[Message]) -> tuple[str, list[Json]]:
    """Returns the system prompt, and the turns, which alternate between user and assistant.

    Empty texts are omitted, because the API refuses them. Tool results come first in their turn, because each
    result must directly follow its call.
    """
    system: list[str] = []
    turns: list[_Turn] = []
    for message in messages:
        if message.role == "system":
            system.append(_system_text(message))
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1].role != role:
            turns.append(_Turn(role))
        if message.role == "tool":
            turns[-1].results.append(_tool_result(message))
        else:
            turns[-1].content += _blocks(message)
        turns[-1].content += (_tool_use(call) for call in message.tool_calls)
        if not turns[-1].results and not turns[-1].content:
            turns.pop()
    said = [{"role": turn.role, "content": turn.results + turn.content} for turn in turns]
    return "\n\n".join(filter(None, system)), said


def _system_text(message: Message) -> str:
    if not isinstance(message.content, str):
        raise InvalidRequest("a system message can hold nothing but text; move its attachments to the user's")
    return message.content


def _blocks(message: Message) -> list[Json]:
    parts = (message.content,) if isinstance(message.content, str) else message.content
    return [_block(part) for part in parts if part != ""]


def _block(part: str | Media) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.kind != "image":
        raise AttachmentUnsupported(f"the model takes no {part.kind} attachments")
    mime, data = as_base64(part)
    return {"type": "image", "source": {"type": "base64", "media_type": mime, "data": data}}


def _tool_use(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": orjson.Fragment(call.arguments)}


def _tool_result(message: Message) -> Json:
    result: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if content := _blocks(message):
        result["content"] = content
    return result
