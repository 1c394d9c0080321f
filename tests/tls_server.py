"""An https server on the loopback interface, which misbehaves according to a plan.

``plan`` has one behaviour for each of the next requests. Later requests are served correctly, with an ETag,
ranges and If-Range. ``requests`` are the requests that were received.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

PIECE_BYTES = 1024


@dataclass(frozen=True)
class Request:
    """A client's request; the names of ``headers`` are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Answer(http.server.BaseHTTPRequestHandler):
    """One exchange; a behaviour writes the answer with these methods."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: TlsServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_ = Request(self.command, self.path, headers)
        with self.server.turn:
            self.server.requests.append(self.request_)
            behaviour = self.server.plan.pop(0) if self.server.plan else serve
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has left
            behaviour(self)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        """``data`` in pieces, each after the server's pause."""
        for start in range(0, len(data), PIECE_BYTES):
            if self.server.pause:
                time.sleep(self.server.pause)
            self.wfile.write(data[start : start + PIECE_BYTES])

    def wanted(self) -> int:
        """The first byte to send, by Range and If-Range."""
        span = re.fullmatch(r"bytes=(\d+)-", self.request_.headers.get("range", ""))
        fresh = self.request_.headers.get("if-range", self.server.etag) == self.server.etag
        return int(span[1]) if span and fresh else 0

    def begin(self) -> bytes:
        """Sends the head of a correct answer; returns the bytes still to send."""
        content, start = self.server.content, self.wanted()
        if start >= len(content):
            self.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return b""
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        etag = {"ETag": self.server.etag} if self.server.etag else {}
        self.head(206 if start else 200, Content_Length=len(content) - start, **span, **etag)
        return content[start:]


Behaviour = Callable[[Answer], None]


def serve(answer: Answer) -> None:
    """Answers as a correct server does."""
    answer.send(answer.begin())


def cut(after: int) -> Behaviour:
    """Cuts the connection after this many bytes."""
    return lambda answer: answer.send(answer.begin()[:after])


def stall(after: int | None = None) -> Behaviour:
    """Stalls after this many bytes; with ``None``, before the head."""

    def behave(answer: Answer) -> None:
        if after is not None:
            answer.send(answer.begin()[:after])
        answer.server.closing.wait()

    return behave


def status(code: int, **headers: object) -> Behaviour:
    """An answer without a body."""
    return lambda answer: answer.head(code, Content_Length=0, **headers)


def redirect(location: str) -> Behaviour:
    return status(302, Location=location)


def ignoring_ranges(answer: Answer) -> None:
    """Sends the whole file, regardless of the range."""
    answer.head(200, Content_Length=len(answer.server.content), ETag=answer.server.etag)
    answer.send(answer.server.content)


def plain(body: bytes, code: int = 200, **headers: object) -> Behaviour:
    """Sends ``body`` with these headers, even if they are wrong for it."""

    def behave(answer: Answer) -> None:
        answer.head(code, **headers)
        answer.send(body)

    return behave


def chunked(body: bytes) -> Behaviour:
    """``body`` without a length, properly ended."""

    def behave(answer: Answer) -> None:
        answer.head(200, Transfer_Encoding="chunked")
        answer.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    return behave


class TlsServer(http.server.ThreadingHTTPServer):
    """Serves ``content`` at every path, with a certificate for ``names``."""

    daemon_threads = False

    def __init__(self, content: bytes, ca: trustme.CA, *names: str) -> None:
        self.content = content
        self.etag = '"one"'
        self.pause = 0.0
        self.plan: list[Behaviour] = []
        self.requests: list[Request] = []
        self.turn = threading.Lock()
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(self._context)
        super().__init__(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def base(self) -> str:
        return f"https://localhost:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.base}/m.gguf"

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [request.headers.get("range") for request in self.requests]

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        with contextlib.suppress(OSError), self._context.wrap_socket(request, server_side=True) as secure:
            self._open.add(secure)
            try:
                super().finish_request(secure, client_address)
            finally:
                self._open.discard(secure)

    def close(self) -> None:
        self.closing.set()
        for secure in [*self._open]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(secure, socket.SHUT_RDWR)
        self.shutdown()
        self._thread.join()
        self.server_close()


@contextlib.contextmanager
def tls_server(content: bytes, ca: trustme.CA, *names: str) -> Iterator[TlsServer]:
    """A server that lives as long as the body."""
    server = TlsServer(content, ca, *(names or ("localhost", "127.0.0.1")))
    try:
        yield server
    finally:
        server.close()


def trusted(ca: trustme.CA, directory: Path) -> dict[str, str]:
    """The environment variables with which a process trusts ``ca`` and uses no proxy."""
    path = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return {"SSL_CERT_FILE": str(path), "NO_PROXY": "*", "no_proxy": "*"}
