"""The memory of a real daemon while many clients send all of their attachments but the last byte."""

from __future__ import annotations

import contextlib
import json
import re
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.daemon_process import DaemonProcess, Wire, until

SIZE = 64 * 1024 * 1024
CLIENTS = 64
BUDGET = 384 * 1024 * 1024
REQUEST = {
    "id": "q",
    "messages": [{"role": "user", "content": [{"type": "image", "attachment_id": "i"}]}],
    "attachments": [{"kind": "image", "mime": "image/png", "id": "i", "size": SIZE}],
}
CHUNK = bytes(1024 * 1024)


def most_resident(process: DaemonProcess) -> int:
    """Bytes; the maximum so far."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return int(kibibytes) * 1024


def closed(process: DaemonProcess) -> int:
    """The number of connections, including those that the log only counts."""
    counted = process.events("connections_closed")
    return len(process.events("connection_closed")) + sum(event["count"] for event in counted)


def all_but_the_last_byte(wire: Wire) -> None:
    """Sends as many bytes as the daemon accepts."""
    wire.send(json.dumps(REQUEST).encode() + b"\n")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(SIZE // len(CHUNK) - 1):
            wire.sock.sendall(CHUNK)
        wire.sock.sendall(CHUNK[1:])


def test_64_clients_of_64_mib_hold_half_a_gibibyte_at_most(daemon: Callable[..., DaemonProcess]) -> None:
    process = daemon().wait_ready()
    before = most_resident(process)
    wires = [process.connect("v2") for _ in range(CLIENTS)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(all_but_the_last_byte, wires))
    holding = BUDGET // 2 // SIZE
    answered = [wire for wire in wires if select.select([wire.sock], [], [], 0)[0]]
    assert len(answered) == CLIENTS - holding
    assert {wire.frame()["code"] for wire in answered} == {"queue_full"}
    assert most_resident(process) - before <= BUDGET
    for wire in wires:
        wire.close()
    until(lambda: closed(process) >= CLIENTS)
    assert closed(process) == CLIENTS
