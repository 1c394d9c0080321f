"""A scripted server on loopback: it follows OpenAI's API, or violates it.

A script of the test answers each request, in a thread for each connection. If the script returns normally,
the connection stays open for the next request. :meth:`Exchange.wait_until_left` waits until the client has
closed its end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import orjson

Script = Callable[["Exchange"], None]

DONE = b"data: [DONE]\n\n"


class Request:
    """A request as it was read; ``headers`` with lower-case names."""

    def __init__(self, line: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, _ = line.split(" ")
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Hangup(Exception):
    """The script requests a cut of the connection."""


class Exchange:
    """One request, and the methods to answer it."""

    def __init__(self, connection: socket.socket, request: Request, keep: bool) -> None:
        self.connection = connection
        self.request = request
        self._keep = keep

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, status: int = 200, **headers: str) -> None:
        """The head of a response whose body comes in chunks."""
        lines = [f"HTTP/1.1 {status} Scripted", "transfer-encoding: chunked"]
        lines += [] if self._keep else ["connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def whole(self, status: int, body: bytes, **headers: str) -> None:
        self.head(status, **headers)
        if body:
            self.chunk(body)
        self.end()

    def stream(self, *events: dict[str, Any] | bytes) -> None:
        """A whole stream of events, with its end marker."""
        self.head(content_type="text/event-stream")
        for event in events:
            self.chunk(event if isinstance(event, bytes) else data(event))
        self.chunk(DONE)
        self.end()

    def wait_until_left(self) -> None:
        """Returns when the client has closed its end."""
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass
        raise Hangup

    def cut(self) -> None:
        raise Hangup


def data(event: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(event)


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk of an answer in the form of OpenAI's API."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": counts}


def says(*texts: str) -> Script:
    """A script that answers with these pieces of text, each counted as a token."""
    events = [delta(content=text) for text in texts]
    return lambda exchange: exchange.stream(*events, finish("stop"), usage(3, len(texts)))


class RemoteServer:
    """Serves on a free port until :meth:`stop`. With ``tls`` it speaks https as ``localhost``.

    Without ``keep`` each connection is for one request.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.keep = True
        self.requests: list[Request] = []
        self.accepted = self._ended = 0
        self.left = threading.Event()
        """Set when a connection has ended."""
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def host(self) -> str:
        return f"{'localhost' if self._tls else '127.0.0.1'}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def open(self) -> int:
        """The number of open connections."""
        return self.accepted - self._ended

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, Hangup):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            for request in _requests(connection):
                self.requests.append(request)
                self.script(Exchange(connection, request, self.keep))
                if not self.keep:
                    break
        connection.close()
        self._ended += 1
        self.left.set()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()


def _requests(connection: socket.socket) -> Iterator[Request]:
    with connection.makefile("rb") as reader:
        while line := reader.readline():
            headers: dict[str, str] = {}
            while header := reader.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", "0")))
            yield Request(line.decode().strip(), headers, body)
