"""Stopping, reloading and reading the log of a running daemon."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import cli
from inferd.cli import control
from inferd.config.settings import DEFAULT_MODEL
from inferd.store.runtime import Lock
from tests.daemon_process import DaemonProcess
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
