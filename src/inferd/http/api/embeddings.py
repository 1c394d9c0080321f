"""OpenAI's embeddings, and the rerank endpoint of Jina, Cohere and llama-server."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from sys import byteorder
from typing import Any

from inferd.client.vectors import Embeddings, Ranking
from inferd.http.api.fields import Fields


@dataclass(frozen=True, slots=True)
class EmbedBody:
    """The texts to embed, and whether to encode the vectors as base64."""

    model: str
    texts: list[str]
    dimensions: int | None
    base64: bool


def read(body: Any) -> EmbedBody:
    """Parses the body of a request. Raises BadField."""
    fields = Fields(body)
    model, given = fields.required_text("model"), fields.raw("input")
    if _has_tokens(given):
        raise fields.unsupported("input", "must be text; this server takes no token ids")
    texts = fields.texts("input")
    if not texts or not all(texts):
        raise fields.bad("input", "must be a non-empty string or an array of them")
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise fields.bad("encoding_format", "must be float or base64")
    return EmbedBody(model, texts, fields.count("dimensions"), encoding == "base64")


def _has_tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], int | list)


def answer(body: EmbedBody, made: Embeddings) -> dict[str, Any]:
    """Returns the body of the answer. The vectors are in the order of the texts."""
    vectors: Sequence[Any] = made.embeddings
    if body.base64:
        vectors = [as_base64(vector) for vector in vectors]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": made.input_tokens, "total_tokens": made.input_tokens},
    }


def as_base64(vector: Sequence[float]) -> str:
    """Encodes a vector as the base64 of little-endian float32 numbers."""
    floats = array("f", vector)
    if byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


@dataclass(frozen=True, slots=True)
class RerankBody:
    """The documents to rank. With ``with_documents``, the answer also has the texts of the documents."""

    model: str
    query: str
    documents: list[str]
    top_n: int | None
    with_documents: bool


def read_rerank(body: Any) -> RerankBody:
    """Parses the body of a rerank request, as sent to Jina, Cohere and llama-server. Raises BadField."""
    fields = Fields(body)
    documents = [
        each if isinstance(each, str) else Fields(each, f"documents[{number}]").required_text("text")
        for number, each in enumerate(fields.items("documents") or ())
    ]
    if not documents or not all(documents):
        raise fields.bad("documents", "must be an array of non-empty strings")
    top_n = fields.count("top_n")
    if top_n == 0:
        raise fields.bad("top_n", "must be at least 1")
    query = fields.required_text("query")
    with_documents = bool(fields.flag("return_documents"))
    return RerankBody(fields.required_text("model"), query, documents, top_n, with_documents)


def rerank_answer(body: RerankBody, ranking: Ranking) -> dict[str, Any]:
    """Returns the body of the answer, with the best document first."""
    results: list[dict[str, Any]] = []
    for ranked in ranking.results:
        result: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.score}
        if body.with_documents:
            result["document"] = {"text": body.documents[ranked.index]}
        results.append(result)
    return {
        "object": "list",
        "model": body.model,
        "results": results,
        "usage": {"prompt_tokens": ranking.input_tokens, "total_tokens": ranking.input_tokens},
    }
