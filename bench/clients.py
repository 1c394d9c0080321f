"""The client of one streamed request. It does equally little work for every server.

A stream is a socket that records the arrival time of each token. ``drive`` runs any number of streams in one
thread. Times are those of ``time.perf_counter``, in seconds. All tokens of one read get the same time.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

SILENCE_SECS = 300


@dataclass(frozen=True)
class Address:
    """A Unix socket's path, or a TCP port on loopback."""

    path: str = ""
    port: int = 0

    @classmethod
    def unix(cls, path: Path) -> Address:
        return cls(path=str(path))

    @classmethod
    def tcp(cls, port: int) -> Address:
        return cls(port=port)

    def connect(self) -> socket.socket:
        if self.port:
            sock = socket.create_connection(("127.0.0.1", self.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def __str__(self) -> str:
        return f"127.0.0.1:{self.port}" if self.port else self.path


class Stream:
    """One request on its own connection. ``failed`` is the server's reason if it gave one."""

    def __init__(self, address: Address, request: bytes) -> None:
        self.sock = address.connect()
        self._request = request
        self._rest = b""
        self.sent_at = 0.0
        self.done_at = 0.0
        self.arrivals: list[float] = []
        self.text: list[str] = []
        self.tokens = 0
        self.prompt_tokens = 0
        self.prefill_ms: float | None = None
        self.timings: dict[str, float] = {}
        self.done = False
        self.failed = ""

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.sock.sendall(self._request)

    def receive(self) -> None:
        """Reads once, and records the received tokens."""
        data = self.sock.recv(65536)
        now = time.perf_counter()
        if not data:
            self.finish(now, "" if self.done else "the connection was closed")
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.take(line, now)

    def take(self, line: bytes, now: float) -> None:
        raise NotImplementedError

    def token(self, text: str, now: float) -> None:
        self.arrivals.append(now)
        self.text.append(text)

    def finish(self, now: float, failed: str = "") -> None:
        self.done = True
        self.done_at = now
        self.failed = failed
        self.tokens = self.tokens or len(self.arrivals)
        self.sock.close()

    def leave(self) -> float:
        """Closes the connection during the answer; returns the time."""
        self.done = True
        self.sock.close()
        return time.perf_counter()

    @property
    def ttft_ms(self) -> float:
        return (self.arrivals[0] - self.sent_at) * 1e3

    @property
    def tokens_per_second(self) -> float:
        """The tokens per second after the first token."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])

    def gaps_ms(self, after: float = 0.0, before: float = float("inf")) -> list[float]:
        """Milliseconds between the tokens that arrived in a span of time."""
        times = [at for at in self.arrivals if after <= at <= before]
        return [(late - early) * 1e3 for early, late in itertools.pairwise(times)]


class NdjsonStream(Stream):
    """inferd's own wire, v1; ``extra`` is added to the request."""

    def __init__(
        self,
        address: Address,
        messages: list[dict[str, str]],
        max_tokens: int,
        extra: dict[str, Any] | None = None,
    ) -> None:
        request = {"id": "b", "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        super().__init__(address, orjson.dumps(request | (extra or {})) + b"\n")

    def take(self, line: bytes, now: float) -> None:
        frame = orjson.loads(line)
        if frame["type"] == "token":
            self.token(frame["content"], now)
            return
        if frame["type"] == "done":
            self.tokens = frame["usage"]["completion_tokens"]
            self.prompt_tokens = frame["usage"]["prompt_tokens"]
            self.timings = frame.get("timings") or {}
            self.prefill_ms = self.timings.get("prefill_ms")
        self.finish(now, frame.get("message", ""))


class BlockStream(Stream):
    """inferd's own wire, v2."""

    def __init__(self, address: Address, messages: list[dict[str, str]], max_tokens: int) -> None:
        turns = [
            {"role": each["role"], "content": [{"type": "text", "text": each["content"]}]}
            for each in messages
        ]
        request = {"id": "b", "messages": turns, "temperature": 0, "max_tokens": max_tokens}
        super().__init__(address, orjson.dumps(request) + b"\n")

    def take(self, line: bytes, now: float) -> None:
        frame = orjson.loads(line)
        if frame["type"] == "frame":
            self.token(frame["block"]["delta"], now)
            return
        if frame["type"] == "done":
            self.tokens, self.prompt_tokens = frame["usage"]["output_tokens"], frame["usage"]["input_tokens"]
            self.timings = frame.get("timings") or {}
            self.prefill_ms = self.timings.get("prefill_ms")
        self.finish(now, frame.get("message", ""))


class SseStream(Stream):
    """``/v1/chat/completions`` with server-sent events; ``extra`` is added to the body.

    A server writes each event as one HTTP chunk, so the lines between the events are chunk sizes.
    """

    def __init__(
        self, address: Address, messages: list[dict[str, str]], max_tokens: int, extra: dict[str, Any]
    ) -> None:
        body = json.dumps(
            {
                "messages": messages,
                "temperature": 0,
                "max_tokens": max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **extra,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        super().__init__(address, head.encode() + body)

    def take(self, line: bytes, now: float) -> None:
        if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
            self.finish(now, line.decode())
        elif line.startswith(b"data: [DONE]"):
            self.finish(now)
        elif line.startswith(b"data: "):
            self._event(orjson.loads(line[6:]), now)

    def _event(self, event: dict[str, Any], now: float) -> None:
        usage = event.get("usage")
        if usage:
            self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        timings = event.get("timings")
        if timings:
            self.prefill_ms = timings["prompt_ms"]
        for choice in event["choices"]:
            text = choice["delta"].get("content")
            if text:
                self.token(text, now)


def drive(streams: Sequence[Stream], until: Callable[[], bool] | None = None) -> None:
    """Receives on all streams until each is done, or until ``until`` returns true after a read."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            if not stream.done:
                selector.register(stream.sock, selectors.EVENT_READ, stream)
        while selector.get_map() and not (until is not None and until()):
            ready = selector.select(SILENCE_SECS)
            if not ready:
                raise RuntimeError(f"no server has sent anything for {SILENCE_SECS} seconds")
            for key, _ in ready:
                sock, stream = key.fileobj, key.data
                stream.receive()
                if stream.done:
                    selector.unregister(sock)


def ask(stream: Stream) -> Stream:
    """Sends one request and waits for its end. Raises RuntimeError if the server refused it."""
    stream.send()
    drive([stream])
    if stream.failed:
        raise RuntimeError(f"the server answered: {stream.failed}")
    return stream
