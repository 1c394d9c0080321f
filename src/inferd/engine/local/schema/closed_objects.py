"""Closes the objects of a schema: they get no property that the schema does not declare.

JSON Schema allows each property that a schema does not forbid, so a model may go on and invent properties. A
schema that says nothing about undeclared properties mostly means that there are none. A value of the closed
schema is also a value of the schema itself.
"""

from __future__ import annotations

from typing import Any

from inferd.engine.local.schema.schema_places import KEYWORDS, schemas

_DECLARES = frozenset(("$anchor", "$defs", "$id", "definitions", "id", "type"))
_COMBINES = frozenset(("$ref", "anyOf", "oneOf"))
_LISTS = frozenset(("const", "enum"))
_CONTAINS = frozenset(("items", "prefixItems", "properties"))
_DECIDES = frozenset(("additionalProperties", "patternProperties"))

# With one of these, a schema may need a property that only another of its parts declares.
_SPANS = frozenset(
    (
        *("$dynamicRef", "$recursiveRef", "allOf", "contains", "dependencies", "dependentRequired"),
        *("dependentSchemas", "if", "not", "propertyNames", "unevaluatedProperties"),
    )
)


def close(root: dict[str, Any], *, is_tool: bool) -> None:
    """Closes all objects of the valid schema ``root`` that declare properties. If a part of the schema could
    need a property that another part declares, closes none, or only the root if ``root`` describes the
    arguments of a tool."""
    found = [*schemas(root)]
    if any(map(_spans, found)):
        found = [root] if is_tool and not _spans(root) else []
    for schema in found:
        if _may_close(schema):
            schema["additionalProperties"] = False


def _spans(schema: dict[str, Any]) -> bool:
    """Whether several parts of the schema apply to one object."""
    constraints = (schema.keys() & KEYWORDS) - _DECLARES
    if constraints & _COMBINES and len(constraints) > 1:
        return True
    return bool(constraints & _SPANS or (constraints & _LISTS and constraints & _CONTAINS))


def _may_close(schema: dict[str, Any]) -> bool:
    possible = {name for name, part in schema.get("properties", {}).items() if part is not False}
    return (
        bool(possible)
        and not _DECIDES & schema.keys()
        and set(schema.get("required", ())) <= possible
        and schema.get("minProperties", 0) <= len(possible)
    )
