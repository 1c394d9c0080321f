"""The status line of a waiting request."""

from __future__ import annotations

import pytest

from inferd.cli import waiting
from inferd.client.admin import Status


def status(**rows: tuple[dict[str, object], ...]) -> Status:
    empty: dict[str, tuple[dict[str, object], ...]] = {"running": (), "waiting": (), "loading": ()}
    return Status({}, (), "", 0, 0.0, 1, 1, backends=(), metrics={}, **{**empty, **rows})


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (status(waiting=({"peer_pid": 7, "position": 2},)), "2nd in the queue"),
        (status(waiting=({"peer_pid": 8, "position": 1},)), "waiting for the answer"),
        (status(running=({"peer_pid": 7, "prompt_read": 0.416},)), "reading the prompt 42 %"),
        (status(running=({"peer_pid": 7, "prompt_read": 1.0},)), "writing the answer"),
        (status(running=({"peer_pid": 7, "prompt_read": None},)), "waiting for the answer"),
        (status(loading=({"name": "a\x1b[31m"},)), "loading a\ufffd[31m"),
    ],
)
def test_the_text_of_the_line(state: Status, said: str) -> None:
    assert waiting.describe(state, 7) == said


def test_ordinals() -> None:
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)
    told = "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd 111th"
    assert " ".join(map(waiting.ordinal, numbers)) == told


def test_the_place_in_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    line = waiting.Waiting(None)  # type: ignore[arg-type]
    line.phase("queued", {"position": 2})
    assert line._state() == "2nd in the queue"
    line.phase("started", {})
    assert line._step == ""
    assert capsys.readouterr().err == ""


def test_without_a_terminal_each_step_of_a_load_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = waiting.Waiting(None)  # type: ignore[arg-type]
    for phase, share in (
        ("waiting", None),
        ("mmap", 0.1),
        ("mmap", 0.6),
        ("kv_cache", None),
        ("loaded", None),
    ):
        line.phase(phase, {} if share is None else {"progress": share})
    assert capsys.readouterr().err.splitlines() == [
        "Waiting for the model …",
        "Loading the model …",
        "Making room for the context …",
    ]
