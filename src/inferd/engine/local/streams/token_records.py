"""Keeps the records of an answer's tokens (the log probabilities) until the text has been parsed.

The parsed answer has no records for the tokens of tool calls and of the format's markers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import orjson

from inferd.engine.events import Frames, Text
from inferd.engine.requests import FrameTemplate
from inferd.fastpath import escape_json

Place = Sequence[int]
"""Where a text stands in the raw answer: the offsets of its beginning and its end in bytes."""

RECORD_FRAMES = FrameTemplate(b"", b"\n", b"\t")
"""Each frame is a line: escaped text, a tab, and the records of the tokens that begin in the text."""


class TokenRecords:
    """The records of one answer. If a ``frame`` template is given, each text is sent in a frame with its
    records. Otherwise ``late`` has all records."""

    def __init__(self, frame: FrameTemplate | None) -> None:
        self._frame = frame
        self._lines: deque[tuple[int, int, bytes]] = deque()
        self._size = 0
        self._late: list[bytes] = []

    def take(self, frames: bytes) -> str:
        """Reads frames in the form of ``RECORD_FRAMES``. Keeps their records and returns their text."""
        texts = []
        for line in frames.splitlines():
            escaped, _, records = line.partition(b"\t")
            text: str = orjson.loads(b'"' + escaped + b'"')
            begin, self._size = self._size, self._size + len(text.encode())
            self._lines.append((begin, self._size, records))
            texts.append(text)
        return "".join(texts)

    def shown(self, text: Text, places: Sequence[Place]) -> Text | Frames:
        """Returns the event for ``text``. ``places`` are the positions of this text in the raw answer. Call
        this method once for each text, in the order of the texts in the answer."""
        records = b",".join(self._at(places))
        if self._frame is not None:
            escaped = escape_json(text.text)
            return Frames(self._frame.prefix + escaped + self._frame.opening + records + self._frame.suffix)
        if records:
            self._late.append(records)
        return text

    @property
    def late(self) -> bytes:
        """The records that no frame contains. They are sent with the end of the answer."""
        return b",".join(self._late)

    def _at(self, places: Sequence[Place]) -> Iterator[bytes]:
        for begin, end in places:
            while self._lines and self._lines[0][0] < end:
                _, behind, records = self._lines.popleft()
                if behind > begin and records:
                    yield records
