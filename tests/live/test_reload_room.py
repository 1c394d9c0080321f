"""A reload whose old and new models do not fit into memory together: the old model makes room, and is loaded
again if the reload fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inferd.client.admin import AdminClient
from inferd.store.gguf import read_card
from tests.daemon_process import DaemonProcess, Wire, until
from tests.live.test_engine_process import ask, engine, engines
from tests.tiny_llama import random_llama

Start = Callable[..., DaemonProcess]
N_CTX = 512
OLD, NEW = "random", "other"


def write_config(path: Path, name: str, model: Path) -> None:
    """A configuration with one model and a budget for one and a half."""
    with random_llama().open("rb") as file:
        need = read_card(file.fileno()).memory_bytes(N_CTX, 1)
    entry = {"kind": "llamacpp", "name": name, "model_path": str(model), "n_ctx": N_CTX}
    limits = {"memory_budget_bytes": need + need // 2}
    path.write_text(json.dumps({"backends": [entry], "limits": limits}))


class Busy:
    """A daemon with the model ``old``: one request runs on its engine, which is stopped, another waits."""

    def __init__(self, daemon: Start, directory: Path, held: ExitStack) -> None:
        self.config = directory / "config.json"
        self.other = directory / f"{NEW}.gguf"
        self.other.symlink_to(random_llama())
        self.held = held
        write_config(self.config, "old", random_llama())
        options = {"threads": 1, "active_permits": 1, "drain_timeout_secs": 100}
        self.process = daemon(backend="", config=self.config, **options)
        self.process.wait_ready()
        self.engine = engine(self.process)
        os.kill(self.engine, signal.SIGSTOP)
        admin = held.enter_context(AdminClient(self.process.admin))
        self.running = self.connect()
        ask(self.running, "running", max_tokens=50)
        until(lambda: len(admin.status().running) == 1)
        self.queued = self.connect()
        ask(self.queued, "queued", max_tokens=2)
        until(lambda: len(admin.status().waiting) == 1)

    def connect(self) -> Wire:
        return self.held.enter_context(self.process.connect())

    def reload(self, name: str, model: Path) -> None:
        write_config(self.config, name, model)
        self.process.signal(signal.SIGHUP)

    def make_room(self, model: Path) -> None:
        """Reloads with another model, and returns when the old one begins to make room."""
        self.reload("new", model)
        self.process.wait_event("making_room")

    def go_on(self) -> None:
        os.kill(self.engine, signal.SIGCONT)

    def ends(self) -> list[tuple[str, str]]:
        """How the running and the queued request ended, and their models."""
        ends = [[*wire.frames()][-1] for wire in (self.running, self.queued)]
        return [(end["type"], end.get("model", end.get("message"))) for end in ends]


@pytest.fixture
def busy(daemon: Start, short_dir: Path) -> Iterator[Busy]:
    with ExitStack() as held:
        yield Busy(daemon, short_dir, held)


def test_the_old_model_ends_its_requests_and_makes_room(busy: Busy) -> None:
    busy.make_room(busy.other)
    busy.go_on()
    assert busy.ends() == [("done", OLD), ("done", NEW)]
    until(lambda: len(engines(busy.process)) == 1)
    assert engines(busy.process) != [busy.engine]
    busy.process.wait_event("reloaded")
    told = [event["msg"] for event in busy.process.events()]
    steps = ("making_room", "model_rests", "engine_started", "reloaded")
    assert [msg for msg in told if msg in steps] == ["engine_started", *steps]
    busy.process.note_resources()


def test_the_old_model_returns_if_the_new_one_cannot_be_loaded(busy: Busy, short_dir: Path) -> None:
    broken = short_dir / "broken.gguf"
    broken.write_bytes(random_llama().read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_X.weight"))
    with busy.process.subscribe() as admin:
        busy.make_room(broken)
        busy.go_on()
        assert busy.ends() == [("done", OLD), ("done", OLD)]
        while (frame := admin.frame())["status"] != "reload_failed":
            pass
    assert "cannot load" in frame["message"]
    assert "old had made room, and is loaded again" in frame["message"]
    until(lambda: len(engines(busy.process)) == 1)
    assert engines(busy.process) != [busy.engine]
    busy.process.note_resources()


def test_a_newer_reload_keeps_the_old_model(busy: Busy) -> None:
    busy.make_room(busy.other)
    busy.reload("old", random_llama())
    busy.process.wait_event("reloaded")
    busy.go_on()
    assert busy.ends() == [("done", OLD), ("done", OLD)]
    assert engines(busy.process) == [busy.engine]
    busy.process.note_resources()


def test_a_stop_while_room_is_made_lets_the_requests_finish(busy: Busy) -> None:
    busy.make_room(busy.other)
    busy.process.signal(signal.SIGTERM)
    busy.process.wait_event("stopping")
    busy.go_on()
    assert busy.ends() == [("done", OLD), ("done", OLD)]
    assert busy.process.wait() == 0
