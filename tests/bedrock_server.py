"""An imitation of AWS Bedrock on the loopback interface.

It checks signatures by AWS's published rules, using only `hmac`, and writes the binary event stream. The
answers come from a script of the test, which may misbehave. The script of each connection runs in a thread of
its own.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

REGION = "us-east-1"
ACCESS_KEY_ID = "AKIDEXAMPLE"
SECRET_ACCESS_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SESSION_TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE=="
BEARER_TOKEN = "bedrock-api-key-EXAMPLE"

PATIENCE_SECS = 100.0
_MAX_SKEW_SECS = 300


# The event stream.


def message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message; all its headers are strings."""
    head = b"".join(
        struct.pack("!B", len(name))
        + name.encode()
        + struct.pack("!BH", 7, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    start = prelude + struct.pack("!I", binascii.crc32(prelude)) + head + payload
    return start + struct.pack("!I", binascii.crc32(start))


def chunk(event: Mapping[str, Any] | bytes) -> bytes:
    """An event of the model."""
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    payload = {"bytes": base64.b64encode(data).decode(), "p": "abcdefgh"}
    headers = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    return message(headers, json.dumps(payload, separators=(",", ":")).encode())


def exception(name: str, text: str) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return message(headers, json.dumps({"message": text}).encode())


def answer(*texts: str, stop_reason: str = "end_turn", input_tokens: int = 9) -> list[dict[str, Any]]:
    """The events of an answer in text."""
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    return [
        {"type": "message_start", "message": {"role": "assistant", "content": [], "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            for text in texts
        ),
        {"type": "content_block_stop", "index": 0},
        *end(stop_reason, len(texts)),
    ]


def end(stop_reason: str, output_tokens: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    metrics = {"inputTokenCount": 9, "outputTokenCount": output_tokens, "firstByteLatency": 1}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics},
    ]


# Signature Version 4.


class Rejected(Exception):
    """The reason for rejecting a request."""


def signature(
    method: str,
    target: str,
    headers: Mapping[str, str],
    signed: Iterable[str],
    body: bytes,
    scope: str,
    secret: str = SECRET_ACCESS_KEY,
) -> str:
    """The expected signature of a request; ``target`` is from the request line."""
    path, _, query = target.partition("?")
    names = sorted(signed)
    canonical = "\n".join(
        (
            method,
            quote(path, safe="/-._~"),  # unchanged, so that encoded characters are encoded twice
            "&".join(sorted(query.split("&"))) if query else "",
            *(f"{name}:{' '.join(headers[name].split())}" for name in names),
            "",
            ";".join(names),
            hashlib.sha256(body).hexdigest(),
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(("AWS4-HMAC-SHA256", headers["x-amz-date"], scope, digest))
    return hmac.digest(key, text.encode(), "sha256").hex()


def check_signature(method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raises Rejected unless the request is signed with the key of this module."""
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/([^,]+), SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        headers["authorization"],
    )
    if found is None:
        raise Rejected("IncompleteSignatureException")
    key_id, scope, names, given = found.groups()
    date = headers["x-amz-date"]
    moment = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    signed = names.split(";")
    needed = {"host", *(name for name in headers if name == "content-type" or name.startswith("x-amz-"))}
    if key_id != ACCESS_KEY_ID:
        raise Rejected("UnrecognizedClientException")
    if abs((datetime.now(timezone.utc) - moment).total_seconds()) > _MAX_SKEW_SECS:
        raise Rejected("InvalidSignatureException")
    if scope != f"{date[:8]}/{REGION}/bedrock/aws4_request" or not needed <= set(signed):
        raise Rejected("InvalidSignatureException")
    if headers.get("x-amz-security-token", SESSION_TOKEN) != SESSION_TOKEN:
        raise Rejected("ExpiredTokenException")
    if not hmac.compare_digest(given, signature(method, target, headers, signed, body, scope)):
        raise Rejected("InvalidSignatureException")


# The server.


@dataclass
class Exchange:
    """An accepted request, and the methods to answer it."""

    target: str
    headers: dict[str, str]
    body: dict[str, Any]
    sock: socket.socket
    keep_alive: bool
    _begun: bool = field(default=False, init=False)

    def refuse(self, status: int, error: str, text: str, **headers: str) -> None:
        """Answers with an error instead of a stream."""
        if not self.keep_alive:
            headers["connection"] = "close"
        _refuse(self.sock, status, error, text, **headers)
        self._begun = True

    def send(self, *messages: bytes) -> None:
        """Sends messages of the event stream, each in its own chunk."""
        if not self._begun:
            self._begun = True
            close = b"" if self.keep_alive else b"connection: close\r\n"
            self.sock.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n"
                b"x-amzn-requestid: 1\r\n%stransfer-encoding: chunked\r\n\r\n" % close
            )
        for data in messages:
            self.sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def events(self, *events: Mapping[str, Any] | bytes) -> None:
        self.send(*map(chunk, events))

    def finish(self) -> None:
        self.sock.sendall(b"0\r\n\r\n")

    def until_left(self) -> None:
        """Returns when the client has closed its end."""
        with contextlib.suppress(ConnectionResetError):
            assert self.sock.recv(1) == b"", "the client sent more than its request"


Script = Callable[[Exchange], None]


class BedrockServer:
    """Serves ``script`` at ``url`` until it is closed; ``exchanges`` are the accepted requests.

    Without ``keep_alive``, each connection closes after one answer.
    """

    def __init__(self, script: Script, *, keep_alive: bool = True) -> None:
        self._script = script
        self._keep_alive = keep_alive
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.exchanges: list[Exchange] = []
        self.rejections: list[str] = []
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._begin(self._accept)

    def _begin(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE_SECS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(sock)
            self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            try:
                while (line := stream.readline()) not in (b"", b"\r\n"):
                    method, target, _ = line.decode().split(" ")
                    headers: dict[str, str] = {}
                    while (line := stream.readline().rstrip(b"\r\n")) != b"":
                        name, _, value = line.decode().partition(":")
                        headers[name.lower()] = value.strip()
                    body = stream.read(int(headers["content-length"]))
                    self._answer(sock, method, target, headers, body)
            except ConnectionError:
                pass  # the client may leave at any time
            except BaseException as failure:
                self.failures.append(failure)

    def _answer(
        self, sock: socket.socket, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        try:
            if headers["authorization"].startswith("Bearer "):
                if headers["authorization"] != f"Bearer {BEARER_TOKEN}":
                    raise Rejected("UnrecognizedClientException")
            else:
                check_signature(method, target, headers, body)
        except Rejected as reason:
            self.rejections.append(str(reason))
            # As in AWS: the text repeats the signed string, which includes the session token.
            text = f"should have been 'x-amz-security-token:{SESSION_TOKEN}'"
            _refuse(sock, 403, str(reason), text, connection="keep-alive" if self._keep_alive else "close")
            return
        exchange = Exchange(target, headers, json.loads(body), sock, self._keep_alive)
        self.exchanges.append(exchange)
        self._script(exchange)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(PATIENCE_SECS)

    def __enter__(self) -> BedrockServer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        assert kind is not None or not self.failures, self.failures


def _refuse(sock: socket.socket, status: int, error: str, text: str, **headers: str) -> None:
    body = json.dumps({"message": text}).encode()
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-amzn-errortype": f"{error}:http://internal.amazon.com/coral/com.amazon.bedrock/",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    sock.sendall(f"HTTP/1.1 {status} Refused\r\n{head}\r\n".encode() + body)
