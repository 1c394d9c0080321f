"""The llama.cpp backend, which wraps the token loop as a :class:`~inferd.engine.backend.Backend`.

The event loop's thread owns the streams. A pool of threads, one for each concurrent request, renders and
tokenises prompts and parses grammars. Another thread parses answers. One engine thread decodes, and signals a
file descriptor after each step; then :meth:`LlamaCpp._wake` wakes the streams that have new output.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from time import time as clock
from typing import cast

from msgspec.structs import replace

from inferd import log
from inferd.engine.backend import Backend, Capabilities, Finished, Stream
from inferd.engine.events import CacheUse, Done, DraftUse, StopReason, Timings, Usage
from inferd.engine.local import _llama
from inferd.engine.local.child.messages import Pulse, Template
from inferd.engine.local.conversation import NOTHING, Family, Past, Prepared, prepare, shows_earlier_thoughts
from inferd.engine.local.file_pages import give_back
from inferd.engine.local.loading import (
    GGML_ERROR,
    accelerator_of,
    ended_on_error,
    loading,
    pass_on_log,
    preparing_threads,
)
from inferd.engine.local.opening import (
    LlamaCppConfig,
    check_gpu,
    context_size,
    open_draft,
    open_engine,
    open_model,
    taken,
    uses_gpu,
)
from inferd.engine.local.past.ahead import Ahead, Ended
from inferd.engine.local.past.answers import Answers, Keeper
from inferd.engine.local.past.dates import Dates
from inferd.engine.local.power import supplies
from inferd.engine.local.schema.guides import Guides
from inferd.engine.local.states import EngineStates, Send
from inferd.engine.local.streams.checked_stream import CheckedStream
from inferd.engine.local.streams.job_stream import JobStream, Trace
from inferd.engine.local.streams.typed_stream import TypedStream, raw_frames
from inferd.engine.local.suggested import DEFAULTS, suggested
from inferd.engine.requests import GenerateRequest
from inferd.errors import BackendInternal, InferdError, InvalidRequest, ModelError, NotReady, Unavailable
from inferd.progress import Progress
from inferd.sampling import MAX_TOKENS

_log = log.get("llamacpp")

_FAILURES: dict[str, type[InferdError]] = {
    "refused": InvalidRequest,
    "unavailable": Unavailable,
    "broken": BackendInternal,
}


class LlamaCpp(Backend):
    """One loaded model, its context, and its engine thread. Create it with :meth:`load`."""

    kind = "llamacpp"

    def __init__(
        self,
        config: LlamaCppConfig,
        model: _llama.Model,
        family: Family,
        engine: _llama.Engine,
        preparing: ThreadPoolExecutor,
        shows_thoughts: bool,
    ) -> None:
        self.name = config.name
        self.model = config.model
        self.template = Template(tools=family.templates.tools, thinking=family.templates.thinking)
        self._family = family
        self._engine = engine
        self._capabilities = Capabilities(
            v2=True,
            vision=family.projector is not None and family.projector.vision,
            audio=family.projector is not None and family.projector.audio,
            audio_sample_rate=family.projector.sample_rate if family.projector else 0,
            tools=True,
            thinking=self.template.thinking,
            accelerator=accelerator_of(config.n_gpu_layers, model.n_layer),
            n_ctx=engine.n_ctx,
            n_parallel=engine.n_seq,
            lora=tuple(adapter.name for adapter, _ in config.adapters),
            logprobs=True,
            raw=True,
        )
        self._scopes = {
            adapter.name: (number, b"\0" + adapter.key.encode())
            for number, (adapter, _) in enumerate(config.adapters)
        }
        """The number of each adapter, and the suffix for the scope of requests that use it."""
        self._suggested = suggested(functools.partial(_llama.metadata, model))
        self._answers = Answers()
        self._dates = Dates()
        self._thoughts = config.keep_thinking or shows_thoughts
        most = 0 if self._thoughts else config.ahead_tokens
        self._ahead = Ahead(family, engine, self._answers, preparing, supplies, most)
        self._streams: dict[int, JobStream] = {}
        self._preparing = preparing
        # A family's parser reads the whole answer again for each piece. It has its own thread, so that the
        # preparation of prompts does not wait.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="inferd-read")
        self._thread = threading.Thread(target=engine.run, name="inferd-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.states: EngineStates | None = None
        self.gpus = taken(config, engine)[1] if uses_gpu(config) else {}
        """The bytes of the model on each GPU."""

    @classmethod
    def load(cls, config: LlamaCppConfig, *, progress: Progress, cancelled: threading.Event) -> LlamaCpp:
        """Loads the model and makes its context. Blocks until that is done.

        ``progress`` is called with the phases ``mmap`` (details: ``path``, and ``progress`` from 0 to 1) and
        ``kv_cache`` (``n_ctx``). Raises ``ModelError`` with llama.cpp's reason. If ``cancelled`` is set,
        raises ``BootCancelled`` soon after.
        """

        def report(fraction: float) -> bool:
            progress("mmap", {"path": str(config.path), "progress": round(fraction, 2)})
            return not cancelled.is_set()

        check_gpu(config)
        preparing = preparing_threads(config.n_parallel)
        with ended_on_error(preparing), loading(cancelled):
            model = open_model(config, report)
            templates = preparing.submit(_llama.Templates, model, config.chat_template).result()
            projector = None
            if config.projector is not None:
                threads = config.threads or _llama.useful_threads()
                projector = _llama.Projector(model, str(config.projector), threads=threads)
            adapters = [
                _llama.Adapter(model, fd, name=adapter.name, scale=adapter.scale)
                for adapter, fd in config.adapters
            ]
            draft_model = open_draft(config, lambda fraction: not cancelled.is_set())
            n_ctx = context_size(config.n_ctx, model)
            progress("kv_cache", {"n_ctx": n_ctx})
            engine = open_engine(config, model, n_ctx, draft_model, projector, adapters)
            give_back(config.fd, *config.parts)
            if not engine.warm_up():
                raise ModelError(f"llama.cpp cannot decode with {config.path}")
        if n_ctx < config.n_ctx:
            _log.info("context limited to the training context of the model", asked=config.n_ctx, n_ctx=n_ctx)
        if not model.has_chat_template and not config.chat_template:
            _log.warn("the model has no chat template; it is prompted as ChatML", model=config.model)
        _log.info("model loaded", model=config.model, description=model.description, bytes=model.size)
        most_chars = n_ctx * model.longest_token
        family = Family(
            templates,
            Guides(model),
            projector,
            engine.n_batch,
            most_chars=most_chars,
            n_ctx=n_ctx,
            n_ctx_train=model.n_ctx_train,
        )
        shows = preparing.submit(shows_earlier_thoughts, templates, model).result()
        return cls(config, model, family, engine, preparing, shows)

    def ready(self) -> bool:
        return self._thread.is_alive()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def pulse(self) -> Pulse:
        """Returns the progress of the token loop."""
        steps, busy_us, predicted_us = self._engine.pulse()
        return Pulse(steps=steps, busy_ms=busy_us / 1e3, predicted_ms=predicted_us / 1e3)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._engine.fileno(), self._wake)
        self._thread.start()

    def keep_states(self, send: Send, idle_ms: int) -> None:
        """Starts to exchange cache states with the daemon's files. ``send`` sends the daemon a message."""
        self.states = EngineStates(self._engine, send, idle_ms)

    async def generate(self, request: GenerateRequest, left: _llama.Cancellation | None = None) -> Stream:
        """Starts a request. ``left.cancel()`` stops the preparation of the request at once, sooner than a
        cancellation of the task."""
        if not self.ready() or self._loop is None:
            raise NotReady
        self._ahead.stop()
        trace = Trace(perf_counter())
        cancellation = left or _llama.Cancellation()
        work = self._preparing.submit(self._submit, request, cancellation, trace)
        submitted = asyncio.wrap_future(work)
        try:
            answer = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            cancellation.cancel()
            submitted.add_done_callback(self._drop)
            if not work.cancel():  # already being prepared; the request keeps its place until that ends
                await asyncio.wait((submitted,))
            raise
        finally:
            del work, submitted  # their error refers to this frame, and would keep the attachments alive
        if isinstance(answer, Done):
            return Finished(answer)
        job, prepared, ended = answer
        whole = request.cache and not (request.raw or request.begun)
        keeper = None
        if whole:
            then = functools.partial(self._ahead.answered, ended)
            keeper = Keeper(self._answers, request, prepared.prompt.text, then)
        stream: Stream = self._open(job, keeper, trace, as_text=prepared.reader is None)
        pool = self._reading
        if prepared.reader is not None:
            stream = TypedStream(stream, prepared.reader, pool, request, keeper)
        if prepared.held is not None or prepared.tools:
            stream = CheckedStream(stream, prepared.held, prepared.tools, prepared.unenforced, pool)
        return stream

    def _open(self, job: int, keeper: Keeper | None, trace: Trace, *, as_text: bool) -> JobStream:
        stream = self._streams[job] = JobStream(
            self._engine, job, keeper, trace, as_text=as_text, finish=self._finish, forget=self._forget
        )
        return stream

    def _submit(
        self, request: GenerateRequest, cancellation: _llama.Cancellation, trace: Trace
    ) -> tuple[int, Prepared, Ended] | Done:
        trace.began = perf_counter()
        with cancellation:
            _llama.stop_if_cancelled()
            answer = self._prepare(request)
        trace.submitted = perf_counter()
        return answer

    def _prepare(self, request: GenerateRequest) -> tuple[int, Prepared, Ended] | Done:
        """Renders and tokenises the prompt, parses the grammar, and queues the job. Runs in a thread of the
        pool."""
        past = NOTHING
        if request.cache:
            kept = self._answers.of(request, thoughts=self._thoughts)
            past = Past(kept, self._dates.of(request, int(clock())))
        prepared = prepare(self._family, request, past)
        frame = request.frame if prepared.reader is None else raw_frames(request)
        defaults = self._suggested if request.model_defaults else DEFAULTS
        sampling = request.sampling.over(replace(defaults, seed=secrets.randbits(32)))
        _log.debug("sampling", seed=sampling.seed)
        if request.max_tokens == 0:
            return Done("length", Usage(len(prepared.prompt), 0), content=b"")
        adapter, behind = self._scopes[request.lora] if request.lora else (-1, b"")
        scope = request.scope.encode() + behind
        job = self._engine.submit(
            prepared.prompt,
            max_tokens=min(MAX_TOKENS if request.max_tokens is None else request.max_tokens, 2**31 - 1),
            sampling=sampling,
            grammar=prepared.grammar,
            stops=[text.encode() for text in request.stop],
            frame=(frame.prefix, frame.opening, frame.suffix) if frame else None,
            guide=prepared.guide,
            use_cache=request.cache,
            scope=scope,
            adapter=adapter,
            session=request.session.encode(),
            logprobs=-1 if request.logprobs is None else request.logprobs,
        )
        return job, prepared, Ended(request, prepared.prompt, past.now, scope, adapter)

    def _drop(self, submitted: asyncio.Future[tuple[int, Prepared, Ended] | Done]) -> None:
        """Drops a request whose client left during its preparation."""
        if not submitted.cancelled() and submitted.exception() is None:
            answer = submitted.result()
            if not isinstance(answer, Done):
                self._engine.cancel(answer[0], True)

    def _wake(self) -> None:
        for job in self._engine.ready():
            stream = self._streams.get(job)
            if stream is not None:
                stream.wake()
        self._ahead.wake()
        if self.states is not None:
            self.states.wake()

    def _forget(self, job: int) -> None:
        self._streams.pop(job, None)

    def _finish(self, result: _llama.Result) -> Done:
        finish, reason, content, n_prompt, n_completion, prefill, decode = result[:7]
        ttft_ms, n_cached, miss, records, drafted, accepted, _ = result[7:]
        failure = _FAILURES.get(finish)
        if failure is not None:
            pass_on_log(GGML_ERROR if finish == "broken" else GGML_ERROR + 1)
            raise failure(reason)
        if miss:
            _log.debug("prompt not cached", reason=miss, equal_tokens=n_cached, prompt_tokens=n_prompt)
        # The prompt's last step yields the first token, so n tokens take n - 1 decode steps.
        rate = (n_completion - 1) / decode * 1000 if n_completion > 1 and decode > 0 else 0.0
        return Done(
            cast("StopReason", finish),
            Usage(n_prompt, n_completion, n_cached),
            Timings(prefill, decode, ttft_ms, rate),
            content,
            cache=CacheUse(miss, self._engine.cache_bytes, self._engine.cache_tokens),
            drafts=DraftUse(drafted, accepted),
            logprobs=records,
        )

    async def close(self) -> None:
        if self._loop is None:
            return
        self._ahead.stop()
        self._loop.remove_reader(self._engine.fileno())
        self._engine.stop()
        await self._loop.run_in_executor(None, self._thread.join)
        await self._loop.run_in_executor(None, lambda: self._preparing.shutdown(cancel_futures=True))
        self._reading.shutdown(wait=False)
        for stream in list(self._streams.values()):
            stream.close()
        self._loop = None
