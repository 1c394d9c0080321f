"""The daemon and its engine processes: their resources, their lifetimes, and the effects on clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.client.admin import AdminClient
from tests.daemon_process import DaemonProcess, Wire, until
from tests.tiny_llama import random_llama

Start = Callable[..., DaemonProcess]
ENDLESS = "root ::= [a-z]{2000}"
MAX_RSS_KIB = 40 << 10


@pytest.fixture
def config(short_dir: Path) -> Path:
    return write_config(short_dir / "config.json", random_llama())


def write_config(path: Path, model: Path, **more: Any) -> Path:
    entry = {"kind": "llamacpp", "name": "chat", "model_path": str(model), "n_ctx": 512}
    path.write_text(json.dumps({"backends": [entry], **more}))
    return path


def engines(process: DaemonProcess) -> list[int]:
    """The children of the daemon."""
    tasks = Path(f"/proc/{process.process.pid}/task")
    found: list[int] = []
    for task in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended in between
            found += map(int, (task / "children").read_text().split())
    return found


def engine(process: DaemonProcess) -> int:
    until(lambda: len(engines(process)) == 1)
    return engines(process)[0]


def state_of(pid: int) -> str:
    """One letter: R, S, T, Z; empty if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def ask(wire: Wire, request_id: str = "q", **more: Any) -> None:
    message = {"role": "user", "content": f"Count. {request_id}"}
    wire.send({"id": request_id, "messages": [message], "max_tokens": 1000, "grammar": ENDLESS, **more})


def answered(process: DaemonProcess) -> dict[str, Any]:
    with process.connect() as wire:
        ask(wire, max_tokens=2)
        return [*wire.frames()][-1]


def serve(daemon: Start, config: Path, **options: Any) -> DaemonProcess:
    return daemon(backend="", config=config, threads=1, **options).wait_ready()


def test_llama_cpp_is_in_the_engine_and_not_in_the_daemon(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    assert answered(process)["type"] == "done"
    maps = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "_llama" not in maps
    assert str(random_llama()) not in maps
    status = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    assert rss < MAX_RSS_KIB
    assert len(engines(process)) == 1


def test_the_engine_is_caged(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    status = Path(f"/proc/{engine(process)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    (started,) = process.wait_event("engine_started")
    assert started["cage"]["seccomp"] == "yes"
    limits = Path(f"/proc/{engine(process)}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_no_secret_of_the_daemon_reaches_the_engine(daemon: Start, config: Path) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "LLAMA_API_KEY")
    process = serve(daemon, config, **dict.fromkeys(secrets, "hidden"), api_key="k" * 40)
    # The process is not dumpable, so only root can read its environment.
    if os.geteuid() == 0:
        environment = Path(f"/proc/{engine(process)}/environ").read_text()
        assert "hidden" not in environment
        assert "kkkk" not in environment


def test_no_engine_outlives_a_killed_daemon(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    child = engine(process)
    process.kill()
    until(lambda: state_of(child) in ("", "Z"))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_ends_the_running_request_and_no_other(
    number: signal.Signals, daemon: Start, config: Path
) -> None:
    process = serve(daemon, config, active_permits=1)
    with process.connect() as running, process.connect() as waiting:
        ask(running)
        assert running.frame()["type"] == "token"
        ask(waiting, "w", max_tokens=2)
        waiting.wait_until_read()
        first = engine(process)
        os.kill(first, number)
        error = [*running.frames()][-1]
        assert (error["type"], error["code"]) == ("error", "backend_unavailable")
        assert "send the request again" in error["message"]
        assert [*waiting.frames()][-1]["type"] == "done"
        ask(running, "again", max_tokens=2)  # the connection is as good as before
        assert [*running.frames()][-1]["type"] == "done"
    assert engine(process) != first
    process.note_resources()
    assert state_of(first) == ""
    with AdminClient(process.admin) as admin:
        (row,) = admin.status().backends
    assert (row["engine"]["restarts"], row["engine"]["problem"]) == (1, "")
    assert number.name in row["engine"]["last_end"]
    assert 0 < row["engine"]["private_bytes"] < row["engine"]["memory_bytes"]
    died = process.wait_event("engine_died")
    assert (died[0]["requests"], died[0]["pid"]) == (1, first)
    assert number.name in died[0]["reason"]


def test_a_crash_loop_opens_the_breaker(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    with process.subscribe() as admin, process.connect() as wire:
        for deaths in range(1, 4):
            process.wait_event("engine_started", deaths)
            os.kill(engine(process), signal.SIGKILL)
            process.wait_event("engine_died", deaths)
        while (frame := admin.frame())["status"] != "breaker":
            pass
        assert (frame["backend"], frame["state"]) == ("chat", "open")
        ask(wire)
        refused = [*wire.frames()][-1]
        assert (refused["type"], refused["code"]) == ("error", "backend_unavailable")
    assert len(process.events("engine_crash_loop")) == 1


def test_a_deadline_is_answered_though_the_engine_is_stopped(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    child = engine(process)
    os.kill(child, signal.SIGSTOP)
    with process.connect() as wire:
        ask(wire, deadline_ms=100)
        done = [*wire.frames()][-1]
        assert done.get("stop_reason") == "cancelled" or done.get("code") == "deadline_exceeded"
    os.kill(child, signal.SIGCONT)


def test_a_stop_ends_with_0_though_the_engine_is_stopped(daemon: Start, config: Path) -> None:
    process = serve(daemon, config, drain_timeout_secs=1)
    with process.connect() as wire:
        ask(wire)
        assert wire.frame()["type"] == "token"
        child = engine(process)
        os.kill(child, signal.SIGSTOP)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert state_of(child) == ""


def test_a_reload_onto_a_damaged_file_changes_nothing(daemon: Start, config: Path, short_dir: Path) -> None:
    process = serve(daemon, config)
    child = engine(process)
    damaged = bytearray(random_llama().read_bytes()[:4_000_000])
    damaged[64:4096] = bytes(range(64)) * 63
    path = short_dir / "damaged.gguf"
    path.write_bytes(damaged)
    write_config(config, path)
    process.signal(signal.SIGHUP)
    process.wait_event("reload_failed")
    assert answered(process)["type"] == "done"
    assert engines(process) == [child]


def test_a_reload_onto_another_model_ends_the_old_engine(
    daemon: Start, config: Path, short_dir: Path
) -> None:
    process = serve(daemon, config)
    first = engine(process)
    other = short_dir / "other.gguf"
    other.symlink_to(random_llama())
    write_config(config, other)
    process.signal(signal.SIGHUP)
    process.wait_event("reloaded")
    until(lambda: len(engines(process)) == 1 and engines(process) != [first])
    assert answered(process)["type"] == "done"
    assert state_of(first) == ""
    process.note_resources()


def test_a_file_cut_under_the_engine_costs_the_model_and_not_the_daemon(
    daemon: Start, config: Path, short_dir: Path
) -> None:
    path = short_dir / "cut.gguf"
    path.write_bytes(random_llama().read_bytes())
    process = serve(daemon, write_config(config, path))
    os.truncate(path, 1 << 20)
    os.kill(engine(process), signal.SIGBUS)  # as reading beyond the end would
    (failed, *_) = process.wait_event("engine_restart_failed")
    assert "was changed while it was served" in failed["error"]
    assert answered(process)["type"] == "error"
    assert process.process.poll() is None
    process.note_resources()
