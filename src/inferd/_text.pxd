# Converts long texts without the GIL: escaped JSON strings to UTF-8, and UTF-8 to the characters of a str. Inline
# functions for the extensions that cimport them; not importable at run time.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy


cdef inline const char* text_long_string(
    const char* at, const char* end, Py_ssize_t longest, const char** close
) noexcept nogil:
    """Returns the first byte inside the next JSON string of more than ``longest`` bytes, or NULL if none follows.
    Sets ``close`` to its closing quote. ``at`` must be outside of any string."""
    cdef const char* low
    while at < end:
        at = <const char*>memchr(at, b'"', end - at)
        if at == NULL:
            return NULL
        low = at = at + 1
        while at < end and at[0] != b'"':
            at += 2 if at[0] == b'\\' else 1
        if at >= end:
            return NULL
        if at - low > longest:
            close[0] = at
            return low
        at += 1
    return NULL


cdef inline Py_ssize_t text_unescape(
    const unsigned char* text, Py_ssize_t size, unsigned char* out
) noexcept nogil:
    """Writes the text of the inside of a JSON string to ``out``, and returns the text's size, or -1 if it is
    invalid. If there is no backslash, ``out`` may be NULL: then the text is only checked."""
    cdef Py_ssize_t i = 0, n = 0
    cdef long unit, low
    cdef unsigned char c
    while i < size:
        c = text[i]
        i += 1
        if c < 0x20:
            return -1
        if out == NULL:
            n += 1
            continue
        if c != b'\\':
            out[n] = c
            n += 1
            continue
        c = text[i]
        i += 1
        if c != b'u':
            c = _text_plain(c)
            if c == 0:
                return -1
            out[n] = c
            n += 1
            continue
        unit = _text_unit(text, i, size)
        i += 4
        if 0xD800 <= unit < 0xDC00:
            if i + 6 > size or text[i] != b'\\' or text[i + 1] != b'u':
                return -1
            low = _text_unit(text, i + 2, size)
            if not 0xDC00 <= low < 0xE000:
                return -1
            i += 6
            unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
        elif unit < 0 or 0xDC00 <= unit < 0xE000:
            return -1
        n += _text_put_utf8(out + n, unit)
    return n


cdef inline unsigned char _text_plain(unsigned char c) noexcept nogil:
    if c == b'n':
        return b'\n'
    if c == b't':
        return b'\t'
    if c == b'r':
        return b'\r'
    if c == b'b':
        return 8
    if c == b'f':
        return 12
    return c if c == b'"' or c == b'\\' or c == b'/' else 0


cdef inline long _text_unit(const unsigned char* text, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    """Returns the value of the four hexadecimal digits at ``i``, or -1."""
    cdef long unit = 0
    cdef Py_ssize_t end = i + 4
    cdef unsigned char c
    if end > size:
        return -1
    while i < end:
        c = text[i]
        i += 1
        if 0x30 <= c <= 0x39:
            unit = unit * 16 + c - 0x30
        elif 0x61 <= c | 0x20 <= 0x66:
            unit = unit * 16 + (c | 0x20) - 0x61 + 10
        else:
            return -1
    return unit


cdef inline int _text_put_utf8(unsigned char* out, long point) noexcept nogil:
    if point < 0x80:
        out[0] = <unsigned char>point
        return 1
    if point < 0x800:
        out[0] = <unsigned char>(0xC0 | point >> 6)
        out[1] = <unsigned char>(0x80 | point & 0x3F)
        return 2
    if point < 0x10000:
        out[0] = <unsigned char>(0xE0 | point >> 12)
        out[1] = <unsigned char>(0x80 | point >> 6 & 0x3F)
        out[2] = <unsigned char>(0x80 | point & 0x3F)
        return 3
    out[0] = <unsigned char>(0xF0 | point >> 18)
    out[1] = <unsigned char>(0x80 | point >> 12 & 0x3F)
    out[2] = <unsigned char>(0x80 | point >> 6 & 0x3F)
    out[3] = <unsigned char>(0x80 | point & 0x3F)
    return 4


cdef inline Py_ssize_t text_count_points(const unsigned char* text, Py_ssize_t size, Py_UCS4* widest) noexcept nogil:
    """Returns the number of code points, or -1 if the text is not UTF-8. Sets ``widest`` to the largest code point, or
    to 0 if all are ASCII."""
    cdef Py_ssize_t i = 0, count = 0
    cdef uint64_t eight
    cdef Py_UCS4 point, most = 0
    cdef unsigned char c
    while i < size:
        if size - i >= 8:
            memcpy(&eight, text + i, 8)
            if not eight & <uint64_t>0x8080808080808080:
                i += 8
                count += 8
                continue
        c = text[i]
        if c < 0x80:
            i += 1
        elif 0xC2 <= c < 0xE0:
            if i + 2 > size or not _text_goes_on(text[i + 1]):
                return -1
            point = (c & 0x1F) << 6 | text[i + 1] & 0x3F
            most = max(most, point)
            i += 2
        elif 0xE0 <= c < 0xF0:
            if i + 3 > size or not (_text_goes_on(text[i + 1]) and _text_goes_on(text[i + 2])):
                return -1
            point = (c & 0xF) << 12 | (text[i + 1] & 0x3F) << 6 | text[i + 2] & 0x3F
            if point < 0x800 or 0xD800 <= point < 0xE000:
                return -1
            most = max(most, point)
            i += 3
        elif 0xF0 <= c < 0xF5:
            if i + 4 > size or not (
                _text_goes_on(text[i + 1]) and _text_goes_on(text[i + 2]) and _text_goes_on(text[i + 3])
            ):
                return -1
            point = (
                (c & 7) << 18 | (text[i + 1] & 0x3F) << 12 | (text[i + 2] & 0x3F) << 6 | text[i + 3] & 0x3F
            )
            if not 0x10000 <= point < 0x110000:
                return -1
            most = max(most, point)
            i += 4
        else:
            return -1
        count += 1
    widest[0] = most
    return count


cdef inline bint _text_goes_on(unsigned char c) noexcept nogil:
    return c & 0xC0 == 0x80


ctypedef fused _Char:
    uint8_t
    uint16_t
    uint32_t


cdef inline void text_fill(const unsigned char* text, Py_ssize_t size, _Char* out) noexcept nogil:
    """Writes the code points of valid UTF-8 to ``out``, whose elements must be wide enough for the largest."""
    cdef Py_ssize_t i = 0
    cdef unsigned char c
    while i < size:
        c = text[i]
        if c < 0x80:
            out[0] = c
            i += 1
        elif c < 0xE0:
            out[0] = <_Char>((c & 0x1F) << 6 | text[i + 1] & 0x3F)
            i += 2
        elif c < 0xF0:
            out[0] = <_Char>((c & 0xF) << 12 | (text[i + 1] & 0x3F) << 6 | text[i + 2] & 0x3F)
            i += 3
        else:
            out[0] = <_Char>(
                (c & 7) << 18 | (text[i + 1] & 0x3F) << 12 | (text[i + 2] & 0x3F) << 6 | text[i + 3] & 0x3F
            )
            i += 4
        out += 1
