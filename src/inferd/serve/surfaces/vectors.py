"""The embed and rerank surfaces. The answer to a request is one frame."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Generic, TypeVar

from inferd.engine.backend import Backend
from inferd.engine.events import Embeddings, Ranking
from inferd.engine.requests import EmbedRequest, RankRequest
from inferd.errors import Unavailable
from inferd.serve.observe.metrics import BackendMetrics
from inferd.serve.surface import R, RequestContext, Surface
from inferd.wire import embed, rerank

A = TypeVar("A", Embeddings, Ranking)

# Encoding a million numbers takes a tenth of a second; the encoder releases the GIL meanwhile.
_ENCODE_ASIDE_BYTES = 256 * 1024


class UnarySurface(Surface[R], Generic[R, A]):
    """A surface whose answer is one frame. If a request is ended early, for example at its deadline, the
    answer is an error frame."""

    @abstractmethod
    async def call(self, request: R, backend: Backend) -> A: ...

    @abstractmethod
    def encode(self, request: R, answer: A, backend: Backend) -> bytes: ...

    @abstractmethod
    def size(self, answer: A) -> int:
        """Returns the approximate size in bytes of the numbers in ``answer``."""

    async def answer(
        self, context: RequestContext[R], backend: Backend, metrics: BackendMetrics
    ) -> dict[str, object]:
        call = asyncio.ensure_future(self.call(context.request, backend))
        call.add_done_callback(_heard)
        context.on_interrupt(call.cancel)
        try:
            await asyncio.wait((call,))
        finally:
            call.cancel()
        if call.cancelled():
            raise context.interruption or Unavailable("the backend dropped the request")
        answer = call.result()
        metrics.prompt_tokens += answer.input_tokens
        if self.size(answer) < _ENCODE_ASIDE_BYTES:
            frame = self.encode(context.request, answer, backend)
        else:
            frame = await asyncio.to_thread(self.encode, context.request, answer, backend)
        context.conn.write(frame)
        return {"prompt_tokens": answer.input_tokens}


def _heard(call: asyncio.Task[A]) -> None:
    """Retrieves the exception of ``call``. When the client has gone, nothing else retrieves the exception,
    and asyncio would log this."""
    if not call.cancelled():
        call.exception()


class EmbedSurface(UnarySurface[embed.Request, Embeddings]):
    name = embed.name
    parse = staticmethod(embed.parse)
    validate = staticmethod(embed.validate)

    def needs(self, request: embed.Request) -> frozenset[str]:
        return frozenset({"embed"})

    async def call(self, request: embed.Request, backend: Backend) -> Embeddings:
        wanted = EmbedRequest(inputs=tuple(request.input), dimensions=request.dimensions, task=request.task)
        return await backend.embed(wanted)

    def size(self, answer: Embeddings) -> int:
        return len(answer.vectors)

    def encode(self, request: embed.Request, answer: Embeddings, backend: Backend) -> bytes:
        return embed.encode_embeddings(
            request,
            answer.vectors,
            answer.width,
            input_tokens=answer.input_tokens,
            model=backend.model,
            backend=backend.kind,
        )


class RerankSurface(UnarySurface[rerank.Request, Ranking]):
    name = rerank.name
    parse = staticmethod(rerank.parse)
    validate = staticmethod(rerank.validate)

    def needs(self, request: rerank.Request) -> frozenset[str]:
        return frozenset({"rerank"})

    async def call(self, request: rerank.Request, backend: Backend) -> Ranking:
        return await backend.rank(RankRequest(request.query, tuple(request.documents)))

    def size(self, answer: Ranking) -> int:
        return 4 * len(answer.scores)

    def encode(self, request: rerank.Request, answer: Ranking, backend: Backend) -> bytes:
        return rerank.encode_rerank(
            request,
            answer.scores,
            input_tokens=answer.input_tokens,
            model=backend.model,
            backend=backend.kind,
        )
