"""The table in docs/structured.md matches how the engine treats each keyword."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest
from tests.unit.test_schemas import allows, guides

PAGE = (Path(__file__).parents[2] / "docs/structured.md").read_text("utf-8")
PART = re.compile(r"(?<=<!-- keywords -->\n)(.*?)(?=<!-- /keywords -->)", re.S)
STRING: dict[str, Any] = {"type": "string"}
TWO = {"a": {"type": "integer"}, "b": {"type": "integer"}}

Tried = tuple[dict[str, Any], list[Any], list[Any]]
"""A schema, values that follow it and values that do not."""


def number(value: Any, *others: Any, **keywords: Any) -> Tried:
    return {"type": "number", **keywords}, [value], list(others)


def text(value: str, *others: str, **keywords: Any) -> Tried:
    return {"type": "string", **keywords}, [value], list(others)


def array(value: list[Any], *others: list[Any], **keywords: Any) -> Tried:
    return {"type": "array", **keywords}, [value], list(others)


def object_(value: dict[str, Any], *others: dict[str, Any], **keywords: Any) -> Tried:
    return {"type": "object", **keywords}, [value], list(others)


# Keywords as the table names them → schemas with them.
ROWS: dict[str, list[Tried]] = {
    "`type`, `enum`, `const`": [
        ({"type": ["string", "null"]}, ["a", None], [1, []]),
        ({"enum": ["a", None, {"b": [1]}]}, ["a", None, {"b": [1]}], ["b", {"b": []}]),
        ({"const": 1}, [1], [2, "1"]),
    ],
    "`properties`, `required`, `additionalProperties`": [
        object_({"b": 1}, {}, {"a": 1}, {"b": "x"}, properties=TWO, required=["b"]),
        object_({"c": True}, {"c": 1}, {"a": True}, properties=TWO, additionalProperties={"type": "boolean"}),
        object_({"a": 1, "b": 2}, {"c": 1}, properties=TWO, additionalProperties=False),
    ],
    "`patternProperties`": [object_({"x-a": "a", "y": 1}, {"x-a": 1}, patternProperties={"^x-": STRING})],
    "`patternProperties` with patterns that match the same name": [
        object_({"ab": 1}, {"ab": "a"}, {"ax": "a"}, patternProperties={"^a": TWO["a"], "b$": TWO["b"]})
    ],
    "`propertyNames` with `enum`, `const` or `pattern`": [
        object_({"a": 1}, {"c": 1}, propertyNames={"enum": ["a", "b"]}),
        object_({"a": 1}, {"b": 1}, propertyNames={"const": "a"}),
        object_({"xa": 1}, {"ax": 1}, propertyNames={"pattern": "^x"}),
    ],
    "other `propertyNames`": [object_({"abc": 1}, {"abcd": 1}, propertyNames={"maxLength": 3})],
    "`minProperties`, `maxProperties` without optional properties": [
        object_({"c": 1}, {}, minProperties=1),
        object_({"c": 1, "d": 2}, {"c": 1, "d": 2, "e": 3}, maxProperties=2),
    ],
    "`minProperties`, `maxProperties` beside optional and undeclared properties": [
        object_({"a": 1}, {}, properties=TWO, minProperties=1, additionalProperties=True),
        object_({"a": 1}, {"a": 1, "b": 2}, properties=TWO, maxProperties=1, additionalProperties=True),
    ],
    "`items`, `prefixItems`, `minItems`, `maxItems`": [
        array(["a"], [1], items=STRING),
        array(["a", 1], [1], ["a", 1, 2], prefixItems=[STRING], items={"const": 1}, maxItems=2),
        array([1, 2], [1], minItems=2),
    ],
    "`uniqueItems`": [array([1, 2], [1, 1], uniqueItems=True)],
    "`contains`": [array([1, "a"], [1], contains=STRING)],
    "`minLength`, `maxLength`": [text("ab", "a", "abcd", minLength=2, maxLength=3)],
    "`pattern`": [text("123", "12", "12a", pattern=r"^\d{3}$"), text("xaby", "ba", pattern="ab")],
    "`pattern` with look-around, back-references or `\\b`": [
        text("ac", "ab", pattern="a(?!b)"),
        text("aa", "ab", pattern=r"^(.)\1$"),
        text("a b", "ab", pattern=r"a\b"),
    ],
    "`format` `date`, `time`, `date-time`, `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uri`, `uuid`": [
        text("2026-11-28", "2026-13-28", "28.11.2026", format="date"),
        text("23:59:00Z", "25:00:00Z", "noon", format="time"),
        text("2026-11-28T01:02:03Z", "2026-11-28", format="date-time"),
        text("P1DT2H", "1 day", format="duration"),
        text("a.b@example.com", "a.b", format="email"),
        text("example.com", "-example", "a b", format="hostname"),
        text("127.0.0.1", "256.0.0.1", "1.2.3", format="ipv4"),
        text("fe80::1", "1::2::3", "::g", format="ipv6"),
        text("https://example.com/a?b", "a b", format="uri"),
        text("12345678-1234-4234-8234-123456789abc", "12345678", format="uuid"),
    ],
    "`format` `idn-email`, `idn-hostname`, `regex`": [
        text("é@example.com", "a b", format="idn-email"),
        text("straße.example", "-a", format="idn-hostname"),
        text("a+", "a(", format="regex"),
    ],
    "other `format`": [text("https://example.com/ü", "a b", format="iri"), text("a/b", "a\0", format="path")],
    "`minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`": [
        number(0.5, -1, 2.5, 3, minimum=0, exclusiveMaximum=2.5),
        number(2.5, 0, 2.6, exclusiveMinimum=0, maximum=2.5),
    ],
    "`multipleOf`": [number(19.99, 19.999, multipleOf=0.01), number(6, 7, multipleOf=3)],
    "`multipleOf` above 50,000 without trailing zeros, or of digits like 0.07": [
        number(140002, 140003, multipleOf=70001),
        number(0.14, 0.15, multipleOf=0.07),
    ],
    "integers beyond 2^53 in `const` and `enum`": [
        ({"const": 2**53 + 1}, [2**53 + 1], [2**53 + 2]),
        ({"enum": [-(2**60), "a"]}, [-(2**60), "a"], [-(2**61), "b"]),
    ],
    "`allOf`, `anyOf`": [
        ({"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 2}]}, ["ab"], ["a", "abc", 1]),
        ({"anyOf": [STRING, {"type": "null"}]}, ["a", None], [1]),
        ({"type": "object", "properties": TWO, "anyOf": [{"required": ["a"]}]}, [{"a": 1}], [{"b": 1}]),
    ],
    "`oneOf` with branches that exclude each other": [
        ({"oneOf": [STRING, {"type": "null"}]}, ["a", None], [1])
    ],
    "other `oneOf`": [({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1, 1.5], ["a"])],
    "`not`": [({"not": {"type": "string"}}, [1], ["a"])],
    "`if`, `then`, `else`": [
        ({"if": STRING, "then": {"minLength": 1}, "else": {"type": "null"}}, ["a", None], ["", 1])
    ],
    "`dependentRequired`, `dependentSchemas`": [
        object_({"a": 1, "b": 2}, {"a": 1}, dependentRequired={"a": ["b"]}),
        object_({"a": 1, "b": 2}, {"a": 1}, dependentSchemas={"a": {"required": ["b"]}}),
    ],
    "`unevaluatedProperties`, `unevaluatedItems` beside combinations": [
        object_({"a": 1}, {"c": 1}, anyOf=[{"properties": TWO}], unevaluatedProperties=False),
        array([1], [1, 2], anyOf=[{"prefixItems": [{"const": 1}]}], unevaluatedItems=False),
    ],
    "`$ref` to a place in the schema": [
        ({"$defs": {"a": STRING}, "$ref": "#/$defs/a"}, ["a"], [1]),
        ({"type": ["array", "null"], "items": {"$ref": "#/properties/value"}}, [[], [[None]]], [[1], 1]),
    ],
}


def outcome(tried: Tried, *, tool: bool) -> str:
    """What becomes of the keywords; the values are judged as it says."""
    schema, fits, others = tried
    whole = {"type": "object", "properties": {"value": schema}, "$defs": schema.get("$defs", {})}
    try:
        made = json.dumps(whole)
        held = guides().tool(Tool("f", "", made)) if tool else guides().answer(made, lenient=False)
    except InvalidRequest:
        return "refused"
    separators = (", ", ": ") if tool else (",", ":")

    def takes(value: Any) -> bool:
        answer = json.dumps({"value": value}, separators=separators, ensure_ascii=False)
        checked = held.check.fault(answer) is None
        taken = allows(held, answer)
        assert checked or not taken or held.dropped, (schema, answer)
        return checked if held.dropped else taken

    assert all(map(takes, fits)), schema
    if held.dropped and all(map(takes, others)):
        return "not checked"
    assert not any(map(takes, others)), schema
    return "checked at the end" if held.dropped else "enforced"


def row(keywords: str, tried: list[Tried]) -> str:
    """A row of the table, once each of its schemas has the same outcome."""
    cells = [{outcome(each, tool=tool) for each in tried} for tool in (False, True)]
    return f"| {keywords} | {' and '.join(sorted(cells[0]))} | {' and '.join(sorted(cells[1]))} |"


def test_the_table_matches_the_engine() -> None:
    rows = ["| keyword | in an answer | in a tool |", "|---|---|---|"]
    rows += [row(keywords, tried) for keywords, tried in ROWS.items()]
    found = PART.search(PAGE)
    assert found is not None
    assert found[0] == "\n".join(rows) + "\n"
