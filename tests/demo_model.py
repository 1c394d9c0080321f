"""The real model of the tests. It is the default model of the catalogue, taken from the user's store, and
downloaded if it is missing."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

from inferd.config import paths
from inferd.store.catalogue import CATALOGUE, DEFAULT_MODEL
from inferd.store.fetch import ensure_model
from inferd.store.models import ModelStore

STORE = ModelStore(paths.models_home())  # that of the user, also when a test has a home of its own


@cache
def demo_model() -> Path:
    """The path of the verified file in the store."""
    with ensure_model(
        STORE,
        CATALOGUE[DEFAULT_MODEL],
        auto_pull=True,
        verify="auto",
        progress=lambda phase, details: None,
        cancelled=threading.Event(),
    ) as opened:
        return opened.path
