"""What unit tests of several modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def home(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and runtime directory, and no option in the environment."""
    for name in [name for name in os.environ if name.startswith("INFERD_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "MODELS_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(short_dir))
    return short_dir
