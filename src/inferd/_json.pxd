# The JSON string escape for all model text, inline for the extensions that cimport it. Not importable at run
# time.  Shared contract: UTF-8 in, the inside of a JSON string out (no quotes); the input is trusted to be
# valid. The quote, the backslash and the bytes below 0x20 are escaped (\n \t \r \b \f where JSON has a short
# form, \u00XX in lower-case hex otherwise); every other byte is copied unchanged, DEL and non-ASCII included.

from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef inline bint _json_word_is_clean(uint64_t w) noexcept nogil:
    # Eight bytes at a time: (x - k) & ~x keeps the top bit of exactly those words that hold a byte below k,
    # so xor-ing with the wanted byte first turns "equal to" into "below 1".
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
    """Writes the escaped ``src[:n]`` to ``dst``, which has room for 6 * n bytes; returns its length."""
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
