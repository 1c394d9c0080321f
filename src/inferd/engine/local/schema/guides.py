"""Converts a request's JSON Schemas to guides, which constrain the answer's tokens, and to checks of the
finished answer. The token filter of the token loop is in native/sampling/sampling.h.

llguidance is loaded from the extension module of its Python package. Rewritten schemas are cached, because
every request of a conversation repeats its tools and formats.
"""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from inferd import log
from inferd.engine.local import _llama
from inferd.engine.local.schema import schema_check, schema_rules
from inferd.engine.local.schema.schema_check import Check
from inferd.engine.local.schema.schema_places import refusal
from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest, ModelError

_log = log.get("llamacpp")

OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,  # a model may write blanks endlessly
    "json_allowed_escapes": 'nrbtf\\"',  # otherwise a declared name spelt with \u passes as an undeclared one
    "coerce_one_of": True,
    "lenient": False,
}
TOOL_OPTIONS = {**OPTIONS, "key_separator": ": ", "item_separator": ", "}
"""The options for a call's arguments. They set the spaces after colons and commas that chat templates write,
because models have learnt these."""
_KEPT = 256
MOST_SECONDS = 10.0
"""The limit of processor time for one schema. It is checked before each part of the schema is compiled."""


def _open_library() -> str:
    """Loads llguidance. This module calls the function when it is imported, before the sandbox forbids
    opening files.

    Returns the error message if loading fails, or an empty text.
    """
    try:
        _llama.open_guidance(importlib.import_module("llguidance._lib").__file__ or "")
    except (ImportError, ModelError) as error:
        return str(error)
    return ""


_PROBLEM = _open_library()


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An enforced schema.

    ``schema`` is the rewritten schema, and ``text`` is its JSON for llguidance. ``dropped`` lists the JSON
    pointers of the keywords that llguidance does not enforce. ``check`` tests a value against the original
    schema.
    """

    schema: dict[str, Any]
    text: bytes
    dropped: tuple[str, ...]
    check: Check


class Guides:
    """Makes the guides of one model. ``control`` maps the text of each control token to its id.
    Thread-safe."""

    def __init__(self, model: _llama.Model) -> None:
        if _PROBLEM:
            raise ModelError(_PROBLEM)
        self._guidance = _llama.Guidance(model)
        self._held = lru_cache(_KEPT)(self._hold)
        self.control = {text.decode(errors="replace"): i for text, i in model.control_tokens.items() if text}

    def answer(self, schema: str, *, lenient: bool) -> Held:
        """Compiles the schema of an answer.

        Raises ``InvalidRequest`` if the schema is unusable, or if it has a keyword that cannot be enforced.
        The message then contains the JSON pointer of the keyword. With ``lenient``, a keyword that cannot be
        enforced is dropped, without an error, if the finished answer can be checked against this keyword.
        """
        return self._held(schema, lenient, False)

    def tool(self, tool: Tool) -> Held:
        """Compiles the schema of a tool's arguments. Drops keywords that cannot be enforced. If the schema is
        unusable, raises ``InvalidRequest`` with the tool's name."""
        try:
            return self._held(tool.schema, True, True)
        except InvalidRequest as error:
            name = orjson.dumps(tool.name).decode()
            raise InvalidRequest(f"the input_schema of the tool {name}: {error}") from None

    def value(self, held: Held) -> _llama.Guide:
        """Returns a guide for an answer that is one JSON value and nothing else."""
        return self._guidance.guide(b"json_schema", held.text)

    def grammar(self, lark: str) -> _llama.Guide:
        """Returns a guide for a grammar in llguidance's Lark syntax. Raises ``InvalidRequest`` if llguidance
        refuses the grammar, for example because it is too large, or if the request is cancelled."""
        try:
            return self._guidance.guide(b"lark", lark.encode())
        except ValueError as error:
            raise InvalidRequest(f"the schemas of the tools cannot be used together: {error}") from None

    def takes(self, lark: str) -> bool:
        """Returns whether llguidance accepts the Lark grammar."""
        try:
            self._guidance.guide(b"lark", f"%llguidance {{}}\n{lark}".encode())
        except ValueError:
            return False
        return True

    def _hold(self, text: str, lenient: bool, is_tool: bool) -> Held:
        root = schema_check.read(text)
        end = time.thread_time() + MOST_SECONDS

        def compiles(part: dict[str, Any]) -> bool:
            if time.thread_time() > end:
                raise refusal("", "it takes too much processor time; make its patterns fewer or simpler")
            return self._compiles(part)

        rewritten = schema_rules.rewrite(root, lenient=lenient, is_tool=is_tool, compiles=compiles)
        check = Check(schema_check.parse(text))
        schema, dropped = rewritten.schema, rewritten.dropped
        try:
            self._guidance.guide(b"json_schema", json_text(schema))
        except ValueError as error:
            if not is_tool or "nsatisfiable" in str(error):
                raise InvalidRequest(f"the JSON Schema cannot be used: {error}") from None
            schema, dropped = {"type": "object"}, ("",)  # the finished arguments are checked as a whole
        if dropped:
            _log.warn("a JSON Schema is not enforced in all", pointers=list(dropped))
        return Held(schema, json_text(schema, TOOL_OPTIONS if is_tool else OPTIONS), dropped, check)

    def _compiles(self, schema: dict[str, Any]) -> bool:
        try:
            self._guidance.guide(b"json_schema", json_text(schema))
        except ValueError:
            return False
        return True


def json_text(schema: dict[str, Any], options: dict[str, Any] = OPTIONS) -> bytes:
    """Returns the schema as JSON text for llguidance."""
    return json.dumps({**schema, "x-guidance": options}).encode()  # orjson refuses integers beyond 64 bits
