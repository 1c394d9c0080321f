"""Parses the server-sent events of model servers: the data of each event, without comments.

Some servers report an error as an event named ``error``, and other servers in the data as ``{"error": …}``.
The first form is converted to the second. Chunks may have any size. Lines end with CR, LF or both, as the
standard allows. The end of the stream also ends an event, because some servers omit the last blank line.
"""

from __future__ import annotations

import codecs
import io

import orjson

MAX_EVENT_CHARS = 16 * 1024 * 1024


class Decoder:
    """Parses one stream. Raises ValueError if the stream is not UTF-8, or if an unfinished event becomes
    longer than ``MAX_EVENT_CHARS``."""

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = io.IncrementalNewlineDecoder(utf8, translate=True)
        # The unfinished line, in pieces, and the data of the unfinished event.
        self._line: list[str] = []
        self._data: list[str] = []
        self._is_error = False
        self._line_chars = self._data_chars = 0

    def feed(self, chunk: bytes, *, last: bool = False) -> list[str]:
        """Returns the data of the events that ``chunk`` completes. With ``last``, the stream ends after
        ``chunk``."""
        text = self._text.decode(chunk, final=last) + ("\n\n" if last else "")
        first, *more = text.split("\n")
        self._line.append(first)
        self._line_chars += len(first)
        found: list[str] = []
        for following in more:
            event = self._take("".join(self._line))
            if event is not None:
                found.append(event)
            self._line, self._line_chars = [following], len(following)
        if self._line_chars + self._data_chars > MAX_EVENT_CHARS:
            raise ValueError(f"an event has more than {MAX_EVENT_CHARS} characters")
        return found

    def _take(self, line: str) -> str | None:
        """Reads one line. If an event ends with this line, returns the data of the event. Returns ``None`` if
        no event ends here, or if the event has no data.
        """
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
                self._data_chars += len(value)
            elif field == "event":
                self._is_error = value.strip() == "error"
            return None
        event = "\n".join(self._data) if self._data else None
        if event is not None and self._is_error:
            event = _as_error(event)
        self._data, self._data_chars, self._is_error = [], 0, False
        return event


def _as_error(data: str) -> str:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        said = data
    if isinstance(said, dict) and "error" in said:
        return data
    return orjson.dumps({"error": said}).decode()
