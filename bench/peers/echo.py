"""Echo servers on a Unix socket, with blocking reads or with uvloop. They show the cost of a round trip
without any work.

Arguments: ``blocking`` or ``uvloop``, and the socket's path. ``blocking`` serves one connection at a time.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


async def serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Echo, path)
    await server.serve_forever()


def serve_blocking(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            sock, _ = listener.accept()
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        uvloop.run(serve(sys.argv[2]))
    else:
        serve_blocking(sys.argv[2])
