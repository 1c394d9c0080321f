# A Python function over a buffer of the CPU, whose clearing a patch of ggml changes, for tests. Part of _llama.pyx.


def cleared(data, uint8_t value):
    """Returns the bytes of a buffer with ``data`` after it was cleared to ``value``."""
    cdef ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), len(data))
    cdef char* base = <char*>ggml_backend_buffer_get_base(buffer)
    memcpy(base, <const char*>data, len(data))
    ggml_backend_buffer_clear(buffer, value)
    try:
        return base[:len(data)]
    finally:
        ggml_backend_buffer_free(buffer)
