# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled implementation of :mod:`inferd.fastpath`; the docstrings of ``_purepath`` document it.

Memory of a :class:`LineSplitter`: bytes are held in a block that does not move while a memoryview refers to
it, and that is freed with its last memoryview. Memory that a memoryview refers to is never overwritten: the
splitter continues in a new block instead. So a line that its caller keeps does not change, and costs only
memory.

Cost: each byte is searched for a newline once. Bytes are moved only after at least as many have been handed
out, when the block doubles, or once for a line that reaches the end of the largest block.
"""

from cpython.buffer cimport PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcpy, memmove

cimport cython

from inferd._json cimport json_escape_into
from inferd._text cimport text_count_points, text_fill, text_long_string, text_unescape

from inferd.errors import FrameTooLarge, MalformedFrame

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/mman.h>
    /* Advice only: huge pages where the system has them. Freeing 16,384 small ones takes 6 ms. */
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
    # The block of a fresh connection: a short conversation fits, and 1,024 idle connections cost 4 MiB.
    FIRST_BLOCK = 4096
    # How far a block may exceed the cap: the newline, and the bytes of the same read after it.
    READ_CHUNK = 4096
    # A block with less room at its end is rearranged, to avoid reads of a few bytes.
    LEAST_READ = 1024
    # Texts up to this size are escaped on the stack; a token is a few bytes.
    STACK_TEXT = 512
    # Keys are compared over at least this length, the limit of an auth line.
    KEY_BOUND = 4096
    # A text of this many characters is allocated in a mapping of its own, which may use huge pages.
    HUGE_TEXT = 4194304
    # The head of a frame: its length as LEB128 of at most 5 bytes, then one byte for its kind.
    MAX_LENGTH_BYTES = 5
    JSON_KIND = 1
    BLOB_KIND = 2
    # Values of the next newline's position: not searched yet, and none found.
    UNSEEN = -2
    NONE = -1


MAX_FRAME_BYTES = 64 * 1024 * 1024
cdef Py_ssize_t _MAX_FRAME_BYTES = MAX_FRAME_BYTES


@cython.final
cdef class _Block:
    """Memory at a fixed address, which counts the memoryviews over parts of it."""

    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t views
    cdef Py_ssize_t low
    cdef Py_ssize_t high
    cdef bint writable

    def __cinit__(self, Py_ssize_t size):
        self.data = <char*>PyMem_Malloc(size)
        if self.data == NULL:
            raise MemoryError()
        self.size = size

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef char* data = <char*>PyMem_Realloc(self.data, size)
        if data == NULL:
            raise MemoryError()
        self.data = data
        self.size = size
        return 0

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("a line is read-only")
        buffer.obj = self
        buffer.buf = self.data + self.low
        buffer.len = self.high - self.low
        buffer.readonly = not self.writable
        buffer.itemsize = 1
        buffer.format = NULL
        buffer.ndim = 1
        buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
        buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL
        self.views += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.views -= 1

    cdef object view(self, Py_ssize_t low, Py_ssize_t high, bint writable):
        self.low = low
        self.high = high
        self.writable = writable
        cdef object result = PyMemoryView_FromObject(self)
        self.writable = False
        return result


@cython.final
cdef class LineSplitter:
    """Splits a stream into lines of at most ``cap`` bytes; see :class:`inferd._purepath.LineSplitter`."""

    cdef readonly Py_ssize_t cap
    cdef readonly bint oversized
    cdef bint _framed
    cdef _Block block
    cdef Py_ssize_t start      # first byte not handed out
    cdef Py_ssize_t end        # one past the last byte read
    cdef Py_ssize_t newline    # the first newline in start..end, or NONE or UNSEEN

    def __init__(self, Py_ssize_t cap):
        if cap < 1:
            raise ValueError("cap must be at least 1 byte")
        self.cap = cap
        self.oversized = False
        self._empty()

    @property
    def buffered(self):
        return self.end - self.start

    @property
    def framed(self):
        return self._framed

    @framed.setter
    def framed(self, bint value):
        self._framed = value
        self.newline = NONE if value else UNSEEN

    @property
    def has_line(self):
        self._look()
        return self.oversized or self.newline >= 0

    def get_buffer(self, Py_ssize_t sizehint=-1):
        self._make_room(LEAST_READ, READ_CHUNK)
        return self.block.view(self.end, self.block.size, True)

    def buffer_updated(self, Py_ssize_t nbytes):
        if nbytes < 0 or nbytes > self.block.size - self.end:
            raise ValueError("nbytes does not fit the buffer that get_buffer gave")
        self._received(nbytes)

    def feed(self, data):
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            self._make_room(source.len, source.len)
            memmove(self.block.data + self.end, source.buf, source.len)
            self._received(source.len)
        finally:
            PyBuffer_Release(&source)

    def next_line(self):
        self._look()
        if self.oversized:
            raise FrameTooLarge(self.cap)
        if self.newline < 0:
            return None
        cdef object line = self._view_line(self.start, self.newline)
        self.start = self.newline + 1
        self.newline = UNSEEN
        return line

    def take_tail(self):
        cdef object line = self.next_line()
        if line is None and self.start < self.end:
            line = self._view_line(self.start, self.end)
            self.start = self.end
        return line

    def take_into(self, buffer not None):
        cdef Py_buffer target
        cdef Py_ssize_t size
        PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
        try:
            size = min(target.len, self.end - self.start)
            memcpy(target.buf, self.block.data + self.start, size)
        finally:
            PyBuffer_Release(&target)
        self.start += size
        self.newline = UNSEEN
        return size

    def peek(self, Py_ssize_t size):
        return PyBytes_FromStringAndSize(self.block.data + self.start, min(size, self.end - self.start))

    def next_head(self):
        cdef const unsigned char* head = <const unsigned char*>self.block.data + self.start
        cdef Py_ssize_t held = self.end - self.start
        cdef Py_ssize_t size = 0
        cdef int i = 0
        while True:
            if i == MAX_LENGTH_BYTES:
                raise MalformedFrame(f"length varint exceeded {MAX_LENGTH_BYTES} bytes")
            if i == held:
                return None
            size |= <Py_ssize_t>(head[i] & 0x7F) << (7 * i)
            i += 1
            if head[i - 1] < 0x80:
                break
        if size > _MAX_FRAME_BYTES:
            raise FrameTooLarge(_MAX_FRAME_BYTES)
        if i == held:
            return None
        cdef int kind = head[i]
        if kind != JSON_KIND and kind != BLOB_KIND:
            raise MalformedFrame(f"unknown frame-type byte 0x{kind:02x}")
        self.start += i + 1
        self.newline = UNSEEN
        return kind, size

    cdef object _view_line(self, Py_ssize_t low, Py_ssize_t high):
        if high > low and self.block.data[high - 1] == b'\r':
            high -= 1
        return self.block.view(low, high, False)

    cdef int _received(self, Py_ssize_t nbytes) except -1:
        cdef Py_ssize_t unseen = self.start if self.newline == UNSEEN else self.end
        if not self.oversized:
            self.end += nbytes
            if self.newline < 0:
                self._search(unseen)
        return 0

    cdef int _look(self) except -1:
        if self.newline == UNSEEN:
            self._search(self.start)
        return 0

    cdef int _search(self, Py_ssize_t unseen) except -1:
        if self._framed:
            self.newline = NONE
            return 0
        cdef char* found = <char*>memchr(self.block.data + unseen, b'\n', self.end - unseen)
        self.newline = NONE if found == NULL else found - self.block.data
        if (self.end if found == NULL else self.newline) - self.start > self.cap:
            self.oversized = True
            self._empty()
        return 0

    cdef int _empty(self) except -1:
        self.block = _Block(FIRST_BLOCK)
        self.start = self.end = 0
        self.newline = NONE
        return 0

    cdef int _make_room(self, Py_ssize_t need, Py_ssize_t chunk) except -1:
        """Leaves ``need`` bytes free at the end of a block of at most ``cap + chunk`` bytes."""
        self._look()
        cdef Py_ssize_t held = self.end - self.start
        cdef Py_ssize_t size = self.block.size
        if self.newline >= 0 and held > self.cap // 2:
            raise BufferError("take the lines that wait before reading on")
        if size - self.end >= need and (held > 0 or self.start == 0):
            return 0
        if held + need <= FIRST_BLOCK:
            size = FIRST_BLOCK
        elif held > self.start or held + need > size:
            size = min(self.cap + chunk, max(2 * size, held + need))
        cdef _Block old = self.block
        if size == old.size and old.views == 0:
            memmove(old.data, old.data + self.start, held)
        elif old.views == 0 and self.start == 0 and size > old.size:
            old.grow(size)  # for large blocks the system remaps pages instead of copying
        else:
            self.block = _Block(size)
            memcpy(self.block.data, old.data + self.start, held)
        if self.newline >= 0:
            self.newline -= self.start
        self.start = 0
        self.end = held
        return 0


cdef char* _escape(str text, char* stack, size_t* size) except NULL:
    """The escaped text: in ``stack`` if it is small, else in memory that the caller frees."""
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
    """Decodes the inside of a JSON string."""
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
    # Every iteration does the same work wherever the keys end or differ: past its end a key is read at its
    # first byte and masked to zero. `volatile` keeps the compiler from ending the loop early.
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
