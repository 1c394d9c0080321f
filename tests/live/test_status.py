"""A busy daemon as shown by ``inferd status``, by ``inferd top``, and by a scrape of its metrics."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.daemon_process import DaemonProcess, until
from tests.in_process import ask
from tests.shell import Shell, Terminal

Daemon = Callable[..., DaemonProcess]


def scrape(address: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(address))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: inferd\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def test_a_daemon_at_work(daemon: Daemon, short_dir: Path) -> None:
    metrics = short_dir / "metrics.sock"
    served = daemon(
        mock={"tape": ["a", "b"], "gate": True}, active_permits=1, queue_depth=1, metrics_addr=metrics
    ).wait_ready()
    user = Shell(served.dir)
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.connect(str(metrics))  # and leaves without a word
    with served.connect() as running, served.connect() as waiting, served.connect() as refused:
        running.send(ask("one"))
        served.release()
        assert running.frame()["type"] == "token"
        waiting.send(ask("two"))
        until(lambda: "inferd_requests_waiting 1.0" in scrape(metrics))
        refused.send(ask("three"))
        assert refused.frame()["code"] == "queue_full"
        seen = json.loads(user("status", "--json").stdout)
        (one,), (two,) = seen["requests"]["running"], seen["requests"]["waiting"]
        assert (one["id"], one["tokens"], one["backend"]) == ("one", 1, "mock")
        assert (two["id"], two["position"]) == ("two", 1)
        assert seen["metrics"]["surfaces"]["v1"]["errors"] == {"queue_full": 1}
        with Terminal(user, "top", "--interval", "0.1") as terminal:
            terminal.expect("1 of 1 running, 1 of 1 waiting")
            terminal.expect("waits, 1.")
            terminal.expect("tokens/s")
            terminal.type("q")
            assert terminal.wait() == 0
        served.release(5)
        for client in (running, waiting):
            assert [frame["type"] for frame in client.frames()][-1] == "done"
    assert "0 of 1 running" in user("status").stdout
    assert 'inferd_requests_done_total{surface="v1"} 2.0' in scrape(metrics)
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert served.events("connection_failed") == []


def test_top_ends_with_a_sentence_when_the_daemon_does(daemon: Daemon) -> None:
    served = daemon(backend="mock").wait_ready()
    user = Shell(served.dir)
    with Terminal(user, "top", "--interval", "0.1") as terminal:
        terminal.expect("running")
        user("stop")
        terminal.expect("inferd: the daemon at")
        assert terminal.wait() == 3
    gone = user("status")
    assert gone.returncode == 3


def test_quick_commands_import_no_slow_module(daemon: Daemon) -> None:
    served = daemon(backend="mock").wait_ready()
    user = Shell(served.dir)
    code = (
        "import sys; from inferd import cli; code = cli.main(['status'])\n"
        "slow = {'asyncio', 'botocore', 'httpx', 'inferd.engine', 'msgspec', 'prometheus_client', 'rich',"
        " 'inferd.config.settings'}\n"
        "print(sorted(slow & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=user.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
