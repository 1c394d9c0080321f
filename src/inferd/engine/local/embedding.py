"""The :class:`~inferd.engine.backend.Backend` for embedding and ranking models on llama.cpp.

A request becomes a job. First, one of two threads converts all texts of the job to token sequences and checks
them. A third thread computes batches of whole sequences, for all jobs. A batch takes one sequence of each job
in turn until it is full, so concurrent requests share a batch, and a short request does not wait until a long
one has ended. The GIL is released while a batch is computed. A cancelled job is left out of the next batch.
If all jobs of a batch are cancelled, the batch is interrupted.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from inferd import log
from inferd.engine.backend import Backend, Capabilities, Stream
from inferd.engine.events import Embeddings, Ranking
from inferd.engine.local import _llama, embed_prefixes
from inferd.engine.local.child.messages import Pulse
from inferd.engine.local.loading import GGML_ERROR, accelerator_of, loading, pass_on_log
from inferd.engine.local.opening import MAX_SEQUENCES, LlamaCppConfig, check_gpu, open_embedder, open_model
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import (
    BackendInternal,
    EmbedUnsupported,
    InvalidRequest,
    ModelError,
    NotReady,
    PromptTooLong,
    RerankUnsupported,
    Unavailable,
    Unsupported,
)
from inferd.progress import Progress

R = TypeVar("R")

_log = log.get("embedding")

_CLOSING = "the backend is closing"
_TOKEN_BYTES = 4
# On a CPU larger batches are no faster, and take longer to end.
_CPU_BATCH_TOKENS = 256


def _strips_accents(model: _llama.Model) -> bool:
    """Returns whether the tokenizer removes accents. Reads the model file's metadata as llama.cpp does."""
    if _llama.metadata(model, "tokenizer.ggml.model") != "bert":
        return False
    lowercase = _llama.metadata(model, "tokenizer.ggml.normalizer.lowercase") or "true"
    return (_llama.metadata(model, "tokenizer.ggml.normalizer.strip_accents") or lowercase) == "true"


class _Job:
    """One request. A thread of the pool makes its ``sequences``. The computing thread adds its ``rows`` in
    the same order."""

    def __init__(self, finish: Callable[[bytes], Any], future: asyncio.Future[Any]) -> None:
        self.finish = finish
        self.future = future
        self.sequences: list[bytes] = []
        self.rows: list[bytes] = []
        self.taken = 0
        self.cancelled = False

    def prepare(self, sequences: Iterator[bytes]) -> None:
        """Makes the sequences. Stops early if the client leaves."""
        for sequence in sequences:
            if self.cancelled:
                return
            self.sequences.append(sequence)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.sequences)) // _TOKEN_BYTES

    def settle(self, result: object) -> None:
        """Gives ``result`` to the waiting coroutine. If ``result`` is an exception, the coroutine raises it.
        Called from any thread."""
        self.future.get_loop().call_soon_threadsafe(self._settle, result)

    def _settle(self, result: object) -> None:
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class EmbeddingModel(Backend):
    """One loaded model that makes vectors, or scores if its pooling is ``rank``. Create it with
    :meth:`load`."""

    kind = "llamacpp"

    def __init__(self, config: LlamaCppConfig, model: _llama.Model, embedder: _llama.Embedder) -> None:
        self.name = config.name
        self.model = config.model
        self._embedder = embedder
        self.gpus = embedder.taken()[1]
        """The bytes of the model on each GPU."""
        self._width = embedder.width
        self._ranks = embedder.pooling == "rank"
        self._prefixes = embed_prefixes.prefixes(
            _llama.metadata(model, "general.architecture"), _llama.metadata(model, "general.name")
        )
        self._strips_accents = _strips_accents(model)
        accelerator = accelerator_of(config.n_gpu_layers, model.n_layer)
        self._batch_tokens = embedder.n_ctx
        if accelerator.kind == "cpu":
            self._batch_tokens = min(embedder.n_ctx, _CPU_BATCH_TOKENS)
        self._capabilities = Capabilities(
            embed=not self._ranks, rerank=self._ranks, accelerator=accelerator, n_ctx=embedder.n_ctx
        )
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._batch: list[tuple[_Job, bytes]] = []
        self._batches = 0
        self._batch_began: float | None = None
        self._closing = False
        self._preparing = ThreadPoolExecutor(2, thread_name_prefix="inferd-tokenize")
        self._thread = threading.Thread(target=self._work, name="inferd-embed", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def load(
        cls,
        config: LlamaCppConfig,
        *,
        pooling: str | None = None,
        progress: Progress,
        cancelled: threading.Event,
    ) -> EmbeddingModel:
        """Loads the model and makes its context. Blocks until that is done.

        ``config.n_ctx`` and the context for which the model was trained both limit the number of tokens of
        one input. Options for generation are ignored. ``pooling`` is ``mean``, ``cls``, ``last`` or ``rank``,
        or ``None`` for the pooling that the model file names. ``progress`` and the errors are those of
        ``LlamaCpp.load``.
        """

        def report(fraction: float) -> bool:
            progress("mmap", {"path": str(config.path), "progress": round(fraction, 2)})
            return not cancelled.is_set()

        check_gpu(config)
        with loading(cancelled):
            model = open_model(config, report)
            n_ctx = min(config.n_ctx, model.n_ctx_train)
            progress("kv_cache", {"n_ctx": n_ctx})
            embedder = open_embedder(config, model, n_ctx, pooling)
            if embedder.pooling == "none":
                raise ModelError(
                    f"{config.path} does not say how its vectors are pooled: it is not an embedding model,"
                    " or embed_pooling must be set to mean, cls or last"
                )
            if not embedder.warm_up():
                raise ModelError(f"llama.cpp cannot compute with {config.path}")
        _log.info(
            "model loaded",
            model=config.model,
            description=model.description,
            bytes=model.size,
            pooling=embedder.pooling,
            n_ctx=embedder.n_ctx,
        )
        return cls(config, model, embedder)

    def ready(self) -> bool:
        return self._thread.is_alive()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def pulse(self) -> Pulse:
        """Returns the progress of the computing thread."""
        began = self._batch_began
        busy_ms = 0.0 if began is None else max(0.001, (time.monotonic() - began) * 1e3)
        return Pulse(steps=self._batches, busy_ms=busy_ms)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def generate(self, request: GenerateRequest) -> Stream:
        what = "ranks documents" if self._ranks else "makes embeddings"
        raise Unsupported(f"the model of backend {self.name!r} {what}; it cannot generate text")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if self._ranks:
            raise EmbedUnsupported(f"the model of backend {self.name!r} ranks documents; it cannot embed")
        dimensions = self._width if request.dimensions is None else request.dimensions
        if not 1 <= dimensions <= self._width:
            raise InvalidRequest(
                f"dimensions is {dimensions} and the vectors of this model have {self._width}: "
                f"ask for 1 to {self._width}"
            )

        def finish(rows: bytes) -> bytes:
            return _llama.unit_vectors(rows, self._width, dimensions)

        vectors, n_tokens = await self._compute(self._texts(request), finish)
        return Embeddings(vectors, dimensions, n_tokens)

    async def rank(self, request: RankRequest) -> Ranking:
        if not self._ranks:
            raise RerankUnsupported(f"the model of backend {self.name!r} makes embeddings; it cannot rerank")
        scores, n_tokens = await self._compute(self._pairs(request), self._scores)
        return Ranking(scores, n_tokens)

    def _texts(self, request: EmbedRequest) -> Iterator[bytes]:
        prefix = self._prefixes.get(request.task or "", "")
        for i, text in enumerate(request.inputs):
            yield self._checked(f"input[{i}]", self._embedder.text, self._encoded(prefix + text))

    def _pairs(self, request: RankRequest) -> Iterator[bytes]:
        query = self._encoded(request.query)
        for i, document in enumerate(request.documents):
            what = f"documents[{i}] with the query"
            yield self._checked(what, self._embedder.pair, query, self._encoded(document))

    def _encoded(self, text: str) -> bytes:
        # llama.cpp's own decomposition keeps only the first letter of a Hangul syllable.
        return (unicodedata.normalize("NFD", text) if self._strips_accents else text).encode()

    def _checked(self, what: str, tokenize: Callable[..., bytes], *texts: bytes) -> bytes:
        """Returns the tokens of one text, or of a pair of texts. Raises InvalidRequest if the ``texts``
        together have no token, or more tokens than the context. ``what`` names the texts in the error
        message."""
        try:
            tokens = tokenize(*texts)
        except ValueError as error:
            raise InvalidRequest(f"{what} cannot be tokenized: {error}") from None
        n_tokens, n_ctx = len(tokens) // _TOKEN_BYTES, self._embedder.n_ctx
        if n_tokens == 0:
            raise InvalidRequest(f"{what} has no token that the model knows")
        if n_tokens > n_ctx:
            raise PromptTooLong(
                f"{what} is {n_tokens} tokens long and the embedding context is {n_ctx}: shorten it, or "
                "serve with a larger embed_n_ctx if the model allows",
                n_tokens,
                n_ctx,
            )
        return tokens

    def _scores(self, rows: bytes) -> tuple[float, ...]:
        scores = tuple(memoryview(rows).cast("f")[:: self._width])
        if not all(map(math.isfinite, scores)):
            raise ValueError("the model made a score that is not finite")
        return scores

    async def _compute(self, sequences: Iterator[bytes], finish: Callable[[bytes], R]) -> tuple[R, int]:
        """Computes the rows of all ``sequences``. Returns the result of ``finish`` for the rows, and the
        number of tokens."""
        if not self.ready() or self._loop is None:
            raise NotReady
        job = _Job(finish, self._loop.create_future())
        try:
            await self._loop.run_in_executor(self._preparing, job.prepare, sequences)
            self._submit(job)
            return await job.future, job.n_tokens
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closing:
                raise Unavailable(_CLOSING)
            self._jobs.append(job)
            self._changed.notify()

    def _cancel(self, job: _Job) -> None:
        with self._changed:
            job.cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)
            if self._batch and all(member.cancelled for member, _ in self._batch):
                self._embedder.interrupt()

    # The computing thread's side.

    def _work(self) -> None:
        while batch := self._next_batch():
            self._batch_began = time.monotonic()
            try:
                rows = self._embedder.compute([sequence for _, sequence in batch])
            except RuntimeError as error:
                pass_on_log(GGML_ERROR)
                self._fail(batch, BackendInternal(f"{error}; the daemon's log has the reason"))
                continue
            if rows is not None:
                self._keep(batch, rows)

    def _next_batch(self) -> list[tuple[_Job, bytes]]:
        """Waits for work and returns the next batch. If the backend closes, ends every job and returns an
        empty batch."""
        with self._changed:
            last, self._batch = self._batch, []
            self._batch_began = None
            self._batches += 1
            while not self._jobs and not self._closing:
                self._changed.wait()
            if self._closing:
                for job in {*self._jobs, *(job for job, _ in last)}:
                    job.settle(Unavailable(_CLOSING))
                return []
            room = self._batch_tokens
            while self._jobs and len(self._batch) < MAX_SEQUENCES:
                job = self._jobs[0]
                sequence = job.sequences[job.taken]
                size = len(sequence) // _TOKEN_BYTES
                if self._batch and size > room:
                    break
                room -= size
                job.taken += 1
                self._batch.append((job, sequence))
                self._jobs.popleft()
                if job.taken < len(job.sequences):
                    self._jobs.append(job)
            self._embedder.resume()
            return self._batch

    def _keep(self, batch: list[tuple[_Job, bytes]], rows: bytes) -> None:
        size = self._width * _TOKEN_BYTES
        for i, (job, _) in enumerate(batch):
            job.rows.append(rows[i * size : (i + 1) * size])
            if len(job.rows) == len(job.sequences) and not job.cancelled:
                try:
                    job.settle(job.finish(b"".join(job.rows)))
                except ValueError as error:
                    job.settle(BackendInternal(str(error)))

    def _fail(self, batch: list[tuple[_Job, bytes]], error: BackendInternal) -> None:
        jobs = {job for job, _ in batch}
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job not in jobs)
        for job in jobs:
            job.settle(error)

    async def close(self) -> None:
        if self._loop is None:
            return
        with self._changed:
            self._closing = True
            self._embedder.interrupt()
            self._changed.notify()
        await self._loop.run_in_executor(None, self._thread.join)
        await self._loop.run_in_executor(None, self._preparing.shutdown)
        self._loop = None
