#!/usr/bin/env bash
# uvloop fills a BufferedProtocol's buffer many times before any other callback runs; asyncio fills it once.
#
# Guess before the run: both loops run what is ready between two reads of a transport, so a task that is woken by the
#   first read and pauses the transport sees one read.
# Seen: with uvloop 0.23.0 up to 32 reads come first while each fills the buffer (libuv's own limit), with asyncio of
#   Python 3.11 one. A plain Protocol is read once by both.
# Meant for: protocols that stop reading after a message: pause in buffer_updated itself, not in the task it wakes.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q uvloop==0.23.0
"$dir/venv/bin/python" - <<'PYTHON'
import asyncio
import socket

import uvloop

BUFFER, SENT = 1000, 100_000


class Counting:
    def __init__(self):
        self.reads = 0
        self.woken = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        pass

    def count(self):
        self.reads += 1
        if not self.woken.done():
            self.woken.set_result(None)


class Buffered(Counting, asyncio.BufferedProtocol):
    def get_buffer(self, hint):
        return bytearray(BUFFER)

    def buffer_updated(self, size):
        self.count()


class Plain(Counting, asyncio.Protocol):
    def data_received(self, data):
        self.count()


async def reads_before_the_waiter(kind):
    near, far = socket.socketpair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SENT)
    far.setblocking(False)
    assert far.send(b"x" * SENT) == SENT
    near.setblocking(False)
    protocol = kind()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, near)
    await protocol.woken
    seen = protocol.reads
    protocol.transport.close()
    far.close()
    return seen


seen = {
    (name, kind.__name__): runner(reads_before_the_waiter(kind))
    for name, runner in (("asyncio", asyncio.run), ("uvloop", uvloop.run))
    for kind in (Buffered, Plain)
}
for (name, kind), reads in seen.items():
    print(f"{name:8} {kind:9} {reads:3} reads before the waiter ran")
assert list(seen.values()) == [1, 1, 32, 1], seen
print("as written at the top")
PYTHON
