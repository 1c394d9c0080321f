"""One accepted socket of an inference surface: lines or frames in, bytes out, and how it ends.

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
* ``write`` never waits; ``writable`` does, once the client has left more unread than the high-water mark. A
  client that keeps it waiting longer than the write timeout is dropped.
* ``on_gone`` is called once when the client no longer reads the answers: the client closed its socket, the
  connection was reset, or one of these times passed. One that only shut down its sending side is not gone.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import mmap
import socket
from collections.abc import Callable
from typing import cast

from inferd.errors import FrameTooLarge, InferdError, InputMemoryFull, MalformedFrame
from inferd.fastpath import LineSplitter, frame_lines
from inferd.serve.hangup import HangupWatch

# An answer of a thousand tokens fits, so that a slow reader seldom keeps a place from the others.
HIGH_WATER_BYTES = 64 * 1024
# How long a client may take for PIECE_BYTES of its input, once begun, or for what is left of it. Who has
# something to say is not that slow; who trickles holds a place and memory from the others.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A line up to this size needs no reservation, and is small enough to be parsed on the event loop.
LARGE_BYTES = 256 * 1024
# How long what a client still sends is read and dropped after an error frame, so that closing with unread
# bytes does not reset the connection and take the frame with it.
LINGER_SECS = 1.0
# Up to here memory that is filled costs less than asking the system for memory that is not.
SMALL_BYTES = 64 * 1024
# From here on memory comes in huge pages where the system has them: freeing 16,384 small ones takes 6 ms.
HUGE_BYTES = 4 * 1024 * 1024
# What is written before the loop turns waits for the turn, up to this much.
FLUSH_BYTES = 16 * 1024
FLUSH_PIECES = 64
# So many first bytes tell which of the wires a client speaks.
OPENING_BYTES = 5

_DROPPED = bytearray(16 * 1024)


class Connection(asyncio.BufferedProtocol):
    """``max_line`` is the cap of a line in bytes; the timeouts are in seconds, 0 waits for ever."""

    _transport: asyncio.Transport

    def __init__(
        self,
        max_line: int,
        write_timeout: float,
        hangups: HangupWatch,
        may_carry_raw: Callable[[bytes], bool] | None = None,
        idle_timeout: float = 0.0,
        reserve: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter(max_line)
        self._write_timeout = write_timeout
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
        self._unsent: list[bytes] = []
        self._write_waiter: asyncio.Future[None] | None = None
        self._write_alarm: asyncio.TimerHandle | None = None
        self._read_alarm: asyncio.TimerHandle | None = None
        self._piece_end = 0
        self._raw_size = 0
        self._reading = True
        self._dropping = False
        self._closing = False
        self._eof = False
        self.framed = False
        """Whether each line that is written goes out as a frame."""
        self.blocked = False
        """Whether the client has more unread than the high-water mark."""
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
        memory = _memory(size)
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

    # Writing.

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

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


def _memory(size: int) -> memoryview:
    if size <= SMALL_BYTES:
        return memoryview(bytearray(size))
    # Of a private mapping only the pages that were written take memory: a size costs nothing by itself.
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise InputMemoryFull from None
    if size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
