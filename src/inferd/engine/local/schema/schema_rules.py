"""Rewrites JSON Schemas to a form that llguidance can enforce.

:func:`rewrite` makes an equivalent or narrower schema that llguidance accepts. Raises an error with the JSON
pointer of a keyword that cannot be enforced. With ``lenient``, removes and lists the keyword, and the caller
checks the finished answer. Properties keep their order: the model writes them in this order.

Property names are never read as keywords: a property may be called ``type`` or ``pattern``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from inferd.engine.local.schema import closed_objects, schema_numbers, schema_patterns
from inferd.engine.local.schema.schema_places import (
    KEYWORDS,
    LIST,
    MAP,
    MAX_DEPTH,
    MAX_SCHEMAS,
    ONE,
    followed,
    keys_of,
    nodes,
    refusal,
    resolve,
    step,
)

MAX_OPTIONAL = 2_000  # the limit of one object; making its grammar takes quadratic time

_OLD_DRAFTS = re.compile(r"draft-0[3-7]")

# The formats that llguidance has regular expressions for.
FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid")
)
_COMBINES = frozenset(("$ref", "allOf", "anyOf", "oneOf"))
_STANDS_ASIDE = frozenset(("$defs", "definitions", "$comment", "title", "description", "default", "examples"))


Compiles = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """``schema`` is for the grammar. ``dropped`` lists the JSON pointers of the keywords that ``schema`` does
    not enforce, or enforces only in part, such as a ``oneOf`` that became an ``anyOf``."""

    schema: dict[str, Any]
    dropped: tuple[str, ...]


def rewrite(root: dict[str, Any], *, lenient: bool, is_tool: bool, compiles: Compiles) -> Rewritten:
    """Rewrites ``root``, a valid schema. ``compiles`` returns whether llguidance accepts a schema.

    With ``is_tool``, ``root`` describes a tool's arguments, which are an object. Raises ``InvalidRequest``
    with the JSON pointer of a keyword that cannot be used.
    """
    closed_objects.close(root, is_tool=is_tool)
    work = _Rewriter(root, lenient, compiles)
    if is_tool:
        root.setdefault("type", "object")
    schema = work.schema(root, "", 0)
    if not isinstance(schema, dict):
        raise refusal("/not", "no value can follow this schema")
    return Rewritten(schema, tuple(work.dropped))


class _Rewriter:
    def __init__(self, root: dict[str, Any], lenient: bool, compiles: Compiles) -> None:
        self._root = root
        self._lenient = lenient
        self._compiles = compiles
        self._old_draft = bool(_OLD_DRAFTS.search(str(root.get("$schema", ""))))
        self._seen: dict[int, Any] = {}  # by the id() of the node, which the root keeps alive
        self._combines = any(_COMBINES & node.keys() for node in nodes(root))
        self._divisors: set[schema_numbers.Digits] = set()
        self._multiple = schema_numbers.ONE  # of all divisors, which may apply to one value
        self._referred = set(_parts_of_references(root))
        self.dropped: list[str] = []
        self._open: set[int] = set()  # the schemas whose parts are being rewritten, by id()

    def schema(self, node: Any, pointer: str, depth: int) -> Any:
        """Returns the schema that replaces ``node``, or ``False`` if no value can match it."""
        if node is True or node is False:
            return node
        if not isinstance(node, dict):
            raise refusal(pointer, "a schema is an object, true or false")
        if id(node) in self._seen:
            return node
        if depth > MAX_DEPTH:
            raise refusal("", f"it nests deeper than {MAX_DEPTH} schemas")
        self._seen[id(node)] = node
        if len(self._seen) > MAX_SCHEMAS:
            raise refusal("", f"it holds more than {MAX_SCHEMAS} schemas")
        for key in node.keys() - (KEYWORDS | self._referred - {"x-guidance", "$schema"}):  # annotations
            del node[key]
        if "$ref" in node and self._old_draft:
            for key in [key for key in node if key not in _STANDS_ASIDE and key != "$ref"]:
                del node[key]
        if self._negation(node, pointer) is False:
            return False
        self._open.add(id(node))
        self._references(node, pointer, depth)
        schema_numbers.check_bounds(node, pointer)
        self._conditions(node, pointer)
        names = self._arrays(node, pointer)
        self._objects(node, pointer)
        self._strings(node, pointer)
        self._numbers(node, pointer)
        self._children(node, pointer, depth, names)
        self._disjoint(node, pointer)
        self._open.discard(id(node))
        return node

    def _drop(self, node: dict[str, Any], pointer: str, key: str, why: str = "it cannot be enforced") -> None:
        """Removes a keyword that the grammar cannot enforce. Unless the caller is lenient, raises
        ``InvalidRequest``."""
        if not self._lenient:
            remedy = "remove it, or check the answer for it by schema_lenient (OpenAI's API: strict false)"
            raise refusal(step(pointer, key), f"`{key}`: {why}; {remedy}")
        del node[key]
        self.dropped.append(step(pointer, key))

    def _children(self, node: dict[str, Any], pointer: str, depth: int, names: Mapping[str, str]) -> None:
        for key, value in list(node.items()):
            at = step(pointer, names.get(key, key))
            if key in LIST and isinstance(value, list):
                parts = [self.schema(part, step(at, i), depth + 1) for i, part in enumerate(value)]
                if key in ("anyOf", "oneOf") and any(part is not False for part in parts):
                    parts = [part for part in parts if part is not False]
                node[key] = parts
            elif key in MAP and isinstance(value, dict):
                for name, part in value.items():
                    value[name] = self.schema(part, step(at, name), depth + 1)
            elif key in ONE:
                node[key] = self.schema(value, at, depth + 1)

    def _references(self, node: dict[str, Any], pointer: str, depth: int) -> None:
        for key in ("$dynamicRef", "$recursiveRef"):
            if key in node:
                raise refusal(step(pointer, key), f"`{key}` is not supported; use `$ref`")
        if "$ref" not in node:
            return
        at, target = step(pointer, "$ref"), node["$ref"]
        if not isinstance(target, str) or not target.startswith("#"):
            raise refusal(at, "`$ref` may only refer to a place in the same schema, such as #/$defs/NAME")
        if target == "#" or target.startswith("#/"):
            parent, name = resolve(self._root, target, at)
            if id(self._root if parent is None else parent[name]) in self._open:
                for key in [key for key in node if key not in ("$ref", "$defs", "definitions")]:
                    self._drop(node, pointer, key, "it cannot be held beside a `$ref` to a schema around it")
            if parent is not None:
                parent[name] = self.schema(parent[name], unquote(target[1:]), depth + 1)
        node["$ref"] = quote(target, safe="#/%~!$&'()*+,;=:@-._")  # llguidance wants a URI

    def _negation(self, node: dict[str, Any], pointer: str) -> bool | None:
        if "not" not in node:
            return None
        if node["not"] is False:
            del node["not"]
        elif node["not"] is True or node["not"] == {}:
            return False
        else:
            self._drop(node, pointer, "not")
        return None

    def _conditions(self, node: dict[str, Any], pointer: str) -> None:
        branches = [key for key in ("then", "else") if key in node]
        if "if" in node and branches:
            self._drop(node, pointer, "if")
        for key in ("if", "then", "else"):
            node.pop(key, None)
        for key in ("dependentRequired", "dependentSchemas", "dependencies"):
            if key in node and not node[key]:
                del node[key]
            elif key in node:
                self._drop(node, pointer, key)
        for key in ("unevaluatedItems", "unevaluatedProperties"):
            if node.get(key) is True:
                del node[key]
        plain = not any(key in node for key in ("$ref", "allOf", "anyOf", "oneOf"))
        for key, same in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if key in node and plain:
                node.setdefault(same, node.pop(key))
            elif key in node:
                self._drop(node, pointer, key)

    def _arrays(self, node: dict[str, Any], pointer: str) -> Mapping[str, str]:
        """Rewrites the keywords about arrays. Maps the new names of renamed keywords to the client's
        names."""
        names = {}
        if isinstance(node.get("items"), list):  # a tuple in the syntax up to draft 7
            names = {"prefixItems": "items", "items": "additionalItems"}
            node["prefixItems"] = node.pop("items")
            if "additionalItems" in node:
                node["items"] = node["additionalItems"]
        node.pop("additionalItems", None)
        if "uniqueItems" in node:
            if node["uniqueItems"] is False or node.get("maxItems", 2) < 2:
                del node["uniqueItems"]
            else:
                self._drop(node, pointer, "uniqueItems")
        if "contains" in node:
            if node.get("minContains") == 0 and "maxContains" not in node:
                del node["contains"]
            else:
                self._drop(node, pointer, "contains")
        for key in ("minContains", "maxContains"):
            node.pop(key, None)
        return names

    def _objects(self, node: dict[str, Any], pointer: str) -> None:
        if "propertyNames" in node:
            self._property_names(node, pointer)
        properties, required = node.get("properties") or {}, node.get("required") or []
        optional = properties.keys() - set(required)
        if len(optional) > MAX_OPTIONAL:
            raise refusal(
                step(pointer, "properties"), f"more than {MAX_OPTIONAL} of its properties are optional"
            )
        if node.get("minProperties", 0) <= len(set(required)):
            node.pop("minProperties", None)
        open_ended = node.get("additionalProperties", True) is not False or "patternProperties" in node
        if not open_ended and node.get("maxProperties", 0) >= len(properties):
            node.pop("maxProperties", None)
        at_least, at_most = node.get("minProperties", 1), node.get("maxProperties", 1)
        if optional and (open_ended or at_least > 1 or at_most != 1):
            for key in ("minProperties", "maxProperties"):
                if key in node:
                    self._drop(node, pointer, key, "it cannot be enforced beside optional properties")
        for pattern in list(node.get("patternProperties") or ()):
            rewritten = schema_patterns.without_look_around(pattern)
            if not self._compiles({"type": "object", "patternProperties": {rewritten: True}}):
                self._drop_patterns(node, pointer, f"the pattern {json.dumps(pattern)} is not supported")
                break
            if rewritten != pattern:
                schemas = node["patternProperties"].items()
                node["patternProperties"] = {
                    rewritten if key == pattern else key: value for key, value in schemas
                }

        patterns = dict.fromkeys(node.get("patternProperties") or (), True)
        if len(patterns) > 1 and not self._compiles({"type": "object", "patternProperties": patterns}):
            self._drop_patterns(node, pointer, "two of its patterns match the same name")

    def _drop_patterns(self, node: dict[str, Any], pointer: str, why: str) -> None:
        self._drop(node, pointer, "patternProperties", why)
        if node.get("additionalProperties") is False:
            del node["additionalProperties"]

    def _property_names(self, node: dict[str, Any], pointer: str) -> None:
        names = node["propertyNames"]
        constraints = _constraints(names) if isinstance(names, dict) else set()
        if names is True or (isinstance(names, dict) and not constraints):
            del node["propertyNames"]
            return
        others = node.get("additionalProperties", True)
        if constraints in ({"enum"}, {"const"}) and "patternProperties" not in node:
            allowed = names["enum"] if "enum" in names else [names["const"]]
            known = node.get("properties") or {}
            node["properties"] = {
                name: known.get(name, _copy(others)) for name in allowed if isinstance(name, str)
            }
            node["additionalProperties"] = False
            del node["propertyNames"]
        elif constraints == {"pattern"} and not node.get("properties") and "patternProperties" not in node:
            node["patternProperties"] = {names["pattern"]: others}
            node["additionalProperties"] = False
            del node["propertyNames"]
        else:
            self._drop(node, pointer, "propertyNames")

    def _strings(self, node: dict[str, Any], pointer: str) -> None:
        types = node.get("type")
        if types is not None and "string" not in ([types] if isinstance(types, str) else types):
            for key in ("format", "pattern", "minLength", "maxLength"):
                node.pop(key, None)
        if "format" in node and node["format"] not in FORMATS:
            beside = (node, *(part for part in node.get("allOf") or () if isinstance(part, dict)))
            if any("pattern" in part for part in beside):
                del node["format"]
            else:
                self._drop(node, pointer, "format", f"the format {json.dumps(node['format'])} is not known")
        if "pattern" not in node:
            return
        node["pattern"] = schema_patterns.without_look_around(node["pattern"])
        limits: dict[str, Any] = {
            key: node[key] for key in ("format", "minLength", "maxLength") if key in node
        }
        alone = {"type": "string", "pattern": node["pattern"]}
        if self._compiles({**alone, **limits}):
            return
        if limits and self._compiles(alone):
            for key in limits:
                self._drop(node, pointer, key, f"it is too complex beside {json.dumps(node['pattern'])}")
        else:
            why = f"the pattern {json.dumps(node['pattern'])} is not supported"
            self._drop(node, pointer, "pattern", why)

    def _numbers(self, node: dict[str, Any], pointer: str) -> None:
        for key in schema_numbers.hold_bounds(node, pointer):
            self._drop(node, pointer, key, "the bounds are too large or too close to be enforced")
        if "multipleOf" in node:
            self._divisor(node, pointer)
        for key in ("const", "enum"):
            if key in node and any(
                isinstance(value, int) and abs(value) > schema_numbers.EXACT for value in _values(node[key])
            ):
                self._drop(node, pointer, key, "an integer beyond 2^53 cannot be enforced")

    def _divisor(self, node: dict[str, Any], pointer: str) -> None:
        mine = schema_numbers.digits(node["multipleOf"])
        together = schema_numbers.least_common(self._multiple, mine) if self._combines else mine
        divisors = self._divisors | {mine}
        if schema_numbers.is_too_large(together):
            which = "it" if together == mine else "its least common multiple with others"
            self._drop(node, pointer, "multipleOf", f"{which} is too large")
        elif sum(found for found, _ in divisors) > schema_numbers.MAX_DIVISORS:
            self._drop(node, pointer, "multipleOf", "there are too many large divisors")
        elif not self._compiles({"type": "number", "multipleOf": node["multipleOf"]}):
            self._drop(node, pointer, "multipleOf", "llguidance cannot write its digits")
        else:
            self._multiple, self._divisors = together, divisors

    def _disjoint(self, node: dict[str, Any], pointer: str) -> None:
        if may_match_twice(self._root, node):
            self.dropped.append(step(pointer, "oneOf"))


def _parts_of_references(root: Any) -> Iterator[str]:
    """Yields the keys in the paths of references. Members with these keys are kept, even if not keywords."""
    for node in nodes(root):
        if isinstance(node.get("$ref"), str):
            yield from keys_of(node["$ref"])


def _constraints(names: dict[str, Any]) -> set[str]:
    """Returns the keywords of the schema ``names`` that constrain property names: not ``type: string``."""
    said = set(names) - {"$comment", "default", "description", "examples", "title"}
    return said - {"type"} if names.get("type", "string") == "string" else said


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _values(part)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part)
    elif not isinstance(value, bool):
        yield value


def may_match_twice(root: Any, node: dict[str, Any]) -> bool:
    """Returns whether one value may match two branches of the node's ``oneOf``."""
    branches = node.get("oneOf")
    if not isinstance(branches, list):
        return False
    ends = [followed(root, branch) for branch in branches]
    return not all(_are_two_disjoint(one, other) for i, one in enumerate(ends) for other in ends[i + 1 :])


def _are_two_disjoint(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    types, others = _types(one), _types(other)
    if types and others and not types & others:
        return True
    values, more = _choices(one), _choices(other)
    if values and more and not values & more:
        return True
    common = set(one.get("required") or ()) & set(other.get("required") or ())
    mine, theirs = one.get("properties") or {}, other.get("properties") or {}
    shared = common & mine.keys() & theirs.keys()
    return types == others == {"object"} and any(_are_two_disjoint(mine[key], theirs[key]) for key in shared)


def _types(node: dict[str, Any]) -> set[str]:
    types = node.get("type", [])
    found = {types} if isinstance(types, str) else set(types)
    return found | {"integer"} if "number" in found else found


def _choices(node: dict[str, Any]) -> set[str]:
    values = [node["const"]] if "const" in node else node.get("enum") or []
    return {json.dumps(value, sort_keys=True) for value in values}
