# Embedding and ranking models, which turn token sequences into vectors and scores. Part of _llama.pyx.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport isfinite, sqrt
from libc.string cimport memcpy


cdef extern from "native/embed_input.h" namespace "inferd" nogil:
    ctypedef vector[llama_token] Tokens "inferd::Tokens"
    cdef cppclass EmbedInput:
        EmbedInput(const llama_model* model) except +ValueError
        Tokens text(const string& text) except +ValueError
        Tokens pair(const string& query, const string& document) except +ValueError


cdef extern from "native/embed.h" namespace "inferd" nogil:
    ctypedef struct EmbedParams "inferd::Embedder::Params":
        int n_ctx
        int n_seq
        int pooling
        int threads
        int flash_attention
    ctypedef enum EmbedOutcome "inferd::Embedder::Outcome":
        EMBED_DONE "inferd::Embedder::Outcome::done"
        EMBED_INTERRUPTED "inferd::Embedder::Outcome::interrupted"
        EMBED_FAILED "inferd::Embedder::Outcome::failed"
    cdef cppclass CEmbedder "inferd::Embedder":
        @staticmethod
        unique_ptr[CEmbedder] make(llama_model* model, const EmbedParams& params)
        int pooling()
        int n_ctx()
        const llama_context* context()
        int width()
        cbool warm_up(const Tokens& tokens)
        EmbedOutcome compute(const vector[Tokens]& sequences, float* out)
        void interrupt()
        void resume()


cdef extern from "llama.h" nogil:
    int32_t llama_model_meta_val_str(const llama_model* model, const char* key, char* buf, size_t buf_size)
    int32_t llama_vocab_bos(const llama_vocab* vocab)


cdef extern from "gguf.h" nogil:
    ctypedef struct gguf_context
    ctypedef struct ggml_context
    ctypedef struct gguf_init_params:
        cbool no_alloc
        ggml_context** ctx
    gguf_context* gguf_init_from_file_ptr(FILE* file, gguf_init_params params) except +
    void gguf_free(gguf_context* ctx)
    int64_t gguf_find_key(const gguf_context* ctx, const char* key)
    int gguf_get_kv_type(const gguf_context* ctx, int64_t key)
    const char* gguf_get_val_str(const gguf_context* ctx, int64_t key)
    uint32_t gguf_get_val_u32(const gguf_context* ctx, int64_t key)
    int GGUF_TYPE_UINT32
    int GGUF_TYPE_STRING


POOLINGS = {"unspecified": -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}


def metadata(Model model, str key) -> str:
    """Returns a value of the model file's metadata as text, or ``""`` if the key is missing."""
    cdef char value[512]
    cdef bytes c_key = key.encode()
    if llama_model_meta_val_str(model.model, c_key, value, sizeof(value)) < 0:
        return ""
    return value.decode("utf-8", "replace")


def file_pooling(int fd) -> str:
    """Returns the pooling that the metadata of an open model file names, as a key of POOLINGS.

    Does not read the weights. Returns ``unspecified`` for an unreadable file; loading it later reports the reason.
    """
    cdef gguf_init_params params
    cdef gguf_context* header
    cdef int64_t family, pooling
    cdef uint32_t number
    cdef FILE* file = fdopen(dup(fd), "rb")
    if file == NULL:
        return "unspecified"
    params.no_alloc = True
    params.ctx = NULL
    try:
        rewind(file)
        header = gguf_init_from_file_ptr(file, params)
    finally:
        fclose(file)
    if header == NULL:
        return "unspecified"
    try:
        family = gguf_find_key(header, "general.architecture")
        if family < 0 or gguf_get_kv_type(header, family) != GGUF_TYPE_STRING:
            return "unspecified"
        pooling = gguf_find_key(header, <bytes>gguf_get_val_str(header, family) + b".pooling_type")
        if pooling < 0 or gguf_get_kv_type(header, pooling) != GGUF_TYPE_UINT32:
            return "unspecified"
        number = gguf_get_val_u32(header, pooling)
    finally:
        gguf_free(header)
    return next((name for name, known in POOLINGS.items() if known == number), "unspecified")


def unit_vectors(bytes rows, int width, int dimensions) -> bytes:
    """Returns the first ``dimensions`` numbers of each row of ``width`` float32, scaled to length 1. A zero row stays
    zero.

    Raises ``ValueError`` for a number that is not finite.
    """
    cdef Py_ssize_t n = len(rows) // (4 * width), row
    cdef int i
    cdef double length, scale
    cdef cbool finite = True
    cdef bytes made = PyBytes_FromStringAndSize(NULL, 4 * n * dimensions)
    cdef const float* source = <const float*><const char*>rows
    cdef float* target = <float*><char*>made
    with nogil:
        for row in range(n):
            length = 0
            for i in range(dimensions):
                length += <double>source[i] * source[i]
            finite = finite and isfinite(length)
            scale = 1 / sqrt(length) if length > 0 else 0
            for i in range(dimensions):
                target[i] = <float>(source[i] * scale)
            source += width
            target += dimensions
    if not finite:
        raise ValueError("the model made a number that is not finite")
    return made


cdef bytes as_bytes(const Tokens& tokens):
    return (<const char*>tokens.data())[:tokens.size() * sizeof(llama_token)]


cdef class Embedder:
    """A model's context for embeddings, or for scores if the pooling is ``rank``.

    ``n_ctx`` is the maximum number of tokens of one sequence and of a batch. ``n_seq`` is the maximum number of
    sequences of a batch. The property ``n_ctx`` is the number that llama.cpp granted. ``pooling`` is a key of
    ``POOLINGS``; ``unspecified`` keeps the pooling of the model file. If ``threads`` is 0, the context chooses.
    ``flash_attention`` is ``on``, ``off`` or ``auto``. A sequence is given as the bytes of its int32 token ids. All
    methods are thread-safe, except that one thread at a time may call ``compute``. Raises ``ModelError``.
    """

    cdef Model model
    cdef unique_ptr[EmbedInput] input
    cdef unique_ptr[CEmbedder] context

    def __cinit__(self, Model model, *, int n_ctx, int n_seq, str pooling, int threads, str flash_attention):
        cdef EmbedParams params
        flash = {"on": LLAMA_FLASH_ATTN_TYPE_ENABLED, "off": LLAMA_FLASH_ATTN_TYPE_DISABLED,
                 "auto": LLAMA_FLASH_ATTN_TYPE_AUTO}
        params.n_ctx = n_ctx
        params.n_seq = n_seq
        params.pooling = POOLINGS[pooling]
        params.threads = threads
        params.flash_attention = flash[flash_attention]
        self.model = model
        try:
            self.input.reset(new EmbedInput(model.model))
        except ValueError as error:
            raise ModelError(f"the model file cannot be used: {error}") from None
        with nogil:
            self.context = CEmbedder.make(model.model, params)
        if not self.context:
            raise ModelError(f"llama.cpp cannot make an embedding context of {n_ctx} tokens for this model: lower "
                             f"embed_n_ctx (the log has llama.cpp's reason)")

    @property
    def n_ctx(self) -> int:
        return self.context.get().n_ctx()

    @property
    def width(self) -> int:
        """The number of floats in a row: the width of a vector, or the number of the classifier's outputs. The first
        output is the score."""
        return self.context.get().width()

    @property
    def pooling(self) -> str:
        for name, number in POOLINGS.items():
            if number == self.context.get().pooling():
                return name

    def taken(self):
        """Returns the same as :meth:`Engine.taken`."""
        cdef Taken taken
        taken.add(self.context.get().context())
        return taken.here, by_name(taken.gpus)

    def text(self, bytes text) -> bytes:
        """Returns the tokens of one text (UTF-8), with the model's special tokens. There may be none.

        Raises ``ValueError`` if the tokenizer fails.
        """
        cdef string c_text = text
        cdef Tokens tokens
        with nogil:
            tokens = self.input.get().text(c_text)
        return as_bytes(tokens)

    def pair(self, bytes query, bytes document) -> bytes:
        """Returns the tokens of a query and a document, in the format of the model's family. Raises as ``text``
        does."""
        cdef string c_query = query, c_document = document
        cdef Tokens tokens
        with nogil:
            tokens = self.input.get().pair(c_query, c_document)
        return as_bytes(tokens)

    def warm_up(self) -> bool:
        """Computes 16 tokens twice on one thread. Returns false if llama.cpp cannot compute at all."""
        cdef Tokens tokens
        cdef llama_token token = max(0, llama_vocab_bos(self.model.vocab))
        cdef cbool done
        tokens.assign(min(16, self.n_ctx), token)
        with nogil:
            done = self.context.get().warm_up(tokens)
        return done

    def compute(self, sequences):
        """Computes a batch. Returns one row of ``width`` float32 numbers for each sequence, or ``None`` if
        interrupted.

        Raises ``RuntimeError`` if the batch exceeds the limits or if llama.cpp fails. llama.cpp's log has the reason.
        """
        cdef vector[Tokens] batch
        cdef bytes sequence
        cdef Py_ssize_t i = 0
        cdef EmbedOutcome outcome
        batch.resize(len(sequences))
        for sequence in sequences:
            batch[i].resize(len(sequence) // sizeof(llama_token))
            memcpy(batch[i].data(), <const char*>sequence, batch[i].size() * sizeof(llama_token))
            i += 1
        cdef bytes rows = PyBytes_FromStringAndSize(NULL, batch.size() * self.width * sizeof(float))
        cdef float* out = <float*><char*>rows
        with nogil:
            outcome = self.context.get().compute(batch, out)
        if outcome == EMBED_FAILED:
            raise RuntimeError("llama.cpp failed while it computed a batch")
        return rows if outcome == EMBED_DONE else None

    def interrupt(self):
        """Ends the current ``compute`` and each later one, until ``resume`` is called."""
        self.context.get().interrupt()

    def resume(self):
        self.context.get().resume()
