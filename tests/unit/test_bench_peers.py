"""The bare loop in C++ links against the libraries of the engine, as they are patched."""

from __future__ import annotations

import pytest

from bench import servers
from tests.demo_model import demo_model


def test_the_bare_loop_answers() -> None:
    try:
        with servers.bare_loop(demo_model(), threads=1, n_ctx=256) as loop:
            told = loop.ask(f"2 {b'Hello'.hex()}")
    except servers.Unavailable as reason:
        if "does not compile" in str(reason):
            raise
        pytest.skip(str(reason))
    assert isinstance(told["times"], list)
    assert len(told["times"]) == 2
