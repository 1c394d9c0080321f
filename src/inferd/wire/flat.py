"""Parses and checks the requests of the embed and rerank surfaces, which are flat JSON objects.

A field is ``None`` if it was absent or ``null``.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from inferd.errors import DecodeError
from inferd.fastpath import may_repeat_a_name
from inferd.wire import frames
from inferd.wire.bounds import PRIORITIES
from inferd.wire.sampling import U32, Behalf, KeepAlive, invalid


class Flat(msgspec.Struct, kw_only=True):
    """The fields that embed and rerank requests share. These fields identify the request and its model, and
    decide the request's place in the queue."""

    id: str = ""
    priority: str | None = None
    deadline_ms: U32 | None = None
    on_behalf_of: Behalf | None = None
    model: str | None = None
    keep_alive: KeepAlive | None = None
    progress: bool | None = None


T = TypeVar("T", bound=Flat)


class Parser(Generic[T]):
    """Parses requests to objects of the class ``kind``."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._keys = frozenset(kind.__struct_fields__)

    def parse(self, line: bytes | memoryview) -> T:
        """Parses the request on ``line``, which has no newline. Raises DecodeError."""
        raw = bytes(line)
        request = frames.decode(self._decoder, raw)
        if may_repeat_a_name(raw):
            frames.pairs(raw).require_unique(self._keys, "$")
        if request.priority is not None and request.priority not in PRIORITIES:
            raise DecodeError("Expected `interactive` or `batch` - at `$.priority`", request.id)
        return request


def check_texts(name: str, texts: list[str], most: int) -> None:
    """Raises InvalidRequest if ``texts`` is empty, has more than ``most`` texts, or has an empty text.
    ``name`` is the name of the request's field."""
    if not texts:
        raise invalid(f"{name} must not be empty")
    if len(texts) > most:
        raise invalid(f"{name} must hold at most {most} strings")
    for i, text in enumerate(texts):
        if not text:
            raise invalid(f"{name}[{i}] must not be empty")
