"""Validates a finished value against its JSON Schema, under the draft that the schema declares.

The grammar enforces most of a schema while the model writes. This module checks the finished value against
the whole schema, except for what :class:`Check` leaves out. Matching a pattern has a time limit, because the
client chooses the pattern and influences the text. Checking a value has a time limit, too: if each definition
refers to the next one twice, the number of parts to check grows exponentially.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import attrs
import jsonschema
import referencing
import regex
from jsonschema import validators
from jsonschema.exceptions import ValidationError
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from referencing.jsonschema import specification_with

from inferd.engine.local import _llama
from inferd.engine.local.schema.schema_places import MAX_SCHEMAS, count, nodes, refusal, schemas, step
from inferd.engine.local.schema.schema_rules import may_match_twice
from inferd.errors import InvalidRequest

PATTERN_SECONDS = 0.2
MOST_SECONDS = 2.0
"""The limit of processor time for checking one value."""
Errors = Iterator[ValidationError]
_LATEST = jsonschema.Draft202012Validator
_WITHOUT_FORMATS = jsonschema.FormatChecker(formats=())


class Turn:
    """Lets one thread at a time run its block. ``poll`` lets another thread run after ``SLICE_SECS``.

    Threads that run Python compete for the GIL, and the event loop has to wait for all of them. With four
    threads, the event loop waits ten times as long as with one.
    """

    SLICE_SECS = 0.005
    PASS_SECS = 0.00005
    """Long enough for a waiting thread to take the turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end = 0.0

    def __enter__(self) -> None:
        """Raises ``InvalidRequest`` if the request of this thread was cancelled while it waited."""
        self._lock.acquire()
        try:
            _llama.stop_if_cancelled()
        except InvalidRequest:
            self._lock.release()
            raise
        self._end = time.monotonic() + self.SLICE_SECS

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def poll(self) -> None:
        """Lets another thread run if ``SLICE_SECS`` have passed. Raises ``InvalidRequest`` if the request of
        this thread is cancelled."""
        _llama.stop_if_cancelled()
        if time.monotonic() >= self._end:
            self._lock.release()
            time.sleep(self.PASS_SECS)
            # Not `__enter__`: near the recursion limit, its frame may be one too many, and the turn would be
            # lost.
            self._lock.acquire()
            self._end = time.monotonic() + self.SLICE_SECS


_turn = Turn()


def read(text: str) -> dict[str, Any]:
    """Returns the schema in ``text``, which must be a JSON object.

    Raises ``InvalidRequest`` if the schema is too large, nests too deeply, or is invalid under its own draft.
    Validating a large schema takes seconds, so a cancelled request raises ``InvalidRequest``, too.
    """
    try:
        with _turn:
            schema = parse(text)
            if count(schema) > MAX_SCHEMAS:
                raise refusal("", f"it holds more than {MAX_SCHEMAS} schemas")
            draft = _draft_of(schema)
            fault = next(_validator_of(draft).iter_errors(schema), None)
    except ValueError as error:
        raise refusal("", f"it is not JSON ({error})") from None
    except BaseException as error:
        if not _is_depth(error):
            raise
        raise refusal("", "it nests too deeply") from None
    if fault is not None:
        where = "".join(step("", key) for key in fault.absolute_path)
        raise refusal(where or "/", fault.message[:200])
    return schema


def _is_depth(error: BaseException) -> bool:
    """Returns whether the error comes from the recursion limit. The Rust code of ``referencing`` turns a
    RecursionError into a ``PanicException``, which is not an ``Exception``."""
    return isinstance(error, RecursionError) or type(error).__name__ == "PanicException"


def parse(text: str) -> dict[str, Any]:
    """Parses the JSON text of a schema. Raises ValueError for invalid JSON."""
    schema: dict[str, Any] = json.loads(text, parse_constant=_refuse_constant)
    return schema


@cache
def _validator_of(draft: Any) -> Any:
    """Returns a validator for schemas of the draft. At each reference, the validator raises
    ``InvalidRequest`` if the request is cancelled.

    ``$schema`` is removed from each part of the meta-schema. For a part with ``$schema``, jsonschema would
    switch to one of jsonschema's own validator classes. These do not stop when the request is cancelled.
    """
    keywords = {key: _cancellable(draft.VALIDATORS[key]) for key in _REFERENCES if key in draft.VALIDATORS}
    specification = specification_with(draft.META_SCHEMA["$schema"])
    parts = [
        (uri, specification.create_resource(_plain(SPECIFICATIONS.contents(uri)))) for uri in SPECIFICATIONS
    ]
    kind = validators.extend(draft, {**keywords, "uniqueItems": _unique_items})
    registry = referencing.Registry().with_resources(parts)
    return kind(_plain(draft.META_SCHEMA), format_checker=_WITHOUT_FORMATS, registry=registry)


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def _plain(schema: Any) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$schema"}


def _cancellable(keyword: Any) -> Any:
    def look(validator: Any, value: Any, instance: Any, schema: Any) -> Errors:
        _turn.poll()
        yield from keyword(validator, value, instance, schema) or ()

    return look


def _draft_of(schema: dict[str, Any]) -> Any:
    if "$schema" not in schema and _any(schema, lambda node: isinstance(node.get("items"), list)):
        return jsonschema.Draft7Validator  # a tuple in the syntax up to draft 7
    return validators.validator_for(schema, default=_LATEST)


_UNREADABLE = "it is not JSON, or nests too deeply"


class _TooLong(Exception):
    """Raised when a check has used up its processor time."""


_check = threading.local()
"""``end`` is the processor time of the thread at which its current check gives up."""


def _bounded(keyword: Any) -> Any:
    def look(validator: Any, value: Any, instance: Any, schema: Any) -> Errors:
        if time.thread_time() > _check.end:
            raise _TooLong
        yield from keyword(validator, value, instance, schema) or ()

    return look


def _evolve(validator: Any, **changes: Any) -> Any:
    """Returns the validator for a part of a schema. For a part with ``$schema``, jsonschema's own function
    would use a validator class without a time limit."""
    return attrs.evolve(validator, **changes)


class Check:
    """Tests values against ``schema``. The constructor changes ``schema``.

    A ``oneOf`` becomes an ``anyOf`` if two of its branches may match the same value. If the schema has
    ``patternProperties`` anywhere, ``unevaluatedProperties`` is removed, because jsonschema would match the
    patterns without a time limit.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        draft = _draft_of(schema)
        for node in [node for node in schemas(schema) if may_match_twice(schema, node)]:
            node.setdefault("allOf", []).append({"anyOf": node.pop("oneOf")})
        if _any(schema, lambda node: "patternProperties" in node):
            # See the docstring of the class.
            _without(schema, "unevaluatedProperties")
        bounded = {key: _bounded(draft.VALIDATORS[key]) for key in _REFERENCES if key in draft.VALIDATORS}
        kind = validators.extend(draft, {**_KEYWORDS, **bounded})
        kind.evolve = _evolve
        self._validator = kind(schema, format_checker=draft.FORMAT_CHECKER, registry=referencing.Registry())

    def fault(self, text: str) -> str | None:
        """Returns why the JSON value in ``text`` is invalid, or ``None`` if it is valid. If the value breaks
        the schema, the reason is a JSON pointer and a keyword."""
        _check.end = time.thread_time() + MOST_SECONDS
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            error = next(self._validator.iter_errors(value), None)
        except ValueError:
            return _UNREADABLE
        except _TooLong:
            return "checking it takes too much processor time"
        except BaseException as fault:
            if not _is_depth(fault):
                raise
            return _UNREADABLE
        if error is None:
            return None
        where = "".join(step("", key) for key in error.absolute_path)
        return f"{where or '/'} breaks `{error.validator}`"


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _any(schema: Any, test: Any) -> bool:
    return any(test(node) for node in nodes(schema))


def _without(schema: Any, key: str) -> None:
    for node in list(nodes(schema)):
        if isinstance(node.get(key), bool | dict):
            del node[key]


def matches(pattern: str, text: str) -> bool:
    """Returns whether the text contains a match of the pattern, by the rules of ECMAScript. Returns false if
    matching takes too long, and true if the ``regex`` package cannot read the pattern."""
    try:
        return regex.search(pattern, text, regex.ASCII, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return False
    except regex.error:  # a pattern of another dialect, which the grammar enforces
        return True


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Errors:
    if isinstance(instance, str) and not matches(pattern, instance):
        yield ValidationError("the pattern does not match")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Errors:
    if not isinstance(instance, dict):
        return
    for pattern, part in patterns.items():
        for name, value in instance.items():
            if matches(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, part: Any, instance: Any, schema: Any) -> Errors:
    if not isinstance(instance, dict):
        return
    patterns = schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in schema.get("properties", {}) or any(matches(pattern, name) for pattern in patterns):
            continue
        if part is False:
            yield ValidationError("a property that the schema does not allow")
        else:
            yield from validator.descend(value, part, path=name)


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Errors:
    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    # The numbers as they are written: 19.99 is a multiple of 0.01, but not by float division.
    if abs(instance) == math.inf or Fraction(repr(instance)) % Fraction(repr(divisor)) != 0:
        yield ValidationError("not a multiple")


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Errors:
    """Checks ``uniqueItems`` in linear time. jsonschema would compare each pair of items that it cannot
    sort."""
    if unique and isinstance(instance, list):
        texts = {json.dumps(_plain_numbers(item), sort_keys=True) for item in instance}
        if len(texts) < len(instance):
            yield ValidationError("two items are equal")


def _plain_numbers(value: Any) -> Any:
    """Returns the value with each whole float as an integer, because JSON Schema treats 1.0 and 1 as
    equal."""
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain_numbers(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


_KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "multipleOf": _multiple_of,
    "uniqueItems": _unique_items,
}
