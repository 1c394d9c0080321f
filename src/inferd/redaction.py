"""Redacts secrets in log records. A secret is recognised by its form or by the name of its field.

A marker, which names the kind of the secret, replaces each recognised secret. Other secrets stay in the text,
so callers must not log prompts, answers or keys in the first place.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

# In each pattern the unbounded repetition comes last and is not nested, so a match never backtracks, and the
# time is linear in the length of the text.

_START = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"  # not within a word; may follow %2F
_SEPARATOR = r"(?:\\{0,3}[\"'])?[ \t]{0,4}[:=][ \t]{0,4}"
_QUOTED = r"""(')(?:[^'\\]|\\.)*|(")(?:[^"\\]|\\.)*|(\\")(?:[^"\\]|\\\\(?:\\")?|\\[^"\\])*"""
_SENSITIVE = r"(?:password|passwd|pwd|api[-_]?key|secret(?:[-_]?access)?[-_]?key|secret|token)"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


@cache  # compiled when a text first needs the patterns, since compiling takes 5 ms
def _redactions() -> tuple[tuple[re.Pattern[str], str], ...]:
    return (
        (
            _pattern(rf"(authorization{_SEPARATOR})(?:{_QUOTED}|[^\r\n]+)"),
            r"\1\2\3\4[REDACTED:auth-header]",
        ),
        (
            _pattern(rf"({_START}bearer[ \t]{{1,4}})[A-Za-z0-9._~+/=-]{{16,}}"),
            r"\1[REDACTED:auth-header]",
        ),
        (
            _pattern(rf"({_SENSITIVE}{_SEPARATOR})(?:{_QUOTED}|[^\s\"]+)"),
            r"\1\2\3\4[REDACTED:secret-kv]",
        ),
        (re.compile(rf"{_START}eyJ[A-Za-z0-9_.-]{{8,}}"), "[REDACTED:jwt]"),
        (
            re.compile(
                rf"{_START}(?:sk-[A-Za-z0-9_-]{{8,}}|xox[baps]-[A-Za-z0-9-]{{8,}}|gh[oprsu]_[A-Za-z0-9]{{8,}}"
                r"|github_pat_[A-Za-z0-9_]{8,}|pat-[A-Za-z0-9-]{8,}|hf_[A-Za-z0-9]{8,})"
            ),
            "[REDACTED:api-key]",
        ),
        (re.compile(rf"{_START}AKIA[A-Z0-9]{{12,}}"), "[REDACTED:aws-access]"),
        (re.compile(rf"{_START}ASIA[A-Z0-9]{{12,}}"), "[REDACTED:aws-session]"),
    )


# Shorter text can hold a secret only as the value of `key=` or `key:`. Most logged text is shorter.
SHORTEST_SECRET = 11


@lru_cache(maxsize=1024)  # field names come from the code, not from clients
def marker_of_name(name: str) -> str | None:
    """Returns the marker to log instead of the value of the field ``name``. Returns ``None`` if the name does
    not suggest that the value is secret."""
    if re.search(rf"{_SENSITIVE}\Z", name, re.IGNORECASE):
        return "[REDACTED:secret-kv]"
    return "[REDACTED:auth-header]" if re.search(r"authorization\Z", name, re.IGNORECASE) else None


def redact(text: str) -> str:
    """Returns ``text`` with a marker in place of every secret that has a known form."""
    if len(text) < SHORTEST_SECRET and ":" not in text and "=" not in text:
        return text
    for pattern, marker in _redactions():
        text = pattern.sub(marker, text)
    return text
