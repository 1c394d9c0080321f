"""A model that is split over two hosts: real workers, real engines, and what happens if one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess, Wire
from tests.quantised import quantised_llama
from tests.tiny_llama import random_llama

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the sandbox of a worker")

Start = Callable[..., DaemonProcess]
Work = Callable[[], "Worker"]


class Worker:
    """``inferd rpc-worker`` at a free port of the loopback interface."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferd", "rpc-worker", "--listen", self.address, "--threads", "1"],
            env={**os.environ, "SECRET_KEY": "hidden"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.wait_for(f"computing for engines at {self.address}")

    def wait_for(self, text: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        raise AssertionError(f"the worker ended without saying {text!r}")

    @property
    def child(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def connections(self) -> int:
        """The sockets of the process that computes; one of them listens."""
        fds = Path(f"/proc/{self.child}/fd")
        return sum(str(fd.readlink()).startswith("socket:") for fd in fds.iterdir()) - 1

    def end(self) -> int:
        self.process.terminate()
        code = self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def worker() -> Iterator[Work]:
    with contextlib.ExitStack() as ending:

        def start() -> Worker:
            made = Worker()
            ending.callback(made.end)
            return made

        yield start


def entry(**more: Any) -> dict[str, Any]:
    return {"kind": "llamacpp", "name": "split", "model_path": str(random_llama()), "n_ctx": 512, **more}


def serve(daemon: Start, directory: Path, *entries: dict[str, Any]) -> DaemonProcess:
    path = directory / f"config-{len(list(directory.iterdir()))}.json"
    path.write_text(json.dumps({"backends": entries}))
    return daemon(backend="", config=path, threads=1, active_permits=1)


def ask(wire: Wire, request_id: str = "q", max_tokens: int = 24, **more: Any) -> None:
    message = {"role": "user", "content": "Tell a story."}
    wire.send({"id": request_id, "messages": [message], "max_tokens": max_tokens, "temperature": 0, **more})


def answer(process: DaemonProcess) -> str:
    """The text of an answer; empty if it ended with an error."""
    with process.connect() as wire:
        ask(wire)
        *tokens, end = wire.frames()
    return "".join(token["content"] for token in tokens) if end["type"] == "done" else ""


def test_a_worker_computes_a_part_and_the_text_stays_the_same(
    daemon: Start, short_dir: Path, worker: Work
) -> None:
    assert (alone := answer(serve(daemon, short_dir, entry()).wait_ready()))
    there = worker()
    process = serve(daemon, short_dir, entry(rpc=[there.address])).wait_ready()
    assert there.connections() == 1
    assert answer(process) == alone
    (started,) = process.wait_event("engine_started")
    assert started["cage"]["seccomp"] == "yes"


def test_an_entry_sets_the_number_of_layers_that_the_workers_compute(
    daemon: Start, short_dir: Path, worker: Work
) -> None:
    there = worker()
    path = short_dir / "config.json"
    path.write_text(json.dumps({"backends": [entry(rpc=[there.address], n_gpu_layers=2)]}))
    process = daemon(backend="", config=path, threads=1, active_permits=1, log="debug").wait_ready()
    lines = [str(event["line"]) for event in process.wait_event("llama.cpp") if "line" in event]
    # llama.cpp counts the matrix of the vocabulary as a third layer.
    assert [line for line in lines if "offloaded 3/3 layers" in line]


def test_a_worker_computes_quantised_layers_in_the_layout_of_its_processor(
    daemon: Start, short_dir: Path, worker: Work
) -> None:
    model = str(quantised_llama(short_dir / "q.gguf"))
    assert (alone := answer(serve(daemon, short_dir, entry(model_path=model)).wait_ready()))
    process = serve(daemon, short_dir, entry(model_path=model, rpc=[worker().address])).wait_ready()
    assert answer(process) == alone
    assert answer(process) == alone  # with the graph that the worker keeps


def test_a_worker_that_dies_ends_one_request_with_an_error_and_the_next_is_served(
    daemon: Start, short_dir: Path, worker: Work
) -> None:
    there = worker()
    process = serve(daemon, short_dir, entry(rpc=[there.address])).wait_ready()
    assert (before := answer(process))
    with process.connect() as running, process.connect() as waiting:
        ask(running, "running", 2000, grammar="root ::= [a-z]{2000}")
        assert running.frame()["type"] == "token"
        ask(waiting, "waiting")
        waiting.wait_until_read()
        os.kill(there.child, signal.SIGKILL)
        *_, end = running.frames()
        assert (end["type"], end["code"]) == ("error", "backend_unavailable")
        *tokens, end = waiting.frames()
    assert end["type"] == "done"
    assert "".join(token["content"] for token in tokens) == before
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_worker_that_cannot_be_reached_is_named(daemon: Start, short_dir: Path, worker: Work) -> None:
    there = worker()
    assert there.end() == 0
    mock = {"kind": "mock", "name": "mock"}
    process = serve(daemon, short_dir, mock, entry(rpc=[there.address], preload=False)).wait_ready()
    with process.connect() as wire:
        ask(wire, model="split")
        *_, end = wire.frames()
        assert end["type"] == "error"
        assert f"the RPC worker {there.address} cannot be reached (Connection refused)" in end["message"]
        ask(wire, model="mock")
        assert [*wire.frames()][-1]["type"] == "done"


def test_a_worker_on_an_open_network_is_refused_unless_allowed(daemon: Start, short_dir: Path) -> None:
    process = serve(daemon, short_dir, entry(rpc=["192.0.2.1:50052"]))
    assert process.wait() != 0
    assert re.search(r"192\.0\.2\.1:50052 is neither on this machine nor behind\s+WireGuard", process.stderr)


def test_the_worker_can_do_nothing_but_listen_and_compute(worker: Work) -> None:
    there = worker()
    status = Path(f"/proc/{there.child}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    # The process is not dumpable, so only root can read its environment.
    if os.geteuid() == 0:
        assert "hidden" not in Path(f"/proc/{there.child}/environ").read_text()
    assert there.end() == 0
    assert not Path(f"/proc/{there.process.pid}").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0:50052", "neither a loopback address nor that of a WireGuard interface"),
        ("localhost:50052", "literal IPv4 addresses with ports"),
        ("[::1]:50052", "literal IPv4 addresses with ports"),
    ],
)
def test_the_worker_listens_on_protected_addresses_only(address: str, reason: str) -> None:
    command = [sys.executable, "-m", "inferd", "rpc-worker", "--listen", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "inferd", "rpc-worker", "--listen", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"cannot listen on {address}" in done.stderr
