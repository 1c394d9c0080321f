"""The prompts, answers and progress of commands."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from inferd import cli, errors, sampling
from inferd.cli import inputs, options, output, progress
from inferd.cli.say import say
from inferd.client import Done
from inferd.wire import bounds
from tests.cases import cases
from tests.daemon_process import until
from tests.scripted_peer import Peer, Script
from tests.unit.test_cli import DONE, Terminal

# Prompts and answers.


def test_the_prompt_is_the_argument_or_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b"")
    assert inputs.prompt(("hi",)) == "hi"
    assert inputs.prompt(("Name", "three", "rivers")) == "Name three rivers"
    stdin("\ufeffgrüß\n".encode())
    assert inputs.prompt(()) == "grüß"
    stdin(b"dash\n")
    assert inputs.prompt(("-",)) == "dash"
    stdin(b" the text\n")
    assert inputs.prompt(("Summarise", "this:")) == "Summarise this:\n\nthe text"
    stdin(b"taken")
    assert inputs.prompt(("hi",), stdin_taken=True) == "hi"
    with pytest.raises(errors.UsageError, match="`--file -`"):
        inputs.prompt((), stdin_taken=True)
    with pytest.raises(errors.UsageError, match="encoding of your locale"):
        inputs.prompt(("\udcff",))
    for data in (b"", b" \n", b"\xff"):
        stdin(data)
        with pytest.raises(errors.UsageError):
            inputs.prompt(("-",))
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(errors.UsageError, match="no prompt"):
        inputs.prompt(())


def test_piped_input_follows_the_prompt(
    home: Path, peer: Callable[[Script], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(connection: socket.socket, line: bytes) -> None:
        connection.sendall(b'{"type":"error","code":"queue_full","message":"no"}\n')

    daemon = peer(answer)
    v1 = daemon.path.rename(daemon.path.with_name("infer.sock"))
    v1.with_name("infer.v2.sock").symlink_to(v1)
    for line in (["run", "Sum", "up:"], ["run", "--file", "-", "Sum", "up:"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the text\n")))
        cli.main([*line, "--address", str(v1)])
    until(lambda: len(daemon.lines) >= 3)
    joined, attached, *raw = daemon.lines
    assert json.loads(joined)["messages"] == [{"role": "user", "content": "Sum up:\n\nthe text"}]
    assert [block["type"] for block in json.loads(attached)["messages"][0]["content"]] == ["text", "text"]
    assert raw == [b"the text\n"]


def test_a_value_out_of_its_bounds_is_an_error_of_the_flag(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "long.gbnf").write_text("#" * 65_537)
    tools = '[{"name":"a","description":"","input_schema":{}}]'
    for line in (
        ("--max-tokens", "-3"),
        ("--top-k", "-1"),
        ("--temperature", "-0.1"),
        ("--temperature", "nan"),
        ("--temperature", "101"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--min-p", "2"),
        ("--repeat-penalty", "0"),
        ("--repeat-penalty", "0.001"),
        ("--presence-penalty", "inf"),
        ("--seed", "4294967296"),
        ("--deadline", "0"),
        ("--priority", "high"),
        ("--stop", ""),
        ("--stop", "x") * 17,
        ("--session", "x" * 129),
        ("--session", "\udcff"),
        ("--model", "\udcff"),
        ("--stop", "\udcff"),
        ("--grammar", str(home / "long.gbnf")),
        ("--tool-choice", "b", "--tools", tools),
        ("--tool-choice", "auto"),
    ):
        assert cli.main(["run", *line, "hi"]) == 2, line
        named = capsys.readouterr().err.replace("_", "-")
        assert line[0] in named or line[0].removeprefix("--") in named
    assert not (home / "inferd").exists()


def test_tools_in_other_forms_are_accepted() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "Tells it.", "parameters": schema, "strict": True}
    ours = {"name": "weather", "description": "Tells it.", "input_schema": schema}
    assert inputs.tools(json.dumps([{"type": "function", "function": function}])) == [ours]
    assert inputs.tools(json.dumps(ours)) == [ours]
    listed = {"name": "weather", "description": "Tells it.", "inputSchema": schema, "annotations": {}}
    assert inputs.tools(json.dumps({"tools": [listed], "nextCursor": "x"})) == [ours]
    with pytest.raises(
        errors.UsageError, match="the JSON on the command line must hold a JSON array of tools"
    ):
        inputs.tools('[{"name": "x"}]')


def test_sampling_options_become_arguments_of_generate(tmp_path: Path) -> None:
    (tmp_path / "g").write_text('root ::= "é"')
    (tmp_path / "s").write_text('{"type": "object"}')
    nothing: dict[str, Any] = dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "seed"))
    both = options.sampling(**nothing, stop=(), grammar=tmp_path / "g", json_schema=None)
    assert both["grammar"] == 'root ::= "é"'
    assert both["stop"] is None
    both = options.sampling(**nothing, stop=("a", "b"), grammar=None, json_schema=str(tmp_path / "s"))
    assert both["json_schema"] == {"type": "object"}
    assert both["stop"] == ("a", "b")
    (tmp_path / "s").write_bytes(b'\xef\xbb\xbf{"type": "object"}')
    for given in (str(tmp_path / "s"), ' {"type": "object"}'):
        both = options.sampling(**nothing, stop=(), grammar=None, json_schema=given, deadline=1.5)
        assert both["json_schema"] == {"type": "object"}
        assert both["deadline_ms"] == 1500
    (tmp_path / "s").write_text("[]")
    with pytest.raises(errors.UsageError, match="JSON object"):
        options.sampling(**nothing, stop=(), grammar=None, json_schema=str(tmp_path / "s"))


@cases(
    "pieces, written",
    [(["Hel", "lo"], "Hello\n"), (["Hello\n"], "Hello\n"), ([], ""), (["a", ""], "a\n")],
)
def test_an_answer_ends_its_line_once(pieces: list[str], written: str) -> None:
    stream = io.StringIO()
    answer = output.Answer(stream)
    for piece in pieces:
        answer.write(piece)
    answer.end()
    assert stream.getvalue() == written


@pytest.mark.parametrize(("value", "coloured"), [("1", False), ("", True)])
def test_no_color_turns_colours_off(value: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", value)
    say("config", head=click.style("ok  ", fg="green"))
    assert ("\x1b" in terminal.getvalue()) is coloured
    assert terminal.getvalue().endswith("config\n")


def test_an_answer_cannot_control_the_terminal() -> None:
    text = "\x1b[2J\x07\x9b1mtab\there\nünïcode 🙂\x7f"
    terminal, pipe = Terminal(), io.StringIO()
    output.Answer(terminal).write(text)
    output.Answer(pipe).write(text)
    assert terminal.getvalue() == "\ufffd[2J\ufffd\ufffd1mtab\there\nünïcode 🙂\ufffd"
    assert pipe.getvalue() == text


def test_an_incomplete_answer_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def done(reason: str, tokens: int = 7, backend: str = "llamacpp") -> Done:
        return Done(
            content="", stop_reason=reason, prompt_tokens=1, completion_tokens=tokens, backend=backend
        )

    output.check_done(DONE, {})
    assert capsys.readouterr().err == ""
    for reason, choices in (("cancelled", {}), ("error", {"deadline_ms": 5})):
        with pytest.raises(errors.Unavailable, match="ended the answer early"):
            output.check_done(done(reason), choices)
    with pytest.raises(errors.Unavailable, match="--deadline"):
        output.check_done(done("cancelled"), {"deadline_ms": 5})
    for cut, choices, said in (
        (done("length"), {"max_tokens": 7}, "(cut after 7 tokens, by --max-tokens)"),
        (done("length"), {"max_tokens": 8}, "(cut after 7 tokens, by the model's context)"),
        (done("length"), {}, "(cut after 7 tokens, by the model's context)"),
        (done("length", backend="openai-compat"), {}, "(cut after 7 tokens, by the limit of the server)"),
        (done("length", 1000), {}, "(cut after 1000 tokens; --max-tokens sets another limit)"),
    ):
        output.check_done(cut, choices)
        assert capsys.readouterr().err.strip() == said
    assert bounds.MAX_TOKENS == sampling.MAX_TOKENS == 1000


def test_on_a_terminal_an_error_in_the_middle_of_an_answer_has_its_own_line(
    home: Path,
    peer: Callable[[Script], Peer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(connection: socket.socket, line: bytes) -> None:
        token = {"type": "token", "id": json.loads(line)["id"], "content": "Hel"}
        error = {**token, "type": "error", "code": "backend_unavailable", "message": "it ended"}
        connection.sendall(f"{json.dumps(token)}\n{json.dumps(error)}\n".encode())

    assert cli.main(["run", "hi", "--address", str(peer(answer).path)]) == 4
    assert capsys.readouterr() == ("Hel", "inferd: it ended\n")  # a pipe gets the text unchanged
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["run", "hi", "--address", str(peer(answer).path)]) == 4
    assert capsys.readouterr() == ("Hel\n", "inferd: it ended\n")


# Progress.

STEPS: list[dict[str, Any]] = [
    {"status": "starting"},
    {"status": "loading_model", "phase": "download", "downloaded_bytes": 0, "total_bytes": None},
    {
        "status": "loading_model",
        "phase": "download",
        "downloaded_bytes": 40_000_000,
        "total_bytes": 98_000_000,
    },
    {
        "status": "loading_model",
        "phase": "download",
        "downloaded_bytes": 50_000_000,
        "total_bytes": 98_000_000,
    },
    {
        "status": "loading_model",
        "phase": "download",
        "downloaded_bytes": 50_000_000,
        "total_bytes": 98_000_000,
        "attempt": 2,
        "reason": "[Errno 111] Connection refused",
    },
    {
        "status": "loading_model",
        "phase": "download",
        "downloaded_bytes": 60_000_000,
        "total_bytes": 98_000_000,
        "waiting_for_pid": 7,
    },
    {"status": "loading_model", "phase": "verify", "path": "/p"},
    {"status": "loading_model", "phase": "mmap", "path": "/p", "progress": 0.5},
    {"status": "loading_model", "phase": "of a later version"},
    {"status": "ready"},
]


def test_progress_off_a_terminal_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress() as shown:
        for step in STEPS:
            shown.frame(step)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Downloading the model …",
        "Downloading the model, try 2 ([Errno 111] Connection refused) …",
        "Downloading the model (by process 7) …",
        "Verifying the model …",
        "Loading the model …",
        "of a later version …",
    ]


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress.Progress() as shown:
        for step in STEPS:
            shown.frame(step)
            if shown._bars is not None:
                shown._bars.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"50/98 MB \d+\.\d MB/s +\d+:\d\d:\d\d", drawn)
    assert "Downloading the model, try 2 ([Errno 111] Connection refused)" in drawn
    assert "Downloading the model (by process 7)" in drawn
    assert "Loading the model" in drawn
    assert capsys.readouterr().out == ""
