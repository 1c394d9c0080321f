"""The embed surface: a request has texts, and the answer has one vector for each text.

``parse`` raises ``NotJson`` if a line is not JSON, and ``DecodeError`` if the JSON is not a request.
``validate`` raises ``InvalidRequest`` if a request has invalid values. Of these errors, only ``NotJson``
makes the daemon close the connection. :func:`encode_embeddings` returns a whole line. Encoding many vectors
takes milliseconds, in which the GIL is released.
"""

from __future__ import annotations

import base64

import orjson

from inferd.fastpath import float_rows
from inferd.wire import frames
from inferd.wire.flat import Flat, Parser, check_texts
from inferd.wire.frames import encode_error as encode_error
from inferd.wire.sampling import U32, invalid

name = "embed"

TASKS = frozenset(
    {
        "retrieval_query",
        "retrieval_document",
        "similarity",
        "classification",
        "clustering",
        "question_answering",
        "fact_verification",
        "code_retrieval_query",
    }
)
ENCODINGS = ("float", "base64")
MAX_INPUTS = 2048


class Request(Flat, kw_only=True):
    """A parsed request with texts to embed. ``encoding`` is the encoding of the vectors in the answer:
    ``float``, ``base64``, or ``None``, which means ``float``."""

    input: list[str]
    dimensions: U32 | None = None
    task: str | None = None
    encoding: str | None = None


parse = Parser(Request).parse


def validate(request: Request) -> None:
    """Raises InvalidRequest if a field has a value that is not allowed."""
    check_texts("input", request.input, MAX_INPUTS)
    if request.dimensions == 0:
        raise invalid("dimensions must be at least 1")
    if request.task is not None and request.task not in TASKS:
        raise invalid("task uses an unknown variant")
    if request.encoding is not None and request.encoding not in ENCODINGS:
        raise invalid("encoding must be `float` or `base64`")


def encode_embeddings(
    request: Request, vectors: bytes, width: int, *, input_tokens: int, model: str, backend: str
) -> bytes:
    """Encodes the ``embeddings`` frame. ``vectors`` holds one vector after another, each of ``width``
    little-endian float32 numbers."""
    rows: list[str] | orjson.Fragment
    if request.encoding == "base64":
        size = 4 * width
        rows = [base64.b64encode(vectors[at : at + size]).decode() for at in range(0, len(vectors), size)]
    else:
        rows = orjson.Fragment(float_rows(vectors, width))
    return frames.encode(
        {
            "type": "embeddings",
            "id": request.id,
            "embeddings": rows,
            "dimensions": width,
            "model": model,
            "usage": {"input_tokens": input_tokens},
            "backend": backend,
        }
    )
