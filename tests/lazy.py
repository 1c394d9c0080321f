"""A package that is imported at its first use. An SDK takes a second in each worker, and only one worker uses
it."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Has the attributes of the package ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by pytest while it collects tests
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
