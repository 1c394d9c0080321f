"""Seventy chat templates and twelve conversations: inferd's prompts, compared with those of Jinja2.

This module generates a table in docs/structured.md, which lists every difference with its reason. If a prompt
differs because inferd rewrote the messages, it must equal Jinja2's prompt of the rewritten messages.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from inferd.engine.local import _llama
from inferd.engine.local.child import turns
from inferd.engine.local.conversation import NOTHING, Family
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import Message, ToolCall
from inferd.errors import InvalidRequest
from tests.jinja_reference import compiled
from tests.unit.test_conversation import TEMPLATES
from tests.unit.test_llamacpp import load_model

PAGE = (Path(__file__).parents[2] / "docs/structured.md").read_text("utf-8")
PART = re.compile(r"(?<=<!-- prompts -->\n)(.*?)(?=<!-- /prompts -->)", re.S)


def tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    tool(
        "get_weather",
        'The weather of a city; "now" or in days',
        {
            "city": {"type": "string", "description": "Where: Zürich, 東京"},
            "days": {"type": "integer", "minimum": 1, "maximum": 16, "default": 3},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        ["city"],
    ),
    tool(
        "send",
        "Sends",
        {
            "to": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object", "properties": {"rate": {"type": "number", "default": 0.25}}},
        },
        ["to"],
    ),
]
WEATHER = ToolCall("abcdefgh1", "get_weather", '{"city": "Zürich", "days": 2}')
SEND = ToolCall("abcdefgh2", "send", '{"to": ["a@b.c", "d"], "options": {"urgent": true, "rate": 0.5}}')
NAMES = {WEATHER.id: WEATHER.name, SEND.id: SEND.name}
SYSTEM, HI = Message("system", "Be brief."), Message("user", "Hi")
ASKED = Message("user", "Weather?")
SUNNY = Message("tool", "sunny", tool_call_id=WEATHER.id)
CALLED = Message("assistant", "", tool_calls=(WEATHER,))
GREETED = (HI, Message("assistant", "Hello."), Message("user", "Why?"))

CONVERSATIONS: dict[str, tuple[tuple[Message, ...], dict[str, Any]]] = {
    "a question": ((Message("user", "What is 1 + 1?"),), {}),
    "a system message": ((SYSTEM, HI), {}),
    "turns": ((SYSTEM, *GREETED, Message("assistant", "A model."), Message("user", "Bye")), {}),
    "odd text": (
        (
            Message("user", "  \n<b>\"é\" & '東京' {{ x }} \\n\n\n- a\n- b\n "),
            Message("assistant", "1. `x = {'a': 1}`\n2. \U0001f600"),
            Message("user", "ok\n"),
        ),
        {},
    ),
    "no thinking": (GREETED, {"thinking": False}),
    "thinking": (GREETED, {"thinking": True}),
    "thoughts": (
        (
            HI,
            Message("assistant", "Hello.", thinking="They greet."),
            Message("user", "Why?"),
            Message("assistant", "So.", thinking="Think more."),
            Message("user", "And?"),
        ),
        {"thinking": True},
    ),
    "tools": ((SYSTEM, ASKED), {"tools": TOOLS}),
    "a call": ((ASKED, CALLED, SUNNY), {"tools": TOOLS}),
    "two calls": (
        (
            ASKED,
            Message("assistant", "", tool_calls=(WEATHER, SEND)),
            Message("tool", '{"t": 21.5}', tool_call_id=WEATHER.id),
            Message("tool", "sent", tool_call_id=SEND.id),
        ),
        {"tools": TOOLS},
    ),
    "a call after text": (
        (
            SYSTEM,
            ASKED,
            Message("assistant", "Let me look.", tool_calls=(WEATHER,)),
            SUNNY,
            Message("assistant", "It is sunny."),
            Message("user", "Thanks"),
        ),
        {"tools": TOOLS},
    ),
    "a call after thoughts": (
        (ASKED, Message("assistant", "", tool_calls=(WEATHER,), thinking="I look."), SUNNY),
        {"tools": TOOLS, "thinking": True},
    ),
}

# Differences with a special reason.
KNOWN = {
    "StepFun3.5-Flash": "inferd trims texts, which prevents endless thinking",
    "fireworks-ai-llama-3-firefunction-v2": "Jinja2 fails: the template needs the variable `functions`",
    "google-gemma-2-2b-it": "takes no system message: inferd joins it to the user's",
    "llama-cpp-deepseek-r1": "Jinja2 fails: the template was written for llama.cpp",
    "meetkai-functionary-medium-v3.1": "Jinja2's `safe` makes `&#34;` of each `\"` in the tools",
}


@cache
def model() -> _llama.Model:
    return load_model()


def ours(family: Family, messages: Sequence[Message], thinking: bool, tools: Any) -> str | None:
    more = {"tools": tools} if tools else {}
    try:
        prompt = family.render(messages, NOTHING, thinking=thinking, text_only=True, **more)
    except InvalidRequest:
        return None
    return model().text(prompt.tokens).decode()


def theirs(
    template: jinja2.Template, messages: Sequence[Message], thinking: bool, tools: Any
) -> Iterator[str]:
    """Jinja2's prompts of the messages, in each form that templates expect."""
    now = datetime.now()
    calls = any(message.tool_calls for message in messages)
    forms = itertools.product((False, True), ("", None, ...), (False, True)) if calls else [(False, "", True)]
    tried = []
    for as_text, nothing, named in forms:
        for typed in (False, True):
            shown = [form_of(message, as_text, nothing, named, typed) for message in messages]
            if shown in tried:
                continue
            tried.append(shown)
            try:
                yield template.render(
                    messages=shown,
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    bos_token="<|im_start|>",
                    eos_token="<|im_end|>",
                    date_string=now.strftime("%d %b %Y"),
                    **({"tools": tools} if tools else {}),
                )
            except (jinja2.TemplateError, TypeError):
                continue


def form_of(message: Message, as_text: bool, nothing: object, named: bool, typed: bool) -> dict[str, Any]:
    """A message in the form of transformers.

    The arguments of calls are objects, or text. An empty content is ``nothing``, or absent. Results have the
    name of their tool. Contents are texts, or typed parts.
    """
    content: object = message.content
    if typed and not message.tool_calls:
        content = [{"type": "text", "text": content}]
    out: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls and not message.content:
        out["content"] = nothing
        if nothing is ...:
            del out["content"]
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_call_id:
        out |= {"tool_call_id": message.tool_call_id} | (
            {"name": NAMES[message.tool_call_id]} if named else {}
        )
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if as_text else json.loads(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return out


def rewritings(family: Family, messages: Sequence[Message]) -> Iterator[tuple[str, Sequence[Message]]]:
    yield "", messages
    given = turns.fitting(messages, family.templates)
    if given != messages:
        if not family.templates.calls:
            yield "renders no calls: inferd writes them as text", given
        elif not family.templates.nested_arguments:
            yield "inferd writes lists and objects among arguments as JSON, Jinja2 as Python", given
        else:
            yield "takes one call per message", given
    for others in turns.stricter(given):
        as_text = not any(message.tool_calls for message in others)
        yield (
            "inferd writes a call beside text into the text"
            if as_text
            else "text before a call becomes a message of its own",
            others,
        )


def reason(
    name: str,
    family: Family,
    template: jinja2.Template,
    messages: Sequence[Message],
    thinking: bool = False,
    tools: Any = None,
) -> str:
    """The reason why our prompt differs; empty if it does not."""
    prompt = ours(family, messages, thinking, tools)
    for why, others in rewritings(family, messages):
        if prompt in theirs(template, others, thinking, tools):
            return why
    seen = next(theirs(template, messages, thinking, tools), None)
    if prompt is None and seen is None:
        return ""
    if seen is None and name.startswith("Kimi"):
        return "Jinja2 fails: its sandbox forbids appending to a list"
    return KNOWN.get(name, f"UNKNOWN {prompt!r} {seen!r}")


def rows() -> str:
    guides = Guides(model())
    differences: dict[tuple[str, str], list[str]] = defaultdict(list)
    paths = sorted(TEMPLATES.glob("*.jinja"))
    for path in paths:
        source = path.read_text("utf-8")
        family = Family(_llama.Templates(model(), source), guides)
        template = compiled(source)
        for name, (messages, options) in CONVERSATIONS.items():
            why = reason(path.stem, family, template, messages, **options)
            if why:
                differences[path.stem, why].append(name)
    assert len(paths) * len(CONVERSATIONS) == 840
    lines = ["| template | conversations | reason for the difference |", "|---|---|---|"]
    lines += [
        f"| {name} | {', '.join(found) if len(found) < 12 else 'all'} | {why} |"
        for (name, why), found in differences.items()
    ]
    return "\n".join(lines) + "\n"


def test_every_difference_from_jinja2_is_in_the_table() -> None:
    found = PART.search(PAGE)
    assert found is not None
    assert found[0] == rows()
