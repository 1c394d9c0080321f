"""Tool calls for models whose own template knows nothing of tools.

The tools are described in the system message, and the model is asked to write a call as one JSON object,
after ``<tool_call>`` when it may also answer in text. A grammar holds it to that: from the first character
where a call is required, from the brace after the marker where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from inferd.engine.backend import Event, Text, Tool, ToolCall, ToolUse
from inferd.engine.local import _llama
from inferd.errors import InvalidRequest

MARKER = "<tool_call>"
TRIGGER = rb"<tool_call>\s*(\{)"
"""Where the grammar begins to hold when a call is not required: it is fed from the group on."""


def instructions(tools: Sequence[Tool], required: bool) -> str:
    """What the system message says about the tools."""
    described = [
        {"name": tool.name, "description": tool.description, "parameters": orjson.Fragment(tool.schema)}
        for tool in tools
    ]
    form = '{"name": NAME, "arguments": {…}}'
    how = (
        f"Answer with a call: {form}"
        if required
        else f"To call one, write {MARKER}{form} and nothing after it."
    )
    return f"You can call these tools:\n{orjson.dumps(described).decode()}\n{how}"


def grammar(tools: Sequence[Tool]) -> bytes:
    """GBNF of one call; ``InvalidRequest`` names the tool whose schema cannot be expressed."""
    calls = []
    definitions = {}
    for i, tool in enumerate(tools):
        place = f"tool_{i}"
        definitions[place] = _moved(orjson.loads(tool.schema), f"#/$defs/{place}/")
        call = {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{place}"}}
        calls.append(
            {"type": "object", "properties": call, "required": list(call), "additionalProperties": False}
        )
    try:
        return _llama.schema_to_grammar(orjson.dumps({"anyOf": calls, "$defs": definitions}))
    except InvalidRequest:
        for tool in tools:
            _check(tool)
        raise


def _check(tool: Tool) -> None:
    """Raises ``InvalidRequest`` with the tool's name when its own schema cannot be expressed."""
    try:
        _llama.schema_to_grammar(tool.schema.encode())
    except InvalidRequest as error:
        name = orjson.dumps(tool.name).decode()
        raise InvalidRequest(f"the input_schema of the tool {name} cannot be used: {error}") from None


def _moved(schema: Any, root: str) -> Any:
    """The schema with its references to itself pointing to where it now stands."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value[2:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#/")
        else _moved(value, root)
        for key, value in schema.items()
    }


def as_text(call: ToolCall) -> str:
    """How a call of an earlier turn stands in the conversation."""
    return f'{MARKER}{{"name": {orjson.dumps(call.name).decode()}, "arguments": {call.arguments}}}'


class Reader:
    """Takes an answer apart while it grows: text up to the marker, and one call at the end."""

    def __init__(self, required: bool) -> None:
        self._in_call = required
        self._held = ""

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        """The events of more text, ``last`` with the end of it; ``None`` for a call that cannot be read."""
        self._held += text
        events: list[Event] = []
        if not self._in_call:
            shown, marker, rest = self._held.partition(MARKER)
            if marker:
                self._in_call = True
            elif not last:
                shown, rest = self._split_before_marker()
            if shown:
                events.append(Text(shown))
            self._held = rest
        if self._in_call and last:
            try:
                call = orjson.loads(self._held)
                events.append(ToolUse(ToolCall("", call["name"], orjson.dumps(call["arguments"]).decode())))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                return None
        return events

    def cut(self) -> list[Event]:
        """What could have begun a call, and did not; half a call is nothing."""
        return [Text(self._held)] if self._held and not self._in_call else []

    def _split_before_marker(self) -> tuple[str, str]:
        """What may be shown, and the end with which the marker could begin."""
        for n in range(min(len(self._held), len(MARKER) - 1), 0, -1):
            if self._held.endswith(MARKER[:n]):
                return self._held[:-n], self._held[-n:]
        return self._held, ""
