# Devices, llama.cpp's log, text streams, the choice of threads, models, adapters and projectors. Part of _llama.pyx.

cdef extern from "unistd.h" nogil:
    int dup(int fd)


cdef extern from "stdio.h" nogil:
    FILE* fdopen(int fd, const char* mode)


cdef str in_a_sentence(const string& error):
    """Returns llama.cpp's message on one line.

    A parser's message ends with ``at`` and the text at the error. At the end of the input, there is no text, so
    "the end" is added.
    """
    cdef str words = " ".join(error.decode("utf-8", "replace").split())
    return words + " the end" if words.endswith(" at") else words


FINISH_NAMES = ("running", "end", "stop", "length", "cancelled", "refused", "unavailable", "broken")
MISS_NAMES = ("", "first", "changed", "evicted", "other user", "opted out", "model")


def devices():
    """Returns the devices of llama.cpp as (kind, name, description, bytes of memory). The kinds are ggml's."""
    return [
        (d.kind.decode(), d.name.decode(), d.description.decode("utf-8", "replace"), d.memory_total)
        for d in c_devices()
    ]


cdef by_name(cmap[string, size_t] sizes):
    return {entry.first.decode(): entry.second for entry in sizes}


def free_of_gpus():
    """Returns the free memory of each GPU in bytes, by its name. A GPU whose driver does not report it is left out."""
    return by_name(c_free_of_gpus())


def cpu_variant() -> str:
    """Returns the variant of the CPU backend in use, such as ``haswell``. In a build for one machine, it is
    ``native``."""
    return c_cpu_variant().decode()


def add_worker(str endpoint) -> bool:
    """Adds the devices of the RPC worker at ``endpoint`` (``IP:port``) for models loaded afterwards. The worker must
    be reachable.

    Returns false if the worker has no device.
    """
    cdef string where = endpoint.encode()
    cdef cbool added
    with nogil:
        added = c_add_worker(where)
    return added


def serve_worker(str endpoint, int threads):
    """Serves the devices of this process at ``endpoint``. Returns only if it cannot listen there."""
    cdef string where = endpoint.encode()
    with nogil:
        c_serve_worker(where, threads)


def system_info() -> str:
    """Returns the instruction sets that this build uses on this machine, in llama.cpp's words."""
    return llama_print_system_info().decode()


def useful_threads() -> int:
    """Returns the number of threads worth using: the number of performance cores that this process may run on."""
    return c_useful_threads()


def drain_log():
    """Returns llama.cpp's log lines since the last call as (ggml log level, text), oldest first, at most 1,000."""
    return [(line.first, line.second.decode("utf-8", "replace").rstrip()) for line in c_drain_log()]


cdef class TextStream:
    """Converts a stream of tokens to text. Releases whole characters, and no text from the first stop string on."""

    cdef CTextStream stream

    def __cinit__(self, stops=()):
        cdef vector[string] c_stops = stops
        self.stream.set_stops(c_stops)

    def push(self, bytes piece):
        """Takes the bytes of a token. Returns (text to release, whether a stop string was completed)."""
        cdef string out
        stopped = self.stream.push(piece, len(piece), out)
        return <bytes>out, stopped

    def finish(self) -> bytes:
        """Returns the text that was held back because it might have begun a stop string."""
        cdef string out
        self.stream.finish(out)
        return out


cdef class ThreadGovernor:
    """Chooses the number of threads of a decode step. See threads.h. All times are microseconds of a monotonic
    clock."""

    cdef CThreadGovernor* governor

    def __cinit__(self, int threads, bint fixed, int max_rows):
        self.governor = new CThreadGovernor(threads, fixed, max_rows)

    def __dealloc__(self):
        del self.governor

    @property
    def threads(self):
        return self.governor.threads()

    def set_single_thread_baseline(self, int64_t one_token):
        self.governor.set_single_thread_baseline(one_token)

    def chunk(self):
        return self.governor.chunk()

    def fits(self, int64_t spent, size_t tokens):
        return self.governor.fits(spent, tokens)

    def deadline(self, int64_t now, int rows, int prompt):
        return self.governor.deadline(now, rows, prompt)

    def usual(self, int rows):
        return self.governor.usual(rows)

    def comparing(self, int64_t now):
        return self.governor.comparing(now)

    def measured(self, int64_t now, int rows, int prompt, int64_t elapsed, int drafted=0):
        self.governor.measured(now, rows, prompt, elapsed, drafted)

    def stalled(self, int64_t now):
        self.governor.stalled(now)


cdef struct Loading:
    void* report
    void* raised  # a list that gets the exception of `report`
    float last
    cbool go_on


cdef cbool on_progress(float progress, void* data) noexcept nogil:
    # llama.cpp calls this for every tensor; a hundred reports are enough.
    cdef Loading* loading = <Loading*>data
    if progress - loading.last < 0.01 and progress < 1.0:
        return True
    loading.last = progress
    with gil:
        try:
            loading.go_on = (<object>loading.report)(progress)
        except BaseException as error:
            (<list>loading.raised).append(error)
            loading.go_on = False
    return loading.go_on


cdef class Model:
    """A model loaded from an open file. ``parts`` are the other files of a split model, in order.

    A ``dry`` model has no weights. It only serves to measure the memory of a context, before a load.

    With ``output_here``, the output matrix stays on this CPU even if the last layer is elsewhere. Then a worker
    returns a few kilobytes for each token instead of all logits. With ``vocab_only``, neither weights nor a device are
    used: such a model has only a vocabulary and chat templates. During the load, ``report`` is called with the
    progress from 0 to 1; if it returns false, the load ends with ``BootCancelled``. Raises ``ModelError`` for a file
    that llama.cpp cannot load. An exception of ``report`` also ends the load and is raised.
    """

    cdef llama_model* model
    cdef const llama_vocab* vocab

    def __cinit__(self, int fd, *, str path, int n_gpu_layers, report, parts=(), bint output_here=False,
                  bint vocab_only=False, bint dry=False):
        cdef llama_model_params params = llama_model_default_params()
        cdef llama_model_tensor_buft_override[2] overrides
        cdef ggml_backend_dev_t[1] no_devices = [NULL]
        cdef Loading loading
        cdef FILE* file
        cdef list raised = []
        cdef vector[string] names
        cdef vector[const char*] c_names
        cdef size_t i
        loading.report = <void*>report
        loading.raised = <void*>raised
        loading.last = -1
        loading.go_on = True
        params.n_gpu_layers = n_gpu_layers
        if dry:
            params.no_alloc = True
            params.load_mode = LLAMA_LOAD_MODE_NONE  # llama.cpp maps no file in a dry run
        if output_here:
            overrides[0].pattern = b"^(output|token_embd)\\.weight$"
            overrides[0].buft = ggml_backend_cpu_buffer_type()
            overrides[1].pattern = NULL
            params.tensor_buft_overrides = overrides
        params.vocab_only = vocab_only
        if vocab_only or n_gpu_layers == 0:
            # Otherwise llama.cpp starts the drivers of all GPUs, and even without layers a GPU computes prompts.
            params.devices = no_devices
        params.progress_callback = on_progress
        params.progress_callback_user_data = &loading
        if parts:
            names = [f"/dev/fd/{each}".encode() for each in (fd, *parts)]
            for i in range(names.size()):
                c_names.push_back(names[i].c_str())
            with nogil:
                self.model = llama_model_load_from_splits(c_names.data(), c_names.size(), params)
        else:
            file = fdopen(dup(fd), "rb")
            if file == NULL:
                raise ModelError(f"cannot read the model file {path}")
            with nogil:
                rewind(file)
                self.model = llama_model_load_from_file_ptr(file, params)
                fclose(file)
        if self.model == NULL:
            if raised:
                raise raised[0]
            if not loading.go_on:
                raise BootCancelled("the load was cancelled")
            raise ModelError(f"llama.cpp cannot load {path}: it is no GGUF model, is truncated, or is of an "
                             f"architecture that this version does not know (see the log)")
        if llama_model_has_encoder(self.model) or llama_model_is_diffusion(self.model):
            raise ModelError(f"{path} is not a decoder-only text model; inferd cannot generate with it")
        self.vocab = llama_model_get_vocab(self.model)

    def __dealloc__(self):
        if self.model != NULL:
            llama_model_free(self.model)

    @property
    def n_ctx_train(self) -> int:
        """The length of the context that the model was trained with, in tokens."""
        return llama_model_n_ctx_train(self.model)

    @property
    def n_layer(self) -> int:
        return llama_model_n_layer(self.model)

    @property
    def size(self) -> int:
        """The size of all tensors in bytes."""
        return llama_model_size(self.model)

    @property
    def longest_token(self) -> int:
        """The length of the longest text of a token in bytes."""
        cdef int32_t token, longest = 1
        for token in range(llama_vocab_n_tokens(self.vocab)):
            longest = max(longest, -llama_token_to_piece(self.vocab, token, NULL, 0, 0, True))
        return longest

    def tokens(self, bytes text):
        """Returns the token ids of a text. Names of control tokens in the text are plain text."""
        cdef string c_text = text
        return common_tokenize(self.vocab, c_text, False, False)

    def text(self, tokens) -> bytes:
        """Returns the text of token ids, control tokens included, as bytes, because a token may end inside a
        character."""
        cdef string text, piece
        cdef llama_token token
        cdef int n
        for token in tokens:
            piece.resize(256)
            n = llama_token_to_piece(self.vocab, token, &piece[0], <int32_t>piece.size(), 0, True)
            if n < 0:
                piece.resize(-n)
                n = llama_token_to_piece(self.vocab, token, &piece[0], -n, 0, True)
            text.append(piece, 0, n)
        return text

    @property
    def description(self) -> str:
        """The architecture, size and quantisation in llama.cpp's words."""
        cdef char text[256]
        llama_model_desc(self.model, text, sizeof(text))
        return text.decode("utf-8", "replace")

    @property
    def control_tokens(self):
        """Maps the text of each control token (bytes) to its id."""
        cdef int32_t token
        return {
            self.text([token]): token
            for token in range(llama_vocab_n_tokens(self.vocab))
            if llama_vocab_get_attr(self.vocab, token) & LLAMA_TOKEN_ATTR_CONTROL
        }

    @property
    def has_chat_template(self) -> bool:
        return llama_model_chat_template(self.model, NULL) != NULL


cdef class Adapter:
    """A LoRA adapter for ``model``, loaded from an open file. Raises ``ModelError``.

    ``scale`` multiplies the adapter's effect. Load an adapter before making the context that uses it. It lives as long
    as the model.
    """

    cdef Model model
    cdef llama_adapter_lora* adapter
    cdef float scale

    def __cinit__(self, Model model, int fd, *, str name, float scale=1.0):
        cdef FILE* file = fdopen(dup(fd), "rb")
        self.model = model
        self.scale = scale
        if file == NULL:
            raise ModelError(f"cannot read the adapter {name!r}")
        with nogil:
            rewind(file)
            self.adapter = llama_adapter_lora_init_from_file_ptr(model.model, file)
            fclose(file)
        if self.adapter == NULL:
            raise ModelError(f"llama.cpp cannot load the adapter {name!r}: it is no LoRA adapter in a GGUF file, is "
                             f"damaged, or was made for another model")
        if llama_adapter_get_alora_n_invocation_tokens(self.adapter) > 0:
            raise ModelError(f"the adapter {name!r} begins only where its own tokens appear, which inferd does not "
                             f"support; use a plain LoRA adapter")


cdef class Projector:
    """The encoder of images and sounds for ``model``, in the GGUF file ``path``."""

    cdef Model model
    cdef unique_ptr[CProjector] projector

    def __cinit__(self, Model model, str path, *, int threads):
        cdef string error
        cdef string c_path = path.encode()
        self.model = model
        with nogil:
            self.projector = CProjector.make(c_path, model.model, threads, error)
        if not self.projector:
            raise ModelError(f"the projector {path} cannot be used: {in_a_sentence(error)}")

    @property
    def vision(self) -> bool:
        return self.projector.get().sees()

    @property
    def audio(self) -> bool:
        return self.projector.get().hears()

    @property
    def sample_rate(self) -> int:
        """The sample rate of its sounds in Hz, or 0 if it takes no sounds."""
        return self.projector.get().sample_rate()

    @property
    def marker(self) -> str:
        """The beginning of the placeholder for an image or a sound in a conversation. The number of the image or sound
        and ``>`` follow."""
        return self.projector.get().marker().decode()
