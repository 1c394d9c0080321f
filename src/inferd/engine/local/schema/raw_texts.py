"""Constrains string parameters of tools, for model families that write strings without quotes.

The allowed texts are a list of literals, or a Lark expression for llguidance. An expression may allow fewer
or more texts than the schema, so the finished arguments are checked against the schema, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inferd.engine.local.schema.schema_places import target

MAX_LENGTH = 10_000  # longer texts are left to the check of the finished arguments

_DATE = "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL})*",
    "email": rf"[A-Za-z0-9_+\-]+(?:\.[A-Za-z0-9_+\-]+)*@(?:{_LABEL}\.)+[A-Za-z]{{2,12}}",
}


def given(schema: Any, root: Mapping[str, Any]) -> Sequence[str] | None:
    """Returns the texts that the schema lists in ``const`` or ``enum``. Returns ``None`` without such a list,
    or if the list has an empty text or a value that is not a string."""
    for part in _parts(schema, root):
        values = [part["const"]] if "const" in part else part.get("enum") or ()
        texts = [value for value in values if isinstance(value, str) and value]
        if texts and len(texts) == len(values):
            return texts
    return None


def expression(schema: Any, root: Mapping[str, Any]) -> str | None:
    """Returns a Lark expression for the texts that match ``schema``, the schema of a string. Returns ``None``
    if the expression would allow any text."""
    regexes = []
    for part in _parts(schema, root):
        if "pattern" in part:
            regexes.append(whole(part["pattern"]))
        regexes.append(FORMATS.get(part.get("format", "")))
        least, most = part.get("minLength", 0), part.get("maxLength")
        if 0 < max(least, most or 0) <= MAX_LENGTH:
            regexes.append(f"(?s:.{{{least},{'' if most is None else most}}})")
    return " & ".join(f"/{regex}/" for regex in regexes if regex is not None) or None


def _parts(schema: Any, root: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields ``schema`` and each schema that it includes by ``$ref`` or ``allOf``. A value must match all of
    them."""
    left, seen = [schema], set()
    while left:
        part = left.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if str(part.get("$ref", "")).startswith("#"):
            left.append(target(root, part["$ref"]))
        left += reversed(part.get("allOf") or ())


def whole(pattern: str) -> str | None:
    """Returns a regular expression that matches the whole of each text in which ``pattern`` has a match.

    Returns ``None`` if the pattern has ``^`` or ``$`` in its middle, or has both an anchor at an end and
    alternatives outside of groups.
    """
    starts = pattern.startswith("^")
    ends = pattern.endswith("$") and not re.search(r"(?<!\\)(?:\\\\)*\\\$\Z", pattern)
    inner = pattern[starts : len(pattern) - ends]
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", inner, flags=re.S)
    if "^" in bare or "$" in bare or ((starts or ends) and _has_alternatives(bare)):
        return None
    inner = re.sub(r"\\d", "[0-9]", re.sub(r"\\w", "[A-Za-z0-9_]", inner)) if "\\\\" not in inner else inner
    inner = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", inner)
    anything = "(?s:.*)"
    return f"{'' if starts else anything}(?:{inner}){'' if ends else anything}"


def _has_alternatives(bare: str) -> bool:
    """Returns whether a pattern has a ``|`` outside of all groups. ``bare`` is the pattern without escapes
    and character classes."""
    depth = 0
    for char in bare:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            return True
    return False
