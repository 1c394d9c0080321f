#!/usr/bin/env bash
# outlines-core turns a JSON Schema into a regular expression that means something else than the schema.
#
# Guess before the run: `pattern` is a search, as JSON Schema defines it; `prefixItems` says nothing of an array's
#   length; keywords that a regular expression cannot hold are refused.
# Seen: with outlines-core 0.2.14 `pattern` has to match the whole string, and anchors within it match nothing more:
#   "b" refuses "abc". `prefixItems` fixes the length. `maxProperties`, `uniqueItems`, `contains`, `propertyNames`,
#   `dependentRequired`, an `anyOf` beside `properties` and whatever stands beside a `$ref` are left out in silence.
# Meant for: porting schemas between structured-output engines, and for trusting one without a check of the answer.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q outlines-core==0.2.14 jsonschema==4.26.0
"$dir/venv/bin/python" - <<'PYTHON'
import json
import re

import jsonschema
from outlines_core.json_schema import build_regex_from_schema

INTEGER = {"type": "integer"}
CASES = [
    # schema, value, follows the schema, matches the expression
    ({"type": "string", "pattern": "b"}, '"abc"', True, False),
    ({"type": "string", "pattern": "^b"}, '"bc"', True, False),
    ({"type": "string", "pattern": "^b$"}, '"b"', True, True),
    ({"type": "array", "prefixItems": [INTEGER]}, "[1]", True, True),
    ({"type": "array", "prefixItems": [INTEGER]}, "[]", True, False),
    ({"type": "array", "prefixItems": [INTEGER]}, '[1,"x"]', True, False),
    ({"type": "object", "maxProperties": 1}, '{"a":1,"b":1}', False, True),
    ({"type": "array", "items": INTEGER, "uniqueItems": True}, "[1,1]", False, True),
    ({"type": "array", "contains": {"const": 1}}, "[2]", False, True),
    ({"type": "object", "propertyNames": {"pattern": "^x"}}, '{"y":1}', False, True),
    (
        {"type": "object", "properties": {"a": INTEGER}, "dependentRequired": {"a": ["b"]}},
        '{"a":1}', False, True,
    ),
    (
        {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "{}", False, True,
    ),
    ({"$ref": "#/$defs/x", "$defs": {"x": INTEGER}, "minimum": 5}, "3", False, True),
]
for schema, text, follows, matches in CASES:
    seen = (
        jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)),
        re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None,
    )
    print(f"{json.dumps(schema)}\n  {text}: follows the schema {seen[0]}, matches the expression {seen[1]}")
    assert seen == (follows, matches), (schema, text, seen)
print("as written at the top")
PYTHON
