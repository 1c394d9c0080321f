"""Fixtures shared by unit tests of several modules."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import both_clients
from tests.scripted_peer import Peer, Script


@pytest.fixture
def home(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and runtime directory, and no option in the environment."""
    for name in [name for name in os.environ if name.startswith("INFERD_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "MODELS_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(short_dir))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))  # pytest's own cannot be read
    return short_dir


@pytest.fixture
def peer(short_dir: Path) -> Iterator[Callable[[Script], Peer]]:
    """Starts scripted daemons for a client to talk to."""
    started: list[Peer] = []

    def start(script: Script) -> Peer:
        started.append(Peer(short_dir / f"s{len(started)}", script))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model whose next token is independent of the context."""
    from tests.tiny_llama import write_llama  # imports NumPy, which few tests need

    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(params=["blocking", "asyncio"])
def clients(request: pytest.FixtureRequest) -> Iterator[Any]:
    """``clients.client``, ``.admin`` and ``.dial`` of one kind, all called like the blocking ones."""
    loop = asyncio.new_event_loop()
    yield both_clients.Blocking if request.param == "blocking" else both_clients.Asyncio(loop)
    loop.close()
