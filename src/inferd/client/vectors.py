"""Requests for embeddings of texts and for the scores of documents. A long list takes several requests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from inferd.client.protocol import MAX_LINE_BYTES, PendingRequest, encode
from inferd.errors import RequestFailed

# A request must not hold up other clients' requests for long, and its reply must fit on a line.
MAX_INPUTS = 512
MAX_DOCUMENTS = 256
# Bytes for the request's id and the JSON keys.
_FRAME_BYTES = 128

Frame = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One vector for each text, in the order of the texts. Each vector has ``dimensions`` numbers and the
    norm 1."""

    embeddings: list[list[float]]
    dimensions: int
    model: str
    input_tokens: int
    backend: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's index in the caller's list, and the document's score. A higher score is better."""

    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The documents, the best first. Documents with equal scores keep the order of the caller's list."""

    results: list[Ranked]
    model: str
    input_tokens: int
    backend: str


class WholeRequest(PendingRequest[Frame, Frame]):
    """A request whose reply is one frame. ``start`` is the index in the caller's list at which the texts of
    the request begin."""

    def __init__(self, request_id: str, body: Mapping[str, Any], start: int) -> None:
        super().__init__(request_id, body)
        self._start = start

    def event(self, kind: str, frame: Frame) -> Frame:
        needed = {"embeddings": ("embeddings", "dimensions"), "rerank": ("results",)}[kind]
        frame["usage"]["input_tokens"]
        for key in (*needed, "model", "backend"):
            frame[key]
        self.done = frame
        return frame

    def _failed(self, code: str, message: str) -> RequestFailed:
        if self._start:
            message += f" (counted from number {self._start} of the list, where its request began)"
        return RequestFailed(code, message)


T = TypeVar("T")
Plan = Generator[WholeRequest, Frame, T]
"""A generator that yields requests, receives the reply of each request, and returns the combined result."""


def embed(next_id: Callable[[], str], texts: Sequence[str], options: Mapping[str, Any]) -> Plan[Embeddings]:
    """Embeds any number of texts."""
    vectors: list[list[float]] = []
    tokens = 0
    for start, batch in _batches(texts, MAX_LINE_BYTES - _FRAME_BYTES - len(encode(options)), MAX_INPUTS):
        frame = yield WholeRequest(next_id(), {"input": batch, **options}, start)
        vectors += frame["embeddings"]
        tokens += frame["usage"]["input_tokens"]
    return Embeddings(
        embeddings=vectors,
        dimensions=frame["dimensions"],
        model=frame["model"],
        input_tokens=tokens,
        backend=frame["backend"],
    )


def rerank(
    next_id: Callable[[], str],
    query: str,
    documents: Sequence[str],
    top_n: int | None,
    options: Mapping[str, Any] | None = None,
) -> Plan[Ranking]:
    """Ranks any number of documents, in batches.

    The batches do not change the scores, because a score does not depend on the other documents.
    """
    options = options or {}
    results: list[Ranked] = []
    tokens = 0
    room = MAX_LINE_BYTES - _FRAME_BYTES - len(encode(query)) - len(encode(options))
    for start, batch in _batches(documents, room, MAX_DOCUMENTS):
        body = {"query": query, "documents": batch, **options, **({} if top_n is None else {"top_n": top_n})}
        frame = yield WholeRequest(next_id(), body, start)
        results += [Ranked(start + each["index"], each["score"]) for each in frame["results"]]
        tokens += frame["usage"]["input_tokens"]
    results.sort(key=lambda ranked: (-ranked.score, ranked.index))
    return Ranking(
        results=results[:top_n], model=frame["model"], input_tokens=tokens, backend=frame["backend"]
    )


def _batches(texts: Sequence[str], room: int, most: int) -> Iterator[tuple[int, list[str]]]:
    """Splits the texts into batches of at most ``most`` texts, which together take at most ``room`` bytes of
    JSON. A text of more than ``room`` bytes has a batch of its own. Yields the index of a batch's first text,
    and the batch. Without texts, yields one empty batch."""
    start, batch, left = 0, list[str](), room
    for place, text in enumerate(texts):
        size = len(encode(text)) + 1
        if batch and (size > left or len(batch) == most):
            yield start, batch
            start, batch, left = place, [], room
        batch.append(text)
        left -= size
    yield start, batch
