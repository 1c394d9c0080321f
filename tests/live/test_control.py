"""Stopping, reloading and reading the log of a running daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import cli
from inferd.cli import control
from inferd.config.settings import DEFAULT_MODEL
from inferd.store.runtime import Lock
from tests.daemon_process import DaemonProcess, until
from tests.shell import Shell


@pytest.fixture
def shell(short_dir: Path) -> Shell:
    return Shell(short_dir, INFERD_BACKEND="mock")


def test_reload_logs_and_stop(shell: Shell, short_dir: Path) -> None:
    config = short_dir / "config.json"
    config.write_text("{}")
    started = shell("run", "hi", INFERD_CONFIG=str(config))
    assert started.returncode == 0, started.stderr
    config.write_text('{"engine": {"queue_depth": 3}}')
    reloaded = shell("reload")
    assert (reloaded.returncode, reloaded.stderr) == (0, "")
    assert json.loads(shell("status", "--json").stdout)["queue_depth"] == 3
    config.write_text("no JSON")
    refused = shell("reload")
    assert refused.returncode == 1
    assert "nothing has changed: config file" in refused.stderr
    last = shell("logs", "-n", "1")
    assert "ERROR daemon: reload_failed error=" in last.stdout
    assert json.loads(shell("logs", "-n", "1", "--json").stdout)["msg"] == "reload_failed"
    assert shell("stop").returncode == 0
    assert not shell.is_running()


def test_stop_prints_the_reason_for_waiting(
    daemon: Callable[..., DaemonProcess],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = daemon(mock={"tape": ["a"], "gate": True}, drain_timeout_secs=1).wait_ready()
    monkeypatch.setattr(control, "SILENCE_SECS", 0.0)
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(process.dir))
    with process.connect() as client:
        client.send({"id": "q", "messages": [{"role": "user", "content": "hi"}]})
        client.wait_until_read()
        assert cli.main(["stop"]) == 0
    out, err = capsys.readouterr()
    assert "has stopped" in out
    assert "waiting for the requests that run; after 10 s they are cut" in err


RELAY = """
import socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
    far.connect(sys.argv[2])
    for pair in ((near, far), (far, near)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def test_a_named_daemon_is_the_one_that_reloads_and_stops(
    shell: Shell, short_dir: Path, daemon: Callable[..., DaemonProcess]
) -> None:
    """Not this user's own daemon; and behind a forwarded socket the process number is a stranger's."""
    assert shell("run", "hi").returncode == 0
    config = short_dir / "other.json"
    config.write_text("{}")
    other = daemon(backend="mock", config=str(config)).wait_ready()
    shell.env.update(INFERD_ADDRESS=str(other.uds), INFERD_ADMIN_ADDR=str(other.admin))
    config.write_text('{"engine": {"queue_depth": 3}}')
    reloaded = shell("reload")
    assert reloaded.returncode == 0, reloaded.stderr
    assert str(other.process.pid) in reloaded.stdout
    assert json.loads(shell("status", "--json").stdout)["queue_depth"] == 3
    forwarded = short_dir / "far.sock"
    with subprocess.Popen([sys.executable, "-c", RELAY, forwarded, other.admin]) as relay:
        until(forwarded.exists)
        for command in ("stop", "reload"):
            refused = shell(command, INFERD_ADMIN_ADDR=str(forwarded))
            assert refused.returncode == 3
            assert "runs on another machine or in a container" in refused.stderr
        relay.kill()
    assert other.process.poll() is None
    stopped = shell("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert other.process.wait() == 0
    del shell.env["INFERD_ADDRESS"], shell.env["INFERD_ADMIN_ADDR"]
    assert shell.is_running()
    assert shell("stop").returncode == 0


def test_ctrl_c_during_a_fetch_says_that_the_daemon_continues(shell: Shell, short_dir: Path) -> None:
    """The test holds the model's lock, so that the daemon waits for it."""
    shell.env.update(INFERD_BACKEND="llamacpp", MODELS_HOME=str(short_dir / "m"))
    (short_dir / "m" / "locks").mkdir(parents=True)
    with Lock.acquire(short_dir / "m" / "locks" / f"{DEFAULT_MODEL}.lock"):
        run = shell.start("run", "hi")
        with run:
            assert run.stderr is not None
            while b"Downloading the model" not in run.stderr.readline():
                assert run.poll() is None
            run.send_signal(signal.SIGINT)
            rest = run.stderr.read()
        assert run.returncode == 130
        assert b"the daemon keeps loading its model" in rest
        assert shell.is_running()
        assert shell("stop").returncode == 0
