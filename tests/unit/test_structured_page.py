"""docs/structured.md: its table matches the engine's treatment of each keyword."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest
from tests.unit.test_schemas import guides

PAGE = (Path(__file__).parents[2] / "docs/structured.md").read_text("utf-8")
PART = re.compile(r"(?<=<!-- keywords -->\n)(.*?)(?=<!-- /keywords -->)", re.S)
STRING: dict[str, Any] = {"type": "string"}
TWO = {"a": {"type": "integer"}, "b": {"type": "integer"}}

# A keyword as the table names it → a value of the schema with that keyword.
TRIED: dict[str, dict[str, Any]] = {
    "`type`, `enum`, `const`": {"type": ["string", "null"], "enum": ["a", None]},
    "`properties`, `required`, `additionalProperties`": {
        "type": "object",
        "properties": TWO,
        "required": ["b"],
        "additionalProperties": {"type": "boolean"},
    },
    "`patternProperties`": {"type": "object", "patternProperties": {"^x-": STRING}},
    "`propertyNames` with `enum`, `const` or `pattern`": {
        "type": "object",
        "propertyNames": {"pattern": "^x"},
    },
    "other `propertyNames`": {"type": "object", "propertyNames": {"maxLength": 3}},
    "`minProperties`, `maxProperties` without optional properties": {"type": "object", "maxProperties": 2},
    "`minProperties`, `maxProperties` beside optional properties": {
        "type": "object",
        "properties": TWO,
        "minProperties": 1,
    },
    "`items`, `prefixItems`, `minItems`, `maxItems`": {
        "type": "array",
        "prefixItems": [STRING],
        "items": STRING,
        "minItems": 1,
        "maxItems": 3,
    },
    "`uniqueItems`": {"type": "array", "uniqueItems": True},
    "`contains`": {"type": "array", "contains": STRING},
    "`minLength`, `maxLength`": {"type": "string", "minLength": 1, "maxLength": 9},
    "`pattern`": {"type": "string", "pattern": r"^\d{3}$"},
    "`pattern` with look-around, back-references or `\\b`": {"type": "string", "pattern": "a(?!b)"},
    "`format` `date`, `time`, `date-time`, `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uri`, `uuid`": {
        "anyOf": [
            {"type": "string", "format": name}
            for name in (
                *("date", "time", "date-time", "duration", "email"),
                *("hostname", "ipv4", "ipv6", "uri", "uuid"),
            )
        ]
    },
    "other `format`": {"type": "string", "format": "iri"},
    "`minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 2.5,
    },
    "`multipleOf`": {"type": "number", "multipleOf": 0.01},
    "integers beyond 2^53 in `const` and `enum`": {"const": 2**53 + 1},
    "`allOf`, `anyOf`": {"allOf": [{"minLength": 2}], "anyOf": [STRING]},
    "`oneOf` with branches that exclude each other": {"oneOf": [STRING, {"type": "null"}]},
    "other `oneOf`": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "`not`": {"not": {"type": "string"}},
    "`if`, `then`, `else`": {"if": STRING, "then": {"minLength": 1}},
    "`dependentRequired`, `dependentSchemas`": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "`unevaluatedProperties`, `unevaluatedItems` beside combinations": {
        "type": "object",
        "anyOf": [{"properties": TWO}],
        "unevaluatedProperties": False,
    },
    "`$ref` to a place in the schema": {"$defs": {"a": STRING}, "$ref": "#/$defs/a"},
}


def outcome(schema: dict[str, Any], *, tool: bool) -> str:
    inner = {"type": "object", "properties": {"value": schema}}
    if "$defs" in schema:
        inner["$defs"] = schema["$defs"]
    text = json.dumps(inner)
    try:
        held = guides().tool(Tool("f", "", text)) if tool else guides().answer(text, lenient=False)
    except InvalidRequest:
        return "refused"
    return "checked at the end" if held.dropped else "enforced"


def test_the_table_matches_the_engine() -> None:
    rows = ["| keyword | in an answer | in a tool |", "|---|---|---|"]
    for keyword, schema in TRIED.items():
        rows.append(f"| {keyword} | {outcome(schema, tool=False)} | {outcome(schema, tool=True)} |")
    found = PART.search(PAGE)
    assert found is not None
    assert found[0] == "\n".join(rows) + "\n"
