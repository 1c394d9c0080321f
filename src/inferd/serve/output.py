"""The half of a connection that writes.

* ``write`` never waits; ``writable`` does, once the client has left more unread than the high-water mark. A
  client that keeps it waiting longer than the write timeout is dropped.
* What is written in one turn of the event loop goes out in one piece, up to a size.
"""

from __future__ import annotations

import asyncio
from typing import cast

from inferd.fastpath import frame_lines

# An answer of a thousand tokens fits, so that a slow reader seldom keeps a place from the others.
HIGH_WATER_BYTES = 64 * 1024
# What is written before the loop turns waits for the turn, up to this much.
FLUSH_BYTES = 16 * 1024
FLUSH_PIECES = 64


class Output(asyncio.BufferedProtocol):
    """``write_timeout`` is in seconds; 0 waits for ever."""

    _transport: asyncio.Transport

    def __init__(self, write_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._write_timeout = write_timeout
        self._unsent: list[bytes] = []
        self._write_waiter: asyncio.Future[None] | None = None
        self._write_alarm: asyncio.TimerHandle | None = None
        self.framed = False
        """Whether each line that is written goes out as a frame."""
        self.blocked = False
        """Whether the client has more unread than the high-water mark."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def write(self, data: bytes) -> None:
        """Sends ``data``, which is whole lines, at the end of this turn of the loop or once the client reads.

        What is written in one turn goes out in one piece: each piece costs a system call here and one there.
        """
        if self.framed:
            data = frame_lines(data)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        if len(data) >= FLUSH_BYTES or len(self._unsent) >= FLUSH_PIECES:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    async def writable(self) -> None:
        """Waits until the client has read on, or :meth:`wait_no_more`."""
        if self.blocked:
            self._write_waiter = self._loop.create_future()
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    def wait_no_more(self) -> None:
        """Ends the wait for the client; the next one is a new one."""
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    def pause_writing(self) -> None:
        self.blocked = True
        self._arm_write_alarm()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._write_alarm is not None:
            self._write_alarm.cancel()
            self._write_alarm = None
        self.wait_no_more()

    def _arm_write_alarm(self) -> None:
        if self._write_timeout and self._write_alarm is None:
            self._write_alarm = self._loop.call_later(self._write_timeout, self._gone, "write timeout")

    def _gone(self, why: str) -> None:
        """Called when the client has kept :meth:`writable` waiting for too long."""
        raise NotImplementedError
