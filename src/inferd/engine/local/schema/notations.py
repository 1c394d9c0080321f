"""The arguments of a call in notations of which llama.cpp's parser takes any values.

Gemma 4 writes ``{name:<|"|>text<|"|>,count:3,list:[1,2]}``, with the members of an object in the order in
which its template shows them, sorted by name. LFM2.5 writes ``name="text", count=3``, as Python does. The
expressions here follow the schema of the tool. A schema of Gemma's that combines others beyond ``anyOf``
allows any value, and the arguments are checked at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inferd.engine.local.schema import raw_texts
from inferd.engine.local.schema.family_grammar import DICT, KEYWORDS, Format
from inferd.engine.local.schema.guides import TOOL_OPTIONS, json_text

QUOTE = '<|"|>'
VALUE = "gemma4-value"
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
_PYTHON = {"True": "boolean", "False": "boolean", "None": "null"}
_SCALARS = ("boolean", "integer", "null", "number")


Texts = Callable[[Any], "Sequence[str] | str | None"]


def keywords(form: Format, schema: Mapping[str, Any], texts: Texts) -> str:
    """LFM2.5's arguments. Arrays and objects may have any value."""
    members = {name: part for name, part in (schema.get("properties") or {}).items() if part is not False}
    required = schema.get("required") or ()
    parts = [f"{form.literal(f'{name}=')} {_python(form, part, texts)}" for name, part in members.items()]
    return listed(form, parts, [name in required for name in members], f'"," {form.space()}')


def _python(form: Format, schema: Any, texts: Texts) -> str:
    """A value as JSON or as Python writes it."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return f"({' | '.join(_python_texts(form, schema, texts(schema)))})"
    if kind not in _SCALARS or "enum" in schema or "const" in schema:
        return form.rule(KEYWORDS)
    words = [form.literal(word) for word, of_kind in _PYTHON.items() if of_kind == kind]
    return f"({' | '.join([form.value(json_text(schema, TOOL_OPTIONS)), *words])})"


def _python_texts(form: Format, schema: Mapping[str, Any], texts: Sequence[str] | str | None) -> list[str]:
    if isinstance(texts, str):
        single = form.add(form.fresh("SINGLE"), f"{texts} & /[^'\\\\\\n]*/")
        return [form.value(json_text(dict(schema), TOOL_OPTIONS)), f'"\'" {single} "\'"']
    if texts is not None:
        plain = [text for text in texts if not set(text) & set("'\\\n")]
        return [
            *(form.literal(f"'{text}'") for text in plain),
            *(form.literal(json.dumps(text)) for text in texts),
        ]
    return [form.value(json_text({"type": "string"}, TOOL_OPTIONS)), "/'([^'\\\\\\n]|\\\\['\\\\\\/bfnrt])*'/"]


def listed(form: Format, parts: list[str], needed: list[bool], comma: str) -> str:
    """The parts in their order, with commas between them; those that are not needed may be left out."""
    rest = ""
    beginnings = [] if any(needed) else [""]
    for part, is_needed in reversed(list(zip(parts, needed, strict=True))):
        rule = form.add(form.fresh("member"), part)
        beginnings = [*([] if is_needed else beginnings), f"{rule} {rest}"]
        rest = form.add(form.fresh("further"), f"({comma} {rule}){'' if is_needed else '?'} {rest}")
    given = [beginning for beginning in beginnings if beginning]
    choice = f"({' | '.join(given)})" if given else ""
    return f"{choice}?" if given and "" in beginnings else choice


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
        inner = listed(self._form, parts, [name in required for name in names], '","')
        return f'"{{" {inner} "}}"'
