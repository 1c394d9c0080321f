# Python functions for tests and benches: whole draws by the native sampling, and only top-p, by inferd and by
# llama.cpp. The token loop calls native/sampling/sampling.h instead. Part of _llama.pyx.


def draws(Model model, const float[::1] logits, sampling, int count):
    """Returns the first ``count`` tokens that a request with this ``sampling`` draws if the logits are the same each
    time."""
    cdef SamplingParams settings = settings_of(sampling)
    cdef Grammar none
    cdef string error
    cdef unique_ptr[Sampler] sampler
    cdef vector[llama_token] drawn
    cdef int i
    if logits.shape[0] != llama_vocab_n_tokens(model.vocab):
        raise ValueError(logits.shape[0])
    with nogil:
        sampler = Sampler.make(model.vocab, settings, none, error)
        for i in range(count):
            drawn.push_back(sampler.get().sample(&logits[0]))
    return drawn


def nucleus(const float[::1] logits, float top_p):
    """Returns the ids of the likeliest tokens whose probabilities add up to ``top_p``, in any order. See nucleus.h."""
    cdef vector[llama_token_data] found
    cdef llama_token_data one
    c_nucleus(&logits[0], <int32_t>logits.shape[0], top_p, found)
    return [one.id for one in found]


def nucleus_of_llama_cpp(const float[::1] logits, float top_p):
    """Returns the same ids from llama.cpp's own sampler, which sorts all tokens."""
    cdef vector[llama_token_data] all_of_them
    cdef llama_token_data one
    cdef llama_token_data_array array
    cdef llama_sampler* sampler
    cdef Py_ssize_t i
    for i in range(logits.shape[0]):
        one.id = <llama_token>i
        one.logit = logits[i]
        one.p = 0
        all_of_them.push_back(one)
    array.data = all_of_them.data()
    array.size = all_of_them.size()
    array.selected = -1
    array.sorted = False
    sampler = llama_sampler_init_top_p(top_p, 1)
    llama_sampler_apply(sampler, &array)
    llama_sampler_free(sampler)
    return [array.data[i].id for i in range(<Py_ssize_t>array.size)]
