"""Resolves the schema of a tool to a list of alternatives, for call notations other than JSON.

Each alternative is a *conjunction*: a list of schemas, all of which a value must match. Ignore ``$ref``,
``allOf``, ``anyOf`` and ``oneOf`` in the schemas of a conjunction, because :func:`alternatives` has resolved
them. A ``oneOf`` is treated as an ``anyOf``. The tool's schema must have been rewritten by
:mod:`~inferd.engine.local.schema.schema_rules`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferd.engine.local.schema.schema_check import matches
from inferd.engine.local.schema.schema_places import target

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
SCALARS = frozenset(("boolean", "integer", "null", "number"))
_MOST = 64
_MOST_STEPS = 30
_OF_A_TEXT = ("minLength", "maxLength", "pattern", "format")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_A_KIND = frozenset(
    (
        *("type", "enum", "const", *_LIMITS, *_OF_A_TEXT),
        *("items", "prefixItems", "minItems", "maxItems"),
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties"),
    )
)

Conjunction = list[Mapping[str, Any]]
Parts = Sequence[Any]
"""Schemas (objects or booleans), all of which a value must match."""


class TooManyAlternatives(Exception):
    """Raised if a schema has too many alternatives."""


class Budget:
    """Limits the work of resolving alternatives. If each definition uses the next one twice, the number of
    parts grows exponentially."""

    def __init__(self, left: int = 2_000) -> None:
        self._left = left

    def spend(self, parts: int) -> None:
        self._left -= parts
        if self._left < 0:
            raise TooManyAlternatives


def alternatives(
    parts: Parts, root: Mapping[str, Any], budget: Budget | None = None, steps: int = 0
) -> list[Conjunction]:
    """Returns the alternatives for a value that must match all ``parts``. Each alternative is a conjunction.
    The list is empty if no value matches."""
    budget = budget or Budget()
    found: list[Conjunction] = [[]]
    for part in parts:
        if part is False:
            return []
        if not isinstance(part, dict):
            continue
        if steps > _MOST_STEPS:
            raise TooManyAlternatives
        below = list(part.get("allOf") or ())
        if str(part.get("$ref", "")).startswith("#"):
            below.append(target(root, part["$ref"]))
        choices: list[list[Conjunction]] = [[[part]], alternatives(below, root, budget, steps + 1)]
        for key in ("anyOf", "oneOf"):
            if key in part:
                branches = [alternatives([branch], root, budget, steps + 1) for branch in part[key]]
                choices.append([conjunction for branch in branches for conjunction in branch])
        for choice in choices:
            if len(found) * len(choice) > _MOST:
                raise TooManyAlternatives
            found = [one + other for one in found for other in choice]
        budget.spend(sum(map(len, found)))
    return found


def parameters(root: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Returns the schemas of all parameters of a tool by name, and the names of the required ones.

    If alternatives declare the same parameter with different schemas, the parameter's schema is their
    ``anyOf``.
    """
    try:
        ways = alternatives([root], root)
    except TooManyAlternatives:
        ways = [[root]]
    found: dict[str, list[Any]] = {}
    for schema in (schema for way in ways for schema in way):
        for name, part in (schema.get("properties") or {}).items():
            if part is not False and not any(part is other for other in found.setdefault(name, [])):
                found[name].append(part)
    named = {
        name: parts[0] if len(parts) == 1 else {"anyOf": parts} for name, parts in found.items() if parts
    }
    needed = [{name for schema in way for name in schema.get("required") or ()} for way in ways]
    return named, set.intersection(*needed) & named.keys() if needed else set()


def says_nothing(conjunction: Conjunction) -> bool:
    """Returns whether every value matches the conjunction."""
    return not any(_OF_A_KIND & schema.keys() for schema in conjunction)


def kinds(conjunction: Conjunction) -> set[str]:
    """Returns the types that a value of the conjunction may have."""
    found = set(TYPES)
    for schema in conjunction:
        if "type" in schema:
            given = {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
            found &= given | ({"integer"} if "number" in given else set())
    return found


def listed(conjunction: Conjunction) -> list[Any] | None:
    """Returns the values that ``enum`` and ``const`` allow, or ``None`` if the conjunction has neither."""
    given = [
        [schema["const"]] if "const" in schema else schema["enum"]
        for schema in conjunction
        if "const" in schema or "enum" in schema
    ]
    if not given:
        return None
    allowed = kinds(conjunction)
    sets = [{json.dumps(value, sort_keys=True) for value in values} for values in given]
    return [
        value
        for value in given[0]
        if type_of(value) in allowed and all(json.dumps(value, sort_keys=True) in each for each in sets)
    ]


def scalar(conjunction: Conjunction, types: set[str]) -> dict[str, Any]:
    """Returns one schema for the matching values whose type is one of ``types``: numbers, booleans or
    null."""
    limits = [{key: schema[key] for key in _LIMITS if key in schema} for schema in conjunction]
    schema: dict[str, Any] = {"type": sorted(types - {"integer"} if "number" in types else types)}
    given = [each for each in limits if each]
    if len(given) == 1:
        schema |= given[0]
    elif given:
        schema["allOf"] = given
    return schema


def string(conjunction: Conjunction) -> dict[str, Any]:
    """Returns one schema for the strings that match the conjunction."""
    limits = [{key: schema[key] for key in _OF_A_TEXT if key in schema} for schema in conjunction]
    return {"type": "string", "allOf": [each for each in limits if each]}


@dataclass(frozen=True, slots=True)
class Members:
    """The members of an object. ``named`` maps the name of each declared member to its schemas. ``others``
    are the schemas of undeclared members, each with the pattern that the member's name must match. The
    pattern ``None`` is for names that match no pattern. An object has ``least`` to ``most`` members."""

    named: dict[str, Parts]
    required: set[str]
    others: list[tuple[str | None, Parts]]
    least: int
    most: int | None


def members(conjunction: Conjunction) -> Members:
    """Returns the members of the objects that match the conjunction."""
    required = {name for schema in conjunction for name in schema.get("required") or ()}
    names = [name for schema in conjunction for name in schema.get("properties") or ()]
    names += [name for schema in conjunction for name in schema.get("required") or ()]
    named: dict[str, Parts] = {
        name: [part for schema in conjunction for part in _parts_of(schema, name)]
        for name in dict.fromkeys(names)
    }
    patterns = [
        (pattern, part, schema)
        for schema in conjunction
        for pattern, part in (schema.get("patternProperties") or {}).items()
    ]
    others: list[tuple[str | None, Parts]] = [
        (pattern, [part, *(_others_of(each) for each in conjunction if each is not schema)])
        for pattern, part, schema in patterns
    ]
    others.append((None, [_others_of(schema) for schema in conjunction]))
    most = [schema["maxProperties"] for schema in conjunction if "maxProperties" in schema]
    least = max((schema.get("minProperties", 0) for schema in conjunction), default=0)
    return Members(named, required, others, least, min(most, default=None))


def _parts_of(schema: Mapping[str, Any], name: str) -> list[Any]:
    """Returns the schemas that ``schema`` applies to the member ``name``."""
    properties, patterns = schema.get("properties") or {}, schema.get("patternProperties") or {}
    found = [part for pattern, part in patterns.items() if matches(pattern, name)]
    if name in properties:
        found.append(properties[name])
    return found or [_others_of(schema)]


def _others_of(schema: Mapping[str, Any]) -> Any:
    return schema.get("additionalProperties", True)


@dataclass(frozen=True, slots=True)
class Items:
    """The items of an array. ``first`` holds the schemas of each of the first items, and ``further`` the
    schemas of every later item. An array has ``least`` to ``most`` items."""

    first: list[Parts]
    further: Parts
    least: int
    most: int | None


def items(conjunction: Conjunction) -> Items:
    """Returns the items of the arrays that match the conjunction."""
    count = max((len(schema.get("prefixItems") or ()) for schema in conjunction), default=0)
    first: list[Parts] = [[_item(schema, number) for schema in conjunction] for number in range(count)]
    most = [schema["maxItems"] for schema in conjunction if "maxItems" in schema]
    least = max((schema.get("minItems", 0) for schema in conjunction), default=0)
    return Items(first, [_item(schema, count) for schema in conjunction], least, min(most, default=None))


def _item(schema: Mapping[str, Any], number: int) -> Any:
    first = schema.get("prefixItems") or ()
    return first[number] if number < len(first) else schema.get("items", True)


def type_of(value: Any) -> str:
    """Returns the name of the JSON type of a value."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
