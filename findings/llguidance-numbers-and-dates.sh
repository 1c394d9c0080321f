#!/usr/bin/env bash
# llguidance writes fewer forms of a number once the number has a bound, and reads decimals as jsonschema does not.
#
# Guess before the run: a bound narrows the values of a number, not the ways to write it; `multipleOf` and bounds mean
#   the same to a grammar and to the validator that checks its answers; `format: date` is digits, or a calendar.
# Seen: with llguidance 1.9.1 `{"type":"number"}` allows 1E+1, and with any bound no exponent at all; `minimum: 0`
#   also refuses -0. Its arithmetic is decimal: `multipleOf: 0.1` allows 0.3, and `exclusiveMaximum: 1` allows
#   0.99999999999999999999. jsonschema 4.26.0 computes in binary and calls both answers wrong. Bounds have 15 digits:
#   `maximum: 0.9999999999999999`, which has 16, allows 1, and the validator is right to refuse it. `date` knows the
#   lengths of the months but not the leap years (the validator was not asked to check formats).
# Meant for: checking the answers of a grammar with a validator: the two have to agree on arithmetic.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q llguidance==1.9.1 jsonschema==4.26.0
"$dir/venv/bin/python" - <<'PYTHON'
import json

import jsonschema
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """One token for each byte."""

    bos_token_id, eos_token_id = None, 256
    tokens = [*(bytes([value]) for value in range(256)), b"<end>"]
    special_token_ids = [256]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))


def allowed(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


NUMBER, INTEGER, DATE = {"type": "number"}, {"type": "integer"}, {"type": "string", "format": "date"}
CASES = [
    # schema, value, the grammar allows it, the validator accepts it
    (NUMBER, "1E+1", True, True),
    (NUMBER | {"maximum": 100}, "1E+1", False, True),
    (NUMBER | {"maximum": 100}, "10", True, True),
    (INTEGER, "-0", True, True),
    (INTEGER | {"minimum": 0}, "-0", False, True),
    (NUMBER | {"multipleOf": 0.1}, "0.3", True, False),
    (NUMBER | {"exclusiveMaximum": 1}, "0.99999999999999999999", True, False),
    (NUMBER | {"maximum": 0.9999999999999999}, "1", True, False),
    (NUMBER | {"maximum": 0.999999999999999}, "1", False, False),
    (DATE, '"2023-02-30"', False, True),
    (DATE, '"2023-02-29"', True, True),
]
for schema, text, grammar, validator in CASES:
    seen = (allowed(schema, text), jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)))
    print(f"{json.dumps(schema)} {text}: allowed by the grammar {seen[0]}, accepted by the validator {seen[1]}")
    assert seen == (grammar, validator), (schema, text, seen)
print("as written at the top")
PYTHON
