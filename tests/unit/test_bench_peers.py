"""The bare loop in C++ links against the patched libraries of the engine, and a peer that fails does not stop
a benchmark."""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import servers
from bench.cases import decode
from bench.report import Report
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


LOOP = """
import json, os, signal
print("ready", flush=True)
input()
if DIES:
    os.kill(os.getpid(), signal.SIGILL)
print(json.dumps({"times": [0.0, 0.5], "prefill_ms": 1.0}), flush=True)
"""


def test_a_peer_that_dies_is_missing_with_its_signal_and_the_others_are_measured() -> None:
    report = Report("decode", "")
    contest = decode.Contest(report, patience=0)
    rng = random.Random(0)
    with ExitStack() as stack:
        for name, dies in (("dies", True), ("lives", False)):
            program = LOOP.replace("DIES", str(dies))
            loop = stack.enter_context(servers.Loop(name, [sys.executable, "-c", program]))
            contest.loop(loop, decode.as_text)
        for name in list(contest.turns):
            contest.turn(name, rng)
        contest.turn("dies", rng)
    assert list(report.missing) == ["dies"]
    assert report.missing["dies"].startswith("does not run (SIGILL)")
    assert report.values("lives", "decode") == [2.0]


def test_a_missing_peer_is_reported_without_the_folders_of_this_machine(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    with pytest.raises(servers.Unavailable) as missing:
        servers.require_module(python, "no_such_module", "no-such-package")
    assert str(missing.value).startswith("not installed; run python -m pip install no-such-package")
    trace = (
        f'does not run: File "{tmp_path}/a/b.py", line 1: see https://example.org/a/b and bench/peers/x.py'
    )
    assert str(servers.Unavailable(trace)) == (
        'does not run: File "b.py", line 1: see https://example.org/a/b and bench/peers/x.py'
    )
