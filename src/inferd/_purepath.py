"""The pure Python implementation of :mod:`inferd.fastpath`, and the oracle of its tests.

The docstrings here also document the compiled functions of the same names. The compiled functions are faster,
and return a line without copying the received bytes, while this module copies them.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import re
import struct
from typing import TYPE_CHECKING, Any

from inferd.errors import FrameTooLarge, MalformedFrame
from inferd.redaction import SHORTEST_SECRET, marker_of_name

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from typing_extensions import Buffer

_READ_CHUNK = 4096

# The head of a frame: its length as LEB128 of at most 5 bytes, then one byte for its kind.
_MAX_LENGTH_BYTES = 5
_KINDS = (1, 2)
MAX_FRAME_BYTES = 64 * 1024 * 1024

# Values of ``_newline``, the position of the next newline: not searched yet, and not found.
_UNSEEN, _NONE = -2, -1

# Keys are padded to at least this length, the limit of an auth line, before they are compared.
_KEY_BOUND = 4096

_NAME_END = re.compile(rb'"[ \t\r\n]*:')
_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.S)
_NAME_OR_BRACE = re.compile(_STRING.pattern + rb"([ \t\r\n]*:)?|[][{}]", re.S)
_MAX_HELD_NAMES, _MAX_OPEN = 256, 64
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
_ESCAPES = str.maketrans({chr(c): f"\\u{c:04x}" for c in range(0x20)} | _SHORT_ESCAPES)


class LineSplitter:
    """Splits a byte stream into lines of at most ``cap`` bytes, for one connection and one thread.

    Bytes are added by ``get_buffer`` and ``buffer_updated``, as in an ``asyncio.BufferedProtocol``, so the
    socket reads directly into the buffer. ``next_line`` returns the lines in order.

    * A ``\\n`` ends a line. The ``\\n`` is not part of the line and does not count towards the cap. One
      ``\\r`` before the ``\\n`` is removed, too, but counts towards the cap.
    * ``has_line`` is true if ``next_line`` would return a line or raise an error. If the next line exceeds
      the cap, all buffered bytes are dropped and ``oversized`` is set. From then on ``next_line`` raises
      ``FrameTooLarge``, and further input is dropped.
    * The buffer holds at most ``cap`` bytes plus the bytes of one read. The memory of a long line is released
      once the line is taken. To keep this bound, ``get_buffer`` raises ``BufferError`` if a complete line is
      buffered and the buffer holds more than half the cap. Therefore pause the transport while ``has_line``
      is true.
    * A line is a read-only memoryview. Drop the view before more bytes arrive. If the caller keeps the view
      after that, the view still shows the bytes of the line, but costs extra memory.
    * Taking a line does not examine the bytes after the line. So ``take_into`` can then take raw bytes that
      follow the line.
    * While ``framed`` is set, newlines have no meaning. ``peek`` shows the buffered bytes, ``next_head``
      takes the head of a frame, and ``take_into`` takes the payload.
    """

    def __init__(self, cap: int) -> None:
        if cap < 1:
            raise ValueError("cap must be at least 1 byte")
        self.cap = cap
        self.oversized = False
        self._framed = False
        self._held = bytearray()
        self._newline = _NONE
        self._chunk = bytearray(_READ_CHUNK)

    @property
    def buffered(self) -> int:
        """The number of bytes in the buffer, including those of complete lines."""
        return len(self._held)

    @property
    def framed(self) -> bool:
        """True if the buffered bytes are frames, or if it is not known yet whether they are lines or
        frames."""
        return self._framed

    @framed.setter
    def framed(self, value: bool) -> None:
        self._framed = value
        self._newline = _NONE if value else _UNSEEN

    @property
    def has_line(self) -> bool:
        """Whether ``next_line`` would return a line or raise an error."""
        self._look()
        return self.oversized or self._newline >= 0

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Returns writable memory of at least one byte for the next read. ``sizehint`` is ignored."""
        self._check_room()
        return memoryview(self._chunk)

    def buffer_updated(self, nbytes: int) -> None:
        """Records that ``nbytes`` bytes were written to the start of the memory that the last ``get_buffer``
        returned."""
        if not 0 <= nbytes <= len(self._chunk):
            raise ValueError("nbytes does not fit the buffer that get_buffer gave")
        self._receive(memoryview(self._chunk)[:nbytes])

    def feed(self, data: Buffer) -> None:
        """Adds a copy of ``data``, as if one read had returned it."""
        self._check_room()
        self._receive(data)

    def next_line(self) -> memoryview | None:
        """Takes the next line. Returns ``None`` if no line is complete. Raises ``FrameTooLarge`` for a line
        beyond the cap."""
        self._look()
        if self.oversized:
            raise FrameTooLarge(self.cap)
        if self._newline < 0:
            return None
        return self._take(self._newline, self._newline + 1)

    def take_tail(self) -> memoryview | None:
        """Takes the next line after the stream has ended. After the last complete line, takes the remaining
        bytes, which have no newline. Then returns ``None``."""
        line = self.next_line()
        if line is None and self._held:
            return self._take(len(self._held), len(self._held))
        return line

    def take_into(self, buffer: memoryview) -> int:
        """Moves buffered bytes to the front of ``buffer``, as many as fit, regardless of newlines.

        Returns the number of moved bytes.
        """
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        del self._held[:size]
        self._newline = _UNSEEN
        return size

    def peek(self, size: int) -> bytes:
        """Returns the first buffered bytes, at most ``size``, without taking them."""
        return bytes(self._held[:size])

    def next_head(self) -> tuple[int, int] | None:
        """Takes the head of the next frame. Returns the kind (1 for JSON, 2 for a blob) and the payload's
        size.

        Returns ``None`` while the head is incomplete. Raises FrameTooLarge for a payload beyond
        ``MAX_FRAME_BYTES``, and MalformedFrame for any other invalid head. After an error the bytes are still
        in the buffer.
        """
        size = 0
        for i, byte in enumerate(self._held[:_MAX_LENGTH_BYTES]):
            size |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                break
        else:
            if len(self._held) < _MAX_LENGTH_BYTES:
                return None
            raise MalformedFrame(f"length varint exceeded {_MAX_LENGTH_BYTES} bytes")
        if size > MAX_FRAME_BYTES:
            raise FrameTooLarge(MAX_FRAME_BYTES)
        if len(self._held) < i + 2:
            return None
        kind = self._held[i + 1]
        if kind not in _KINDS:
            raise MalformedFrame(f"unknown frame-type byte 0x{kind:02x}")
        del self._held[: i + 2]
        return kind, size

    def _check_room(self) -> None:
        self._look()
        if self._newline >= 0 and len(self._held) > self.cap // 2:
            raise BufferError("take the lines that wait before reading on")

    def _receive(self, data: Buffer) -> None:
        if not self.oversized:
            unseen = 0 if self._newline == _UNSEEN else len(self._held)
            self._held += data
            if self._newline < 0:
                self._search(unseen)

    def _look(self) -> None:
        if self._newline == _UNSEEN:
            self._search(0)

    def _search(self, unseen: int) -> None:
        if self._framed:
            self._newline = _NONE
            return
        self._newline = self._held.find(b"\n", unseen)
        if (len(self._held) if self._newline < 0 else self._newline) > self.cap:
            self.oversized = True
            self._held.clear()
            self._newline = _NONE

    def _take(self, size: int, consumed: int) -> memoryview:
        line = bytes(self._held[:size]).removesuffix(b"\r")
        del self._held[:consumed]
        self._newline = _UNSEEN
        return memoryview(line)


def escape_json(text: str) -> bytes:
    """Returns ``text`` as a JSON string in UTF-8, without the quotes around it.

    Escapes only the characters that JSON requires to be escaped, in the short form if there is one. Raises
    ``ValueError`` for a lone surrogate, which UTF-8 cannot encode.
    """
    return text.translate(_ESCAPES).encode()


def token_frame(prefix: bytes, text: str, suffix: bytes) -> bytes:
    """Joins ``prefix``, the text escaped by :func:`escape_json`, and ``suffix``."""
    return prefix + escape_json(text) + suffix


def count_names(line: bytes) -> int:
    """Counts the quotation marks that are followed by a colon, directly or after spaces. A line of JSON has
    at most this many names."""
    return len(_NAME_END.findall(line))


def may_repeat_a_name(line: bytes) -> bool:
    """Whether an object in a line of JSON may have a name twice. ``False`` is certain; ``True`` means
    "perhaps". The function also returns ``True`` for a name with an escape, for more than ``_MAX_HELD_NAMES``
    names in the open objects, and for more than ``_MAX_OPEN`` open objects and lists."""
    names: list[bytes] = []
    firsts: list[int] = []  # of each open object and list: the index of its first name
    for token in _NAME_OR_BRACE.finditer(line):
        if token[0] in (b"{", b"["):
            if len(firsts) == _MAX_OPEN:
                return True
            firsts.append(len(names))
        elif token[0] in (b"}", b"]") and firsts:
            del names[firsts.pop() :]
        elif token[2] is not None:
            before = names[firsts[-1] if firsts else 0 :]
            if len(names) == _MAX_HELD_NAMES or b"\\" in token[1] or token[1] in before:
                return True
            names.append(token[1])
    return False


def set_aside(line: bytes | memoryview, longest: int, mark: bytes) -> tuple[bytes, list[str]]:
    """Replaces each JSON string of more than ``longest`` bytes by a short string: ``mark``, and the index of
    the replaced string in eight digits. Returns the new line and the decoded strings. Raises ValueError for
    an invalid string."""
    texts: list[str] = []

    def replace(string: re.Match[bytes]) -> bytes:
        if len(string[1]) <= longest:
            return string[0]
        text: str = json.loads(string[0].decode())
        text.encode()  # raises for a lone surrogate
        texts.append(text)
        return b'"%b%08d"' % (mark, len(texts) - 1)

    return _STRING.sub(replace, bytes(line)), texts


def is_utf8(data: bytes | memoryview) -> bool:
    """Whether the bytes are UTF-8. The compiled function releases the GIL."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def decode_utf8(data: bytes | memoryview) -> str:
    """Returns the decoded text. Raises ValueError if the bytes are not UTF-8. The compiled function releases
    the GIL."""
    return str(data, "utf-8")


def frame_lines(lines: bytes) -> bytes:
    """Converts each line of ``lines`` to a JSON frame. Raises ValueError if the last line has no newline."""
    *whole, rest = lines.split(b"\n")
    if rest:
        raise ValueError("the last line has no newline")
    return b"".join(_head(len(line)) + line for line in whole)


def _head(size: int) -> bytes:
    head = bytearray()
    while size >= 0x80:
        head.append(0x80 | (size & 0x7F))
        size >>= 7
    return bytes((*head, size, 1))


def add_fields(entry: dict[str, Any], fields: dict[str, object], clean: Callable[[Any, str], object]) -> None:
    """Adds ``fields`` to the log record ``entry``, except names that ``entry`` already has. Floats, integers
    from 0 to 2**63 - 1, ``None`` and short words are added unchanged, all other values as ``clean(value,
    name)``."""
    for name, value in fields.items():
        if name in entry:
            continue
        if type(value) is str:
            plain = len(value) < SHORTEST_SECRET and _is_word(value) and marker_of_name(name) is None
        else:
            plain = value is None or type(value) is float or (type(value) is int and 0 <= value < 2**63)
        entry[name] = value if plain else clean(value, name)


def joined_fields(entry: dict[str, Any], left_out: Container[str], plain: Callable[[Any], str]) -> str:
    """Returns `` name=value`` for each field of ``entry`` whose value is not ``None`` and whose name is not
    in ``left_out``. Numbers and words of ASCII letters and digits are written unchanged, all other values as
    ``plain(value)``."""
    text = ""
    for name, value in entry.items():
        if value is not None and name not in left_out:
            as_it_is = type(value) is int or type(value) is float or (type(value) is str and _is_word(value))
            text += f" {name}={value!s}" if as_it_is else f" {name}={plain(value)}"
    return text


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalnum()


def keys_equal(a: bytes, b: bytes) -> bool:
    """Whether two keys are equal. The time of the comparison depends on neither the keys nor their lengths.

    The guarantee holds for keys of up to 4,096 bytes, the size limit of an auth line.
    """
    size = max(_KEY_BOUND, len(a), len(b))
    return hmac.compare_digest(a.ljust(size, b"\0"), b.ljust(size, b"\0")) & (len(a) == len(b))


def float_rows(values: Buffer, width: int) -> bytes:
    """Encodes rows of float32 numbers as a JSON array of arrays. Each row has ``width`` numbers.

    Each number has as few digits as possible, but reads back as the same float32. Each number has a fraction
    or an exponent. Raises ``ValueError`` for an incomplete row, and for a number that is not finite.
    """
    numbers = memoryview(values).cast("B")
    if width < 1 or len(numbers) % (4 * width):
        raise ValueError("the values are no whole rows of that width")
    texts = [_shortest(number) for (number,) in struct.iter_unpack("=f", numbers)]
    rows = (",".join(texts[start : start + width]) for start in range(0, len(texts), width))
    return f"[{','.join(f'[{row}]' for row in rows)}]".encode()


def _shortest(number: float) -> str:
    if not math.isfinite(number):
        raise ValueError("a value is not finite")
    for digits in range(1, 9):
        text = f"{number:.{digits}g}"
        with contextlib.suppress(OverflowError):
            if struct.unpack("=f", struct.pack("=f", float(text)))[0] == number:
                break
    else:
        text = f"{number:.9g}"
    return text if "." in text or "e" in text else f"{text}.0"
