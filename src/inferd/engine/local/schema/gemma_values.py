"""The arguments of a call in Gemma 4's notation: ``{name:<|"|>text<|"|>,count:3,list:[1,2]}``.

llama.cpp's parser of the family takes any names and values. These expressions follow the tool's schema.
The members of an object come in the order in which the template shows them, sorted by name. A schema that
combines others beyond ``anyOf`` allows any value, and the arguments are checked at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inferd.engine.local.schema import raw_texts
from inferd.engine.local.schema.family_grammar import Format
from inferd.engine.local.schema.guides import TOOL_OPTIONS, json_text

QUOTE = '<|"|>'
DICT, VALUE = "gemma4-dict", "gemma4-value"
_MOST_MEMBERS = 200  # of an object; a larger one is checked at the end
_COMBINING = frozenset(
    (
        "allOf",
        "oneOf",
        "not",
        "if",
        "patternProperties",
        "prefixItems",
        "dependentRequired",
        "dependentSchemas",
    )
)
_SCALARS = ("boolean", "integer", "null", "number")

Texts = Callable[[Any], "Sequence[str] | str | None"]


class Values:
    """The expressions for the values of one tool's ``schema``; ``texts`` returns the allowed raw texts of the
    schema of a string: a list, an expression, or ``None`` for any."""

    def __init__(self, form: Format, schema: Mapping[str, Any], texts: Texts) -> None:
        self._form = form
        self._root = schema
        self._texts = texts
        self._references: dict[str, str] = {}

    def arguments(self) -> str:
        return self._object(self._root)

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, dict) or _COMBINING & schema.keys():
            return self._form.rule(VALUE)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._either([self._given(value) for value in values])
        if "anyOf" in schema:
            return self._either([self._value(part) for part in schema["anyOf"]])
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._either([self._value({**schema, "type": each}) for each in kind])
        if kind == "string":
            return f"{self._form.literal(QUOTE)} {self._form.raw(self._texts(schema), [QUOTE])}"
        if kind in _SCALARS:
            limits = {key: value for key, value in schema.items() if key != "$defs"}
            return self._form.value(json_text(limits, TOOL_OPTIONS))
        if kind == "array":
            return self._array(schema)
        return self._object(schema) if kind == "object" else self._form.rule(VALUE)

    def _either(self, options: list[str]) -> str:
        return f"({' | '.join(dict.fromkeys(options))})" if options else self._form.rule(VALUE)

    def _reference(self, target: str) -> str:
        """The rule of a definition, which may refer to itself."""
        if target not in self._references:
            name = self._references[target] = self._form.add(self._form.fresh("defined"), "")
            self._form.add(name, self._value(raw_texts.place(self._root, target)))
        return self._references[target]

    def _given(self, value: Any) -> str:
        """One value."""
        if isinstance(value, str):
            return self._form.literal(f"{QUOTE}{value}{QUOTE}")
        if isinstance(value, dict | list):
            return self._form.rule(VALUE)
        return self._form.literal(json.dumps(value))

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self._form.add(self._form.fresh("item"), self._value(schema.get("items", True)))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _object(self, schema: Mapping[str, Any]) -> str:
        members = {name: part for name, part in (schema.get("properties") or {}).items() if part is not False}
        open_ended = schema.get("additionalProperties", True) is not False
        if open_ended or _COMBINING & schema.keys() or len(members) > _MOST_MEMBERS:
            return self._form.rule(DICT)
        required = schema.get("required") or ()
        names = sorted(members, key=str.lower)
        parts = [f"{self._form.literal(f'{name}:')} {self._value(members[name])}" for name in names]
        return f'"{{" {self._listed(parts, [name in required for name in names])} "}}"'

    def _listed(self, parts: list[str], needed: list[bool]) -> str:
        """The parts in their order with commas between them, without any that are not needed."""
        rest = ""
        beginnings = [""] if not any(needed) else []
        for part, is_needed in reversed(list(zip(parts, needed, strict=True))):
            rule = self._form.add(self._form.fresh("member"), part)
            beginnings = [] if is_needed else beginnings
            beginnings.append(f"{rule} {rest}")
            with_comma = f'"," {rule}' if is_needed else f'("," {rule})?'
            rest = self._form.add(self._form.fresh("further"), f"{with_comma} {rest}")
        given = [beginning for beginning in beginnings if beginning]
        choice = f"({' | '.join(given)})" if given else ""
        return f"{choice}?" if given and "" in beginnings else choice
