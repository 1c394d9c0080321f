"""The final check of an answer against its whole JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.engine.local.schema import schema_check
from inferd.engine.local.schema.schema_check import Check, Turn
from inferd.errors import InvalidRequest
from tests.cases import cases
from tests.unit.test_schemas import DRAFT_7, DRAFT_2020, allows, hold, properties

TWICE: dict[str, Any] = {"oneOf": [{"type": "integer"}, {"type": "number"}]}  # which an integer matches twice


def test_a_check_is_by_the_declared_draft_with_formats() -> None:
    check = Check(schema_check.read(json.dumps(properties(d={"type": "string", "format": "date"}))))
    assert check.fault('{"d":"2026-02-28"}') is None
    assert check.fault('{"d":"2026-02-30"}') == "/d breaks `format`"
    assert check.fault('{"d":NaN}') == "it is not JSON, or nests too deeply"
    price = Check(schema_check.read('{"multipleOf": 0.01}'))
    for text in ("19.99", "1" * 400, "1e300"):
        assert price.fault(text) is None
    for text in ("19.999", "1e-300", "1e999"):
        assert price.fault(text) == "/ breaks `multipleOf`"
    exclusive = '{"$schema":"http://json-schema.org/draft-04/schema#","minimum":1,"exclusiveMinimum":true}'
    assert Check(schema_check.read(exclusive)).fault("1") == "/ breaks `minimum`"


@cases(
    "schema, fits, others",
    [
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["a", None], [1]),
        ({"oneOf": [{"minimum": 1}, {"type": "integer"}]}, [0, 1.5, 1], [0.5]),
        ({"not": {"type": "string"}}, [1], ["a"]),
        ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{}], [{"a": 1}]),
        ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, [[1, 2]], [[], [1, 1]]),
        ({"anyOf": [{"prefixItems": [{"const": 1}]}], "unevaluatedItems": False}, [[1]], [[1, 2]]),
        ({"$defs": {"a": {"$schema": DRAFT_2020, "not": {"const": 1}}}, "$ref": "#/$defs/a"}, [2], [1]),
    ],
)
def test_a_check_takes_each_part_of_a_schema_by_itself(
    schema: dict[str, Any], fits: list[Any], others: list[Any]
) -> None:
    check = Check(schema_check.read(json.dumps(schema)))
    assert [check.fault(json.dumps(value)) for value in fits] == [None] * len(fits)
    assert all("breaks" in (check.fault(json.dumps(value)) or "") for value in others)


@cases(
    "schema, value",
    [
        ({"oneOf": [TWICE, {"type": ["integer", "string"]}]}, 3),
        ({"$schema": DRAFT_7, "type": "array", "items": [TWICE], "additionalItems": TWICE}, [1, 2]),
        ({"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": TWICE}, {"a": 1}),
        ({"components": {"schemas": {"a/b": TWICE}}, "$ref": "#/components/schemas/a~1b"}, 3),
        ({"type": "object", "properties": {"default": TWICE, "const": TWICE}}, {"default": 1, "const": 2}),
        ({"const": {"oneOf": [1, 2]}}, {"oneOf": [1, 2]}),
    ],
)
def test_a_one_of_that_may_match_twice_is_checked_as_any_of_everywhere(
    schema: dict[str, Any], value: Any
) -> None:
    held = hold(schema)
    answer = json.dumps(value, separators=(",", ":"))
    assert allows(held, answer)
    assert held.check.fault(answer) is None


def test_a_pattern_that_backtracks_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern matches the text, but only after some million steps."""
    monkeypatch.setattr(schema_check, "PATTERN_SECONDS", 0.02)
    check = Check(schema_check.read('{"pattern":"^(?!(a|aa)+$)"}'))
    assert check.fault('"a!"') is None
    assert check.fault('"' + "a" * 32 + '!"') == "/ breaks `pattern`"


def test_a_check_of_definitions_used_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each definition uses the next one twice, so that the last one is used 2^40 times."""
    monkeypatch.setattr(schema_check, "MOST_SECONDS", 0.05)
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    for more in ({}, draft):
        twice = {f"d{i}": {**more, "allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
        held = hold({**draft, "$defs": {**twice, "d40": {"type": "integer"}}, "$ref": "#/$defs/d0"})
        assert allows(held, "3")
        assert held.check.fault("3") == "checking it takes too much processor time"
    once = hold({**draft, "$defs": {"d40": {"type": "integer"}}, "$ref": "#/$defs/d40"})
    assert once.check.fault("3") is None
    assert once.check.fault('"3"') == "/ breaks `type`"


def test_equal_items_are_found_without_comparing_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsonschema._utils.equal", lambda one, two: pytest.fail("a pair was compared"))
    items: list[Any] = [1, "1", True, None, [1], {"a": 1, "b": [2.5]}]
    check = Check({"uniqueItems": True})
    draft_4 = {"$schema": "http://json-schema.org/draft-04/schema#", "type": "object"}
    for same in ([], [1.0], [True], [{"b": [2.5], "a": 1.0}]):
        assert (check.fault(json.dumps(items + same)) is None) == (not same)
        schema = json.dumps({**draft_4, "properties": {"a": {"enum": items + same}}})
        if same:
            with pytest.raises(InvalidRequest, match="two items are equal"):
                schema_check.read(schema)
        else:
            schema_check.read(schema)


def test_a_turn_is_not_lost_at_the_recursion_limit() -> None:
    class Short(Turn):
        SLICE_SECS = PASS_SECS = 0.0

    turn = Short()

    def nest() -> None:
        turn.poll()
        nest()

    with pytest.raises(RecursionError), turn:
        nest()


def test_each_depth_of_the_stack_refuses_what_nests_too_deeply() -> None:
    """Another function reaches the recursion limit at each depth."""
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
    part: dict[str, Any] = {}
    for _ in range(200):
        part = {"items": part}
    deep = json.dumps({**draft, "type": "object", "properties": {"a": part}})
    again = {"items": {"$ref": "#/definitions/a"}}
    check = Check({**draft, "definitions": {"a": again}, **again})
    value = "[" * 300 + "]" * 300

    def below(frames: int) -> None:
        if frames:
            below(frames - 1)
        else:
            with pytest.raises(InvalidRequest, match="nests too deeply"):
                schema_check.read(deep)
            assert check.fault(value) == "it is not JSON, or nests too deeply"

    for frames in range(24):
        below(frames)
