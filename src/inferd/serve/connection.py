"""One accepted socket of an inference surface. :class:`Connection` reads lines or frames, and detects that
the client has left. Its base class :class:`Output` writes.

* Bytes are read directly into the buffer of the splitter, which finds the lines and the heads of frames.
  While no task waits for a line, reading pauses as soon as the splitter holds a whole line. So unread input
  takes at most the memory of one line and one read.
* If raw bytes may follow a line, reading pauses after the line until the line has been parsed. Raw bytes are
  then read directly into one buffer that has room for all of them.
* If the client sends frames, reading pauses after each read until a task needs more bytes. Reading pauses in
  the same way until the first bytes have shown whether the client sends lines or frames.
* A client that has begun to send a line, a frame or raw bytes must send at least ``PIECE_BYTES``, or
  everything that remains, within every ``PIECE_SECS``. The connection of a slower client is dropped. While
  the daemon waits for a request, the connection of a client that sends nothing for ``idle_timeout`` is
  dropped.
* ``reserve`` is called when a line grows beyond ``LARGE_BYTES``. While a request runs, reading pauses when
  more than ``LARGE_BYTES`` of the next line are held.
* ``on_gone`` is called once, when the client can get no more answers: the client closed its socket, the
  connection was reset, or a timeout passed. A client that only shut down its sending side still gets its
  answers.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
from collections.abc import Callable

from inferd.errors import FrameTooLarge, InferdError, MalformedFrame
from inferd.fastpath import LineSplitter
from inferd.serve.hangup import HangupWatch
from inferd.serve.memory import room_for
from inferd.serve.output import Output

# How long a client may take for PIECE_BYTES of a request that it has begun, or for the rest of the request.
# Legitimate clients are never this slow; a slow-loris client ties up a connection and memory.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A line up to this size needs no reservation, and is parsed on the event loop.
LARGE_BYTES = 256 * 1024
# How long input is still read and dropped after an error frame. Closing a socket with unread bytes resets the
# connection, and the client would lose the frame.
LINGER_SECS = 1.0
# The number of first bytes that always show whether a client sends lines or frames.
OPENING_BYTES = 5

_DROPPED = bytearray(16 * 1024)


class Connection(Output):
    """``max_line`` is the length limit of a line in bytes. The timeouts are in seconds, and 0 means no
    timeout.

    At most one task waits for input. The future that this task awaits decides where arriving bytes go:

    * ``_line_waiter``, in :meth:`next_line`: into the splitter, until the splitter holds a line or the input
      ends;
    * ``_more_waiter``, in :meth:`next_head` and :meth:`opening`: into the splitter, one read at a time;
    * ``_raw_waiter``, in :meth:`read_raw`: past the splitter into ``_raw``, the part of the buffer still to
      be filled.

    If no task waits, arriving bytes go into the splitter until :meth:`_pause` pauses reading and clears
    ``_reading``.

    Four attributes describe the end. ``_eof``: the client sends no more, but may still read. ``_dropping``:
    the last frame is written, and further input is discarded. ``_closing``: the daemon itself closes the
    connection, so the end of the connection does not mean that the client has left. ``closed``: a future that
    is done when the transport is closed. At the first sign that the client has left, :meth:`_gone` calls
    ``_on_gone`` and sets ``_on_gone`` to ``None``, so that further signs have no effect.
    """

    def __init__(
        self,
        max_line: int,
        write_timeout: float,
        hangups: HangupWatch,
        may_carry_raw: Callable[[bytes], bool] | None = None,
        idle_timeout: float = 0.0,
        reserve: Callable[[int], None] = lambda size: None,
    ) -> None:
        super().__init__(write_timeout)
        self._splitter = LineSplitter(max_line)
        self._hangups = hangups
        self._may_carry_raw = may_carry_raw
        self._idle_timeout = idle_timeout
        self._reserve = reserve
        self._line_room = LARGE_BYTES
        self._fd = -1
        self._on_gone: Callable[[], object] | None = None
        self._line_waiter: asyncio.Future[bytes | memoryview | None] | None = None
        self._more_waiter: asyncio.Future[None] | None = None
        self._at_most: int | None = None
        self._raw: memoryview | None = None
        self._raw_waiter: asyncio.Future[bool] | None = None
        self._read_alarm: asyncio.TimerHandle | None = None
        self._piece_end = 0
        self._raw_size = 0
        self._reading = True
        self._dropping = False
        self._closing = False
        self._eof = False
        self.gone_because = ""
        self.closed: asyncio.Future[None] = self._loop.create_future()

    async def open(self, sock: socket.socket, on_gone: Callable[[], object]) -> bool:
        """Takes over the accepted socket. Returns False if the client has already left."""
        fd = sock.fileno()
        try:
            await self._loop.connect_accepted_socket(lambda: self, sock)
        except OSError:
            sock.close()
            return False
        self._on_gone = on_gone
        if self.closed.done():
            self._gone("closed")
        else:
            self._fd = fd
            self._hangups.watch(fd, self._hung_up)
        return True

    # Reading.

    async def next_line(self, at_most: int | None = None) -> bytes | memoryview | None:
        """Waits for the next line. Returns ``None`` at the end of the input, and a memoryview for a line
        beyond LARGE_BYTES.

        Raises FrameTooLarge for a line longer than ``max_line``, or if more than ``at_most`` bytes arrive
        without a newline. With ``at_most``, reading pauses after the line, since frames may follow the line.
        If ``reserve`` raises an error, this method raises the error, and the rest of the line stays unread.
        """
        line = self._take_line()
        if line is not None and (at_most is not None or self._raw_may_follow(line)):
            self._pause()
        elif not self._splitter.has_line:
            self._read_on()
        if line is not None or self._eof:
            return line
        if at_most is not None and self._splitter.buffered > at_most:
            raise FrameTooLarge(at_most)
        self._at_most = at_most
        self._piece_end = 0
        self._line_room = LARGE_BYTES
        if self._splitter.buffered:
            self._went_on(self._splitter.buffered)
        elif self._idle_timeout:
            self._set_read_alarm(self._idle_timeout, "idle")
        self._line_waiter = self._loop.create_future()
        try:
            return await self._line_waiter
        finally:
            self._line_waiter = None
            self._clear_read_alarm()

    def expect_either(self) -> None:
        """Prepares for a client that may send lines or frames."""
        self._splitter.framed = True

    async def opening(self, is_known: Callable[[bytes], bool | None]) -> bool:
        """Passes the first bytes of the input to ``is_known``, and returns the result. If the result is
        ``None``, waits for more bytes and calls ``is_known`` again. Returns False if the input ends first.
        The bytes stay in the buffer."""
        self.expect_either()
        while True:
            first = self.first(OPENING_BYTES)
            known = is_known(first) if first else None
            if known is not None or self._eof:
                return bool(known)
            await self._more()

    def first(self, size: int) -> bytes:
        """Returns the first bytes of the buffer, at most ``size``. The bytes stay in the buffer."""
        return self._splitter.peek(size)

    def begin_lines(self) -> None:
        """Reads lines from now on. Drops a byte order mark before the first line."""
        if self.first(3) == codecs.BOM_UTF8:
            self._splitter.take_into(memoryview(bytearray(3)))
        self._splitter.framed = False

    async def next_head(self, *, begun: bool = False) -> tuple[int, int] | None:
        """Reads the head of the next frame. Returns the kind of the frame and the size of the payload in
        bytes, or ``None`` at the end of the input.

        ``begun`` means that the frame continues a request. Raises FrameTooLarge and MalformedFrame.
        """
        while (head := self._splitter.next_head()) is None:
            if self._eof:
                if self._splitter.buffered:
                    raise MalformedFrame("stream ended mid-frame")
                return None
            await self._more(begun)
        return head

    async def _more(self, begun: bool = False) -> None:
        """Waits until more bytes arrive or the input ends."""
        self._piece_end = 0
        if begun or self._splitter.buffered:
            self._went_on(0)
        elif self._idle_timeout:
            self._set_read_alarm(self._idle_timeout, "idle")
        self._more_waiter = self._loop.create_future()
        self._read_on()
        try:
            await self._more_waiter
        finally:
            self._more_waiter = None
            self._clear_read_alarm()

    def _raw_may_follow(self, line: bytes | memoryview) -> bool:
        # Searching a large line would block the event loop, so assume yes until the line is parsed.
        return self._may_carry_raw is not None and (isinstance(line, memoryview) or self._may_carry_raw(line))

    async def read_raw(self, size: int) -> memoryview | None:
        """Reads the ``size`` raw bytes after the last line or frame head. Returns ``None`` if the input ends
        first.

        Raises InputMemoryFull if the system has no memory for the bytes. The bytes then stay unread.
        """
        memory = room_for(size)
        held = self._splitter.take_into(memory)
        if held < size:
            if self._eof:
                return None
            self._raw = memory[held:]
            self._raw_size = size
            self._piece_end = 0
            self._went_on(held)
            self._raw_waiter = self._loop.create_future()
            self._read_on()
            try:
                if not await self._raw_waiter:
                    return None
            finally:
                self._raw = self._raw_waiter = None
                self._clear_read_alarm()
        return memory.toreadonly()

    def stop_reading(self, error: InferdError) -> None:
        """Raises ``error`` in the call that waits for the content of a request."""
        for waiter in (self._raw_waiter, self._more_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)

    def _read_raw_on(self, raw: memoryview) -> None:
        self._raw = raw if raw else None
        self._went_on(self._raw_size - len(raw))
        if self._raw is None and self._raw_waiter is not None and not self._raw_waiter.done():
            self._raw_waiter.set_result(True)

    def _went_on(self, done: int) -> None:
        """Records that ``done`` bytes of a line or of raw bytes have arrived. Restarts the read timeout after
        each ``PIECE_BYTES``."""
        if done >= self._piece_end:
            self._piece_end = done + PIECE_BYTES
            self._set_read_alarm(PIECE_SECS, "read timeout")

    def _set_read_alarm(self, seconds: float, why: str) -> None:
        self._clear_read_alarm()
        self._read_alarm = self._loop.call_later(seconds, self._gone, why)

    def _clear_read_alarm(self) -> None:
        if self._read_alarm is not None:
            self._read_alarm.cancel()
            self._read_alarm = None

    def _pause(self) -> None:
        if self._reading and not self._eof:
            self._reading = False
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _take_line(self) -> bytes | memoryview | None:
        view = self._splitter.take_tail() if self._eof else self._splitter.next_line()
        return view if view is None or len(view) > LARGE_BYTES else bytes(view)

    def _hand_over(self) -> None:
        if self._splitter.framed:
            self._pause()  # at once: the loop may read again before the waiter runs
            if self._more_waiter is not None and not self._more_waiter.done():
                self._more_waiter.set_result(None)
            return
        waiter = self._line_waiter
        if waiter is not None and not waiter.done():
            if self._splitter.has_line or self._eof:
                line = None
                try:
                    line = self._take_line()
                    waiter.set_result(line)
                except FrameTooLarge as error:
                    waiter.set_exception(error)
                if line is not None and (self._at_most is not None or self._raw_may_follow(line)):
                    self._pause()
                    return
            elif self._at_most is not None and self._splitter.buffered > self._at_most:
                waiter.set_exception(FrameTooLarge(self._at_most))
            else:
                self._line_went_on(waiter, self._splitter.buffered)
        if self._splitter.has_line or (waiter is None and self._splitter.buffered > LARGE_BYTES):
            self._pause()

    def _line_went_on(self, waiter: asyncio.Future[bytes | memoryview | None], held: int) -> None:
        if held > self._line_room:
            self._line_room = held + PIECE_BYTES
            try:
                # Twice: the splitter holds the line, and the parser has a copy.
                self._reserve(2 * PIECE_BYTES)
            except InferdError as error:
                waiter.set_exception(error)
                self._pause()
                return
        self._went_on(held)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        if self._raw is not None:
            return self._raw
        return _DROPPED if self._dropping else self._splitter.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        if self._raw is not None:
            self._read_raw_on(self._raw[nbytes:])
        elif not self._dropping:
            self._splitter.buffer_updated(nbytes)
            self._hand_over()

    def eof_received(self) -> bool:
        self._eof = True
        if self._raw_waiter is not None and not self._raw_waiter.done():
            self._raw_waiter.set_result(False)
        if self._dropping:
            self._transport.close()
        else:
            self._hand_over()
        return True

    # The end.

    async def linger(self) -> None:
        """Shuts down the sending side after the last write, then reads and drops input for at most
        ``LINGER_SECS``."""
        self._dropping = True
        self._flush()
        if not self._transport.is_closing() and not self._eof:
            self._transport.write_eof()
            self._read_on()
            await asyncio.wait((self.closed,), timeout=LINGER_SECS)

    async def close(self) -> None:
        """Closes the connection after the last write, or at once if the client has left. Returns when the
        connection is closed. If the calling task is cancelled, the connection is closed at once."""
        self._closing = True
        if self.gone_because:
            self._transport.abort()
        else:
            self._flush()
            self._arm_write_alarm()
            self._transport.close()
        try:
            await asyncio.wait((self.closed,))
        except asyncio.CancelledError:
            self._transport.abort()
            await asyncio.wait((self.closed,))

    def connection_lost(self, exc: Exception | None) -> None:
        self._hangups.forget(self._fd, self._hung_up)
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)
        if not self._closing:
            self._gone("reset" if exc is not None else "closed")

    def _hung_up(self) -> None:
        if not self._dropping:  # in linger(), the end of the input closes the connection
            self._gone("hang-up")

    def _gone(self, why: str) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            self.gone_because = why
            on_gone()
