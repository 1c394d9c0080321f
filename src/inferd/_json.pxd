# Escapes all model text for JSON strings. Inline functions for the extensions that cimport them; not importable at
# run time.
#
# The input is UTF-8, trusted to be valid. The output is the inside of a JSON string, without the quotes. The quote,
# the backslash and the bytes below 0x20 are escaped: as \n \t \r \b \f, or as \u00XX in lower-case hex. Every other
# byte is copied unchanged, also DEL and non-ASCII bytes.

from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef inline bint _json_word_is_clean(uint64_t w) noexcept nogil:
    # Tests eight bytes at a time. (x - k) & ~x has the top bit of a byte set if and only if some byte of x is below
    # k. A xor with a byte value first turns the test "equal to this value" into "below 1".
    cdef uint64_t ones = 0x0101010101010101ULL
    cdef uint64_t quote = w ^ (ones * 0x22)
    cdef uint64_t backslash = w ^ (ones * 0x5C)
    cdef uint64_t hits = (
        ((w - ones * 0x20) & ~w) | ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash)
    )
    return (hits & (ones * 0x80)) == 0


cdef inline size_t _json_escape_byte(char* dst, unsigned char c) noexcept nogil:
    cdef unsigned char low
    if c >= 0x20 and c != 0x22 and c != 0x5C:
        dst[0] = <char>c
        return 1
    dst[0] = b'\\'
    if c == 0x22 or c == 0x5C:
        dst[1] = <char>c
    elif c == 0x0A:
        dst[1] = b'n'
    elif c == 0x09:
        dst[1] = b't'
    elif c == 0x0D:
        dst[1] = b'r'
    elif c == 0x08:
        dst[1] = b'b'
    elif c == 0x0C:
        dst[1] = b'f'
    else:
        low = c & 0x0F
        dst[1] = b'u'
        dst[2] = b'0'
        dst[3] = b'0'
        dst[4] = <char>(0x30 + (c >> 4))
        dst[5] = <char>(0x30 + low if low < 10 else 0x57 + low)
        return 6
    return 2


cdef inline size_t json_escape_into(char* dst, const char* src, size_t n) noexcept nogil:
    """Writes the escaped ``src[:n]`` to ``dst``, which has room for 6 * n bytes. Returns the number of bytes
    written."""
    cdef size_t i = 0
    cdef size_t k = 0
    cdef size_t stop
    cdef uint64_t w
    while n - i >= 8:
        memcpy(&w, src + i, 8)
        if _json_word_is_clean(w):
            memcpy(dst + k, &w, 8)
            i += 8
            k += 8
            continue
        stop = i + 8
        while i < stop:
            k += _json_escape_byte(dst + k, <unsigned char>src[i])
            i += 1
    while i < n:
        k += _json_escape_byte(dst + k, <unsigned char>src[i])
        i += 1
    return k
