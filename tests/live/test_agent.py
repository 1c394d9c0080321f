"""``inferd agent``: the arguments, environment and files of each agent, recorded by a program in place of the
agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferd import cli
from inferd.cli.agents import AGENTS, INSTALL, Served
from tests.http_bridge import BridgeProcess

_SEEN = """#!{python} -IS
import json, os, sys
files = {{}}
for word in [*sys.argv, *os.environ.values()]:
    if "inferd-agent-" in word and os.path.isfile(word):
        files[os.path.basename(word)] = open(word).read()
    if "inferd-agent-" in word and os.path.isdir(word):
        files = {{name: open(os.path.join(word, name)).read() for name in os.listdir(word)}}
print(json.dumps({{"args": sys.argv[1:], "env": dict(os.environ), "files": files}}))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    with BridgeProcess(mock={}) as process:
        yield process


def test_each_agent_is_pointed_at_the_bridge(bridge: BridgeProcess, tmp_path: Path) -> None:
    for name in AGENTS:
        program = tmp_path / name
        program.write_text(_SEEN.format(python=sys.executable))
        program.chmod(0o755)
    env = {**os.environ, "PATH": str(tmp_path), "HOME": str(tmp_path), "ANTHROPIC_API_KEY": "theirs"}
    for name in AGENTS:
        done = subprocess.run(
            [sys.executable, "-m", "inferd", "agent", "--url", bridge.base, name, "--", "-p", "hi"],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 7, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        assert seen["args"][-2:] == ["-p", "hi"]
        everything = json.dumps([seen["args"], seen["env"], seen["files"]])
        assert bridge.base in everything
        assert "mock" in everything
        if name == "claude":
            assert "ANTHROPIC_API_KEY" not in seen["env"]
        if name in ("pi", "aider"):
            assert "models.json" in seen["files"]
        if name == "qwen":
            assert "defaults.json" in seen["files"]


def test_the_window_and_a_quarter_of_it_are_set() -> None:
    served = Served(base="http://h:1", key="k", model="m", window=32_768)
    env = AGENTS["claude"](served).env
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "32768"
    assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "8192"
    assert "model_context_window=32768" in AGENTS["codex"](served).arguments
    config = json.loads(AGENTS["opencode"](served).env["OPENCODE_CONFIG_CONTENT"])
    assert config["provider"]["inferd"]["models"]["m"]["limit"] == {"context": 32_768, "output": 8192}
    qwen = AGENTS["qwen"](served)
    assert json.loads(qwen.files["defaults.json"])["model"]["generationConfig"]["contextWindowSize"] == 32_768
    assert qwen.env["QWEN_CODE_MAX_OUTPUT_TOKENS"] == "8192"
    assert set(INSTALL) == set(AGENTS)


def test_a_long_silence_of_the_model_does_not_end_the_turn() -> None:
    served = Served(base="http://h:1", key="k", model="m", window=32_768)
    table = next(each for each in AGENTS["codex"](served).arguments if "model_providers" in each)
    assert "stream_idle_timeout_ms = 3600000" in table
    qwen = AGENTS["qwen"](served)
    generation = json.loads(qwen.files["defaults.json"])["model"]["generationConfig"]
    assert (generation["timeout"], generation["streamIdleTimeoutMs"]) == (3_600_000, 3_600_000)
    assert qwen.env["QWEN_STREAM_MAX_LIFETIME_MS"] == "3600000"


def test_names_a_missing_bridge_model_or_agent(
    bridge: BridgeProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("PATH", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for arguments, code, sentence in (
        (["http://127.0.0.1:1", "claude"], 3, "Connection refused); start one with `inferd serve --http`"),
        (["http://[::1", "claude"], 2, "http://[::1 is not an address"),
        ([bridge.base, "claude"], 2, "npm install -g @anthropic-ai/claude-code"),
        ([bridge.base.removeprefix("http://"), "claude"], 2, "npm install -g @anthropic-ai/claude-code"),
        ([bridge.base, "--model", "none", "claude"], 2, "served are: mock"),
    ):
        assert cli.main(["agent", "--url", *arguments]) == code
        assert sentence in capsys.readouterr().err


def test_a_wrong_key_is_not_reported_as_a_missing_bridge(capsys: pytest.CaptureFixture[str]) -> None:
    with BridgeProcess(mock={}, api_key="right") as locked:
        assert cli.main(["agent", "--url", locked.base, "claude"]) == 3
    assert f"the HTTP bridge at {locked.base} refuses the key" in capsys.readouterr().err
