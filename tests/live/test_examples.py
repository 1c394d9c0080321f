"""The programs in examples/ run as a user runs them, against a real daemon."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import PATIENCE_SECS, DaemonProcess
from tests.scripted_peer import Peer, frames
from tests.shell import Shell

EXAMPLES = Path(__file__).parents[2] / "examples"
TOOL_CALL = {"type": "tool_use", "tool_call_id": "t1", "name": "get_weather", "input": {"city": "Paris"}}

RUNS: list[tuple[list[str], str, str]] = [
    (["generate.py", "Hi"], "", "mock-response\n"),
    (["chat.py"], "a\nb\n", "mock-response\nmock-response\n"),
    (["document.py", str(EXAMPLES / "chat.py"), "What is this?"], "", "mock-response\n"),
    (["search.py", "aa"], "bb\naa bb\n", "22.667  bb\n11.333  aa bb\n"),
    (["search.py", "--rerank", "two words"], "one\ntwo words\n", "0.250  one\n0.100  two words\n"),
    (["many.py", "One?", "Two?"], "", "One? mock-response\nTwo? mock-response\n"),
    (["state.py"], "", "mock (mock), breaker closed\n"),
]


def run(user: Shell, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / arguments[0], *arguments[1:]],
        env=user.env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECS,
        check=False,
    )


def test_every_example_works_as_documented(daemon: Callable[..., DaemonProcess]) -> None:
    user = Shell(daemon(embed=1, rerank=1).wait_ready().dir)
    for arguments, stdin, expected in RUNS:
        done = run(user, *arguments, stdin=stdin)
        assert (done.returncode, expected in done.stdout) == (0, True), (arguments, done.stdout, done.stderr)


def test_the_tools_are_called(short_dir: Path) -> None:
    """A scripted daemon, since the mock never ends its calls."""
    text = {"type": "text", "delta": "Rain."}
    done: dict[str, object] = {
        "type": "done",
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "stop_reason": "tool_use",
    }
    replies = [frames({"type": "frame", "block": block}, done) for block in (TOOL_CALL, text)]
    user = Shell(short_dir)
    user.runtime.mkdir()
    server = Peer(user.runtime / "infer.v2.sock", lambda sock, line: replies.pop(0)(sock, line))
    ran = run(user, "tools.py", "Weather in Paris?")
    server.stop()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == 'get_weather({"city": "Paris"}) -> 18 degrees and rain in Paris\nRain.\n'
    (turn,) = json.loads(server.lines[1])["messages"][2:]
    assert turn["content"][0]["content"] == [{"type": "text", "text": "18 degrees and rain in Paris"}]


def test_watching_ends_with_the_daemon(daemon: Callable[..., DaemonProcess]) -> None:
    served = daemon().wait_ready()
    user = Shell(served.dir)
    watching = subprocess.Popen(
        [sys.executable, EXAMPLES / "state.py", "--watch"], env=user.env, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    while "'ready'" not in watching.stdout.readline():
        pass
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert "'draining'" in watching.communicate(timeout=PATIENCE_SECS)[0]
    assert watching.returncode == 0


@pytest.mark.parametrize("example", ["state.py", "many.py"])
def test_without_a_daemon_examples_print_the_reason(example: str, short_dir: Path) -> None:
    done = run(Shell(short_dir), example)
    assert done.returncode != 0
    assert "no daemon is running" in done.stderr


def test_every_example_is_run() -> None:
    tried = {arguments[0] for arguments, _, _ in RUNS} | {"tools.py"}
    assert tried == {path.name for path in EXAMPLES.glob("*.py")}


def test_every_program_of_the_client_page_runs(
    daemon: Callable[..., DaemonProcess], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (EXAMPLES.parent / "docs" / "client.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(programs) == page.count("```python") > 5
    served = daemon(embed=1, rerank=1).wait_ready()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(served.dir))
    for program in programs:
        exec(compile(program, "docs/client.md", "exec"), {"__name__": "program"})
        assert capsys.readouterr().out, program
