"""``inferd show``: the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferd import cli
from inferd.store.models import ModelStore
from tests.demo_model import demo_model
from tests.tiny_bert import write_bert
from tests.tiny_llama import random_llama
from tests.tiny_model import stock


def test_it_shows_a_chat_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(demo_model())]) == 0
    out = capsys.readouterr().out
    for part in ("llama", "Q4_1", "135 million", "8,192 tokens", "text", "for 4 requests of"):
        assert part in out
    assert "chat template    yes\n" in out


def test_it_shows_one_for_vectors_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--json", str(write_bert(tmp_path / "bert"))]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["architecture"], shown["pooling"], shown["layers"]) == ("bert", True, 2)
    assert shown["memory_bytes"] > shown["file_bytes"]


def test_the_list_shows_the_memory_of_stored_models_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_HOME", str(tmp_path))
    stock(ModelStore(tmp_path), "mine", random_llama().read_bytes())
    stock(ModelStore(tmp_path), "notes", b"hello")
    assert cli.main(["show", "--json", "mine"]) == 0
    needed = json.loads(capsys.readouterr().out)["memory_bytes"]
    assert cli.main(["list", "--json"]) == 0
    rows = {row["name"]: row["memory_bytes"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert (rows["mine"], rows["notes"], rows["qwen3-4b"]) == (needed, None, None)
    assert cli.main(["list"]) == 0
    assert f"~{needed / 1e6:.0f} MB" in capsys.readouterr().out


def test_a_file_that_is_not_a_model_gives_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    assert cli.main(["show", str(other)]) == 1
    assert "is no GGUF file" in capsys.readouterr().err
    assert cli.main(["show", "no-such-model"]) == 1
