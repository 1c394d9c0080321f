"""Replaces the look-around patterns of common libraries by equivalent patterns without look-around.

llguidance compiles a pattern to an automaton, which cannot look around. The patterns here come from Pydantic
and Zod. Only a pattern that equals one of these exactly is replaced.
"""

from __future__ import annotations

_EQUAL = {
    # Pydantic: Decimal without limits
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
    # Zod 4: email
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]@"
        r"(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
    # Zod 3 and zod-to-json-schema: email
    r"^(?!\.)(?!.*\.\.)([a-zA-Z0-9_'+\-\.]*)[a-zA-Z0-9_+-]@([a-zA-Z0-9][a-zA-Z0-9\-]*\.)+[a-zA-Z]{2,}$": (
        r"^(?:[a-zA-Z0-9_'+\-]+\.)*[a-zA-Z0-9_'+\-]*[a-zA-Z0-9_+-]@"
        r"(?:[a-zA-Z0-9][a-zA-Z0-9\-]*\.)+[a-zA-Z]{2,}$"
    ),
}


def without_look_around(pattern: str) -> str:
    """Returns the equivalent of ``pattern`` if this module knows one, else ``pattern`` itself."""
    return _EQUAL.get(pattern, pattern)
