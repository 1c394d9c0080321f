"""One accepted socket of an inference surface: lines or frames in, and how it ends. Output writes.

* Bytes are read into the splitter in place. While no task waits for a line, reading goes on only until one
  frame is held; then it pauses, so a connection holds at most one frame and one read.
* Where a line may be followed by raw bytes, nothing is read beyond the line before it is known whether they
  follow; they are then read in place, into memory that takes them all.
* Between the parts of a frame, and before it is known whether a client sends lines or frames, nothing is read
  that no task waits for, beyond one read.
* Who has begun a line, or the bytes behind one, has to go on with it: a client that lets it take longer than
  ``PIECE_SECS`` is dropped, as is one that sends nothing between two requests for ``idle_timeout``.
* ``reserve`` is called before a line grows beyond ``LARGE_BYTES``. While a request runs, no more than that
  is read of the next line.
* ``on_gone`` is called once when the client no longer reads the answers: the client closed its socket, the
  connection was reset, or one of these times passed. One that only shut down its sending side is not gone.
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

# How long a client may take for PIECE_BYTES of its input, once begun, or for what is left of it. Who has
# something to say is not that slow; who trickles holds a place and memory from the others.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A line up to this size needs no reservation, and is small enough to be parsed on the event loop.
LARGE_BYTES = 256 * 1024
# How long what a client still sends is read and dropped after an error frame, so that closing with unread
# bytes does not reset the connection and take the frame with it.
LINGER_SECS = 1.0
# So many first bytes tell which of the wires a client speaks.
OPENING_BYTES = 5

_DROPPED = bytearray(16 * 1024)


class Connection(Output):
    """``max_line`` is the cap of a line in bytes; the timeouts are in seconds, 0 waits for ever.

    At most one task waits for input, and which of three futures it waits for says where arriving bytes go:

    * ``_line_waiter``, in :meth:`next_line`: into the splitter, until it holds a line or the end has come;
    * ``_more_waiter``, in :meth:`next_head` and :meth:`opening`: into the splitter, one read at a time;
    * ``_raw_waiter``, in :meth:`read_raw`: past the splitter into ``_raw``, what is left to be filled.

    With none of them the splitter takes what comes until :meth:`_pause`; ``_reading`` is false from there on.

    The end: with ``_eof`` the client sends no more, but may still read. With ``_dropping`` the last frame is
    written, and input is read and thrown away. With ``_closing`` the daemon closes, so that the loss of the
    connection is no news. ``closed`` is done when the transport is. Whatever comes first of the ways in which
    a client can leave is reported, once: :meth:`_gone` takes ``_on_gone`` away.
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
        """Takes the accepted socket over; False when its client has left already."""
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
        With ``at_most`` nothing is read beyond the line, since frames may follow it. Passes on what
        ``reserve`` raises; the rest of the line is unread then.
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
        """What comes next may be lines or frames."""
        self._splitter.framed = True

    async def opening(self, is_known: Callable[[bytes], bool | None]) -> bool:
        """What ``is_known`` says of the first bytes that come; it is asked again with more while that is
        ``None``. False where the input ends before. The bytes stay, and are neither lines nor frames yet."""
        self.expect_either()
        while True:
            first = self.first(OPENING_BYTES)
            known = is_known(first) if first else None
            if known is not None or self._eof:
                return bool(known)
            await self._more()

    def first(self, size: int) -> bytes:
        """The first bytes that are held, at most ``size`` of them."""
        return self._splitter.peek(size)

    def begin_lines(self) -> None:
        """What comes next are lines. A byte order mark before the first is dropped."""
        if self.first(3) == codecs.BOM_UTF8:
            self._splitter.take_into(memoryview(bytearray(3)))
        self._splitter.framed = False

    async def next_head(self, *, begun: bool = False) -> tuple[int, int] | None:
        """Takes the head of the next frame, its kind and its payload's size; ``None`` at the input's end.

        ``begun`` says that a frame before it began the request. Raises FrameTooLarge and MalformedFrame.
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
        # A large line is not searched on the event loop; nothing is read on before it was parsed.
        return self._may_carry_raw is not None and (isinstance(line, memoryview) or self._may_carry_raw(line))

    async def read_raw(self, size: int) -> memoryview | None:
        """The ``size`` bytes behind the last line, whatever they are; ``None`` if the input ends before.

        Raises InputMemoryFull, with the bytes unread, where the system gives no memory for them.
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
        """Ends the wait for content that follows a request; what waits for it raises ``error``."""
        for waiter in (self._raw_waiter, self._more_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)

    def _read_raw_on(self, raw: memoryview) -> None:
        self._raw = raw if raw else None
        self._went_on(self._raw_size - len(raw))
        if self._raw is None and self._raw_waiter is not None and not self._raw_waiter.done():
            self._raw_waiter.set_result(True)

    def _went_on(self, done: int) -> None:
        """Of a line, or of the bytes behind one, ``done`` are here and more have to come, in time."""
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
            self._pause()  # at once: a loop may read several times before the waiter gets to run
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
                # Twice: the splitter holds the line, and its taker has a copy.
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
        """Ends the output behind what was written, then reads and drops what still comes, for a second."""
        self._dropping = True
        self._flush()
        if not self._transport.is_closing() and not self._eof:
            self._transport.write_eof()
            self._read_on()
            await asyncio.wait((self.closed,), timeout=LINGER_SECS)

    async def close(self) -> None:
        """Closes the connection behind what was written, or now when the client is gone; returns when it is
        closed. A cancel during it closes now, too."""
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
        if not self._dropping:  # then both sides have shut down, and the end of the input comes
            self._gone("hang-up")

    def _gone(self, why: str) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            self.gone_because = why
            on_gone()
