"""Tool calls for models whose template does not support tools.

The system message describes the tools and asks the model to write a call as one JSON object. If the model may
also answer in text, the marker ``<tool_call>`` precedes the object. The guide is a grammar for the answer. If
a call is required, the guide constrains the whole answer. Otherwise, it constrains the answer from the marker
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from inferd.engine.events import Event, Text, ToolUse
from inferd.engine.local import _llama
from inferd.engine.local.schema.guides import Guides, Held
from inferd.engine.local.streams.token_records import Place
from inferd.engine.requests import Tool, ToolCall

MARKER = "<tool_call>"


def instructions(tools: Sequence[Tool], required: bool) -> str:
    """Returns the text about the tools for the system message."""
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


def guide(guides: Guides, held: Mapping[str, Held], required: bool) -> _llama.Guide:
    """Returns a guide for one call. The guide constrains the whole answer if a call is ``required``, and
    otherwise the answer from the marker on."""
    calls = []
    rules = []
    for i, (name, each) in enumerate(held.items()):
        begin = f'{{"name": {orjson.dumps(name).decode()}, "arguments": '
        calls.append(f'{orjson.dumps(begin).decode()} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: %json {each.text.decode()}")
    start = f"({' | '.join(calls)})"
    if not required:
        start = f'"{MARKER}" /[ \\n]{{1,20}}/? {start}'
    made = guides.grammar("\n".join(("%llguidance {}", f"start: {start}", *rules)))
    if not required:
        made.wait_for([MARKER.encode()], [])
    return made


def as_text(call: ToolCall) -> str:
    """Returns the text that represents the call of an earlier turn in the prompt."""
    return f'{MARKER}{{"name": {orjson.dumps(call.name).decode()}, "arguments": {call.arguments}}}'


class Reader:
    """Parses an answer while it grows. The answer is text, optionally followed by the marker and one call."""

    def __init__(self, required: bool) -> None:
        self._in_call = required
        self._held = ""
        self.places: Sequence[Place] = ()
        self._shown_bytes = 0

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        """Returns the events that ``text`` completes, or ``None`` if the call cannot be parsed. ``last``
        means that the answer ends after ``text``."""
        self._held += text
        events: list[Event] = []
        if not self._in_call:
            shown, marker, rest = self._held.partition(MARKER)
            if marker:
                self._in_call = True
            elif not last:
                shown, rest = self._split_before_marker()
            if shown:
                events.append(self._text(shown))
            self._held = rest
        if self._in_call and last:
            try:
                call = orjson.loads(self._held)
                events.append(ToolUse(ToolCall("", call["name"], orjson.dumps(call["arguments"]).decode())))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                return None
        return events

    def cut(self) -> list[Event]:
        """Ends an answer that was cut off. Returns the text that was held back because it could begin the
        marker. An unfinished call gives no event."""
        return [self._text(self._held)] if self._held and not self._in_call else []

    def _text(self, shown: str) -> Text:
        begin, self._shown_bytes = self._shown_bytes, self._shown_bytes + len(shown.encode())
        self.places = ((begin, self._shown_bytes),)
        return Text(shown)

    def _split_before_marker(self) -> tuple[str, str]:
        """Splits the text that was held back into a part to emit, and the rest, which may be the beginning of
        the marker."""
        for n in range(min(len(self._held), len(MARKER) - 1), 0, -1):
            if self._held.endswith(MARKER[:n]):
                return self._held[:-n], self._held[-n:]
        return self._held, ""
