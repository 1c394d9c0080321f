"""Requests that are one flat JSON object: code shared by embed and rerank.

A ``None`` field was absent or ``null``.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from inferd.errors import DecodeError
from inferd.wire import frames
from inferd.wire.bounds import PRIORITIES
from inferd.wire.sampling import U32, Behalf, KeepAlive, invalid


class Flat(msgspec.Struct, kw_only=True):
    """The fields for identification and queueing."""

    id: str = ""
    priority: str | None = None
    deadline_ms: U32 | None = None
    on_behalf_of: Behalf | None = None
    model: str | None = None
    keep_alive: KeepAlive | None = None
    progress: bool | None = None


T = TypeVar("T", bound=Flat)


class Parser(Generic[T]):
    """Parses requests of one kind from their lines."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._keys = frozenset(kind.__struct_fields__)
        self._needles = tuple(f'"{key}"'.encode() for key in self._keys)

    def parse(self, line: bytes | memoryview) -> T:
        """The request on one line, without its newline. Raises DecodeError."""
        raw = bytes(line)
        request = frames.decode(self._decoder, raw)
        # A repeated key repeats as bytes, so counting bytes clears nearly every line without a second parse.
        if frames.has_escaped_key_letter(raw) or any(raw.count(needle) > 1 for needle in self._needles):
            frames.pairs(raw).require_unique(self._keys, "$")
        if request.priority is not None and request.priority not in PRIORITIES:
            raise DecodeError("Expected `interactive` or `batch` - at `$.priority`", request.id)
        return request


def check_texts(name: str, texts: list[str], most: int) -> None:
    """Raises InvalidRequest unless there are 1 to ``most`` texts and none is empty."""
    if not texts:
        raise invalid(f"{name} must not be empty")
    if len(texts) > most:
        raise invalid(f"{name} must hold at most {most} strings")
    for i, text in enumerate(texts):
        if not text:
            raise invalid(f"{name}[{i}] must not be empty")
