"""Finds the known name that is most similar to a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable

# The least similarity between a misspelt name and a suggested name. Less similar names share little more than
# letters, so a suggestion would mislead.
LIKENESS = 0.75


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the most similar known name, or ``None`` if none is similar. Leading dashes are ignored."""
    import difflib  # imported here, since only a misspelt name needs this module

    stripped = {each.lstrip("-"): each for each in known}
    found = difflib.get_close_matches(name.lstrip("-"), stripped, n=1, cutoff=LIKENESS)
    return stripped[found[0]] if found else None
