"""The life of the daemon: the order of the boot, readiness, signals at any point, the drain, and the idle
exit."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, Wire

Start = Callable[..., DaemonProcess]
ASK = {"id": "q", "messages": [{"role": "user", "content": "hi"}]}
TOKEN = b'{"type":"token","id":"q","content":"mock-response"}\n'
DONE = (
    b'{"type":"done","id":"q","content":"mock-response","usage":{"prompt_tokens":0,"completion_tokens":1},'
    b'"stop_reason":"end","backend":"mock","model":"mock"}\n'
)
CANCELLED = DONE.replace(b"mock-response", b"").replace(b'"end"', b'"cancelled"').replace(b":1}", b":0}")
CAPABILITIES = (
    b'{"id":"admin","type":"status","status":"capabilities","backend":"mock","v2":true,"vision":true,'
    b'"audio":true,"tools":true,"thinking":true,"embed":true,"accelerator":"cpu","gpu_layers":0,'
    b'"device_name":"","vram_total_bytes":0,"cpu_variant":"","layers":0,"rerank":true,"n_ctx":0,"n_parallel":0,'
    b'"audio_sample_rate":0,"lora":[],"logprobs":false,"raw":true,"wire_version":1,"name":"mock",'
    b'"model":"mock","pool":"","aliases":[]}\n'
)


def status(name: str, details: str = "") -> bytes:
    return f'{{"id":"admin","type":"status","status":"{name}"{details}}}\n'.encode()


LOADING = status("loading_model", ',"phase":"checking_local","path":"(mock)"')


def ended_cleanly(process: DaemonProcess) -> bool:
    """Exit status 0, and no file left except the lock file."""
    assert process.wait() == 0, process.stderr
    return [path.name for path in process.uds.parent.iterdir()] == ["inferd.lock"]


# Boot.


def test_a_request_is_answered(daemon: Start) -> None:
    process = daemon().wait_ready()
    with process.connect() as wire:
        wire.send(ASK)
        assert wire.line() + wire.line() == TOKEN + DONE


def test_boot_phases_are_in_order_and_the_socket_exists_when_ready(daemon: Start) -> None:
    process = daemon(mock={"hold": "build"})
    with process.subscribe() as admin:
        first = admin.line()
        if first == status("starting"):
            first = admin.line()
        assert first == LOADING
        assert not process.uds.exists()
        process.release()
        assert admin.line() == CAPABILITIES
        assert admin.line() == status("ready")
        assert process.uds.exists()
    with process.subscribe() as admin, process.connect() as wire:
        assert admin.line() + admin.line() == CAPABILITIES + status("ready")
        wire.send(ASK)
        assert wire.line() == TOKEN


def test_no_inference_socket_before_ready(daemon: Start) -> None:
    process = daemon(mock={"hold": "ready"})
    with process.subscribe() as admin:
        while admin.line() != CAPABILITIES:
            pass
        process.wait_event("not_ready", 3)
        assert not process.uds.exists()
        process.release()
        while admin.line() != status("ready"):
            pass
        assert process.uds.exists()


def test_a_backend_that_does_not_become_ready_ends_the_boot(daemon: Start) -> None:
    process = daemon(mock={"hold": "ready"}, ready_timeout_secs=0.3)
    with process.subscribe() as admin:
        *_, last = admin.rest().splitlines()
    message = "backend 'mock' was not ready within 0.3 s; look into the log or raise --ready-timeout-secs"
    assert json.loads(last)["message"] == message
    assert process.wait() == 1
    assert process.stderr.splitlines()[-1].endswith(message)
    assert not process.uds.exists()


def test_a_failed_boot_says_why_on_the_admin_socket_and_on_stderr(daemon: Start) -> None:
    process = daemon(mock={"hold": "fail"})
    with process.subscribe() as admin:
        while admin.line() != LOADING:
            pass
        process.release()
        message = "the model is of stone; choose another"
        assert admin.rest() == status("failed", f',"message":"{message}"')
    assert process.wait() == 1
    assert process.stderr.splitlines()[-1].endswith(message)
    assert [event["error"] for event in process.events("boot_failed")] == [message]


def test_file_modes(daemon: Start) -> None:
    process = daemon().wait_ready()
    process.wait_event("ready")
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in process.uds.parent.iterdir()}
    private = {"admin.sock": 0o600, "inferd.lock": 0o600}
    assert modes == {"infer.sock": 0o660, "infer.v2.sock": 0o660, "inferd.sock": 0o660, **private}
    assert stat.S_IMODE(process.uds.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(process.log_file.stat().st_mode) == 0o600


def test_a_second_daemon_is_refused_before_any_socket(daemon: Start) -> None:
    first = daemon().wait_ready()
    before = first.uds.lstat()
    second = daemon(XDG_RUNTIME_DIR=first.dir)
    assert second.wait() == 1
    lock = first.uds.parent / "inferd.lock"
    assert f"another inferd-daemon already holds the lock at {lock}" in second.stderr.splitlines()[-1]
    assert first.uds.lstat() == before
    with first.connect() as wire:
        wire.send(ASK)
        assert wire.line() == TOKEN


def test_after_a_kill_the_next_daemon_takes_over(daemon: Start) -> None:
    first = daemon().wait_ready()
    first.kill()
    assert first.uds.exists()
    second = daemon(XDG_RUNTIME_DIR=first.dir, uds=first.uds, admin_addr=first.admin)
    second.admin = first.admin
    second.wait_ready()
    with first.connect() as wire:
        wire.send(ASK)
        assert wire.line() == TOKEN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uds": "{dir}/file"}, "exists and is not a socket"),
        ({"uds": "/" + "x" * 200}, "is longer than the 107 bytes"),
        ({"group": "no-such-group"}, "there is no group 'no-such-group'"),
        ({"tcp": "0.0.0.0:47399"}, "without an API key"),
        ({"admin_addr": "{dir}/file"}, "exists and is not a socket"),
    ],
)
def test_an_address_that_cannot_be_served_ends_the_boot(
    daemon: Start, short_dir: Path, options: dict[str, str], message: str
) -> None:
    (short_dir / "file").touch()
    process = daemon(**{name: value.format(dir=short_dir) for name, value in options.items()})
    assert process.wait() == 1
    assert message in process.stderr.splitlines()[-1]
    assert (short_dir / "file").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"tcp": "0.0.0.0:47399"},
        {"group": "no-such-group"},
        {"tcp": "{taken}"},
        {"v2_tcp": "{taken}"},
        {"uds": __file__},
        {"http": "127.0.0.1:0", "http_key_file": __file__},
        {"http": "127.0.0.1:0", "http_cert": __file__},
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_boot_before_the_models_are_built(
    daemon: Start, options: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        given = {name: value.format(taken=taken) for name, value in options.items()}
        assert daemon(mock={"hold": "build"}, **given).wait() == 1


def test_tcp_with_a_key(daemon: Start) -> None:
    process = daemon(tcp="127.0.0.1:0", api_key="k3y-of-the-test").wait_ready()
    (ready,) = process.wait_event("ready")
    port = int(ready["address"].rpartition(":")[2])
    with Wire(("127.0.0.1", port)) as wire:
        wire.send({"type": "auth", "key": "k3y-of-the-test"}, ASK)
        assert wire.line() + wire.line() == TOKEN + DONE
    with Wire(("127.0.0.1", port)) as wire:
        wire.send({"type": "auth", "key": "wrong"})
        assert wire.rest() == b""
    process.wait_event("tcp_auth_rejected")
    assert not process.uds.exists()
    assert "k3y-of-the-test" not in process.log_file.read_text() + process.stderr


def test_notifies_systemd(daemon: Start, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(30)
        notify.bind(str(short_dir / "notify"))
        process = daemon(NOTIFY_SOCKET=short_dir / "notify")
        assert notify.recv(100) == b"READY=1"
        assert process.uds.exists()
        process.signal(signal.SIGTERM)
        assert notify.recv(100) == b"STOPPING=1"
        assert ended_cleanly(process)


def test_notifies_systemd_on_an_abstract_socket(daemon: Start) -> None:
    name = f"inferd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(30)
        notify.bind(f"\0{name}")
        daemon(NOTIFY_SOCKET=f"@{name}")
        assert notify.recv(100) == b"READY=1"


def test_the_service_manager_gets_watchdog_messages(daemon: Start, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(30)
        notify.bind(str(short_dir / "notify"))
        daemon(NOTIFY_SOCKET=short_dir / "notify", WATCHDOG_USEC=100_000)
        heard = [notify.recv(100) for _ in range(3)]
        assert sorted(heard) == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_passed_sockets_are_served_and_outlive_the_daemon(daemon: Start, short_dir: Path) -> None:
    paths = {name: short_dir / f"passed-{name}" for name in ("v1", "admin")}
    with contextlib.ExitStack() as sockets:
        passed = {name: sockets.enter_context(socket.socket(socket.AF_UNIX)) for name in paths}
        for name, sock in passed.items():
            sock.bind(str(paths[name]))
            sock.listen()
        with Wire(paths["v1"]) as early, Wire(paths["admin"]) as admin:  # before there is a daemon
            early.send(ASK)
            process = daemon(mock={"hold": "ready"}, passed=passed)
            while admin.frame()["status"] != "capabilities":
                pass
            process.wait_event("not_ready", 3)
            early.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                early.sock.recv(1)
            early.sock.settimeout(30)
            process.release()
            while admin.frame()["status"] != "ready":
                pass
            assert early.line() + early.line() == TOKEN + DONE
            with process.connect("v2") as own:
                own.send({"id": "x"})
                assert own.frame()["type"] == "error"
        process.signal(signal.SIGTERM)
        assert ended_cleanly(process)
        assert paths["v1"].is_socket()
        with Wire(paths["v1"]) as late:
            late.send(ASK)
            daemon(passed=passed)
            assert late.line() == TOKEN


def test_raises_the_descriptor_limit_for_all_connections(daemon: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        process = daemon(max_connections=500).wait_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE) == (500 + 256, hard)


# Signals and the end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hold", ["build", "ready"])
def test_a_signal_during_the_boot_ends_it_cleanly(daemon: Start, number: int, hold: str) -> None:
    process = daemon(mock={"hold": hold})
    with process.subscribe() as admin:
        while admin.line() not in (LOADING, CAPABILITIES):
            pass
        process.signal(number)
        assert b"failed" not in admin.rest()
    assert ended_cleanly(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon_and_notifies_subscribers(daemon: Start, number: int) -> None:
    process = daemon().wait_ready()
    with process.subscribe() as admin, process.connect() as idle:
        assert admin.line() + admin.line() == CAPABILITIES + status("ready")
        idle.send(ASK)
        assert idle.line() + idle.line() == TOKEN + DONE
        process.signal(number)
        assert admin.rest() == status("draining")
        assert idle.rest() == b""
    assert ended_cleanly(process)


def test_running_and_waiting_requests_finish_before_the_end(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, active_permits=1).wait_ready()
    with process.subscribe() as admin, process.connect() as running, process.connect() as waiting:
        running.send(ASK)
        process.release()
        assert running.line() == TOKEN
        waiting.send(ASK)
        waiting.wait_until_read()
        process.signal(signal.SIGTERM)
        while admin.line() != status("draining"):
            pass
        with pytest.raises(FileNotFoundError):
            process.connect()
        running.send(ASK)
        process.release(1)
        refused = b'{"type":"error","id":"q","code":"backend_unavailable","message":"admission closed"}\n'
        assert running.line() + running.line() == DONE + refused
        process.release(2)
        assert waiting.rest() == TOKEN + DONE
    assert ended_cleanly(process)


def test_the_drain_cancels_requests_after_its_time_out(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, active_permits=1, drain_timeout_secs=0.2).wait_ready()
    with process.connect() as running, process.connect() as waiting:
        running.send(ASK)
        process.release()
        assert running.line() == TOKEN
        waiting.send(ASK)
        waiting.wait_until_read()
        process.signal(signal.SIGTERM)
        assert running.rest() == DONE.replace(b'"end"', b'"cancelled"')
        assert waiting.rest() == CANCELLED
    assert ended_cleanly(process)


def test_a_second_signal_ends_it_at_once(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, drain_timeout_secs=3600).wait_ready()
    with process.subscribe() as admin, process.connect() as wire:
        wire.send(ASK)
        process.release()
        assert wire.line() == TOKEN
        process.signal(signal.SIGTERM)
        while admin.line() != status("draining"):
            pass
        process.signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert not process.uds.exists()
    assert not process.admin.exists()


def test_a_client_that_does_not_read_cannot_block_the_shutdown(daemon: Start) -> None:
    process = daemon(mock={"tape": ["x" * 50_000], "repeat": 100}, drain_timeout_secs=0.2).wait_ready()
    with process.connect() as slow:
        slow.send(ASK)
        slow.sock.recv(1)
        process.signal(signal.SIGTERM)
        assert ended_cleanly(process)


def test_an_idle_daemon_stops_by_itself(daemon: Start) -> None:
    process = daemon(idle_exit_secs=0.2)
    with process.subscribe() as admin:
        *_, last = admin.rest().splitlines(keepends=True)
        assert last == status("draining")
    assert ended_cleanly(process)


# Removed paths.


@pytest.mark.parametrize("gone", ["inferd.lock", "infer.sock", "admin.sock", ""])
def test_an_unreachable_daemon_exits_with_one_error_line(daemon: Start, gone: str) -> None:
    process = daemon().wait_ready()
    place = process.uds.with_name(gone) if gone else process.uds.parent
    if gone:
        place.unlink()
    else:
        shutil.rmtree(place)
    assert process.wait() == 1
    (event,) = process.events("place_lost")
    assert event["place"].startswith(str(place))
    assert "is gone or no longer this daemon's, so clients cannot find it; start it again" in process.stderr
