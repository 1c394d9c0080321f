"""Attachments, tools, vectors and rankings on the command line, in this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import cli, errors
from inferd.cli import inputs, options
from inferd.wire import v2
from tests.scripted_peer import Peer, Script, after_attachments, frames

Start = Callable[[Script], Peer]

TOOL = {"name": "add", "description": "Adds", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "tool_call_id": "t1", "name": "add", "input": {"a": "ü"}}
DONE: dict[str, object] = {
    "type": "done",
    "usage": {"input_tokens": 9, "output_tokens": 2},
    "stop_reason": "tool_use",
    "backend": "mock",
}


SAID = [{"type": "text", "delta": "Let me see."}, CALL, {"type": "thinking", "delta": "hm"}]
ANSWER = (*({"type": "frame", "block": block} for block in SAID), DONE)


def named_v2(server: Peer) -> str:
    """An address that identifies the surface, which then uses the line protocol."""
    link = server.path.with_name("infer.v2.sock")
    link.symlink_to(server.path)
    return str(link)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.PNG").write_bytes(b"picture\n")
    (tmp_path / "b.mp3").write_bytes(b"sound\n")
    (tmp_path / "c").write_bytes("grün\n".encode())
    (tmp_path / "tools").write_text(json.dumps([TOOL]))
    (tmp_path / "not utf-8").write_bytes(b"\xff")
    (tmp_path / "[]").write_text("[1]")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "long").write_text("1" * 5_000)
    return tmp_path


def test_run_sends_attachments_and_prints_calls(
    files: Path, home: Path, peer: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = peer(after_attachments(frames(*ANSWER)))
    line = ["run", "What?", "--address", named_v2(server), "--system", "Be brief.", "--seed", "3"]
    for option, name in (("image", "a.PNG"), ("audio", "b.mp3"), ("file", "c"), ("tools", "tools")):
        line += [f"--{option}", str(files / name)]
    assert cli.main([*line, "--tool-choice", "add"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Let me see."
    assert json.loads(out[1]) == {key: CALL[key] for key in ("tool_call_id", "name", "input")}
    assert len(out) == 2
    request = v2.parse(server.lines[0].removesuffix(b"\n"))
    assert server.lines[1:] == [b"picture\n", b"sound\n", "grün\n".encode()]
    attached = request.attachments or []
    assert [(type(each).__name__, each.size) for each in attached] == [
        ("Image", 8),
        ("Audio", 6),
        ("Text", 6),
    ]
    assert [each.mime for each in attached[:2]] == ["image/png", "audio/mpeg"]
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.messages[1].content[-1].text == "What?"
    assert (request.tool_choice, request.seed) == (v2.ToolName("add"), 3)


def test_json_is_one_object_with_every_block(
    files: Path, home: Path, peer: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = peer(after_attachments(frames(*ANSWER)))
    line = ["run", "What?", "--address", named_v2(server), "--tools", str(files / "tools"), "--json"]
    assert cli.main([*line, "--tool-choice", "required"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    answer = json.loads(out)
    said, call, thought = answer["content"]
    assert (said["text"], call, thought["text"]) == ("Let me see.", CALL, "hm")
    assert (answer["stop_reason"], answer["input_tokens"]) == ("tool_use", 9)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (["--image", "{}/none.png"], "none.png cannot be read: No such file"),
        (
            ["--image", "{}/b.mp3"],
            "--image {}/b.mp3 has no known suffix; name a file that ends with one of .png",
        ),
        (["--audio", "{}/c"], ".wav, .mp3, .flac"),
        (["--file", "{}/not utf-8"], "not utf-8 is not UTF-8 text"),
        (["--tools", "{}/c"], "c is not JSON"),
        (["--tools", "{}/[]"], "must hold a JSON array of tools"),
        (["--tools", "{}/deep"], "deep nests too deeply"),
        (["--json-schema", "{}/long"], "long nests too deeply or has a number of too many digits"),
        (["--tool-choice", "required"], "needs the tools of --tools FILE"),
    ],
)
def test_an_unusable_file_is_reported_before_connecting(
    line: list[str], part: str, files: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "hi", *(each.format(files) for each in line)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part.format(files) in err
    assert err.count("\n") == 1
    assert not (home / "inferd").exists()


def test_a_file_is_read_no_further_than_a_request_may_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1 << 20)
    with pytest.raises(errors.UsageError, match="larger than the 1 MiB"):
        inputs.text(Path("/dev/zero"))


def test_a_missing_required_call_is_reported(
    files: Path, home: Path, peer: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = peer(frames({**DONE, "stop_reason": "max_tokens", "tool_choice_unsatisfied": True}))
    line = ["run", "hi", "--address", named_v2(server), "--tools", str(files / "tools")]
    assert cli.main(line) == 0
    cut, missing = capsys.readouterr().err.splitlines()
    assert "cut after 2 tokens" in cut
    assert "no tool was called" in missing


# Vectors and rankings.


def test_the_texts_are_the_arguments_or_the_lines_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    assert inputs.lines(("a", "b\nc"), "text") == ["a", "b\nc"]
    for given in ((), ("-",)):
        stdin("eins\r\n zwei\u2028ü".encode())
        assert inputs.lines(given, "text") == ["eins", " zwei\u2028ü"]
    for data, why in ((b"", "line 1"), (b"a\n\nb\n", "line 2"), (b"\xff\n", "UTF-8")):
        stdin(data)
        with pytest.raises(errors.UsageError, match=why):
            inputs.lines((), "text")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(errors.UsageError, match="no text was given"):
        inputs.lines((), "text")


def test_the_target_is_the_socket_of_the_surface(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.target(None, None, "v2").address == str(home / "inferd" / "infer.v2.sock")
    assert options.target(None, None, "rerank").address == str(home / "inferd" / "infer.rerank.sock")
    monkeypatch.setenv("INFERD_EMBED_TCP", "127.0.0.1:47323")
    assert options.target(None, None, "embed").address == "tcp://127.0.0.1:47323"


@pytest.mark.parametrize(("command", "how"), [("embed", "--embed"), ("rerank", "--rerank")])
def test_without_a_suitable_model_prints_advice_and_starts_no_daemon(
    command: str, how: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "a", "b"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert f"`inferd serve {how} --model-path FILE.gguf`" in err
    assert err.count("\n") == 1
    assert not (home / "inferd").exists()
