"""Reads the header of a GGUF file without llama.cpp.

Files are untrusted: counts and sizes are bounded, and reading stops at ``MAX_HEADER_BYTES``. A card keeps
only the length of a list, and for a short list of integers also the largest integer.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from inferd.errors import ModelError

MAX_HEADER_BYTES = 256 << 20
_MAX_KEYS = 10_000
_MAX_TEXT_BYTES = 1 << 20
# A freed block that is larger than this would stay in the memory of the daemon.
_CHUNK_BYTES = 64 << 10

Value = int | float | bool | str

# GGUF value type → letter of its layout in ``struct``.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_LENGTH = struct.Struct("<Q")

# `general.file_type` in the numbering of llama.cpp; newer types are shown as their number.
_QUANTISATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 32: "BF16",
    38: "MXFP4",
}  # fmt: skip


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a model that the header of its file states. A number that the header lacks is 0, and
    a missing text is empty.

    ``parameters`` is the number of weights. ``width`` is the length of an embedding. ``kv_bytes_per_token``
    is the number of bytes that the KV cache needs for one token, if the cache has 16-bit numbers. ``parts``
    is the number of files of a split model, else 1. ``cut_short`` is true if the file ends before its last
    tensor begins, as an unfinished download does. ``pooling`` is true for an embedding model, and ``ranks``
    for a ranking model. ``tools`` and ``thinking`` are guesses from the text of a generating model's chat
    template. Only llama.cpp's analysis of the template finds what the template supports
    (:mod:`inferd.daemon.templates`).
    """

    architecture: str
    name: str
    quantisation: str
    parameters: int
    context: int
    layers: int
    width: int
    vocabulary: int
    kv_bytes_per_token: int
    file_bytes: int
    chat_template: bool
    tools: bool
    thinking: bool
    pooling: bool
    ranks: bool
    parts: int = 1
    cut_short: bool = False

    def memory_bytes(self, n_ctx: int, n_parallel: int, n_batch: int = 512) -> int:
        """Estimates the memory in bytes of an engine process that runs ``n_parallel`` requests of ``n_ctx``
        tokens each. The estimate includes the weights, the KV cache, the buffers of one decode step, and
        the process itself.
        """
        # llama.cpp's own dry run (`no_alloc`) counts the buffers of the largest step in full. On a CPU, a
        # process touches a small part of them: a model of 384 MiB for four requests of 8,192 tokens takes
        # 536 MiB, this estimate says 632, and the dry run 1,060.
        cache = self.kv_bytes_per_token * n_ctx * n_parallel
        step = 4 * n_batch * max(4096, self.vocabulary // 4)
        return self.file_bytes + cache + step + PROCESS_BYTES

    def with_draft(self, draft: ModelCard) -> ModelCard:
        """Returns a copy of this card whose :meth:`memory_bytes` also includes the model of ``draft``."""
        return replace(
            self,
            file_bytes=self.file_bytes + draft.file_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token + draft.kv_bytes_per_token,
        )


PROCESS_BYTES = 96 << 20
"""The memory of an engine process without a model."""
_THINKING = ("reasoning_content", "</think>", "[THINK]", "<|channel|>")
_ALIGNMENT_KEY, _ALIGNMENT = "general.alignment", 32
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
MAX_PARTS = 1000


def part_names(name: str) -> list[str]:
    """Returns the names of all files of a split model, in order, if ``name`` is the name of the first file.
    For any other ``name``, returns an empty list."""
    match = _SPLIT_NAME.fullmatch(name)
    if match is None or int(match["number"]) != 1 or not 1 < int(match["count"]) <= MAX_PARTS:
        return []
    count = match["count"]
    return [f"{match['stem']}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def plain_name(name: str) -> str:
    """Returns the file name ``name`` without the suffix ``.gguf``. If the file is part of a split model, also
    removes ``-NUMBER-of-COUNT``."""
    match = _SPLIT_NAME.fullmatch(name)
    return match["stem"] if match is not None else name.removesuffix(".gguf")


def whole_card(card: ModelCard, parts: Iterable[ModelCard]) -> ModelCard:
    """Returns the card of a split model. ``card`` is the card of the model's first file, and ``parts`` are
    the cards of the model's other files."""
    others = list(parts)
    return replace(
        card,
        parameters=card.parameters + sum(part.parameters for part in others),
        file_bytes=card.file_bytes + sum(part.file_bytes for part in others),
    )


def read_card(fd: int, path: object = "the file") -> ModelCard:
    """Reads the header of an open model file, and returns the model's card. Raises ModelError if the GGUF
    header is invalid or cut short."""
    size = os.fstat(fd).st_size
    reader = _Reader(fd, min(size, MAX_HEADER_BYTES))
    try:
        n_tensors, n_keys = reader.head(path)
        values, lengths = reader.values(n_keys)
        parameters = sum(reader.tensor_sizes(n_tensors))
        cut_short = n_tensors > 0 and size <= reader.last_tensor_at(values.get(_ALIGNMENT_KEY))
    except (EOFError, KeyError, ValueError, struct.error):
        raise ModelError(f"{path} has a GGUF header that is damaged or cut short") from None
    return replace(_card(values, lengths, parameters, size), cut_short=cut_short)


def card_of_files(paths: Sequence[Path]) -> ModelCard:
    """Reads the headers of the files ``paths`` of one model, and returns the model's card. The files of a
    split model must be in order.

    Raises ModelError and OSError.
    """
    cards = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            cards.append(read_card(fd, path))
        finally:
            os.close(fd)
    return whole_card(cards[0], cards[1:])


def has_thinking(template: str) -> bool:
    """Whether a chat template mentions the model's thinking."""
    return any(mark in template for mark in _THINKING)


def read_vocabulary(fd: int, path: object = "the file") -> list[bytes]:
    """Returns the texts of a model's tokens in the order of their ids, or an empty list if the file has no
    vocabulary. Raises ModelError if the GGUF header is invalid or cut short."""
    reader = _Reader(fd, min(os.fstat(fd).st_size, MAX_HEADER_BYTES))
    try:
        return reader.texts("tokenizer.ggml.tokens", reader.head(path)[1])
    except (EOFError, KeyError, ValueError, struct.error):
        raise ModelError(f"{path} has a GGUF header that is damaged or cut short") from None


MOST_MORE_TOKENS = 256


def same_vocabulary(one: Sequence[bytes], other: Sequence[bytes]) -> bool:
    """Whether each token id has the same text in both vocabularies. The longer vocabulary may have up to
    ``MOST_MORE_TOKENS`` further tokens at its end (see draft_model.h)."""
    count = min(len(one), len(other))
    return abs(len(one) - len(other)) <= MOST_MORE_TOKENS and one[:count] == other[:count]


class _Reader:
    """Reads the file ``fd`` from its start. A read beyond the first ``limit`` bytes or the end of the file
    raises EOFError."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._at = 0
        self._chunk = b""
        self._chunk_at = 0
        self._last_offset = 0

    def take(self, size: int) -> bytes:
        begin = self._at - self._chunk_at
        if begin < 0 or begin + size > len(self._chunk):
            if self._at + size > self._limit:
                raise EOFError
            self._chunk = os.pread(self._fd, max(size, min(_CHUNK_BYTES, self._limit - self._at)), self._at)
            self._chunk_at, begin = self._at, 0
        data = self._chunk[begin : begin + size]
        if len(data) < size:
            raise EOFError
        self._at += size
        return data

    def skip(self, size: int) -> None:
        self._at += size
        if self._at > self._limit:
            raise EOFError

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def head(self, path: object) -> tuple[int, int]:
        """Reads the start of the GGUF header. Returns the number of tensors and the number of metadata keys.
        Raises ModelError if the file is no GGUF file or has an unsupported version."""
        if self.take(4) != b"GGUF":
            raise ModelError(f"{path} is no GGUF file")
        version, n_tensors, n_keys = self.unpack("<IQQ")
        if not 2 <= version <= 3 or n_keys > _MAX_KEYS or n_tensors > 1_000_000:
            raise ModelError(
                f"{path} has a GGUF header that cannot be read (version {version}, {n_keys} keys)"
            )
        return n_tensors, n_keys

    def text(self) -> str:
        (size,) = self.unpack("<Q")
        if size > _MAX_TEXT_BYTES:
            raise ValueError(size)
        return self.take(size).decode("utf-8", "replace")

    def values(self, n_keys: int) -> tuple[dict[str, Value], dict[str, int]]:
        """Reads the metadata. Returns the strings and numbers by key, and the lengths of the lists by key.
        The first dictionary also has the largest integer of each short list of integers."""
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_keys):
            key = self.text()
            (kind,) = self.unpack("<I")
            if kind == _TEXT:
                values[key] = self.text()
            elif kind == _LIST:
                lengths[key], first = self._pass_over_list()
                if first is not None:
                    values[key] = first
            else:
                values[key] = struct.unpack("<" + _SCALARS[kind], self.take(struct.calcsize(_SCALARS[kind])))[
                    0
                ]
        return values, lengths

    def _pass_over_list(self) -> tuple[int, Value | None]:
        """Skips a list. Returns the length of the list and, if the list has at most 1,024 integers, the
        largest of these integers. A short list may give the number of attention heads of each layer."""
        kind, count = self.unpack("<IQ")
        if kind == _TEXT:
            self._pass_over_texts(count)
            return count, None
        if kind not in _SCALARS:
            raise ValueError(kind)
        width = struct.calcsize("<" + _SCALARS[kind])
        if count <= 1024 and kind not in (6, 7, 12):
            numbers = struct.unpack(f"<{count}{_SCALARS[kind]}", self.take(count * width))
            return count, max(numbers, default=0)
        self.skip(count * width)
        return count, None

    def _pass_over_texts(self, count: int) -> None:
        """Skips ``count`` texts. A vocabulary may have several hundred thousand texts, so the loop avoids a
        call for each text."""
        length_at = _LENGTH.unpack_from
        while count:
            self.skip(*self.unpack("<Q"))  # reads the next chunk
            count -= 1
            chunk, at = self._chunk, self._at - self._chunk_at
            last = len(chunk) - _LENGTH.size
            while count and at <= last:
                at += _LENGTH.size + length_at(chunk, at)[0]
                count -= 1
            self._at = self._chunk_at + at
            self.skip(0)  # may be beyond the end

    def texts(self, wanted: str, n_keys: int) -> list[bytes]:
        """Returns the texts in the list of the key ``wanted``, or an empty list if the file has no such
        list."""
        for _ in range(n_keys):
            key = self.text()
            (kind,) = self.unpack("<I")
            if key == wanted and kind == _LIST:
                kind, count = self.unpack("<IQ")
                if kind != _TEXT:
                    raise ValueError(kind)
                return [self.take(*self.unpack("<Q")) for _ in range(count)]
            if kind == _TEXT:
                self.skip(*self.unpack("<Q"))
            elif kind == _LIST:
                self._pass_over_list()
            else:
                self.skip(struct.calcsize(_SCALARS[kind]))
        return []

    def tensor_sizes(self, n_tensors: int) -> Iterator[int]:
        """Yields the number of elements of each tensor."""
        for _ in range(n_tensors):
            self.text()
            (n_dimensions,) = self.unpack("<I")
            if n_dimensions > 8:
                raise ValueError(n_dimensions)
            yield math.prod(self.unpack(f"<{n_dimensions}Q"))
            _, offset = self.unpack("<IQ")
            self._last_offset = max(self._last_offset, offset)

    def last_tensor_at(self, alignment: Value | None) -> int:
        """Returns where the last tensor begins in the file. All tensors must have been read."""
        step = alignment if isinstance(alignment, int) and alignment > 0 else _ALIGNMENT
        return -(-self._at // step) * step + self._last_offset


def _card(values: Mapping[str, Value], lengths: Mapping[str, int], parameters: int, size: int) -> ModelCard:
    def text(key: str) -> str:
        value = values.get(key, "")
        return value if isinstance(value, str) else ""

    family = text("general.architecture")

    def number(key: str) -> int:
        value = values.get(f"{family}.{key}", 0)
        return int(value) if isinstance(value, int | float) and 0 <= value < 2**48 else 0

    layers, heads, width = number("block_count"), number("attention.head_count"), number("embedding_length")
    kv_heads = number("attention.head_count_kv") or heads
    of_head = width // heads if heads else 0
    keys, vals = number("attention.key_length") or of_head, number("attention.value_length") or of_head
    kind = values.get("general.file_type")
    pooling = number("pooling_type")
    template = text("tokenizer.chat_template")
    writes = pooling not in (1, 2, 3, 4)
    split = values.get("split.count", 1)
    return ModelCard(
        architecture=family,
        name=text("general.name"),
        quantisation=_QUANTISATIONS.get(kind, f"type {kind}") if isinstance(kind, int) else "",
        parameters=parameters,
        context=number("context_length"),
        layers=layers,
        width=width,
        vocabulary=lengths.get("tokenizer.ggml.tokens", 0),
        kv_bytes_per_token=2 * layers * kv_heads * (keys + vals),
        file_bytes=size,
        chat_template=bool(template),
        tools=writes and "tools" in template,
        thinking=writes and has_thinking(template),
        pooling=pooling in (1, 2, 3),
        ranks=pooling == 4,
        parts=split if isinstance(split, int) and 0 < split < 10_000 else 1,
    )
