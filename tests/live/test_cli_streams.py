"""The commands with closed, full or piped streams, and with another encoding."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.shell import INFERD, PATIENCE_SECS, Shell


@pytest.fixture
def shell(short_dir: Path) -> Shell:
    return Shell(short_dir, INFERD_BACKEND="mock", INFERD_IDLE_EXIT_SECS="1")


def run(shell: Shell, line: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of sh, in which ``inferd`` is the program."""
    command = f'inferd() {{ {" ".join(INFERD)} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command],
        env={**shell.env, **env},
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_SECS,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("inferd --version > /dev/full", "the output cannot be written: No space left on device"),
        ("inferd run hi > /dev/full", "the output cannot be written: No space left on device"),
        ("inferd list >&-", "the output cannot be written: stdout is closed"),
        ("inferd run hi >&-", "the output cannot be written: stdout is closed"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(shell: Shell, line: str, reason: str) -> None:
    done = run(shell, line)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == f"inferd: {reason}"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_closed_stderr_or_stdin_does_no_harm(shell: Shell) -> None:
    assert run(shell, "inferd list 2>&-").returncode == 0
    assert run(shell, "inferd nonsense 2>&-").returncode == 2
    assert run(shell, "inferd run hi <&-").returncode == 0
    assert run(shell, "inferd run hi 2>/dev/full").returncode == 0


def test_a_locale_that_is_not_utf_8(shell: Shell) -> None:
    latin = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    done = run(shell, "inferd config show --config '/nowhere/漢é'", **latin)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
