"""JSON Schemas: the keywords that are enforced, rewritten, dropped or refused, and the bounds for hostile
schemas."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.schema import schema_check, schema_places, schema_rules
from inferd.engine.local.schema.guides import Guides, Held
from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest
from tests.cases import cases
from tests.unit.test_llamacpp import load_model

PRIMES = (39_979, 39_983, 39_989, 39_971, 39_953, 39_937)  # five of them are 199,875 in all


@cache
def guides() -> Guides:
    return Guides(load_model())


def hold(schema: object, *, lenient: bool = False) -> Held:
    return guides().answer(json.dumps(schema), lenient=lenient)


def hold_tool(schema: object) -> Held:
    return guides().tool(Tool("f", "", json.dumps(schema)))


def allows(held: Held, text: str) -> bool:
    """Whether the grammar accepts the whole text as an answer."""
    guide = guides().value(held)
    return guide.accept_text(text.encode()) and guide.accepting


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas, "required": list(schemas), "additionalProperties": False}


DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
STRING = {"type": "string"}
REFUSED = [
    (properties(a={"type": "array", "uniqueItems": True}), "at /properties/a/uniqueItems: `uniqueItems`"),
    ({"type": "string", "if": {"const": "a"}, "then": {"const": "b"}}, "at /if: `if`"),
    ({"type": "array", "contains": {"const": 1}}, "at /contains: `contains`"),
    ({"not": {"type": "string"}}, "at /not: `not`"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "at /dependentRequired"),
    ({"type": "string", "pattern": "(?=a)b"}, "at /pattern: `pattern`"),
    ({"type": "string", "format": "idn-email"}, "at /format: `format`"),
    ({"properties": {"a/b~c": {"uniqueItems": True}}}, "at /properties/a~1b~0c/uniqueItems"),
    ({"$ref": "https://example.com/x.json"}, "at /[$]ref: `[$]ref`"),
    ({"$ref": "#/$defs/x"}, "at /[$]ref: `[$]ref` refers to"),
    ({"type": "object", "required": "a"}, "at /required: 'a' is not"),
    ({"type": "object", "properties": {"a": 5}}, "at /properties/a: 5 is not"),
    ({"const": 2**53 + 1}, "at /const: `const`"),
    ({"$schema": DRAFT_7, "items": [{"uniqueItems": True}]}, "at /items/0/uniqueItems"),
    ({"$schema": DRAFT_7, "items": [True], "additionalItems": {"not": STRING}}, "at /additionalItems/not"),
    (
        {"properties": {"a": True, "b": True}, "minProperties": 1, "additionalProperties": True},
        "at /minProperties: `minProperties`",
    ),
    (
        {"type": "object", "properties": {"a": {"$ref": "#", "required": ["b"]}}},
        "at /properties/a/required: `required`",
    ),
]


def test_keywords_beside_a_reference_to_a_schema_around_it_are_dropped_for_tools() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#", "required": ["b"]}}}
    assert hold_tool(schema).dropped == ("/properties/a/required",)


@cases("schema, where", REFUSED)
def test_unenforceable_keywords_are_refused_by_pointer_and_name(schema: object, where: str) -> None:
    with pytest.raises(InvalidRequest, match=where):
        hold(schema)


@cases(
    "low, high, least, most",
    [
        ("minimum", "maximum", 5, 3),
        ("exclusiveMinimum", "maximum", 5, 5),
        ("minimum", "exclusiveMaximum", 5, 5),
        ("minLength", "maxLength", 4, 2),
        ("minItems", "maxItems", 2**40, 1),
        ("minProperties", "maxProperties", 2, 1),
    ],
)
def test_bounds_that_contradict_each_other_are_refused_before_any_work(
    low: str, high: str, least: int, most: int
) -> None:
    with pytest.raises(InvalidRequest, match=f"at /properties/a/{low}: `{low}` {least} and `{high}` {most}"):
        hold(properties(a={low: least, high: most}))
    with pytest.raises(InvalidRequest, match='the tool "f": '):
        hold_tool(properties(a={low: least, high: most}))


def test_keywords_without_effect_are_dropped_for_an_answer() -> None:
    names = {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "integer"},
    }
    for schema, text in (
        (names, '{"a":1}'),
        ({"type": "array", "uniqueItems": False}, "[1,1]"),
        ({"type": "string", "format": "starts_with", "pattern": "^ab?$"}, '"ab"'),
        ({"type": "string", "format": "includes", "allOf": [{"pattern": "^a"}, {"pattern": "b"}]}, '"ab"'),
        ({"$schema": "https://example.com/unknown", "type": "null", "x-guidance": {"lenient": True}}, "null"),
        ({"type": "integer", "deprecated": True, "x-order": 1, "example": 5}, "7"),
        ({"unevaluatedProperties": False, **properties(a=True)}, '{"a":0}'),
        (
            {
                "type": "object",
                "properties": {"next": {"$ref": "#", "readOnly": True, "x-order": 1}},
                "additionalProperties": False,
            },
            '{"next":{"next":{}}}',
        ),
    ):
        held = hold(schema)
        assert held.dropped == ()
        assert allows(held, text)


def test_rewritten_schemas_are_equivalent() -> None:
    enum = hold(
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"const": 1}}
    )
    assert allows(enum, '{"b":1}')
    assert not allows(enum, '{"c":1}')
    pattern = hold({"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": True})
    assert allows(pattern, '{"xy":[]}')
    assert not allows(pattern, '{"y":[]}')
    old_tuple = hold(
        {"type": "array", "items": [{"const": 1}, {"const": 2}], "additionalItems": False, "minItems": 2}
    )
    assert allows(old_tuple, "[1,2]")
    assert not allows(old_tuple, "[1,2,3]")
    decimal = hold({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"})
    assert [allows(decimal, text) for text in ('"1.50"', '"-.5"', '"-."', '""')] == [True, True, False, False]
    never = hold({"type": "object", "properties": {"a": True, "b": {"not": {}}}})
    assert not allows(never, '{"b":1}')


def test_a_lenient_answer_and_a_tool_list_what_is_dropped() -> None:
    loose = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "uniqueItems": True},
            "id": {"type": "string", "pattern": "(?=a)b"},
            "kind": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]},
        },
    }
    pointers = {"/properties/tags/uniqueItems", "/properties/id/pattern", "/properties/kind/oneOf"}
    assert set(hold(loose, lenient=True).dropped) == pointers
    assert set(hold_tool(loose).dropped) == pointers


def test_lengths_beside_a_complex_pattern_are_left_to_the_check() -> None:
    schema = properties(a={"type": "string", "pattern": "a.{15}b.{15}c", "maxLength": 900})
    with pytest.raises(InvalidRequest, match=r"at /properties/a/maxLength: .* too complex beside"):
        hold(schema)
    held = hold_tool(schema)
    assert held.dropped == ("/properties/a/maxLength",)
    fitting = f"a{'.' * 15}b{'.' * 15}c"
    assert allows(held, json.dumps({"a": fitting}))
    assert not allows(held, json.dumps({"a": fitting[:-1]}))
    assert held.check.fault(json.dumps({"a": fitting + "." * 900})) == "/a breaks `maxLength`"


def test_a_tool_gets_an_object_and_is_closed_where_it_declares_all() -> None:
    assert allows(hold_tool({"$schema": "http://json-schema.org/draft-07/schema#"}), '{"any": [1]}')
    declared = hold_tool({"properties": {"a": {"type": "integer"}}})
    assert allows(declared, '{"a": 1}')
    assert not allows(declared, '{"b": 1}')
    assert not allows(declared, "3")
    assert allows(hold({"properties": {"a": {"type": "integer"}}}), "3")


def test_properties_called_like_keywords_are_properties() -> None:
    names = ("type", "pattern", "format", "properties", "description", "if", "not", "uniqueItems")
    held = hold(properties(**{name: {"type": "boolean"} for name in names}))
    assert held.dropped == ()
    assert allows(held, json.dumps(dict.fromkeys(names, True), separators=(",", ":")))


def test_an_answer_cannot_spell_a_declared_name_with_escapes() -> None:
    held = hold({"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": True})
    assert allows(held, '{"b":2}')
    assert not allows(held, '{"\\u0061":2}')


@cases(
    "schema, inside, outside",
    [
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [0, 2**62], [-1, 2**64]),
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            [-(2**62), 2**62],
            [-(2**63) - 1, 2**63],
        ),
        ({"type": "integer", "minimum": -(2**63)}, [-(2**62), 0, 2**63], [-(2**63) - 1]),
        ({"type": "integer", "minimum": 2**61 + 1}, [2**61 + 512], [0, 2**61]),
        ({"type": "integer", "maximum": -(10**18)}, [-(10**18)], [0, -(10**18) + 1]),
        ({"type": "integer", "minimum": -(10**400), "maximum": 10**400}, [0, 2**62], []),
        ({"type": "integer", "exclusiveMaximum": 2**61}, [0, 2**61 - 256], [2**61]),
        ({"type": "integer", "exclusiveMinimum": 2**53}, [2**53 + 2], [2**53]),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
        ({"type": "integer", "exclusiveMinimum": 1.5, "maximum": 3.9}, [2, 3], [1, 4]),
        ({"type": "integer", "$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, [2], [0, 1]),
        ({"type": "number", "exclusiveMaximum": 1}, ["0.99999999999999", 0.5], ["0." + "9" * 20, 1]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.0000000000000001", 3], [0, "0." + "0" * 400 + "1"]),
        ({"type": "number", "exclusiveMinimum": 2.5, "minimum": 3}, [3, 7.25], [2.9, 2.5]),
        ({"type": "number", "exclusiveMinimum": 2**60}, [2**61], [2**60]),
        ({"type": "number", "maximum": 0.9999999999999999}, ["0.999999999999999"], [1]),
        ({"type": "number", "minimum": 1e-300, "maximum": 1e300}, ["0.0000000000000001", 1.5], [0, -1]),
        ({"type": "number", "maximum": 3.16973216538893e17}, [3 * 10**17], [316973216538893000]),
        (
            {"type": "number", "minimum": -7.45540923983432e-09},
            ["-0.000000001"],
            ["-0.000000007455409239834321"],
        ),
    ],
)
def test_bounds_mean_the_same_to_the_grammar_and_to_the_check(
    schema: dict[str, Any], inside: list[Any], outside: list[Any]
) -> None:
    """Also those that a float64 cannot hold, or llguidance."""
    held = hold(schema)
    assert held.dropped == ()
    assert [value for value in inside if not allows(held, str(value))] == []
    assert [value for value in inside if held.check.fault(str(value))] == []
    assert [value for value in outside if allows(held, str(value))] == []


def test_bounds_that_cannot_be_held_are_refused_or_checked() -> None:
    with pytest.raises(InvalidRequest, match=r"at /exclusiveMinimum: .* leave no integer"):
        hold({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2})
    for bounds in ({"minimum": 2**63}, {"minimum": 2**53 + 1, "maximum": 2**53 + 1}):
        with pytest.raises(InvalidRequest, match="at /minimum: `minimum`: the bounds are too large or too"):
            hold({"type": "integer", **bounds})
        held = hold({"type": "integer", **bounds}, lenient=True)
        assert held.dropped == tuple(f"/{key}" for key in bounds)
        assert held.check.fault("0") == "/ breaks `minimum`"


def test_a_schema_that_is_too_large_or_too_deep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # Validating 20,001 schemas takes seconds of processor time.
        patch.setattr(schema_check, "_validator_of", lambda draft: pytest.fail("it was counted too late"))
        parts = [True] * 20_001
        named = {f"k{i}": True for i in range(20_001)}
        for many in (
            {"properties": {name: {"type": "string"} for name in named}},
            {"allOf": [{"not": {"anyOf": parts}}]},
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": parts},
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": named},
            {"contentSchema": {"$defs": named}},
        ):
            with pytest.raises(InvalidRequest, match="more than 20000 schemas"):
                hold(many)
    assert schema_places.count({"enum": [{"properties": named}]}) == 1  # no schemas, but a value
    monkeypatch.setattr(schema_rules, "MAX_SCHEMAS", 200)  # references have schemas in other places
    hidden = {"x": {f"k{i}": {"type": "string"} for i in range(200)}}
    refers = properties(**{f"k{i}": {"$ref": f"#/x/k{i}"} for i in range(199)})
    with pytest.raises(InvalidRequest, match="more than 200 schemas"):
        hold({**refers, **hidden})
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(150):
        deep = properties(a=deep)
    with pytest.raises(InvalidRequest, match="nests"):
        hold(deep)


def test_many_optional_properties_are_cheap() -> None:
    held = hold({"type": "object", "properties": {f"k{i}": {"const": i} for i in range(1000)}})
    assert allows(held, '{"k3":3,"k999":999}')


def test_expensive_schemas_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A divisor has as many states as its value; a combination of schemas has the product of theirs."""
    with pytest.raises(InvalidRequest, match="at /multipleOf: `multipleOf`: it is too large"):
        hold({"type": "integer", "multipleOf": 9_999_991})
    with pytest.raises(InvalidRequest, match="at /multipleOf: `multipleOf`: it is too large"):
        hold({"type": "number", "multipleOf": 86_400_000})
    for divisor in (0.0025, 1000, 36_000):
        assert hold({"type": "number", "multipleOf": divisor}).dropped == ()
    parts = [properties(a={"type": "integer", "multipleOf": prime}) for prime in (211, 223, 227)]
    with pytest.raises(InvalidRequest, match=r"at /allOf/2/properties/a/multipleOf: .* common multiple"):
        hold({"allOf": parts})
    assert hold_tool({"allOf": parts}).dropped == ("/allOf/2/properties/a/multipleOf",)
    assert hold(properties(a=parts[0], b=parts[1], c=parts[2])).dropped == ()
    large = properties(**{f"p{prime}": {"type": "integer", "multipleOf": prime} for prime in PRIMES})
    with pytest.raises(InvalidRequest, match="multipleOf: `multipleOf`: there are too many large divisors"):
        hold(large)
    assert hold_tool(large).dropped == (f"/properties/p{PRIMES[-1]}/multipleOf",)
    monkeypatch.setattr("inferd.engine.local.schema.schema_rules.MAX_OPTIONAL", 20)
    many = {"type": "object", "properties": {f"k{i}": True for i in range(21)}}
    with pytest.raises(InvalidRequest, match="more than 20 of its properties are optional"):
        hold_tool(many)
    monkeypatch.setattr("inferd.engine.local.schema.guides.MOST_SECONDS", -1.0)
    with pytest.raises(InvalidRequest, match="takes too much processor time"):
        hold_tool(properties(a={"pattern": "^new here$"}))


def test_no_schema_is_printed() -> None:
    schema = json.dumps({"type": "string", "pattern": "^" + "(" * 300 + "my secret" + ")" * 300 + "$"})
    code = (
        "from tests.unit.test_schemas import guides\n"
        "from inferd.errors import InvalidRequest\n"
        f"try: guides().answer({schema!r}, lenient=True)\n"
        "except InvalidRequest: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "secret" not in done.stderr + done.stdout


def test_forced_text_is_given_as_the_models_own_tokens() -> None:
    model = load_model()
    schema = {"first_name": {"type": "string"}, "last_name": {"type": "string"}}
    guide = Guides(model).value(hold(properties(**schema)))
    tokens = guide.forced()
    assert len(tokens) > 1
    assert b'{"first_name":"'.startswith(model.text(tokens))
    assert guide.forced() == tokens
    assert guide.choices() > 0
    assert all(guide.accept(token) for token in tokens)
    assert isinstance(guide, _llama.Guide)
