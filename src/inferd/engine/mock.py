"""A backend that has no model. It answers each generation request with the same items, the ``tape``.

The mock implements the whole interface, so the layers above can be tested without a model. The mock's options
set the speed, the length and the failures of an answer.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from inferd.engine.backend import Backend, Capabilities, Stream
from inferd.engine.events import Done, Embeddings, Event, Ranking, StopReason, Text, Thinking, ToolUse, Usage
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import InferdError, InvalidRequest, NotReady

Pace = Callable[[], Coroutine[Any, Any, None]]


# The mock accepts every feature and ignores it.
_TAKES_ALL = Capabilities(
    v2=True, vision=True, audio=True, tools=True, thinking=True, embed=True, rerank=True, raw=True
)
_WIDTH, _MAX_WIDTH = 8, 65_536


class Mock(Backend):
    """Serves the items of ``tape``. Each item counts as one token. A string becomes a text event.

    Each event waits for ``pace``. If ``drop_after`` is set, each stream ends after that many tokens, without
    ``Done``. If ``error`` is set, ``generate``, ``embed`` and ``rank`` raise it. A test may change
    ``is_ready`` at any time. Vectors and scores depend only on a text's number of bytes, and a shorter
    document scores higher.
    """

    kind = "mock"
    model = "mock"

    def __init__(
        self,
        name: str = "mock",
        *,
        tape: Sequence[str | Thinking | ToolUse] = ("mock-response",),
        pace: Pace | None = None,
        drop_after: int | None = None,
        error: InferdError | None = None,
        is_ready: bool = True,
        capabilities: Capabilities = _TAKES_ALL,
    ) -> None:
        self.name = name
        self.tape = tape
        self.pace = pace
        self.drop_after = drop_after
        self.error = error
        self.is_ready = is_ready
        self._capabilities = capabilities
        self.open_streams: set[MockStream] = set()

    def ready(self) -> bool:
        return self.is_ready

    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def start(self) -> None:
        """Nothing to attach."""

    async def generate(self, request: GenerateRequest) -> Stream:
        self._refuse()
        stream = MockStream(self, request)
        self.open_streams.add(stream)
        return stream

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._refuse()
        width = request.dimensions or _WIDTH
        if width > _MAX_WIDTH:
            raise InvalidRequest(
                f"dimensions is {width} and the vectors of the mock have at most {_MAX_WIDTH}"
            )
        if self.pace is not None:
            await self.pace()
        sizes = [len(text.encode()) for text in request.inputs]
        vectors = array("f", [(i + 1) / (size + 1) for size in sizes for i in range(width)])
        return Embeddings(vectors.tobytes(), width, sum(sizes))

    async def rank(self, request: RankRequest) -> Ranking:
        self._refuse()
        if self.pace is not None:
            await self.pace()
        sizes = [len(text.encode()) for text in request.documents]
        scores = array("f", [1 / (size + 1) for size in sizes])
        return Ranking(tuple(scores), len(request.query.encode()) * len(sizes) + sum(sizes))

    def _refuse(self) -> None:
        if not self.is_ready:
            raise NotReady
        if self.error is not None:
            raise self.error.with_traceback(None)  # otherwise each raise keeps one more request alive

    async def close(self) -> None:
        for stream in tuple(self.open_streams):
            stream.close()


class MockStream(Stream):
    """One reading of the tape."""

    def __init__(self, backend: Mock, request: GenerateRequest) -> None:
        self._backend = backend
        self._pace = backend.pace
        self._pacing: asyncio.Future[None] | None = None
        self._ended = False
        self._cancelled = False
        self._sent = 0
        self._tokens = backend.tape[: request.max_tokens]
        calls = any(isinstance(token, ToolUse) for token in self._tokens)
        self._tool_missing = not calls and (request.tool_choice == "required" or bool(request.tool_name))
        self._last: StopReason = "tool_use" if calls else "end"
        if len(self._tokens) < len(backend.tape):
            self._last = "length"

    async def __anext__(self) -> Event:
        if self._pace is not None and not (self._cancelled or self._ended):
            await self._keep_pace(self._pace)
        if self._ended or self._sent == self._backend.drop_after:
            self.close()
            raise StopAsyncIteration
        if self._cancelled or self._sent == len(self._tokens):
            self.close()
            reason = "cancelled" if self._cancelled else self._last
            return Done(reason, Usage(0, self._sent), tool_missing=self._tool_missing)
        self._sent += 1
        token = self._tokens[self._sent - 1]
        return Text(token) if isinstance(token, str) else token

    async def _keep_pace(self, pace: Pace) -> None:
        self._pacing = asyncio.ensure_future(pace())
        try:
            await asyncio.wait((self._pacing,))
        finally:
            self._pacing.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        if self._pacing is not None:
            self._pacing.cancel()

    def close(self) -> None:
        self._ended = True
        self._backend.open_streams.discard(self)
