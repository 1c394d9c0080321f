"""The writing half of a connection.

* ``write`` never waits. If the client leaves more than ``HIGH_WATER_BYTES`` of output unread, ``writable``
  waits until at most a quarter of ``HIGH_WATER_BYTES`` is left. If this takes longer than the write timeout,
  the connection is dropped.
* All writes of one event loop iteration are sent together, up to ``FLUSH_BYTES``.
"""

from __future__ import annotations

import asyncio
from typing import cast

from inferd.fastpath import frame_lines

# An answer of a thousand tokens fits, so a slow reader seldom holds up its permit.
HIGH_WATER_BYTES = 64 * 1024
# Writes are buffered until the end of the loop iteration, up to this size.
FLUSH_BYTES = 16 * 1024
FLUSH_PIECES = 64


class Output(asyncio.BufferedProtocol):
    """``write_timeout`` is in seconds, and 0 means no timeout."""

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
        """Whether the unread output has exceeded the high-water mark, and has not yet shrunk to a quarter of
        this mark."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def write(self, data: bytes) -> None:
        """Sends ``data``, which must be whole lines, at the end of this loop iteration. If the client does
        not read, ``data`` is kept and sent later.

        The writes of one iteration are sent together, since each send costs one system call here and one in
        the client.
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
        if unsent and not self._transport.is_closing():  # uvloop raises an error for a closed transport
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    async def writable(self) -> None:
        """Waits until the client has read enough, or until :meth:`wait_no_more` is called. Returns at once
        unless ``blocked``."""
        if self.blocked:
            self._write_waiter = self._loop.create_future()
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    def wait_no_more(self) -> None:
        """Makes the current call of :meth:`writable` return. Later calls wait as usual."""
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
        """Drops the connection. Called when the write timeout passes while the output is blocked or the
        connection is being closed."""
        raise NotImplementedError
