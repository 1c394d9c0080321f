# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled implementation of :mod:`inferd.fastpath`; the docstrings of ``_purepath`` document it."""

from cpython.buffer cimport PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memmove

cimport cython

from inferd._json cimport json_escape_into
from inferd._text cimport text_count_points, text_fill, text_long_string, text_unescape

from inferd.errors import FrameTooLarge, MalformedFrame

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/mman.h>
    /* Advises the kernel to use huge pages. Without them, freeing 64 MiB (16,384 pages) takes 6 ms. */
    static void use_huge_pages(void *memory, size_t size) {
        const size_t page = 4096;
        char *first = (char *)(((size_t)memory + page - 1) / page * page);
        if (size > page)
            (void)madvise(first, ((char *)memory + size - first) / page * page, MADV_HUGEPAGE);
    }
    #else
    static void use_huge_pages(void *, size_t) {}
    #endif
    """
    void use_huge_pages(void* memory, size_t size) noexcept nogil

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 widest)
    void* PyUnicode_DATA(object text)

cdef enum:
    # The size of a new connection's block. A short conversation fits, and 1,024 idle connections take 4 MiB.
    FIRST_BLOCK = 4096
    # How many bytes larger than the cap a block may be: room for the newline, and for bytes that the same read
    # returns after it.
    READ_CHUNK = 4096
    # A block with less free room at its end is compacted or enlarged, to avoid reads of a few bytes.
    LEAST_READ = 1024
    # Texts up to this size are escaped on the stack; a token is a few bytes.
    STACK_TEXT = 512
    # Keys are compared over at least this many bytes, the limit of an auth line.
    KEY_BOUND = 4096
    # A string of at least this many characters has its own memory mapping, which may use huge pages.
    HUGE_TEXT = 4194304
    # The head of a frame: its length as LEB128 of at most 5 bytes, then one byte for its kind.
    MAX_LENGTH_BYTES = 5
    JSON_KIND = 1
    BLOB_KIND = 2
    # Limits of `may_repeat_a_name`, which compares each name with all names before it in its object: the most
    # names, and the most objects and lists that are open at once.
    MAX_HELD_NAMES = 256
    MAX_OPEN = 64
    # Special values of `LineSplitter.newline`: not searched for yet, and none found.
    UNSEEN = -2
    NONE = -1


MAX_FRAME_BYTES = 64 * 1024 * 1024
cdef Py_ssize_t _MAX_FRAME_BYTES = MAX_FRAME_BYTES


include "_line_splitter.pxi"


cdef char* _escape(str text, char* stack, size_t* size) except NULL:
    """Returns the escaped text, in ``stack`` if ``text`` is small, else in memory that the caller must free."""
    cdef Py_ssize_t n
    cdef const char* source = PyUnicode_AsUTF8AndSize(text, &n)
    cdef char* out = stack
    if n > STACK_TEXT:
        out = <char*>PyMem_Malloc(6 * n)
        if out == NULL:
            raise MemoryError()
    size[0] = json_escape_into(out, source, n)
    return out


def escape_json(str text not None):
    cdef char[6 * STACK_TEXT] stack
    cdef size_t size
    cdef char* escaped = _escape(text, stack, &size)
    try:
        return PyBytes_FromStringAndSize(escaped, size)
    finally:
        if escaped != stack:
            PyMem_Free(escaped)


def token_frame(bytes prefix not None, str text not None, bytes suffix not None):
    cdef char[6 * STACK_TEXT] stack
    cdef size_t size
    cdef char* escaped = _escape(text, stack, &size)
    cdef bytes frame
    try:
        frame = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(prefix) + size + PyBytes_GET_SIZE(suffix))
        _join(PyBytes_AS_STRING(frame), prefix, escaped, size, suffix)
        return frame
    finally:
        if escaped != stack:
            PyMem_Free(escaped)


cdef void _join(char* out, bytes prefix, const char* escaped, size_t size, bytes suffix) noexcept:
    memcpy(out, PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix))
    out += PyBytes_GET_SIZE(prefix)
    memcpy(out, escaped, size)
    memcpy(out + size, PyBytes_AS_STRING(suffix), PyBytes_GET_SIZE(suffix))


def count_names(bytes line not None):
    cdef const char* start = PyBytes_AS_STRING(line)
    cdef const char* end = start + PyBytes_GET_SIZE(line)
    cdef const char* colon = start
    cdef const char* before
    cdef Py_ssize_t names = 0
    while colon < end:
        colon = <const char*>memchr(colon, b':', end - colon)
        if colon == NULL:
            break
        before = colon
        while before > start and (before - 1)[0] in (b' ', b'\t', b'\r', b'\n'):
            before -= 1
        names += before > start and (before - 1)[0] == b'"'
        colon += 1
    return names


cdef struct Name:
    const char* data
    Py_ssize_t size


def may_repeat_a_name(bytes line not None):
    cdef const char* here = PyBytes_AS_STRING(line)
    cdef const char* end = here + PyBytes_GET_SIZE(line)
    cdef const char* low
    cdef Name[MAX_HELD_NAMES] names
    cdef int[MAX_OPEN] firsts  # for each open object and list, the index of its first name in `names`
    cdef int held = 0
    cdef int depth = 0
    cdef int i
    while here < end:
        if here[0] == b'{' or here[0] == b'[':
            if depth == MAX_OPEN:
                return True
            firsts[depth] = held
            depth += 1
        elif (here[0] == b'}' or here[0] == b']') and depth > 0:
            depth -= 1
            held = firsts[depth]
        elif here[0] == b'"':
            low = here + 1
            here = _string_end(low, end)
            if _is_name(here, end):
                if held == MAX_HELD_NAMES or memchr(low, b'\\', here - low) != NULL:
                    return True
                for i in range(firsts[depth - 1] if depth > 0 else 0, held):
                    if names[i].size == here - low and memcmp(names[i].data, low, here - low) == 0:
                        return True
                names[held] = Name(low, here - low)
                held += 1
        here += 1
    return False


cdef const char* _string_end(const char* low, const char* end) noexcept:
    """Returns the closing quote of the JSON string whose opening quote is before ``low``, or ``end`` if none."""
    cdef const char* quote = low
    cdef const char* first
    while True:
        quote = <const char*>memchr(quote, b'"', end - quote)
        if quote == NULL:
            return end
        first = quote
        while first > low and (first - 1)[0] == b'\\':
            first -= 1
        if (quote - first) % 2 == 0:
            return quote
        quote += 1


cdef bint _is_name(const char* quote, const char* end) noexcept:
    """Returns whether a colon follows the string whose closing quote is ``quote``."""
    quote += 1
    while quote < end and quote[0] in (b' ', b'\t', b'\r', b'\n'):
        quote += 1
    return quote < end and quote[0] == b':'


def set_aside(line not None, Py_ssize_t longest, bytes mark not None):
    cdef Py_buffer source
    cdef const char* start
    cdef const char* end
    cdef const char* done
    cdef const char* low
    cdef const char* high
    cdef list parts = []
    cdef list texts = []
    PyObject_GetBuffer(line, &source, PyBUF_SIMPLE)
    try:
        start = done = low = high = <const char*>source.buf
        end = start + source.len
        while True:
            with nogil:
                low = text_long_string(high, end, longest, &high)
            if low == NULL:
                break
            parts.append(PyBytes_FromStringAndSize(done, low - done))
            parts.append(b"%b%08d" % (mark, len(texts)))
            texts.append(_unescaped(low, high - low))
            done = high
            high += 1
        parts.append(PyBytes_FromStringAndSize(done, end - done))
        return b"".join(parts), texts
    finally:
        PyBuffer_Release(&source)


cdef str _unescaped(const char* text, Py_ssize_t size):
    """Returns the text of a JSON string, given without its quotes."""
    cdef char* plain = NULL
    cdef Py_ssize_t length
    if memchr(text, b'\\', size) != NULL:
        plain = <char*>PyMem_RawMalloc(size)
        if plain == NULL:
            raise MemoryError()
    try:
        with nogil:
            length = text_unescape(<const unsigned char*>text, size, <unsigned char*>plain)
        if length < 0:
            raise ValueError("invalid character or escape in a string")
        return _decoded(<const unsigned char*>(text if plain == NULL else plain), length)
    finally:
        PyMem_RawFree(plain)


def is_utf8(data not None):
    cdef Py_buffer source
    cdef Py_UCS4 widest
    cdef Py_ssize_t length
    PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
    try:
        with nogil:
            length = text_count_points(<const unsigned char*>source.buf, source.len, &widest)
        return length >= 0
    finally:
        PyBuffer_Release(&source)


def decode_utf8(data not None):
    cdef Py_buffer source
    PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
    try:
        return _decoded(<const unsigned char*>source.buf, source.len)
    finally:
        PyBuffer_Release(&source)


cdef str _decoded(const unsigned char* text, Py_ssize_t size):
    cdef Py_UCS4 widest = 0
    cdef Py_ssize_t length
    cdef void* out
    with nogil:
        length = text_count_points(text, size, &widest)
    if length < 0:
        raise ValueError("invalid UTF-8")
    if length == 0:
        return ""
    # No other thread has a reference to the new string yet, so it can be filled without the GIL.
    cdef str result = PyUnicode_New(length, 0x7F if widest < 0x80 else widest)
    out = PyUnicode_DATA(result)
    with nogil:
        if length >= HUGE_TEXT:
            use_huge_pages(out, length * (1 if widest < 0x100 else 2 if widest < 0x10000 else 4))
        if widest < 0x80:
            memcpy(out, text, size)
        elif widest < 0x100:
            text_fill(text, size, <uint8_t*>out)
        elif widest < 0x10000:
            text_fill(text, size, <uint16_t*>out)
        else:
            text_fill(text, size, <uint32_t*>out)
    return result


def frame_lines(bytes lines not None):
    cdef const char* line = PyBytes_AS_STRING(lines)
    cdef const char* end = line + PyBytes_GET_SIZE(lines)
    cdef Py_ssize_t size, total = 0
    while line < end:
        size = _line_size(line, end)
        total += _head_size(size) + size
        line += size + 1
    cdef bytes frames = PyBytes_FromStringAndSize(NULL, total)
    cdef char* out = PyBytes_AS_STRING(frames)
    line = PyBytes_AS_STRING(lines)
    while line < end:
        size = _line_size(line, end)
        out = _write_head(out, size)
        memcpy(out, line, size)
        out += size
        line += size + 1
    return frames


cdef Py_ssize_t _line_size(const char* line, const char* end) except -1:
    cdef const char* newline = <const char*>memchr(line, b'\n', end - line)
    if newline == NULL:
        raise ValueError("the last line has no newline")
    return newline - line


cdef Py_ssize_t _head_size(Py_ssize_t size) noexcept:
    cdef Py_ssize_t total = 2
    while size >= 0x80:
        size >>= 7
        total += 1
    return total


cdef char* _write_head(char* out, Py_ssize_t size) noexcept:
    while size >= 0x80:
        out[0] = <char>(0x80 | (size & 0x7F))
        size >>= 7
        out += 1
    out[0] = <char>size
    out[1] = JSON_KIND
    return out + 2


def keys_equal(bytes a not None, bytes b not None):
    # Every iteration does the same work, wherever the keys end or differ, so the time reveals neither. Past the
    # end of a key, its first byte is read and masked to zero. `volatile` keeps the compiler from ending the loop
    # early.
    cdef Py_ssize_t a_size = PyBytes_GET_SIZE(a)
    cdef Py_ssize_t b_size = PyBytes_GET_SIZE(b)
    cdef const unsigned char* a_data = <const unsigned char*>PyBytes_AS_STRING(a)
    cdef const unsigned char* b_data = <const unsigned char*>PyBytes_AS_STRING(b)
    cdef volatile unsigned char difference = a_size != b_size
    cdef Py_ssize_t i, a_inside, b_inside
    for i in range(max(KEY_BOUND, a_size, b_size)):
        a_inside = -<Py_ssize_t>(i < a_size)
        b_inside = -<Py_ssize_t>(i < b_size)
        difference |= (a_data[i & a_inside] & a_inside) ^ (b_data[i & b_inside] & b_inside)
    return difference == 0


include "_floats.pxi"
include "_records.pxi"
