"""The spare engine process of a daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.client.admin import AdminClient
from inferd.store.models import ModelStore
from tests.daemon_process import DaemonProcess, until
from tests.live.test_engine_process import engines, state_of
from tests.tiny_llama import random_llama
from tests.tiny_model import stock

Start = Callable[..., DaemonProcess]


def answered(process: DaemonProcess, model: str) -> dict[str, Any]:
    with process.connect() as wire:
        wire.send({"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2})
        return [*wire.frames()][-1]


@pytest.fixture
def with_spare(daemon: Start, short_dir: Path) -> DaemonProcess:
    """A daemon with the models ``one`` and ``two``, of which ``one`` is loaded, and with a spare."""
    store = ModelStore(short_dir / "models")
    for name in ("one", "two"):
        stock(store, name, random_llama().read_bytes() + name.encode())
    config = short_dir / "config.json"
    config.write_text(json.dumps({"engine": {"spare": True}}))
    process = daemon(MODELS_HOME=store.home, config=config, threads=1, spare_engine="").wait_ready()
    assert engines(process) == []
    assert answered(process, "one")["type"] == "done"
    process.wait_event("spare_started")
    process.note_resources()
    return process


def spare(process: DaemonProcess) -> int:
    pid = process.events("spare_started")[-1]["pid"]
    assert isinstance(pid, int)
    return pid


def test_the_next_model_is_loaded_in_the_spare(with_spare: DaemonProcess) -> None:
    ready = spare(with_spare)
    with AdminClient(with_spare.admin) as admin:
        pids = [row["engine"]["pid"] for row in admin.status().backends if row["engine"] is not None]
        assert ready not in pids  # the spare is no model
        assert sorted(engines(with_spare)) == sorted((*pids, ready))
        assert answered(with_spare, "two")["type"] == "done"
        row = next(row for row in admin.status().backends if row["name"] == "two")
        assert row["engine"]["pid"] == ready
    with_spare.wait_event("spare_started", 2)
    with_spare.note_resources()


@pytest.mark.skipif(
    os.geteuid() != 0, reason="the descriptors of a process without core dumps belong to root"
)
def test_the_spare_holds_its_socket_and_its_stderr_alone(with_spare: DaemonProcess) -> None:
    places = Path(f"/proc/{spare(with_spare)}/fd")

    def held() -> list[str]:
        try:
            return sorted(str(fd.readlink()).partition("[")[0] for fd in places.iterdir())
        except FileNotFoundError:  # it has just closed the file of a module
            return []

    until(lambda: held() == ["/dev/null", "/dev/null", "pipe:", "socket:"])


def test_a_stop_waits_for_the_end_of_the_spare(with_spare: DaemonProcess) -> None:
    ready = spare(with_spare)
    with_spare.signal(signal.SIGTERM)
    assert with_spare.wait() == 0
    assert state_of(ready) == ""


def test_no_spare_outlives_a_killed_daemon(with_spare: DaemonProcess) -> None:
    ready = spare(with_spare)
    with_spare.kill()
    until(lambda: state_of(ready) in ("", "Z"))


def test_a_reload_without_a_spare_ends_it(with_spare: DaemonProcess, short_dir: Path) -> None:
    ready = spare(with_spare)
    (short_dir / "config.json").write_text(json.dumps({"engine": {"spare": False}}))
    with_spare.signal(signal.SIGHUP)
    with_spare.wait_event("reloaded")
    until(lambda: state_of(ready) == "")
