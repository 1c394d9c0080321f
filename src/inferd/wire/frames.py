"""The frames of all surfaces: JSON objects, one on each line. Parsing is strict, and encoding is compact.

A line must pass three checks: the whole line is UTF-8, it is one JSON object with the types that the surface
declares, and no known key is repeated. A line that is not JSON raises ``NotJson``. Any other failure raises a
``DecodeError`` that names the field and the expected type. If the line is an object with a string ``id``, the
``DecodeError`` has this id. An error never quotes a value of the line, only a key.
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
    """Decodes the JSON object on the line ``raw``. Raises NotJson if the line is not JSON, and DecodeError if
    a field is missing or has the wrong type."""
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
    """Returns the error for a field that is missing or has the wrong type: NotJson if the line is not JSON,
    or else DecodeError. The decoder stopped at the faulty field, so this function checks whether the rest of
    the line is JSON."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return NotJson(reason)
    name = found.get("id") if isinstance(found, dict) else None
    return DecodeError(reason, name if isinstance(name, str) else "")


class Pairs(list["tuple[str, Any]"]):
    """A JSON object as a list of pairs of key and value, in order. A repeated key has several pairs."""

    def get(self, key: str) -> Any:
        return next((value for name, value in self if name == key), None)

    def require_unique(self, keys: frozenset[str], where: str) -> None:
        """Raises DecodeError if the object repeats one of ``keys``. ``where`` is the object's path in the
        request."""
        seen = [name for name, _ in self if name in keys]
        for name in seen:
            if seen.count(name) > 1:
                raise DecodeError(f"key `{name}` is given twice - at `{where}`")


def has_escaped_key_letter(raw: bytes) -> bool:
    """Whether ``\\u`` escapes on the line ``raw`` could be part of a known key."""
    return b"\\u00" in raw and _ESCAPED_KEY_LETTER.search(raw) is not None


def pairs(raw: bytes) -> Pairs:
    """Parses a line to pairs of key and value, and keeps repeated keys.

    The line must be a valid JSON object. Call :func:`decode` first.
    """
    hook: Callable[[list[tuple[str, Any]]], Pairs] = Pairs
    try:
        # Numbers stay text: their values are not needed, and Python refuses to convert very long ones.
        found: Pairs = json.loads(raw, object_pairs_hook=hook, parse_int=str, parse_float=str)
    except RecursionError:
        raise NotJson("the line is nested too deeply") from None
    return found


def check_id(request_id: str) -> None:
    """Raises InvalidRequest for an id of more than ``MAX_ID_BYTES``. The id is limited because every frame of
    the answer repeats the id."""
    if len(request_id) > MAX_ID_BYTES or len(request_id.encode()) > MAX_ID_BYTES:
        raise InvalidRequest(f"invalid request: id must have at most {MAX_ID_BYTES} bytes")


def encode(frame: dict[str, Any]) -> bytes:
    """Encodes one frame as a line."""
    return orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)


def encode_error(
    request_id: str,
    code: str,
    message: str,
    retry_after_secs: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> bytes:
    """Encodes an ``error`` frame. ``retry_after_secs`` is sent in whole milliseconds. ``details`` become
    further keys of the frame."""
    # A message may quote a file name, which need not be valid UTF-8.
    message = message.encode("utf-8", "backslashreplace").decode()
    frame: dict[str, Any] = {"type": "error", "id": request_id, "code": code, "message": message}
    if retry_after_secs is not None:
        frame["retry_after_ms"] = max(1, round(retry_after_secs * 1e3))
    frame.update(details or {})
    return encode(frame)


_SHOWN = frozenset(("position", "progress", "downloaded_bytes", "total_bytes"))


def encode_progress(request_id: str, model: str, phase: str, details: Mapping[str, Any]) -> bytes:
    """Encodes a ``progress`` frame for a request that waits in the queue, or waits until its model is loaded.
    Sends only these ``details``: the position, the progress and the numbers of bytes. The other details, such
    as paths, are left out."""
    shown = {key: details[key] for key in details if key in _SHOWN}
    return encode({"type": "progress", "id": request_id, "model": model, "phase": phase, **shown})
