"""A scripted peer of a client, which can follow or break the daemon's protocol."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import orjson

Script = Callable[[socket.socket, bytes], None]


class Peer:
    """Answers each connection on ``path`` with a script; keeps the received lines."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = path
        self.script = script
        self.lines: list[bytes] = []
        self.accepted = 0
        self.closed_by_client = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        threads = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            self.accepted += 1
            self._connections.append(connection)
            threads.append(threading.Thread(target=self._answer, args=[connection]))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            try:
                for line in reader:
                    self.lines.append(line)
                    self.script(connection, line)
            except OSError:
                pass
            self.closed_by_client.set()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._thread.join()


def frames(*bodies: dict[str, object]) -> Script:
    """A script that sends the frames with the request's id."""

    def script(connection: socket.socket, line: bytes) -> None:
        request_id = orjson.loads(line)["id"]
        connection.sendall(b"".join(orjson.dumps({"id": request_id, **body}) + b"\n" for body in bodies))

    return script


def after_attachments(script: Script) -> Script:
    """Runs ``script`` for each request once its attachments have arrived. Each request must have only one
    newline, at its end."""
    request, missing = b"", 0

    def wait(connection: socket.socket, line: bytes) -> None:
        nonlocal request, missing
        if missing:
            missing -= 1
        else:
            request, missing = line, len(orjson.loads(line).get("attachments", ()))
        if not missing:
            script(connection, request)

    return wait


class AdminPeer:
    """Sends frames to the first client, then keeps the connection open until it is stopped."""

    def __init__(self, path: Path, *frames: dict[str, object], hang_up: bool = False) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._data = b"".join(
            orjson.dumps({"id": "admin", "type": "status", **frame}) + b"\n" for frame in frames
        )
        self._hang_up = hang_up
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(self._data)
            if not self._hang_up:
                connection.recv(1)

    def stop(self) -> None:
        self._thread.join()
        self._listener.close()
