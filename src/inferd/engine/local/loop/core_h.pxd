# The Cython declarations of the token loop's C++ parts, which their headers document.
# (This file has over 400 lines, because it is one list of declarations.)

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.map cimport map as cmap
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

from inferd.engine.local.loop.llama_h cimport (
    llama_adapter_lora, llama_batch, llama_context, llama_context_params, llama_model, llama_token, llama_token_data,
    llama_vocab)


cdef extern from "native/host.h" namespace "inferd" nogil:
    cdef cppclass Device:
        string kind
        string name
        string description
        size_t memory_total
    vector[Device] c_devices "inferd::devices"()
    int c_useful_threads "inferd::useful_threads"()
    void settle_malloc()
    void capture_log()
    vector[pair[int, string]] c_drain_log "inferd::drain_log"()
    void* attach_pool(llama_context* ctx, int threads)
    void free_pool(void* pool)
    int decode(llama_context* ctx, const llama_batch& batch)


cdef extern from "native/backends.h" namespace "inferd" nogil:
    cbool c_load_backends "inferd::load_backends"(
        const string& directory, const vector[string]& files, const string& variant)
    string c_cpu_variant "inferd::cpu_variant"()
    cbool c_add_worker "inferd::add_worker"(const string& endpoint)
    void c_serve_worker "inferd::serve_worker"(const string& endpoint, int threads)


cdef extern from "native/taken.h" namespace "inferd" nogil:
    cdef cppclass Taken:
        size_t here
        cmap[string, size_t] gpus
        void add(const llama_context* ctx)
    cmap[string, size_t] c_free_of_gpus "inferd::free_of_gpus"()


cdef extern from "native/guards/cancel.h" namespace "inferd" nogil:
    cdef cppclass CancellableMutex:
        void lock() except +
        void unlock()


cdef extern from "native/media.h" namespace "inferd" nogil:
    cdef llama_token MEDIA_TOKEN "inferd::kMediaToken"
    cdef cppclass MediaItem:
        cbool audio
        cbool encoded
        uint32_t width
        uint32_t height
        const unsigned char* data
        size_t size
    cdef cppclass MediaSpan:
        size_t at
        size_t n_pos
        size_t n_cells
        vector[float] embeddings
    cdef cppclass CProjector "inferd::Projector":
        @staticmethod
        unique_ptr[CProjector] make(const string& path, const llama_model* model, int threads, string& error)

        @staticmethod
        void add_need(const string& path, const llama_model* model, Taken& taken)
        cbool sees()
        cbool hears()
        int sample_rate()
        const string& marker()
        CancellableMutex& encoding()
        int decode(llama_context* ctx, const MediaSpan& span, int sequence, int n_batch)


cdef extern from "common.h" nogil:
    vector[llama_token] common_tokenize(const llama_vocab* vocab, const string& text, cbool add_special, cbool special)


cdef extern from "native/sampling/guidance.h" namespace "inferd" nogil:
    cbool c_open_guidance "inferd::open_guidance"(const string& path, string& version, string& error)
    cdef cppclass GuidanceVocab:
        GuidanceVocab(const llama_vocab* vocab)
    cdef cppclass GuideStop:
        cbool stopped()
    cdef cppclass CGuide "inferd::Guide":
        @staticmethod
        unique_ptr[CGuide] make(
            shared_ptr[GuidanceVocab] vocab, const char* kind, const string& grammar, string& error)
        const shared_ptr[GuideStop]& stop()
        void wait_for(vector[string] words, vector[llama_token] tokens)
        cbool allows(llama_token token)
        cbool accept(llama_token token)
        cbool accept_text(const string& text)
        cbool accepting()
        cbool complete()
        vector[llama_token] forced()
        const uint32_t* mask()


cdef extern from "native/sampling/sampling.h" namespace "inferd" nogil:
    cdef cppclass SamplingParams:
        float temperature
        float top_p
        float min_p
        float repeat_penalty
        float presence_penalty
        float frequency_penalty
        int32_t top_k
        uint32_t seed
    cdef cppclass Grammar:
        string text
        cbool lazy
        vector[string] triggers
        vector[llama_token] trigger_tokens
        vector[llama_token] prefill
    cdef cppclass Sampler:
        @staticmethod
        unique_ptr[Sampler] make(
            const llama_vocab* vocab, const SamplingParams& params, const Grammar& grammar, string& error)
        void follow(unique_ptr[CGuide] guide)
        cbool stopped()
        cbool constrained()
        cbool complete()
        vector[llama_token] forced()
        llama_token sample(const float* logits)


cdef extern from "native/sampling/nucleus.h" namespace "inferd" nogil:
    void c_nucleus "inferd::nucleus"(
        const float* logits, int32_t n, float p, vector[llama_token_data]& out) except +


cdef extern from "native/sampling/logprobs.h" namespace "inferd" nogil:
    cdef cppclass CLogprobs "inferd::Logprobs":
        void want(int top)
        cbool wanted()
        void add(const llama_vocab* vocab, const float* logits, llama_token token, size_t size)
        void shown(size_t size, string& out)
        void rest(string& out)
        void drop()


cdef extern from "native/text.h" namespace "inferd" nogil:
    cdef cppclass CTextStream "inferd::TextStream":
        void set_stops(const vector[string]& stops)
        cbool push(const char* data, size_t n, string& out)
        void finish(string& out)


cdef extern from "native/threads.h" namespace "inferd" nogil:
    cdef cppclass CThreadGovernor "inferd::ThreadGovernor":
        CThreadGovernor(int threads, cbool fixed, int max_rows)
        int threads()
        void set_single_thread_baseline(int64_t one_token)
        double prompt_pace()
        size_t chunk()
        cbool fits(int64_t spent, size_t tokens)
        int64_t predicted(int rows, int prompt)
        int64_t deadline(int64_t now, int rows, int prompt)
        double usual(int rows)
        cbool comparing(int64_t now)
        void measured(int64_t now, int rows, int prompt, int64_t elapsed, int drafted)
        void stalled(int64_t now)


cdef extern from "native/sampling/drafts.h" namespace "inferd" nogil:
    cdef size_t MOST_DRAFTED "inferd::Drafter::kMost"
    cdef double LEAST_GAIN "inferd::Drafter::kLeastGain"
    cdef cppclass CDrafter "inferd::Drafter":
        const vector[llama_token]& draft()
        void look(const llama_vocab* vocab, const vector[llama_token]& tokens, vector[llama_token] forced)
        size_t promising(int sequences, size_t most)
        size_t worth(const CThreadGovernor& governor, int sequences, int rows, size_t most)
        void came(const vector[llama_token]& tokens)
        cbool unsure()
        void take(const llama_vocab* vocab, vector[llama_token] of_model)
        cbool from_model()


cdef extern from "native/sampling/draft_model.h" namespace "inferd" nogil:
    cbool same_vocabulary(const llama_vocab* one, const llama_vocab* other)
    cdef cppclass Earnings:
        cbool due()
        void add(double cost, double saved)
        void rest()
    cdef cppclass DraftWanted:
        int slot
        const vector[llama_token]* tokens
        size_t most
        vector[llama_token] draft
    cdef cppclass DraftModel:
        @staticmethod
        unique_ptr[DraftModel] make(llama_model* model, llama_context_params params, int n_slots, void* pool)
        void use_pool(void* pool)
        const llama_context* context()
        cbool warm_up()
        void set_threads(int threads)
        double expected(size_t n)
        double behind(const DraftWanted& wanted)
        double draft(vector[DraftWanted]& all, double allowance)
        Earnings earnings


cdef extern from "native/cache/match.h" namespace "inferd" nogil:
    cdef cppclass PieceOf:
        pass
    cdef cppclass Match:
        size_t held
        size_t prompt
    PieceOf pieces_of(vector[string] texts)


cdef extern from "native/cache/checkpoints.h" namespace "inferd" nogil:
    cdef cppclass Checkpoint:
        size_t n
    cdef cppclass Checkpoints:
        shared_ptr[const Checkpoint] at_most(size_t n)
        void cut(size_t n)


cdef extern from "native/cache/prefix_cache.h" namespace "inferd" nogil:
    cdef enum class Miss(int):
        none
    cdef cppclass Sequence:
        vector[llama_token] tokens
        string scope
        string session
        Checkpoints checkpoints
        shared_ptr[const Checkpoint] logits
    cdef cppclass Stored:
        uint32_t id
        Sequence sequence
        size_t size
    cdef cppclass Wanted:
        const vector[llama_token]* prompt
        size_t n_reusable
        size_t n_max
        const string* scope
        const string* session
        cbool opted_out
        cbool may_fetch
        double token_us
    cdef cppclass Live:
        int slot
        const vector[llama_token]* tokens
        size_t n_past
        const string* scope
        cbool shared
        const Checkpoints* checkpoints
        const vector[size_t]* marks
        const shared_ptr[const Checkpoint]* logits
    ctypedef uint8_t StateBytes "uint8_t[]"
    cdef cppclass Snapshot:
        Sequence sequence
        size_t size
    cdef cppclass Plan:
        cbool wait
        uint32_t fetch
        int slot
        int copy_from
        cbool save
        shared_ptr[Snapshot] restore
        Match keep
        shared_ptr[const Checkpoint] rewind
        Checkpoints checkpoints
        shared_ptr[const Checkpoint] logits
        vector[llama_token] prompt
        Miss miss
    cdef cppclass CPrefixCache "inferd::PrefixCache":
        CPrefixCache(int slots, size_t budget, cbool any_cut, PieceOf text_of)
        size_t bytes()
        size_t tokens()
        cbool busy(int slot)
        void add_file(Stored file)
        void drop_file(uint32_t id)
        cbool filed(const Sequence& sequence)
        void outdated(const Sequence& sequence)
        const Sequence& held(int slot)
        Plan plan(const Wanted& wanted, const vector[Live]& live)
        void take(int slot)
        void leave(int slot, Sequence sequence)
        int oldest()
        void evict(int slot)
        void lose_slots()
        cbool saved(const Sequence& sequence)
        cbool reserve(size_t size)
        void add(Sequence sequence, unique_ptr[StateBytes] data, size_t size)


cdef extern from "native/cache/state.h" namespace "inferd" nogil:
    PieceOf piece_of(const llama_vocab* vocab)
    cbool c_save "inferd::save"(
        llama_context* ctx, int slot, const Sequence& sequence, CPrefixCache& cache, double token_us
    )
    cbool c_load "inferd::load"(llama_context* ctx, int slot, const shared_ptr[Snapshot]& snapshot, CPrefixCache& cache)
    cbool c_copy "inferd::copy"(llama_context* ctx, int src, int dst, const Sequence* keep, CPrefixCache& cache)
    cbool c_cut "inferd::cut"(llama_context* ctx, int slot, size_t n, int n_swa)
    cbool c_rewind "inferd::rewind"(llama_context* ctx, int slot, const Checkpoint& to)
    void keep_checkpoint(
        llama_context* ctx, int slot, size_t n, Checkpoints& checkpoints, CPrefixCache& cache, double token_us
    )
    shared_ptr[const Checkpoint] keep_logits(const float* logits, int n_vocab, size_t n, CPrefixCache& cache)
    const float* floats_of(const Checkpoint& logits)


cdef extern from "<chrono>" namespace "std::chrono" nogil:
    cdef cppclass milliseconds:
        milliseconds()
        milliseconds(int64_t ms)


cdef extern from "native/exchange.h" namespace "inferd" nogil:
    cdef enum class Finish(int):
        running
        end
        stop
        length
        cancelled
        refused
        unavailable
        broken

    cdef cppclass Job:
        uint64_t id
        size_t n_prompt
        uint32_t max_tokens
        cbool wants_frames
        string prefix
        string opening
        string suffix
        unique_ptr[Sampler] sampler
        CTextStream text
        vector[llama_token] preserved
        cbool uses_cache
        int adapter
        string scope
        string session
        vector[llama_token] tokens
        vector[MediaSpan] media
        size_t n_past
        size_t n_cached
        vector[size_t] marks
        Checkpoints checkpoints
        shared_ptr[const Checkpoint] logits
        Miss miss
        uint32_t fetching
        cbool fetched
        int slot
        int logits_row
        size_t in_step
        size_t n_draft
        size_t came
        CDrafter drafter
        uint32_t drafted
        uint32_t accepted
        string staged
        string content
        CLogprobs logprobs
        string records
        Finish finish
        const char* error
        int64_t submitted_us
        int64_t seated_us
        int64_t prefilled_us
        int64_t first_us
        int64_t finished_us
        cbool shows(llama_token token)
        size_t n_completion()
        const MediaSpan* next_media()
        size_t text_ahead()
        size_t extra_cells()
        size_t n_reusable()
        size_t n_kept()
        void begin_at(const Match& match, const vector[llama_token]& prompt)
        void mark(const vector[size_t]& turns)
        cbool at_mark()
        void fall_back_to(size_t n)
        size_t room_for_draft(size_t n_ctx)
        cbool prefilling()

    void sort_by_slot(vector[Job*]& jobs)

    cdef cppclass Exchange:
        int fd()
        uint64_t submit(unique_ptr[Job] job)
        void cancel(uint64_t id, cbool drop)
        void stop()
        vector[uint64_t] ready()
        unique_ptr[Job] collect(uint64_t id, string& out)
        double read_share(uint64_t id)
        void call()
        cbool intake(vector[Job*]& waiting, vector[Job*]& running, vector[Job*]& active, size_t slots,
                     milliseconds idle_after, cbool& idle)
        cbool begin_step(const Job* prompt)
        cbool interrupted()
        void expect(int64_t us)
        void pulse(uint64_t& steps, int64_t& busy_us, int64_t& predicted_us)
        void publish(const vector[Job*]& jobs)


cdef extern from "native/adapters.h" namespace "inferd" nogil:
    cdef cppclass CAdapters "inferd::Adapters":
        void add(llama_adapter_lora* adapter, float scale)
        void forget()
        void apply(llama_context* ctx, int adapter)
        int turn(const vector[Job*]& active, size_t& decoders)


cdef extern from "native/cache/depot.h" namespace "inferd" nogil:
    cdef cppclass Depot:
        Depot(Exchange& exchange)
        void open()
        void kept(Stored file, cbool usable)
        void delivered(uint32_t id, unique_ptr[StateBytes] data, size_t size)
        void saved(uint32_t id, vector[uint32_t] gone)
        void flush()
        cbool flushed()
        vector[uint32_t] wanted()
        shared_ptr[Snapshot] leaving(vector[uint32_t]& replaces)
        void settle(CPrefixCache& cache, const vector[Job*]& waiting)
        void want(uint32_t id)
        void file_one(llama_context* ctx, CPrefixCache& cache)
        cbool flushing()
        void file_evicted(CPrefixCache& cache)
    unique_ptr[StateBytes] read_file(int fd, size_t offset, size_t size)
    cbool write_file(int fd, const Snapshot& snapshot)
