"""The rerank surface: a request has a query and documents, and the answer has the scores of the documents,
the best document first.

``parse`` raises ``NotJson`` if a line is not JSON, and ``DecodeError`` if the JSON is not a request.
``validate`` raises ``InvalidRequest`` if a request has invalid values. Of these errors, only ``NotJson``
makes the daemon close the connection. :func:`encode_rerank` returns a whole line.
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
    """A parsed request with documents to rank. The answer has only the ``top_n`` best documents, or all
    documents if ``top_n`` is ``None``."""

    query: str
    documents: list[str]
    top_n: U32 | None = None


parse = Parser(Request).parse


def validate(request: Request) -> None:
    """Raises InvalidRequest if a field has a value that is not allowed."""
    if not request.query:
        raise invalid("query must not be empty")
    check_texts("documents", request.documents, MAX_DOCUMENTS)
    if request.top_n == 0:
        raise invalid("top_n must be at least 1")


def encode_rerank(
    request: Request, scores: Sequence[float], *, input_tokens: int, model: str, backend: str
) -> bytes:
    """Encodes the ``rerank`` frame. ``scores`` has the score of each document of the request. Documents with
    equal scores keep their order."""
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
