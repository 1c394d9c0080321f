"""How unexpected exceptions are logged: class and location, never the message."""

from __future__ import annotations

import traceback
from pathlib import Path


def describe(error: BaseException) -> str:
    """The class of the error and where it was raised, without the message, which may quote a prompt."""
    place = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(place[-1].filename).name}:{place[-1].lineno}" if place else ""
    return f"{type(error).__name__}{where}"
