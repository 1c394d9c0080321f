"""``run`` with attachments and tools, ``embed`` and ``rerank``, as processes against a real daemon."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd.cli.chat import Chat
from inferd.cli.options import Target
from inferd.client import Client
from inferd.config import paths, sources
from tests.daemon_process import DaemonProcess
from tests.demo_model import demo_model
from tests.shell import PATIENCE_SECS, Shell

Daemon = Callable[..., DaemonProcess]

TOOL = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_SECS)
    return process.returncode, out.decode(), err.decode()


def test_attachments_are_taken_and_too_large_ones_refused(daemon: Daemon, tmp_path: Path) -> None:
    served = daemon(max_attachment_bytes=100_000).wait_ready()
    user = Shell(served.dir)
    for name, size in (("a.png", 100_000), ("b.wav", 10), ("small", 90_000), ("large", 20_000_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    image, audio, small, large = (str(tmp_path / name) for name in ("a.png", "b.wav", "small", "large"))
    done = user("run", "hi", "--image", image, "--audio", audio, "--file", small)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mock-response\n", "")
    refused = user("run", "hi", "--file", large)
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr == "inferd: attachments[0] exceeds 100000 byte cap\n"


@pytest.mark.parametrize("own_places", [False, True])
def test_a_prompt_of_any_length_is_answered(daemon: Daemon, own_places: bool, short_dir: Path) -> None:
    places = {"uds": short_dir / "one", "v2_addr": short_dir / "two"} if own_places else {}
    served = daemon(**places).wait_ready()
    user = Shell(served.dir, **{f"INFERD_{name.upper()}": str(path) for name, path in places.items()})
    done = user("run", stdin="word " * 100_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mock-response\n", "")
    (event,) = served.wait_event("request_done")
    assert event["surface"] == "v2"


def test_a_long_prompt_needs_v2(daemon: Daemon) -> None:
    failed = Shell(daemon(v2="false").wait_ready().dir)("run", stdin="word " * 100_000)
    assert (failed.returncode, failed.stdout) == (3, "")
    assert "no daemon is running that serves v2" in failed.stderr


def test_ctrl_c_cancels_an_answer_of_blocks_and_an_embedding(daemon: Daemon, tmp_path: Path) -> None:
    served = daemon(
        mock={"tape": ["one ", "two "], "gate": True}, embed="true", active_permits=1
    ).wait_ready()
    (tmp_path / "f").write_text("text")
    user = Shell(served.dir)
    running = user.start("run", "hi", "--file", str(tmp_path / "f"))
    served.release()
    assert running.stdout is not None
    assert running.stdout.read(4) == b"one "
    running.send_signal(signal.SIGINT)
    assert finish(running) == (130, "", "")
    served.wait_event("request_cancelled")
    waiting = user.start("embed", "a")
    served.wait_event("connection_accepted", 2)
    waiting.send_signal(signal.SIGINT)
    assert finish(waiting) == (130, "", "")


def test_embed_and_rerank(daemon: Daemon) -> None:
    served = daemon(embed="true", rerank="true").wait_ready()
    user = Shell(served.dir)
    done = user("embed", "--dimensions", "2", "a", "bcd")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[0.5, 1.0], [0.25, 0.5]]
    found = json.loads(user("embed", "--json", "--task", "similarity", stdin="a\nbcd\n").stdout)
    assert [vector[0] for vector in found["embeddings"]] == [0.5, 0.25]
    assert (found["dimensions"], found["input_tokens"], found["backend"]) == (8, 4, "mock")
    done = user("rerank", "which?", "long one", "one", "two")
    assert (done.returncode, done.stdout) == (0, "1\t0.25\tone\n2\t0.25\ttwo\n0\t0.111111\tlong one\n")
    found = json.loads(user("rerank", "which?", "--json", stdin="long one\none\n").stdout)
    assert [each["index"] for each in found["results"]] == [1, 0]
    refused = user("embed", "--task", "nonsense", "a")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "task uses an unknown variant" in refused.stderr


def test_a_surface_that_the_daemon_does_not_serve_is_reported(daemon: Daemon, tmp_path: Path) -> None:
    served = daemon(v2="false").wait_ready()
    user = Shell(served.dir)
    failed = user("embed", "a")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert "`inferd serve --embed --model-path FILE.gguf`" in failed.stderr
    (tmp_path / "f").write_text("text")
    failed = user("run", "hi", "--file", str(tmp_path / "f"))
    assert failed.returncode == 3
    assert "does not serve v2" in failed.stderr


def test_embed_starts_a_daemon_if_embeddings_are_configured(short_dir: Path) -> None:
    user = Shell(short_dir, INFERD_BACKEND="mock", INFERD_EMBED="true")
    try:
        done = user("embed", "a", "--dimensions", "1")
        assert (done.returncode, done.stdout) == (0, "[0.5]\n")
        assert user.is_running()
    finally:
        user.stop()


def test_a_required_tool_call_of_the_default_model(short_dir: Path, tmp_path: Path) -> None:
    demo_model()
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([TOOL]))
    user = Shell(short_dir, MODELS_HOME=str(paths.models_home()), INFERD_N_CTX="512", INFERD_THREADS="1")
    try:
        done = user(
            *("run", "What is the weather in Paris?", "--temperature", "0", "--max-tokens", "80"),
            *("--tools", str(tools), "--tool-choice", "required"),
        )
        assert done.returncode == 0, done.stderr
        call = json.loads(done.stdout)
        assert call["name"] == "get_weather"
        assert isinstance(call["input"]["city"], str)
    finally:
        user.stop()


@pytest.mark.parametrize("place", ["tcp", "own.sock"])
def test_an_address_without_a_v2_sibling_takes_v2_requests(
    place: str, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("é" * 50_000)
    own = {"uds": tmp_path / place} if place == "own.sock" else {"tcp": "127.0.0.1:0"}
    served = daemon(**own, v2=0).wait_ready()
    address = str(own.get("uds") or f"tcp://{served.wait_event('ready')[0]['address']}")
    user = Shell(served.dir)
    for arguments in (["--file", str(tmp_path / "notes.txt"), "hi"], ["word " * 20_000]):
        done = user("run", "--address", address, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "mock-response\n", "")
    with Client(address) as client:
        for _ in client.chat("be brief").ask("hi"):
            pass
    assert [event["surface"] for event in served.wait_event("request_done", 3)] == ["framed"] * 3


def test_a_chat_shows_a_picture(daemon: Callable[..., DaemonProcess], tmp_path: Path) -> None:
    process = daemon().wait_ready()
    (tmp_path / "a.png").write_bytes(b"a picture, as far as the mock looks")
    settings, _ = sources.load({}, {"HOME": str(process.dir)})
    v2 = str(process.uds.with_name("infer.v2.sock"))
    chat = Chat(Target(settings, str(process.uds), startable=False, v2_address=v2), None, {})
    assert chat.command(f"/image {tmp_path / 'a.png'}")
    chat.ask("What is it?")
    chat.ask("And what else?")
    chat.command("/retry")
    assert chat.command(f"/save {tmp_path / 'c.json'}")
    chat.close()
    assert not (tmp_path / "c.json").exists()
    assert [turn["content"] for turn in chat.turns[1:]] == [
        "mock-response",
        "And what else?",
        "mock-response",
    ]
    assert {event["surface"] for event in process.wait_event("request_done", 3)} == {"v2"}
