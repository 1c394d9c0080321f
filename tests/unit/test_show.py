"""``inferd show``: the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferd import cli
from tests.demo_model import demo_model
from tests.tiny_bert import write_bert


def test_it_shows_a_chat_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(demo_model())]) == 0
    out = capsys.readouterr().out
    for part in ("llama", "Q4_1", "135 million", "8,192 tokens", "text", "for 4 requests of"):
        assert part in out


def test_it_shows_one_for_vectors_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--json", str(write_bert(tmp_path / "bert"))]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["architecture"], shown["pooling"], shown["layers"]) == ("bert", True, 2)
    assert shown["memory_bytes"] > shown["file_bytes"]


def test_a_file_that_is_not_a_model_gives_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    assert cli.main(["show", str(other)]) == 1
    assert "is no GGUF file" in capsys.readouterr().err
    assert cli.main(["show", "no-such-model"]) == 1
