"""The examples of docs/structured.md run unchanged, against a model with short answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.daemon_process import PATIENCE_SECS
from tests.shell import Shell
from tests.tiny_llama import write_llama

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/structured.md").read_text("utf-8")
WEATHER = {
    "name": "weather",
    "inputSchema": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2, 3]}},
        "required": ["city", "days"],
    },
}


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def user(short_dir: Path) -> Iterator[Shell]:
    model = write_llama(short_dir / "quick.gguf")
    entry = {"kind": "llamacpp", "name": "quick", "model_path": str(model), "n_ctx": 2048}
    (short_dir / ".inferd").mkdir(mode=0o700)
    config = short_dir / ".inferd" / "config.json"
    config.write_text(json.dumps({"backends": [entry]}))
    config.chmod(0o600)
    shell = Shell(short_dir, INFERD_THREADS="1")
    yield shell
    assert shell("stop").returncode == 0


def run(user: Shell, *command: str) -> str:
    done = subprocess.run(
        command,
        env=user.env,
        cwd=user.home,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_work_as_documented(user: Shell) -> None:
    (shell,) = examples("sh")
    assert 'inferd run --json-schema person.json "Invent a person"' in (ROOT / "README.md").read_text("utf-8")
    inferd = f'inferd() {{ "{sys.executable}" -m inferd "$@"; }}\n'
    person = json.loads(run(user, "sh", "-c", inferd + shell))
    jsonschema.validate(person, json.loads((user.home / "person.json").read_text()))

    pydantic, mcp = examples("python")
    assert re.match(r"name=(['\"]).*\1 age=\d+", run(user, sys.executable, "-c", pydantic))

    (user.home / "listed.json").write_text(json.dumps({"tools": [WEATHER]}))
    assert re.match(r"weather \{'city': .*, 'days': [123]\}", run(user, sys.executable, "-c", mcp))


def test_the_schema_of_zod_is_served(user: Shell, tmp_path: Path) -> None:
    """The output of Zod 4 for the example; generating it needs npm."""
    (zod,) = examples("js")
    assert "z.object({ name: z.string().max(40), age: z.int().min(0).max(120) })" in zod
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    (tmp_path / "person.json").write_text(json.dumps(schema))
    done = user("run", "--json-schema", str(tmp_path / "person.json"), "Invent a person")
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), schema)
