"""Eighty JSON Schemas in the style of Pydantic, Zod, OpenAPI and MCP servers.

The schemas in ``SERVED`` are sampled and validated. ``REFUSED`` holds pairs of a schema and the JSON pointer
in its refusal.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"


def _object(needed: str = "", /, **properties: Any) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if needed:
        schema["required"] = needed.split()
    return schema


def _closed(needed: str = "", /, **properties: Any) -> Schema:
    return {**_object(needed, **properties), "additionalProperties": False}


def _string(**more: Any) -> Schema:
    return {"type": "string", **more}


def _integer(**more: Any) -> Schema:
    return {"type": "integer", **more}


def _number(**more: Any) -> Schema:
    return {"type": "number", **more}


def _list(items: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, "maxItems": 4, **more}


_NAME = _string(maxLength=12)
_BOOL: Schema = {"type": "boolean"}
_NULL: Schema = {"type": "null"}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL], "default": None}


def _titled(title: str, schema: Schema) -> Schema:
    return {"title": title, **schema}


_PYDANTIC: dict[str, Schema] = {
    "user": _titled("User", _closed("id name", id=_integer(title="Id"), name=_NAME, email=_optional(_NAME))),
    "bounds": _closed("age port", age=_integer(minimum=0), port=_integer(minimum=1, maximum=65535)),
    "exclusive": _closed("ratio", ratio=_number(exclusiveMinimum=0, exclusiveMaximum=1)),
    "multiple": _closed("price", price=_number(minimum=0, maximum=100, multipleOf=0.01)),
    "decimal": _closed(
        "amount",
        amount={"anyOf": [_number(), _string(pattern=r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$")]},
    ),
    "enum": {
        **_closed("color", color={"$ref": "#/$defs/Color"}),
        "$defs": {"Color": _string(enum=["red", "green", "blue"], title="Color")},
    },
    "int_enum": _closed("level", level=_integer(enum=[1, 2, 3])),
    "literal": _closed("kind", kind=_string(const="cat"), lives=_integer(minimum=1, maximum=9)),
    "nested": {
        **_closed("address", address={"$ref": "#/$defs/Address"}),
        "$defs": {
            "Address": _closed("street city", street=_NAME, city=_NAME, zip=_string(pattern=r"^\d{5}$"))
        },
    },
    "tree": {
        "$defs": {
            "Node": _closed("value", value=_integer(), children=_list({"$ref": "#/$defs/Node"}, maxItems=2))
        },
        "$ref": "#/$defs/Node",
    },
    "discriminated": {
        **_closed(
            "pet",
            pet={
                "discriminator": {
                    "propertyName": "kind",
                    "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                },
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            },
        ),
        "$defs": {
            "Cat": _closed("kind", kind=_string(const="cat"), meows=_integer(minimum=0)),
            "Dog": _closed("kind", kind=_string(const="dog"), barks=_BOOL),
        },
    },
    "union": _closed("value", value={"anyOf": [_integer(), _NAME, _BOOL]}),
    "list_of_models": {
        **_closed("items", items=_list({"$ref": "#/$defs/Item"}, minItems=1)),
        "$defs": {"Item": _closed("name", name=_NAME, count=_integer(minimum=1, maximum=99))},
    },
    "map": _closed(
        "scores", scores={"type": "object", "additionalProperties": _integer(), "maxProperties": 3}
    ),
    "tuple": _closed(
        "pair",
        pair={
            "type": "array",
            "prefixItems": [_integer(), _NAME],
            "minItems": 2,
            "maxItems": 2,
        },
    ),
    "datetime": _closed("at day", at=_string(format="date-time"), day=_string(format="date")),
    "uuid": _closed("id", id=_string(format="uuid")),
    "lengths": _closed("code", code=_string(minLength=3, maxLength=8)),
    "non_ascii": {
        "$defs": {"Größe": _integer(minimum=1, maximum=9), "大きさ": _NAME},
        **_closed("größe 名前", größe={"$ref": "#/$defs/Größe"}, 名前={"$ref": "#/$defs/大きさ"}),
    },
    "slashes": {
        "$defs": {"a/b": _closed("x", x=_BOOL)},
        **_closed("ref", ref={"$ref": "#/$defs/a~1b"}),
    },
}

_ZOD: dict[str, Schema] = {
    "object": {
        "$schema": DRAFT_2020,
        **_closed("name age", name=_NAME, age=_integer(minimum=-9007199254740991, maximum=9007199254740991)),
    },
    "draft_7": {"$schema": DRAFT_7, **_closed("query", query=_NAME, limit=_integer(minimum=1, maximum=50))},
    "email": _closed(
        "email",
        email=_string(
            format="email",
            maxLength=40,
            pattern=(
                r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
            ),
        ),
    ),
    "record": _closed(
        "headers",
        headers={
            "type": "object",
            "propertyNames": _string(),
            "additionalProperties": _NAME,
            "maxProperties": 2,
        },
    ),
    "record_of_enum": _closed(
        "on", on={"type": "object", "propertyNames": _string(enum=["a", "b"]), "additionalProperties": _BOOL}
    ),
    "starts_with": _closed("id", id=_string(format="starts_with", pattern="^usr_[a-z]{2,6}$")),
    "base64": _closed(
        "data",
        data=_string(
            format="base64",
            contentEncoding="base64",
            pattern=r"^$|^(?:[0-9a-zA-Z+/]{4}){0,3}(?:(?:[0-9a-zA-Z+/]{2}==)|(?:[0-9a-zA-Z+/]{3}=))?$",
        ),
    ),
    "nullable": _closed("note", note={"anyOf": [_NAME, _NULL]}),
    "union_of_literals": _closed("mode", mode={"anyOf": [_string(const="fast"), _string(const="slow")]}),
    "default": _closed("limit", limit=_integer(default=10, minimum=1, maximum=100)),
    "tuple": {
        "$schema": DRAFT_7,
        "type": "array",
        "items": [_NAME, _integer()],
        "additionalItems": False,
        "minItems": 2,
    },
    "lazy": {"$schema": DRAFT_7, **_closed("name", name=_NAME, parent={"$ref": "#"})},
    "any": _closed("payload", payload={"type": ["string", "number", "boolean", "null"], "maxLength": 12}),
    "unknown": _closed("x", x=True),
    "never": _closed("a", a=_NAME, b={"not": {}}),
    "positive": _closed("n", n=_number(exclusiveMinimum=0, maximum=10)),
    "finite": _closed("n", n=_integer(minimum=0, maximum=9007199254740991)),
    "intersection": {
        "allOf": [_object("a", a=_NAME), _object("b", b=_integer(minimum=0, maximum=9))],
        "unevaluatedProperties": True,
        "type": "object",
        "maxProperties": 2,
        "required": ["a", "b"],
    },
    "strings_of_allof": _closed("s", s={"allOf": [_string(minLength=2), _string(maxLength=4)]}),
    "url": _closed("url", url=_string(format="uri", maxLength=60)),
}

_OPENAPI: dict[str, Schema] = {
    "pet": _closed(
        "name photoUrls",
        id=_integer(format="int64"),
        name=_NAME,
        photoUrls=_list(_NAME),
        status=_string(enum=["available", "pending", "sold"]),
    ),
    "order": _closed(
        "id",
        id=_integer(format="int64"),
        quantity=_integer(format="int32", maximum=100),
        shipDate=_string(format="date-time"),
        complete=_BOOL,
    ),
    "error": _closed("code message", code=_integer(), message=_string(maxLength=20)),
    "page": _closed("items total", items=_list(_closed("id", id=_integer())), total=_integer(minimum=0)),
    "money": _closed("value currency", value=_number(), currency=_string(pattern="^[A-Z]{3}$")),
    "coordinates": _closed(
        "lat lon", lat=_number(minimum=-90, maximum=90), lon=_number(minimum=-180, maximum=180)
    ),
    "status_codes": _closed("status", status=_integer(enum=[200, 404, 500])),
    "unanchored": _closed("v", v=_string(pattern=r"\d", maxLength=6)),
    "quotes": _closed("v", v=_string(pattern='^"[a-z]{1,4}"$')),
    "newlines": _closed("v", v=_string(pattern="^a\\nb$")),
    "time": _closed("t", t=_string(format="time")),
    "ip": _closed("v4", v4=_string(format="ipv4")),
    "hostname": _closed("host", host=_string(format="hostname", maxLength=20)),
    "either": {
        "type": "object",
        "properties": {"a": _NAME, "b": _integer()},
        "additionalProperties": False,
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "unlisted": {"type": "object", "properties": {"a": _BOOL}, "required": ["a", "b"], "maxProperties": 2},
    "uint64": _closed("n", n=_integer(minimum=0, maximum=18446744073709551615)),
    "closed_tuple": {"type": "array", "prefixItems": [_BOOL, _integer()], "items": False, "minItems": 2},
    "one_of_types": _closed("id", id={"oneOf": [_integer(minimum=0), _string(pattern="^[a-z]{1,8}$")]}),
    "components": {
        "components": {"schemas": {"Id": _integer(minimum=1, maximum=99)}},
        **_closed("id", id={"$ref": "#/components/schemas/Id"}),
    },
    "pattern_properties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,3}$": _NAME},
        "additionalProperties": False,
    },
}

_MCP: dict[str, Schema] = {
    "read_file": _object("path", path=_string(maxLength=20), head=_number(), tail=_number())
    | {"additionalProperties": False, "$schema": DRAFT_7},
    "write_file": {"$schema": DRAFT_7, **_closed("path content", path=_NAME, content=_NAME)},
    "edit_file": _closed(
        "path edits",
        path=_NAME,
        edits=_list(_closed("oldText newText", oldText=_NAME, newText=_NAME)),
        dryRun={**_BOOL, "default": False},
    ),
    "search": _closed(
        "query",
        query=_NAME,
        max_results=_integer(minimum=1, maximum=20, default=5),
        topic=_string(enum=["general", "news"]),
    ),
    "create_issue": _closed(
        "owner repo title",
        owner=_NAME,
        repo=_NAME,
        title=_NAME,
        body=_NAME,
        labels=_list(_NAME),
        assignees=_list(_NAME),
    ),
    "create_entities": _closed(
        "entities",
        entities=_list(
            _closed("name entityType observations", name=_NAME, entityType=_NAME, observations=_list(_NAME))
        ),
    ),
    "think": _closed(
        "thought nextThoughtNeeded thoughtNumber",
        thought=_NAME,
        nextThoughtNeeded=_BOOL,
        thoughtNumber=_integer(minimum=1),
        totalThoughts=_integer(minimum=1),
    ),
    "fetch": _closed(
        "url",
        url=_string(format="uri", minLength=1, maxLength=60),
        max_length=_integer(exclusiveMinimum=0, exclusiveMaximum=1000000, default=5000),
    ),
    "query": _closed("sql", sql=_NAME, params=_list({"anyOf": [_NAME, _number(), _NULL]})),
    "navigate": _closed("url", url=_NAME, timeout=_number(minimum=0, maximum=60000)),
    "click": _closed(
        "ref",
        ref=_NAME,
        button=_string(enum=["left", "right", "middle"]),
        doubleClick=_BOOL,
        modifiers=_list(_string(enum=["Alt", "Control", "Shift"])),
    ),
    "nothing": {"type": "object", "properties": {}, "additionalProperties": False},
    "todo": _closed(
        "todos",
        todos=_list(
            _closed(
                "content status", content=_NAME, status=_string(enum=["pending", "in_progress", "completed"])
            )
        ),
    ),
    "named_like_keywords": _closed(
        "type pattern format",
        type=_NAME,
        pattern=_NAME,
        format=_NAME,
        items=_NAME,
        properties=_BOOL,
        required=_BOOL,
    ),
    "optional_before_required": _closed("b", a=_NAME, b=_integer(minimum=0, maximum=9), c=_BOOL),
    "deep": _closed("a", a=_closed("b", b=_closed("c", c=_closed("d", d=_integer(minimum=0, maximum=5))))),
}

_FAMILIES = {"pydantic": _PYDANTIC, "zod": _ZOD, "openapi": _OPENAPI, "mcp": _MCP}
SERVED: dict[str, Schema] = {
    f"{family}_{name}": schema for family, schemas in _FAMILIES.items() for name, schema in schemas.items()
}

REFUSED: dict[str, tuple[Schema, str]] = {
    "pydantic_set": (_closed("tags", tags=_list(_NAME, uniqueItems=True)), "/properties/tags/uniqueItems"),
    "openapi_conditional": (
        {**_closed("kind", kind=_NAME), "if": {"required": ["kind"]}, "then": {"required": ["more"]}},
        "/if",
    ),
    "openapi_remote": (_closed("pet", pet={"$ref": "https://example.com/pet.json"}), "/properties/pet/$ref"),
    "zod_contradiction": (_closed("n", n=_integer(minimum=5, maximum=3)), "/properties/n/minimum"),
}
