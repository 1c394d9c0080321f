"""Makes the guides of model families with their own answer format: thoughts, then calls or a JSON value.

The format comes from llama.cpp's parser for the family (:mod:`~inferd.engine.local.schema.family_grammar`).
llama.cpp makes the parser from a ``form``, which contains the parts of the tools' schemas that the parser
needs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inferd.engine.local import _llama
from inferd.engine.local.schema import notations, raw_texts
from inferd.engine.local.schema.alternatives import (
    TYPES,
    TooManyAlternatives,
    alternatives,
    kinds,
    listed,
    parameters,
    type_of,
)
from inferd.engine.local.schema.family_grammar import KEYWORDS, Format, Inexpressible
from inferd.engine.local.schema.guides import TOOL_OPTIONS, Guides, Held, json_text
from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest

_NOT_IN_RULES = re.compile("[^a-zA-Z0-9-]+")  # llama.cpp replaces them with a dash in rule names
_RULES = ("tool-{tool}-arg-{parameter}", "ling3-arg-{tool}-{parameter}", "kimi-k3-arg-{tool}-{parameter}")
"""The names that llama.cpp gives to the rule of a parameter. They depend on the family."""
_ANSWER_SCHEMA = ("response-format", "response-format-schema")

ANSWER = {"json_schema": {"type": "object", "properties": {}}}
"""The ``form`` for an answer that is one JSON value."""


def calls_form(
    tools: Sequence[Tool],
    held: Mapping[str, Held],
    required: bool,
    *,
    typed: bool = False,
    listed: bool = False,
) -> dict[str, object]:
    """Returns the ``form`` for an answer that may call these tools. With ``typed``, each parameter gets
    exactly one ``type``. With ``listed``, the type of an array parameter is the list ``["array"]``."""
    shapes = [
        {"name": tool.name, "description": "", "parameters": _shape(held[tool.name].schema, typed, listed)}
        for tool in tools
    ]
    return {
        "tools": [{"type": "function", "function": shape} for shape in shapes],
        "tool_choice": "required" if required else "auto",
    }


def answer(guides: Guides, prompt: _llama.Prompt, held: Held) -> _llama.Guide | None:
    """Returns a guide for thoughts followed by a JSON value, or ``None`` if the grammar cannot express the
    format."""

    def schema_of(name: str) -> bytes | None:
        return held.text if name in _ANSWER_SCHEMA else None

    return _whole(guides, Format(prompt.syntax, guides.control, schema_of))


def calls(
    guides: Guides, prompt: _llama.Prompt, syntax: bytes, held: Mapping[str, Held], required: bool
) -> _llama.Guide | None:
    """Returns a guide for tool calls. If a call is ``required``, the guide constrains the whole answer.
    Otherwise it constrains the answer from the mark that begins a call. If the format has no such mark, the
    guide constrains the whole answer and allows free text.

    ``syntax`` is the prompt's parser in JSON, with the repairs of
    :mod:`~inferd.engine.local.schema.family_repairs`. Returns ``None`` if the grammar cannot express the
    format, or if all schemas together are too large. Without a guide, llama.cpp's own grammar enforces the
    format, and the arguments are checked at the end.
    """
    schemas: dict[str, bytes | None] = {}
    texts: dict[str, Sequence[str] | str | None] = {}
    needed: dict[str, set[str]] = {}
    for name, each in held.items():
        schemas[f"tool-{name}-schema"] = each.text
        declared, needed[name] = parameters(each.schema)
        for parameter, schema in declared.items():
            names = [rule.format(tool=name, parameter=parameter) for rule in _RULES]
            rules = [_NOT_IN_RULES.sub("-", each_name) for each_name in names]
            if _types(schema, each.schema) & {"string"}:
                said = _texts(guides, schema, each.schema)
                texts |= {rule: None if rule in texts else said for rule in rules}
                continue
            text = json_text(_with_definitions(schema, each.schema), TOOL_OPTIONS)
            schemas |= {rule: None if rule in schemas else text for rule in rules}
            schemas |= {f"{name}{end}": text for name in names for end in ("", "-schema")}

    def requires(tool: str, parameter: str) -> bool:
        return parameter in needed.get(tool, ())

    def members(form: Format, tool: str, notation: str, *, simple: bool) -> str | None:
        if tool not in held:
            return None
        schema = held[tool].schema
        arguments = notations.keywords if notation == KEYWORDS else notations.members
        return arguments(
            form,
            schema,
            lambda part: _without_expression(_texts(guides, part, schema), simple),
            lambda lark: not simple and guides.takes(lark),
        )

    for simple in (False, True):
        given = {rule: _without_expression(said, simple) for rule, said in texts.items()}
        try:
            form = Format(
                syntax,
                guides.control,
                schemas.get,
                given.get,
                requires,
                functools.partial(members, simple=simple),
            )
            return _calls(guides, prompt, form, required)
        except Inexpressible:
            return None
        except InvalidRequest:  # each schema fits, all together do not
            _llama.stop_if_cancelled()
    return None


def _calls(guides: Guides, prompt: _llama.Prompt, form: Format, required: bool) -> _llama.Guide | None:
    call = form.calls()
    if required:
        return guides.grammar(form.text(f"{_thoughts(form, prompt)} ({call})"))
    if not prompt.grammar:  # calls have no mark; a brace begins one
        return guides.grammar(form.text(f"{form.text_without_brace()} | {call}"))
    if prompt.triggers is None:  # only a pattern recognises a call: constrain the whole answer
        return _whole(guides, form, free_text=True)
    guide = guides.grammar(form.text(call))
    guide.wait_for(*prompt.triggers)
    return guide


def _whole(guides: Guides, form: Format, *, free_text: bool = False) -> _llama.Guide | None:
    """Returns a guide for the whole answer, or ``None`` if the grammar cannot express the format."""
    try:
        guide = guides.grammar(form.text(form.root(free_text=free_text)))
    except Inexpressible:
        return None
    return guide if guide.accept_text(form.begun.encode()) else None


def _thoughts(form: Format, prompt: _llama.Prompt) -> str:
    """Returns the expression for the thoughts before a call, or ``""`` if there are none. The thoughts are
    required if the prompt has begun them, and otherwise optional."""
    start, ends = prompt.thinking[0].decode(), [end.decode() for end in prompt.thinking[1]]
    if not ends:
        return ""
    if start and form.begun.rstrip().endswith(start):
        return f"{form.up_to(ends[:1])} {form.space()}"
    if not start or not prompt.thinks:
        return ""
    return f"({form.literal(start)} {form.up_to(ends[:1])} {form.space()})?"


def _shape(schema: Mapping[str, Any], typed: bool, listed: bool) -> dict[str, object]:
    """Returns the part of a tool's schema that the parser needs: the names and the types of the parameters,
    and which of them are required."""
    declared, needed = parameters(schema)
    properties = {
        name: _shape_of_types(_types(part, schema), typed, listed) for name, part in declared.items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in declared if name in needed],
    }


def _shape_of_types(types: set[str], typed: bool, listed: bool) -> dict[str, object]:
    if listed and types == {"array"}:
        return {"type": ["array"]}
    if typed and len(types) > 1:
        return {"type": "string" if "string" in types else "any"}
    if len(types) == len(TYPES):
        return {}
    return {"type": sorted(types) if len(types) > 1 else next(iter(types), "null")}


def _types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """Returns the types that a value of ``schema`` may have."""
    found: set[str] = set()
    try:
        ways = alternatives([schema], root)
    except TooManyAlternatives:
        return set(TYPES)
    for way in ways:
        values = listed(way)
        types = kinds(way) if values is None else {type_of(value) for value in values}
        found |= types if len(types) == len(TYPES) or "number" not in types else types - {"integer"}
    return found


def _texts(guides: Guides, schema: Any, root: Mapping[str, Any]) -> Sequence[str] | str | None:
    """Returns the texts that a parameter may have: a list, an expression, or ``None`` for any text."""
    given = raw_texts.given(schema, root)
    if given is not None or _types(schema, root) != {"string"}:
        return given
    expression = raw_texts.expression(schema, root)
    return expression if expression and guides.takes(f"start: TEXT\nTEXT: {expression}") else None


def _without_expression(texts: Sequence[str] | str | None, simple: bool) -> Sequence[str] | str | None:
    return None if simple and isinstance(texts, str) else texts


def _with_definitions(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a parameter together with the definitions of the tool's schema, to which the
    parameter's schema may refer."""
    if not isinstance(schema, dict):
        return {}
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root and key not in schema}
    return {**schema, **definitions}
