"""Removes or escapes control characters in untrusted text that is shown on a terminal.

Untrusted text is, for example, a server's error, a manifest of a shared store, a file name or a model's
answer. Untrusted text may contain escape sequences, which control a terminal, or bidirectional overrides,
which reorder the displayed text. All output of the commands and of the log passes through a function of this
module. Joiners, spaces and marks that some writing systems need are kept.
"""

from __future__ import annotations

import re
from typing import Any

# C0 and C1 controls, line and paragraph separators, bidirectional embeddings, overrides and isolates, and
# surrogates. The patterns are not compiled here: `re` compiles a pattern when it is first used, and many
# processes never use one.
_LINES = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_ALL = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def harmless(text: str) -> str:
    """Returns ``text`` with each control character replaced by U+FFFD. Line feeds and tabs are kept."""
    return re.sub(_LINES, REPLACEMENT, text)


def one_line(value: object) -> str:
    """Returns ``str(value)`` with each control character replaced by U+FFFD. Line feeds and tabs are
    replaced, too."""
    return re.sub(_ALL, REPLACEMENT, str(value))


def json_escaped(document: str) -> str:
    r"""Returns ``document`` (one line of JSON) with each control character escaped as ``\uXXXX``."""
    return re.sub(_ALL, lambda found: f"\\u{ord(found[0]):04x}", document)


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """Encodes ``value`` as one line of JSON without control characters."""
    import json

    return json_escaped(json.dumps(value, ensure_ascii=ascii_only))
