"""One accepted socket of an inference surface: it reads lines or frames, and detects the end. Output writes.

* Bytes are read into the splitter in place. While no task waits for a line, reading pauses once one frame is
  held, so a connection holds at most one frame and one read.
* If raw bytes may follow a line, reading stops at the line until it is known whether they do. They are then
  read in place, into memory for all of them.
* Between the parts of a frame, and before it is known whether a client sends lines or frames, at most one
  read happens that no task waits for.
* Once a client has started a line or its raw bytes, it must send ``PIECE_BYTES``, or the rest, every
  ``PIECE_SECS``, or it is dropped. A client that sends nothing between two requests for ``idle_timeout`` is
  dropped, too.
* ``reserve`` is called before a line grows beyond ``LARGE_BYTES``. While a request runs, at most that much of
  the next line is read.
* ``on_gone`` is called once when the client no longer reads the answers: it closed its socket, the connection
  was reset, or one of these timeouts passed. A client that only shut down its sending side is not gone.
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

# How long a client may take for PIECE_BYTES of started input, or for the rest of it. Legitimate clients are
# never this slow; a slow-loris client ties up a slot and memory.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A line up to this size needs no reservation, and is parsed on the event loop.
LARGE_BYTES = 256 * 1024
# How long input is still read and dropped after an error frame. Closing with unread bytes would reset the
# connection and lose the frame.
LINGER_SECS = 1.0
# The number of first bytes that always identify the wire of a client.
OPENING_BYTES = 5

_DROPPED = bytearray(16 * 1024)


class Connection(Output):
    """``max_line`` is the longest line in bytes. The timeouts are in seconds; 0 waits for ever.

    At most one task waits for input. The future it waits for decides where arriving bytes go:

    * ``_line_waiter``, in :meth:`next_line`: into the splitter, until it holds a line or the end has come;
    * ``_more_waiter``, in :meth:`next_head` and :meth:`opening`: into the splitter, one read at a time;
    * ``_raw_waiter``, in :meth:`read_raw`: past the splitter into ``_raw``, the part still to be filled.

    Without a future the splitter takes all bytes until :meth:`_pause`, which clears ``_reading``.

    The end: with ``_eof`` the client sends no more, but may still read. With ``_dropping`` the last frame is
    written, and input is read and discarded. With ``_closing`` the daemon closes, so the loss of the
    connection is not reported. ``closed`` is done when the transport is closed. The first sign that a client
    has left is reported, once: :meth:`_gone` clears ``_on_gone``.
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
        """Takes over the accepted socket. Returns False if its client has already left."""
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
        """The next line, ``None`` at the end of the input. One beyond LARGE_BYTES is not copied.

        Raises FrameTooLarge for a line beyond the cap, and for bytes beyond ``at_most`` without a newline.
        With ``at_most`` nothing is read beyond the line, since frames may follow it. If ``reserve`` raises,
        its error propagates and the rest of the line stays unread.
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
        """The next bytes may be lines or frames."""
        self._splitter.framed = True

    async def opening(self, is_known: Callable[[bytes], bool | None]) -> bool:
        """The result of ``is_known`` for the first bytes. It is called again with more bytes while it returns
        ``None``. False if the input ends first. The bytes stay, as neither lines nor frames yet."""
        self.expect_either()
        while True:
            first = self.first(OPENING_BYTES)
            known = is_known(first) if first else None
            if known is not None or self._eof:
                return bool(known)
            await self._more()

    def first(self, size: int) -> bytes:
        """The first bytes held, at most ``size`` of them."""
        return self._splitter.peek(size)

    def begin_lines(self) -> None:
        """The next bytes are lines. A byte order mark before the first line is dropped."""
        if self.first(3) == codecs.BOM_UTF8:
            self._splitter.take_into(memoryview(bytearray(3)))
        self._splitter.framed = False

    async def next_head(self, *, begun: bool = False) -> tuple[int, int] | None:
        """Takes the next frame's head: its kind and its payload's size. ``None`` at the end of the input.

        ``begun`` means that an earlier frame began the request. Raises FrameTooLarge and MalformedFrame.
        """
        while (head := self._splitter.next_head()) is None:
            if self._eof:
                if self._splitter.buffered:
                    raise MalformedFrame("stream ended mid-frame")
                return None
            await self._more(begun)
        return head

    async def _more(self, begun: bool = False) -> None:
        """Waits for more bytes, or the end of the input."""
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
        # A large line is too long to search on the event loop, so assume yes until it is parsed.
        return self._may_carry_raw is not None and (isinstance(line, memoryview) or self._may_carry_raw(line))

    async def read_raw(self, size: int) -> memoryview | None:
        """The ``size`` raw bytes after the last line; ``None`` if the input ends first.

        Raises InputMemoryFull, with the bytes unread, if the system has no memory for them.
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
        """Ends the wait for the content of a request; the waiting call raises ``error``."""
        for waiter in (self._raw_waiter, self._more_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)

    def _read_raw_on(self, raw: memoryview) -> None:
        self._raw = raw if raw else None
        self._went_on(self._raw_size - len(raw))
        if self._raw is None and self._raw_waiter is not None and not self._raw_waiter.done():
            self._raw_waiter.set_result(True)

    def _went_on(self, done: int) -> None:
        """``done`` bytes of a line or of its raw bytes have arrived; the next ones must arrive in time."""
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
                # Twice: the splitter holds the line, and its consumer has a copy.
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
        """Ends the output after the last write, then reads and drops input for a second."""
        self._dropping = True
        self._flush()
        if not self._transport.is_closing() and not self._eof:
            self._transport.write_eof()
            self._read_on()
            await asyncio.wait((self.closed,), timeout=LINGER_SECS)

    async def close(self) -> None:
        """Closes the connection after the last write, or at once if the client is gone, and waits for that. A
        cancellation closes at once, too."""
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
        if not self._dropping:  # with both sides shut down, the end of the input follows
            self._gone("hang-up")

    def _gone(self, why: str) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            self.gone_because = why
            on_gone()
