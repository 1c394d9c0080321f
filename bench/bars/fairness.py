"""Measures how a flood of requests, and clients that do not read, affect one honest client in another
process.

``python -m bench.bars.fairness --model FILE.gguf`` starts a process with 60 connections. For ``--secs``
seconds, each connection sends a request, and a millisecond after each answer or refusal the next one. The
measurement runs twice: the daemon serves one request at a time, and then four. The honest client has one
connection and must get a quarter of the answers. The second check uses the mock backend. Four clients request
long answers and do not read them, and an honest request may take at most twice its undisturbed time. The exit
status is 1 if either check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

from tests.daemon_process import DaemonProcess, Wire

CONNECTIONS = 60
READERS = 4
TOKENS = 4
REST_SECS = 1.5  # after this time a client that does not read loses its permit to others


def ask(tokens: int = TOKENS, name: str = "q") -> bytes:
    message = {"role": "user", "content": "Write the numbers from one to a thousand."}
    return json.dumps({"id": name, "messages": [message], "max_tokens": tokens}).encode() + b"\n"


def flood(address: Path, answered: Synchronized[int], over: Event) -> None:
    """60 connections, each with a thread that repeats its request at once."""

    def repeat() -> None:
        with Wire(address) as wire:
            while not over.is_set():
                wire.send(ask())
                if list(wire.frames())[-1]["type"] == "done":
                    with answered.get_lock():
                        answered.value += 1
                time.sleep(0.001)

    threads = [threading.Thread(target=repeat) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def share(process: DaemonProcess, secs: float) -> tuple[int, int, int]:
    """The answers of the flood, the answers of the honest client, and its refusals."""
    answered, over = multiprocessing.Value("i", 0), multiprocessing.Event()
    other = multiprocessing.Process(target=flood, args=(process.uds, answered, over))
    other.start()
    while not answered.value:
        time.sleep(0.01)
    own = refused = 0
    with process.connect() as wire:
        before, end = answered.value, time.monotonic() + secs
        while time.monotonic() < end:
            wire.send(ask())
            done = list(wire.frames())[-1]["type"] == "done"
            own += done
            refused += not done
        theirs = answered.value - before
    over.set()
    other.join()
    return theirs, own, refused


def beside_readers(directory: Path) -> tuple[float, float, float]:
    """The time of an honest request in milliseconds: alone, then the first one and the median of the later
    ones beside four clients that do not read."""
    process = DaemonProcess(directory, {"active_permits": READERS}, {"tape": ["word "], "repeat": 3000})
    process.wait_ready()
    with process.connect() as wire, contextlib.ExitStack() as held:
        alone = [honest_ms(wire) for _ in range(50)]
        for _ in range(READERS):
            reader = held.enter_context(process.connect())
            reader.send(ask(3000, "x" * 1024))  # each frame repeats the id, which fills every buffer
        time.sleep(REST_SECS)
        beside = [honest_ms(wire) for _ in range(50)]
    process.end()
    return statistics.median(alone), beside[0], statistics.median(beside)


def honest_ms(wire: Wire) -> float:
    begun = time.perf_counter()
    wire.send(ask())
    assert list(wire.frames())[-1]["type"] == "done"
    return (time.perf_counter() - begun) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--secs", type=float, default=20.0)
    options = parser.parse_args()
    settings = {"backend": "llamacpp", "model_path": options.model, "n_ctx": 2048}
    parts = []
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        alone, first, beside = beside_readers(Path(directory) / "0")
        sys.stdout.write(
            f"a request takes {alone:.2f} ms alone; beside {READERS} readers that do not read the first "
            f"takes {first:.2f} ms, since it ends one of them, and the next {beside:.2f} ms\n"
        )
        for permits in (1, 4):
            place = Path(directory) / str(permits)
            process = DaemonProcess(place, {**settings, "active_permits": permits}, {}).wait_ready()
            theirs, own, refused = share(process, options.secs)
            process.end()
            parts.append(own / (own + theirs))
            sys.stdout.write(
                f"beside {CONNECTIONS} connections, {permits} at a time: {own} answers of {own + theirs} "
                f"({parts[-1]:.0%}), {refused} refused\n"
            )
    return int(beside > 2 * alone or min(parts) < 0.25)


if __name__ == "__main__":
    sys.exit(main())
