# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The token loop on llama.cpp's C API.

``Model`` (in ``_model.pxi``) is a loaded GGUF file. ``Engine`` is one context with a fixed number of sequences. One
thread runs ``Engine.run`` without the GIL. Numbers and bytes enter the loop, and bytes leave it. No Python object is
used inside the loop.

Each turn of the loop takes in new jobs and cancels, and gives free slots to waiting jobs. Then it fills one batch
(``Engine.fill_batch``), decodes the batch, samples tokens from the rows of logits, and appends the frames. Last, it
publishes the frames and wakes the event loop once.

A job is the list of its tokens (prompt and answer) and ``n_past``, the number of these tokens in the KV cache.
Prefill, decoding, repair after an interrupted step and prefix reuse are the same operation: decode the tokens that are
missing in the cache.

A finished job leaves its cells of the KV cache in its slot. ``PrefixCache`` indexes the prefixes in slots, memory and
files, and plans where the next job begins. If a job's prefix is in a file, the job waits for the file. ``Depot`` moves
states to the files and back while the loop keeps running.

(This file has over 400 lines, because every method works on the same state of the loop; the rest is in the headers.)
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, rewind
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector

from inferd._json cimport json_escape_into
from inferd.engine.local.loop.core_h cimport *
from inferd.engine.local.loop.llama_h cimport *
from inferd.engine.local.loop.prompt_h cimport *

import os

from inferd.engine.local import portable
from inferd.errors import BootCancelled, InvalidRequest, ModelError, PromptTooLong

# A failed assertion in ggml would otherwise start a debugger to print a backtrace.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")


include "_model.pxi"
include "_prompt.pxi"
include "_guide.pxi"
include "_embed.pxi"
include "_cancel.pxi"
include "_buffer_for_tests.pxi"
include "_cache_for_tests.pxi"
include "_drafts_for_tests.pxi"
include "_media_for_tests.pxi"
include "_sampling_for_tests.pxi"


cdef SamplingParams settings_of(sampling):
    """Converts an :class:`inferd.sampling.SamplingParams` in which no value is ``None``."""
    cdef SamplingParams settings
    settings.temperature = sampling.temperature
    settings.top_p = sampling.top_p
    settings.top_k = min(sampling.top_k, 2**31 - 1)
    settings.min_p = sampling.min_p
    settings.repeat_penalty = sampling.repeat_penalty
    settings.presence_penalty = sampling.presence_penalty
    settings.frequency_penalty = sampling.frequency_penalty
    settings.seed = sampling.seed
    return settings


cdef struct StepGuard:
    Exchange* exchange
    int64_t deadline_us


cdef cbool give_up(void* data) noexcept nogil:
    """llama.cpp calls this between the nodes of a step's graph. If it returns true, the step is aborted."""
    cdef StepGuard* guard = <StepGuard*>data
    return guard.exchange.interrupted() or (guard.deadline_us != 0 and llama_time_us() > guard.deadline_us)


cdef enum:
    # µs. A step of the draft model is not aborted before this time, however short it usually is.
    SHORTEST_DRAFT_US = 20000


cdef class Engine:
    """One context on a model, with ``n_seq`` sequences of ``n_ctx`` tokens each, and the loop that serves them.

    ``flash_attention`` is ``on``, ``off`` or ``auto`` (llama.cpp's choice). ``kv_type`` is ``f16`` or ``q8_0``. If
    ``threads`` is 0, the loop chooses. With ``unified``, the sequences share one cache of ``n_ctx`` tokens.
    ``cache_bytes`` limits the memory for states of earlier requests outside the slots. ``drafts`` controls speculative
    decoding: ``off`` never drafts, ``auto`` drafts if measurements show that it pays, ``on`` drafts whenever the
    tokens are likely. ``draft_model`` is a small model that also makes drafts. A job names one of the ``adapters`` by
    its number. ``submit``, ``cancel``, ``ready``, ``collect``, ``stop`` and the methods for files are thread-safe.
    """

    cdef Model model
    cdef llama_context_params params
    cdef llama_context* ctx
    cdef llama_memory_t memory
    cdef void* pool
    cdef llama_batch batch
    cdef int pool_threads
    cdef readonly int n_ctx
    cdef readonly int n_seq
    cdef readonly int n_batch
    cdef readonly uint64_t computed  # the number of computed tokens of prompts, answers and drafts
    cdef int n_swa
    cdef Projector projector
    cdef StepGuard guard
    cdef Exchange exchange
    cdef CThreadGovernor* governor
    cdef vector[Job*] waiting, running, active, batched, touched
    cdef CPrefixCache* cache
    cdef Depot* depot
    cdef milliseconds idle_after
    cdef vector[Live] live
    cdef CAdapters adapters
    cdef readonly int n_adapters
    cdef const MediaSpan* media
    cdef cbool hold_prompts, hold_drafts
    cdef int64_t prompt_us  # the time of the prompt steps since the last decode step
    cdef readonly bint drafts
    cdef bint always_draft
    cdef Model draft_weights
    cdef unique_ptr[DraftModel] draft_model
    cdef vector[DraftWanted] wanted
    cdef double draft_us
    cdef cbool any_cut

    def __cinit__(self, Model model, *, int n_ctx, int n_seq, int n_batch, int threads, str flash_attention,
                  str kv_type, bint unified, size_t cache_bytes=0, str drafts="off", Projector projector=None,
                  adapters=(), Model draft_model=None):
        cdef int64_t cells
        cdef Adapter adapter
        flash = {"on": LLAMA_FLASH_ATTN_TYPE_ENABLED, "off": LLAMA_FLASH_ATTN_TYPE_DISABLED,
                 "auto": LLAMA_FLASH_ATTN_TYPE_AUTO}
        types = {"f16": GGML_TYPE_F16, "q8_0": GGML_TYPE_Q8_0}
        # A recurrent layer keeps the state of the last token only. A layer with a sliding window keeps all its cells
        # (`swa_full`, the default), but a cache that sequences share may give cells outside a window to other
        # sequences.
        self.any_cut = not (llama_model_is_recurrent(model.model) or llama_model_is_hybrid(model.model)
                            or (unified and llama_model_n_swa(model.model) > 0))
        self.model = model
        self.projector = projector
        for adapter in adapters:
            self.adapters.add(adapter.adapter, adapter.scale)
        self.n_adapters = len(adapters)
        self.drafts = drafts != "off" and self.any_cut  # rejected draft tokens are removed from the sequence
        self.always_draft = drafts == "on"
        cdef int most_rows = n_seq + (<int>MOST_DRAFTED if self.drafts else 0)
        self.pool_threads = threads or useful_threads()
        self.governor = new CThreadGovernor(self.pool_threads, threads != 0, most_rows)
        self.guard.exchange = &self.exchange
        self.params = llama_context_default_params()
        cells = n_ctx if unified else <int64_t>n_ctx * n_seq
        if cells > <int64_t>0x7FFFFFFF:
            raise ModelError(f"a context of {n_seq} x {n_ctx} tokens is more than llama.cpp can count: "
                             f"lower --n-ctx or --active-permits")
        self.params.n_ctx = <uint32_t>cells
        self.params.n_batch = self.params.n_ubatch = n_batch
        self.params.n_seq_max = n_seq
        self.params.n_outputs_max = most_rows
        self.params.n_threads = self.params.n_threads_batch = self.pool_threads
        self.params.flash_attn_type = flash[flash_attention]
        self.params.type_k = self.params.type_v = types[kv_type]
        self.params.kv_unified = unified
        self.params.no_perf = True
        self.params.abort_callback = give_up
        self.params.abort_callback_data = &self.guard
        cdef cbool opened
        with nogil:
            opened = self.open_context()
        if not opened:
            raise ModelError(f"llama.cpp cannot make a context of {n_seq} x {n_ctx} tokens for this model: "
                             f"lower --n-ctx or --active-permits (the log has llama.cpp's reason)")
        if self.memory == NULL:
            raise ModelError("this model makes no text, only vectors or scores: serve it with --embed or --rerank")
        # llama.cpp may grant less than was asked for.
        self.n_seq = n_seq
        self.n_ctx = min(n_ctx, <int>llama_n_ctx_seq(self.ctx))
        self.n_batch = llama_n_batch(self.ctx)
        self.n_swa = llama_model_n_swa(model.model)
        self.batch = llama_batch_init(self.n_batch, 0, 1)
        self.cache = new CPrefixCache(n_seq, cache_bytes, self.any_cut, piece_of(model.vocab))
        self.depot = new Depot(self.exchange)
        self.depot.file_evicted(self.cache[0])
        if draft_model is not None and self.drafts:
            self.open_draft_model(draft_model)

    cdef open_draft_model(self, Model model):
        cdef llama_context_params params = self.params
        if not same_vocabulary(self.model.vocab, model.vocab):
            raise ModelError("the draft model has another vocabulary than the model: choose one of the same family")
        with nogil:
            self.draft_model = DraftModel.make(model.model, params, self.n_seq, self.pool)
        if not self.draft_model:
            raise ModelError("llama.cpp cannot make a context for the draft model: it is recurrent, makes no text, or "
                             "needs more memory than there is")
        self.draft_weights = model

    def __dealloc__(self):
        self.draft_model.reset()
        self.close_context()
        if self.batch.token != NULL:
            llama_batch_free(self.batch)
        del self.governor
        del self.cache
        del self.depot

    cdef cbool open_context(self) noexcept nogil:
        self.ctx = llama_init_from_model(self.model.model, self.params)
        if self.ctx == NULL:
            return False
        self.adapters.forget()
        self.memory = llama_get_memory(self.ctx)
        self.pool = attach_pool(self.ctx, self.pool_threads)
        if self.draft_model:
            self.draft_model.get().use_pool(self.pool)
        return True

    cdef void close_context(self) noexcept nogil:
        if self.ctx != NULL:
            llama_free(self.ctx)
        free_pool(self.pool)
        self.ctx = NULL
        self.pool = NULL

    def warm_up(self) -> bool:
        """Decodes one token twice on one thread. This reads the weights into memory and measures the time of a token
        on a single thread. Returns false if llama.cpp cannot decode at all."""
        cdef int code = 0, _turn
        cdef int64_t started
        cdef Job job
        job.slot = 0
        job.tokens.push_back(0)
        with nogil:
            llama_set_n_threads(self.ctx, 1, 1)
            for _turn in range(2):
                self.batch.n_tokens = 0
                self.batched.clear()
                self.add_tokens(&job, 1)
                started = llama_time_us()
                code = decode(self.ctx, self.batch)
                llama_synchronize(self.ctx)
                self.governor.set_single_thread_baseline(llama_time_us() - started)
                llama_memory_seq_rm(self.memory, 0, -1, -1)
            if code == 0 and self.draft_model:
                self.draft_model.get().set_threads(1)
                code = 0 if self.draft_model.get().warm_up() else 1
        return code == 0

    def taken(self, str projector=""):
        """Returns how many bytes the model, its draft model and their contexts take in RAM, and a dictionary of how
        many they take on each GPU. For a dry model, these are the bytes that they would take. ``projector`` is the path
        of a projector's file; the memory that it would take is added."""
        cdef Taken taken
        taken.add(self.ctx)
        if self.draft_model:
            taken.add(self.draft_model.get().context())
        if projector:
            CProjector.add_need(projector.encode(), self.model.model, taken)
        return taken.here, by_name(taken.gpus)

    # Called by the event loop.

    def fileno(self) -> int:
        """Returns the file descriptor that becomes readable when ``ready`` has ids to return."""
        return self.exchange.fd()

    def submit(self, Prompt prompt, *, int max_tokens, sampling, bytes grammar, stops, frame, Guide guide=None,
               bint use_cache=True, bytes scope=b"", bytes session=b"", int adapter=-1,
               int logprobs=-1) -> int:
        """Queues a job and returns its id.

        ``sampling`` is an :class:`inferd.sampling.SamplingParams` in which no value is ``None``. ``grammar`` is GBNF
        that replaces the grammar of the prompt. ``guide`` replaces both grammars and is consumed. ``stops`` are stop
        strings (UTF-8) in addition to those of the prompt. ``frame`` is the (prefix, opening, suffix) of a token
        frame, or ``None`` for no frames. ``logprobs`` is the number of alternatives to report for each token, or -1
        for no probabilities. The records of the tokens (logprobs.h) are written between ``opening`` and ``suffix``,
        separated by commas. Jobs with the same ``scope`` reuse each other's prefixes, unless ``use_cache`` is false.
        All jobs of a ``scope`` must use the same adapter. ``session`` names a conversation. ``adapter`` is the number
        of the LoRA adapter, or -1 for none. Raises ``InvalidRequest`` for a grammar that does not parse and for a
        prompt that does not fit.
        """
        cdef SamplingParams params
        cdef Grammar c_grammar
        cdef string error, stop
        cdef vector[string] c_stops = prompt.rendered.stops
        cdef unique_ptr[Job] job
        cdef uint64_t id
        cdef size_t n = prompt.rendered.tokens.size()
        if not -1 <= adapter < self.n_adapters:
            raise ValueError(adapter)
        if n == 0:
            raise InvalidRequest("the prompt has no tokens")
        if prompt.rendered.tokens[n - 1] == MEDIA_TOKEN:
            raise InvalidRequest("the model's chat template ends the prompt with an image or a sound, not with a turn")
        job.reset(new Job())
        job.get().tokens = prompt.rendered.tokens
        job.get().media = prompt.rendered.media
        n += job.get().extra_cells()
        if n > <size_t>self.n_ctx:
            raise PromptTooLong(f"the prompt is {n} tokens long and the context is {self.n_ctx}", n, self.n_ctx,
                                self.model.n_ctx_train)
        for stop in stops:
            c_stops.push_back(stop)
        if grammar:
            c_grammar.text = grammar
        elif guide is None:
            c_grammar.text = prompt.rendered.grammar
            c_grammar.lazy = prompt.rendered.lazy
            c_grammar.triggers = prompt.rendered.triggers
            c_grammar.trigger_tokens = prompt.rendered.trigger_tokens
            c_grammar.prefill = prompt.rendered.prefill
        params = settings_of(sampling)
        with nogil:
            job.get().sampler = Sampler.make(self.model.vocab, params, c_grammar, error)
        if not job.get().sampler:
            raise InvalidRequest(f"the grammar cannot be used: {in_a_sentence(error)}")
        if guide is not None:
            job.get().sampler.get().follow(move(guide.guide))
        job.get().preserved = prompt.rendered.preserved
        job.get().n_prompt = prompt.rendered.tokens.size()
        if use_cache and not self.any_cut:
            job.get().mark(prompt.rendered.turns)
        job.get().uses_cache = use_cache
        job.get().adapter = adapter
        job.get().scope = scope
        job.get().session = session
        job.get().max_tokens = max_tokens
        job.get().text.set_stops(c_stops)
        job.get().wants_frames = frame is not None
        if frame is not None:
            job.get().prefix, job.get().opening, job.get().suffix = frame
        job.get().logprobs.want(logprobs)
        job.get().submitted_us = llama_time_us()
        with nogil:
            id = self.exchange.submit(move(job))
        return id

    def cancel(self, uint64_t id, bint drop):
        """Ends a job within one step. With ``drop``, its output is discarded and its id becomes invalid."""
        with nogil:
            self.exchange.cancel(id, drop)

    def ready(self):
        """Returns the ids of the jobs that have new output."""
        return self.exchange.ready()

    def collect(self, uint64_t id):
        """Returns (frames, ``None``), or (frames, result) once the job has ended.

        The result is (finish, error, content escaped as inside a JSON string, prompt tokens, completion tokens,
        prefill ms, decode ms, ms to the first text or 0, cached prompt tokens, the reason of a cache miss or ``""``,
        token records that no frame carried, draft tokens computed, draft tokens accepted, ids of the answer's tokens
        as int32).
        """
        cdef string out
        cdef unique_ptr[Job] whole
        cdef Job* job
        with nogil:
            whole = self.exchange.collect(id, out)
        job = whole.get()
        if job == NULL:
            return <bytes>out, None
        cdef int64_t prefilled = job.prefilled_us or job.finished_us
        return <bytes>out, (
            FINISH_NAMES[<int>job.finish], job.error.decode(), <bytes>job.content, job.n_prompt + job.extra_cells(),
            job.n_completion(), (prefilled - (job.seated_us or prefilled)) / 1000.0,
            (job.finished_us - prefilled) / 1000.0,
            (job.first_us - job.submitted_us) / 1000.0 if job.first_us else 0.0,
            job.n_cached, MISS_NAMES[<int>job.miss], <bytes>job.records, job.drafted, job.accepted,
            (<char*>(job.tokens.data() + job.n_prompt))[:job.n_completion() * sizeof(llama_token)])

    def prompt_read(self, uint64_t id) -> float:
        """Returns the share of a job's prompt, from 0 to 1, that has been computed or found in the cache."""
        cdef double share
        with nogil:
            share = self.exchange.read_share(id)
        return share

    @property
    def cache_bytes(self) -> int:
        """The memory that snapshots, checkpoints and kept logits use, in bytes."""
        return self.cache.bytes()

    @property
    def cache_tokens(self) -> int:
        """The number of tokens in idle slots and snapshots."""
        return self.cache.tokens()

    # Files with states of sequences. The daemon keeps the files.

    def open_files(self, int64_t idle_ms):
        """Starts saving states to files. A state is saved before it is evicted, and after ``idle_ms`` without a
        job."""
        self.idle_after = milliseconds(idle_ms)
        with nogil:
            self.depot.open()

    def file_kept(self, uint32_t id, tokens, size_t size, *, bytes scope, bytes session, bint usable=True):
        """Registers the file ``id`` with a state of ``size`` bytes. ``usable`` means that this context can load the
        state."""
        cdef Stored file
        cdef cbool c_usable = usable
        file.id = id
        file.sequence.tokens = tokens
        file.sequence.scope = scope
        file.sequence.session = session
        file.size = size
        with nogil:
            self.depot.kept(move(file), c_usable)

    def files_wanted(self):
        """Returns the ids of the files that jobs wait for. Each id is returned once."""
        return self.depot.wanted()

    def file_delivered(self, uint32_t id, int fd, size_t offset, size_t size):
        """Reads the state of the file ``id`` from ``fd``. If ``fd`` is -1, the file is gone."""
        cdef unique_ptr[StateBytes] data
        with nogil:
            if fd >= 0:
                data = read_file(fd, offset, size)
            self.depot.delivered(id, move(data), size)

    def leaving(self) -> LeavingState:
        """Returns the next state to write to a file, or ``None``. When the state is written, call ``file_saved``."""
        cdef LeavingState state = LeavingState()
        state.snapshot = self.depot.leaving(state.replaces)
        return state if state.snapshot else None

    def file_saved(self, uint32_t id, gone):
        """Reports that the state is in the file ``id`` and that the files ``gone`` are deleted. The id 0 means that
        the state was not written."""
        cdef vector[uint32_t] c_gone = gone
        with nogil:
            self.depot.saved(id, c_gone)

    def flush_files(self):
        """Starts saving every state that is not in a file yet. When that is done, ``files_flushed`` returns true
        once."""
        with nogil:
            self.depot.flush()

    def files_flushed(self) -> bool:
        return self.depot.flushed()

    def pulse(self):
        """Returns (a counter that grows in every turn of the loop, µs since the current turn began or was due or 0,
        expected µs of the current step or 0)."""
        cdef uint64_t steps = 0
        cdef int64_t busy_us = 0, predicted_us = 0
        self.exchange.pulse(steps, busy_us, predicted_us)
        return steps, busy_us, predicted_us

    def stop(self):
        """Ends ``run`` within one step. Unfinished jobs stay unfinished."""
        with nogil:
            self.exchange.stop()

    # Called by the engine thread.

    def run(self):
        """Runs the loop until ``stop`` is called."""
        cdef cbool idle = False
        with nogil:
            while self.exchange.intake(self.waiting, self.running, self.active, self.n_seq, self.idle_after, idle):
                self.touched.clear()
                self.depot.settle(self.cache[0], self.waiting)
                self.retire_cancelled()
                self.seat_waiting()
                # A prompt that was completely in the cache already has the first token of its answer.
                if not self.touched.empty():
                    self.exchange.publish(self.touched)
                    self.touched.clear()
                if idle or self.depot.flushing():
                    self.depot.file_one(self.ctx, self.cache[0])
                self.step()
                self.exchange.publish(self.touched)

    cdef void retire_cancelled(self) noexcept nogil:
        cdef size_t i = 0
        cdef Job* job
        while i < self.running.size():
            job = self.running[i]
            if job.finish == Finish.running:
                i += 1
            else:
                self.leave(job)
        i = 0
        while i < self.waiting.size():
            job = self.waiting[i]
            if job.finish == Finish.running:
                i += 1
            else:
                self.waiting.erase(self.waiting.begin() + i)
                self.close_job(job)

    cdef void seat_waiting(self) noexcept nogil:
        cdef size_t i = 0
        cdef Job* job
        cdef Plan plan
        while i < self.waiting.size() and self.running.size() < <size_t>self.n_seq:
            job = self.waiting[i]
            if job.fetching != 0:
                i += 1
                continue
            if self.ctx == NULL and not self.open_context():
                self.waiting.erase(self.waiting.begin() + i)
                self.fail(job, Finish.broken, b"the model's context was lost and cannot be made again; restart inferd")
                self.close_job(job)
                continue
            plan = self.plan(job)
            if plan.wait:
                if plan.fetch != 0:
                    job.fetching = plan.fetch
                    job.fetched = True
                    self.depot.want(plan.fetch)
                i += 1
                continue
            self.waiting.erase(self.waiting.begin() + i)
            self.seat(job, plan)

    cdef Plan plan(self, Job* job) noexcept nogil:
        cdef Wanted wanted
        cdef Live live
        cdef Job* other
        wanted.prompt = &job.tokens
        wanted.n_reusable = job.n_reusable()
        wanted.n_max = self.n_ctx - job.extra_cells()
        wanted.scope = &job.scope
        wanted.session = &job.session
        wanted.opted_out = not job.uses_cache
        wanted.may_fetch = not job.fetched
        wanted.token_us = self.governor.prompt_pace()
        self.live.clear()
        for other in self.running:
            live.slot = other.slot
            live.tokens = &other.tokens
            live.n_past = other.n_past
            live.scope = &other.scope
            live.shared = other.uses_cache and other.media.empty()
            live.checkpoints = &other.checkpoints
            live.marks = &other.marks
            live.logits = &other.logits
            self.live.push_back(live)
        return self.cache.plan(wanted, self.live)

    cdef void seat(self, Job* job, const Plan& plan) noexcept nogil:
        """Gives a job its slot, which then holds the part of the prompt that the plan found in the cache."""
        cdef Match keep = plan.keep
        cdef cbool ok = True
        if plan.save:
            c_save(self.ctx, plan.slot, self.cache.held(plan.slot), self.cache[0], self.governor.prompt_pace())
        if plan.restore:
            ok = c_load(self.ctx, plan.slot, plan.restore, self.cache[0])
        elif plan.copy_from >= 0:
            ok = self.copy(plan.copy_from, plan.slot, keep.held)
        if ok and plan.rewind:
            ok = c_rewind(self.ctx, plan.slot, plan.rewind.get()[0])
        elif ok:
            ok = c_cut(self.ctx, plan.slot, keep.held, self.n_swa)
        if not ok:
            llama_memory_seq_rm(self.memory, plan.slot, -1, -1)
            keep.held = keep.prompt = 0
        self.cache.take(plan.slot)
        if keep.held > 0:
            job.begin_at(keep, plan.prompt)
            job.checkpoints = plan.checkpoints
        job.miss = plan.miss
        job.slot = plan.slot
        job.seated_us = llama_time_us()
        self.running.push_back(job)
        if ok and plan.logits:
            job.logits = plan.logits
            self.touched.push_back(job)
            self.next_token(job, floats_of(job.logits.get()[0]))
        if job.finish == Finish.running:
            self.active.push_back(job)
        else:
            self.leave(job)

    cdef cbool copy(self, int src, int dst, size_t n) noexcept nogil:
        """Copies at least the first ``n`` tokens of one slot to another."""
        cdef Sequence sequence
        cdef Live live
        # In a unified cache, both slots refer to the same cells. In separate caches, the bytes are copied.
        if self.params.kv_unified:
            llama_memory_seq_rm(self.memory, dst, -1, -1)
            llama_memory_seq_cp(self.memory, src, dst, 0, <llama_pos>n)
            return True
        for live in self.live:
            if live.slot == src:
                sequence.tokens.assign(live.tokens[0].begin(), live.tokens[0].begin() + live.n_past)
                sequence.scope = live.scope[0]
                sequence.checkpoints = live.checkpoints[0]
                sequence.logits = live.logits[0]
                return c_copy(self.ctx, src, dst, &sequence, self.cache[0])
        return c_copy(self.ctx, src, dst, NULL, self.cache[0])

    cdef void step(self) noexcept nogil:
        cdef int64_t started, elapsed
        cdef int threads, code, rows = 0, prompt = 0, drafted = 0
        cdef Job* job
        if self.fill_batch():
            prompt = self.media.n_cells if self.media != NULL else self.batch.n_tokens
        else:
            rows = self.batch.n_tokens
            drafted = rows - <int>self.batched.size()
        if self.batched.empty() or not self.exchange.begin_step(self.batched[0] if prompt > 0 else NULL):
            return
        started = llama_time_us()
        threads = self.governor.threads()
        self.guard.deadline_us = self.governor.deadline(started, rows, prompt)
        self.exchange.expect(self.governor.predicted(rows, prompt))
        llama_set_n_threads(self.ctx, threads, threads)
        self.adapters.apply(self.ctx, self.batched[0].adapter)
        if self.media != NULL:
            code = self.projector.projector.get().decode(
                self.ctx, self.media[0], self.batched[0].slot, self.n_batch)
        else:
            code = decode(self.ctx, self.batch)
        llama_synchronize(self.ctx)
        elapsed = llama_time_us() - started
        self.prompt_us = self.prompt_us + elapsed if prompt > 0 else 0
        # 0: computed; 2: aborted by `give_up`; 1: the KV cache has no room; other: llama.cpp failed.
        if code == 0:
            self.governor.measured(started + elapsed, rows, prompt, elapsed, drafted)
            self.computed += rows + prompt
            self.hold_drafts = False
            for job in self.batched:
                job.n_past += job.in_step
                self.touched.push_back(job)
                if job.at_mark():
                    keep_checkpoint(self.ctx, job.slot, job.n_past, job.checkpoints, self.cache[0],
                                    self.governor.prompt_pace())
            for job in self.batched:
                if job.logits_row >= 0:
                    self.advance(job)
            if self.draft_us > 0:
                self.settle_drafts(rows, drafted)
        elif code == 2:
            # An aborted step leaves the cells of its finished part. If it was not interrupted, it passed its deadline.
            if not self.exchange.interrupted():
                self.governor.stalled(started + elapsed)
            for job in self.batched:
                self.take_back(job)
        elif code == 1 and drafted > 0:
            self.hold_drafts = True  # the next step repeats this one without drafts
        elif code == 1:
            self.make_room(prompt > 0)
        else:
            self.lose_context()

    cdef cbool fill_batch(self) noexcept nogil:
        """Puts the tokens of the next step into the batch. Returns true if they belong to a prompt.

        A batch holds either the next token of each decoding sequence, or a chunk of one prompt. llama.cpp would split
        a mixed batch in the same way. Unmixed batches also make the numbers computed for a prompt independent of other
        sequences.

        Prompt steps and decode steps alternate. Short prompts follow each other for as long as a chunk of a long
        prompt takes. While no sequence decodes, every step is a prompt step. Every step is a decode step while no
        prompt waits, or while a full shared cache holds prompts back (``hold_prompts``).
        """
        cdef Job* job
        cdef Job* prompt = NULL
        cdef size_t decoders = 0, rest, room
        cdef int adapter
        self.batch.n_tokens = 0
        self.batched.clear()
        self.media = NULL
        self.draft_us = 0
        for job in self.active:
            if not job.prefilling():
                decoders += 1
            elif prompt == NULL or job.tokens.size() - job.n_past < prompt.tokens.size() - prompt.n_past:
                prompt = job  # the prompt with the shortest rest: a short prompt overtakes a long one
        if prompt == NULL or (decoders > 0 and (self.hold_prompts or not self.governor.fits(
                self.prompt_us, prompt.tokens.size() - prompt.n_past))):
            # A decode step, in slot order: llama.cpp computes sequences of neighbouring slots together. Each sequence
            # adds its token and its draft before the next sequence does; `add_draft` leaves rows for the sequences that
            # follow. A batch has one LoRA adapter, so sequences with another adapter wait for their turn.
            sort_by_slot(self.active)
            adapter = self.adapters.turn(self.active, decoders)
            if self.drafts and not self.hold_drafts:
                self.look_for_drafts(decoders, adapter)
            for job in self.active:
                if not job.prefilling() and job.adapter == adapter:
                    self.add_tokens(job, 1)
                    if self.drafts:
                        self.add_draft(job, decoders)
            return False
        # A prompt step. An image or a sound is a step by itself: the projector decodes its embeddings, not this batch.
        self.media = prompt.next_media()
        if self.media != NULL:
            prompt.in_step = self.media.n_pos
            prompt.logits_row = -1
            self.batched.push_back(prompt)
            return True
        # A chunk ends at the next image or sound, the next planned checkpoint or the prompt's end. It is limited by the
        # size of the batch and, while other sequences decode, by the time that prompt steps may take.
        rest = prompt.text_ahead()
        room = min(<size_t>self.n_batch, self.governor.chunk()) if decoders > 0 else self.n_batch
        if rest == room + 1 and room > 2:
            # ggml computes a single token with other kernels than several, with slightly different results. Leave
            # two tokens for the last chunk.
            room -= 1
        self.add_tokens(prompt, min(rest, room))
        return True

    cdef void add_row(self, Job* job, llama_token token, size_t at) noexcept nogil:
        cdef int row = self.batch.n_tokens
        self.batch.token[row] = token
        self.batch.pos[row] = <llama_pos>at
        self.batch.n_seq_id[row] = 1
        self.batch.seq_id[row][0] = job.slot
        self.batch.logits[row] = False
        self.batch.n_tokens += 1

    cdef void add_tokens(self, Job* job, size_t n) noexcept nogil:
        cdef size_t i
        for i in range(n):
            self.add_row(job, job.tokens[job.n_past + i], job.n_past + i)
        job.in_step = n
        job.n_draft = 0
        job.logits_row = -1
        self.batched.push_back(job)
        if job.n_past + n == job.tokens.size():
            job.logits_row = self.batch.n_tokens - 1
            self.batch.logits[job.logits_row] = True

    cdef void look_for_drafts(self, size_t decoders, int adapter) noexcept nogil:
        """Makes a draft for each of the ``decoders`` sequences of the step. Asks the draft model for sequences whose
        draft is unsure."""
        cdef Job* job
        cdef DraftWanted want
        cdef double plain = self.governor.usual(<int>decoders), longest = 0
        cdef int64_t started = llama_time_us()
        cdef size_t i = 0
        self.wanted.clear()
        for job in self.active:
            if job.prefilling() or job.adapter != adapter:
                continue
            job.drafter.look(self.model.vocab, job.tokens, job.sampler.get().forced())
            if self.draft_model and job.media.empty() and job.drafter.unsure():
                want.slot = job.slot
                want.tokens = &job.tokens
                want.most = min(job.room_for_draft(self.n_ctx), MOST_DRAFTED // decoders)
                # Computing the tokens that the draft model lacks must not take longer than drafts can save in the rest
                # of the answer.
                if want.most > 0 and (self.always_draft or self.draft_model.get().behind(want) < (
                        job.max_tokens - job.n_completion()) * plain * LEAST_GAIN):
                    self.wanted.push_back(want)
                    longest = max(longest, <double>want.most)
        if self.wanted.empty():
            return
        if not self.always_draft and (
                plain == 0 or self.governor.comparing(started) or not self.draft_model.get().earnings.due()):
            return
        longest = self.draft_model.get().expected(<size_t>longest) + plain
        self.guard.deadline_us = started + max(<int64_t>(longest * 8), <int64_t>SHORTEST_DRAFT_US)
        self.draft_model.get().set_threads(self.governor.threads())
        self.draft_us = self.draft_model.get().draft(self.wanted, plain)
        if self.draft_us < 0:
            self.draft_model.get().earnings.rest()
            return
        for job in self.active:
            if i < self.wanted.size() and self.wanted[i].slot == job.slot:
                job.drafter.take(self.model.vocab, self.wanted[i].draft)
                i += 1

    cdef void settle_drafts(self, int rows, int drafted) noexcept nogil:
        """Reports to the draft model how much time its drafts cost and saved in this step, compared with steps without
        drafts."""
        cdef Job* job
        cdef double accepted = 0, plain = self.governor.usual(rows - drafted)
        for job in self.batched:
            if job.drafter.from_model():
                accepted += job.came
        self.draft_model.get().earnings.add(
            self.draft_us + self.governor.usual(rows) - plain, accepted / self.batched.size() * plain)

    cdef void add_draft(self, Job* job, size_t decoders) noexcept nogil:
        """Adds the draft of one of the ``decoders`` sequences to the batch, after the sequence's last token.

        The draft takes at most its share of the remaining rows. While the governor compares thread counts, ``auto``
        adds no draft, because the comparison needs steps without drafts.
        """
        cdef size_t i, most
        if self.hold_drafts or job.logits_row < 0:
            return
        most = min(job.room_for_draft(self.n_ctx), <size_t>(self.n_batch - self.batch.n_tokens) // decoders)
        if self.always_draft:
            job.n_draft = job.drafter.promising(<int>decoders, most)
        elif not self.governor.comparing(llama_time_us()):
            job.n_draft = job.drafter.worth(self.governor[0], <int>decoders, self.batch.n_tokens, most)
        for i in range(job.n_draft):
            self.add_row(job, job.drafter.draft()[i], job.tokens.size() + i)
            self.batch.logits[self.batch.n_tokens - 1] = True

    cdef void advance(self, Job* job) noexcept nogil:
        """Samples tokens from the rows of logits for as long as they equal the draft. The first token that differs is
        the last."""
        cdef size_t came = 0
        while True:
            self.next_token(job, llama_get_logits_ith(self.ctx, job.logits_row + <int>came))
            if job.finish != Finish.running or came == job.n_draft:
                break
            if job.tokens.back() != job.drafter.draft()[came]:
                break
            came += 1
            job.n_past += 1
        job.drafted += job.n_draft
        job.accepted += came
        job.came = came
        if job.finish != Finish.running:
            self.leave(job)
        elif came < job.n_draft:
            self.take_back(job)

    cdef void next_token(self, Job* job, const float* logits) noexcept nogil:
        """Samples one token of the answer, or its end."""
        cdef llama_token token = -1
        cdef char small[256]
        cdef string piece, text
        cdef int n
        cdef cbool shown, first = job.prefilled_us == 0
        if first:
            job.prefilled_us = llama_time_us()
        if logits != NULL:
            token = job.sampler.get().sample(logits)
        if first and token >= 0 and not job.logits and job.uses_cache and job.media.empty():
            job.logits = keep_logits(logits, llama_vocab_n_tokens(self.model.vocab), job.n_prompt, self.cache[0])
        if token < 0 and job.sampler.get().stopped():
            job.finish = Finish.cancelled
        elif token < 0 and job.sampler.get().constrained():
            self.fail(job, Finish.refused, b"the grammar allows no token here that the model has, or is too ambiguous")
        elif token < 0:
            self.fail(job, Finish.broken, b"the model computed no number by which a token could be chosen")
        elif llama_vocab_is_eog(self.model.vocab, token):
            job.finish = Finish.end
        else:
            job.tokens.push_back(token)
            if self.drafts:
                job.drafter.came(job.tokens)
            shown = job.shows(token)
            n = llama_token_to_piece(self.model.vocab, token, small, sizeof(small), 0, shown)
            if n >= 0:
                piece.assign(small, n)
            else:
                piece.resize(-n)
                llama_token_to_piece(self.model.vocab, token, &piece[0], -n, 0, shown)
            if job.logprobs.wanted():
                job.logprobs.add(self.model.vocab, logits, token, piece.size())
            if job.text.push(piece.data(), piece.size(), text):
                job.finish = Finish.stop
            elif job.sampler.get().complete():
                job.finish = Finish.end
            elif job.n_completion() >= job.max_tokens or job.tokens.size() + job.extra_cells() > <size_t>self.n_ctx:
                job.finish = Finish.length
            self.write(job, text)

    cdef void write(self, Job* job, const string& text) noexcept nogil:
        """Appends text to the answer, and adds a frame with this text to the frames that the next publish sends."""
        cdef size_t before = job.content.size()
        if text.empty():
            return
        job.content.resize(before + 6 * text.size())
        job.content.resize(before + json_escape_into(&job.content[before], text.data(), text.size()))
        if job.first_us == 0:
            job.first_us = llama_time_us()
        if job.logprobs.wanted():
            job.logprobs.shown(text.size(), job.records)
        if job.wants_frames:
            job.staged.append(job.prefix).append(job.content, before, job.content.size() - before)
            job.staged.append(job.opening).append(job.records).append(job.suffix)
            job.records.clear()

    cdef void fail(self, Job* job, Finish finish, const char* error) noexcept nogil:
        job.finish = finish
        job.error = error

    cdef void leave(self, Job* job) noexcept nogil:
        """Takes the slot from a finished job."""
        cdef size_t i
        for i in range(self.running.size()):
            if self.running[i] == job:
                self.running.erase(self.running.begin() + i)
                break
        self.keep(job)
        self.hold_prompts = False
        self.close_job(job)

    cdef void keep(self, Job* job) noexcept nogil:
        """Keeps the KV cells of a finished job in its slot, up to the job's first image or sound."""
        cdef Sequence sequence
        cdef size_t n = job.n_kept()
        if self.ctx != NULL and (n == 0 or not c_cut(self.ctx, job.slot, n, self.n_swa)):
            llama_memory_seq_rm(self.memory, job.slot, -1, -1)
            n = 0
        sequence.tokens.assign(job.tokens.begin(), job.tokens.begin() + n)
        sequence.scope = job.scope
        sequence.session = job.session
        sequence.checkpoints = job.checkpoints
        sequence.checkpoints.cut(n)
        if job.logits and job.logits.get().n <= n:
            sequence.logits = job.logits
        self.cache.leave(job.slot, move(sequence))

    cdef void close_job(self, Job* job) noexcept nogil:
        cdef string rest
        cdef size_t i
        job.text.finish(rest)
        self.write(job, rest)
        if job.finish == Finish.stop:
            job.logprobs.drop()
        if job.logprobs.wanted():
            job.logprobs.rest(job.records)
        job.finished_us = llama_time_us()
        for i in range(self.touched.size()):
            if self.touched[i] == job:
                return
        self.touched.push_back(job)

    # Failed steps.

    cdef void take_back(self, Job* job) noexcept nogil:
        """Removes the cells beyond ``n_past`` from the job's slot. If the model cannot do that, goes back to the last
        checkpoint."""
        cdef shared_ptr[const Checkpoint] last = job.checkpoints.at_most(job.n_past)
        if self.any_cut:
            if c_cut(self.ctx, job.slot, job.n_past, self.n_swa):
                return
        elif last and c_rewind(self.ctx, job.slot, last.get()[0]):
            job.fall_back_to(last.get().n)
            return
        llama_memory_seq_rm(self.memory, job.slot, -1, -1)
        job.fall_back_to(0)

    cdef void make_room(self, cbool for_prompt) noexcept nogil:
        """Makes room in a full shared cache. Evicts an idle slot if there is one. Otherwise a prompt waits for the
        decoding jobs. If that is impossible, the youngest job fails."""
        cdef Job* job
        cdef Job* youngest = self.active[0]
        cdef int slot = self.cache.oldest()
        if slot >= 0:
            if not self.cache.saved(self.cache.held(slot)):
                c_save(self.ctx, slot, self.cache.held(slot), self.cache[0], self.governor.prompt_pace())
            llama_memory_seq_rm(self.memory, slot, -1, -1)
            self.cache.evict(slot)
            return
        if for_prompt:
            for job in self.active:
                if not job.prefilling():
                    self.hold_prompts = True
                    return
        for job in self.active:
            if job.id > youngest.id:
                youngest = job
        self.fail(youngest, Finish.unavailable,
                  b"the KV cache shared by all requests is full; try again, or serve with a larger --n-ctx")
        self.leave(youngest)

    cdef void lose_context(self) noexcept nogil:
        """Handles a failure of llama.cpp. The jobs of this step fail, the context is made again, and the other jobs
        start again."""
        cdef size_t i = 0
        cdef Job* job
        for job in self.batched:
            self.fail(
                job,
                Finish.broken,
                b"llama.cpp failed while it computed this request; the daemon's log has the reason",
            )
        self.close_context()
        self.open_context()
        self.cache.lose_slots()
        while i < self.running.size():
            job = self.running[i]
            job.fall_back_to(0)
            if self.ctx == NULL and job.finish == Finish.running:
                self.fail(job, Finish.broken, b"the model's context was lost and cannot be made again; restart inferd")
            if job.finish == Finish.running:
                i += 1
            else:
                self.leave(job)


cdef class LeavingState:
    """A state that is being written to a file."""

    cdef shared_ptr[Snapshot] snapshot
    cdef readonly vector[uint32_t] replaces

    @property
    def tokens(self):
        return self.snapshot.get().sequence.tokens

    @property
    def scope(self) -> bytes:
        return self.snapshot.get().sequence.scope

    @property
    def session(self) -> bytes:
        return self.snapshot.get().sequence.session

    def write(self, int fd) -> bool:
        """Writes the state at the beginning of a file. Returns false if there is no room."""
        cdef cbool ok
        with nogil:
            ok = write_file(fd, self.snapshot.get()[0])
        return ok


cdef load_ggml():
    """Loads the shared libraries of a portable build."""
    cdef vector[string] files = [os.fsencode(file) for file in portable.companion_files()]
    cdef string directory, variant = portable.chosen_variant().encode()
    if portable.GGML.is_dir():
        directory = os.fsencode(portable.GGML)
        if not c_load_backends(directory, files, variant):
            raise ModelError(portable.cannot_run(variant.decode()))


settle_malloc()
capture_log()
silence_common()
load_ggml()
llama_backend_init()
