"""The commands with the real default model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from inferd.config import paths
from tests.demo_model import demo_model
from tests.shell import Shell


@pytest.fixture(scope="module")
def models_home() -> Path:
    """The user's own store, with the default model in it."""
    demo_model()
    return paths.models_home()


@pytest.fixture
def real(short_dir: Path, models_home: Path) -> Iterator[Shell]:
    """A user with one thread, a small context and the default model."""
    user = Shell(short_dir, MODELS_HOME=str(models_home), INFERD_N_CTX="512", INFERD_THREADS="1")
    yield user
    user.stop()


GREEDY: Sequence[str] = ("--temperature", "0", "--max-tokens", "16")


def test_run_with_the_default_model(real: Shell, tmp_path: Path) -> None:
    first = real("run", "Say hello.", *GREEDY)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert "Loading the model …" in first.stderr
    assert real("run", "Say hello.", *GREEDY).stdout == first.stdout

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["yes", "no"]}))
    answer = real("run", "Is water wet?", "--json-schema", str(schema), *GREEDY).stdout
    assert json.loads(answer) in ("yes", "no")

    grammar = tmp_path / "grammar"
    grammar.write_text('root ::= [0-9] [0-9] [0-9] "."')
    answer = real("run", "A number?", "--grammar", str(grammar), "--json", *GREEDY).stdout
    assert re.fullmatch(r"[0-9]{3}\.", json.loads(answer)["content"])

    cut = real(
        "run", "Count.", "--json", "--stop", first.stdout.split()[0], "--seed", "1", "--max-tokens", "3"
    )
    assert json.loads(cut.stdout)["completion_tokens"] <= 3

    too_long = real("run", "word " * 1000)
    assert too_long.returncode == 5
    assert "512" in too_long.stderr


def test_bench_measures_the_model(real: Shell) -> None:
    measured = real("bench", "--rounds", "1", "--tokens", "4", "--streams", "2", "--json")
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout)
    assert found["model"] == "smollm2-135m-instruct"
    assert 100 < found["long_tokens"] <= 512
    assert found["long_cached"] == found["long_tokens"]
    assert 0 < found["long_again"] < found["long_first"]
    assert 0 < found["short_first"] < found["long_first"]
    assert [each["count"] for each in found["streams"]] == [1, 2]
    assert all(each["together"] >= each["slowest"] > 0 for each in found["streams"])


def test_pull_verifies_a_stored_model(models_home: Path, short_dir: Path) -> None:
    user = Shell(short_dir, MODELS_HOME=str(models_home))
    done = user("pull", "smollm2-135m-instruct")
    assert done.returncode == 0
    assert done.stdout.startswith("smollm2-135m-instruct is in the store and verified: ")
    assert "Verifying the model …" in done.stderr
    listed = json.loads(user("list", "--json").stdout)["models"]
    assert [model["stored"] for model in listed if model["name"] == "smollm2-135m-instruct"] == [True]
