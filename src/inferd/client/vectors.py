"""Vectors of texts, and scores of documents. Long lists go to the daemon in several requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferd.client.channel import MAX_LINE_BYTES, Channel, Reply, encode
from inferd.errors import RequestFailed

# Beside other clients' requests one of ours should not take long, and its reply has to fit on a line.
MAX_INPUTS = 512
MAX_DOCUMENTS = 256
# Room for the request's id and the keys around what is counted.
_FRAME_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One vector of length 1 for each text, in their order, each of ``dimensions`` numbers."""

    embeddings: list[list[float]]
    dimensions: int
    model: str
    input_tokens: int
    backend: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the request, and its score; more is better."""

    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The documents, the best first; those of equal score in their order."""

    results: list[Ranked]
    model: str
    input_tokens: int
    backend: str


def embed(channel: Channel, texts: Sequence[str], options: Mapping[str, Any]) -> Embeddings:
    """Raises RequestFailed, which tells where the batch began unless it was the first."""
    vectors: list[list[float]] = []
    tokens = 0
    for start, batch in _batches(texts, MAX_LINE_BYTES - _FRAME_BYTES - len(encode(options)), MAX_INPUTS):
        frame = _ask(channel, {"input": batch, **options}, start)
        vectors += frame["embeddings"]
        tokens += frame["usage"]["input_tokens"]
    return Embeddings(
        embeddings=vectors,
        dimensions=frame["dimensions"],
        model=frame["model"],
        input_tokens=tokens,
        backend=frame["backend"],
    )


def rerank(channel: Channel, query: str, documents: Sequence[str], top_n: int | None) -> Ranking:
    """Raises RequestFailed as :func:`embed` does. A document's score does not depend on the others."""
    results: list[Ranked] = []
    tokens = 0
    for start, batch in _batches(
        documents, MAX_LINE_BYTES - _FRAME_BYTES - len(encode(query)), MAX_DOCUMENTS
    ):
        body = {"query": query, "documents": batch, **({} if top_n is None else {"top_n": top_n})}
        frame = _ask(channel, body, start)
        results += [Ranked(start + each["index"], each["score"]) for each in frame["results"]]
        tokens += frame["usage"]["input_tokens"]
    results.sort(key=lambda ranked: (-ranked.score, ranked.index))
    return Ranking(
        results=results[:top_n], model=frame["model"], input_tokens=tokens, backend=frame["backend"]
    )


def _batches(texts: Sequence[str], room: int, most: int) -> Iterator[tuple[int, list[str]]]:
    """The texts in lists that fit on a line of their own, each with the place of its first; at least one."""
    start, batch, left = 0, list[str](), room
    for place, text in enumerate(texts):
        size = len(encode(text)) + 1
        if batch and (size > left or len(batch) == most):
            yield start, batch
            start, batch, left = place, [], room
        batch.append(text)
        left -= size
    yield start, batch


class _Whole(Reply[Mapping[str, Any]]):
    """A reply that comes in one frame."""

    def _event(self, kind: str, frame: Mapping[str, Any]) -> Mapping[str, Any] | None:
        needed = {"embeddings": ("embeddings", "dimensions"), "rerank": ("results",)}.get(kind)
        if needed is None:
            return None
        frame["usage"]["input_tokens"]
        for key in (*needed, "model", "backend"):
            frame[key]
        return frame

    def _is_last(self, event: Mapping[str, Any]) -> bool:
        return True


def _ask(channel: Channel, body: Mapping[str, Any], start: int) -> Mapping[str, Any]:
    try:
        with _Whole(channel, body) as reply:
            return next(reply)
    except RequestFailed as error:
        if not start:
            raise
        where = f"{error} (counted from number {start} of the list, where its request began)"
        raise RequestFailed(error.wire_code, where) from None
