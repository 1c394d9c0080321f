"""Escape sequences and bidi overrides in foreign text never reach the terminal."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd import cli, log
from inferd.cli import progress, say
from inferd.controls import harmless, json_escaped, one_line, to_json
from inferd.store.models import Manifest, ModelStore
from tests.scripted_peer import Peer, Script
from tests.unit.test_cli_models import DIGEST

Capture = pytest.CaptureFixture[str]

SOURCE = Path(__file__).parents[2] / "src" / "inferd"
HOSTILE = "\x1b]0;mine\x07 \x9b2J \u202egpj.exe\u2066 \u2028 \rforged"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def test_controls_are_replaced_and_joiners_kept() -> None:
    kept = "é 漢字 \u00a0\u3000 नि \u200d👩‍🚀 \u200cمی\u200f\tx\n"
    assert harmless(kept) == kept
    assert one_line(kept) == kept.replace("\t", "�").replace("\n", "�")
    assert not CONTROL.search(harmless(HOSTILE))
    assert not CONTROL.search(one_line(HOSTILE))
    assert len(harmless(HOSTILE)) == len(HOSTILE)


def test_json_loses_nothing() -> None:
    value = {"text": HOSTILE + "é\n", "half": "\udc80"}
    assert not CONTROL.search(to_json(value))
    assert json.loads(to_json(value)) == value
    assert json.loads(json_escaped(orjson.dumps(HOSTILE).decode())) == HOSTILE


def test_every_command_prints_through_the_filter() -> None:
    """No module of the commands prints by itself."""
    printing = []
    for file in sorted((SOURCE / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if re.fullmatch(
                    r"print|(click|sys\.std\w+)\.(s?echo|write)|click\.prompt|click\.confirm", called
                ):
                    printing.append((file.name, called))
    assert set(printing) == {("say.py", "click.echo")}


def test_the_filter_of_the_commands(capsys: Capture) -> None:
    say.say(HOSTILE)
    say.say(HOSTILE, err=True)
    say.say_json({"text": HOSTILE})
    say.say_status(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count("gpj") == err.count("gpj") == 2
    before, status = err.split("\n\r")  # the status line begins with its own control
    assert not CONTROL.search(out + before + status)


def test_an_error_of_a_server(home: Path, peer: Callable[[Script], Peer], capsys: Capture) -> None:
    def refuse(connection: Any, line: bytes) -> None:
        text = f"{HOSTILE}\nforged"
        frame = {"id": json.loads(line)["id"], "type": "error", "code": "internal", "message": text}
        connection.sendall(orjson.dumps(frame) + b"\n")

    daemon = peer(refuse)
    assert cli.main(["run", "--address", str(daemon.path), "hello"]) == 4
    err = capsys.readouterr().err
    assert "gpj" in err
    assert not CONTROL.search(err.removesuffix("\n"))
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", [["list"], ["list", "--json"]])
def test_a_manifest_of_a_shared_store(home: Path, capsys: Capture, line: list[str]) -> None:
    store = ModelStore(home)
    manifest = Manifest(
        name="m",
        blob=f"sha256:{DIGEST}",
        size_bytes=1,
        license=HOSTILE,
        source=None,
        produced_by="",
        produced_at="",
    )
    store.write_manifest(manifest)
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "gpj.exe" in out
    assert not CONTROL.search(out)


def test_file_names_and_arguments(home: Path, capsys: Capture) -> None:
    for line in (
        ["import", HOSTILE],
        ["run", "--file", HOSTILE, "x"],
        [HOSTILE],
        ["config", "check", HOSTILE],
    ):
        assert cli.main(line) in (1, 2)
        err = capsys.readouterr().err
        assert "gpj" in err
        assert not CONTROL.search(err)


def test_the_progress_of_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        details = {"downloaded_bytes": 1, "total_bytes": 2, "attempt": 2, "reason": HOSTILE}
        with progress.Progress() as shown:
            shown.phase("download", details)
        assert "gpj.exe" in stream.getvalue()
        assert "\x1b]0" not in stream.getvalue()
        assert "\u202e" not in stream.getvalue()


def test_the_log(tmp_path: Path) -> None:
    activity = log.setup("info", tmp_path, stderr=False)
    log.get("x").info("event", error=HOSTILE)
    activity.close()
    text = (tmp_path / log.FILE_NAME).read_text()
    assert not CONTROL.search(text)
    assert json.loads(text)["error"] == HOSTILE
