"""Objects that declare properties get no others, unless the schema says or may need otherwise."""

from __future__ import annotations

import copy
import json
from typing import Any

from inferd.engine.local.schema.closed_objects import close
from tests.cases import cases
from tests.unit.test_schemas import allows, hold, hold_tool

A = {"type": "object", "properties": {"a": {"type": "integer"}}}
B = {"type": "object", "properties": {"b": {"type": "integer"}}}
CLOSED = {**A, "additionalProperties": False}


def closed(schema: dict[str, Any], *, is_tool: bool = False) -> dict[str, Any]:
    result = copy.deepcopy(schema)
    close(result, is_tool=is_tool)
    return result


@cases(
    "schema, expected",
    [
        (A, CLOSED),
        ({**A, "required": ["a"], "title": "T"}, {**CLOSED, "required": ["a"], "title": "T"}),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED}),
        (
            {"properties": {"if": A, "not": {"$ref": "#/$defs/x"}}, "$defs": {"x": A}},
            {
                "properties": {"if": CLOSED, "not": {"$ref": "#/$defs/x"}},
                "$defs": {"x": CLOSED},
                "additionalProperties": False,
            },
        ),
        (
            {"type": "object", "anyOf": [A, {"type": "null"}]},
            {"type": "object", "anyOf": [CLOSED, {"type": "null"}]},
        ),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED}),
        ({**A, "properties": {"a": {"enum": ["x"], "minLength": 1}}}, None),
    ],
)
def test_an_object_with_properties_is_closed(schema: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert closed(schema) == (expected or {**schema, "additionalProperties": False})


@cases(
    "schema",
    [
        ({"type": "object"},),
        ({**A, "properties": {}},),
        ({**A, "additionalProperties": True},),
        ({**A, "patternProperties": {"^x": True}},),
        ({**A, "required": ["b"]},),
        ({**A, "minProperties": 2},),
        ({"properties": {"a": True, "b": False}, "minProperties": 2},),
        ({"properties": {"b": False}},),
        # A part needs what another part declares, or may need it.
        ({"allOf": [A, {**B, "required": ["b"]}]},),
        ({"properties": {"x": A, "y": {"allOf": [A, B]}}},),
        ({**A, "$ref": "#/$defs/b", "$defs": {"b": B}},),
        ({**A, "anyOf": [B, {"required": ["c"]}]},),
        ({**A, "oneOf": [B]},),
        ({**A, "if": B, "then": {"required": ["b"]}},),
        ({**A, "not": B},),
        ({**A, "dependentRequired": {"a": ["b"]}},),
        ({**A, "unevaluatedProperties": False},),
        ({**A, "propertyNames": {"maxLength": 3}},),
        ({**A, "enum": [{"a": 1, "b": 2}]},),
        ({"properties": {"x": A}, "const": {"x": {"a": 1, "b": 2}}},),
        ({"items": A, "contains": {"required": ["b"]}},),
    ],
)
def test_an_object_that_may_need_other_properties_stays_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_the_arguments_of_a_tool_are_closed_even_if_their_parts_stay_open() -> None:
    schema = {"type": "object", "properties": {"x": {"allOf": [A, B]}}}
    assert closed(schema) == schema
    assert closed(schema, is_tool=True) == {**schema, "additionalProperties": False}
    for part in ({"allOf": [A, B]}, {"not": B}, {"required": ["b"]}):
        schema = {**A, **part}
        assert closed(schema, is_tool=True) == schema


def test_a_tool_may_require_a_property_that_it_does_not_declare() -> None:
    held = hold_tool({**A, "required": ["b"]})
    assert allows(held, '{"a": 1, "b": 2}')
    assert not allows(held, '{"a": 1}')


def test_a_model_cannot_invent_properties() -> None:
    schema = {"type": "object", "properties": {"x": A}}
    for held, separators in ((hold(schema), (",", ":")), (hold_tool(schema), (", ", ": "))):
        for value in ({"x": {"a": 1}}, {"x": {"a": 1, "b": 2}}, {"x": {"a": 1}, "b": 2}):
            written = json.dumps(value, separators=separators)
            assert allows(held, written) == (value == {"x": {"a": 1}}), written


def test_a_model_may_write_properties_that_the_schema_allows_or_needs() -> None:
    for schema in (
        {**A, "additionalProperties": True},
        {"allOf": [A, {**B, "required": ["b"]}]},
        {**A, "required": ["b"]},
    ):
        assert allows(hold(schema), json.dumps({"a": 1, "b": 2}, separators=(",", ":"))), schema
