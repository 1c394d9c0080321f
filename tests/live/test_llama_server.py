"""A daemon in front of a real llama-server, if the xllamacpp wheel is installed, which contains one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess, Wire
from tests.demo_model import demo_model

pytestmark = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")

SERVER = Path(__file__).parents[2] / "bench" / "peers" / "llama_server.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = {
        "model": str(demo_model()),
        "port": 0,
        "threads": 1,
        "n_ctx": 2048,
        "slots": 2,
        "flash_attention": "auto",
    }
    process = subprocess.Popen(
        [sys.executable, SERVER, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(100)
    process.stdout.close()


@pytest.fixture
def process(daemon: Callable[..., DaemonProcess], url: str) -> DaemonProcess:
    options = {"openai_base_url": url, "openai_model": "default"}
    return daemon(backend="openai-compat", **options).wait_ready()


def asked(connection: Wire, **request: Any) -> list[dict[str, Any]]:
    connection.send({"id": "q", "temperature": 0, **request})
    return list(connection.frames())


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def test_text_and_structured_output(process: DaemonProcess) -> None:
    with process.connect() as text, process.connect("v2") as blocks:
        *tokens, done = asked(text, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8)
        *pieces, end = asked(blocks, messages=say("Yes or no?"), grammar='root ::= "yes" | "no"')
        *fields, _ = asked(
            blocks,
            messages=say("A number, please."),
            json_schema={"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]},
        )
        (refused,) = asked(blocks, messages=say("word " * 2100))
    assert done["content"] == "".join(token["content"] for token in tokens) != ""
    assert done["usage"]["completion_tokens"] == 8
    assert done["stop_reason"] == "length"
    assert "".join(piece["block"]["delta"] for piece in pieces) in ("yes", "no")
    assert end["stop_reason"] == "end_turn"
    assert json.loads("".join(field["block"]["delta"] for field in fields)) == {"n": 7}
    assert refused["code"] == "invalid_request"
    assert "exceeds the available context size" in refused["message"]


def test_a_client_that_leaves_frees_the_slots_of_the_server(process: DaemonProcess) -> None:
    """Two slots and four abandoned endless answers: the next request does not wait for them."""
    story = [{"role": "user", "content": "Tell a story."}]
    for _ in range(4):
        with process.connect() as connection:
            connection.send({"messages": story, "max_tokens": 4000, "grammar": 'root ::= "and then " root'})
            connection.frame()
    with process.connect() as connection:
        assert asked(connection, messages=story, max_tokens=2)[-1]["stop_reason"] == "length"
    assert len(process.wait_event("request_cancelled", 4)) == 4
