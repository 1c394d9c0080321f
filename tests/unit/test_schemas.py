"""JSON Schemas that mean harm: what they cost is bounded, and no word of them is printed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from inferd.engine.local import _llama
from inferd.errors import InvalidRequest
from tests.unit.test_llamacpp import load_model


def with_properties(count: int, **more: object) -> dict[str, object]:
    properties = {f"k{i}": {"type": "string"} for i in range(count)}
    return {"type": "object", "properties": properties, **more}


def test_an_object_with_many_properties_that_may_be_left_out_is_refused() -> None:
    """Of 3,000, converting takes minutes; a tool's arguments are such an object, too."""
    hostile = with_properties(3000)
    for schema in (hostile, {"anyOf": [{"items": hostile}]}, {"$defs": {"a": hostile}, "$ref": "#/$defs/a"}):
        with pytest.raises(InvalidRequest, match="properties that may be left out"):
            _llama.schema_to_grammar(json.dumps(schema).encode())
    templates = _llama.Templates(load_model())
    function = {"name": "f", "description": "", "parameters": hostile}
    request = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    with pytest.raises(InvalidRequest, match="properties that may be left out"):
        templates.render(json.dumps(request).encode())


def test_an_object_with_many_properties_that_are_needed_is_not() -> None:
    required = [f"k{i}" for i in range(2000)]
    assert _llama.schema_to_grammar(json.dumps(with_properties(2000, required=required)).encode())


def test_what_cannot_be_expressed_is_not_printed() -> None:
    schema = json.dumps(
        {"type": "string", "pattern": "^" + "(" * 300 + "my secret" + ")" * 300 + "$"}
    ).encode()
    code = f"from inferd.engine import _llama; print(len(_llama.schema_to_grammar({schema!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert done.stderr == ""
