# Adds fields to log records, and joins them to one line of text. Part of _fastpath.pyx.

from inferd.redaction import SHORTEST_SECRET, marker_of_name

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef Py_ssize_t _SHORTEST_SECRET = SHORTEST_SECRET


cdef bint _is_word(str text) except -1:
    """Returns whether the text consists of one or more ASCII letters and digits."""
    cdef Py_ssize_t size = len(text)
    cdef Py_ssize_t i
    if not text.isascii() or size == 0:
        return False
    cdef const char* chars = PyUnicode_AsUTF8AndSize(text, &size)
    for i in range(size):
        if not (b'0' <= chars[i] <= b'9' or b'a' <= (chars[i] | 0x20) <= b'z'):
            return False
    return True


def add_fields(dict entry not None, dict fields not None, clean):
    cdef int overflow
    for name, value in fields.items():
        if name in entry:
            continue
        if type(value) is str:
            if len(value) >= _SHORTEST_SECRET or not _is_word(value) or marker_of_name(name) is not None:
                value = clean(value, name)
        elif type(value) is int:
            if PyLong_AsLongLongAndOverflow(value, &overflow) < 0 or overflow:
                value = clean(value, name)
        elif value is not None and type(value) is not float:
            value = clean(value, name)
        entry[name] = value


def joined_fields(dict entry not None, left_out, plain):
    cdef list parts = []
    for name, value in entry.items():
        if value is None or name in left_out:
            continue
        if type(value) is int or type(value) is float:
            value = repr(value)
        elif type(value) is not str or not _is_word(value):
            value = plain(value)
        parts.append(" ")
        parts.append(name)
        parts.append("=")
        parts.append(value)
    return "".join(parts)
