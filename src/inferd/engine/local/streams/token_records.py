"""The records of the tokens of an answer with tool calls, which wait until a reader has parsed its text.

A token of a call, or of a mark of the family's format, has no record in the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import orjson

from inferd.engine.events import Frames, Text
from inferd.engine.requests import FrameTemplate
from inferd.fastpath import escape_json

Place = Sequence[int]
"""Where a text stands in the raw answer: its begin and its end in bytes."""

RECORD_FRAMES = FrameTemplate(b"", b"\n", b"\t")
"""A line with escaped text, a tab, and the records of the tokens that begin in it."""


class TokenRecords:
    """The records of one answer. Its text becomes frames of ``frame``, or else the records are ``late``."""

    def __init__(self, frame: FrameTemplate | None) -> None:
        self._frame = frame
        self._lines: deque[tuple[int, int, bytes]] = deque()
        self._size = 0
        self._late: list[bytes] = []

    def take(self, frames: bytes) -> str:
        """Takes ``RECORD_FRAMES`` and returns their text."""
        texts = []
        for line in frames.splitlines():
            escaped, _, records = line.partition(b"\t")
            text: str = orjson.loads(b'"' + escaped + b'"')
            begin, self._size = self._size, self._size + len(text.encode())
            self._lines.append((begin, self._size, records))
            texts.append(text)
        return "".join(texts)

    def shown(self, text: Text, places: Sequence[Place]) -> Text | Frames:
        """The event for a text that stands at ``places``, which come after those of earlier texts."""
        records = b",".join(self._at(places))
        if self._frame is not None:
            escaped = escape_json(text.text)
            return Frames(self._frame.prefix + escaped + self._frame.opening + records + self._frame.suffix)
        if records:
            self._late.append(records)
        return text

    @property
    def late(self) -> bytes:
        """The records that no frame has carried, for the end of the answer."""
        return b",".join(self._late)

    def _at(self, places: Sequence[Place]) -> Iterator[bytes]:
        for begin, end in places:
            while self._lines and self._lines[0][0] < end:
                _, behind, records = self._lines.popleft()
                if behind > begin and records:
                    yield records
