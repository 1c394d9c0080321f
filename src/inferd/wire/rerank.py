"""The rerank surface: a query and documents in, scores of the documents out, the best first.

``parse`` raises ``DecodeError`` for a line that is not a request; the connection is then closed. ``validate``
raises ``InvalidRequest`` for a request with invalid values; the connection stays open. The encoder returns a
whole line.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import orjson

from inferd.fastpath import float_rows
from inferd.wire import frames
from inferd.wire.flat import Flat, Parser, check_texts
from inferd.wire.frames import encode_error as encode_error
from inferd.wire.sampling import U32, invalid

name = "rerank"

MAX_DOCUMENTS = 256


class Request(Flat, kw_only=True):
    """Documents to rank, as parsed; only the best ``top_n`` are returned."""

    query: str
    documents: list[str]
    top_n: U32 | None = None


parse = Parser(Request).parse


def validate(request: Request) -> None:
    """Raises InvalidRequest."""
    if not request.query:
        raise invalid("query must not be empty")
    check_texts("documents", request.documents, MAX_DOCUMENTS)
    if request.top_n == 0:
        raise invalid("top_n must be at least 1")


def encode_rerank(
    request: Request, scores: Sequence[float], *, input_tokens: int, model: str, backend: str
) -> bytes:
    """The ``rerank`` frame; ``scores`` are float32, one per document. Equal scores keep their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    texts = float_rows(array("f", scores), 1)[2:-2].split(b"],[")
    return frames.encode(
        {
            "type": "rerank",
            "id": request.id,
            "results": [{"index": index, "score": orjson.Fragment(texts[index])} for index in order],
            "model": model,
            "usage": {"input_tokens": input_tokens},
            "backend": backend,
        }
    )
