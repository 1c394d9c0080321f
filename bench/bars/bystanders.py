"""Measures the round trip of one client of the mock backend while other clients send large requests.

``python -m bench.bars.bystanders`` prints the median and the longest round trip in milliseconds: without
other clients, while others send lines of 8 MB, and while others send text attachments of 64 MiB. The other
clients run in processes of their own. The exit status is 1 if a round trip takes longer than 20 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from tests.daemon_process import DaemonProcess, Wire

LINE_BYTES = 8_000_000
ATTACHMENT_BYTES = 64 * 1024 * 1024
LIMIT_MS = 20.0
OPTIONS = {"max_frame_bytes": 64 * 1024 * 1024, "max_input_memory_bytes": 2**30}


def _line(text: str) -> bytes:
    message = {"role": "user", "content": text}
    return json.dumps({"id": "big", "messages": [message]}, ensure_ascii=False).encode() + b"\n"


def plain_line() -> bytes:
    return _line("word " * (LINE_BYTES // 5))


def rich_line() -> bytes:
    """Texts of escapes, and of characters of several bytes."""
    return _line('line "one"\n\tÄpfel 東京 \\ ' * (LINE_BYTES // 36))


def attachment() -> bytes:
    content = [{"type": "text", "attachment_id": "t"}]
    given = [{"kind": "text", "id": "t", "size": ATTACHMENT_BYTES}]
    request = {"id": "big", "messages": [{"role": "user", "content": content}], "attachments": given}
    text = "Äpfel und 東京, ".encode()
    data = text * (ATTACHMENT_BYTES // len(text))
    return json.dumps(request).encode() + b"\n" + data + b" " * (ATTACHMENT_BYTES - len(data))


LOADS = {
    "plain lines": ("v1", plain_line),
    "rich lines": ("v1", rich_line),
    "attachments": ("v2", attachment),
}


def send(address: Path, load: str, answered: Event, over: Event) -> None:
    """Large requests, one after the other, until ``over``."""
    data = LOADS[load][1]()
    with Wire(address) as wire:
        while not over.is_set():
            wire.send(data)
            last = list(wire.frames())[-1]
            assert last["type"] == "done", last
            answered.set()


def round_trips(process: DaemonProcess, count: int) -> list[float]:
    """Milliseconds."""
    took = []
    with process.connect() as wire:
        request = {"id": "small", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(count):
            time.sleep(0.002)
            begun = time.perf_counter()
            wire.send(request)
            assert list(wire.frames())[-1]["type"] == "done"
            took.append((time.perf_counter() - begun) * 1e3)
    return took


@contextlib.contextmanager
def beside(process: DaemonProcess, load: str, senders: int):  # type: ignore[no-untyped-def]
    """Runs two or more sending processes while the block runs."""
    answered, over = multiprocessing.Event(), multiprocessing.Event()
    surface = LOADS[load][0]
    address = process.uds if surface == "v1" else process.uds.with_name("infer.v2.sock")
    children = [
        multiprocessing.Process(target=send, args=(address, load, answered, over)) for _ in range(senders)
    ]
    for child in children:
        child.start()
    answered.wait(60)
    try:
        yield
    finally:
        over.set()
        for child in children:
            child.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="round trips for each load")
    parser.add_argument("--senders", type=int, default=1)
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        process = DaemonProcess(Path(directory) / "0", OPTIONS, {}).wait_ready()
        for load in (None, *LOADS):
            with beside(process, load, options.senders) if load else contextlib.nullcontext():
                took = round_trips(process, options.count)
            worst = max(worst, max(took))
            late = sum(each > LIMIT_MS for each in took)
            sys.stdout.write(
                f"beside {load or 'nothing'}: median {statistics.median(took):.2f} ms, "
                f"99 % {sorted(took)[len(took) * 99 // 100]:.2f} ms, longest {max(took):.2f} ms, "
                f"{late} above {LIMIT_MS:g} ms\n"
            )
            sys.stdout.flush()
        if problems := process.end():
            sys.stdout.write("\n".join(problems) + "\n")
            return 1
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
