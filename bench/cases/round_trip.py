"""The cost of the daemon itself: requests to the mock backend, compared with plain echo servers and the Rust
inferd 0.2.1.

The round trip is measured with one blocking connection and one request after the other. The requests per
second are measured with sixteen connections of one process, with one request in progress on each. The mock
answers with one token and ``done``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import quiet, servers
from bench.clients import Address
from bench.report import Report, main, quantile

REQUEST = b'{"id":"b","messages":[{"role":"user","content":"Say hello, please."}]}\n'
BLOCKS = REQUEST.replace(b'"Say hello, please."', b'[{"type":"text","text":"Say hello, please."}]')
ROUND_TRIPS = 3000
CONNECTIONS = 16
REQUESTS = 10_000


class Echo(servers.Server):
    """An echo on a Unix socket; see ``peers/echo.py``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.name = f"{kind} echo, Unix"
        self.address = Address.unix(self.home / "e.sock")
        self._kind = kind

    def command(self) -> list[str | Path]:
        return [sys.executable, servers.PEERS / "echo.py", self._kind, self.address.path]


def answered(data: bytes, request: bytes) -> bool:
    """Whether the last line is complete and ends the answer: ``done``, or the echo of the request."""
    return data.endswith(b"\n") and (b'"type":"done"' in data or data == request)


def round_trip(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    data = b""
    while not answered(data, request):
        data += sock.recv(65536)


def round_trips(address: Address, count: int, request: bytes = REQUEST) -> list[float]:
    """The round trip of each request in microseconds."""
    clock = time.perf_counter
    times = []
    with address.connect() as sock:
        for _ in range(count):
            start = clock()
            round_trip(sock, request)
            times.append((clock() - start) * 1e6)
    return times


def throughput(address: Address, count: int, request: bytes = REQUEST) -> float:
    """Requests per second over all connections."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        partial: dict[socket.socket, bytes] = {}
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(address.connect())
            selector.register(sock, selectors.EVENT_READ)
            partial[sock] = b""
        start = time.perf_counter()
        for sock in partial:
            sock.sendall(request)
        finished = 0
        while finished < count:
            for key, _ in selector.select():
                sock = key.fileobj  # type: ignore[assignment]
                partial[sock] += sock.recv(65536)
                if answered(partial[sock], request):
                    partial[sock] = b""
                    finished += 1
                    sock.sendall(request)
        return finished / (time.perf_counter() - start)


class Contestant(NamedTuple):
    """A server on one of its sockets."""

    name: str
    server: servers.Server
    address: Address
    request: bytes = REQUEST


def contestants_of(server: servers.Server) -> Iterator[Contestant]:
    yield Contestant(server.name, server, server.address)
    if server.name == "inferd, Unix":
        blocks = Address.unix(server.home / "infer.v2.sock")
        yield Contestant("inferd, v2, Unix", server, blocks, BLOCKS)


def measure(contestant: Contestant, report: Report) -> None:
    name, server, address, request = contestant
    times = round_trips(address, ROUND_TRIPS, request)
    report.add(name, "round trip, p50", "µs", quantile(times, 0.5))
    report.add(name, "round trip, p99", "µs", quantile(times, 0.99))
    if not name.startswith("blocking"):
        before = server.cpu_seconds()
        report.add(name, "requests", "1/s", throughput(address, REQUESTS, request))
        cpu = (server.cpu_seconds() - before) / REQUESTS * 1e6
        report.add(name, "processor time of a request", "µs", cpu)


def run(options: argparse.Namespace, report: Report) -> None:
    report.settings |= {"round_trips": ROUND_TRIPS, "connections": CONNECTIONS, "requests": REQUESTS}
    contestants: list[Callable[[], servers.Server]] = [
        lambda: servers.Inferd(slots=CONNECTIONS, name="inferd, Unix"),
        lambda: servers.Inferd(slots=CONNECTIONS, tcp=True, name="inferd, TCP"),
        lambda: servers.RustInferd(options.cargo_cache, slots=CONNECTIONS),
        lambda: Echo("uvloop"),
        lambda: Echo("blocking"),
    ]
    watch = quiet.Watch(report, options.patience)
    with contextlib.ExitStack() as stack:
        running = []
        for start in contestants:
            try:
                running.append(stack.enter_context(start()))
            except servers.Unavailable as reason:
                report.missing["the Rust inferd"] = str(reason)
        measured = [contestant for server in running for contestant in contestants_of(server)]
        for contestant in measured:
            round_trips(contestant.address, 500, contestant.request)
        for number in range(options.repeats):
            for contestant in servers.in_turn(measured, number):
                watch.undisturbed(functools.partial(measure, contestant, report))
        for server in running[:2]:
            for metric, mebibytes in server.memory().items():
                report.add(server.name, metric, "MiB", mebibytes)
    for metric in ("round trip, p50", "round trip, p99", "requests"):
        report.ratio(metric, "inferd, Unix", "inferd, TCP")
        report.ratio(metric, "inferd, Unix", "uvloop echo, Unix")
        report.ratio(metric, "inferd, Unix", "blocking echo, Unix")
    for metric in ("round trip, p50", "requests", "processor time of a request"):
        report.ratio(metric, "inferd, Unix", "inferd 0.2.1 (Rust), Unix")
        report.ratio(metric, "inferd, v2, Unix", "inferd, Unix")


if __name__ == "__main__":
    main("round_trip", __doc__ or "", run)
