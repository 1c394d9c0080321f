"""The known name that an unknown one may be a misspelling of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Of a misspelt name; below it names have little more in common than some letters, and no hint is better.
LIKENESS = 0.75


def nearest(name: str, known: Iterable[str]) -> str | None:
    """``None`` where none of the known names looks like it. Dashes in front do not count."""
    stripped = {each.lstrip("-"): each for each in known}
    found = difflib.get_close_matches(name.lstrip("-"), stripped, n=1, cutoff=LIKENESS)
    return stripped[found[0]] if found else None
