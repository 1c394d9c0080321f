"""Measures what the engine processes cost, and what their crashes cost the clients.

``python -m bench.bars.engines --model FILE.gguf [PART]...`` runs all parts or the named ones:

    alone    a daemon without a model: the time from its start until it is ready, and its resident memory
    crashes  kills the engine (SIGSEGV) under six streams, each time with two requests queued behind them.
             Counts requests without text or a typed error, dead connections, and remaining processes;
             measures the time to the errors, and the time to the next token as a multiple of the time from
             the start of a process until it is ready
    loads    PSS of the daemon and its children after the first load and unload of a model, and after many
    switch   round trips with one resident model, and with two models in turn
    headers  models with damaged headers, first for the reader of headers, then loaded on demand: the daemon
             must survive
    cold     the time to the first token of a request for a model that is not loaded, beside the start and
             the first token of llama-server; the import times of both Pythons are subtracted
             (``--peer-python`` has xllamacpp)

Absolute times on a busy machine mean little, so each time is shown together with a reference time that was
measured at the same moment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path

from bench.servers import Unavailable, require_module
from inferd.client.admin import AdminClient
from inferd.errors import ModelError
from inferd.store.gguf import card_of_files
from inferd.store.models import ModelStore
from tests.daemon_process import DaemonProcess, Wire, until
from tests.http_bridge import free_port
from tests.tiny_llama import write_llama
from tests.tiny_model import stock

STREAMS, QUEUED = 6, 2
_numbers = itertools.count()
APART_SECS = 30.5
"""Between two crashes: the back-off is reset, and no three deaths come within a minute, a crash loop."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def serving(directory: Path, **settings: object) -> Iterator[DaemonProcess]:
    process = DaemonProcess(directory, settings, {}).wait_ready()
    try:
        yield process
    finally:
        process.process.send_signal(signal.SIGTERM)
        until(lambda: process.process.poll() is not None, fail=False)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def kilobytes(pid: int, file: str, key: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def ask(wire: Wire, tokens: int, **more: object) -> None:
    # All different: a request that was running at two crashes is a suspect and runs alone.
    content = f"Write the numbers from one to a thousand. {next(_numbers)}"
    message = {"role": "user", "content": content}
    wire.send({"messages": [message], "max_tokens": tokens, "temperature": 0, **more})


ENDLESS = "root ::= [a-z]{2000}"


def last(wire: Wire) -> dict[str, object]:
    return list(wire.frames())[-1]


def cold_secs(wire: Wire) -> float:
    """The time to the first token of a request for the model ``cold``."""
    begun = time.monotonic()
    ask(wire, 1, model="cold")
    if wire.frame()["type"] != "token":
        raise SystemExit("the model `cold` gave no token")
    took = time.monotonic() - begun
    last(wire)
    return took


def alone(directory: Path, model: Path, count: int) -> None:
    secs, kib = [], 0
    bare = []
    for number in range(count):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.monotonic() - begun)
        begun = time.monotonic()
        with serving(directory / f"a{number}", backend="mock") as process:
            secs.append(time.monotonic() - begun)
            kib = kilobytes(process.process.pid, "status", "VmRSS:")
    say(
        f"alone: ready after {statistics.median(secs) * 1e3:.0f} ms (least {min(secs) * 1e3:.0f}), beside"
        f" {statistics.median(bare) * 1e3:.0f} ms for an empty Python; {kib / 1024:.1f} MiB resident"
    )


def crashes(directory: Path, model: Path, count: int) -> None:
    settings = {"backend": "llamacpp", "model_path": model, "n_ctx": 1024, "active_permits": STREAMS}
    errors, tokens, loads = [], [], []
    lost = closed = left = 0
    with serving(directory / "c", **settings) as process, AdminClient(process.admin) as admin:
        for number in range(1, count + 1):
            (pid,) = children(process.process.pid)
            wires = [process.connect() for _ in range(STREAMS + QUEUED)]
            for wire in wires[:STREAMS]:
                ask(wire, 900, grammar=ENDLESS)
            for wire in wires[:STREAMS]:
                wire.frame()
            for wire in wires[STREAMS:]:
                ask(wire, 1)
            until(lambda: len(admin.status().waiting) == QUEUED)
            os.kill(pid, signal.SIGSEGV)
            killed = time.monotonic()
            ends = [last(wire) for wire in wires[:STREAMS]]
            errors.append(time.monotonic() - killed)
            first = wires[STREAMS].frame()
            tokens.append(time.monotonic() - killed)
            served = [first, *map(last, wires[STREAMS + 1 :])]
            good = [end.get("code") == "backend_unavailable" for end in ends]
            lost += STREAMS - sum(good) + sum(end["type"] == "error" for end in served)
            died, started = (
                datetime.fromisoformat(
                    process.wait_event(name, number + more)[-1]["t"].replace("Z", "+00:00")
                )
                for name, more in (("engine_died", 0), ("engine_started", 1))
            )
            loads.append((started - died).total_seconds())
            left += Path(f"/proc/{pid}").exists()  # as a zombie, too
            left += len(children(process.process.pid)) - 1
            for wire in wires:
                try:
                    if wire is wires[STREAMS]:
                        last(wire)
                    ask(wire, 1)
                    closed += last(wire)["type"] != "done"
                except (OSError, ValueError, IndexError):
                    closed += 1
                wire.close()
            say(f"{number}: {errors[-1] * 1e3:.0f} ms, {tokens[-1]:.2f} s, {loads[-1]:.2f} s to load")
            time.sleep(max(0.0, killed + APART_SECS - time.monotonic()))
    within = sum(token <= 1.5 * load + 0.1 for token, load in zip(tokens, loads, strict=True))
    median = statistics.median
    say(
        f"crashes: {count} times, {lost} requests without text or a typed error, {closed} connections that"
        f" do not serve afterwards, {left} processes left behind; the last typed error after"
        f" {median(errors) * 1e3:.0f} ms (most {max(errors) * 1e3:.0f}), the next token after"
        f" {median(tokens):.2f} s, {median(loads):.2f} s from spawn to ready; {within} times it was within"
        " 1.5 times that and 100 ms"
    )


def loads(directory: Path, model: Path, count: int) -> None:
    store = ModelStore(directory / "models")
    stock(store, "visitor", write_llama(directory / "visitor.gguf").read_bytes())

    def pss(process: DaemonProcess) -> tuple[float, float]:
        """In MiB, with and without the pages of files, whose share changes with every other process."""
        pids = [process.process.pid, *children(process.process.pid)]
        whole, anonymous = (
            sum(kilobytes(pid, "smaps_rollup", key) for pid in pids) / 1024 for key in ("Pss:", "Pss_Anon:")
        )
        return whole, anonymous

    with (
        serving(directory / "l", backend="mock", MODELS_HOME=store.home, core_dumps="true") as process,
        AdminClient(process.admin) as admin,
    ):

        def visit() -> None:
            with process.connect() as wire:
                ask(wire, 1, model="visitor")
                if (end := last(wire))["type"] != "done":
                    raise SystemExit(f"loads: {end}")
            admin.unload("visitor")

        visit()
        before = pss(process)
        for _ in range(count):
            visit()
        after = pss(process)
    say(
        f"loads: {before[0]:.2f} MiB of PSS before {count} loads, {after[0]:.2f} MiB after; without pages of"
        f" files {before[1]:.2f} and {after[1]:.2f}"
    )


def switch(directory: Path, model: Path, count: int) -> None:
    store = ModelStore(directory / "models")
    for name in ("one", "two"):
        stock(
            store,
            name,
            write_llama(directory / f"{name}.gguf", temp=len(name) / 10).read_bytes() + name.encode(),
        )
    with (
        serving(directory / "s", backend="mock", MODELS_HOME=store.home, threads=1) as process,
        process.connect() as wire,
    ):

        def round_trip(name: str) -> float:
            begun = time.monotonic()
            ask(wire, 1, model=name)
            last(wire)
            return time.monotonic() - begun

        for name in ("one", "two"):
            round_trip(name)
        same, turns = [], []
        for _ in range(count):
            round_trip("one")
            same.append(round_trip("one"))
            turns.append(round_trip("two"))
    differences = [b - a for a, b in zip(same, turns, strict=True)]
    say(
        f"switch: the other model {statistics.median(turns) * 1e3:.2f} ms, the same"
        f" {statistics.median(same) * 1e3:.2f} ms; median of the differences"
        f" {statistics.median(differences) * 1e3:+.2f} ms over {count} pairs"
    )


def headers(directory: Path, model: Path, count: int) -> None:
    sound = write_llama(directory / "sound.gguf").read_bytes()
    end = sound.index(b"blk.0.ffn_down") + 200
    store = ModelStore(directory / "models")
    draw = random.Random(9)
    for number in range(count):
        stock(store, f"bad{number}", damaged(sound, end, draw))
    answers: dict[str, int] = {}
    readable = sum(map(is_readable, store.home.glob("blobs/*/*/*/data")))
    with serving(directory / "h", backend="mock", MODELS_HOME=store.home, threads=1) as process:
        for number in range(count):
            with process.connect() as wire:
                ask(wire, 1, model=f"bad{number}")
                answer = last(wire)
                kind = str(answer.get("code") or answer["type"])
                answers[kind] = answers.get(kind, 0) + 1
            with AdminClient(process.admin) as admin:
                for row in admin.status().backends:
                    if row["name"] != "mock":
                        admin.unload(row["name"])
            if process.process.poll() is not None:
                raise SystemExit(f"headers: the daemon died of number {number}")
    say(
        f"headers: {count} damaged models, of which the reader of headers refuses {count - readable}; the"
        f" daemon lives; the answers: {json.dumps(answers)}"
    )


def is_readable(path: Path) -> bool:
    try:
        card_of_files([path])
    except ModelError:
        return False
    return True


def damaged(sound: bytes, end: int, draw: random.Random) -> bytes:
    """A copy of the model with a fault in its keys, its list of tensors, or its length."""
    file = bytearray(sound)
    at = draw.choice((draw.randrange(4, 600), draw.randrange(end - 900, end)))
    fault = draw.randrange(4)
    if fault == 0:
        file[at] ^= 1 << draw.randrange(8)
    elif fault == 1:
        file[at : at + 8] = struct.pack("<Q", draw.choice((0, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
    elif fault == 2:
        file[at : at + 4] = struct.pack("<I", draw.randrange(2**32))
    else:
        del file[draw.randrange(4, len(file)) :]
    return bytes(file)


def cold(directory: Path, model: Path, count: int) -> None:
    try:
        require_module(Path(peer_python), "xllamacpp", "xllamacpp")
    except Unavailable as missing:
        raise SystemExit(f"cold: llama-server is {missing}") from None
    store = ModelStore(directory / "models")
    stock(store, "cold", model.read_bytes())
    ours, theirs = [], []
    options = {"n_ctx": 1024, "threads": 2, "active_permits": 1}
    with (
        serving(directory / "c", backend="mock", MODELS_HOME=store.home, **options) as process,
        AdminClient(process.admin) as admin,
        process.connect() as wire,
    ):
        for _ in range(count):
            took = cold_secs(wire)
            admin.unload("cold")
            until(lambda: not children(process.process.pid))
            ours.append(took - import_secs(sys.executable, "inferd.engine.local.child.host"))
            theirs.append(llama_server_secs(model) - import_secs(peer_python, "xllamacpp"))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median
    say(
        f"cold: first token after {median(ours) * 1e3:.0f} ms, llama-server's after"
        f" {median(theirs) * 1e3:.0f} ms; median of the ratios {median(ratios):.2f} over {count} pairs"
    )


peer_python = sys.executable


def import_secs(python: str, module: str) -> float:
    begun = time.monotonic()
    subprocess.run([python, "-c", f"import {module}"], check=True)
    return time.monotonic() - begun


def llama_server_secs(model: Path) -> float:
    """The time from the start of a llama-server to its first token."""
    settings = {"model": str(model), "port": free_port(), "threads": 2, "n_ctx": 1024, "slots": 1}
    program = Path(__file__).parents[1] / "peers" / "llama_server.py"
    command = [peer_python, program, json.dumps({**settings, "flash_attention": "off"})]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        server.stdout.readline()
        client = HTTPConnection("127.0.0.1", settings["port"])
        message = {"role": "user", "content": "Write the numbers from one to a thousand. 1"}
        asked = {"messages": [message], "max_tokens": 1, "temperature": 0, "stream": True}
        client.request(
            "POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"}
        )
        answer = client.getresponse()
        while b'"content":"' not in (line := answer.readline()):
            if not line:
                raise SystemExit("cold: llama-server sent no token")
        took = time.monotonic() - begun
        client.close()
        server.terminate()
    return took


PARTS: dict[str, tuple[Callable[[Path, Path, int], None], int]] = {
    "alone": (alone, 10),
    "crashes": (crashes, 20),
    "loads": (loads, 20),
    "switch": (switch, 200),
    "headers": (headers, 300),
    "cold": (cold, 10),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, help="the number of repetitions; default: that of the bars")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    global peer_python
    peer_python = options.peer_python
    for name in options.parts or PARTS:
        part, count = PARTS[name]
        with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
            part(Path(directory), options.model, options.count or count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
