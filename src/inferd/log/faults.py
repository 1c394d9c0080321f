"""Describes unexpected exceptions for the log. A description contains the class and the location, but not the
message."""

from __future__ import annotations

import traceback
from pathlib import Path


def describe(error: BaseException) -> str:
    """Returns the class of the error and the place where it was raised, without the message, which may quote
    a prompt."""
    place = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(place[-1].filename).name}:{place[-1].lineno}" if place else ""
    return f"{type(error).__name__}{where}"
