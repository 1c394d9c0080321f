"""Visits the subschemas of a JSON Schema, and creates errors that contain a JSON pointer.

If the request that the thread prepares is cancelled, the visit stops at the next subschema.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any
from urllib.parse import unquote

from inferd.engine.local import _llama
from inferd.errors import InvalidRequest

MAX_DEPTH = 100
MAX_SCHEMAS = 20_000

# The keywords whose value is one schema, a list of schemas, or an object that maps names to schemas.
ONE = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"),
        *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    )
)
LIST = frozenset(("allOf", "anyOf", "items", "oneOf", "prefixItems"))
MAP = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
KEYWORDS = (
    ONE
    | LIST
    | MAP
    | frozenset(
        (
            *("$anchor", "$dynamicRef", "$id", "$recursiveRef", "$ref", "const", "dependencies"),
            *("dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "id"),
            *("maxContains", "maxItems", "maxLength", "maxProperties", "maximum", "minContains"),
            *("minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern", "required"),
            *("type", "uniqueItems"),
        )
    )
)
"""The keywords that decide which values are valid. All others are annotations."""
_ANY_ONE = ONE | {"contentSchema"}
_ANY_MAP = MAP | {"dependencies"}


def refusal(pointer: str, reason: str) -> InvalidRequest:
    where = f"at {pointer}: " if pointer else ""
    return InvalidRequest(f"the JSON Schema cannot be used: {where}{reason}")


def step(pointer: str, key: object) -> str:
    """Returns the JSON pointer of a member of an object or of an item of a list. The object or list is at
    ``pointer``, and ``key`` is the name of the member or the index of the item."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def keys_of(target: str) -> list[str]:
    """Splits a reference into its unescaped keys. The first key refers to the document."""
    return [part.replace("~1", "/").replace("~0", "~") for part in unquote(target).split("/")]


def resolve(root: Any, target: str, at: str) -> tuple[Any, Any]:
    """Returns the object or list that contains the target of a reference, and the key of the target in it.
    Returns (None, None) if the target is the root. Raises ``InvalidRequest`` if the target does not exist."""
    parent: Any = None
    name: Any = None
    node = root
    for part in keys_of(target)[1:]:
        name = int(part) if isinstance(node, list) and part.isdecimal() else part
        known = name in node if isinstance(node, dict) else isinstance(name, int) and name < len(node)
        if not isinstance(node, dict | list) or not known:
            raise refusal(at, f"`$ref` refers to {target}, which is not in the schema")
        parent, node = node, node[name]
    return parent, name


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yields each JSON object in the schema, even those that are not schemas."""
    left = [schema]
    while left:
        _llama.stop_if_cancelled()
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left += node.values()
        elif isinstance(node, list):
            left += node


def count(root: Any) -> int:
    """Counts the schema and its subschemas. Finds subschemas by the keywords of all drafts. Stops soon after
    ``MAX_SCHEMAS``."""
    left, found = [root], 0
    while left and found <= MAX_SCHEMAS:
        _llama.stop_if_cancelled()
        node = left.pop()
        found += isinstance(node, bool | dict)
        if isinstance(node, dict):
            left += _parts(node, _ANY_MAP, _ANY_ONE)
    return found


def schemas(root: Any) -> Iterator[dict[str, Any]]:
    """Yields the root, its subschemas, and the targets of references."""
    left, seen = [root], set()
    while left:
        _llama.stop_if_cancelled()
        node = left.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        left += _parts(node, MAP, ONE)
        if isinstance(node.get("$ref"), str):
            left.append(target(root, node["$ref"]))


def _parts(node: dict[str, Any], maps: Set[str], ones: Set[str]) -> Iterator[Any]:
    """Yields the direct subschemas of the node. ``maps`` are the keywords whose value maps names to schemas.
    ``ones`` are the keywords whose value is one schema."""
    for key, value in node.items():
        if key in LIST and isinstance(value, list):
            yield from value
        elif key in maps and isinstance(value, dict):
            yield from value.values()
        elif key in ones:
            yield value


def followed(root: Any, node: Any) -> Any:
    """Follows a chain of references from ``node`` and returns the schema at its end."""
    for _ in range(MAX_DEPTH):
        if not isinstance(node, dict) or not str(node.get("$ref", "")).startswith("#/"):
            return node
        parent, name = resolve(root, node["$ref"], "")
        node = root if parent is None else parent[name]
    return node


def target(root: Any, reference: str) -> Any:
    """Returns the target of a reference. If the target is not in the schema, returns ``True``, the schema
    that allows everything."""
    if reference != "#" and not reference.startswith("#/"):
        return True
    try:
        parent, name = resolve(root, reference, "")
    except InvalidRequest:  # in a part of the schema that has been rewritten
        return True
    return root if parent is None else parent[name]
