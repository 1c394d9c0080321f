"""``status``, ``watch`` and ``stop``, and the starting of a background daemon."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd import cli
from inferd.cli import background, loaded
from inferd.cli.columns import caller
from inferd.cli.status import admin_address, overview
from inferd.client.admin import AdminClient
from inferd.engine.local import states
from inferd.engine.local.child import spawned
from inferd.serve.observe.metrics import Metrics
from inferd.wire import admin as wire
from tests.scripted_peer import AdminPeer, Peer

# Seen from outside.


def test_status_without_a_daemon_is_a_sentence_and_3(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("inferd: no daemon is running")
    assert cli.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"running": False}
    assert not (home / "inferd").exists()


CAPABILITIES: dict[str, object] = {
    "status": "capabilities",
    "name": "main",
    "backend": "llamacpp",
    "v2": False,
    "n_ctx": 512,
    "model": "[red]m[/]",
}


@pytest.fixture
def admin(home: Path) -> Any:
    """Starts a scripted daemon on the default admin socket."""
    started: list[AdminPeer] = []

    def start(*frames: dict[str, object], hang_up: bool = False) -> None:
        (home / "inferd").mkdir()
        started.append(AdminPeer(home / "inferd" / "admin.sock", *frames, hang_up=hang_up))

    yield start
    for each in started:
        each.stop()


def snapshot(lifecycle: dict[str, object], **more: object) -> dict[str, object]:
    """A complete snapshot of a daemon that has served no request."""
    return {
        "status": "snapshot",
        "lifecycle": lifecycle,
        "version": "9.9",
        "pid": 4711,
        "uptime_secs": 7300.0,
        "active_permits": 2,
        "queue_depth": 5,
        "running": [],
        "waiting": [],
        "backends": [],
        "metrics": {"surfaces": {}, "backends": {}},
        **more,
    }


MAIN = {"name": "main", "kind": "llamacpp", "model": "m", "ready": True, "breaker": "open", "running": 1}


@pytest.mark.parametrize("width", [80, 40])
def test_status_fits_the_screen(
    width: int, admin: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    able = {**CAPABILITIES, "name": "smollm2-135m-instruct", "model": "smollm2-135m-instruct.Q4_K_M.gguf"}
    backend = {**MAIN, "name": "smollm2-135m-instruct", "breaker": "closed"}
    able.update(tools=True, accelerator="cpu")
    admin(able, {"status": "ready"}, snapshot({"status": "ready"}, backends=[backend]))
    with AdminClient(admin_address()) as client:
        state = client.status()
    lines = overview(state, width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "model smollm2-135m-instruct.Q4_K_M.gguf" in text
    assert "0 of 2 running, 0 of 5 waiting" in text
    if width == 80:
        assert not any("…" in line for line in lines)


ENGINE = {
    "pid": 81,
    "memory_bytes": 171_000_000,
    "restarts": 0,
    "last_end": "",
    "silent_secs": 0.0,
    "problem": "",
    "cage": {"seccomp": "yes"},
    "cache_disk_bytes": 0,
    "cache_files_removed": 0,
}


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        ({}, ["ready", "process 81, 171 MB"]),
        ({"restarts": 2, "last_end": "SIGSEGV"}, ["ready", "restarted 2 times, last because of: SIGSEGV"]),
        ({"restarts": 1, "last_end": "SIGSEGV"}, ["ready", "restarted once, last because of: SIGSEGV"]),
        ({"silent_secs": 12.0}, ["stuck 12 s", "no sign of life for 12 s"]),
        ({"gpu_bytes": {"Vulkan0": 306_000_000}}, ["ready", "process 81, 171 MB, 306 MB on Vulkan0"]),
        ({"pid": 0}, ["restarting", "no process"]),
        ({"problem": "the file was changed"}, ["cannot load", "the file was changed"]),
    ],
)
def test_status_shows_the_state_of_a_model_process(
    engine: dict[str, object],
    parts: list[str],
    admin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ready: dict[str, object] = {"status": "ready"}
    backend = {**MAIN, "breaker": "closed", "engine": {**ENGINE, **engine}}
    admin(CAPABILITIES, ready, snapshot(ready, backends=[backend]))
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    for part in parts:
        assert part in out


@pytest.mark.parametrize(("command", "place"), [("status", "306 MB on G0"), ("ps", "vulkan, 306 MB")])
@pytest.mark.parametrize(("gpu_layers", "shown"), [(33, ""), (20, ", 20 of 33 layers")])
def test_a_model_that_is_partly_on_a_gpu_is_shown_as_such(
    command: str,
    place: str,
    gpu_layers: int,
    shown: str,
    admin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = {**ENGINE, "gpu_bytes": {"G0": 306_000_000}}
    layers = {"device": "vulkan", "gpu_layers": gpu_layers, "layers": 33}
    of_ps = {"waiting": 0, "idle_secs": 1.0, "n_ctx": 512, "pinned": True}
    backend = {**MAIN, **of_ps, **layers, "breaker": "closed", "engine": engine}
    admin(CAPABILITIES, {"status": "ready"}, snapshot({"status": "ready"}, backends=[backend]))
    assert cli.main([command]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if place in line)
    assert line.partition(place)[2].partition("  ")[0] == shown


def row(request_id: str, position: int | None) -> dict[str, object]:
    return {
        "id": request_id,
        "surface": "v2",
        "conn": 1,
        "peer": "unix",
        "peer_uid": 99999,
        "peer_gid": 1000,
        "peer_pid": 77,
        "priority": "interactive",
        "position": position,
        "age_ms": 1500.0,
        "queue_ms": 0.0,
        "backend": None if position else "main",
        "tokens": 0 if position else 12,
        "prompt_read": None,
    }


def test_status_of_a_daemon_that_loads(
    admin: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    loading: dict[str, object] = {"status": "loading_model", "phase": "verify", "path": "/p"}
    admin(CAPABILITIES, loading, snapshot(loading))
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("loading_model, phase verify, path /p, inferd 9.9, process 4711, up 2 h\n")
    for part in ("llamacpp", "loading", "n_ctx 512", "[red]m[/]"):
        assert part in out
    assert "v2" not in out


def test_status_of_a_daemon_at_work(admin: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics()
    surface, backend = metrics.surfaces["v1"], metrics.backends["main"]
    surface.done, surface.errors["queue_full"], surface.cancels["hang-up"] = 41, 2, 1
    backend.prompt_tokens, backend.cached_tokens, backend.completion_tokens = 300, 200, 50
    backend.ttft.observe(0.05)
    backend.decode.observe(80.0)
    waiting = [row("evil\x1b[2J\n" + "x" * 100, 1), {**row("", 2), "peer": "tcp:10.0.0.9", "peer_pid": None}]
    admin(
        CAPABILITIES,
        {"status": "ready"},
        {"status": "breaker", "backend": "main", "state": "open"},
        snapshot(
            {"status": "ready"},
            running=[row("first", None), {**row("long", None), "prompt_read": 0.42}],
            waiting=waiting,
            backends=[MAIN],
            metrics=metrics.summary(),
        ),
    )
    assert cli.main(["status"]) == 0
    headline, totals, _, _, main, able, _, _, first, long, evil, last = capsys.readouterr().out.splitlines()
    assert headline == "ready, inferd 9.9, process 4711, up 2 h"
    assert totals == "2 of 2 running, 2 of 5 waiting; 41 answered, 2 failed, 1 cancelled"
    columns = ["main", "breaker open", "300", "200", "50", "50 ms", "-", "80"]
    assert re.split(" {2,}", main) == columns
    assert able == "  llamacpp, model [red]m[/], n_ctx 512"
    of_first = ["first", "v2", "uid 99999, pid 77", "1.5 s", "running", "12", "main"]
    assert re.split(" {2,}", first) == of_first
    assert re.split(" {2,}", long)[4] == "prompt 42 %"
    assert evil.startswith("evil\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}xxxxxxxx")
    assert "waits, 1." in evil
    assert re.split(" {2,}", last) == ["-", "v2", "tcp:10.0.0.9", "1.5 s", "waits, 2.", "0", "-"]


def test_status_as_json(admin: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    ready: dict[str, object] = {"status": "ready"}
    admin(CAPABILITIES, ready, snapshot(ready, running=[row("r", None)], backends=[MAIN]))
    assert cli.main(["status", "--json"]) == 0
    able = {key: value for key, value in CAPABILITIES.items() if key != "status"}
    assert json.loads(capsys.readouterr().out) == {
        "running": True,
        "pid": 4711,
        "version": "9.9",
        "uptime_secs": 7300.0,
        "status": "ready",
        "active_permits": 2,
        "queue_depth": 5,
        "requests": {"running": [row("r", None)], "waiting": []},
        "backends": [{**able, **MAIN}],
        "metrics": {"surfaces": {}, "backends": {}},
    }


def test_status_finds_the_admin_socket_where_the_configuration_puts_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("in the environment", "in the default file", "in a named file"):
        address = home / f"{place}.sock"
        config = home / ".inferd" / "config.json"
        with monkeypatch.context() as patch:
            if place == "in the environment":
                patch.setenv("INFERD_ADMIN_ADDR", str(address))
            else:
                if place == "in a named file":
                    config.unlink()
                    config = home / "c.json"
                    patch.setenv("INFERD_CONFIG", str(config))
                config.parent.mkdir(exist_ok=True)
                config.write_text(
                    json.dumps({"admin_addr": str(address), "backends": [{"kind": "mock", "name": "m"}]})
                )
            peer = AdminPeer(address, {"status": "ready"}, snapshot({"status": "ready"}))
            assert cli.main(["status"]) == 0, place
            peer.stop()
            assert capsys.readouterr().out.startswith("ready")


@pytest.mark.parametrize(
    ("last", "exit_code", "message"),
    [
        ({"status": "draining"}, 0, ""),
        ({"status": "failed", "message": "no such model"}, 1, "no such model"),
        ({"status": "ready"}, 3, "closed the connection"),
    ],
)
def test_watch_ends_as_the_daemon_ends(
    last: dict[str, object],
    exit_code: int,
    message: str,
    admin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    admin({"status": "starting"}, last, hang_up=True)
    assert cli.main(["watch", "--json"]) == exit_code
    out, err = capsys.readouterr()
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["starting", last["status"]]
    assert message in err


def test_watch_for_people(admin: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    admin({"status": "loading_model", "phase": "verify"}, {"status": "draining"}, hang_up=True)
    assert cli.main(["watch"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'\d\d:\d\d:\d\d  loading_model  phase="verify"', first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  draining", second)


# Stopping.

HOLDER = """
import signal, sys
from pathlib import Path
from inferd.store.runtime import Lock
lock = Lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
signal.sigwait([signal.SIGTERM])
"""


def test_stop_without_a_daemon_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stop"]) == 0
    assert capsys.readouterr().out == "no daemon is running\n"
    assert not (home / "inferd").exists()


def test_stop_signals_no_process_whose_lock_is_not_held(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pid that a crashed daemon left in the file may belong to another process by now."""
    (home / "inferd").mkdir(mode=0o700)
    (home / "inferd" / "inferd.lock").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("signalled a stranger"))
    assert cli.main(["stop"]) == 0
    assert capsys.readouterr().out == "no daemon is running\n"


def test_stop_waits_until_the_holder_of_the_lock_has_gone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = home / "inferd" / "inferd.lock"
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    with subprocess.Popen(
        [sys.executable, "-c", block + HOLDER, str(lock)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert background.is_held(lock)
        assert cli.main(["stop"]) == 0
        assert not background.is_held(lock)
        assert holder.wait() == 0
    assert capsys.readouterr().out == f"the daemon, process {holder.pid}, has stopped\n"


def test_a_caller_is_a_user_and_a_command(tmp_path: Path) -> None:
    user, program = pwd.getpwuid(os.getuid()).pw_name, Path(sys.executable).name
    code = "import sys; print(flush=True); sys.stdin.read()"
    (tmp_path / "tool.py").write_text(code)
    for arguments, name in (["-c", code], program), ([tmp_path / "tool.py"], f"{program} tool.py"):
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            row: dict[str, object] = {"peer_pid": process.pid, "peer_uid": os.getuid()}
            assert caller(row) == f"{user}, {name} ({process.pid})"
        assert caller(row) == f"{user}, pid {process.pid}"
    assert caller({"peer": "tcp:10.0.0.9"}) == "tcp:10.0.0.9"


def test_unload_waits_for_as_long_as_a_model_may_take_to_close(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        states.FLUSH_SECS + states.FLUSH_STEP_SECS + spawned.END_SECS + spawned.KILL_SECS < loaded.UNLOAD_SECS
    )
    monkeypatch.setattr(loaded, "ANSWER_SECS", 0.01)

    def late(connection: socket.socket, line: bytes) -> None:
        time.sleep(0.1)
        connection.sendall(wire.unloaded("m", 0))

    (home / "inferd").mkdir()
    peer = Peer(home / "inferd" / "admin.sock", late)
    try:
        assert cli.main(["unload", "m"]) == 0
    finally:
        peer.stop()
    assert capsys.readouterr().out == "m is unloaded\n"


def test_a_name_that_no_model_can_have_is_not_sent(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "inferd").mkdir()
    peer = Peer(home / "inferd" / "admin.sock", lambda connection, line: connection.sendall(b"not asked\n"))
    for name in ("\udcff", "x" * 5000):
        assert cli.main(["unload", name]) == 2
        assert capsys.readouterr().err.startswith("inferd: ")
    peer.stop()
    assert peer.lines == []
