"""Measures the overhead of the HTTP bridge, and compares it with llama-server on the same model.

``python -m bench.bars.http`` prints these measurements. The two sides of each are measured in alternation:

* the time to the first token over HTTP and over the Unix socket, with the mock backend, which answers at
  once;
* the same over TLS;
* the memory and processor time of 1,000 idle keep-alive connections;
* the share of a core that the bridge takes for four streams, each of 200 tokens per second;
* with ``--model FILE.gguf``: the time to the first token, and short chat completions per second over
  ``--connections``, of inferd and of llama-server (package xllamacpp).

The exit status is 1 if the bridge misses a bar: at most 0.7 ms more than the Unix socket, at most 10 % of a
core, at least 1.5 times the requests per second of llama-server, and at most half of the time to the first
token of llama-server. On a busy machine the first quartile (p25) of the times is more reliable than the
median, and the processor time of a request is more reliable than the requests per second.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trustme

from bench.quiet import family
from bench.servers import LlamaServer
from tests.http_bridge import BridgeProcess

ADDED_MS = 0.7
RATE_TIMES = 1.5
FIRST_TIMES = 0.5
STREAMS, TOKENS_PER_SEC, STREAM_SECS = 4, 200, 10
STREAM_SHARE = 0.1
IDLE = 1000
WARM = 5
EACH = 2
"""The requests of a connection in a round."""

WORDS = re.compile(rb'"(?:content|delta)":"[^"]')
_NUMBERS = itertools.count()


class HttpClient:
    """A keep-alive connection that requests chat completions."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._connect()

    def _connect(self) -> None:
        self._sock = socket.create_connection(("127.0.0.1", self._port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._sock = self._tls.wrap_socket(self._sock, server_hostname="localhost")

    def ask(self, *, stream: bool, max_tokens: int) -> float:
        """Requests one completion; returns the seconds to its first word, or to its end if it is not
        streamed."""
        prompt = f"Number {next(_NUMBERS)}: name a colour."
        body = json.dumps(
            {
                "model": "default",
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": stream,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        while (secs := self._send(head.encode() + body)) is None:
            self.close()  # llama-server ends a connection now and then
            self._connect()
        return secs[0] if stream else secs[1]

    def _send(self, request: bytes) -> tuple[float, float] | None:
        """The seconds to the first word and to the end; ``None`` if the connection was already closed."""
        began = time.perf_counter()
        got, first = b"", 0.0
        try:
            self._sock.sendall(request)
            while not _is_whole(got):
                piece = self._sock.recv(65536)
                if not piece and not got:
                    return None
                assert piece, got
                got += piece
                if not first and WORDS.search(got):
                    first = time.perf_counter() - began
        except (ConnectionResetError, BrokenPipeError):
            return None
        assert b" 200 OK" in got[:20], got[:300]
        return first, time.perf_counter() - began

    def close(self) -> None:
        self._sock.close()


def _is_whole(got: bytes) -> bool:
    head, found, body = got.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


class UnixClient:
    """A connection to the v2 socket."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))

    def ask(self) -> float:
        text = f"Number {next(_NUMBERS)}: name a colour."
        turn = {"role": "user", "content": [{"type": "text", "text": text}]}
        line = json.dumps({"id": "q", "messages": [turn], "max_tokens": 1}).encode() + b"\n"
        began = time.perf_counter()
        self._sock.sendall(line)
        got, first = b"", 0.0
        while b'"done"' not in got:
            got += self._sock.recv(65536)
            first = first or time.perf_counter() - began
        return first

    def close(self) -> None:
        self._sock.close()


def alternate(count: int, *asks: Callable[[], float]) -> list[list[float]]:
    """The times of each contestant, measured in turns; the first few turns only warm up."""
    times: list[list[float]] = [[] for _ in asks]
    for number in range(count + WARM):
        for ask, found in zip(asks, times, strict=True):
            secs = ask()
            if number >= WARM:
                found.append(secs)
    return times


def p25(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=4)[0]


def show(name: str, times: Sequence[float]) -> None:
    least, quarter, half = (secs * 1e3 for secs in (min(times), p25(times), statistics.median(times)))
    print(f"{name:34} least {least:8.3f} ms   p25 {quarter:8.3f} ms   median {half:8.3f} ms")


def share(count: int) -> bool:
    """Measures the bridge's part of the time to the first token, plain and over TLS."""
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
        made = authority.issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(key)
        for blob in made.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        plain = stack.enter_context(BridgeProcess(mock={}))
        secure = BridgeProcess(mock={}, http_cert=chain, http_key=key)
        stack.callback(secure.end)
        while not _takes(secure.port, tls):
            time.sleep(0.05)
        clients = (HttpClient(plain.port), UnixClient(plain.dir / "inferd" / "infer.v2.sock"))
        http, unix = clients
        over_tls = HttpClient(secure.port, tls)
        pid = bridge_pid(plain)
        used = processor(pid)
        for _ in range(count):
            http.ask(stream=True, max_tokens=1)
        print(f"processor time of the bridge: {(processor(pid) - used) / count * 1e3:.3f} ms a request")
        times = alternate(
            count,
            unix.ask,
            lambda: http.ask(stream=True, max_tokens=1),
            lambda: over_tls.ask(stream=True, max_tokens=1),
        )
        for client in (*clients, over_tls):
            client.close()
        idle(plain)
    for name, found in zip(("Unix socket", "HTTP", "HTTPS"), times, strict=True):
        show(f"first token, mock, {name}", found)
    added = (p25(times[1]) - p25(times[0])) * 1e3
    print(f"the bridge adds {added:.3f} ms (at most {ADDED_MS})")
    return added <= ADDED_MS


def _takes(port: int, tls: ssl.SSLContext | None = None) -> bool:
    try:
        client = HttpClient(port, tls)
        client.ask(stream=True, max_tokens=1)
    except (OSError, AssertionError):
        return False
    client.close()
    return True


def idle(process: BridgeProcess) -> None:
    """Measures the cost of idle connections."""
    pid = bridge_pid(process)
    before = memory(pid)
    open_ones = [HttpClient(process.port) for _ in range(IDLE)]
    for client in open_ones[::100]:
        client.ask(stream=False, max_tokens=1)
    held = memory(pid)
    used = processor(pid)
    time.sleep(5)
    spent = processor(pid) - used
    for client in open_ones:
        client.close()
    each = (held - before) / IDLE / 1024
    print(f"{IDLE} idle connections: {each:.1f} KiB each, {spent / 5 * 100:.2f} % of a core")


def streams() -> bool:
    """The bridge's share of a core while it passes on four streams."""
    tokens = TOKENS_PER_SEC * STREAM_SECS
    with BridgeProcess(mock={"gate": True, "tape": ["word "], "repeat": tokens}) as process:
        process.wait_ready()
        pid = bridge_pid(process)
        clients = [HttpClient(process.port) for _ in range(STREAMS)]
        threads = [
            threading.Thread(target=client.ask, kwargs={"stream": True, "max_tokens": tokens})
            for client in clients
        ]
        for thread in threads:
            thread.start()
        process.wait_running(STREAMS)
        used, began = processor(pid), time.monotonic()
        for number in range(1, tokens + 1):
            process.release(STREAMS)
            time.sleep(max(0.0, began + number / TOKENS_PER_SEC - time.monotonic()))
        process.release(STREAMS)  # the ends of the streams
        for thread in threads:
            thread.join()
        share = (processor(pid) - used) / (time.monotonic() - began)
        for client in clients:
            client.close()
    print(
        f"{STREAMS} streams of {TOKENS_PER_SEC} tokens/s: {share:.1%} of a core in the bridge"
        f" (at most {STREAM_SHARE:.0%})"
    )
    return share <= STREAM_SHARE


def bridge_pid(process: BridgeProcess) -> int:
    return int(re.findall(r"http_bridge_started pid=(\d+)", process.stderr)[-1])


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(port: int, connections: int) -> float:
    """Requests per second over so many connections."""
    clients = [HttpClient(port) for _ in range(connections)]

    def work(client: HttpClient) -> None:
        for _ in range(EACH):
            client.ask(stream=False, max_tokens=8)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    secs = time.perf_counter() - began
    for client in clients:
        client.close()
    return EACH * connections / secs


def processors(pid: int, port: int, connections: int) -> float:
    """The processor seconds of a request over these connections, in a server and all of its processes."""
    before = sum(map(processor, family(pid)))
    rate(port, connections)
    return (sum(map(processor, family(pid))) - before) / (EACH * connections)


def peers(model: Path, threads: int, connections: int, count: int, rounds: int) -> bool:
    """Compares inferd and llama-server side by side."""
    options = {"model_path": model, "threads": threads, "n_ctx": 2048, "active_permits": connections}
    with (
        BridgeProcess(**options) as ours,
        LlamaServer(Path(sys.executable), model, threads=threads, slots=connections) as theirs,
    ):
        port = theirs.address.port
        while not _takes(port):  # it listens before its model is loaded
            time.sleep(0.1)
        one, other = HttpClient(ours.port), HttpClient(port)
        first = alternate(
            count,
            lambda: one.ask(stream=True, max_tokens=2),
            lambda: other.ask(stream=True, max_tokens=2),
        )
        one.close()
        other.close()
        rates = [(rate(ours.port, connections), rate(port, connections)) for _ in range(rounds)]
        spent = [
            (
                processors(ours.process.pid, ours.port, connections),
                processors(theirs.popen.pid, port, connections),
            )
            for _ in range(rounds)
        ]
    show("first token, inferd over HTTP", first[0])
    show("first token, llama-server", first[1])
    ratio = p25(first[0]) / p25(first[1])
    times = statistics.median(mine / other for mine, other in rates)
    best = max(mine for mine, _ in rates), max(other for _, other in rates)
    mine, other = (statistics.median(found) * 1e3 for found in zip(*spent, strict=True))
    print(f"processor time a request: inferd {mine:.1f} ms, llama-server {other:.1f} ms ({other / mine:.2f})")
    print(f"time to the first token: {ratio:.2f} of llama-server's (at most {FIRST_TIMES})")
    print(
        f"requests/s over {connections}, best round: inferd {best[0]:.1f}, llama-server {best[1]:.1f};",
        end=" ",
    )
    print(f"median of the rounds' ratios {times:.2f} (at least {RATE_TIMES})")
    return ratio <= FIRST_TIMES and times >= RATE_TIMES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    kept = not given.count or all((share(given.count), streams()))
    if given.model is not None:
        count = min(given.count or 60, 60)
        kept &= peers(given.model, given.threads, given.connections, count, given.rounds)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
