"""A conversation as the template of a model's family wants it, and the reading of the answer.

A family whose template knows tools is left to llama.cpp, which renders, constrains and parses its format; any
other gets the format of :mod:`inferd.engine.generic_tools`. Everything here is slow enough to be kept off the
event loop, and nothing here touches it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from inferd.engine import _llama, generic_tools
from inferd.engine.backend import Event, GenerateRequest, Message, Text, Thinking, Tool, ToolCall, ToolUse


class Reader(Protocol):
    """Takes an answer apart while it grows."""

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        """The events of more text, ``last`` with the end of it; ``None`` when the answer does not parse."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, ready for the token loop.

    ``grammar`` and its ``triggers`` take the place of the prompt's own grammar. Without a ``reader`` the
    answer is nothing but text.
    """

    prompt: _llama.Prompt
    grammar: bytes
    triggers: tuple[bytes, ...]
    reader: Reader | None


def prepare(templates: _llama.Templates, request: GenerateRequest) -> Prepared:
    """Renders the conversation. Raises ``InvalidRequest`` for what the family cannot express."""
    tools = _tools(request)
    required = bool(tools) and (request.tool_choice == "required" or bool(request.tool_name))
    if tools and not templates.tools:
        return _prepare_generic(templates, request, tools, required)
    thinks = request.typed and request.thinking is not False and templates.thinking
    conversation: dict[str, object] = {
        "messages": [_message(m) for m in request.messages],
        "thinking": thinks,
    }
    grammar = request.grammar.encode()
    if tools:
        conversation["tools"] = [_tool(tool) for tool in tools]
        conversation["tool_choice"] = "required" if required else "auto"
    elif request.json_schema and thinks:
        # The family's own grammar lets it think first.
        conversation["json_schema"] = orjson.Fragment(request.json_schema)
    elif request.json_schema:
        grammar = _llama.schema_to_grammar(request.json_schema.encode())
    prompt = templates.render(orjson.dumps(conversation))
    reader = _FamilyReader(_llama.Reply(prompt.syntax)) if tools or thinks else None
    return Prepared(prompt, grammar, (), reader)


def _prepare_generic(
    templates: _llama.Templates, request: GenerateRequest, tools: tuple[Tool, ...], required: bool
) -> Prepared:
    system = Message("system", generic_tools.instructions(tools, required))
    messages = [_without_tools(message) for message in request.messages]
    if messages[0].role == "system":
        system = replace(system, content=f"{_text(messages.pop(0))}\n\n{system.content}")
    conversation = {"messages": [_message(m) for m in (system, *messages)], "thinking": False}
    return Prepared(
        templates.render(orjson.dumps(conversation)),
        generic_tools.grammar(tools),
        () if required else (generic_tools.TRIGGER,),
        generic_tools.Reader(required),
    )


def _tools(request: GenerateRequest) -> tuple[Tool, ...]:
    """The tools the model may call in this answer."""
    if request.tool_choice == "none":
        return ()
    if request.tool_name:
        return tuple(tool for tool in request.tools if tool.name == request.tool_name)
    return request.tools


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part for part in message.content if isinstance(part, str))


def _without_tools(message: Message) -> Message:
    """The message as a template sees it that knows no tools."""
    if message.role == "tool":
        return Message("user", f"<tool_response>{_text(message)}</tool_response>")
    calls = "".join(generic_tools.as_text(call) for call in message.tool_calls)
    return replace(message, content=_text(message) + calls, tool_calls=()) if calls else message


def _message(message: Message) -> dict[str, object]:
    """A message in the form of OpenAI's chat completions, which llama.cpp reads."""
    out: dict[str, object] = {"role": message.role, "content": _text(message)}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return out


def _tool(tool: Tool) -> dict[str, object]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": orjson.Fragment(tool.schema),
    }
    return {"type": "function", "function": function}


class _FamilyReader:
    """An answer in a format that llama.cpp parses."""

    def __init__(self, reply: _llama.Reply) -> None:
        self._reply = reply

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        news = self._reply.feed(text.encode(), last=last)
        if news is None:
            return None
        found = orjson.loads(news)
        events: list[Event] = []
        if found.get("thinking"):
            events.append(Thinking(found["thinking"]))
        if found.get("text"):
            events.append(Text(found["text"]))
        for call in found.get("tools", ()):
            events.append(ToolUse(ToolCall(call["id"], call["name"], call["arguments"])))
        return events
