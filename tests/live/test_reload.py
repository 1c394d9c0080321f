"""SIGHUP: a running daemon applies a new configuration atomically and drops no request."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.client import AdminClient
from tests.daemon_process import DaemonProcess, Wire, until

Start = Callable[..., DaemonProcess]
ASK = {"id": "q", "messages": [{"role": "user", "content": "hi"}]}
STEPS = ("restarting", "capabilities", "reload_failed", "ready")


class Config:
    """The config file of a daemon: mock backends by name, and sections."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *names: str, **sections: Any) -> None:
        backends = [{"kind": "mock", "name": name} for name in names]
        self.path.write_text(json.dumps({"backends": backends, **sections}))


@pytest.fixture
def config(short_dir: Path) -> Config:
    return Config(short_dir / "config.json")


def served_by(process: DaemonProcess, count: int) -> list[str]:
    return [event["backend"] for event in process.wait_event("request_done", count)]


def ask(process: DaemonProcess) -> dict[str, Any]:
    with process.connect() as wire:
        wire.send(ASK)
        *_, last = wire.frames()
    return last


def reload(process: DaemonProcess, admin: Wire) -> list[dict[str, Any]]:
    """A subscriber's frames of a reload, from ``restarting`` to ``ready``."""
    process.signal(signal.SIGHUP)
    seen = [admin.frame()]
    while seen[-1]["status"] != "ready":
        seen.append(admin.frame())
    return seen


def subscribe(process: DaemonProcess) -> Wire:
    """A subscriber that has read the snapshot."""
    admin = process.subscribe()
    while admin.frame()["status"] != "ready":
        pass
    return admin


# Successful reloads.


def test_the_new_backends_serve_and_subscribers_are_notified(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(config=config.path).wait_ready()
    with subscribe(process) as admin:
        ask(process)
        config.write("new")
        told = reload(process, admin)
    steps = [(frame["status"], frame.get("phase") or frame.get("name")) for frame in told]
    loading = ("restarting", "checking_local")
    assert steps == [("restarting", "config"), loading, ("capabilities", "new"), ("ready", None)]
    ask(process)
    assert served_by(process, 2) == ["old", "new"]
    with process.subscribe() as later:
        assert [later.frame().get("name"), later.frame()["status"]] == ["new", "ready"]


def test_a_request_stays_on_its_backend(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"gate": True}, config=config.path).wait_ready()
    with subscribe(process) as admin, process.connect() as wire:
        wire.send(ASK)
        process.release()
        assert wire.frame()["type"] == "token"
        config.write("new")
        reload(process, admin)
        assert not process.events("backend_closed")
        process.release()
        assert wire.frame()["type"] == "done"
        process.release(2)
        wire.send(ASK)
        assert [frame["type"] for frame in wire.frames()] == ["token", "done"]
    process.wait_event("backend_closed")
    assert served_by(process, 2) == ["old", "new"]


def test_unchanged_backends_are_not_rebuilt(daemon: Start, config: Config) -> None:
    config.write("stays", "leaves")
    process = daemon(config=config.path).wait_ready()
    with subscribe(process) as admin:
        config.write("comes", "stays")
        told = reload(process, admin)
    assert [frame["phase"] for frame in told if frame["status"] == "restarting"] == [
        "config",
        "checking_local",
    ]
    assert [event["backend"] for event in process.wait_event("backend_closed")] == ["leaves"]
    assert process.events("reloaded")[0]["backends"] == ["comes", "stays"]


def test_no_request_is_dropped_by_any_number_of_reloads(daemon: Start, config: Config) -> None:
    config.write("b0")
    process = daemon(config=config.path, INFERD_LOG="warn").wait_ready()
    ends: list[str] = []
    enough = threading.Event()

    def keep_asking() -> None:
        with process.connect() as wire:
            while not enough.is_set():
                wire.send(ASK)
                ends.extend(frame["type"] for frame in wire.frames())

    clients = [threading.Thread(target=keep_asking) for _ in range(3)]
    for client in clients:
        client.start()
    with subscribe(process) as admin:
        for number in range(1, 21):
            config.write(f"b{number}")
            reload(process, admin)
    enough.set()
    for client in clients:
        client.join()
    assert ends
    assert set(ends) == {"token", "done"}
    assert ends.count("token") == ends.count("done")


def test_limits_change_in_place(daemon: Start, config: Config) -> None:
    config.write("one", engine={"active_permits": 1, "queue_depth": 0})
    process = daemon(mock={"gate": True}, config=config.path).wait_ready()
    with subscribe(process) as admin, process.connect() as first, process.connect() as second:
        first.send(ASK)
        process.release()
        assert first.frame()["type"] == "token"
        second.send(ASK)
        assert second.frame()["code"] == "queue_full"
        limits = {"max_frame_bytes": 1024, "max_connections_per_uid": 2}
        config.write("one", engine={"active_permits": 2, "queue_depth": 0}, limits=limits)
        reload(process, admin)
        process.release(2)
        second.send(ASK)
        assert second.frame()["type"] == "token"
        process.release()
        assert {second.frame()["type"], first.frame()["type"]} == {"done"}
        with process.connect() as third:
            assert third.rest() == b""
        second.close()
        process.wait_event("connection_closed", 1)
        with process.connect() as third:
            third.send(b"x" * 1025)
            assert third.frame()["code"] == "frame_too_large"


def test_the_level_of_the_log_changes(daemon: Start, config: Config) -> None:
    config.write("one", log_level="error")
    process = daemon(config=config.path).wait_ready()
    with subscribe(process) as admin:
        ask(process)
        config.write("one", log_level="info")
        reload(process, admin)
    ask(process)
    assert len(process.wait_event("request_done")) == 1


def test_a_new_key_applies_to_later_connections(daemon: Start, config: Config, short_dir: Path) -> None:
    key = short_dir / "key"
    key.write_text("first-key")
    config.write("one", log_level="info")
    process = daemon(config=config.path, tcp="127.0.0.1:0", api_key_file=key).wait_ready()
    (ready,) = process.wait_event("ready")
    address = ("127.0.0.1", int(ready["address"].rpartition(":")[2]))
    with subscribe(process) as admin, Wire(address) as early:
        early.send({"type": "auth", "key": "first-key"}, ASK)
        assert [frame["type"] for frame in early.frames()] == ["token", "done"]
        key.write_text("second-key")
        reload(process, admin)
        early.send(ASK)
        assert [frame["type"] for frame in early.frames()] == ["token", "done"]
        with Wire(address) as late:
            late.send({"type": "auth", "key": "first-key"})
            assert late.rest() == b""
        with Wire(address) as late:
            late.send({"type": "auth", "key": "second-key"}, ASK)
            assert late.frame()["type"] == "token"


# Failed reloads.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ('{"backends": []}', "at least one backend"),
        ('{"backends": [{"kind": "mock", "name": "x"}], "engine": {"queue_depth": -1}}', "queue_depth"),
        ('{"backends": [{"kind": "llamacpp", "name": "x", "model_path": "/nowhere.gguf"}]}', "/nowhere.gguf"),
    ],
)
def test_an_invalid_configuration_changes_nothing(
    daemon: Start, config: Config, text: str, reason: str
) -> None:
    config.write("old", engine={"queue_depth": 7})
    process = daemon(config=config.path, backend="").wait_ready()
    with subscribe(process) as admin:
        config.path.write_text(text)
        told = reload(process, admin)
    assert [frame["status"] for frame in told if frame["status"] != "restarting"] == [
        "reload_failed",
        "ready",
    ]
    assert reason in told[-2]["message"]
    assert process.wait_event("reload_failed")[0]["error"] == told[-2]["message"]
    ask(process)
    assert served_by(process, 1) == ["old"]
    assert not process.events("backend_closed")


def test_a_failed_reload_closes_its_new_backends(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(config=config.path, backend="").wait_ready()
    with subscribe(process) as admin:
        bad = {"kind": "llamacpp", "name": "bad", "model_path": "/nowhere.gguf"}
        mocks = [{"kind": "mock", "name": name} for name in ("old", "new")]
        config.path.write_text(json.dumps({"backends": [*mocks, bad]}))
        assert reload(process, admin)[-2]["status"] == "reload_failed"
        config.write("old", "new")
        told = reload(process, admin)
    assert [frame.get("phase") for frame in told if frame["status"] == "restarting"] == [
        "config",
        "checking_local",
    ]
    ask(process)
    assert served_by(process, 1) == ["old"]


def test_an_open_address_is_never_left_without_its_key(
    daemon: Start, config: Config, short_dir: Path
) -> None:
    config.write("one", listen={"tcp": "0.0.0.0:0", "api_key_env": "THE_KEY"})
    process = daemon(config=config.path, THE_KEY="k3y-of-the-test").wait_ready()
    (ready,) = process.wait_event("ready")
    with subscribe(process) as admin:
        config.write("one", listen={"tcp": "0.0.0.0:0"})
        assert "without an API key" in reload(process, admin)[-2]["message"]
    with Wire(("127.0.0.1", int(ready["address"].rpartition(":")[2]))) as wire:
        wire.send(ASK)
        assert wire.rest() == b""


def test_options_that_need_a_restart_are_named(daemon: Start, config: Config, short_dir: Path) -> None:
    config.write("one")
    process = daemon(config=config.path).wait_ready()
    with subscribe(process) as admin:
        config.write("two", admin_addr=str(short_dir / "other.sock"))
        assert reload(process, admin)[-1]["status"] == "ready"
    (event,) = process.wait_event("a restart is needed to change an option")
    assert event["option"] == "admin_addr"
    assert not (short_dir / "other.sock").exists()
    ask(process)
    assert served_by(process, 1) == ["two"]


# At other times.


def test_a_reload_during_the_boot_waits_for_its_end(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"hold": "ready"}, config=config.path)
    with process.subscribe() as admin:
        while admin.frame()["status"] != "capabilities":
            pass
        config.write("new")
        process.signal(signal.SIGHUP)
        process.release()
        while admin.frame()["status"] != "ready":
            pass
        while admin.frame().get("phase") != "checking_local":
            pass
        admin.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            admin.frame()
        admin.sock.settimeout(30)
        ask(process)
        process.release()
        while admin.frame()["status"] != "ready":
            pass
    ask(process)
    assert served_by(process, 2) == ["old", "new"], "nobody meets a backend that is not ready"


def test_a_newer_reload_cancels_a_slow_one(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"hold": "build"}, config=config.path)
    with process.subscribe() as admin:
        process.release()
        while admin.frame()["status"] != "ready":
            pass
        config.write("slow")
        process.signal(signal.SIGHUP)
        while admin.frame().get("phase") != "checking_local":
            pass
        config.write("old")
        assert [frame["status"] for frame in reload(process, admin)] == ["ready"]
        assert [admin.frame()["status"] for _ in range(3)] == ["restarting", "capabilities", "ready"]
    ask(process)
    assert served_by(process, 1) == ["old"]


def test_waiting_for_ready_does_not_wait_for_a_reload(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"hold": "build"}, config=config.path)
    with process.subscribe() as admin:
        process.release()
        while admin.frame()["status"] != "ready":
            pass
        config.write("slow")
        process.signal(signal.SIGHUP)
        while admin.frame().get("phase") != "checking_local":
            pass
        with AdminClient(process.admin, timeout=100) as waiting:
            waiting.wait_ready()
        ask(process)
    assert served_by(process, 1) == ["old"]


def test_a_stop_ends_a_reload_cleanly(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"hold": "build"}, config=config.path)
    with process.subscribe() as admin:
        process.release()
        while admin.frame()["status"] != "ready":
            pass
        config.write("slow")
        process.signal(signal.SIGHUP)
        while admin.frame().get("phase") != "checking_local":
            pass
        process.signal(signal.SIGTERM)
        assert json.loads(admin.rest())["status"] == "draining"
    assert process.wait() == 0
    assert [path.name for path in process.uds.parent.iterdir()] == ["inferd.lock"]


def test_a_stop_reaches_requests_on_removed_backends(daemon: Start, config: Config) -> None:
    config.write("old")
    process = daemon(mock={"gate": True}, config=config.path, drain_timeout_secs=0.2).wait_ready()
    with subscribe(process) as admin, process.connect() as wire:
        wire.send(ASK)
        process.release()
        assert wire.frame()["type"] == "token"
        config.write("new")
        reload(process, admin)
        process.signal(signal.SIGTERM)
        assert json.loads(wire.rest())["stop_reason"] == "cancelled"
    assert process.wait() == 0
    assert [event["backend"] for event in process.events("backend_closed")] == ["old"]


def test_a_reload_notifies_the_service_manager(daemon: Start, config: Config, short_dir: Path) -> None:
    config.write("old")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(30)
        notify.bind(str(short_dir / "notify"))
        process = daemon(config=config.path, NOTIFY_SOCKET=short_dir / "notify")
        assert notify.recv(100) == b"READY=1"
        process.signal(signal.SIGHUP)
        reloading, usec = notify.recv(100).split(b"\n")
        assert reloading == b"RELOADING=1"
        assert usec.startswith(b"MONOTONIC_USEC=")
        assert notify.recv(100) == b"READY=1"
    assert os.fspath(process.uds)
    until(lambda: bool(process.events("reloaded")))
