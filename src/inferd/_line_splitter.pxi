# Splits a stream into lines, and reads the heads of frames. Part of _fastpath.pyx.
#
# Memory of a :class:`LineSplitter`: bytes are held in a block that does not move while a memoryview refers to
# it, and that is freed after its last memoryview. Memory that a memoryview refers to is never overwritten: the
# splitter continues in a new block instead. So a line does not change while the caller keeps it, and only costs
# memory.
#
# Cost: each byte is searched for a newline once. Bytes are moved only when the block doubles, when at least as
# many bytes as are moved have been returned, or once for a line that reaches the end of the largest block.

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
    cdef Py_ssize_t start      # position of the first byte not returned yet
    cdef Py_ssize_t end        # one past the last byte received
    cdef Py_ssize_t newline    # position of the first newline in start..end, or NONE or UNSEEN

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
        """Makes ``need`` bytes free at the end of the block. The block grows to at most ``cap + chunk`` bytes."""
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
            old.grow(size)  # for a large block, the system remaps its pages instead of copying them
        else:
            self.block = _Block(size)
            memcpy(self.block.data, old.data + self.start, held)
        if self.newline >= 0:
            self.newline -= self.start
        self.start = 0
        self.end = held
        return 0
