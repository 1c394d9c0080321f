# Encodes vectors as JSON. Included by _fastpath.pyx.

from libc.math cimport isfinite


cdef extern from "<charconv>" namespace "std" nogil:
    ctypedef struct to_chars_result:
        char* ptr
    to_chars_result to_chars(char* first, char* last, float value)


cdef enum:
    # The longest numbers have 15 characters, like -1.36441695e-05. A comma follows.
    FLOAT_ROOM = 17


cdef char* _write_float(char* at, float value) noexcept nogil:
    cdef char* start = at
    at = to_chars(at, at + FLOAT_ROOM, value).ptr
    while start < at:
        if start[0] == b'.' or start[0] == b'e':
            return at
        start += 1
    at[0] = b'.'  # so that no parser reads it as an integer
    at[1] = b'0'
    return at + 2


def float_rows(values, Py_ssize_t width):
    cdef Py_buffer source
    cdef const float* numbers
    cdef Py_ssize_t count, i
    cdef bint finite = True
    cdef char* text = NULL
    cdef char* at
    PyObject_GetBuffer(values, &source, PyBUF_SIMPLE)
    try:
        if width < 1 or source.len % (4 * width):
            raise ValueError("the values are no whole rows of that width")
        numbers = <const float*>source.buf
        count = source.len // 4
        text = at = <char*>PyMem_Malloc(2 + count * FLOAT_ROOM + 2 * (count // width))
        if text == NULL:
            raise MemoryError()
        with nogil:
            at[0] = b'['
            at += 1
            for i in range(count):
                finite = finite and isfinite(numbers[i])
                if not finite:
                    break
                if i % width == 0:
                    at[0] = b'['
                    at += 1
                at = _write_float(at, numbers[i])
                if i % width == width - 1:
                    at[0] = b']'
                    at += 1
                at[0] = b','
                at += 1
            if count > 0:
                at -= 1
            at[0] = b']'
            at += 1
        if not finite:
            raise ValueError("a value is not finite")
        return PyBytes_FromStringAndSize(text, at - text)
    finally:
        PyMem_Free(text)
        PyBuffer_Release(&source)
