"""A backend that uses a server with OpenAI's API for chat completions, embeddings and reranking.

Options that a request leaves open are not sent, so the server's defaults apply. The backend accepts the known
ways in which compatible servers deviate from the API. Any other malformed response counts as a failure of the
server.
"""

from __future__ import annotations

import asyncio
import functools
import math
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
import msgspec
import orjson

from inferd.config.entries import OpenAICompatEntry
from inferd.engine.backend import Accelerator, Backend, Capabilities, Finished, Stream
from inferd.engine.events import Done, Embeddings, Event, Ranking, Usage
from inferd.engine.remote import openai_request, pictures, sse
from inferd.engine.remote.http import UNREADABLE, Count, Upstream, let_end, without_keys
from inferd.engine.remote.look import look
from inferd.engine.remote.openai_answer import END, Answer
from inferd.engine.remote.stream import RemoteStream
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import (
    BackendInternal,
    ConfigError,
    EmbedUnsupported,
    InvalidRequest,
    NotReady,
    RerankUnsupported,
    Unavailable,
    Unsupported,
)

T = TypeVar("T")

# The limit of a response with vectors; 2,048 vectors of 4,096 numbers are about 180 MB as text.
_MAX_ANSWER_BYTES = 256 * 1024 * 1024
# Larger responses are decoded in a thread: a million numbers take a tenth of a second.
_ASIDE_BYTES = 256 * 1024
# The longest wait for the token counts after the answer, which is complete without them.
_SETTLING_SECS = 2.0
_MAX_FLOAT32 = 3.4028234663852886e38


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int


class _Counts(msgspec.Struct):
    prompt_tokens: Count | None = None
    total_tokens: Count | None = None

    @property
    def input_tokens(self) -> int:
        return self.prompt_tokens or self.total_tokens or 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Counts | None = None


class _Score(msgspec.Struct):
    index: int
    relevance_score: float


class _Scores(msgspec.Struct):
    results: list[_Score]
    usage: _Counts | None = None


class OpenAICompat(Backend):
    """One model of the server of ``entry``.

    ``embed`` and ``rerank`` are the defaults for the entry's options of the same names. If the entry declares
    that its model embeds or ranks, the backend does not generate text. Otherwise images, tools and thinking
    are all offered, because the model's features are not known in advance.
    """

    kind = "openai-compat"

    def __init__(self, entry: OpenAICompatEntry, *, embed: bool = False, rerank: bool = False) -> None:
        self.name = entry.name
        self.model = entry.model
        self._base_url = entry.base_url
        self._top_k = entry.top_k
        self._upstream = Upstream(entry.base_url, entry.timeout_secs)
        self._headers = {"content-type": "application/json"}
        if entry.api_key is not None:
            key = entry.api_key.reveal()
            if not key.isascii():
                raise ConfigError(
                    f"the API key of backend {entry.name!r} has characters that HTTP cannot carry"
                )
            self._headers["authorization"] = f"Bearer {key}"
        text = not (entry.embed or entry.rerank)
        self._capabilities = Capabilities(
            v2=text,
            vision=text,
            tools=text,
            thinking=text,
            embed=(text and embed) if entry.embed is None else entry.embed,
            rerank=(text and rerank) if entry.rerank is None else entry.rerank,
            accelerator=Accelerator(kind="remote"),
        )
        self._running: set[RemoteStream] = set()
        self._open = False

    def ready(self) -> bool:
        return self._open

    async def look(self) -> int | None:
        return await look(self._upstream, self._base_url, self._headers)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def start(self) -> None:
        self._open = True

    async def generate(self, request: GenerateRequest) -> Stream:
        """Starts a request. The stream raises the server's errors, and can be cancelled while the server is
        silent."""
        if not self._open:
            raise NotReady
        if not self._capabilities.v2:
            raise Unsupported(f"backend {self.name!r} is not configured to generate text")
        if request.max_tokens == 0:
            return Finished(Done("length", Usage(0, 0)))
        return RemoteStream(self._answer(request), self._running)

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        make = functools.partial(openai_request.chat, top_k=self._top_k)
        if pictures.are_large(request.messages):
            body = await asyncio.to_thread(make, self.model, request)
        else:
            body = make(self.model, request)
        required = request.tool_choice == "required" or bool(request.tool_name)
        answer = Answer(self._upstream.host, tool_required=required)
        try:
            with without_keys(self._headers):
                async with aclosing(self._stream(body)) as pieces:
                    while (data := await _next(pieces, soon=answer.finished)) is not None:
                        for event in answer.feed(data):
                            yield event
        except UNREADABLE:
            raise self._unreadable() from None
        except Unavailable:
            if not answer.finished:
                raise
        for event in answer.end():
            yield event

    async def _stream(self, body: bytes) -> AsyncGenerator[str, None]:
        """Yields the data of each of the server's events, up to and including the end marker."""
        decoder = sse.Decoder()
        async with self._upstream.post(
            f"{self._base_url}/v1/chat/completions", body, {**self._headers, "accept": "text/event-stream"}
        ) as response:
            if response.headers.get("content-type", "").startswith("application/json"):
                # The server ignored the request to stream; the whole answer is one chunk.
                yield (await self._upstream.read_all(response, at_most=sse.MAX_EVENT_CHARS)).decode()
                yield END
                return
            chunks = response.aiter_raw()
            async for chunk in chunks:
                for data in self._decode(decoder, chunk):
                    yield data
                    if data == END:
                        await let_end(chunks)
                        return
            for data in self._decode(decoder, b"", last=True):
                yield data

    def _decode(self, decoder: sse.Decoder, chunk: bytes, *, last: bool = False) -> list[str]:
        try:
            return decoder.feed(chunk, last=last)
        except ValueError:
            raise self._unreadable() from None

    def _unreadable(self) -> BackendInternal:
        return BackendInternal(f"{self._upstream.host} sent an answer that cannot be read")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        body = {"model": self.model, "input": request.inputs, "encoding_format": "float"}
        try:
            answer = await self._ask("embeddings", body)
        except Unsupported:
            raise EmbedUnsupported(f"{self._upstream.host} does not embed with {self.model!r}") from None
        if len(answer) < _ASIDE_BYTES:
            return self._embeddings(answer, request)
        return await asyncio.to_thread(self._embeddings, answer, request)

    def _embeddings(self, answer: bytes, request: EmbedRequest) -> Embeddings:
        found = self._read(answer, _Vectors)
        rows: list[list[float]] = [[]] * len(request.inputs)
        for vector in found.data:
            if 0 <= vector.index < len(rows):
                rows[vector.index] = vector.embedding
        width = len(rows[0])
        if not width or any(len(row) != width for row in rows):
            raise self._unreadable()
        dimensions = width if request.dimensions is None else request.dimensions
        if not 1 <= dimensions <= width:
            raise InvalidRequest(
                f"dimensions is {dimensions} and the vectors of this model have {width}: ask for 1 to {width}"
            )
        vectors = array("f")
        for row in rows:
            vectors.extend(self._unit(row[:dimensions]))
        tokens = 0 if found.usage is None else found.usage.input_tokens
        return Embeddings(vectors.tobytes(), dimensions, tokens)

    def _unit(self, row: list[float]) -> list[float]:
        norm = math.hypot(*row)
        if not 0 < norm < math.inf:
            raise self._unreadable()
        return [number / norm for number in row]

    async def rank(self, request: RankRequest) -> Ranking:
        body = {"model": self.model, "query": request.query, "documents": request.documents}
        try:
            answer = await self._ask("rerank", body)
        except Unsupported:
            raise RerankUnsupported(f"{self._upstream.host} does not rerank with {self.model!r}") from None
        found = self._read(answer, _Scores)
        scores = {score.index: score.relevance_score for score in found.results}
        if set(scores) != set(range(len(request.documents))) or not all(map(_is_float32, scores.values())):
            raise self._unreadable()
        tokens = 0 if found.usage is None else found.usage.input_tokens
        return Ranking(tuple(scores[i] for i in range(len(scores))), tokens)

    async def _ask(self, what: str, body: dict[str, Any]) -> bytes:
        if not self._open:
            raise NotReady
        return await self._upstream.read(
            f"{self._base_url}/v1/{what}", orjson.dumps(body), self._headers, at_most=_MAX_ANSWER_BYTES
        )

    def _read(self, answer: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except UNREADABLE:
            raise self._unreadable() from None

    async def close(self) -> None:
        self._open = False
        for stream in tuple(self._running):
            await stream.closed()
        await self._upstream.close()


async def _next(pieces: AsyncGenerator[str, None], *, soon: bool) -> str | None:
    """Returns the next chunk, or ``None`` at the end. With ``soon``, also returns ``None`` if no chunk comes
    within ``_SETTLING_SECS``."""
    with anyio.move_on_after(_SETTLING_SECS if soon else None):
        return await anext(pieces, None)
    return None


def _is_float32(number: float) -> bool:
    return abs(number) <= _MAX_FLOAT32
