"""The frames of every surface: one JSON object per line, parsed strictly and encoded compactly.

A line passes three checks: all of it is UTF-8, it is one JSON object with the types that the surface
declares, and no known key is repeated. A failure raises a ``DecodeError`` that names the field and the
expected type, and carries the line's ``id`` if the line was an object with a string ``id``. A line that is
not JSON raises ``NotJson``. A ``DecodeError`` never quotes more of the line than a key.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson

from inferd.errors import DecodeError, InvalidRequest, NotJson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

MAX_ID_BYTES = 1024

# Matches \u escapes of the letters in known keys. Accented text escapes to \u00a0 and above, and does not
# match.
_ESCAPED_KEY_LETTER = re.compile(rb"\\u00[567]")


def decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """The object on the line ``raw``. Raises DecodeError, and NotJson if it is not JSON."""
    try:
        if not raw.isascii():
            raw.decode()  # msgspec validates only the strings that it keeps
        return decoder.decode(raw)
    except UnicodeDecodeError as error:
        raise NotJson(f"the line is not valid UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise _misfit(raw, str(error)) from None
    except msgspec.DecodeError as error:
        reason = str(error) if raw.strip() else "the line is blank"
        raise NotJson(f"expected one JSON object on the line: {reason}") from None
    except RecursionError:
        raise NotJson("the line is nested too deeply") from None


def _misfit(raw: bytes, reason: str) -> DecodeError:
    """The error for a field of the wrong type. The decoder stops there, so the rest is checked here."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return NotJson(reason)
    name = found.get("id") if isinstance(found, dict) else None
    return DecodeError(reason, name if isinstance(name, str) else "")


class Pairs(list["tuple[str, Any]"]):
    """A JSON object as an ordered list of pairs, repeated keys included."""

    def get(self, key: str) -> Any:
        return next((value for name, value in self if name == key), None)

    def require_unique(self, keys: frozenset[str], where: str) -> None:
        """Raises DecodeError if one of ``keys`` is repeated in this object."""
        seen = [name for name, _ in self if name in keys]
        for name in seen:
            if seen.count(name) > 1:
                raise DecodeError(f"key `{name}` is given twice - at `{where}`")


def has_escaped_key_letter(raw: bytes) -> bool:
    """Whether ``\\u`` escapes on this line could spell a known key."""
    return b"\\u00" in raw and _ESCAPED_KEY_LETTER.search(raw) is not None


def pairs(raw: bytes) -> Pairs:
    """Parses a line into pairs of key and value.

    Repeated keys are kept. The line must already be known to be one valid JSON object.
    """
    hook: Callable[[list[tuple[str, Any]]], Pairs] = Pairs
    try:
        # Numbers stay text: their values are not needed, and Python refuses to convert very long ones.
        found: Pairs = json.loads(raw, object_pairs_hook=hook, parse_int=str, parse_float=str)
    except RecursionError:
        raise NotJson("the line is nested too deeply") from None
    return found


def check_id(request_id: str) -> None:
    """Raises InvalidRequest for an id beyond ``MAX_ID_BYTES``, since every frame of the answer repeats it."""
    if len(request_id) > MAX_ID_BYTES or len(request_id.encode()) > MAX_ID_BYTES:
        raise InvalidRequest(f"invalid request: id must have at most {MAX_ID_BYTES} bytes")


def encode(frame: dict[str, Any]) -> bytes:
    """One frame as a line."""
    return orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)


def encode_error(
    request_id: str,
    code: str,
    message: str,
    retry_after_secs: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> bytes:
    """The ``error`` frame of every surface; ``retry_after_secs`` is sent in whole milliseconds, ``details``
    as further keys."""
    # A message may quote a file name, which need not be valid UTF-8.
    message = message.encode("utf-8", "backslashreplace").decode()
    frame: dict[str, Any] = {"type": "error", "id": request_id, "code": code, "message": message}
    if retry_after_secs is not None:
        frame["retry_after_ms"] = max(1, round(retry_after_secs * 1e3))
    frame.update(details or {})
    return encode(frame)


_SHOWN = frozenset(("position", "progress", "downloaded_bytes", "total_bytes"))


def encode_progress(request_id: str, model: str, phase: str, details: Mapping[str, Any]) -> bytes:
    """The ``progress`` frame of a request that waits for its model or its turn. It includes the numbers in
    ``details``, but no paths."""
    shown = {key: details[key] for key in details if key in _SHOWN}
    return encode({"type": "progress", "id": request_id, "model": model, "phase": phase, **shown})
