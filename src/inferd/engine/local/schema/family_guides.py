"""Guides for families with their own answer format: thoughts, then calls or a JSON value.

The format comes from llama.cpp's parser of the family (:mod:`~inferd.engine.local.schema.family_grammar`).
The parser is made for a ``form``: the tools with only the parts of their schemas that the parser needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inferd.engine.backend import Tool
from inferd.engine.local import _llama
from inferd.engine.local.schema import notations, raw_texts
from inferd.engine.local.schema.family_grammar import KEYWORDS, Format, Inexpressible
from inferd.engine.local.schema.guides import TOOL_OPTIONS, Guides, Held, json_text
from inferd.errors import InvalidRequest

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_NOT_IN_RULES = re.compile("[^a-zA-Z0-9-]+")  # llama.cpp replaces them with a dash in rule names
_RULES = ("tool-{tool}-arg-{parameter}", "ling3-arg-{tool}-{parameter}", "kimi-k3-arg-{tool}-{parameter}")
"""llama.cpp's name of a parameter's rule, by family."""
_ANSWER_SCHEMA = ("response-format", "response-format-schema")

ANSWER = {"json_schema": {"type": "object", "properties": {}}}
"""The form of an answer that is one JSON value."""


def calls_form(
    tools: Sequence[Tool],
    held: Mapping[str, Held],
    required: bool,
    *,
    typed: bool = False,
    listed: bool = False,
) -> dict[str, object]:
    """The form of an answer with calls of these tools. ``typed`` gives each parameter one ``type``;
    ``listed`` puts the type of an array into a list."""
    shapes = [
        {"name": tool.name, "description": "", "parameters": _shape(held[tool.name].schema, typed, listed)}
        for tool in tools
    ]
    return {
        "tools": [{"type": "function", "function": shape} for shape in shapes],
        "tool_choice": "required" if required else "auto",
    }


def answer(guides: Guides, prompt: _llama.Prompt, held: Held) -> _llama.Guide | None:
    """A guide for thoughts and a JSON value; ``None`` if the grammar cannot express the format."""

    def schema_of(name: str) -> bytes | None:
        return held.text if name in _ANSWER_SCHEMA else None

    return _whole(guides, Format(prompt.syntax, guides.control, schema_of))


def calls(
    guides: Guides, prompt: _llama.Prompt, syntax: bytes, held: Mapping[str, Held], required: bool
) -> _llama.Guide | None:
    """A guide for calls: from the first token on if one is ``required``, else from the beginning of a call.

    ``syntax`` is the prompt's, or a repaired one. ``None`` if the grammar cannot express the format or all
    schemas together are too large: then llama.cpp's own grammar enforces the form, and the arguments are
    checked at the end.
    """
    schemas: dict[str, bytes | None] = {}
    texts: dict[str, Sequence[str] | str | None] = {}
    for name, each in held.items():
        schemas[f"tool-{name}-schema"] = each.text
        for parameter, schema in _parameters(each.schema).items():
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
        return tool in held and parameter in (held[tool].schema.get("required") or ())

    def members(form: Format, tool: str, notation: str) -> str | None:
        if tool not in held:
            return None
        schema = held[tool].schema
        if notation == KEYWORDS:
            return notations.keywords(form, schema, lambda part: _texts(guides, part, schema))
        return notations.Values(form, schema, lambda part: _texts(guides, part, schema)).arguments()

    simpler = {rule: None if isinstance(said, str) else said for rule, said in texts.items()}
    for given in (texts, simpler):
        try:
            form = Format(syntax, guides.control, schemas.get, given.get, requires, members)
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
    """A guide for the whole answer; ``None`` if the grammar cannot express the format."""
    try:
        guide = guides.grammar(form.text(form.root(free_text=free_text)))
    except Inexpressible:
        return None
    return guide if guide.accept_text(form.begun.encode()) else None


def _thoughts(form: Format, prompt: _llama.Prompt) -> str:
    """The expression for optional or required thoughts before a call."""
    start, ends = prompt.thinking[0].decode(), [end.decode() for end in prompt.thinking[1]]
    if not ends:
        return ""
    if start and form.begun.rstrip().endswith(start):
        return f"{form.up_to(ends[:1])} {form.space()}"
    if not start or not prompt.thinks:
        return ""
    return f"({form.literal(start)} {form.up_to(ends[:1])} {form.space()})?"


def _shape(schema: Mapping[str, Any], typed: bool, listed: bool) -> dict[str, object]:
    """The part of a tool's schema that the parser needs: the names and types of its parameters."""
    properties = {
        name: _shape_of_types(_types(part, schema), typed, listed)
        for name, part in _parameters(schema).items()
    }
    required = [name for name in schema.get("required") or () if name in properties]
    return {"type": "object", "properties": properties, "required": required}


def _parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas of the parameters that a call may have."""
    return {name: part for name, part in (schema.get("properties") or {}).items() if part is not False}


def _shape_of_types(types: set[str], typed: bool, listed: bool) -> dict[str, object]:
    if listed and types == {"array"}:
        return {"type": ["array"]}
    if typed and len(types) > 1:
        return {"type": "string" if "string" in types else "any"}
    if len(types) == len(_TYPES):
        return {}
    return {"type": sorted(types) if len(types) > 1 else next(iter(types), "null")}


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types that a value of the schema may have."""
    if not isinstance(schema, dict) or depth > 20:
        return set(_TYPES) if schema is not False else set()
    found = set(_TYPES)
    if "type" in schema:
        given = schema["type"]
        found &= {given} if isinstance(given, str) else set(given)
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if values is not None:
            found &= {_type_of(value) for value in values}
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found &= set().union(*(_types(part, root, depth + 1) for part in schema[key]))
    for part in schema.get("allOf", ()):
        found &= _types(part, root, depth + 1)
    if str(schema.get("$ref", "")).startswith("#/"):
        found &= _types(raw_texts.place(root, schema["$ref"]), root, depth + 1)
    return found


def _texts(guides: Guides, schema: Any, root: Mapping[str, Any]) -> Sequence[str] | str | None:
    """The allowed raw texts: a list, an expression, or ``None`` for any."""
    given = raw_texts.given(schema, root)
    if given is not None or _types(schema, root) != {"string"}:
        return given
    expression = raw_texts.expression(schema, root)
    return expression if expression and guides.takes(f"start: TEXT\nTEXT: {expression}") else None


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _with_definitions(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter with its definitions, usable on its own."""
    if not isinstance(schema, dict):
        return {}
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root and key not in schema}
    return {**schema, **definitions}
