# Top-p sampling as Python functions, ours and llama.cpp's. Part of _llama.pyx.


def nucleus(const float[::1] logits, float top_p):
    """The ids of the likeliest tokens whose probabilities add up to ``top_p``, in no order; see nucleus.h."""
    cdef vector[llama_token_data] found
    cdef llama_token_data one
    c_nucleus(&logits[0], <int32_t>logits.shape[0], top_p, found)
    return [one.id for one in found]


def nucleus_of_llama_cpp(const float[::1] logits, float top_p):
    """The same ids from llama.cpp's own sampler, which sorts."""
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
